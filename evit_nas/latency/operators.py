"""What a deploy graph is made of, as the predictor sees it: kinds of operator, how many, how much arithmetic and data.

Channels enter in blocks of 16, as convolutions run, so that a prediction steps where the runtime steps.
"""

from __future__ import annotations

from evit_nas.arch import SE_RATIO, ArchConfig, StageConfig, round_to
from evit_nas.network.cost import cost

CHANNEL_BLOCK = 16  # of ONNX Runtime's convolutions with AVX-512
CACHES_MB = (2, 4, 8, 16)  # weights that do not fit have to be fetched in each inference


def operators(arch: ArchConfig) -> dict[str, float]:
    """What the deploy graph is made of: kind of operator -> how many, how much arithmetic, how much data.

    Arithmetic and data are in blocks of 16 channels where convolutions run on blocks, in channels elsewhere; scaled by
    powers of ten to about 1.
    """
    terms: dict[str, float] = {"network": 1.0, "head": arch.stages[-1].width * (1 + arch.num_classes) / 1e5}
    weights_mb = cost(arch).weight_bytes / 2**20
    for cache_mb in CACHES_MB:
        if weights_mb > cache_mb:  # a term that no network has would have no scale
            terms[f"weights beyond {cache_mb} MB"] = weights_mb - cache_mb
    _add_stem(terms, arch)
    for index, stage in enumerate(arch.stages):
        grid = arch.grids[index]
        area = grid[0] * grid[1]
        if index:
            _add_downsample(terms, arch, index)
        _add_ffn(terms, stage, area, 2 * stage.ffn_count * stage.depth)
        if stage.mixer == "softmax":
            side = arch.window_side(index)
            windows = -(-grid[0] // side) * -(-grid[1] // side)
            _add_softmax(terms, stage, index, windows, side * side, area)
        elif stage.mixer == "linear":
            _add_linear(terms, stage, index, area)
    return terms


def _blocks(channels: int) -> int:
    return -(-channels // CHANNEL_BLOCK)


def _add(terms: dict[str, float], name: str, value: float) -> None:
    terms[name] = terms.get(name, 0.0) + value


def _add_pointwise(terms: dict[str, float], ins: int, outs: int, area: int, count: int = 1) -> None:
    """Pointwise convolutions on a map of `area` positions."""
    _add(terms, f"{area} pointwise", count)
    _add(terms, f"{area} pointwise arithmetic", count * _blocks(ins) * _blocks(outs) * area / 1e3)
    _add(terms, f"{area} pointwise weights", count * ins * outs / 1e5)
    _add(terms, f"{area} pointwise data", count * (_blocks(ins) + _blocks(outs)) * area / 1e3)
    _add(terms, f"{area} pointwise input", count * _blocks(ins) * area / 1e3)


def _add_ffn(terms: dict[str, float], stage: StageConfig, area: int, count: int) -> None:
    """Depthwise convolution and FFN."""
    _add(terms, f"{area} depthwise", count)
    _add(terms, f"{area} depthwise data", count * _blocks(stage.width) * area / 1e3)
    _add_pointwise(terms, stage.width, stage.ffn_dim, area, count)
    _add_pointwise(terms, stage.ffn_dim, stage.width, area, count)


def _add_stem(terms: dict[str, float], arch: ArchConfig) -> None:
    area = arch.input_size[0] * arch.input_size[1]
    before = 1  # the image counts as one block: its few channels are not blocked
    for index, width in enumerate(arch.stem_widths):
        area //= 4
        _add(terms, f"stem {index} arithmetic", before * _blocks(width) * area * 9 / 1e4)
        _add(terms, "stem data", _blocks(width) * area / 1e4)
        before = _blocks(width)


def _add_downsample(terms: dict[str, float], arch: ArchConfig, index: int) -> None:
    before, after, hidden = arch.stages[index - 1], arch.stages[index], arch.merge_dim(index)
    in_area, area = (grid[0] * grid[1] for grid in arch.grids[index - 1 : index + 1])
    _add_ffn(terms, before, in_area, 1)
    _add_pointwise(terms, before.width, hidden, in_area)
    _add(terms, "downsample depthwise data", _blocks(hidden) * in_area / 1e3)
    _add(terms, "downsample gate data", _blocks(hidden) * area / 1e3)
    _add(terms, "downsample gate weights", hidden * round_to(hidden * SE_RATIO, 8) / 1e4)
    _add_pointwise(terms, hidden, after.width, area)
    _add_ffn(terms, after, area, 1)


def _add_softmax(terms: dict[str, float], stage: StageConfig, index: int, windows: int, tokens: int, area: int) -> None:
    """Window attention of a stage's blocks; `area` positions without the windows' padding, which `tokens` include."""
    heads, dim, qk, v_dim, count = stage.heads, stage.head_dim, stage.qk_dim, stage.v_dim, stage.depth
    padded = windows * tokens
    kind = "cascade" if stage.cascaded else "parallel"
    _add(terms, f"stage {index} {kind}", count)
    _add(terms, f"stage {index} attention data", count * stage.width * padded / 1e4)
    _add(terms, f"{kind} qkv arithmetic", count * heads * dim * (2 * qk + v_dim) * padded / 1e5)
    _add(terms, f"{kind} qkv data", count * heads * (2 * qk + v_dim) * padded / 1e4)
    _add(terms, f"{kind} attention arithmetic", count * heads * padded * tokens * (qk + v_dim) / 1e5)
    _add(terms, f"{kind} softmax", count * heads * padded * tokens / 1e4)
    if stage.cascaded:
        taps = sum(kernel**2 for kernel in stage.used_q_kernels)
        _add(terms, f"stage {index} head step", count * heads)
        _add(terms, "cascade query arithmetic", count * _blocks(qk) * taps * padded / 1e4)
        _add(terms, "cascade query data", count * heads * qk * padded / 1e4)
        _add(terms, "cascade output data", count * heads * v_dim * padded / 1e4)
        if v_dim != dim:
            _add(terms, "cascade back", count * (heads - 1))
            _add(terms, "cascade back arithmetic", count * (heads - 1) * v_dim * dim * padded / 1e5)
    else:
        blocked = _blocks(dim) * (_blocks(qk) + _blocks(qk + v_dim))
        _add(terms, "parallel qkv blocks", count * heads * blocked * padded / 1e3)
        _add(
            terms,
            "parallel query arithmetic",
            count * _blocks(heads * qk) * stage.used_q_kernels[0] ** 2 * padded / 1e4,
        )
        whole = heads == 1 or not (dim % CHANNEL_BLOCK or qk % CHANNEL_BLOCK or (qk + v_dim) % CHANNEL_BLOCK)
        if not whole:  # groups that cut through blocks run as an ordinary, slower convolution
            _add(terms, "parallel qkv unblocked", count * heads * dim * (2 * qk + v_dim) * padded / 1e5)
    _add_pointwise(terms, heads * v_dim, stage.width, area, count)


def _add_linear(terms: dict[str, float], stage: StageConfig, index: int, area: int) -> None:
    heads, qk, v_dim, count = stage.heads, stage.qk_dim, stage.v_dim, stage.depth
    _add(terms, f"stage {index} linear", count)
    _add(terms, "linear heads", count * heads)
    _add(terms, "linear depthwise data", count * _blocks(heads * v_dim) * area / 1e3)
    _add(terms, "linear arithmetic", count * 2 * heads * v_dim * qk * area / 1e5)
    _add(terms, "linear key data", count * heads * qk * area / 1e4)
    _add(terms, "linear value data", count * heads * v_dim * area / 1e4)
    _add_pointwise(terms, stage.width, 2 * heads * qk, area, count)
    _add_pointwise(terms, stage.width, heads * v_dim, area, count)
    _add_pointwise(terms, heads * v_dim, stage.width, area, count)
