"""EfficientViT as a torch module, built from an ArchConfig.

EfficientViT: Memory Efficient Vision Transformer with Cascaded Group Attention (arXiv 2305.07027). The class offers
what users of timm expect of a model. With a preset it computes what timm's efficientvit_m0..m5 compute; `weights.py`
converts between the two namings and the one of the official checkpoints. Its parts are in `layers.py` and
`attention.py`.

Shapes: B batch, C channels, (H, W) the map.

Annotations are evaluated here, because TorchScript and torch.fx take them for types as they stand.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.utils.checkpoint import checkpoint

from evit_nas.arch import ArchConfig, StageConfig
from evit_nas.errors import UsageError
from evit_nas.network.attention import CascadedGroupAttention, ParallelGroupAttention, make_mixer
from evit_nas.network.layers import ConvNorm, LocalFfn, NormLinear, Residual, SqueezeExcite, seeded
from evit_nas.yamlio import validate


def build(arch: ArchConfig, seed: int | None = None) -> "EfficientViT":
    """The network of `arch`, in training mode, with the paper's initialisation.

    Every residual branch ends in a BatchNorm with gamma 0, so a fresh network's blocks are the identity.

    Args:
        seed: makes the weights a function of (arch, seed) and leaves the global random state untouched;
            None draws from the global state, as torch modules do.
    """
    if seed is None:
        return EfficientViT(arch)
    with seeded(seed):
        return EfficientViT(arch)


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
