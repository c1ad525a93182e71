"""Where a search stands, and when it is over: read from its record, then kept up trial by trial."""

from __future__ import annotations

import itertools
import time
from collections import deque

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from evit_nas.config import SearchSettings
from evit_nas.pareto import Growth
from evit_nas.searching.attributes import TrialAttributes
from evit_nas.searching.front import Candidate, keeps_limits, points, select, unbeaten
from evit_nas.searching.objectives import worst
from evit_nas.searching.record import Known
from evit_nas.searching.status import Status

MAX_REPEATS = 100  # proposals in a row that were known already: the space is used up
PACE_OVER = 20  # evaluations that the estimated time to go looks back on
LATEST = 3  # new members that a status names
STALLED = 0.001  # a smaller growth of the hypervolume is none


class Progress:
    """The distinct architectures of a search, and the front among those that were measured, hurriedly as yet."""

    def __init__(self, settings: SearchSettings, record: optuna.Study) -> None:
        self._settings, self._record = settings, record
        self._latest: deque[tuple[int, float, float]] = deque(maxlen=LATEST)
        self.restate()
        latest = reversed(record.get_trials(deepcopy=False))
        self._repeats = sum(1 for _ in itertools.takewhile(_is_repeat, latest))
        self._begun = time.monotonic()
        self._moments = deque([self._begun], maxlen=PACE_OVER + 1)

    def restate(self) -> None:
        """Reads the record by the units that are on it now."""
        self.known = Known(self._record)
        measured = list(self.known.candidates.values())
        self._feasible = sum(keeps_limits(candidate, self._settings) for candidate in measured)
        self.front = select(measured, self._settings)
        self._stall = Stall(self._settings)
        for done, key in enumerate(self.known.by_key, start=1):
            self._stall.add(done, self.known.candidates.get(key))

    def add(self, trial: FrozenTrial) -> None:
        """Counts one more finished trial."""
        self.known.add(trial)
        self._repeats = self._repeats + 1 if _is_repeat(trial) else 0
        if self._repeats:
            return
        self._moments.append(time.monotonic())
        done, candidate = len(self.known.by_key), self.known.candidates.get(TrialAttributes(trial).key)
        self._stall.add(done, candidate)
        if candidate and keeps_limits(candidate, self._settings):
            self._feasible += 1
            self.front = unbeaten([*self.front, candidate], self._settings)
            if candidate in self.front:
                self._latest.append((done, self._ms(candidate), candidate.score))

    def _ms(self, candidate: Candidate) -> float:
        return candidate.latency.stat_ms(self._settings.budget_stat)

    def over(self) -> str:
        """Why the search ends here; empty if it goes on."""
        done, total, time_s = len(self.known.by_key), self._settings.trials, self._settings.time_s
        if done >= total:
            return f"all {total} trials are done"
        if self._repeats >= MAX_REPEATS:
            return f"{self._repeats} proposals in a row were known already: the space is used up"
        if self._settings.patience is not None and done - self._stall.grew_at >= self._settings.patience:
            return f"the front has not grown by {STALLED:.1%} over {self._settings.patience} architectures"
        if time_s is not None and time.monotonic() - self._begun >= time_s:
            return "the time is over; a resumed search takes as much again"
        return ""

    def status(self) -> Status:
        """What to tell whoever watches."""
        return Status(
            done=len(self.known.by_key),
            total=self._settings.trials,
            failed=self.known.failed,
            feasible=self._feasible,
            front=tuple((self._ms(candidate), candidate.score) for candidate in self.front),
            latest=tuple(self._latest),
            budget_ms=self._settings.targets[0].budget_ms,
            pace_s=(self._moments[-1] - self._moments[0]) / max(len(self._moments) - 1, 1),
        )


class Stall:
    """When the front last grew, by its hypervolume.

    It counts from the budgets, and from the worst of the other objectives in the pool, once that has been evaluated. If
    nothing in the pool keeps every limit, the first network that does stands for it.
    """

    def __init__(self, settings: SearchSettings) -> None:
        self._settings = settings
        self._pool: list[np.ndarray] = []
        self._growth: Growth | None = None  # once the pool is complete
        self._grown = 0.0
        self.grew_at = 0
        """Architectures that had been evaluated then."""

    def add(self, done: int, candidate: Candidate | None) -> None:
        """The architecture that was evaluated as number `done`, if it was measured."""
        new: list[np.ndarray] = []
        if candidate is not None and keeps_limits(candidate, self._settings):
            new = [*points([candidate], self._settings)]
        if self._growth is None:
            self._pool += new
            self.grew_at = done
            if done < self._settings.pool or not self._pool:
                return
            self._growth, new = Growth(worst(self._pool, self._settings)), self._pool
        for point in new:
            self._growth.add(point)
        if self._growth.volume > self._grown * (1 + STALLED):
            self._grown, self.grew_at = self._growth.volume, done


def _is_repeat(trial: FrozenTrial) -> bool:
    return TrialAttributes(trial).repeat_of is not None
