"""Networks for tests: small ones of every kind of block."""

from __future__ import annotations

import torch

from evit_nas.arch import ArchConfig, StageConfig
from evit_nas.network.lively import lively as lively
from evit_nas.network.lively import lively_network as lively_network


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference, relative to the largest expected magnitude."""
    return float((actual - expected).abs().max() / expected.abs().max())


def tiny_arch(**changes: object) -> ArchConfig:
    """A 64 px network of a few thousand parameters; `changes` go to every stage."""
    stages = [
        StageConfig.model_validate(
            {"width": width, "depth": 1, "heads": 2, "q_kernels": [5, 3], "qk_dim": 8, **changes}
        )
        for width in (32, 48, 64)
    ]
    return ArchConfig(image_size=64, num_classes=10, stages=tuple(stages))


# every kind of block there is, by name
VARIANTS: dict[str, dict[str, object]] = {
    "cascade": {},
    "cascade, narrow values": {"v_ratio": 0.5},
    "cascade, wide values": {"v_ratio": 1.5},
    "parallel": {"cascade": False},
    "parallel, wide values": {"cascade": False, "v_ratio": 1.5},
    "one head": {"heads": 1},
    "linear": {"mixer": "linear"},
    "linear, narrow values": {"mixer": "linear", "v_ratio": 0.5},
    "convolutional": {"mixer": "none"},
    "no local ffn": {"ffn_count": 0},
    "two local ffns": {"ffn_count": 2, "ffn_ratio": 1.5},
    "small window": {"window": 2},
    "padded window": {"window": 3},
    "slim merge": {"merge_ratio": 2.0},
}
