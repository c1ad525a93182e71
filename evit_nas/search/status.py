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
    seconds: float
    """Since this process began to search."""
    fresh: int
    """Architectures that this process evaluated."""

    @property
    def eta_s(self) -> float:
        """Seconds to go at the pace so far."""
        return self.seconds / max(self.fresh, 1) * max(self.total - self.done, 0)


class Watcher(Protocol):
    """Gets told what a search does; the CLI draws it."""

    def note(self, message: str) -> None:
        """One sentence worth reading."""

    def update(self, status: Status) -> None:
        """Called after every trial."""
