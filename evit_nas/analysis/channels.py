"""Where the channels of a network are: which layers write them, and what they are for.

A part is a row of channels that could be cut one by one. Most are written by one layer, the last one that works on each
of them by itself; the channels between the blocks of a stage, its width, are written by every residual branch and by
the layer before the stage.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from evit_nas.analysis.results import Kind
from evit_nas.arch import StageConfig
from evit_nas.errors import UsageError
from evit_nas.network.attention import CascadedGroupAttention, LinearAttention, ParallelGroupAttention
from evit_nas.network.layers import LocalFfn
from evit_nas.network.model import Downsample, EfficientViT

ALL = slice(None)
QKV: tuple[Kind, Kind, Kind] = ("q", "k", "v")
# Swin's stages are called layers; the first part of a downsampling has the width of the stage before
_STAGE = re.compile(r"(?:stages|layers)\.(\d)\.(downsample\.before)?")


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that mean something together, and where they are written."""

    name: str
    kind: Kind
    stage: int
    """Counted from 0."""
    places: tuple[tuple[str, slice], ...]
    """Paths of the layers that write them, with their rows there; the sum over all places is what is read."""


@dataclass(frozen=True)
class Mixer:
    """A layer of attention, by its path; `path`.proj reads its heads side by side."""

    path: str
    stage: int
    heads: int


def mixers(model: nn.Module) -> list[Mixer]:
    """The layers of attention in order of execution: ours, and the multi-head attention of timm's transformers."""
    found = []
    for path, module in model.named_modules():
        if isinstance(module, CascadedGroupAttention | ParallelGroupAttention | LinearAttention):
            assert isinstance(model, EfficientViT)
            found.append(Mixer(path, stage_of(path), model.arch.stages[stage_of(path)].heads))
        elif _is_multi_head(module):
            found.append(Mixer(path, stage_of(path), int(module.num_heads)))
    return found


def parts(model: nn.Module) -> list[ChannelGroup]:
    """All parts of an EfficientViT; of one of timm's transformers those of attention and FFNs.

    Raises:
        UsageError: the network has no multi-head attention that is known here.
    """
    if isinstance(model, EfficientViT):
        return [*_efficientvit(model), *_widths(model)]
    found = [*_transformer(model)]
    if not mixers(model):
        raise UsageError(
            f"{type(model).__name__} has no attention that can be taken apart: an analysis needs an EfficientViT, or "
            "one of timm's transformers whose attention is a qkv and a proj, as in DeiT and Swin."
        )
    return found


def stage_of(path: str) -> int:
    """The stage whose width a layer works on; 0 in networks without stages."""
    found = _STAGE.match(path)
    return int(found[1]) - bool(found[2]) if found else 0


def head_rows(stage: StageConfig, head: int) -> dict[Kind, slice]:
    """Where q, k and v of a head are among the outputs of the qkv layer that computes them."""
    qk, v, heads = stage.qk_dim, stage.v_dim, stage.heads
    if stage.mixer == "linear":  # the queries of all heads, then all keys, then all values
        starts = (head * qk, (heads + head) * qk, 2 * heads * qk + head * v)
    else:
        first = 0 if stage.cascaded else head * (2 * qk + v)  # in a cascade each head has a layer of its own
        starts = (first, first + qk, first + 2 * qk)
    return {kind: slice(at, at + size) for kind, at, size in zip(QKV, starts, (qk, qk, v), strict=True)}


def _efficientvit(model: EfficientViT) -> Iterator[ChannelGroup]:
    for index in range(len(model.stem) - 1):  # the last one writes the width of stage 0
        yield ChannelGroup(f"stem.{index}", "stem", 0, ((f"stem.{index}", ALL),))
    for mixer in mixers(model):
        stage = model.arch.stages[mixer.stage]
        for head in range(mixer.heads):
            layer = f"{mixer.path}.heads.{head}.qkv" if stage.cascaded else f"{mixer.path}.qkv"
            places = {kind: (layer, rows) for kind, rows in head_rows(stage, head).items()}
            if stage.mixer == "linear":
                # the last layer that works on each value channel by itself
                places["v"] = (f"{mixer.path}.v_local", slice(head * stage.v_dim, (head + 1) * stage.v_dim))
            for kind, place in places.items():
                yield ChannelGroup(f"{mixer.path}.heads.{head}.{kind}", kind, mixer.stage, (place,))
        yield ChannelGroup(f"{mixer.path}.proj", "projection", mixer.stage, ((f"{mixer.path}.proj", ALL),))
    for path, module in model.named_modules():
        if isinstance(module, LocalFfn):
            yield ChannelGroup(f"{path}.ffn", "ffn", stage_of(path), ((f"{path}.ffn.fn.expand", ALL),))
        elif isinstance(module, Downsample):
            yield ChannelGroup(f"{path}.merge", "merge", stage_of(path), ((f"{path}.reduce", ALL),))
            yield ChannelGroup(f"{path}.se", "squeeze", stage_of(path), ((f"{path}.se.reduce", ALL),))


def _widths(model: EfficientViT) -> Iterator[ChannelGroup]:
    written = defaultdict(list, {0: [f"stem.{len(model.stem) - 1}"]})
    for path, module in model.named_modules():
        if isinstance(module, LocalFfn):
            written[stage_of(path)] += [f"{path}.dw.fn", f"{path}.ffn.fn.project"]
        elif isinstance(module, Downsample):
            written[stage_of(path)].append(f"{path}.project")
    for mixer in mixers(model):
        written[mixer.stage].append(f"{mixer.path}.proj")
    for stage, paths in sorted(written.items()):
        yield ChannelGroup(f"stages.{stage}", "width", stage, tuple((path, ALL) for path in paths))


def _transformer(model: nn.Module) -> Iterator[ChannelGroup]:
    for path, module in model.named_modules():
        stage = stage_of(path)
        if _is_multi_head(module):
            size = model.get_submodule(f"{path}.qkv").out_features // 3  # type: ignore[operator]
            for index, kind in enumerate(QKV):
                rows = slice(index * size, (index + 1) * size)
                yield ChannelGroup(f"{path}.{kind}", kind, stage, ((f"{path}.qkv", rows),))
            yield ChannelGroup(f"{path}.proj", "projection", stage, ((f"{path}.proj", ALL),))
        elif isinstance(getattr(module, "fc1", None), nn.Linear):
            yield ChannelGroup(f"{path}.ffn", "ffn", stage, ((f"{path}.fc1", ALL),))


def _is_multi_head(module: nn.Module) -> bool:
    layers = (getattr(module, name, None) for name in ("qkv", "proj"))
    return all(isinstance(layer, nn.Linear) for layer in layers) and hasattr(module, "num_heads")
