"""One training, from wherever it stands to its end, and what is said where it cannot get there."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from evit_nas.errors import EvitNasError, RunError
from evit_nas.files import lock
from evit_nas.latency.machine import usable_cores
from evit_nas.trained import WEIGHTS
from evit_nas.training.advice import advice
from evit_nas.training.folder import read_record
from evit_nas.training.hardware import ALONE, Hardware
from evit_nas.training.status import TrainWatcher

if TYPE_CHECKING:
    from evit_nas.training.loop import Result, TrainingRun


def carry_on(kind: type[TrainingRun[Result]], folder: Path, watch: TrainWatcher, hardware: Hardware = ALONE) -> Result:
    """Takes the training in `folder` from wherever it stands to its end; one that is finished costs nothing.

    Args:
        kind: what trains there.

    Raises:
        UsageError: data, weights, teacher or precision cannot be used.
        RunError: another process is at it, or the folder cannot be written.
        EvitNasError: the loss is not finite any more, or memory ran out; the last good checkpoint is kept.
    """
    record = read_record(folder)
    if (folder / WEIGHTS).exists():
        return kind.finished(folder)
    if torch.get_num_threads() > usable_cores():  # a container's quota, of which torch knows nothing
        torch.set_num_threads(usable_cores())
    training = kind(folder, record, watch, hardware)
    try:
        with lock(folder) if training.first else nullcontext():  # it would keep out this training's other processes
            return training.run()
    except (RuntimeError, MemoryError) as error:
        if said := advice(error, record.settings.recipe, hardware, folder):
            raise EvitNasError(f"{record.settings.name}: {said}") from error
        raise
    except OSError as error:
        if error.filename is None or not Path(str(error.filename)).is_relative_to(folder):
            raise
        raise RunError(
            f"cannot write the training folder {folder}: {error.strerror}. Put that right, then add --resume."
        ) from error
    finally:
        training.end()
