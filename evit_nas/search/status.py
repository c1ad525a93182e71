"""What a search tells whoever watches it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Status:
    """Where a search stands."""

    done: int
    total: int
    failed: int
    feasible: int
    front: int
    best_score: float | None
    """Highest score within the budget so far."""
    pace_s: float
    """Seconds for each new architecture, lately."""

    @property
    def eta_s(self) -> float:
        """Seconds to go at that pace."""
        return self.pace_s * max(self.total - self.done, 0)


class Watcher(Protocol):
    """Gets told what a search does; the CLI draws it."""

    def note(self, message: str) -> None:
        """One sentence worth reading."""

    def step(self, what: str, done: int, total: int) -> None:
        """Progress of what comes before and after the trials."""

    def update(self, status: Status) -> None:
        """Called after every trial."""
