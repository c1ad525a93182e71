"""What helps a training that failed."""

from __future__ import annotations

from pathlib import Path

from evit_nas.errors import out_of_memory
from evit_nas.training.folder import holds_weights
from evit_nas.training.hardware import Hardware
from evit_nas.training.recipe import Recipe


def advice(error: Exception, recipe: Recipe, hardware: Hardware, folder: Path) -> str:
    """What is wrong and the way out if memory ran out, here or in a process that loads images; else empty."""
    if out_of_memory(f"{type(error).__name__}: {error}"):
        return (
            f"the device's memory does not hold a batch of {recipe.batch_size} images in {recipe.accumulate} parts. "
            f"Take more parts (--set accumulate={2 * recipe.accumulate}) or a smaller batch_size{_beside(folder)}."
        )
    if "DataLoader worker" in str(error):  # as torch says of one that was killed
        return (
            "a process that loads images died, perhaps for want of memory, or of shared memory (/dev/shm; in a "
            f"container --shm-size). Take fewer of them{_going_on(folder)}: --workers {hardware.workers // 2}"
        )
    return ""


def diverged(loss: float, epoch: int, recipe: Recipe, folder: Path) -> str:
    """What is wrong and the way out where the loss is not finite."""
    fp32 = " or fp32 (--set precision=fp32)" if recipe.precision == "fp16" else ""
    return (
        f"the loss is {loss} in epoch {epoch + 1}. Take a lower rate (--set "
        f"learning_rate={recipe.learning_rate / 3:.2g}) or stronger clipping (--set clip_mode=norm --set clip=1)"
        f"{fp32}{_beside(folder)}."
    )


def _going_on(folder: Path) -> str:
    return " and go on with --resume" if holds_weights(folder) else ""


def _beside(folder: Path) -> str:
    """Where a training with other settings goes: what has been trained keeps its folder."""
    return f", with another --out: the last good checkpoint is kept in {folder}" if holds_weights(folder) else ""
