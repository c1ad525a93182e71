"""Taylor importance: what would the loss lose with a channel? (arXiv 2305.07027, figure 5)

First-order form of Molchanov et al. (arXiv 1906.10771, section 3, the gate of a channel; absolute as in arXiv
1611.06440): a gate of 1 behind every channel, |gradient of the gate|, which for one image is |sum of y dL/dy| over the
positions of the channel's output y. By the chain rule that is gradient times weight, summed over the last weights that
make the channel: gamma dL/dgamma + beta dL/dbeta of its BatchNorm, or a row of a linear layer with its bias. The
absolute value is taken image by image, so that images do not cancel and the size of a batch changes nothing.

A channel multiplied by 0 has importance 0. Where no convolution stands between q and the product with k, as in DeiT,
a query channel and its key channel are equally important, for the score is their product.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evit_nas.analysis.channels import parts
from evit_nas.analysis.results import Channels


def importance(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[list[Channels], float]:
    """The importance of every channel for the cross-entropy, and the percentage of images that are answered right.

    Args:
        model: in eval mode; its parameters and their gradients are left as they are.
        batches: (B, C, H, W) images, as the network wants them, and (B,) labels in the order of its outputs.

    Raises:
        UsageError: the network has no attention that can be taken apart.
    """
    found = parts(model)
    written: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda _, inputs, output, path=path: written.__setitem__(path, output)
        )
        for path in dict.fromkeys(path for part in found for path, _ in part.places)  # once: q, k and v share a layer
    ]
    sums: dict[str, Tensor] = {}
    seen = right = 0
    try:
        for images, labels in batches:
            count = len(images)
            if count == 1:  # torch 2.15's BatchNorm misreads the layout of some gradients of a single image
                images, labels = images.repeat(2, 1, 1, 1), labels.repeat(2)
            with torch.enable_grad():
                logits = model(images)
                # not the mean: the gradient of an image must not depend on how many are beside it
                loss = F.cross_entropy(logits, labels, reduction="sum")
                gradients = torch.autograd.grad(loss, list(written.values()))
            changes = {
                path: _by_channel(output.detach() * gradient, len(images))
                for (path, output), gradient in zip(written.items(), gradients, strict=True)
            }
            for part in found:
                change = torch.stack([changes[path][:count, rows] for path, rows in part.places]).sum(0)  # (B, C)
                sums[part.name] = sums.get(part.name, torch.zeros(())) + change.double().abs().sum(0)
            seen += count
            right += int((logits.argmax(1) == labels)[:count].sum())
    finally:
        for hook in hooks:
            hook.remove()
    channels = [
        Channels(name=part.name, kind=part.kind, stage=part.stage, importance=tuple((sums[part.name] / seen).tolist()))
        for part in found
    ]
    return channels, 100 * right / seen


def _by_channel(values: Tensor, images: int) -> Tensor:
    """(images, C) sums over positions: of (B windows, C, H, W) maps, or of (B windows, N, C) tokens."""
    summed = values.sum((2, 3)) if values.ndim == 4 else values.sum(1)
    return summed.reshape(images, -1, summed.shape[-1]).sum(1)
