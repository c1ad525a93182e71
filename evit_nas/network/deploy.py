"""The deploy form of a network: every fold that is exact, so that less remains to be computed.

    convolution + BatchNorm                  one convolution
    x + depthwise convolution of x           one depthwise convolution, 1 added at the kernel's centre
    attention scale                          into the query's depthwise convolution
    attention bias table                     gathered once, to a constant
    classifier's BatchNorm + linear layer    one linear layer

The names of the folded module's tensors are the names that `onnx_graph` reads.

Annotations are evaluated here, because TorchScript takes them for types as they stand.
"""

import copy

import numpy as np
from torch import Tensor, nn

from evit_nas.network.attention import CascadedGroupAttention, ParallelGroupAttention, PositionBias
from evit_nas.network.layers import ConvNorm, NormLinear, Residual
from evit_nas.network.model import EfficientViT


def fold(model: EfficientViT) -> nn.Module:
    """A folded copy of `model` in eval mode, equal in output; `model` itself stays as it is."""
    folded = copy.deepcopy(model).eval().requires_grad_(False)  # or autograd refuses what is changed in place
    _fold_children(folded)
    return folded


def deploy_weights(model: EfficientViT) -> dict[str, np.ndarray]:
    """The tensors of `fold(model)` by name, as float32 arrays: what `onnx_graph.build_onnx` takes."""
    return {name: tensor.float().cpu().numpy() for name, tensor in fold(model).state_dict().items()}


class ConstantBias(nn.Module):
    """The attention bias of all heads, already gathered: (h, N, N)."""

    value: Tensor

    def __init__(self, bias: PositionBias) -> None:
        super().__init__()
        self.register_buffer("value", bias())

    def forward(self) -> Tensor:
        return self.value


def _fold_children(parent: nn.Module) -> None:
    for name, child in parent.named_children():
        setattr(parent, name, _folded(child))
    if isinstance(parent, CascadedGroupAttention | ParallelGroupAttention):
        for name, parameter in parent.named_parameters():
            if "q_local." in name:  # after its fold: only a weight and a bias are left to scale
                parameter.mul_(parent.scale)  # q passes only this convolution before the product with k
        parent.scale = 1.0


def _folded(module: nn.Module) -> nn.Module:
    if isinstance(module, ConvNorm):
        return _fold_conv(module)
    if isinstance(module, NormLinear):
        return _fold_linear(module)
    if isinstance(module, PositionBias):
        return ConstantBias(module)
    if isinstance(module, Residual) and isinstance(module.fn, ConvNorm):
        conv = _fold_conv(module.fn)
        centre = conv.kernel_size[0] // 2
        conv.weight[:, :, centre, centre] += 1  # depthwise: one input channel, its own
        return conv
    _fold_children(module)
    return module


def _affine(bn: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """(factor, shift) in float64, so that folding rounds once: bn(x) = x * factor + shift."""
    assert bn.running_mean is not None
    assert bn.running_var is not None
    factor = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
    return factor, bn.bias.double() - bn.running_mean.double() * factor


def _fold_conv(module: ConvNorm) -> nn.Conv2d:
    factor, shift = _affine(module.bn)
    conv = module.conv
    weight = conv.weight
    conv.weight = nn.Parameter((weight.double() * factor[:, None, None, None]).to(weight.dtype), False)
    conv.bias = nn.Parameter(shift.to(weight.dtype), False)
    return conv


def _fold_linear(module: NormLinear) -> nn.Linear:
    factor, shift = _affine(module.bn)
    linear = module.linear
    weight = linear.weight.double()
    # the BatchNorm comes first: it scales columns (inputs), and its shift passes through the weight
    linear.weight = nn.Parameter((weight * factor).to(linear.weight.dtype), False)
    linear.bias = nn.Parameter((linear.bias.double() + weight @ shift).to(linear.weight.dtype), False)
    return linear
