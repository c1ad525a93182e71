"""How long a training takes, before it begins: from a few steps of its own."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from evit_nas import __version__
from evit_nas.errors import EvitNasError
from evit_nas.training.advice import advice
from evit_nas.training.loop import TrainingRun
from evit_nas.training.settings import TrainRecord, TrainSettings
from evit_nas.training.status import Pace, Silence

if TYPE_CHECKING:
    from evit_nas.training.hardware import Hardware


WATCHED_S = (2.0, 20.0)  # least and most
WATCHED_SHARE = 1 / 150  # of the time that is to be filled: a shared machine's pace in one moment is off by half


def pace_of(
    kind: type[TrainingRun[Any]], settings: TrainSettings, hardware: Hardware, time_s: float | None = None
) -> Pace:
    """Takes a few steps of the training in a folder that is thrown away.

    Args:
        kind: what trains by such settings.
        time_s: to be filled with epochs of this pace; the more of it, the longer it is watched.

    Raises:
        UsageError: the training could not begin.
        EvitNasError: memory ran out, or the loss is not finite.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    record = TrainRecord(evit_nas=__version__, created=created, command="", settings=settings, versions={})
    with TemporaryDirectory() as scratch:
        run = kind(Path(scratch), record, Silence(), replace(hardware, trackers=()))
        try:
            least, most = WATCHED_S
            return run.pace(min(max(WATCHED_SHARE * (time_s or 0.0), least), most))
        except (RuntimeError, MemoryError) as error:
            if said := advice(error, settings.recipe, hardware, Path(scratch)):
                raise EvitNasError(f"{settings.name}: {said}") from error
            raise
        finally:
            run.end()
