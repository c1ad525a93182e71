"""What a run has found, read once from its record for whatever shows it.

Measured and predicted latencies stay apart: a network is in `measured` or in `predicted`, never in both. One whose
training was stopped early is in neither.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from evit_nas.arch import PRESETS, ArchConfig, StageConfig
from evit_nas.config import SearchSettings
from evit_nas.latency import Latency
from evit_nas.latency.references import PUBLISHED_TOP1, MeasuredReference, known_references
from evit_nas.latency.yardstick import Units, said_by
from evit_nas.pareto import Growth
from evit_nas.regime import IMAGENET
from evit_nas.runs import Run
from evit_nas.searching.attributes import StudyAttributes, TrialAttributes
from evit_nas.searching.evaluate import recorded_latencies
from evit_nas.searching.front import Candidate, keeps_limits, points
from evit_nas.searching.objectives import worst
from evit_nas.searching.record import Front, Known, certified, journal_of, load_front, stopped
from evit_nas.searching.selection import pick
from evit_nas.searching.storage import discreet, open_study
from evit_nas.searching.units import predictions

MIN_TRIALS = 50  # for importances: they compare the best tenth with the rest, and fewer than five networks say nothing
MAX_TRIALS = 2000  # for importances: their cost grows with the square


@dataclass(frozen=True)
class Predicted:
    """An architecture that was evaluated without being measured."""

    arch: ArchConfig
    score: float
    predicted_ms: tuple[float, ...]
    """On each device."""
    trial: int


@dataclass(frozen=True)
class Backtest:
    """What one device was predicted to take, and what it took when it was measured right after."""

    predicted_ms: list[float]
    measured_ms: list[float]
    names: list[str]


@dataclass(frozen=True)
class Findings:
    """A run at one moment; devices are in the order of its targets."""

    settings: SearchSettings
    front: Front
    measured: list[Candidate]
    predicted: list[Predicted]
    failed: int
    stopped: int
    """Networks whose training was stopped early: they have no score to compare."""
    unfinished: list[Candidate]
    """Those of them that were measured."""
    given_up: int
    """Measured networks that could not be measured strictly."""
    forecasts: list[Backtest]
    """One for each device; empty lists where nothing was predicted."""
    convergence: list[tuple[int, float]]
    """Evaluations so far, and the hypervolume of what they found as a share of the last one."""
    pool: int
    """How many evaluations were chosen before the search began."""
    importance: dict[str, float]
    """Share of each parameter, largest first; empty with too few networks."""
    params: dict[str, dict[str, Any]]
    """Key of an architecture -> the values that the sampler chose for it."""
    references: list[list[MeasuredReference]]
    """Popular networks measured before on each device, under the same conditions."""


def find(run: Run) -> Findings:
    """The findings of a run so far; nothing is measured and nothing is written.

    Raises:
        UsageError: the run has not evaluated anything yet.
    """
    front, settings = load_front(run), run.settings
    with open_study(run) as study:
        known, directions = Known(study), study.directions
        contexts = StudyAttributes(study).conditions
    evaluated = [trial for trial in known.by_key.values() if trial.state is TrialState.COMPLETE]
    complete = [trial for trial in evaluated if not stopped(trial)]
    measured = certified(known.candidates, recorded_latencies(journal_of(run), "strict", known.units), settings)
    seen = [trial for trial in evaluated if TrialAttributes(trial).measured]
    return Findings(
        settings=settings,
        front=front,
        measured=measured,
        predicted=[_predicted(one, known.units, settings) for one in complete if not TrialAttributes(one).measured],
        failed=sum(trial.state is TrialState.FAIL for trial in known.by_key.values()),
        stopped=len(evaluated) - len(complete),
        unfinished=[*known.stopped.values()],
        given_up=len(seen) - len(known.candidates) - len(known.stopped),
        forecasts=[_forecast(index, seen, known.units, settings) for index in range(len(settings.targets))],
        convergence=_convergence(known, settings),
        pool=_pool([TrialAttributes(trial).origin for trial in known.by_key.values()], settings),
        importance=_importance([trial for trial in seen if _feasible(trial)], directions),
        params={key: trial.params for key, trial in known.by_key.items()},
        references=[_references(context, known.units) for context in contexts],
    )


def _pool(origins: Sequence[str | None], settings: SearchSettings) -> int:
    """How many networks came before what was proposed; a sampler may be called random as well."""
    first = [*takewhile(lambda origin: origin == "random" or origin in PRESETS, origins)]
    return len(first) - max(first.count("random") - settings.pool, 0)


def nearest(found: Findings) -> Candidate | None:
    """The measured network that is fastest on the first device: what to name when none keeps the budget."""
    stat = found.settings.budget_stat
    return min(found.measured or found.unfinished, key=lambda c: c.latency.stat_ms(stat), default=None)


def highlights(found: Findings) -> list[tuple[list[str], Candidate]]:
    """What to look at first, with what it is: best, knee, fastest; one member may be several of them."""
    members = found.front.members
    titles: dict[str, list[str]] = {}
    for what in ("best", "knee", "fastest") if members else ():
        titles.setdefault(pick(members, what, found.settings).name, []).append(what)
    return [(what, next(member for member in members if member.name == name)) for name, what in titles.items()]


def published_top1(reference: Candidate, found: Findings) -> float | None:
    """What a network of the paper reached on ImageNet, in percent; None where that and the score are two scales.

    They are one where the score is for ImageNet, and the network takes the images and has the classes of the paper's.
    """
    if found.settings.accuracy.regime != IMAGENET or reference.name not in PRESETS:
        return None
    own = reference.arch.key == ArchConfig.preset(reference.name).key
    return PUBLISHED_TOP1[reference.name] if own else None


def spread_text(latency: Latency) -> str:
    """The uncertainty of a latency, for example ± 1.2 %."""
    return f"± {100 * max(latency.rel_error, 0.001):.1f} %"  # never ± 0.0 %


def in_budget(found: Findings) -> int:
    """How many measured networks keep every limit."""
    return sum(keeps_limits(candidate, found.settings) for candidate in found.measured)


def sketch(arch: ArchConfig) -> str:
    """The stages in one line, for example 96×3 none → 176×2 softmax·3 → 336×3 linear·4 (width × depth mixer·heads)."""
    return " → ".join(f"{stage.width}×{stage.depth} {_mixer(stage)}" for stage in arch.stages)


def _mixer(stage: StageConfig) -> str:
    if stage.mixer == "none":
        return "none"
    parallel = " parallel" if stage.mixer == "softmax" and stage.heads > 1 and not stage.cascade else ""
    return f"{stage.mixer}·{stage.heads}{parallel}"


def _feasible(trial: FrozenTrial) -> bool:
    return all(beyond <= 0 for beyond in trial.constraints.values())


def _references(context: dict[str, str], units: Units) -> list[MeasuredReference]:
    """Popular networks measured before in a device's context, by the run's units."""
    known = known_references(context)
    latencies = said_by(units, [one.latency for one in known])
    return [replace(one, latency=latency) for one, latency in zip(known, latencies, strict=True)]


def _predicted(trial: FrozenTrial, units: Units, settings: SearchSettings) -> Predicted:
    on_record, predicted_ms = TrialAttributes(trial), predictions(trial, units, settings)
    return Predicted(on_record.arch, on_record.estimate.value, tuple(predicted_ms), trial.number)


def _forecast(index: int, seen: Iterable[FrozenTrial], units: Units, settings: SearchSettings) -> Backtest:
    both = [trial for trial in seen if TrialAttributes(trial).predicted_ms is not None]
    measured = [said_by(units, TrialAttributes(trial).latencies)[index] for trial in both]
    return Backtest(
        predicted_ms=[predictions(trial, units, settings)[index] for trial in both],
        measured_ms=[latency.median_ms for latency in measured],
        names=[f"trial {trial.number}" for trial in both],
    )


def _convergence(known: Known, settings: SearchSettings) -> list[tuple[int, float]]:
    """Measured against the budgets and the worst of other objectives within them; hurried latencies count."""
    within = {key: one for key, one in known.candidates.items() if keeps_limits(one, settings)}
    if not within:
        return []
    found = points([*within.values()], settings)
    growth = Growth(worst([*found], settings))
    volume = {key: growth.add(point) for key, point in zip(within, found, strict=True)}
    last = volume[[*within][-1]] or 1.0  # 0 if none lies inside the corner that it counts from
    shares, share = [], 0.0
    for count, key in enumerate(known.by_key, start=1):
        share = volume.get(key, share * last) / last
        shares.append((count, share))
    return shares


def _importance(within: Sequence[FrozenTrial], directions: Sequence[optuna.study.StudyDirection]) -> dict[str, float]:
    """What tells the networks nearest to the front from the others within the budget, by PED-ANOVA.

    It takes parameters that exist in some trials only, and several objectives at once; the latest trials count.
    """
    if len(within) < MIN_TRIALS:
        return {}
    with _quiet(), discreet():
        return optuna.importance.get_param_importances(_study(within[-MAX_TRIALS:], directions))


def _study(trials: Sequence[FrozenTrial], directions: Sequence[optuna.study.StudyDirection]) -> optuna.Study:
    """A study of just these trials, in memory."""
    study = optuna.create_study(directions=directions)
    study.add_trials(trials)
    return study


def _quiet() -> warnings.catch_warnings[None]:
    """Without the warnings that a function is experimental, and that a rare choice has few trials."""
    return warnings.catch_warnings(action="ignore")
