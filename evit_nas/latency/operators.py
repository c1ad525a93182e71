"""What a deploy graph is made of, as the predictor sees it: kinds of operator, how many, how much arithmetic and data.

Channels enter in blocks of 16, as convolutions run, so that a prediction steps where the runtime steps. Not all of them
run that way: which kernel ONNX Runtime gives a convolution is in `kernel`, and each kernel has its own arithmetic. The
rule was read in `onnxruntime/core/optimizer/nchwc_transformer.cc` and is tested against the graphs ORT 1.32 makes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Literal

from evit_nas.arch import SE_RATIO, ArchConfig, StageConfig, round_to
from evit_nas.network.cost import cost

CHANNEL_BLOCK = 16  # of ONNX Runtime's convolutions with AVX-512
CHANNEL_ALIGNMENT = 4  # input channels that are no multiple of it are not blocked
CACHES_MB = (2, 4, 8, 16)  # weights that do not fit have to be fetched in each inference

Kernel = Literal["direct", "blocked", "plain"]


Terms = Mapping[str, float]
"""Kind of operator -> how many, how much arithmetic, how much data."""

_shared = lru_cache(maxsize=1 << 12)  # candidates of a space share most of their stages


@lru_cache(maxsize=1024)  # a cross-validated fit asks for the same networks in every fold
def operators(arch: ArchConfig) -> Terms:
    """What the deploy graph is made of: kind of operator -> how many, how much arithmetic, how much data.

    Arithmetic and data are in blocks of 16 channels where convolutions run on blocks, in channels elsewhere; scaled by
    powers of ten to about 1.
    """
    # 1 + classes: a network without a classifier still takes the mean of its map
    terms: dict[str, float] = {"network": 1.0, "head": arch.stages[-1].width * (1 + arch.num_classes) / 1e5}
    weights_mb = cost(arch).weight_bytes / 2**20
    for cache_mb in CACHES_MB:
        if weights_mb > cache_mb:  # a term that no network has would have no scale
            terms[f"weights beyond {cache_mb} MB"] = weights_mb - cache_mb
    parts = [_stem((arch.in_channels, *arch.stem_widths), arch.input_size)]
    for index, (stage, grid) in enumerate(zip(arch.stages, arch.grids, strict=True)):
        if index:
            before = arch.stages[index - 1]
            parts.append(_downsample(before, stage, arch.merge_dim(index), arch.grids[index - 1], grid))
        parts.append(_blocks_of(stage, grid, arch.window_side(index)))
    for part in parts:
        for name, value in part.items():
            _add(terms, name, value)
    return MappingProxyType(terms)


def kernel(ins: int, outs: int, groups: int = 1) -> Kernel:
    """Which kernel ONNX Runtime gives a convolution that is not depthwise.

    direct: reads channels one by one and writes blocks; blocked: reads and writes blocks, the last one padded; plain:
    a matrix product of the unfolded input, two to three times slower.
    """
    if groups > 1:
        return "plain" if ins // groups % CHANNEL_BLOCK or outs // groups % CHANNEL_BLOCK else "blocked"
    if ins < CHANNEL_BLOCK:
        return "direct"
    return "plain" if ins % CHANNEL_ALIGNMENT else "blocked"


def _blocks(channels: int) -> int:
    return -(-channels // CHANNEL_BLOCK)


def _add(terms: dict[str, float], name: str, value: float) -> None:
    terms[name] = terms.get(name, 0.0) + value


def _add_pointwise(terms: dict[str, float], ins: int, outs: int, area: int, count: int = 1) -> None:
    """Pointwise convolutions on a map of `area` positions; the channels in between are multiples of 8, so all blocked.

    Their weights are in what lies beyond the caches.
    """
    _add(terms, f"{area} pointwise", count)
    _add(terms, f"{area} pointwise arithmetic", count * _blocks(ins) * _blocks(outs) * area / 1e3)
    _add(terms, f"{area} pointwise input", count * _blocks(ins) * area / 1e3)


def _add_ffn(terms: dict[str, float], stage: StageConfig, area: int, count: int) -> None:
    """Depthwise convolution and FFN."""
    _add(terms, f"{area} depthwise", count)
    _add(terms, f"{area} depthwise data", count * _blocks(stage.width) * area / 1e3)
    _add_pointwise(terms, stage.width, stage.ffn_dim, area, count)
    _add_pointwise(terms, stage.ffn_dim, stage.width, area, count)


@_shared
def _stem(widths: tuple[int, ...], input_size: tuple[int, int]) -> Terms:
    """The four convolutions between five widths."""
    terms: dict[str, float] = {}
    for ins, outs, taps, area in _stem_convolutions(widths, input_size[0] * input_size[1]):
        _add_stem(terms, ins, outs, taps, area)
    return terms


def _stem_convolutions(widths: tuple[int, ...], area: int) -> Iterator[tuple[int, int, int, int]]:
    """(input channels, output channels, taps, output positions) of each, as `onnx_graph` writes them."""
    from evit_nas.network.onnx_graph import PAIRED_WIDTH  # here: it imports onnx

    done = 0
    if widths[1] == PAIRED_WIDTH:
        # the windows of two neighbours, 3 columns each and 2 apart, span 5; the next 3 lie in two such pairs
        yield widths[0], 2 * PAIRED_WIDTH, 3 * 5, area // 8  # an output holds two pixels of a row
        yield 2 * PAIRED_WIDTH, widths[2], 3 * 2, area // 16
        done = 2
    for index in range(done, 4):
        yield widths[index], widths[index + 1], 3 * 3, area // 4 ** (index + 1)


def _add_stem(terms: dict[str, float], ins: int, outs: int, taps: int, area: int) -> None:
    used = kernel(ins, outs)
    if used == "plain":
        _add(terms, "stem plain arithmetic", ins * outs * taps * area / 1e7)
        _add(terms, "stem plain unfolding", ins * taps * area / 1e6)
    else:
        read = ins if used == "direct" else CHANNEL_BLOCK * _blocks(ins)
        _add(terms, f"stem {used} arithmetic", read * CHANNEL_BLOCK * _blocks(outs) * taps * area / 1e7)


@_shared
def _downsample(
    before: StageConfig, after: StageConfig, hidden: int, in_grid: tuple[int, int], grid: tuple[int, int]
) -> Terms:
    terms: dict[str, float] = {}
    in_area, area = in_grid[0] * in_grid[1], grid[0] * grid[1]
    _add_ffn(terms, before, in_area, 1)
    _add_pointwise(terms, before.width, hidden, in_area)
    _add(terms, "downsample depthwise data", _blocks(hidden) * in_area / 1e3)  # stride 2: it reads the larger map
    _add(terms, "downsample gate data", _blocks(hidden) * area / 1e3)
    _add(terms, "downsample gate weights", hidden * round_to(hidden * SE_RATIO, 8) / 1e4)
    _add_pointwise(terms, hidden, after.width, area)
    _add_ffn(terms, after, area, 1)
    return terms


@_shared
def _blocks_of(stage: StageConfig, grid: tuple[int, int], side: int) -> Terms:
    """All blocks of a stage with windows of `side`."""
    terms: dict[str, float] = {}
    area = grid[0] * grid[1]
    _add_ffn(terms, stage, area, 2 * stage.ffn_count * stage.depth)  # as many before the mixer as after it
    if stage.mixer == "softmax":
        windows = -(-grid[0] // side) * -(-grid[1] // side)
        _add_softmax(terms, stage, windows, side * side, area)
    elif stage.mixer == "linear":
        _add_linear(terms, stage, area)
    return terms


def _add_softmax(terms: dict[str, float], stage: StageConfig, windows: int, tokens: int, area: int) -> None:
    """Window attention of a stage's blocks; `area` positions without the windows' padding, which `tokens` include."""
    heads, dim, qk, v_dim, count = stage.heads, stage.head_dim, stage.qk_dim, stage.v_dim, stage.depth
    padded = windows * tokens
    kind = "cascade" if stage.cascaded else "parallel"
    _add(terms, kind, count)
    _add(terms, "attention data", count * stage.width * padded / 1e4)
    _add(terms, f"{kind} attention arithmetic", count * heads * padded * tokens * (qk + v_dim) / 1e5)
    _add(terms, f"{kind} softmax", count * heads * padded * tokens / 1e4)
    if stage.cascaded:
        taps = sum(side**2 for side in stage.used_q_kernels)
        _add(terms, "cascade head step", count * heads)
        _add(terms, "cascade qkv arithmetic", count * heads * dim * (2 * qk + v_dim) * padded / 1e5)
        _add(terms, "cascade qkv data", count * heads * (2 * qk + v_dim) * padded / 1e4)
        _add(terms, "cascade query arithmetic", count * _blocks(qk) * taps * padded / 1e4)
        _add(terms, "cascade query data", count * heads * qk * padded / 1e4)
        _add(terms, "cascade output data", count * heads * v_dim * padded / 1e4)
        if v_dim != dim:
            _add(terms, "cascade back", count * (heads - 1))  # the last head is added to no other
            _add(terms, "cascade back arithmetic", count * (heads - 1) * v_dim * dim * padded / 1e5)
    else:
        taps = stage.used_q_kernels[0] ** 2  # heads in parallel share the first kernel
        _add(terms, "parallel query arithmetic", count * _blocks(heads * qk) * taps * padded / 1e4)
        for outs in (qk, qk + v_dim):  # of one head: queries, and keys with values
            if kernel(heads * dim, heads * outs, heads) == "plain":
                _add(terms, "parallel qkv plain", count * heads * dim * outs * padded / 1e5)
            else:
                _add(terms, "parallel qkv blocked", count * heads * _blocks(dim) * _blocks(outs) * padded / 1e3)
            _add(terms, "parallel qkv data", count * heads * outs * padded / 1e4)
    _add_pointwise(terms, heads * v_dim, stage.width, area, count)


def _add_linear(terms: dict[str, float], stage: StageConfig, area: int) -> None:
    heads, qk, v_dim, count = stage.heads, stage.qk_dim, stage.v_dim, stage.depth
    _add(terms, "linear", count)
    _add(terms, "linear heads", count * heads)
    _add(terms, "linear depthwise data", count * _blocks(heads * v_dim) * area / 1e3)
    _add(terms, "linear arithmetic", count * 2 * heads * v_dim * qk * area / 1e5)  # V K^T, and that times Q
    _add(terms, "linear key data", count * heads * qk * area / 1e4)
    _add(terms, "linear value data", count * heads * v_dim * area / 1e4)
    _add_pointwise(terms, stage.width, 2 * heads * qk, area, count)  # queries and keys
    _add_pointwise(terms, stage.width, heads * v_dim, area, count)
    _add_pointwise(terms, heads * v_dim, stage.width, area, count)
