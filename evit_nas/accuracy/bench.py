"""One network on the bench: the passes that the proxies share, each run once and only when it is asked for.

The network is cut into segments (stem, downsamplings, blocks, head) that run on detached inputs. So one
forward gives the output of every block, any segment can be pulled back alone, and the whole gradient is the
pull-backs one after another.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from evit_nas.arch import ArchConfig
from evit_nas.network.attention import CascadedGroupAttention, LinearAttention, ParallelGroupAttention
from evit_nas.network.cost import Cost, cost
from evit_nas.network.layers import SqueezeExcite
from evit_nas.network.model import EfficientViT, build

BATCH = 16  # the same at every image size: the gradient of a mean over random labels shrinks with the batch


class Layer(NamedTuple):
    """A convolution or linear layer by its weight (no norms, no biases)."""

    weight: Tensor
    heads: int = 0
    """Matrices that lie side by side in the weight of an attention's qkv or projection; 0 for every other layer."""


@dataclass(frozen=True)
class Segment:
    """A step of the network and its layers."""

    run: Callable[[Tensor], Tensor]
    layers: list[Layer]


@dataclass(frozen=True)
class Link:
    """A segment that has run: its detached input and its output."""

    segment: Segment
    x: Tensor
    y: Tensor


def segments_of(model: EfficientViT) -> list[Segment]:
    """Stem, each downsampling and block, head (with the pooling)."""
    segments = [Segment(model.stem, _layers(model.stem))]
    for stage in model.stages:
        steps = [stage.get_submodule("downsample"), *stage.get_submodule("blocks").children()]
        segments += [Segment(step, _layers(step)) for step in steps if not isinstance(step, nn.Identity)]
    return [*segments, Segment(model.forward_head, _layers(model.head))]


def _layers(module: nn.Module) -> list[Layer]:
    layers = []
    for name, child in module.named_modules():
        if isinstance(child, nn.Conv2d):
            layers.append(Layer(child.weight, child.groups if name.endswith((".qkv.conv", ".proj.conv")) else 0))
        elif isinstance(child, nn.Linear):
            layers.append(Layer(child.weight))
    return layers


def run_segments(segments: Sequence[Segment], x: Tensor) -> list[Link]:
    """Feeds `x` through the segments; each keeps a graph of its own."""
    links = []
    for segment in segments:
        x = x.detach().requires_grad_()
        links.append(Link(segment, x, segment.run(x)))
        x = links[-1].y
    return links


def gradients(links: Sequence[Link], grad: Tensor) -> Iterator[tuple[Layer, Tensor]]:
    """dR/dw of every layer, last segment first, where `grad` is dR/d(output of the last segment)."""
    for link in reversed(links):
        weights = [layer.weight for layer in link.segment.layers]
        # kept: the losses of the batch and of half of it, and random signs, go back through the same links
        grad, *grads = torch.autograd.grad(link.y, [link.x, *weights], grad, retain_graph=True)
        yield from zip(link.segment.layers, grads, strict=True)


class ReluOutputs(TorchFunctionMode):
    """While it is entered, `found` collects what F.relu returns: nothing of a network's ReLUs is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))  # the mode is off in here, so that a call is seen once
        if func is F.relu:
            self.found.append(out.detach())
        return out


def lively_copy(model: EfficientViT) -> EfficientViT:
    """A float32 copy on the CPU, in training mode and free to change, with every BatchNorm gamma set to 1.

    As built, every residual branch ends in a gamma of 0, and four layers in five get a gradient of exactly 0.
    """
    model = copy.deepcopy(model).cpu().float().train().requires_grad_()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            module.requires_grad_(False)  # nobody reads these gradients, and they cost time
    return model


def positive_copy(model: EfficientViT) -> EfficientViT:
    """A copy that is a linear map of its input with weights >= 0 only, apart from ReLUs that never cut.

    Weights become |w|, biases 0, BatchNorms the identity. Attention becomes uniform (softmax of zeros; the
    linear mixer with queries and keys of ones), since a softmax saturates and hides its queries and keys; the
    gate of squeeze-and-excitation is left open (1, which is its limit for growing inputs).
    """
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_()
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d | SqueezeExcite):
                setattr(parent, name, nn.Identity())
    for module in list(model.modules()):
        if isinstance(module, CascadedGroupAttention | ParallelGroupAttention):
            module.scale = 0.0
            nn.init.zeros_(module.bias.table)
        elif isinstance(module, LinearAttention):
            module.qkv.register_forward_hook(_ones_as_queries_and_keys(2 * module.num_heads * module.qk_dim))
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)  # no convolution has one once the gates are gone
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_()
    return model


def _ones_as_queries_and_keys(channels: int) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
    def hook(_: nn.Module, __: tuple[Tensor], qkv: Tensor) -> Tensor:
        return torch.cat([torch.ones_like(qkv[:, :channels]), qkv[:, channels:]], dim=1)

    return hook


class Bench:
    """What one network shows for one draw of images, labels and signs.

    An architecture gets random weights as part of the draw; a model keeps its own, and is left as it is.
    """

    def __init__(self, network: ArchConfig | EfficientViT, seed: int) -> None:
        self.network = network
        self.arch = network if isinstance(network, ArchConfig) else network.arch
        self.seed = seed

    @cached_property
    def model(self) -> EfficientViT:
        """The network as it was given or built, to be copied before it is changed."""
        return build(self.network, self.seed) if isinstance(self.network, ArchConfig) else self.network

    @cached_property
    def cost(self) -> Cost:
        """The size of the network, which depends on no draw."""
        return cost(self.arch)

    def generator(self, stream: int) -> torch.Generator:
        """A stream for each kind of draw, so that no proxy depends on which others were asked for."""
        return torch.Generator().manual_seed(4 * self.seed + stream)  # room for four streams: no two seeds share one

    @cached_property
    def _forward(self) -> tuple[list[Link], list[Tensor]]:
        shape = (BATCH, self.arch.in_channels, *self.arch.input_size)
        images = torch.randn(shape, generator=self.generator(0)).to(memory_format=torch.channels_last)
        model = lively_copy(self.model).to(memory_format=torch.channels_last)  # saves about 15 % of the time
        with ReluOutputs() as relus:
            return run_segments(segments_of(model), images), relus.found

    @property
    def links(self) -> list[Link]:
        """The lively copy on (BATCH, in_channels, H, W) normal noise, with the statistics of the batch."""
        return self._forward[0]

    @property
    def relus(self) -> list[Tensor]:
        """The output of every ReLU of that pass; windows of an image are neighbours in the first dimension."""
        return self._forward[1]

    @cached_property
    def features(self) -> list[Tensor]:
        """The outputs of stem, downsamplings and blocks, (B, C, H, W) each."""
        return [link.y.detach() for link in self.links[:-1]]

    @cached_property
    def loss_gradients(self) -> list[tuple[Layer, Tensor]]:
        """dL/dw of every layer, L the mean cross-entropy with random labels."""
        return self._loss_gradients(BATCH)

    @cached_property
    def half_loss_gradients(self) -> list[tuple[Layer, Tensor]]:
        """`loss_gradients` where only the first half of the batch has labels."""
        return self._loss_gradients(BATCH // 2)

    def _loss_gradients(self, images: int) -> list[tuple[Layer, Tensor]]:
        logits = self.links[-1].y.detach().requires_grad_()
        classes = logits if logits.shape[1] > 1 else F.pad(logits, (0, 1))  # one output: a logistic loss
        # for the whole batch, so that a half has the labels that it has in the whole
        labels = torch.randint(classes.shape[1], (BATCH,), generator=self.generator(1))
        (grad,) = torch.autograd.grad(F.cross_entropy(classes[:images], labels[:images]), logits)
        return list(gradients(self.links, grad))

    @cached_property
    def pullbacks(self) -> list[tuple[Tensor, Tensor]]:
        """Random signs at each block's output and what they become at its input, (B, C, H, W) each."""
        generator = self.generator(2)
        pairs = []
        for link in self.links[1:-1]:
            signs = torch.randint(2, link.y.shape, generator=generator).float().mul_(2).sub_(1)
            pairs.append((signs, torch.autograd.grad(link.y, link.x, signs, retain_graph=True)[0]))
        return pairs

    @cached_property
    def flow(self) -> Flow:
        """The flow through the positive copy from one image of ones."""
        x = torch.ones(1, self.arch.in_channels, *self.arch.input_size)
        return flow(segments_of(positive_copy(self.model)), x)


@dataclass(frozen=True)
class Flow:
    """Gradients of R, the sum of a network's outputs, over their mean; `log_scale` is the log of that mean."""

    log_scale: Tensor
    gradients: list[tuple[Layer, Tensor]]


def flow(segments: Sequence[Segment], x: Tensor) -> Flow:
    """The flow through a positive network from the input `x`.

    R outgrows every float with depth. Outputs scale with inputs, so each segment's output is divided by its
    mean, which leaves w dR/dw / R as it is, and the logs of the means are kept.
    """
    log_scale = torch.zeros((), dtype=torch.float64)
    links = []
    for segment in segments:
        x = x.detach().requires_grad_()
        y = segment.run(x)
        scale = y.detach().mean()
        log_scale += scale.double().log()
        links.append(Link(segment, x, y / scale))
        x = links[-1].y
    return Flow(log_scale, list(gradients(links, torch.ones_like(x))))
