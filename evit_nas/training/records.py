"""What a training writes and says while it goes; in several processes only the first does, all of them call.

A file that cannot be written is named and costs nothing but itself: training goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from evit_nas import __version__
from evit_nas.errors import RunError
from evit_nas.files import Journal
from evit_nas.trained import WEIGHTS
from evit_nas.training import checkpoint
from evit_nas.training.curve import write_curve
from evit_nas.training.folder import BEST, CHECKPOINT, CURVE, METRICS
from evit_nas.training.settings import TrainSettings
from evit_nas.training.status import TrainWatcher

LINES_AN_EPOCH = 10  # of training loss


class Finished(Protocol):
    """What a training came to."""

    @property
    def name(self) -> str:
        """What was trained."""

    def save(self, folder: Path) -> None:
        """Writes it beside the weights."""


class Records:
    """The files of one training folder, the trackers and whoever watches.

    Args:
        accelerator: of accelerate; knows the trackers and which process is the first.
    """

    def __init__(self, folder: Path, settings: TrainSettings, accelerator: Any, watch: TrainWatcher) -> None:
        self._folder, self._settings, self._accelerator, self._watch = folder, settings, accelerator, watch
        self._writes = accelerator.is_main_process
        self._journal = Journal(folder / METRICS)
        self.lines = 0
        """Of metrics, so far."""

    def state(self) -> checkpoint.State | None:
        """The last one that was saved."""
        return checkpoint.load_state(self._folder / CHECKPOINT)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The lines of metrics."""
        return self._journal.read()

    def cut(self, lines: int) -> None:
        """Keeps the first `lines` of the metrics: the others belong to a later state than the last one saved."""
        self.lines = lines
        if self._writes:
            self._journal.repair()
            self._journal.cut(lines)

    def log(self, row: dict[str, Any], at: int = 0) -> None:
        """A line of metrics; its figures go to the trackers too, as those of step `at`."""
        self.lines += self._kept(lambda: self._journal.append(row))  # True is 1: what was not written is no line
        numbers = {f"{row['kind']}/{k}": v for k, v in row.items() if isinstance(v, float)}
        self._accelerator.log(numbers, step=at)

    def note(self, message: str) -> None:
        """A word to whoever watches."""
        if self._writes:
            self._watch.note(message)

    def save_state(self, state: checkpoint.State) -> None:
        """Takes the place of the last one."""
        self._kept(lambda: checkpoint.save_state(self._folder / CHECKPOINT, state))

    def save_best(self, weights: checkpoint.Tensors) -> bool:
        """The weights that validated best so far; says if they were written."""
        origin = {"evit_nas.arch": self._settings.arch.model_dump_json(), "evit_nas.version": __version__}
        return self._kept(lambda: checkpoint.save_weights(self._folder / BEST, weights, origin))

    def finish(self, result: Finished, notes: Sequence[str]) -> None:
        """Hands over the best weights with what they are, after the last `notes`.

        Raises:
            RunError: something cannot be written; training has ended, so resuming does only this.
        """
        if self._writes:
            for note in notes:
                self.note(note)
            try:
                write_curve(list(self.rows()), result.name, self._folder / CURVE)
                result.save(self._folder)
                # says that the training is finished, so what may fail comes before
                (self._folder / BEST).replace(self._folder / WEIGHTS)
                (self._folder / CHECKPOINT).unlink(missing_ok=True)
            except OSError as error:
                raise RunError(
                    f"cannot write {self._folder}: {error.strerror}. Put that right, then add --resume; the training "
                    "itself is done."
                ) from None
        self._accelerator.wait_for_everyone()

    def _kept(self, write: Callable[[], None]) -> bool:
        if not self._writes:
            return True
        try:
            write()
        except OSError as error:
            self.note(f"{self._settings.name}: cannot save in {self._folder}: {error.strerror}; training goes on")
            return False
        return True


def steps_a_line(steps: int) -> int:
    """Of an epoch of so many steps, those that a line of training loss is about."""
    return max(1, steps // LINES_AN_EPOCH)
