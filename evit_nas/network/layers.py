"""The layers that EfficientViT's stages are made of; what mixes tokens is in `attention.py`.

Annotations are evaluated here, because TorchScript and torch.fx take them for types as they stand.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evit_nas.arch import SE_RATIO, round_to

BN_EPS = 1e-5  # as in timm's networks, whose weights are loaded


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Has weights drawn from `seed`, and leaves the global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU as well
        yield


class ConvNorm(nn.Sequential):
    """Convolution without bias ("same" padding) and BatchNorm; `gamma` is the BatchNorm's initial weight."""

    def __init__(
        self, in_chs: int, out_chs: int, kernel: int = 1, stride: int = 1, groups: int = 1, gamma: float = 1.0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_chs, eps=BN_EPS)
        nn.init.constant_(self.bn.weight, gamma)


class NormLinear(nn.Sequential):
    """BatchNorm and classifier."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(in_features, eps=BN_EPS)
        self.linear = nn.Linear(in_features, out_features)
        nn.init.trunc_normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)


class Residual(nn.Module):
    """x + fn(x)."""

    def __init__(self, fn: nn.Module) -> None:
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.fn(x)
        return out


class Ffn(nn.Module):
    """Two pointwise convolutions with a ReLU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = ConvNorm(width, hidden)
        self.project = ConvNorm(hidden, width, gamma=0.0)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(F.relu(self.expand(x)))
        return out


class LocalFfn(nn.Module):
    """Token interaction (residual depthwise 3x3) and a residual FFN: one half of the sandwich."""

    def __init__(self, width: int, hidden: int, dw_gamma: float) -> None:
        super().__init__()
        self.dw = Residual(ConvNorm(width, width, 3, groups=width, gamma=dw_gamma))
        self.ffn = Residual(Ffn(width, hidden))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.ffn(self.dw(x))
        return out


class SqueezeExcite(nn.Module):
    """Channel gating by the globally averaged map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = round_to(width * SE_RATIO, 8)  # as timm's make_divisible(width * 0.25, round_limit=0)
        self.reduce = nn.Conv2d(width, hidden, 1)
        self.expand = nn.Conv2d(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True))))
        gated: Tensor = x * gate.sigmoid()
        return gated
