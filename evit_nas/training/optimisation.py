"""What a step minimises, and how, by the recipe: timm's loss, optimiser, schedule and clipping; a teacher's share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from evit_nas.training.recipe import Recipe
from evit_nas.training.teacher import Teacher, distillation_loss

HEADS = ("head.", "shared.head/")  # names of a classifier's parameters: in a network, in shared weights


class Criterion:
    """The loss on labels, or on the soft targets of mixed batches, and what a teacher adds to it."""

    def __init__(self, recipe: Recipe, teacher: Teacher | None) -> None:
        from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

        self._recipe, self._teacher = recipe, teacher
        self._loss: nn.Module = (
            SoftTargetCrossEntropy() if recipe.mixed else LabelSmoothingCrossEntropy(recipe.smoothing)
        )

    def __call__(self, logits: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        """
        Args:
            logits: (B, classes) of the student.
            targets: (B,) labels or (B, classes) shares.
            images: (B, C, H, W) as the student saw them.
        """
        loss: Tensor = self._loss(logits, targets)
        if self._teacher is None:
            return loss
        recipe = self._recipe
        return distillation_loss(
            logits,
            self._teacher(images).float(),
            loss,
            alpha=recipe.distil_share,
            tau=recipe.temperature,
            kind=recipe.distil,
        )


def create_optimiser(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Decays matrices and kernels only."""
    from timm.optim import create_optimizer_v2

    fused = {"fused": True} if recipe.optimiser in ("adam", "adamw") else {}  # timm's own have no fused form
    # timm decays neither biases and vectors nor what the network's `no_weight_decay` names
    optimiser: torch.optim.Optimizer = create_optimizer_v2(
        model, opt=recipe.optimiser, lr=recipe.peak_rate, weight_decay=recipe.weight_decay, **fused
    )
    return optimiser


def create_schedule(optimiser: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Any:
    """Warm-up and cosine over epochs of `steps`, set step by step."""
    from timm.scheduler import create_scheduler_v2

    schedule, _ = create_scheduler_v2(
        optimiser,
        num_epochs=recipe.epochs,
        min_lr=recipe.peak_rate * recipe.final_rate,
        warmup_lr=recipe.peak_rate * 1e-3,
        warmup_epochs=recipe.warmup_epochs,
        step_on_epochs=False,
        updates_per_epoch=steps,
    )
    return schedule


def clip(model: nn.Module, recipe: Recipe) -> None:
    """Clips the gradients; AGC leaves the classifier's alone, as its authors advise."""
    from timm.utils import dispatch_clip_grad

    assert recipe.clip is not None
    spared = HEADS if recipe.clip_mode == "agc" else ()
    parameters = [parameter for name, parameter in model.named_parameters() if not name.startswith(spared)]
    dispatch_clip_grad(parameters, recipe.clip, mode=recipe.clip_mode)
