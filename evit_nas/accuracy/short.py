"""Short training: what an architecture learns from few small images in a few minutes, to rank it against others.

The recipe is fixed for all architectures, images and their order included, so that two results differ by the
architecture and the seed of its weights alone. On a GPU the images lie in its memory and products are in bf16, which is
named with every result: the same batches, not the same digits. The learning rate falls to zero in cosine cycles, one
for each rung: a network is judged at the end of a cycle, and promotion to the next rung continues from there instead of
starting over (warm restarts, arXiv 1608.03983). No averaging of weights: over so few steps it would rank the slowest
learners last.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evit_nas.accuracy import ShortScore
from evit_nas.arch import WIDTH_STEP, ArchConfig, StageConfig, round_to
from evit_nas.config import ShortRecipe
from evit_nas.data.dataset import check_channels
from evit_nas.errors import MeasurementError
from evit_nas.files import serialised
from evit_nas.network.model import EfficientViT, build

if TYPE_CHECKING:
    from evit_nas.data.dataset import Dataset, Split

EVAL_BATCH = 250
CPU = torch.device("cpu")


def training_device() -> torch.device:
    """The GPU with the most free memory, else the processor; Ray shows a trial the GPUs that it reserved for it."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    free = [torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())]
    return torch.device("cuda", free.index(max(free)))


def device_name(device: torch.device) -> str:
    """What is written beside a result: cpu, or the name of the GPU."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)


@dataclass(frozen=True)
class Batches:
    """The images that a recipe trains or validates on, and what they are normalised by; in the memory of a device.

    On a processor they are those of the split, so that workers share what it has mapped.
    """

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,)
    mean: Tensor  # (C, 1, 1)
    std: Tensor  # (C, 1, 1)

    @classmethod
    def of(cls, split: Split, like: Batches | None = None, device: torch.device = CPU) -> Batches:
        """All of `split`; normalised by its own mean and deviation of each channel, or as another set is."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*not writable.*")  # nor is a memory map written to
            images = torch.from_numpy(split.images).permute(0, 3, 1, 2)  # (N, C, H, W)
        if like is not None:
            mean, std = like.mean, like.std
        else:
            pixels = images[:: max(1, len(images) // 2000)].float() / 255  # 2,000 images tell the mean well enough
            std, mean = torch.std_mean(pixels, dim=(0, 2, 3), keepdim=True)  # (1, C, 1, 1)
            mean, std = mean[0], std[0].clamp(min=1e-3)  # a channel of one value has a deviation of 0
        labels = torch.from_numpy(np.array(split.labels))
        return cls(images.to(device), labels.to(device), mean.to(device), std.to(device))

    def normalised(self, images: Tensor, channels: int) -> Tensor:
        """(B, channels, H, W) floats of (B, C, H, W) bytes; a grey image is repeated for every channel."""
        return ((images.float() / 255 - self.mean) / self.std).expand(-1, channels, -1, -1)

    def epoch(self, recipe: ShortRecipe, seed: int, epoch: int, channels: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented (B, channels, H, W) images and (B,) labels: a function of the seed and the number of the epoch.

        All that is random is drawn on the processor, so that every device sees the same batches.
        """
        device = self.images.device
        generator = torch.Generator().manual_seed(seed * 100_003 + epoch)  # no two epochs of any seeds alike
        order = torch.randperm(len(self.labels), generator=generator)
        reach = round(recipe.shift * recipe.image_size)
        for chosen in order.split(recipe.batch_size):  # type: ignore[no-untyped-call]
            if len(chosen) < 2:  # nothing to normalise a batch by
                continue
            chosen = chosen.to(device)
            images = self.images[chosen]
            if recipe.flip:
                mirrored = (torch.rand(len(chosen), generator=generator) < 0.5).to(device)
                images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
            if reach:
                images = shifted(images, reach, generator)
            yield self.normalised(images, channels), self.labels[chosen]


def shifted(images: Tensor, reach: int, generator: torch.Generator) -> Tensor:
    """(B, C, H, W) images, each moved by up to `reach` pixels either way; what comes in repeats the edge."""
    device = images.device
    rows, cols = (torch.randint(-reach, reach + 1, (len(images),), generator=generator).to(device) for _ in range(2))
    height, width = images.shape[2:]
    y = (torch.arange(height, device=device) + rows[:, None]).clamp(0, height - 1)  # (B, H)
    x = (torch.arange(width, device=device) + cols[:, None]).clamp(0, width - 1)  # (B, W)
    moved = images.gather(2, y[:, None, :, None].expand_as(images))
    return moved.gather(3, x[:, None, None, :].expand_as(images))


class ShortTraining:
    """Trains networks on one data set by one recipe.

    A score is a function of the architecture and the seed: on a processor to the bit, on one machine with equal numbers
    of threads; on a GPU nearly so, as its sums come in any order.

    Args:
        dataset: whose images fit into the memory of the device.
        recipe: how networks are trained.
        device: where; `training_device()` by default.
        bf16: whether products are computed in bf16, sums and weights in fp32; by default on a GPU.

    Raises:
        UsageError: the recipe asks for fewer images than there are classes.
    """

    def __init__(
        self, dataset: Dataset, recipe: ShortRecipe, device: torch.device | None = None, bf16: bool | None = None
    ) -> None:
        self.recipe = recipe
        self.classes = len(dataset.classes)
        self.device = training_device() if device is None else device
        self._bf16 = self.device.type == "cuda" if bf16 is None else bf16
        count = min(recipe.images, len(dataset.train))
        self._train = Batches.of(dataset.train.subset(count, seed=0), device=self.device)  # the same for every seed
        self._val = Batches.of(dataset.val, like=self._train, device=self.device)

    def run(
        self,
        arch: ArchConfig,
        seed: int,
        *,
        rung: int | None = None,
        checkpoint: Path | None = None,
        step: Callable[[int], None] = lambda _: None,
    ) -> ShortScore:
        """Trains to the end of `rung` (counted from 0; the last one by default) and validates.

        Args:
            arch: trained at the recipe's image size, with the classes of the data set.
            seed: of the weights and of the order of the images.
            rung: where to stop.
            checkpoint: file of this architecture, seed and recipe; written after every epoch and read first, so that
                a killed run or a promoted network goes on where it was, to the same score. One that is past `rung` is
                started anew.
            step: told how many epochs are done.

        Raises:
            MeasurementError: the loss is not finite any more.
            UsageError: the architecture does not take the channels of the images.
            ValueError: the recipe has no such rung.
        """
        end = self.recipe.end_of(self.recipe.last_rung if rung is None else rung)
        model = build(self.fitted(arch), seed).train().to(self.device).to(memory_format=torch.channels_last)
        optimiser = torch.optim.AdamW(_groups(model, self.recipe), lr=0.0, fused=True)  # each step sets its own rate
        curve = _load(checkpoint, model, optimiser, end, self.device) if checkpoint else []
        for epoch in range(len(curve), end):
            # refused before it is saved: an epoch whose loss is not finite is in no checkpoint
            curve.append(_finite(self._train_epoch(model, optimiser, seed, epoch), arch, epoch + 1))
            if checkpoint:
                _save(checkpoint, model, optimiser, curve, self.device)
            step(epoch + 1)
        accuracy, cross_entropy = self._validate(model)
        return ShortScore(accuracy=accuracy, cross_entropy=_finite(cross_entropy, arch, end), curve=tuple(curve))

    def fitted(self, arch: ArchConfig) -> ArchConfig:
        """The architecture as it is trained on the data set.

        Raises:
            UsageError: it does not take the channels of the images.
        """
        check_channels(self._train.images.shape[1], arch.in_channels)
        return as_trained(arch, self.recipe, self.classes)

    def _train_epoch(self, model: EfficientViT, optimiser: torch.optim.Optimizer, seed: int, epoch: int) -> float:
        """Mean loss of the epoch in nats."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        seen, images = 0, len(self._train.labels)
        for x, labels in self._train.epoch(self.recipe, seed, epoch, model.arch.in_channels):
            rate = self.recipe.rate(epoch + seen / images)
            for group in optimiser.param_groups:
                group["lr"] = rate
            loss = F.cross_entropy(self._logits(model, x), labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.recipe.clip_norm)
            optimiser.step()
            total += loss.detach().double() * len(labels)
            seen += len(labels)
        return float(total / seen)

    def _logits(self, model: EfficientViT, x: Tensor) -> Tensor:
        """(B, classes) in fp32."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            logits: Tensor = model(x.contiguous(memory_format=torch.channels_last))
        return logits.float()

    @torch.no_grad()
    def _validate(self, model: EfficientViT) -> tuple[float, float]:
        """Share of the validation images that are classified right, and their mean cross-entropy in nats.

        Leaves the model in eval mode.
        """
        model.eval()
        right, loss = 0, 0.0
        for start in range(0, len(self._val.labels), EVAL_BATCH):
            images, labels = (part[start : start + EVAL_BATCH] for part in (self._val.images, self._val.labels))
            x = self._val.normalised(images, model.arch.in_channels)
            logits = self._logits(model, x)
            right += int((logits.argmax(1) == labels).sum())
            loss += float(F.cross_entropy(logits, labels, reduction="sum").double())
        return right / len(self._val.labels), loss / len(self._val.labels)


def as_trained(arch: ArchConfig, recipe: ShortRecipe, classes: int) -> ArchConfig:
    """The architecture at the recipe's image size and width, with so many classes."""
    stages = [_narrowed(stage, recipe.width) for stage in arch.stages]
    own = {"image_size": recipe.image_size, "num_classes": classes, "stages": stages}
    return ArchConfig.model_validate(arch.model_dump() | own)


def _finite(loss: float, arch: ArchConfig, epoch: int) -> float:
    if not math.isfinite(loss):
        raise MeasurementError(f"training of {arch.key} diverged in epoch {epoch}: its loss is {loss}")
    return loss


def _narrowed(stage: StageConfig, share: float) -> dict[str, Any]:
    heads = stage.heads if stage.mixer != "none" else 1  # equal networks must be trained at equal widths
    width = round_to(stage.width * share, math.lcm(WIDTH_STEP, heads))
    # ArchConfig takes multiples of 4 alone
    return stage.model_dump() | {"width": width, "qk_dim": round_to(stage.qk_dim * share, 4)}


def _groups(model: EfficientViT, recipe: ShortRecipe) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels only; tables of attention biases and norms go without."""
    spared = model.no_weight_decay()
    decayed = {n for n, p in model.named_parameters() if p.ndim > 1 and n not in spared}
    return [
        {"params": [p for n, p in model.named_parameters() if (n in decayed) == wanted], "weight_decay": decay}
        for wanted, decay in ((True, recipe.weight_decay), (False, 0.0))
    ]


def _save(
    path: Path, model: EfficientViT, optimiser: torch.optim.Optimizer, curve: list[float], device: torch.device
) -> None:
    """Sees the whole file to the disk before it takes the place of the last one, which a power cut must not tear."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".partial")
    state = {
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "curve": curve,
        "device": device_name(device),
    }
    with scratch.open("wb") as file:
        file.write(serialised(lambda memory: torch.save(state, memory)))
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def _load(
    path: Path, model: EfficientViT, optimiser: torch.optim.Optimizer, end: int, device: torch.device
) -> list[float]:
    """The losses of the epochs that are done; none if there is no checkpoint, or one of more than `end` epochs or of
    another device."""
    if not path.exists():
        return []
    state = torch.load(path, map_location=device, weights_only=True)
    # checkpoints of earlier versions name no device: they trained on the processor alone
    if len(state["curve"]) > end or state.get("device", "cpu") != device_name(device):
        return []
    model.load_state_dict(state["model"])
    optimiser.load_state_dict(state["optimiser"])
    return list(state["curve"])
