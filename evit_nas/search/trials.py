"""One trial: what a proposed architecture is worth and how long it takes, or the reason for which it failed."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from evit_nas.arch import ArchConfig
from evit_nas.config import SearchSettings
from evit_nas.errors import EvitNasError, MeasurementError
from evit_nas.latency import Latency
from evit_nas.search.evaluate import Evaluator
from evit_nas.search.forecast import Forecasts
from evit_nas.search.front import NEAR, limit_excess
from evit_nas.search.halving import Trained
from evit_nas.search.judges import Judge
from evit_nas.search.progress import Progress
from evit_nas.search.record import metric_names, plain
from evit_nas.search.rounds import SCREENED
from evit_nas.search.screening import screen

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
        """Score and latencies, for the trial to be told; None for a failure. The attributes say how they came about.

        A latency is measured where it may matter for the front, else predicted. What is known already gets the same
        values once more, so that the sampler moves on.

        Raises:
            MeasurementError: the link to a device was lost.
        """
        earlier = progress.known.by_key.get(arch.key)
        if earlier is not None:
            return _repeated(trial, earlier)
        try:
            _survive(self._record, arch)
            predicted = self._forecasts.predict_ms([arch])
            latencies: tuple[Latency, ...] = ()
            if predicted is None or trial.number % DOUBT_EVERY == 0:
                latencies = self._evaluator.latencies(arch)
                estimate = self._judge.estimate(arch, latencies[0].median_ms)
            else:
                estimate = self._judge.estimate(arch, float(predicted[0, 0]))
                finished = not isinstance(estimate, Trained) or not estimate.unfinished
                if finished and self._may_reach_front(estimate.value, predicted[0], progress):
                    latencies = self._evaluator.latencies(arch)
            memory_mb = self._evaluator.memory_mb(arch) if self._settings.limits.memory_mb else None
        except (EvitNasError, RuntimeError, MemoryError) as error:
            if isinstance(error, MeasurementError) and error.kind == "lost link":
                self._record.set_user_attr("evaluating", ("", 0))  # not the architecture's fault
                raise
            trial.set_user_attr("reason", " ".join(f"{type(error).__name__}: {error}".split()))
            return None
        predicted_ms: list[float] | None = None if predicted is None else predicted[0].tolist()
        trial.set_user_attr("estimate", plain(estimate))
        trial.set_user_attr("predicted_ms", predicted_ms)
        trial.set_user_attr("latencies", [latency.model_dump(mode="json") for latency in latencies])
        trial.set_user_attr("memory_mb", memory_mb)
        best_known = [latency.stat_ms(self._settings.budget_stat) for latency in latencies] or predicted_ms or []
        beyond = self._constraints(arch, best_known, memory_mb)
        if isinstance(estimate, Trained):
            trial.set_user_attr("trained", estimate.model_dump(mode="json"))
            beyond["unfinished"] = estimate.unfinished
        for name, excess in beyond.items():
            trial.set_constraint(name, excess)
        return [estimate.value, *best_known]

    def screened(self, earlier: Sequence[FrozenTrial], number: int) -> list[ArchConfig]:
        """New architectures of the front that predictions promise; none while latencies cannot be predicted."""
        rng = random.Random(f"{self._settings.seed} {number}")
        if self._forecasts.predict_ms([self._settings.space.smallest()]) is None:
            return []
        return screen(self._settings.space, [trial.params for trial in earlier], self._look, SCREENED, rng)

    def _look(self, archs: Sequence[ArchConfig]) -> tuple[np.ndarray, np.ndarray]:
        """(n, 1 + devices) lost score and latencies, and (n,) how far the furthest limit is missed; all predicted."""
        predicted = self._forecasts.predict_ms(archs)
        assert predicted is not None
        excess = [
            max(self._constraints(arch, latencies_ms, None).values())
            for arch, latencies_ms in zip(archs, predicted.tolist(), strict=True)
        ]
        return np.column_stack([-self._judge.values(archs), predicted]), np.array(excess)

    def _may_reach_front(self, score: float, predicted_ms: np.ndarray, progress: Progress) -> bool:
        """Whether it may keep every budget and be beaten by none, if its predictions are off in its favour."""
        fastest_ms = predicted_ms * (1 - self._forecasts.bands)
        if any(ms > target.budget_ms * NEAR for ms, target in zip(fastest_ms, self._settings.targets, strict=True)):
            return False
        return not any(
            member.score >= score
            and all(latency.median_ms <= ms for latency, ms in zip(member.latencies, fastest_ms, strict=True))
            for member in progress.front
        )

    def _constraints(
        self, arch: ArchConfig, latencies_ms: Sequence[float], memory_mb: float | None
    ) -> dict[str, float]:
        """Name of each limit -> how far the network lies beyond it, as a share of it; the same names in every trial."""
        triples = zip(metric_names(self._settings)[1:], latencies_ms, self._settings.targets, strict=True)
        in_time = {name: ms / target.budget_ms - 1 for name, ms, target in triples}
        return in_time | limit_excess(arch, memory_mb, self._settings.limits)


def _repeated(trial: optuna.Trial, earlier: FrozenTrial) -> list[float] | None:
    trial.set_user_attr("repeat_of", earlier.number)
    if earlier.state is not TrialState.COMPLETE:
        return None
    for name, beyond in earlier.constraints.items():
        trial.set_constraint(name, beyond)
    return list(earlier.values)


def _survive(record: optuna.Study, arch: ArchConfig) -> None:
    """Gives an architecture up if the process died whenever it was evaluated.

    Raises:
        MeasurementError: it died `MAX_DEATHS` times.
    """
    key, times = record.user_attrs.get("evaluating", ("", 0))
    deaths = times if key == arch.key else 0  # still noted although it never finished
    if deaths == MAX_DEATHS:
        raise MeasurementError(f"the process died {deaths} times while it evaluated this architecture")
    record.set_user_attr("evaluating", (arch.key, deaths + 1))
