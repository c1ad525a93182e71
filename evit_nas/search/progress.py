"""Where a search stands, and when it is over: read from its record, then kept up trial by trial."""

from __future__ import annotations

import itertools
import time
from collections import deque

import optuna
from optuna.trial import FrozenTrial

from evit_nas.config import SearchSettings
from evit_nas.search.front import keeps_limits, select, unbeaten
from evit_nas.search.record import Known
from evit_nas.search.status import Status

MAX_REPEATS = 100  # proposals in a row that were known already: the space is used up
PACE_OVER = 20  # evaluations that the estimated time to go looks back on


class Progress:
    """The distinct architectures of a search, and the front among those that were measured, hurriedly as yet."""

    def __init__(self, settings: SearchSettings, record: optuna.Study) -> None:
        self._settings, self.known = settings, Known(record)
        measured = list(self.known.candidates.values())
        self._feasible = sum(keeps_limits(candidate, settings) for candidate in measured)
        self.front = select(measured, settings)
        latest = reversed(record.get_trials(deepcopy=False))
        self._repeats = sum(1 for _ in itertools.takewhile(_is_repeat, latest))
        self._begun = time.monotonic()
        self._moments = deque([self._begun], maxlen=PACE_OVER + 1)

    def add(self, trial: FrozenTrial) -> None:
        """Counts one more finished trial."""
        self.known.add(trial)
        self._repeats = self._repeats + 1 if _is_repeat(trial) else 0
        if self._repeats:
            return
        self._moments.append(time.monotonic())
        candidate = self.known.candidates.get(trial.user_attrs["key"])
        if candidate and keeps_limits(candidate, self._settings):
            self._feasible += 1
            self.front = unbeaten([*self.front, candidate], self._settings.budget_stat)

    def over(self) -> str:
        """Why the search ends here; empty if it goes on."""
        done, total, time_s = len(self.known.by_key), self._settings.trials, self._settings.time_s
        if done >= total:
            return f"all {total} trials are done"
        if self._repeats >= MAX_REPEATS:
            return f"{self._repeats} proposals in a row were known already: the space is used up"
        if time_s is not None and time.monotonic() - self._begun >= time_s:
            return f"the time is over after {done} of {total} trials"
        return ""

    def status(self) -> Status:
        """What to tell whoever watches."""
        return Status(
            done=len(self.known.by_key),
            total=self._settings.trials,
            failed=self.known.failed,
            feasible=self._feasible,
            front=len(self.front),
            best_score=max((candidate.score for candidate in self.front), default=None),
            pace_s=(self._moments[-1] - self._moments[0]) / max(len(self._moments) - 1, 1),
        )


def _is_repeat(trial: FrozenTrial) -> bool:
    return "repeat_of" in trial.user_attrs
