"""What mixes the tokens of a map: cascaded or independent softmax attention in windows, or linear attention.

EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention (arXiv 2305.07027); the linear
mixer follows EfficientViT: Multi-Scale Linear Attention (arXiv 2205.14756).

Shapes: B batch, C channels, (H, W) the map, S window side, N = S * S tokens, h heads, and for each head d
query and key channels and D value channels.

Annotations are evaluated here, because TorchScript and torch.fx take them for types as they stand.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from evit_nas.arch import LINEAR_EPS, LINEAR_V_KERNEL, StageConfig
from evit_nas.network.layers import ConvNorm, Residual


class PositionBias(nn.Module):
    """Learned attention bias per head, a function of (|dy|, |dx|) as in LeViT.

    Spread out in every forward: a cache would go stale after load_state_dict, .half() or an EMA update. And without a
    table of indices: such a buffer is in no checkpoint, so a network that is built on the meta device and then loaded
    would keep whatever lay in its memory.
    """

    def __init__(self, heads: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.table = nn.Parameter(torch.zeros(heads, side * side))

    def set_side(self, side: int) -> None:
        """For a window of `side`; the learned table is resampled when the side changes."""
        if side != self.side:
            self.side = side
            with torch.no_grad():
                self.table = nn.Parameter(resize_bias_table(self.table, side), self.table.requires_grad)

    def forward(self) -> Tensor:
        by_distance = self.table.view(-1, self.side, self.side)  # (h, S, S)
        for dim in (1, 2):  # every offset of two tokens, from 1 - S to S - 1: (h, 2 * S - 1, 2 * S - 1)
            negative = by_distance.narrow(dim, 1, self.side - 1).flip(dim)
            by_distance = torch.cat([negative, by_distance], dim=dim)
        # the S offsets to all tokens from the last one come first; (h, S, S, S, S) are rows and columns from, and to
        pairs = by_distance.unfold(1, self.side, 1).unfold(2, self.side, 1).flip([1, 2])
        return pairs.flatten(3).flatten(1, 2)  # (h, N, N)


def resize_bias_table(table: Tensor, side: int) -> Tensor:
    """A (h, S * S) bias table resampled (bicubic) to (h, side * side)."""
    heads, old = table.shape[0], math.isqrt(table.shape[1])
    grid = table.float().reshape(1, heads, old, old)
    resized = F.interpolate(grid, size=(side, side), mode="bicubic", antialias=True)  # as timm resamples them
    return resized.reshape(heads, side * side).to(table.dtype)


def to_windows(x: Tensor, side: int) -> Tensor:
    """Cuts a (B, C, H, W) map, zero-padded right and bottom, into (B * windows, C, S, S).

    One copy, and never more than five dimensions: runtimes for phones know no more.
    """
    _, c, height, width = x.shape
    if height == side and width == side:
        return x
    rows, cols = (height + side - 1) // side, (width + side - 1) // side
    # nothing masks the padding later: tokens attend to it, as in timm's network
    x = F.pad(x, [0, cols * side - width, 0, rows * side - height])
    x = torch.unflatten(x, 2, [rows, side]).transpose(1, 2)  # (B, rows, C, S, W)
    # the windows of a row side by side: (B, rows, cols * C, S, S)
    return torch.cat(x.chunk(cols, dim=4), dim=2).reshape(-1, c, side, side)


def from_windows(x: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `to_windows`: (B * windows, C, S, S) to (B, C, H, W), padding cut off."""
    _, c, side, _ = x.shape
    if height == side and width == side:
        return x
    rows, cols = (height + side - 1) // side, (width + side - 1) // side
    x = x.reshape(-1, rows, cols * c, side, side).transpose(1, 2)  # (B, cols * C, rows, S, S)
    x = torch.cat(x.chunk(cols, dim=1), dim=4)  # (B, C, rows, S, cols * S)
    x = x.flatten(2, 3)
    if rows * side == height and cols * side == width:  # Core ML reads no slice that takes everything
        return x
    return x[:, :, :height, :width]


# leaves of a symbolic trace: what they do depends on the size of the map
torch.fx.wrap("to_windows")
torch.fx.wrap("from_windows")


class CascadeHead(nn.Module):
    """Projections of one head; `back` returns the output to the input width where v_ratio changed it."""

    def __init__(self, stage: StageConfig, kernel: int, last: bool) -> None:
        super().__init__()
        dim, qk, v = stage.head_dim, stage.qk_dim, stage.v_dim
        self.qkv = ConvNorm(dim, 2 * qk + v)
        self.q_local = ConvNorm(qk, qk, kernel, groups=qk)
        self.back = nn.Identity() if last or v == dim else ConvNorm(v, dim)


class CascadedGroupAttention(nn.Module):
    """Softmax attention in windows; head j reads channel group j and the output of head j - 1 (3.1)."""

    def __init__(self, stage: StageConfig, side: int) -> None:
        super().__init__()
        self.qk_dim, self.v_dim, self.side = stage.qk_dim, stage.v_dim, side
        self.scale = stage.qk_dim**-0.5
        kernels = stage.used_q_kernels
        self.heads = nn.ModuleList(CascadeHead(stage, k, j == stage.heads - 1) for j, k in enumerate(kernels))
        self.bias = PositionBias(stage.heads, side)
        self.proj = ConvNorm(stage.heads * stage.v_dim, stage.width, gamma=0.0)

    def forward(self, x: Tensor) -> Tensor:
        groups = to_windows(x, self.side).chunk(len(self.heads), dim=1)
        bias = self.bias()
        feat, outs = groups[0], []
        for j, head in enumerate(self.heads):
            if j > 0:
                feat = groups[j] + feat
            qkv = head.qkv(feat)  # type: ignore[operator]
            q, k, v = qkv.split([self.qk_dim, self.qk_dim, self.v_dim], dim=1)
            q = head.q_local(q)  # type: ignore[operator]
            q, k, v = q.flatten(2), k.flatten(2), v.flatten(2)  # (B, d, N)
            # q is scaled, not the scores, as in timm: d x N numbers instead of N x N
            attn = ((q * self.scale).transpose(1, 2) @ k + bias[j]).softmax(dim=-1)  # (B, N, N)
            out = (v @ attn.transpose(1, 2)).view(-1, self.v_dim, self.side, self.side)  # (B, D, S, S)
            outs.append(out)
            feat = head.back(out)  # type: ignore[operator]
        joined = from_windows(F.relu(torch.cat(outs, dim=1)), x.shape[2], x.shape[3])
        projected: Tensor = self.proj(joined)
        return projected


class ParallelGroupAttention(nn.Module):
    """Softmax attention in windows with independent heads: one grouped projection, one batched attention."""

    def __init__(self, stage: StageConfig, side: int) -> None:
        super().__init__()
        self.num_heads, self.qk_dim, self.v_dim, self.side = stage.heads, stage.qk_dim, stage.v_dim, side
        self.scale = stage.qk_dim**-0.5
        self.qkv = ConvNorm(stage.width, stage.heads * (2 * stage.qk_dim + stage.v_dim), groups=stage.heads)
        q_width = stage.heads * stage.qk_dim
        self.q_local = ConvNorm(q_width, q_width, stage.used_q_kernels[0], groups=q_width)
        self.bias = PositionBias(stage.heads, side)
        self.proj = ConvNorm(stage.heads * stage.v_dim, stage.width, gamma=0.0)

    def forward(self, x: Tensor) -> Tensor:
        windows = to_windows(x, self.side)
        qkv = self.qkv(windows).flatten(2).unflatten(1, [self.num_heads, -1])  # (B, h, 2 * qk + D, N)
        q, k, v = qkv.split([self.qk_dim, self.qk_dim, self.v_dim], dim=2)
        q = self.q_local(q.reshape(-1, self.num_heads * self.qk_dim, self.side, self.side))
        q = q.view(-1, self.num_heads, self.qk_dim, self.side * self.side)
        attn = ((q * self.scale).transpose(2, 3) @ k + self.bias()).softmax(dim=-1)  # (B, h, N, N)
        out = (v @ attn.transpose(2, 3)).reshape(-1, self.num_heads * self.v_dim, self.side, self.side)
        projected: Tensor = self.proj(from_windows(F.relu(out), x.shape[2], x.shape[3]))
        return projected


class LinearAttention(nn.Module):
    """ReLU linear attention over the whole map: O(N), no window, no bias (arXiv 2205.14756, equation 2).

    A residual depthwise convolution on the values restores the locality that linear attention lacks.
    """

    def __init__(self, stage: StageConfig) -> None:
        super().__init__()
        self.num_heads, self.qk_dim, self.v_dim, self.eps = stage.heads, stage.qk_dim, stage.v_dim, LINEAR_EPS
        qk_width, v_width = stage.heads * stage.qk_dim, stage.heads * stage.v_dim
        self.qkv = ConvNorm(stage.width, 2 * qk_width + v_width)
        self.v_local = Residual(ConvNorm(v_width, v_width, LINEAR_V_KERNEL, groups=v_width))
        self.proj = ConvNorm(v_width, stage.width, gamma=0.0)

    def forward(self, x: Tensor) -> Tensor:
        qk_width = self.num_heads * self.qk_dim
        q, k, v = self.qkv(x).split([qk_width, qk_width, self.num_heads * self.v_dim], dim=1)
        v = self.v_local(v)
        q, k, v = self._by_head(q), self._by_head(k), self._by_head(v)
        out = sum_over_tokens(q, k, v, self.eps)
        projected: Tensor = self.proj(torch.unflatten(out.flatten(1, 2), 2, [x.shape[2], x.shape[3]]))
        return projected

    def _by_head(self, x: Tensor) -> Tensor:
        """(B, h * d, H, W) to (B, h, d, N)."""
        return torch.unflatten(x.flatten(2), 1, [self.num_heads, -1])


def sum_over_tokens(q: Tensor, k: Tensor, v: Tensor, eps: float) -> Tensor:
    """ReLU linear attention of (B, h, d, N) queries and keys and (B, h, D, N) values: (B, h, D, N).

    Not under autocast, because sums over many tokens overflow fp16 and lose bits in bf16. TorchScript cannot switch it
    off: a network that is scripted (not traced) and then run under autocast sums in its type.
    """
    if is_scripting():
        return _sum_over_tokens(q, k, v, eps)
    if not torch.amp.is_autocast_available(v.device.type):  # on the meta device
        return _sum_over_tokens(q, k, v, eps)
    with torch.autocast(device_type=v.device.type, enabled=False):
        return _sum_over_tokens(q, k, v, eps)


def _sum_over_tokens(q: Tensor, k: Tensor, v: Tensor, eps: float) -> Tensor:
    wide = torch.promote_types(v.dtype, torch.float32)  # 16 bits go up to 32, 64 stay
    q, k = F.relu(q.to(wide)), F.relu(k.to(wide))
    context = v.to(wide) @ k.transpose(2, 3)  # (B, h, D, d)
    norm = k.sum(dim=3, keepdim=True).transpose(2, 3) @ q  # (B, h, 1, N)
    return ((context @ q) / (norm + eps)).to(v.dtype)


torch.fx.wrap("sum_over_tokens")  # a leaf of a symbolic trace, which would lose the context


def make_mixer(stage: StageConfig, side: int) -> nn.Module | None:
    """The token mixer of a block, None for a convolutional stage."""
    if stage.mixer == "none":
        return None
    if stage.mixer == "linear":
        return LinearAttention(stage)
    return CascadedGroupAttention(stage, side) if stage.cascaded else ParallelGroupAttention(stage, side)
