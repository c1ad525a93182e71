"""EfficientViT as a torch module, built from an ArchConfig.

EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention (arXiv 2305.07027); the linear
mixer follows EfficientViT: Multi-Scale Linear Attention (arXiv 2205.14756). The class offers what users of
timm expect of a model. With a preset it computes what timm's efficientvit_m0..m5 compute; `weights.py`
converts between the two namings and the one of the official checkpoints.

Shapes: B batch, C channels, (H, W) the map, S window side, N = S * S tokens, h heads, and for each head d
query and key channels and D value channels.

Annotations are evaluated here, because TorchScript and torch.fx take them for types as they stand.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.utils.checkpoint import checkpoint

from evit_nas.arch import LINEAR_EPS, LINEAR_V_KERNEL, SE_RATIO, ArchConfig, StageConfig, round_to
from evit_nas.errors import UsageError
from evit_nas.yamlio import validate

BN_EPS = 1e-5  # as in timm's networks, whose weights are loaded


def build(arch: ArchConfig, seed: int | None = None) -> "EfficientViT":
    """The network of `arch`, in training mode, with the paper's initialisation.

    Every residual branch ends in a BatchNorm with gamma 0, so a fresh network's blocks are the identity.

    Args:
        seed: makes the weights a function of (arch, seed) and leaves the global random state untouched;
            None draws from the global state, as torch modules do.
    """
    if seed is None:
        return EfficientViT(arch)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every GPU as well
        return EfficientViT(arch)


class ConvNorm(nn.Sequential):
    """Convolution without bias ("same" padding) and BatchNorm; `gamma` is the BatchNorm's initial weight."""

    def __init__(
        self, in_chs: int, out_chs: int, kernel: int = 1, stride: int = 1, groups: int = 1, gamma: float = 1.0
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_chs, eps=BN_EPS)
        nn.init.constant_(self.bn.weight, gamma)


class Stem(nn.ModuleList):
    """(B, in_channels, H, W) images to (B, C1, H / 16, W / 16) features: four convolutions with ReLUs between.

    One unit, of which no part can be left out: some of timm's extractors run what a Sequential holds one by one.
    """

    def __init__(self, in_chs: int, widths: tuple[int, ...]) -> None:
        super().__init__(ConvNorm(a, b, 3, stride=2) for a, b in pairwise((in_chs, *widths)))

    def forward(self, x: Tensor) -> Tensor:
        for i, conv in enumerate(self):
            x = F.relu(x) if i > 0 else x
            x = conv(x)
        return x


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


class Block(nn.Sequential):
    """The sandwich: `ffn_count` times (token interaction, FFN), the mixer, and the same again."""

    def __init__(self, stage: StageConfig, side: int) -> None:
        super().__init__()

        def locals_() -> nn.Sequential:
            return nn.Sequential(*(LocalFfn(stage.width, stage.ffn_dim, 0.0) for _ in range(stage.ffn_count)))

        mixer = make_mixer(stage, side)
        self.before = locals_()
        self.mixer = Residual(mixer) if mixer is not None else nn.Identity()
        self.after = locals_()


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


class Downsample(nn.Module):
    """Token interaction and FFN, an inverted residual with stride 2 (no skip), and the same again."""

    def __init__(self, before: StageConfig, after: StageConfig, hidden: int) -> None:
        super().__init__()
        self.before = LocalFfn(before.width, before.ffn_dim, 1.0)  # gamma 1, in blocks 0: so in Microsoft's code
        self.expand = ConvNorm(before.width, hidden)
        self.reduce = ConvNorm(hidden, hidden, 3, stride=2, groups=hidden)
        self.se = SqueezeExcite(hidden)
        self.project = ConvNorm(hidden, after.width)
        self.after = LocalFfn(after.width, after.ffn_dim, 1.0)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.expand(self.before(x)))
        x = self.project(self.se(F.relu(self.reduce(x))))
        out: Tensor = self.after(x)
        return out


class Stage(nn.Module):
    """Downsampling (none before the first stage) and blocks; in training computed twice, if told to save memory."""

    def __init__(self, arch: ArchConfig, index: int) -> None:
        super().__init__()
        stage = arch.stages[index]
        self.downsample = Downsample(arch.stages[index - 1], stage, arch.merge_dim(index)) if index else nn.Identity()
        self.blocks = nn.Sequential(*(Block(stage, arch.window_side(index)) for _ in range(stage.depth)))
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training and not is_scripting():
            return _checkpointed(self, x)
        return self.once(x)

    def once(self, x: Tensor) -> Tensor:
        """The stage itself."""
        out: Tensor = self.blocks(self.downsample(x))
        return out


def _checkpointed(stage: Stage, x: Tensor) -> Tensor:
    """stage.once(x), computed again in the backward pass; BatchNorm statistics count every batch only once."""
    contexts = lambda: (nullcontext(), _statistics_kept(stage))  # noqa: E731
    # the reentrant form takes no context_fn
    out: Tensor = checkpoint(stage.once, x, use_reentrant=False, context_fn=contexts)
    return out


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    norms = [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        # momentum 0 keeps mean and variance; without a counter BatchNorm counts nothing
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, batches


class EfficientViT(nn.Module):
    """EfficientViT of any ArchConfig, with the interface of a timm model."""

    def __init__(self, arch: ArchConfig) -> None:
        super().__init__()
        self.arch = arch
        self.num_classes = arch.num_classes
        self.in_chans = arch.in_channels
        self.num_features = self.head_hidden_size = arch.stages[-1].width
        self.feature_info = [
            {"num_chs": stage.width, "reduction": 16 * 2**i, "module": f"stages.{i}"}
            for i, stage in enumerate(arch.stages)
        ]
        self.stem = Stem(arch.in_channels, arch.stem_widths)
        self.stages = nn.Sequential(*(Stage(arch, i) for i in range(len(arch.stages))))
        self.head: nn.Module = self._make_head(arch.num_classes)
        self.global_pool = "avg"

    def _make_head(self, num_classes: int) -> nn.Module:
        return NormLinear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) images to (B, C3, H / 64, W / 64) features, sizes rounded up."""
        features: Tensor = self.stages(self.stem(x))
        return features

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C3, h, w) features to (B, num_classes) logits, or to the (B, C3) pooled features."""
        if self.global_pool == "avg":
            x = x.mean((2, 3))
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Final features and the list of stage outputs (strides 16, 32, 64), as in timm.

        Args:
            indices: which stages: None for all, n for the last n, or their numbers (negative from the end).
            norm: accepted for timm's sake; there is no final norm to apply.
            stop_early: do not run stages after the last one asked for.
            output_fmt: only "NCHW".
            intermediates_only: return only the list.

        Raises:
            UsageError: there is no such stage or output format.
        """
        if output_fmt != "NCHW":
            raise UsageError(f"output_fmt must be 'NCHW', got '{output_fmt}'.")
        wanted = self._stage_numbers(indices)
        x = self.stem(x)
        taken = []
        for i, stage in enumerate(self.stages):
            if not stop_early or i <= max(wanted):
                x = stage(x)
            if i in wanted:
                taken.append(x)
        if intermediates_only:
            return taken
        return x, taken

    def _stage_numbers(self, indices: int | list[int] | None) -> list[int]:
        count = len(self.stages)
        if indices is None:
            wanted = list(range(count))
        elif isinstance(indices, int):
            wanted = list(range(-indices, 0))
        else:
            wanted = list(indices)
        if len(wanted) == 0 or min(wanted) < -count or max(wanted) >= count:
            allowed = f"a number of last stages from 1 to {count}, or stages from {-count} to {count - 1}"
            raise UsageError(f"indices must be {allowed}, got {indices}.")
        return [i % count for i in wanted]

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drops the stages after the last of `indices`, and the classifier; returns the stages' numbers, as in timm.

        Args:
            indices: as in `forward_intermediates`.
            prune_norm: accepted for timm's sake; there is no final norm.
            prune_head: also without a stage to drop.

        Raises:
            UsageError: there is no such stage.
        """
        wanted = self._stage_numbers(indices)
        shorter = max(wanted) + 1 < len(self.stages)
        if prune_head or shorter:
            self.reset_classifier(0, "")
        if shorter:
            self.stages = self.stages[: max(wanted) + 1]
            self.num_features = self.head_hidden_size = self.arch.stages[max(wanted)].width
        return wanted

    def get_classifier(self) -> nn.Module:
        """The final linear layer (an Identity without classes)."""
        return self.head.linear if isinstance(self.head, NormLinear) else self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier; 0 classes leave it out, `global_pool=""` also leaves the pooling out.

        Raises:
            UsageError: a negative number of classes, an unknown pooling, or classes without pooling.
        """
        pool = self.global_pool if global_pool is None else global_pool
        if pool not in ("", "avg"):
            raise UsageError(f"global_pool must be 'avg' or '', got '{pool}'.")
        if num_classes and not pool:
            raise UsageError("a classifier needs pooled features; use global_pool='avg'.")
        self.arch = self._changed_arch(num_classes=num_classes)  # first: where it refuses, nothing has changed
        self.num_classes, self.global_pool = num_classes, pool
        reference = next(self.parameters())
        self.head = self._make_head(num_classes).to(reference.device, reference.dtype).train(self.training)

    def _changed_arch(self, **changes: Any) -> ArchConfig:
        return validate(ArchConfig, self.arch.model_dump() | changes, "the network")

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Prepares for another input size (a side or (height, width)); learned biases are resampled.

        Raises:
            UsageError: the size is not a multiple of 16 from 64 to 512.
        """
        self.arch = self._changed_arch(image_size=img_size)  # first: where it refuses, nothing has changed
        for index, stage in enumerate(self.stages):
            side = self.arch.window_side(index)
            for module in stage.modules():
                if isinstance(module, CascadedGroupAttention | ParallelGroupAttention):
                    module.side = side
                    module.bias.set_side(side)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay must leave alone: the attention biases."""
        return {name for name, _ in self.named_parameters() if name.endswith("bias.table")}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute stages in the backward pass to save memory."""
        for stage in cast(Iterable[Stage], self.stages):
            stage.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for layer-wise learning rates, in timm's form."""
        fine = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else fine}
