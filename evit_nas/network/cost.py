"""What a network costs, in closed form from its ArchConfig: parameters, MACs, layers and bytes.

A MAC is one multiply-accumulate of a convolution, a linear layer or an attention product, for one image at
the architecture's own input size. Norms, activations, additions and pooling are not counted; windows count as
they are computed, with their padding. The paper (arXiv 2305.07027) counts the same way.

No torch here: a search space is sized, and a trial too large is refused, in well under a millisecond.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from evit_nas.arch import LINEAR_V_KERNEL, SE_RATIO, ArchConfig, StageConfig, round_to

BYTES = 4  # float32


@dataclass(frozen=True)
class Cost:
    """The size of a network for one image.

    depth: convolutions and linear layers, side branches included. The heads of a cascade count one by one,
        heads that are computed together count once.
    weight_bytes: all parameters in float32.
    """

    params: int
    macs: int
    depth: int
    weight_bytes: int


@dataclass(frozen=True)
class PartCost:
    """The share of one part of the network; `name` is the path of the part in the torch module."""

    name: str
    params: int
    macs: int


class _Op(NamedTuple):  # made a hundred times for each candidate of a search: cheaper than a dataclass
    """A layer (or, with `weighted` off, an attention product)."""

    params: int
    macs: int
    weighted: bool = True


@lru_cache(maxsize=1024)  # a search asks for parameters, MACs and bytes of the same candidates
def cost(arch: ArchConfig) -> Cost:
    """The size of the network that `arch` describes."""
    _, params, macs, depth = zip(*_counted(arch), strict=True)
    weights = sum(params)
    return Cost(weights, sum(macs), sum(depth), weight_bytes=BYTES * weights)


def stage_costs(arch: ArchConfig) -> list[PartCost]:
    """Stem, then downsampling and blocks stage by stage, then head; the shares add up to `cost`."""
    return [PartCost(name, params, macs) for name, params, macs, _ in _counted(arch)]


@lru_cache(maxsize=1024)  # a search asks for the parts and for the whole of the same candidates
def _counted(arch: ArchConfig) -> tuple[tuple[str, int, int, int], ...]:
    """Name, parameters, MACs and layers with weights of each part."""
    grids = arch.grids
    found = [("stem", *_total(_stem(arch)))]
    for index, (stage, grid) in enumerate(zip(arch.stages, grids, strict=True)):
        path = f"stages.{index}"
        if index:
            found.append((f"{path}.downsample", *_total(_downsample(arch, index))))
        found.append((f"{path}.blocks", *_blocks(stage, grid, arch.window_side(index))))
    found.append(("head", *_total(_head(arch.stages[-1].width, arch.num_classes))))
    return tuple(found)


@lru_cache(maxsize=1 << 12)  # candidates of a space share most of their stages
def _blocks(stage: StageConfig, grid: tuple[int, int], side: int) -> tuple[int, int, int]:
    """All blocks of a stage, as `_total` adds up one."""
    params, macs, depth = _total(_block(stage, grid, side))
    return stage.depth * params, stage.depth * macs, stage.depth * depth


def _total(part: Iterable[_Op]) -> tuple[int, int, int]:
    """Parameters, MACs and layers with weights."""
    params = macs = depth = 0
    for op in part:
        params, macs, depth = params + op.params, macs + op.macs, depth + op.weighted
    return params, macs, depth


def _area(grid: tuple[int, int]) -> int:
    return grid[0] * grid[1]


@lru_cache(maxsize=1 << 14)  # candidates of a space share most of their layers
def _conv(in_chs: int, out_chs: int, area: int, kernel: int = 1, groups: int = 1) -> _Op:
    """A convolution and its BatchNorm over `area` output positions."""
    weights = kernel * kernel * in_chs // groups * out_chs
    return _Op(weights + 2 * out_chs, weights * area)  # 2: gamma, beta


def _depthwise(width: int, area: int, kernel: int) -> _Op:
    return _conv(width, width, area, kernel, groups=width)


def _linear(in_features: int, out_features: int) -> _Op:
    """A layer with a bias, on one vector."""
    return _Op((in_features + 1) * out_features, in_features * out_features)


def _stem(arch: ArchConfig) -> Iterator[_Op]:
    height, width = arch.input_size  # multiples of 16: the four halvings are exact
    widths = (arch.in_channels, *arch.stem_widths)
    for i, (in_chs, out_chs) in enumerate(pairwise(widths), start=1):
        yield _conv(in_chs, out_chs, (height >> i) * (width >> i), kernel=3)


def _local_ffn(width: int, hidden: int, area: int) -> tuple[_Op, ...]:
    return _depthwise(width, area, 3), _conv(width, hidden, area), _conv(hidden, width, area)


def _downsample(arch: ArchConfig, index: int) -> Iterator[_Op]:
    """From stage index - 1 to stage index."""
    before, after, hidden = arch.stages[index - 1], arch.stages[index], arch.merge_dim(index)
    in_area, area = _area(arch.grids[index - 1]), _area(arch.grids[index])
    squeezed = round_to(hidden * SE_RATIO, 8)
    yield from _local_ffn(before.width, before.ffn_dim, in_area)
    yield _conv(before.width, hidden, in_area)
    yield _conv(hidden, hidden, area, 3, groups=hidden)
    yield _linear(hidden, squeezed)
    yield _linear(squeezed, hidden)
    yield _conv(hidden, after.width, area)
    yield from _local_ffn(after.width, after.ffn_dim, area)


def _block(stage: StageConfig, grid: tuple[int, int], side: int) -> Iterator[_Op]:
    yield from 2 * stage.ffn_count * _local_ffn(stage.width, stage.ffn_dim, _area(grid))
    if stage.mixer == "softmax":
        yield from _softmax_mixer(stage, grid, side)
    elif stage.mixer == "linear":
        yield from _linear_mixer(stage, _area(grid))


def _softmax_mixer(stage: StageConfig, grid: tuple[int, int], side: int) -> Iterator[_Op]:
    """Cascaded or parallel group attention; windows at the right and lower edge are padded to full size."""
    heads, dim, qk, v, tokens = stage.heads, stage.head_dim, stage.qk_dim, stage.v_dim, side * side
    windows = -(-grid[0] // side) * -(-grid[1] // side)
    area = windows * tokens
    together = 1 if stage.cascaded else heads  # heads in one convolution
    for j, kernel in enumerate(stage.used_q_kernels):
        yield _conv(together * dim, together * (2 * qk + v), area, groups=together)
        yield _depthwise(together * qk, area, kernel)
        scores = together * windows * tokens * tokens
        biases = together * tokens  # one for each offset |dy|, |dx|
        yield _Op(biases, scores * qk, weighted=False)
        yield _Op(0, scores * v, weighted=False)
        if stage.cascaded and v != dim and j < heads - 1:
            yield _conv(v, dim, area)
    yield _conv(heads * v, stage.width, _area(grid))  # the padding of the windows has been cut off


def _linear_mixer(stage: StageConfig, area: int) -> Iterator[_Op]:
    qk, v = stage.heads * stage.qk_dim, stage.heads * stage.v_dim
    context = v * stage.qk_dim  # one v_dim x qk_dim matrix a head
    yield _conv(stage.width, 2 * qk + v, area)
    yield _depthwise(v, area, LINEAR_V_KERNEL)
    yield _Op(0, context * area, weighted=False)  # values times keys
    yield _Op(0, qk * area, weighted=False)  # summed keys times queries
    yield _Op(0, context * area, weighted=False)  # context times queries
    yield _conv(v, stage.width, area)


def _head(width: int, num_classes: int) -> Iterator[_Op]:
    if num_classes:
        linear = _linear(width, num_classes)
        yield _Op(linear.params + 2 * width, linear.macs)  # 2 * width: the BatchNorm before it
