"""Networks on which a wrong graph shows.

On a fresh network every block is the identity (gamma 0) and every attention bias 0: whatever is computed in them, the
logits are right.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from evit_nas.arch import ArchConfig
from evit_nas.network.model import EfficientViT, build

Network = TypeVar("Network", bound=nn.Module)


def lively(model: Network, seed: int = 0) -> Network:
    """`model` in eval mode with live BatchNorm gammas, random running statistics and random attention biases."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for norm in _norms(model):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.normal_(0, 0.2, generator=generator)
            norm.running_mean.normal_(0, 0.2, generator=generator)
            norm.running_var.uniform_(0.5, 1.5, generator=generator)
        for name, parameter in model.named_parameters():
            if name.endswith(("bias.table", "attention_biases")):
                parameter.normal_(0, 1, generator=generator)
    return model.eval()


def lively_network(arch: ArchConfig, seed: int = 0, images: int = 8) -> EfficientViT:
    """A lively network of `arch` in eval mode, with running statistics fitted to `images` random images.

    With random ones the signal dies on the way: the logits of two images then differ by 0.02 %.
    """
    model = lively(build(arch, seed), seed).train()
    generator = torch.Generator().manual_seed(1234)
    for norm in _norms(model):
        norm.momentum = 1.0  # running statistics become those of the one batch
    with torch.no_grad():
        model(torch.randn(images, arch.in_channels, *arch.input_size, generator=generator))
    for norm in _norms(model):
        norm.momentum = 0.1
    return model.eval()


def _norms(model: nn.Module) -> list[nn.BatchNorm1d | nn.BatchNorm2d]:
    return [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
