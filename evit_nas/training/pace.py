"""How long a training takes, before it begins: from a few steps of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from evit_nas import __version__
from evit_nas.training.settings import TrainRecord, TrainSettings

if TYPE_CHECKING:
    from evit_nas.training.hardware import Hardware


@dataclass(frozen=True)
class Pace:
    """What was timed."""

    steps: int
    """Of an epoch."""
    step_s: float
    validation_s: float
    """Of all validation images, with the weights and their average."""

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch with its validation."""
        return self.steps * self.step_s + self.validation_s


def pace_of(settings: TrainSettings, hardware: Hardware) -> Pace:
    """Takes a few steps of the training in a folder that is thrown away.

    Raises:
        UsageError: the training could not begin.
    """
    from evit_nas.training.loop import TrainingRun

    created = datetime.now(UTC).isoformat(timespec="seconds")
    record = TrainRecord(evit_nas=__version__, created=created, command="", settings=settings, versions={})
    with TemporaryDirectory() as scratch:
        run = TrainingRun(Path(scratch), record, _Nobody(), replace(hardware, trackers=()))
        try:
            return run.pace()
        finally:
            run.end()


class _Nobody:
    """Watches what is only timed."""

    def note(self, message: str) -> None:
        """See TrainWatcher."""

    def trained(self, status: object) -> None:
        """See TrainWatcher."""
