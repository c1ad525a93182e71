"""The search loop: feasibility, a reference pool, an Optuna study, and the strict re-measurement of its front.

Optuna owns the trials; its storage in the run folder is the record. Facts about Optuna 5 that shape this file:

* Proposing writes each parameter to the storage, some 40 commits a trial, and a trial that was running when the
  process died stays RUNNING for ever and biases TPE. So proposals are made in memory, on a copy of the record,
  and only finished trials are recorded, each in one step: there is never half a trial on disk.
* A sampler's state is not stored. The sampler is made anew for each proposal, seeded by (seed, trials so far), so
  that a search which was killed and resumed proposes what an uninterrupted one does.
* `best_trials` repeats architectures and trusts hurried latencies: fronts come from `front.py`.
* A constraint must be set on every trial, before it is told.
"""

from __future__ import annotations

import random
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import optuna
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from evit_nas.accuracy.aggregate import RankAggregate
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.config import SearchSettings
from evit_nas.errors import EvitNasError, Infeasible, MeasurementError
from evit_nas.latency import Device, Latency, open_device
from evit_nas.runs import Run
from evit_nas.search.evaluate import Evaluator, recorded_latencies
from evit_nas.search.feasibility import Feasibility, feasibility, nothing_fits
from evit_nas.search.forecast import Forecast
from evit_nas.search.front import (
    Candidate,
    excess,
    keeps_limits,
    limit_excess,
    select,
    unbeaten,
    write_front,
)
from evit_nas.search.record import (
    Front,
    Known,
    certified,
    check_same_conditions,
    journal_of,
    load_front,
    metric_names,
    named,
    open_study,
)
from evit_nas.search.status import Status, Watcher

MAX_DEATHS = 3  # of the process while it evaluates one architecture, which may be what kills it
MAX_REPEATS = 100  # proposals in a row that were known already: the space is used up
PACE_OVER = 20  # evaluations that the estimated time to go looks back on
DOUBT_EVERY = 16  # trials: then even what is predicted to be far from the front is measured
NEAR = 1.05  # times the budget: what a hurried measurement cannot tell from it
MAX_POOL_DRAWS = 50  # random draws for each place in the pool, in a space with few distinct networks


class Search:
    """One search in one run folder; `run()` takes it from wherever it stands to the written front."""

    def __init__(self, run: Run, watcher: Watcher) -> None:
        self._run, self._watch = run, watcher
        self._settings, self._space = run.settings, run.settings.space
        self._forecasts: list[Forecast] = []

    def run(self) -> Front:
        """Searches to the total of trials and writes the certified front.

        Raises:
            Infeasible: no architecture of the space keeps the budget on the device.
        """
        with open_devices(self._settings) as devices, open_study(self._run) as record:
            evaluator = Evaluator(devices, journal_of(self._run), self._settings.seed)
            evaluator.repair()
            check_same_conditions(record, [device.context() for device in devices], self._run)
            self._announce(feasibility(evaluator, self._settings))
            pool = self._pool()
            aggregate = self._aggregate(record, evaluator, pool)
            self._forecasts = self._forecast(devices)
            self._loop(record, evaluator, aggregate, pool)
            self._certify(record, evaluator)
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

    def _pool(self) -> dict[str, tuple[ArchConfig, str]]:
        """The presets that the space holds, then distinct random architectures: key -> (arch, origin)."""
        presets = [(self._space.adapted(ArchConfig.preset(name)), name) for name in PRESETS]
        pool = {arch.key: (arch, name) for arch, name in presets if arch in self._space}
        wanted = len(pool) + self._settings.pool
        rng = random.Random(self._settings.seed)
        for _ in range(MAX_POOL_DRAWS * self._settings.pool):
            if len(pool) == wanted:
                break
            arch = self._space.sample(rng)
            pool.setdefault(arch.key, (arch, "random"))
        return pool

    def _aggregate(
        self, record: optuna.Study, evaluator: Evaluator, pool: dict[str, tuple[ArchConfig, str]]
    ) -> RankAggregate:
        """The score: ranks of the proxies within the pool."""
        stored = record.user_attrs.get("aggregate")
        if stored is not None:
            return RankAggregate.from_json(stored)
        self._watch.note(f"scoring a pool of {len(pool)} architectures, against which the others will be ranked")
        scored = []
        for done, (arch, origin) in enumerate(pool.values(), start=1):
            self._watch.step("pool", done, len(pool))
            try:
                scored.append(evaluator.proxies(arch))
            except (EvitNasError, RuntimeError, MemoryError) as error:
                self._watch.note(f"left out of the pool: {origin} {arch.key}: {error}")
        aggregate = RankAggregate.fit(scored)
        record.set_user_attr("aggregate", aggregate.to_json())
        return aggregate

    def _loop(
        self,
        record: optuna.Study,
        evaluator: Evaluator,
        aggregate: RankAggregate,
        pool: dict[str, tuple[ArchConfig, str]],
    ) -> None:
        known, moments = Known(record), deque([time.monotonic()], maxlen=PACE_OVER + 1)
        proposer = optuna.create_study(directions=record.directions)
        proposer.add_trials(record.get_trials(deepcopy=False))
        for candidate in known.candidates.values():
            self._learn(candidate.arch, candidate.latencies)
        repeats = 0
        while len(known.by_key) < self._settings.trials and repeats < MAX_REPEATS:
            untried = next((member for key, member in pool.items() if key not in known.by_key), None)
            if untried is not None:
                proposer.enqueue_trial(self._space.params(untried[0]), user_attrs={"origin": untried[1]})
            proposer.sampler = self._sampler(known.told)
            trial = proposer.ask()
            arch = self._space.suggest(trial)
            trial.set_user_attr("key", arch.key)
            trial.set_user_attr("arch", arch.model_dump(mode="json"))
            earlier = known.by_key.get(arch.key)
            values = (
                self._repeat(trial, earlier)
                if earlier
                else self._evaluate(trial, arch, known, record, evaluator, aggregate)
            )
            told = proposer.tell(trial, values, state=None if values else TrialState.FAIL)
            record.add_trial(told)
            known.add(told)
            repeats = repeats + 1 if earlier else 0
            if not earlier:
                moments.append(time.monotonic())
            pace_s = (moments[-1] - moments[0]) / max(len(moments) - 1, 1)
            self._watch.update(self._status(known, pace_s))
        if repeats == MAX_REPEATS:
            self._watch.note(f"{repeats} proposals in a row were known already: the space is used up")

    def _sampler(self, told: int) -> TPESampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # the pool is the start-up, so TPE models from its first own proposal on
            seed = (self._settings.seed * 1_000_003 + told) % 2**32  # runs with neighbouring seeds share none
            return TPESampler(seed=seed, multivariate=True, n_startup_trials=0)

    def _evaluate(
        self,
        trial: optuna.Trial,
        arch: ArchConfig,
        known: Known,
        record: optuna.Study,
        evaluator: Evaluator,
        aggregate: RankAggregate,
    ) -> list[float] | None:
        """Score and latencies of a new architecture; None for a failure, with its reason on the trial.

        A latency is measured where it may matter for the front, else predicted; the attributes tell which.
        """
        try:
            _survive(record, arch)
            proxies = evaluator.proxies(arch)
            score = aggregate.score(proxies)
            predicted_ms = self._predict(arch)
            latencies: tuple[Latency, ...] = ()
            doubted = trial.number % DOUBT_EVERY == 0
            if predicted_ms is None or doubted or self._may_reach_front(score, predicted_ms, known):
                latencies = evaluator.latencies(arch)
            memory_mb = evaluator.memory_mb(arch) if self._settings.limits.memory_mb else None
        except (EvitNasError, RuntimeError, MemoryError) as error:
            if isinstance(error, MeasurementError) and error.kind == "lost link":
                record.set_user_attr("evaluating", ("", 0))  # not the architecture's fault
                raise
            trial.set_user_attr("reason", " ".join(f"{type(error).__name__}: {error}".split()))
            return None
        self._learn(arch, latencies)
        trial.set_user_attr("proxies", proxies)
        trial.set_user_attr("predicted_ms", predicted_ms)
        trial.set_user_attr("latencies", [latency.model_dump(mode="json") for latency in latencies])
        trial.set_user_attr("memory_mb", memory_mb)
        best_known = [latency.stat_ms(self._settings.budget_stat) for latency in latencies] or predicted_ms or []
        for name, beyond in self._constraints(arch, best_known, memory_mb).items():
            trial.set_constraint(name, beyond)
        return [score, *best_known]

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
        if latencies:
            for forecast, latency in zip(self._forecasts, latencies, strict=False):  # none for the 90th percentile
                forecast.learn(arch, latency)

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

    def _certify(self, record: optuna.Study, evaluator: Evaluator) -> None:
        """Measures the front strictly until it stands: a member that falls out may let another one in.

        What missed the budget by less than a hurried measurement can tell gets its second visit here.
        """
        self._watch.note("measuring the front and the paper's networks again, strictly")
        found = Known(record).candidates
        slack = self._settings.model_copy(
            update={
                "targets": tuple(t.model_copy(update={"budget_ms": t.budget_ms * NEAR}) for t in self._settings.targets)
            }
        )
        while True:
            candidates = certified(found, recorded_latencies(journal_of(self._run), "strict"), self._settings)
            hopeful = [c for c in candidates if keeps_limits(c, self._settings if c.certified else slack)]
            members = unbeaten(hopeful, self._settings.budget_stat)
            if all(member.certified for member in members):
                break
            for done, member in enumerate(members, start=1):
                self._watch.step("strict measurement", done, len(members))
                evaluator.latencies(member.arch, strict=True)
        if not members:
            nearest = min(candidates, key=lambda c: worst_excess(c, self._settings), default=None)
            raise Infeasible(nothing_fits(self._settings, nearest.latencies if nearest else None, "that was found"))
        for name in PRESETS:
            preset = self._space.adapted(ArchConfig.preset(name))
            evaluator.proxies(preset)
            evaluator.latencies(preset, strict=True)
        write_front(self._run, named(members))


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
