"""Networks for tests: small ones, and a way to make any network lively."""

from __future__ import annotations

import torch
from torch import nn

from evit_nas.arch import ArchConfig, StageConfig
from evit_nas.network.model import EfficientViT, build


def lively(model: nn.Module, seed: int = 0) -> nn.Module:
    """`model` in eval mode with live BatchNorm gammas, random running statistics and random attention biases.

    On a fresh network every block is the identity (gamma 0), so parity tests on one prove nothing.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)
        for name, parameter in model.named_parameters():
            if name.endswith(("bias.table", "attention_biases")):
                parameter.normal_(0, 1, generator=generator)
    return model.eval()


def lively_network(arch: ArchConfig, seed: int = 0, images: int = 8) -> EfficientViT:
    """A lively network of `arch` in eval mode, with running statistics fitted to `images` random images.

    With random ones the signal dies on the way: the logits of two images then differ by 0.02 %.
    """
    model = build(arch, seed)
    lively(model, seed).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    generator = torch.Generator().manual_seed(1234)
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(images, arch.in_channels, *arch.input_size, generator=generator))
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


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
