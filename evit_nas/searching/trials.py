"""One trial: what a proposed architecture is worth and how long it takes, or the reason for which it failed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from evit_nas.accuracy import Estimate, RungEstimate
from evit_nas.arch import ArchConfig
from evit_nas.config import SearchSettings
from evit_nas.errors import Interrupted, MeasurementError, in_a_line
from evit_nas.latency import Latency
from evit_nas.latency.yardstick import Units, said_by
from evit_nas.searching.attributes import StudyAttributes, TrialAttributes
from evit_nas.searching.evaluate import Evaluator
from evit_nas.searching.forecast import Forecasts
from evit_nas.searching.front import NEAR, points
from evit_nas.searching.judge import Judge
from evit_nas.searching.objectives import (
    OBJECTIVES,
    Numbers,
    asked,
    figures_of,
    latency_names,
    limit_excess,
    losses,
    numbers_of,
    values,
)
from evit_nas.searching.progress import Progress
from evit_nas.searching.rounds import SCREENED
from evit_nas.searching.screening import screen
from evit_nas.searching.storage import for_samplers

MAX_DEATHS = 3  # of the process while it evaluates one architecture, which may be what kills it
DOUBT_EVERY = 16  # trials: then even what is predicted to be far from the front is measured


class Trials:
    """Evaluates the proposals of one search."""

    def __init__(
        self,
        settings: SearchSettings,
        record: optuna.Study,
        evaluator: Evaluator,
        judge: Judge,
        forecasts: Forecasts,
    ) -> None:
        self._settings, self._record = settings, record
        self._evaluator, self._judge, self._forecasts = evaluator, judge, forecasts

    def values(self, trial: optuna.Trial, arch: ArchConfig, progress: Progress) -> list[float] | None:
        """What the trial is to be told; None for a failure. The attributes say how it came about.

        A latency is measured where it may matter for the front, else predicted. What is known already gets the same
        values once more, so that the sampler moves on.

        Raises:
            LostLink: the link to a device was lost.
            UsageError: a device or a node of the cluster refuses: it is set up in another way than before.
        """
        on_record = TrialAttributes(trial)
        on_record.units = {**self._evaluator.units}
        earlier = progress.known.by_key.get(arch.key)
        if earlier is not None:
            return _repeated(trial, earlier)
        try:
            _survive(self._record, arch)
            predicted = self._forecasts.predict_ms([arch], self._evaluator.units)
            figures = figures_of(arch, self._evaluator, self._settings)
            measured: tuple[Latency, ...] = ()
            if predicted is None or trial.number % DOUBT_EVERY == 0:
                measured = self._evaluator.measured(arch)
                [first, *_] = said_by(self._evaluator.units, measured)
                estimate = self._estimate(trial, arch, first.stat_ms(self._settings.budget_stat))
            else:
                estimate = self._estimate(trial, arch, float(predicted[0, 0]))
                finished = not isinstance(estimate, RungEstimate) or not estimate.unfinished
                fastest_ms = (predicted[0] * (1 - self._forecasts.bands)).tolist()
                hopeful = numbers_of(arch, estimate.value, fastest_ms, figures)
                if finished and self._may_reach_front(hopeful, progress):
                    measured = self._evaluator.measured(arch)
        except (MeasurementError, RuntimeError, MemoryError) as error:
            on_record.reason = in_a_line(error, kind=True)
            return None
        except (Exception, Interrupted, KeyboardInterrupt):
            _alive(self._record)
            raise
        predicted_ms: list[float] | None = None if predicted is None else predicted[0].tolist()
        on_record.estimate, on_record.predicted_ms, on_record.latencies = estimate, predicted_ms, measured
        on_record.figures = figures
        said = said_by(self._evaluator.units, measured)
        best_known = [latency.stat_ms(self._settings.budget_stat) for latency in said] or predicted_ms or []
        numbers = numbers_of(arch, estimate.value, best_known, figures)
        beyond = self._constraints(numbers)
        if isinstance(estimate, RungEstimate):
            beyond["unfinished"] = estimate.unfinished
        for name, excess in beyond.items():
            trial.set_constraint(name, excess)
        return values(numbers, self._settings)

    def _estimate(self, trial: optuna.Trial, arch: ArchConfig, latency_ms: float) -> Estimate:
        estimate = self._judge.estimate(arch, latency_ms)
        if isinstance(estimate, RungEstimate):  # on record even if the trial fails later: others are held against it
            TrialAttributes(trial).trained = estimate
        return estimate

    def screened(self, earlier: Sequence[FrozenTrial], number: int, units: Units) -> list[ArchConfig]:
        """New architectures of the front that predictions promise; none while a number that counts is not predicted."""
        rng = random.Random(f"{self._settings.seed} {number}")
        if any(each.measured and asked(name, self._settings) for name, each in OBJECTIVES.items()):
            return []
        if self._forecasts.predict_ms([self._settings.space.smallest()], units) is None:
            return []
        look = partial(self._look, units=units)
        return screen(self._settings.space, [trial.params for trial in earlier], look, SCREENED, rng)

    def _look(self, archs: Sequence[ArchConfig], units: Units) -> tuple[np.ndarray, np.ndarray]:
        """(n, m) losses, and (n,) how far the furthest limit is missed; all predicted."""
        predicted = self._forecasts.predict_ms(archs, units)
        assert predicted is not None
        triples = zip(archs, self._judge.values(archs).tolist(), predicted.tolist(), strict=True)
        found = [numbers_of(arch, score, latencies_ms) for arch, score, latencies_ms in triples]
        excess = [max(self._constraints(numbers).values()) for numbers in found]
        return np.array([losses(numbers, self._settings) for numbers in found]), np.array(excess)

    def _may_reach_front(self, hopeful: Numbers, progress: Progress) -> bool:
        """Whether it may keep every limit and be beaten by none, if its latencies are what they are at best."""
        in_time = zip(hopeful["latency_ms"], self._settings.targets, strict=True)
        if any(ms > target.budget_ms * NEAR for ms, target in in_time):
            return False
        if any(beyond > 0 for beyond in limit_excess(hopeful, self._settings).values()):
            return False
        if not progress.front:
            return True
        no_worse = points(progress.front, self._settings) <= losses(hopeful, self._settings)  # (members, m)
        return not no_worse.all(1).any()

    def _constraints(self, numbers: Numbers) -> dict[str, float]:
        """Name of each limit -> how far the network lies beyond it; the same names in every trial."""
        triples = zip(latency_names(self._settings), numbers["latency_ms"], self._settings.targets, strict=True)
        in_time = {name: ms / target.budget_ms - 1 for name, ms, target in triples}
        return in_time | limit_excess(numbers, self._settings)


def _repeated(trial: optuna.Trial, earlier: FrozenTrial) -> list[float] | None:
    on_record = TrialAttributes(trial)
    on_record.repeat_of, on_record.units = earlier.number, TrialAttributes(earlier).units
    if earlier.state is not TrialState.COMPLETE:
        return None
    for name, beyond in for_samplers(earlier).constraints.items():
        trial.set_constraint(name, beyond)
    return list(earlier.values)


def _survive(record: optuna.Study, arch: ArchConfig) -> None:
    """Gives an architecture up if the process died whenever it was evaluated.

    Raises:
        MeasurementError: it died `MAX_DEATHS` times.
    """
    on_record = StudyAttributes(record)
    key, times = on_record.evaluating
    deaths = times if key == arch.key else 0  # still noted although it never finished
    if deaths == MAX_DEATHS:
        raise MeasurementError(f"the process died {deaths} times while it evaluated this architecture")
    on_record.evaluating = (arch.key, deaths + 1)


def _alive(record: optuna.Study) -> None:
    """Takes the death back that `_survive` expects: the process ends, but not of the architecture."""
    StudyAttributes(record).evaluating = ("", 0)
