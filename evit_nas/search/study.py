"""The search loop: feasibility, a judge of accuracy, rounds of candidates, and the strict re-measurement of the front.

Optuna proposes (`rounds.py`); its storage in the run folder is the record. Only finished trials are recorded, each in
one step, so there is never half a trial on disk. Facts about Optuna 5 that shape this file:

* `best_trials` repeats architectures and trusts hurried latencies: fronts come from `front.py`.
* A constraint must be set on every trial, before it is told.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.config import SearchSettings
from evit_nas.errors import EvitNasError, Infeasible, MeasurementError
from evit_nas.latency import Device, Latency, open_device
from evit_nas.runs import Run
from evit_nas.search.evaluate import Evaluator, recorded_latencies
from evit_nas.search.feasibility import Feasibility, feasibility, nothing_fits
from evit_nas.search.forecast import Forecast
from evit_nas.search.front import (
    NEAR,
    Candidate,
    excess,
    keeps_limits,
    limit_excess,
    select,
    write_front,
)
from evit_nas.search.judges import Judge, judge_of
from evit_nas.search.record import (
    Front,
    Known,
    certified,
    check_same_conditions,
    directions,
    journal_of,
    load_front,
    metric_names,
    named,
    open_study,
    standing,
)
from evit_nas.search.rounds import SCREENED, Round, Rounds, Screening
from evit_nas.search.screening import screen
from evit_nas.search.status import Status, Watcher

MAX_DEATHS = 3  # of the process while it evaluates one architecture, which may be what kills it
MAX_REPEATS = 100  # proposals in a row that were known already: the space is used up
PACE_OVER = 20  # evaluations that the estimated time to go looks back on
DOUBT_EVERY = 16  # trials: then even what is predicted to be far from the front is measured
MAX_POOL_DRAWS = 50  # random draws for each place in the pool, in a space with few distinct networks


class Search:
    """One search in one run folder; `run()` takes it from wherever it stands to the written front."""

    def __init__(self, run: Run, watcher: Watcher) -> None:
        self._run, self._watch = run, watcher
        self._settings, self._space = run.settings, run.settings.space
        self._forecasts: list[Forecast] = []
        self._learnt: set[str] = set()  # by the forecasts

    def run(self) -> Front:
        """Searches to the total of trials and writes the certified front.

        Raises:
            Infeasible: no architecture of the space keeps the budget on the device.
        """
        with open_devices(self._settings) as devices, open_study(self._run) as record:
            workers = self._settings.workers
            with Evaluator(devices, journal_of(self._run), self._settings.seed, workers) as evaluator:
                evaluator.repair()
                check_same_conditions(record, [device.context() for device in devices], self._run)
                self._announce(feasibility(evaluator, self._settings))
                pool = self._pool()
                judge = judge_of(self._run, evaluator, record, pool, self._watch)
                self._forecasts = self._forecast(devices)
                if len(Known(record).by_key) < self._settings.trials:
                    self._loop(record, evaluator, judge, pool)
                self._certify(record, evaluator, judge)
        return load_front(self._run)

    def _announce(self, found: Feasibility) -> None:
        for index, target in enumerate(self._settings.targets):
            ms = {
                name: latencies[index].stat_ms(self._settings.budget_stat) for name, latencies in found.presets.items()
            }
            within = [name for name in ms if ms[name] <= target.budget_ms]
            self._watch.note(
                f"the space spans {found.smallest[index]} to {found.largest[index]} on {target.device}; "
                f"of the paper's networks {', '.join(within) or 'none'} keep {target.budget_ms:g} ms"
            )
            if found.largest[index].stat_ms(self._settings.budget_stat) <= target.budget_ms:
                self._watch.note(
                    f"even the largest network keeps the budget on {target.device}: "
                    "a smaller budget or a larger space says more"
                )

    def _pool(self) -> list[tuple[ArchConfig, str]]:
        """The presets that the space holds, then distinct random architectures, each with where it comes from."""
        presets = [(self._space.adapted(ArchConfig.preset(name)), name) for name in PRESETS]
        pool = {arch.key: (arch, name) for arch, name in presets if arch in self._space}
        wanted = len(pool) + self._settings.pool
        rng = random.Random(self._settings.seed)
        for _ in range(MAX_POOL_DRAWS * self._settings.pool):
            if len(pool) == wanted:
                break
            arch = self._space.sample(rng)
            pool.setdefault(arch.key, (arch, "random"))
        return list(pool.values())

    def _loop(
        self, record: optuna.Study, evaluator: Evaluator, judge: Judge, pool: Sequence[tuple[ArchConfig, str]]
    ) -> None:
        known, moments = Known(record), deque([time.monotonic()], maxlen=PACE_OVER + 1)
        begun, repeats = time.monotonic(), 0
        screening = self._screening(judge) if judge.immediate else None
        ahead = 0 if judge.immediate or not self._settings.workers else 1
        rounds = Rounds(self._settings, directions(self._settings), pool, screening, ahead)
        for current in self._rounds(rounds, record, judge):
            done = {trial.number for trial in record.get_trials(deepcopy=False)}
            for trial, arch in current.proposals:
                if trial.number in done:
                    self._learn_again(record.get_trials(deepcopy=False)[trial.number])
                    continue
                if len(known.by_key) >= self._settings.trials or self._out_of_time(begun) or repeats >= MAX_REPEATS:
                    break
                earlier = known.by_key.get(arch.key)
                values = (
                    self._repeat(trial, earlier)
                    if earlier
                    else self._evaluate(trial, arch, known, record, evaluator, judge)
                )
                told = current.finish(trial, values)
                record.add_trial(told)
                known.add(told)
                repeats = repeats + 1 if earlier else 0
                if not earlier:
                    moments.append(time.monotonic())
                pace_s = (moments[-1] - moments[0]) / max(len(moments) - 1, 1)
                self._watch.update(self._status(known, pace_s))
            else:
                continue
            break
        if repeats >= MAX_REPEATS:
            self._watch.note(f"{repeats} proposals in a row were known already: the space is used up")
        if self._out_of_time(begun):
            self._watch.note(f"the time is over after {len(known.by_key)} of {self._settings.trials} trials")

    def _out_of_time(self, begun: float) -> bool:
        return self._settings.time_s is not None and time.monotonic() - begun >= self._settings.time_s

    def _rounds(self, rounds: Rounds, record: optuna.Study, judge: Judge) -> Iterator[Round]:
        """The rounds from the first that is not wholly on record; what they hold is begun in the background."""
        trials = record.get_trials(deepcopy=False)
        number = max((trial.user_attrs["round"] for trial in trials), default=0)
        pending: Sequence[optuna.Trial | FrozenTrial] = [t for t in trials if t.user_attrs["round"] == number - 1]
        made: deque[Round] = deque()
        while True:
            told = [t for t in record.get_trials(deepcopy=False) if t.user_attrs["round"] < number - rounds.ahead]
            for trial in told:
                self._learn_again(trial)
            made.append(rounds.make(number, told, pending if rounds.ahead else ()))
            for _, arch in made[-1].proposals:
                judge.expect(arch)
            pending = [trial for trial, _ in made[-1].proposals]
            number += 1
            if len(made) > rounds.ahead:
                yield made.popleft()

    def _screening(self, judge: Judge) -> Screening:
        """Proposes the front that predictions promise, once latencies can be predicted on every device."""

        def look(archs: Sequence[ArchConfig]) -> tuple[np.ndarray, np.ndarray]:
            predicted = [forecast.predict_all_ms(archs) for forecast in self._forecasts]
            columns = np.column_stack([ms for ms in predicted if ms is not None])
            excess = [
                max(self._constraints(arch, list(ms), None).values()) for arch, ms in zip(archs, columns, strict=True)
            ]
            return np.column_stack([-judge.values(archs), columns]), np.array(excess)

        def candidates(earlier: Sequence[FrozenTrial], number: int) -> list[ArchConfig]:
            known = [ArchConfig.model_validate(trial.user_attrs["arch"]) for trial in earlier]
            if self._predict(known[0]) is None:
                return []
            self._watch.step("looking for candidates", number, number)
            return screen(self._space, known, look, SCREENED, random.Random(f"{self._settings.seed} {number}"))

        return candidates

    def _evaluate(
        self,
        trial: optuna.Trial,
        arch: ArchConfig,
        known: Known,
        record: optuna.Study,
        evaluator: Evaluator,
        judge: Judge,
    ) -> list[float] | None:
        """Score and latencies of a new architecture; None for a failure, with its reason on the trial.

        A latency is measured where it may matter for the front, else predicted; the attributes tell which.
        """
        try:
            _survive(record, arch)
            estimate = judge.estimate(arch)
            predicted_ms = self._predict(arch)
            latencies: tuple[Latency, ...] = ()
            doubted = trial.number % DOUBT_EVERY == 0
            if predicted_ms is None or doubted or self._may_reach_front(estimate.value, predicted_ms, known):
                latencies = evaluator.latencies(arch)
            memory_mb = evaluator.memory_mb(arch) if self._settings.limits.memory_mb else None
        except (EvitNasError, RuntimeError, MemoryError) as error:
            if isinstance(error, MeasurementError) and error.kind == "lost link":
                record.set_user_attr("evaluating", ("", 0))  # not the architecture's fault
                raise
            trial.set_user_attr("reason", " ".join(f"{type(error).__name__}: {error}".split()))
            return None
        self._learn(arch, latencies)
        trial.set_user_attr("estimate", estimate.model_dump(mode="json"))
        trial.set_user_attr("predicted_ms", predicted_ms)
        trial.set_user_attr("latencies", [latency.model_dump(mode="json") for latency in latencies])
        trial.set_user_attr("memory_mb", memory_mb)
        best_known = [latency.stat_ms(self._settings.budget_stat) for latency in latencies] or predicted_ms or []
        for name, beyond in self._constraints(arch, best_known, memory_mb).items():
            trial.set_constraint(name, beyond)
        return [estimate.value, *best_known]

    def _forecast(self, devices: Sequence[Device]) -> list[Forecast]:
        """What predicts the latency on each device; nothing does for a budget on the 90th percentile."""
        if self._settings.budget_stat != "median":
            return []
        return [Forecast(device, self._space, self._run.path, self._watch.note) for device in devices]

    def _predict(self, arch: ArchConfig) -> list[float] | None:
        """The predicted latency on each device in milliseconds; None unless it can be told for all."""
        predicted = [forecast.predict_ms(arch) for forecast in self._forecasts]
        return [ms for ms in predicted if ms is not None] if predicted and None not in predicted else None

    def _may_reach_front(self, score: float, predicted_ms: Sequence[float], known: Known) -> bool:
        """Whether it may keep every budget and be beaten by none, if predictions are off as usual, in its favour."""
        fastest = [ms * (1 - forecast.band) for ms, forecast in zip(predicted_ms, self._forecasts, strict=True)]
        if any(ms > target.budget_ms * NEAR for ms, target in zip(fastest, self._settings.targets, strict=True)):
            return False
        return not any(
            c.score >= score
            and all(latency.median_ms <= ms for latency, ms in zip(c.latencies, fastest, strict=True))
            and keeps_limits(c, self._settings)
            for c in known.candidates.values()
        )

    def _learn(self, arch: ArchConfig, latencies: Sequence[Latency]) -> None:
        """Takes a measurement into the forecasts, once."""
        if latencies and arch.key not in self._learnt:
            self._learnt.add(arch.key)
            for forecast, latency in zip(self._forecasts, latencies, strict=False):  # none for the 90th percentile
                forecast.learn(arch, latency)

    def _learn_again(self, trial: FrozenTrial) -> None:
        """Takes a measurement on record into the forecasts, in a search that was resumed."""
        if trial.user_attrs["key"] not in self._learnt and trial.user_attrs.get("latencies"):
            latencies = [Latency.model_validate(latency) for latency in trial.user_attrs["latencies"]]
            self._learn(ArchConfig.model_validate(trial.user_attrs["arch"]), latencies)

    def _constraints(
        self, arch: ArchConfig, latencies_ms: Sequence[float], memory_mb: float | None
    ) -> dict[str, float]:
        """Name of each limit -> how far the network lies beyond it, as a share of it; the same names in every trial."""
        triples = zip(metric_names(self._settings)[1:], latencies_ms, self._settings.targets, strict=True)
        in_time = {name: ms / target.budget_ms - 1 for name, ms, target in triples}
        return in_time | limit_excess(arch, memory_mb, self._settings.limits)

    def _repeat(self, trial: optuna.Trial, earlier: FrozenTrial) -> list[float] | None:
        """A known architecture's values once more, so that the sampler moves on."""
        trial.set_user_attr("repeat_of", earlier.number)
        if earlier.state is not TrialState.COMPLETE:
            return None
        for name, beyond in earlier.constraints.items():
            trial.set_constraint(name, beyond)
        return list(earlier.values)

    def _status(self, known: Known, pace_s: float) -> Status:
        feasible = [c for c in known.candidates.values() if keeps_limits(c, self._settings)]
        return Status(
            done=len(known.by_key),
            total=self._settings.trials,
            failed=known.failed,
            feasible=len(feasible),
            front=len(select(feasible, self._settings)),
            best_score=max((c.score for c in feasible), default=None),
            pace_s=pace_s,
        )

    def _certify(self, record: optuna.Study, evaluator: Evaluator, judge: Judge) -> None:
        """Measures the front strictly until it stands: a member that falls out may let another one in.

        What missed the budget by less than a hurried measurement can tell gets its second visit here.
        """
        self._watch.note("measuring the front and the paper's networks again, strictly")
        found = Known(record).candidates
        while True:
            candidates = certified(found, recorded_latencies(journal_of(self._run), "strict"), self._settings)
            members = standing(candidates, self._settings)
            if all(member.certified for member in members):
                break
            for done, member in enumerate(members, start=1):
                self._watch.step("strict measurement", done, len(members))
                evaluator.latencies(member.arch, strict=True)
        if not members:
            nearest = min(candidates, key=lambda c: worst_excess(c, self._settings), default=None)
            raise Infeasible(nothing_fits(self._settings, nearest.latencies if nearest else None, "that was found"))
        presets = {name: self._space.adapted(ArchConfig.preset(name)) for name in PRESETS}
        estimates = {name: judge.estimate(arch).model_dump(mode="json") for name, arch in presets.items()}
        record.set_user_attr("references", estimates)
        for arch in presets.values():
            evaluator.latencies(arch, strict=True)
        write_front(self._run, named(members), judge.origin)


@contextmanager
def open_devices(settings: SearchSettings) -> Iterator[list[Device]]:
    """Every device of a search, ready to measure; all are closed at the end."""
    with ExitStack() as stack:
        yield [stack.enter_context(open_device(target.conditions)) for target in settings.targets]


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


def worst_excess(candidate: Candidate, settings: SearchSettings) -> float:
    """How far a candidate is beyond the budget where it is furthest, as a share of it."""
    pairs = zip(candidate.latencies, settings.targets, strict=True)
    return max(excess(la, candidate.certified, target, settings.budget_stat) for la, target in pairs)
