"""A network's first weights from a trained one of another shape: of every tensor the largest part that both have.

What is matched is what means the same in both networks: blocks, heads and the q, k and v rows of each head by their
number, kernels by their centre, channels from the first on. Where all heads of a stage shrink or grow together, its
channels count head by head, so that every head goes on reading the channels it was trained on.

Where the network is larger than its source, weights from new inputs to old outputs are set to 0, new query channels
begin at 0, and new blocks are the identity as in every fresh network: a network that is larger in all respects starts
with the very function of its source (as in Net2Net, arXiv 1511.05641), while its new parts receive gradients.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evit_nas.arch import StageConfig
from evit_nas.errors import UsageError
from evit_nas.files import expanded
from evit_nas.network.attention import resize_bias_table
from evit_nas.network.model import EfficientViT
from evit_nas.network.saved import Saved, class_order, efficientvit, open_saved
from evit_nas.network.supernet import Members, Supernet
from evit_nas.trained import SUPERNET_RECORD

# tensors whose first (whose second) dimension counts the channels between the blocks of a stage
_TRUNK_OUT = re.compile(r"stem\.3\.|head\.bn\.|.*(\.dw\.fn|\.ffn\.fn\.project|\.mixer\.fn\.proj|downsample\.project)\.")
_TRUNK_IN = re.compile(r"head\.linear\.weight|.*(\.ffn\.fn\.expand|downsample\.expand)\.conv")
_STAGE = re.compile(r"stages\.(\d)\.(downsample\.(?:before|expand)\.)?")  # with a part that belongs to the stage before
_IN_HEADS = re.compile(r"(?:heads\.(\d+)\.)?(qkv|q_local|v_local|back)\.(.*)")
_LAYER = re.compile(r"stem|head\.\w+|stages\.\d\.(?:downsample\.\w+|blocks\.\d+\.\w+)")


@dataclass(frozen=True)
class Copied:
    """How much of one tensor was found in the source."""

    name: str
    shape: tuple[int, ...]
    elements: int
    """Taken over; the others are fresh, or 0 where they would change the function."""
    learned: bool
    """False for the running statistics of BatchNorm."""

    @property
    def size(self) -> int:
        """Elements of the tensor."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Transfer:
    """Where the weights of a network came from, tensor by tensor."""

    source: str
    tensors: tuple[Copied, ...]
    classifier: str
    """Why it is fresh; empty if it was taken over."""

    def summary(self) -> str:
        """One line: the share of the parameters that was taken over."""
        learned = [tensor for tensor in self.tensors if tensor.learned]
        total = sum(tensor.size for tensor in learned)
        share = sum(tensor.elements for tensor in learned) / total
        counts = [
            f"{sum(_how(t.elements, t.size) == how for t in learned)} {how}" for how in ("whole", "sliced", "fresh")
        ]
        classifier = f"; {self.classifier}" if self.classifier else ""
        return f"{share:.1%} of {total / 1e6:.1f}M parameters from {self.source}: {', '.join(counts)}{classifier}"

    def rows(self) -> list[dict[str, Any]]:
        """Layer by layer, in the network's order: parameters, those taken over, and what that makes it."""
        layers: dict[str, list[int]] = {}
        for tensor in self.tensors:
            found = _LAYER.match(tensor.name)
            sums = layers.setdefault(found[0] if found else tensor.name, [0, 0])
            if tensor.learned:
                sums[0] += tensor.size
                sums[1] += tensor.elements
        return [
            {"layer": layer, "params": size, "taken": elements, "how": _how(elements, size)}
            for layer, (size, elements) in layers.items()
        ]


def start_from(model: EfficientViT, source: str | Path, *, classes: Sequence[str] = ()) -> Transfer:
    """Copies into `model` what it has in common with the trained network that `source` names (see `saved.FORMS`).

    The classifier is taken over if the classes are the same, in any order, or if only their number is known.

    Args:
        model: freshly built; changed in place.
        classes: names of its outputs, in their order, if they are known.

    Raises:
        UsageError: there is no such network, or it is not an EfficientViT.
    """
    saved = _opened(model, str(source))
    origin = efficientvit(saved)
    order, reason = _classifier(model, origin, classes, saved)
    return replace(copy_common(model, origin, order), source=saved.name, classifier=reason)


def check_start(source: str) -> None:
    """Opens what `start_from` will copy from.

    Raises:
        UsageError: there is no such network, or it is not an EfficientViT.
    """
    folder = expanded(source)
    if (folder / SUPERNET_RECORD).is_file():
        Supernet.load(folder)
    else:
        efficientvit(open_saved(source))


def _opened(model: EfficientViT, source: str) -> Saved:
    """What `source` names; of a supernet the very network, with the weights that it has there."""
    folder = expanded(source)
    if not (folder / SUPERNET_RECORD).is_file():
        return open_saved(source)
    members = Members(folder)
    about = members.supernet
    return Saved(f"the supernet {folder}", members.take(model.arch), about.classes, about.preprocessing)


@torch.no_grad()
def copy_common(model: EfficientViT, origin: EfficientViT, order: Sequence[int] | None) -> Transfer:
    """Copies what both networks have into `model`.

    Args:
        order: for each class of `model` its number in `origin`; None leaves the classifier as it is.
    """
    grids = [_head_grid(*stages) for stages in zip(model.arch.stages, origin.arch.stages, strict=True)]
    pieces = _pieces(model, [grid[0] for grid in grids])
    given = _pieces(origin, [grid[1] for grid in grids])
    elements: dict[str, int] = {}
    for name, piece in pieces.items():
        found = given.get(name)
        if name.startswith("head.linear"):
            found = found._replace(view=found.view[list(order)]) if found and order is not None else None
        elements[piece.owner] = elements.get(piece.owner, 0) + (_copy(name, piece, found) if found else 0)
    state, learned = model.state_dict(), dict(model.named_parameters())
    copied = tuple(Copied(key, tuple(state[key].shape), count, key in learned) for key, count in elements.items())
    return Transfer("", copied, "")


class _Piece(NamedTuple):
    """The part of a tensor that is matched by itself, as a view into it."""

    owner: str
    """The tensor's name."""
    view: Tensor
    outputs: int
    """How many of the first dimensions count outputs."""
    kernel: bool
    """Whether the last two dimensions are those of a kernel."""


def _pieces(model: EfficientViT, trunk_heads: Sequence[int]) -> dict[str, _Piece]:
    """All tensors of `model` in pieces, by names that are the same in every network that has such a piece.

    Args:
        trunk_heads: for each stage in how many heads the channels between its blocks are counted.
    """
    pieces = {}
    for key, tensor in model.state_dict().items():
        if key.endswith("num_batches_tracked"):  # counted anew
            continue
        found = _STAGE.match(key)
        # the stem writes the channels of the first stage, the classifier reads those of the last
        index = int(found[1]) - bool(found[2]) if found else -1 if key.startswith("head.") else 0
        stage, heads = model.arch.stages[index], trunk_heads[index]
        for name, part in _by_head(key, tensor, stage).items():
            view, outputs = part, 1
            if _TRUNK_IN.match(key) or (key.endswith("qkv.conv.weight") and stage.mixer == "linear"):
                view = _in_rows(view, 1, heads)
            elif key.endswith("mixer.fn.proj.conv.weight"):
                view = _in_rows(view, 1, stage.heads)
            if _TRUNK_OUT.match(key):
                view, outputs = _in_rows(view, 0, heads), 2
            pieces[name] = _Piece(key, view, outputs, kernel=tensor.ndim == 4)
    return pieces


def _by_head(key: str, tensor: Tensor, stage: StageConfig) -> dict[str, Tensor]:
    """The tensor's views for each head and, in a projection to q, k and v, for each of them; other tensors whole."""
    block, in_mixer, rest = key.partition(".mixer.fn.")
    if not in_mixer:
        return {key: tensor}
    start = f"{block}.{stage.mixer}."  # what one kind of mixer has learned means nothing to another
    found = _IN_HEADS.fullmatch(rest)
    if found is None:
        return {start + rest: tensor}
    head, part, rest = found.groups()
    heads = 1 if head else stage.heads
    sizes = {part: len(tensor) // heads}
    if part == "qkv":
        sizes = {"q": stage.qk_dim, "k": stage.qk_dim, "v": stage.v_dim}
    if stage.mixer == "linear":  # the queries of all heads, then all keys, then all values
        rows = [_in_rows(part, 0, heads) for part in torch.split(tensor, [heads * size for size in sizes.values()])]
    else:
        rows = list(torch.split(_in_rows(tensor, 0, heads), list(sizes.values()), dim=1))  # each head's q, k and v
    first = int(head or 0)
    return {
        f"{start}{first + j}.{name}.{rest}": view
        for name, by_head in zip(sizes, rows, strict=True)
        for j, view in enumerate(by_head)
    }


def _in_rows(tensor: Tensor, dim: int, rows: int) -> Tensor:
    """A view with the dimension `dim` in two: `rows`, and what is in each of them."""
    return tensor.view(*tensor.shape[:dim], rows, -1, *tensor.shape[dim + 1 :])


def _head_grid(stage: StageConfig, origin: StageConfig) -> tuple[int, int]:
    """In how many heads the channels of a stage are counted, here and in the source; 1 counts them all in one row.

    Heads of both are put side by side where that loses no channel: not if there are more of them, but narrower ones.
    """
    if stage.mixer == origin.mixer == "softmax":
        together = min(stage.heads, origin.heads) * min(stage.head_dim, origin.head_dim)
        if together == min(stage.width, origin.width):
            return stage.heads, origin.heads
    return 1, 1


def _copy(name: str, into: _Piece, found: _Piece) -> int:
    """Writes the common part of `found` into a piece; the number of elements that it has."""
    target, given = into.view, found.view
    if name.endswith("bias.table"):
        given = resize_bias_table(given, math.isqrt(target.shape[1]))
    elif name == "stem.0.conv.weight" and target.shape[1] != given.shape[1]:
        given = _of_channels(given, target.shape[1])
    elif ".q_local.bn." in name and name.endswith(("weight", "bias")):
        # the attention divides by the root of the number of query channels
        given = given * math.sqrt(len(target) / len(given))
        target.zero_()
    here, there = [], []
    for dim, (new, old) in enumerate(zip(target.shape, given.shape, strict=True)):
        both = min(new, old)
        centred = into.kernel and dim >= target.ndim - 2
        here.append(slice((new - both) // 2, (new + both) // 2) if centred else slice(both))
        there.append(slice((old - both) // 2, (old + both) // 2) if centred else slice(both))
    target[tuple(here[: into.outputs])] = 0.0  # old outputs: nothing from new inputs, or the rim of a larger kernel
    target[tuple(here)] = given[tuple(there)]
    return target[tuple(here)].numel()


def _of_channels(kernels: Tensor, channels: int) -> Tensor:
    """(out, in, k, k) kernels for another number of image channels: one grey channel is the same in each of them."""
    if channels == 1:
        return kernels.sum(1, keepdim=True)
    return kernels.expand(-1, channels, -1, -1) / channels if kernels.shape[1] == 1 else kernels


def _classifier(
    model: EfficientViT, origin: EfficientViT, classes: Sequence[str], saved: Saved
) -> tuple[list[int] | None, str]:
    """For each class its number in the source; None, with the reason, where the classifier must be fresh."""
    if model.num_classes != origin.num_classes:
        return None, f"classifier fresh: {model.num_classes} classes instead of {origin.num_classes}"
    if not classes or saved.classes is None:
        return list(range(model.num_classes)), ""
    try:
        return class_order(classes, saved.classes, saved.name), ""
    except UsageError:
        return None, "classifier fresh: the source knows other classes"


def _how(elements: int, size: int) -> str:
    return "fresh" if not elements else "whole" if elements == size else "sliced"
