"""What a training runs on; moves no number but speed and rounding."""

from __future__ import annotations

import os
from dataclasses import dataclass

from evit_nas.latency.machine import usable_cores


@dataclass(frozen=True)
class Hardware:
    """What one of the processes of a training has to itself."""

    workers: int = 0
    """Processes that load images, for each training process."""
    trackers: tuple[str, ...] = ()
    """Names that accelerate knows: tensorboard, wandb, mlflow, ..."""


ALONE = Hardware()  # one process that loads its own images


def loaders(asked: int | None) -> int:
    """So many processes that load images for each training process; where nobody asks, half the cores for all that a
    launcher began here, at most 8 for each.

    One alone has one at least. Of several each loads its own images where cores are few: they are all at work already.
    """
    if asked is not None:
        return asked
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # those on this machine
    return min(max(usable_cores() // (2 * processes), int(processes == 1)), 8)


def several() -> bool:
    """Whether a launcher such as torchrun began other processes with this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def first() -> bool:
    """Whether this is the process that writes and speaks, as torchrun and accelerate number theirs."""
    return os.environ.get("RANK", "0") == "0"


def meet() -> None:
    """Waits for the other processes of a launcher."""
    from accelerate import PartialState

    PartialState(cpu=on_processors()).wait_for_everyone()


def on_processors() -> bool:
    """What accelerate has to be told, or each of several processes would believe itself alone."""
    import torch

    return several() and not torch.accelerator.is_available()
