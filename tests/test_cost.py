"""Closed-form cost against the paper's figures and against torch's own counter on the real network."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from evit_nas.arch import ArchConfig, StageConfig
from evit_nas.network.cost import cost, stage_costs
from evit_nas.network.model import build
from tests.networks import VARIANTS, tiny_arch


def random_arch(seed: int) -> ArchConfig:
    """A network with every dimension drawn at random, stages unlike each other, 64 to 160 px high."""
    rng = random.Random(seed)
    stages = []
    for _ in range(3):
        heads = rng.choice([1, 2, 3])
        stage = {
            "width": 8 * heads * rng.randint(2, 6),
            "depth": rng.randint(1, 3),
            "heads": heads,
            "qk_dim": rng.choice([4, 8, 12]),
            "v_ratio": rng.choice([0.5, 1, 2]),
            "ffn_ratio": rng.choice([1, 2.5]),
            "cascade": rng.random() < 0.5,
            "q_kernels": [rng.choice([1, 3, 5, 7]) for _ in range(3)],
            "window": rng.choice([2, 3, 7]),
            "mixer": rng.choice(["softmax", "softmax", "linear", "none"]),
            "ffn_count": rng.choice([1, 2]),
            "merge_ratio": rng.choice([2, 4]),
        }
        stages.append(StageConfig.model_validate(stage))
    size = (32 * rng.randint(2, 5), 32 * rng.randint(2, 5))
    return ArchConfig(
        image_size=size,
        in_channels=rng.choice([1, 3]),
        num_classes=rng.choice([0, 1, 10]),
        stem_ratio=rng.choice([0.5, 1, 1.5]),
        stages=tuple(stages),
    )


ARCHS = {name: tiny_arch(**changes) for name, changes in VARIANTS.items()}
ARCHS |= {name: ArchConfig.preset(name) for name in ("m0", "m3")}
ARCHS |= {f"random {seed}": random_arch(seed) for seed in range(12)}


@pytest.mark.parametrize(
    ("preset", "million_macs", "million_params"),
    [
        ("m0", 79.2, 2.349),
        ("m1", 167.1, 2.981),
        ("m2", 201.0, 4.188),
        ("m3", 262.7, 6.901),
        ("m4", 299.3, 8.804),
        ("m5", 521.6, 12.474),
    ],
)
def test_presets_cost_what_is_published(preset: str, million_macs: float, million_params: float) -> None:
    found = cost(ArchConfig.preset(preset))

    assert round(found.macs / 1e6, 1) == million_macs
    assert round(found.params / 1e6, 3) == million_params


@pytest.mark.parametrize("name", ARCHS)
def test_cost_equals_what_the_network_holds_and_computes(name: str) -> None:
    arch = ARCHS[name]
    model = build(arch, seed=0).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, arch.in_channels, *arch.input_size))

    found = cost(arch)

    assert found.params == sum(parameter.numel() for parameter in model.parameters())
    assert 2 * found.macs == counter.get_total_flops()
    assert found.depth == sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())
    assert found.weight_bytes == 4 * found.params


@pytest.mark.parametrize("name", ["cascade", "linear", "random 0", "random 1", "m0"])
def test_stage_costs_are_those_of_the_modules_they_name(name: str) -> None:
    arch = ARCHS[name]
    model = build(arch, seed=0).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, arch.in_channels, *arch.input_size))
    flops = counter.get_flop_counts()

    parts = stage_costs(arch)

    assert [part.name for part in parts] == [
        "stem",
        "stages.0.blocks",
        "stages.1.downsample",
        "stages.1.blocks",
        "stages.2.downsample",
        "stages.2.blocks",
        "head",
    ]
    for part in parts:
        module = model.get_submodule(part.name)
        assert part.params == sum(parameter.numel() for parameter in module.parameters())
        if part.name != "stem":  # runs convolution by convolution, so the counter has no entry for it
            assert 2 * part.macs == sum(flops.get(f"EfficientViT.{part.name}", {}).values())
    assert sum(part.macs for part in parts) == cost(arch).macs


def test_cost_needs_no_torch() -> None:
    program = "import sys, evit_nas.network.cost; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
