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
    front: tuple[tuple[float, float], ...]
    """Latency on the first device in milliseconds, and score, of the members so far."""
    latest: tuple[tuple[int, float, float], ...]
    """The last new members: after how many architectures, latency and score."""
    budget_ms: float
    """On the first device."""
    pace_s: float
    """Seconds for each new architecture, lately."""

    @property
    def best_score(self) -> float | None:
        """Highest score within the budget so far."""
        return max((score for _, score in self.front), default=None)

    @property
    def per_minute(self) -> float:
        """New architectures a minute, lately."""
        return 60 / self.pace_s if self.pace_s else 0.0

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
