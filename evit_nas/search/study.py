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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, TrialState

from evit_nas.accuracy.aggregate import RankAggregate
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.errors import EvitNasError, Infeasible, MeasurementError, RunError, UsageError
from evit_nas.latency import Latency, open_device
from evit_nas.runs import Journal, Run
from evit_nas.search.evaluate import Evaluator, recorded
from evit_nas.search.front import Candidate, file_name, select, write_front
from evit_nas.search.status import Status, Watcher
from evit_nas.space import SearchSpace

STUDY = "evit-nas"
MAX_DEATHS = 3  # of the process while it evaluates one architecture, which may be what kills it
MAX_REPEATS = 100  # proposals in a row that were known already: the space is used up
PACE_OVER = 20  # evaluations that the estimated time to go looks back on
MAX_POOL_DRAWS = 50  # random draws for each place in the pool, in a space with few distinct networks


@dataclass(frozen=True)
class Front:
    """The front of a run as far as it is known, and the paper's networks measured in the same run."""

    members: list[Candidate]
    references: list[Candidate]
    done: int
    total: int


@dataclass(frozen=True)
class Feasibility:
    """What the device does with the extremes of the space and with m0..m5, before anything is searched."""

    smallest: Latency
    largest: Latency
    presets: dict[str, Latency]


class Search:
    """One search in one run folder; `run()` takes it from wherever it stands to the written front."""

    def __init__(self, run: Run, watcher: Watcher) -> None:
        self._run, self._watch = run, watcher
        self._settings, self._space = run.settings, run.settings.space
        self._budget = run.settings.budget_ms

    def run(self) -> Front:
        """Searches to the total of trials and writes the certified front.

        Raises:
            Infeasible: no architecture of the space keeps the budget on the device.
        """
        with open_device(self._settings.device) as device, open_study(self._run) as record:
            evaluator = Evaluator(device, journal_of(self._run), self._settings.seed)
            evaluator.repair()
            _check_same_conditions(record, device.context(), self._run)
            self._announce(feasibility(evaluator, self._space, self._budget))
            pool = self._pool()
            aggregate = self._aggregate(record, evaluator, pool)
            self._loop(record, evaluator, aggregate, pool)
            self._certify(record, evaluator)
        return load_front(self._run)

    def _announce(self, found: Feasibility) -> None:
        within = [name for name, latency in found.presets.items() if latency.median_ms <= self._budget]
        self._watch.note(
            f"the space spans {found.smallest} to {found.largest}; "
            f"of the paper's networks {', '.join(within) or 'none'} keep {self._budget:g} ms"
        )
        if found.largest.median_ms <= self._budget:
            self._watch.note("even the largest network keeps the budget: a smaller budget or a larger space says more")

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
                self._repeat(trial, earlier) if earlier else self._evaluate(trial, arch, record, evaluator, aggregate)
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
        record: optuna.Study,
        evaluator: Evaluator,
        aggregate: RankAggregate,
    ) -> list[float] | None:
        """Score and latency of a new architecture; None for a failure, with its reason on the trial."""
        try:
            _survive(record, arch)
            proxies, latency = evaluator.proxies(arch), evaluator.latency(arch)
            score = aggregate.score(proxies)
        except (EvitNasError, RuntimeError, MemoryError) as error:
            trial.set_user_attr("reason", " ".join(f"{type(error).__name__}: {error}".split()))
            return None
        trial.set_user_attr("proxies", proxies)
        trial.set_user_attr("latency", latency.model_dump())
        trial.set_constraint("latency_ms", latency.median_ms - self._budget)
        return [score, latency.median_ms]

    def _repeat(self, trial: optuna.Trial, earlier: FrozenTrial) -> list[float] | None:
        """A known architecture's values once more, so that the sampler moves on."""
        trial.set_user_attr("repeat_of", earlier.number)
        if earlier.state is not TrialState.COMPLETE:
            return None
        trial.set_constraint("latency_ms", earlier.values[1] - self._budget)
        return list(earlier.values)

    def _status(self, known: Known, pace_s: float) -> Status:
        feasible = [c for c in known.candidates.values() if c.latency.median_ms <= self._budget]
        return Status(
            done=len(known.by_key),
            total=self._settings.trials,
            failed=len(known.by_key) - len(known.candidates),
            feasible=len(feasible),
            front=len(select(feasible, self._budget)),
            best_score=max((c.score for c in feasible), default=None),
            pace_s=pace_s,
        )

    def _certify(self, record: optuna.Study, evaluator: Evaluator) -> None:
        """Measures the front strictly until it stands: a member that falls out may let another one in."""
        self._watch.note("measuring the front and the paper's networks again, strictly")
        found, journal = Known(record).candidates, journal_of(self._run)
        while True:
            candidates = _certified(found, recorded(journal, "strict"))
            members = select(candidates, self._budget)
            if all(member.certified for member in members):
                break
            for done, member in enumerate(members, start=1):
                self._watch.step("strict measurement", done, len(members))
                evaluator.latency(member.arch, strict=True)
        if not members:
            nearest = min(candidates, key=lambda c: c.latency.median_ms, default=None)
            raise Infeasible(_nothing_fits(self._budget, nearest.latency if nearest else None, "that was found"))
        for name in PRESETS:
            preset = self._space.adapted(ArchConfig.preset(name))
            evaluator.proxies(preset)
            evaluator.latency(preset, strict=True)
        write_front(self._run, _named(members))


def feasibility(evaluator: Evaluator, space: SearchSpace, budget_ms: float) -> Feasibility:
    """Measures the extremes of the space and m0..m5 at its input size.

    Raises:
        Infeasible: even the smallest architecture misses the budget; names its latency and the way out.
    """
    smallest = evaluator.latency(space.smallest())
    if smallest.median_ms > budget_ms:
        raise Infeasible(_nothing_fits(budget_ms, smallest, "of the space"))
    presets = {name: evaluator.latency(space.adapted(ArchConfig.preset(name))) for name in PRESETS}
    return Feasibility(smallest, evaluator.latency(space.largest()), presets)


def load_front(run: Run) -> Front:
    """The front from the run's record alone: nothing is measured and nothing is written.

    Members are certified once the search has ended; before that they carry their search-time latency.

    Raises:
        UsageError: the run has not evaluated anything yet.
    """
    if not (run.path / "study.db").exists():
        raise UsageError(f"{run.path} has no trials yet. Continue it with: evit-nas resume {run.path}")
    with open_study(run) as study:
        known, aggregate = Known(study), study.user_attrs.get("aggregate")
    strict = recorded(journal_of(run), "strict")
    members = select(_certified(known.candidates, strict), run.settings.budget_ms)
    references = []
    if aggregate is not None:
        proxies = recorded(journal_of(run), "proxies")
        for name in PRESETS:
            arch = run.settings.space.adapted(ArchConfig.preset(name))
            if arch.key in strict and arch.key in proxies:
                score = RankAggregate.from_json(aggregate).score(proxies[arch.key])
                latency = Latency.model_validate(strict[arch.key])
                references.append(Candidate(name, arch, score, latency, certified=True, trial=None))
    return Front(_named(members), references, done=len(known.by_key), total=run.settings.trials)


def load_aggregate(run: Run) -> RankAggregate:
    """The score of a run.

    Raises:
        UsageError: the run has not scored its pool yet.
    """
    with open_study(run) as study:
        stored = study.user_attrs.get("aggregate")
    if stored is None:
        raise UsageError(f"{run.path} has not scored its pool yet. Continue it with: evit-nas resume {run.path}")
    return RankAggregate.from_json(stored)


def journal_of(run: Run) -> Journal:
    """Everything measured in the run."""
    return Journal(run.path / "measurements.jsonl")


class Known:
    """The distinct architectures of a study, by key."""

    def __init__(self, study: optuna.Study) -> None:
        self.by_key: dict[str, FrozenTrial] = {}
        self.candidates: dict[str, Candidate] = {}  # those that did not fail
        self.told = 0  # trials, repeats included: the sampler's clock
        for trial in study.get_trials(deepcopy=False):
            self.add(trial)

    def add(self, trial: FrozenTrial) -> None:
        """Counts one more finished trial."""
        self.told += 1
        if "repeat_of" in trial.user_attrs:
            return
        key = trial.user_attrs["key"]
        self.by_key[key] = trial
        if trial.state is TrialState.COMPLETE:
            arch = ArchConfig.model_validate(trial.user_attrs["arch"])
            latency = Latency.model_validate(trial.user_attrs["latency"])
            self.candidates[key] = Candidate("", arch, trial.values[0], latency, certified=False, trial=trial.number)


@contextmanager
def open_study(run: Run) -> Iterator[optuna.Study]:
    """The run's Optuna study, made if there is none; its database is closed at the end."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    url = f"sqlite:///{run.path / 'study.db'}"
    storage = optuna.storages.RDBStorage(url)
    try:
        study = optuna.create_study(
            storage=storage, study_name=STUDY, directions=["maximize", "minimize"], load_if_exists=True
        )
        if study.metric_names is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                study.set_metric_names(["score", "latency_ms"])
        yield study
    finally:
        storage.engine.dispose()


def _check_same_conditions(study: optuna.Study, here: dict[str, str], run: Run) -> None:
    """Refuses to continue a run under conditions that make its latencies incomparable."""
    before = study.user_attrs.get("conditions")
    if before is None:
        study.set_user_attr("conditions", here)
        return
    changes = [
        f"{name} was {before.get(name)}, here it is {value}"
        for name, value in here.items()
        if before.get(name) != value
    ]
    if changes:
        raise RunError(
            f"{run.path} cannot be continued here, its latencies would not compare: {'; '.join(changes)}. "
            "Start a new search instead; the front that was found stays as it is."
        )


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


def _certified(candidates: dict[str, Candidate], strict: dict[str, dict[str, Any]]) -> list[Candidate]:
    """The candidates, with their strict latency wherever one is on record."""
    return [
        replace(c, latency=Latency.model_validate(strict[key]), certified=True) if key in strict else c
        for key, c in candidates.items()
    ]


def _named(members: list[Candidate]) -> list[Candidate]:
    """Members with file names; where several would share one, the key tells them apart."""
    names = [file_name(member) for member in members]
    return [
        replace(member, name=name if names.count(name) == 1 else f"{name}-{member.arch.key[:4]}")
        for member, name in zip(members, names, strict=True)
    ]


def _nothing_fits(budget_ms: float, nearest: Latency | None, which: str) -> str:
    if nearest is None:
        return "no architecture could be evaluated; the reasons are in the run's study.db."
    return (
        f"nothing keeps the budget of {budget_ms:g} ms: the fastest architecture {which} takes {nearest}. "
        f"Try --budget {nearest.high_ms * 1.05:.2g}ms, or a --space with smaller widths, depths or images."
    )
