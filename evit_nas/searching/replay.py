"""One trial once more: by the same judge, on the same devices, each number beside the one on record.

Nothing is taken from the run's memo and nothing is written to the run.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from evit_nas.accuracy import Estimate, RungEstimate
from evit_nas.arch import ArchConfig
from evit_nas.config import SearchSettings
from evit_nas.errors import MeasurementError, RunError, UsageError, in_a_line
from evit_nas.files import Journal
from evit_nas.latency import Latency
from evit_nas.latency.yardstick import Units, said_by
from evit_nas.runs import Run, explained
from evit_nas.searching.attributes import StudyAttributes, TrialAttributes
from evit_nas.searching.evaluate import Evaluator
from evit_nas.searching.judges import judge_of
from evit_nas.searching.objectives import MEASURED, directions, figures_of, latency_names
from evit_nas.searching.record import check_same_conditions
from evit_nas.searching.status import Watcher
from evit_nas.searching.storage import open_study
from evit_nas.searching.study import open_devices
from evit_nas.searching.units import predictions

SAME = 1e-6  # share of a score: sums of floats in another order
DAYS_APART = 0.1  # share of a latency: 90 % of a front's moved by less than 8 % (docs/results/remeasure.md)
ERRORS = 3.0  # standard errors of a difference that chance explains


@dataclass(frozen=True)
class ReplayCheck:
    """One number on record, and what it is now."""

    name: str
    recorded: float
    now: float
    allowed: float | None
    """Share of the recorded number by which it may differ; None for a prediction, which nothing is held against."""

    @property
    def change(self) -> float:
        """Difference as a share of the recorded number."""
        return (self.now - self.recorded) / abs(self.recorded) if self.recorded else self.now

    @property
    def holds(self) -> bool:
        """Whether the number is what it was."""
        return self.allowed is None or abs(self.change) <= self.allowed


@dataclass(frozen=True)
class Replay:
    """What a trial came to when it was evaluated again."""

    trial: int
    """Its number; of a repeat, that of the trial that it repeats."""
    arch: ArchConfig
    checks: list[ReplayCheck]
    """Empty where one of the two evaluations failed."""
    recorded_failure: str
    """Reason on record; empty for a trial that succeeded."""
    failure: str
    """Reason of the failure now; empty if it succeeded."""

    @property
    def holds(self) -> bool:
        """Whether the record is confirmed: every number, or the failure."""
        return bool(self.recorded_failure) == bool(self.failure) and all(check.holds for check in self.checks)


def replay(run: Run, number: int, watcher: Watcher) -> Replay:
    """Evaluates trial `number` of a run again; a latency that does not hold gets a second visit, a strict one.

    Raises:
        UsageError: there is no such trial.
        RunError: the run is being written, or its judge, devices or machine are not those of the record.
    """
    if owner := run.owner():
        raise RunError(f"{run.path} is being written by {owner}: two measurements at a time spoil both. Wait for it.")
    with tempfile.TemporaryDirectory() as scratch, explained(run.path), open_study(run) as record:
        place, workers = Path(scratch), int(run.settings.accuracy.method in ("short", "supernet"))  # as a search trains
        trial = _find(record.get_trials(deepcopy=False), number, run.path)
        arch = TrialAttributes(trial).arch
        memory = optuna.create_study(directions=directions(run.settings))  # a judge may write
        for name, value in record.user_attrs.items():
            memory.set_user_attr(name, value)
        with (
            open_devices(run.settings) as devices,
            Evaluator(devices, Journal(place / "measurements.jsonl"), run.settings.seed, workers) as evaluator,
        ):
            check_same_conditions(memory, [device.context() for device in devices], run)
            evaluator.units = StudyAttributes(record).units  # what is compared is ratios
            judge = judge_of(run, evaluator, memory, (), watcher, labels=place / "labels")
            before = TrialAttributes(trial).reason if trial.state is TrialState.FAIL else ""
            try:
                estimate, latencies = judge.again(arch, trial), evaluator.latencies(arch)
                figures = figures_of(arch, evaluator, run.settings)
                if before:
                    return Replay(trial.number, arch, [], before, "")
                checks = list(_checks(trial, run.settings, estimate, latencies, figures, evaluator.units))
                if not all(check.holds for check in checks):
                    latencies = evaluator.latencies(arch, strict=True)
                    checks = list(_checks(trial, run.settings, estimate, latencies, figures, evaluator.units))
            except (MeasurementError, RuntimeError, MemoryError) as error:
                failure = in_a_line(error, kind=True)
                return Replay(trial.number, arch, [], before, failure)
    return Replay(trial.number, arch, checks, before, "")


def _find(trials: Sequence[FrozenTrial], number: int, path: Path) -> FrozenTrial:
    if not 0 <= number < len(trials):
        numbers = f"its trials are 0 to {len(trials) - 1}" if trials else "it has no trials yet"
        raise UsageError(f"{path} has no trial {number}; {numbers}.")
    original = TrialAttributes(trials[number]).repeat_of
    return trials[number if original is None else original]


def _checks(
    trial: FrozenTrial,
    settings: SearchSettings,
    estimate: Estimate,
    latencies: Sequence[Latency],
    figures: Mapping[str, float],
    units: Units,
) -> Iterator[ReplayCheck]:
    on_record, names = TrialAttributes(trial), latency_names(settings)
    yield _score_check(on_record, estimate)
    measured = said_by(units, on_record.latencies)
    if measured:
        for name, before, now in zip(names, measured, latencies, strict=True):
            allowed = max(DAYS_APART, ERRORS * math.hypot(before.rel_error, now.rel_error))
            yield ReplayCheck(name, before.stat_ms(settings.budget_stat), now.stat_ms(settings.budget_stat), allowed)
    else:
        for name, ms, now in zip(names, predictions(trial, units, settings), latencies, strict=True):
            yield ReplayCheck(f"{name} (predicted)", ms, now.median_ms, None)
    for metric, was in on_record.figures.items():
        if metric in figures:
            yield ReplayCheck(metric, was, figures[metric], MEASURED[metric].again)


def _score_check(on_record: TrialAttributes, now: Estimate) -> ReplayCheck:
    """The score, with what it was and is trained on where that is no processor: a GPU sums in any order, and trainings
    of the same network then differ by chance.
    """
    before, was = on_record.trained, on_record.estimate.value
    if before is None or not isinstance(now, RungEstimate) or before.device == now.device == "cpu":
        return ReplayCheck("score", was, now.value, SAME)
    points = ERRORS * math.hypot(before.error or now.error, now.error)  # up to 0.3 none is on record
    name = f"score (trained on {before.device}, now on {now.device})"
    return ReplayCheck(name, was, now.value, points / (abs(was) or 1))
