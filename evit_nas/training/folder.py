"""The folder of a training.

train.yaml           settings, versions, command                          written once
metrics.jsonl        training loss every few steps, validation every epoch
checkpoint.pt        the state to go on from, every few minutes and after every epoch
best.safetensors     the weights that validated best so far
model.safetensors, trained.json, arch.yaml, curve.png                     when it is finished (`trained.py`)
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from evit_nas import __version__
from evit_nas.errors import RunError, UsageError
from evit_nas.files import lock, write_atomically
from evit_nas.runs import installed_versions
from evit_nas.trained import WEIGHTS
from evit_nas.training.settings import TrainRecord, TrainSettings
from evit_nas.yamlio import read_yaml, to_yaml, validate

RECORD, METRICS, CHECKPOINT, BEST = "train.yaml", "metrics.jsonl", "checkpoint.pt", "best.safetensors"
CURVE = "curve.png"


def create(folder: Path, settings: TrainSettings, command: str) -> None:
    """A new training folder; takes the place of one in which nothing has been trained.

    Raises:
        RunError: there is a training already, another process is at it, or the folder cannot be written.
    """
    check_untrained(folder)
    record = TrainRecord(
        evit_nas=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        settings=settings,
        versions=installed_versions(),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder):  # settings do not change under a training that is at work
            write_atomically(folder / RECORD, to_yaml(record))
    except OSError as error:
        raise RunError(f"cannot write the training folder {folder}: {error.strerror}. Choose another --out.") from None


def check_untrained(folder: Path) -> None:
    """
    Raises:
        RunError: something has been trained in it.
    """
    if (folder / RECORD).exists() and holds_weights(folder):
        raise RunError(f"{folder} holds a training already. Add --resume to go on with it, or choose another --out.")


def holds_weights(folder: Path) -> bool:
    """Whether something has been trained; metrics alone are nothing that a training could go on from."""
    return any((folder / name).exists() for name in (CHECKPOINT, BEST, WEIGHTS))


def read_record(folder: Path) -> TrainRecord:
    """What train.yaml in `folder` holds.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    if not (folder / RECORD).is_file():
        raise UsageError(f"{folder} is not a training folder (it has no {RECORD}).")
    return validate(TrainRecord, read_yaml(folder / RECORD), str(folder / RECORD))
