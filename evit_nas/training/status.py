"""What a training tells whoever watches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class TrainStatus:
    """Where a training stands."""

    name: str
    epoch: int
    """Epochs that are done."""
    epochs: int
    step: int
    """Steps of the current epoch that are done."""
    steps: int
    loss: float
    """Mean training loss since the last line of metrics, in nats."""
    images_per_s: float
    """Trained images a second, since the last status."""
    eta_s: float
    """Seconds to the end, at the speed so far."""
    best_top1: float | None
    """Best validation accuracy so far in percent."""


@dataclass(frozen=True)
class Pace:
    """How long the parts of a training take, from a few steps."""

    steps: int
    """Of an epoch."""
    step_s: float
    validation_s: float
    """Of all validation images, with the weights and their average."""

    @property
    def epoch_s(self) -> float:
        """Seconds of an epoch with its validation."""
        return self.steps * self.step_s + self.validation_s


class TrainWatcher(Protocol):
    """Somebody who follows a training."""

    def note(self, message: str) -> None:
        """Something happened that stays worth knowing."""

    def trained(self, status: TrainStatus) -> None:
        """A few more steps are done."""


class Silence:
    """Watches without a word."""

    def note(self, message: str) -> None:
        """See TrainWatcher."""

    def trained(self, status: TrainStatus) -> None:
        """See TrainWatcher."""
