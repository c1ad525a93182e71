"""The numbers of a candidate that a search may optimise, limit, or both. To add one: a row in OBJECTIVES.

Optuna is told a value for each objective (of the latency: for each device) and a constraint for each limit, the same
ones in every trial. What is asked of the device only because of them (memory, energy) is measured only then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
from optuna.study import StudyDirection

from evit_nas.arch import ArchConfig
from evit_nas.config import SearchSettings
from evit_nas.network.cost import cost
from evit_nas.quantities import parse_energy, parse_quantity

if TYPE_CHECKING:
    from evit_nas.searching.evaluate import Evaluator


@dataclass(frozen=True)
class DeviceFigure:
    """What there is to know of a number that a device is asked for because a search wants it."""

    ask: Callable[[Evaluator, ArchConfig], float]
    """Raises MeasurementError where the device cannot tell."""
    digits: int
    """Behind the point, in files."""
    heading: str
    """Of its column in the table of a front."""
    form: str
    """Of a cell there."""
    again: float
    """Share by which it may differ when it is measured once more."""


@dataclass(frozen=True)
class Objective:
    """One number of a candidate."""

    metric: str
    """What its values are called, with the unit: a name of `Numbers`, and of the field of `Limits` that limits it."""
    higher_is_better: bool
    limit: str
    """The option that limits it."""
    parse: Callable[[str], float] = float
    """What that option takes, in the unit of the metric. (Budgets belong to devices: `quantities.parse_budgets`.)"""
    unit: str = ""
    """As that option takes it."""
    counted: Callable[[ArchConfig], int] | None = None
    """Known from the architecture alone."""
    measured: DeviceFigure | None = None
    """Asked of the first device, if a search asks for it."""


OBJECTIVES = {
    "score": Objective("score", True, "--min-score"),
    "latency": Objective("latency_ms", False, "--budget", unit="ms"),
    "params": Objective(
        "params",
        False,
        "--max-params",
        parse=lambda text: round(parse_quantity(text, "--max-params")),
        counted=lambda arch: cost(arch).params,
    ),
    "macs": Objective(
        "macs",
        False,
        "--max-macs",
        parse=lambda text: round(parse_quantity(text, "--max-macs")),
        counted=lambda arch: cost(arch).macs,
    ),
    "memory": Objective(
        "memory_mb",
        False,
        "--max-memory",
        parse=lambda text: parse_quantity(text, "--max-memory") / 1e6,
        unit="MB",
        measured=DeviceFigure(
            lambda evaluator, arch: evaluator.memory_mb(arch), digits=2, heading="MB", form="{:.0f}", again=0.05
        ),
    ),
    "energy": Objective(
        "energy_mj",
        False,
        "--max-energy",
        parse=parse_energy,
        unit="mJ",
        measured=DeviceFigure(  # the counters tick slowly, and the idle draw is taken off
            lambda evaluator, arch: evaluator.energy_mj(arch), digits=4, heading="mJ", form="{:.2f}", again=0.2
        ),
    ),
}
MEASURED = {each.metric: each.measured for each in OBJECTIVES.values() if each.measured}
"""By metric, in the order of columns."""

NO_FIGURES: Mapping[str, float] = MappingProxyType({})

Numbers = Mapping[str, Sequence[float]]
"""Metric -> its values: one, but for the latency one for each device; what nobody asks for may be missing."""


def asked(name: str, settings: SearchSettings) -> bool:
    """Whether a search has to know that number of every candidate: it is an objective, or limited."""
    limited = getattr(settings.limits, OBJECTIVES[name].metric, None) is not None
    return name in settings.objectives or limited


def figures_of(arch: ArchConfig, evaluator: Evaluator, settings: SearchSettings) -> dict[str, float]:
    """What the device is asked for besides the latency because the search wants it, by metric.

    Raises:
        MeasurementError: it cannot tell.
    """
    wanted = [each for name, each in OBJECTIVES.items() if asked(name, settings)]
    return {each.metric: each.measured.ask(evaluator, arch) for each in wanted if each.measured}


def numbers_of(
    arch: ArchConfig, score: float, latencies_ms: Sequence[float], figures: Mapping[str, float] = NO_FIGURES
) -> Numbers:
    """Numbers of a candidate by metric; `figures` are those of `figures_of`, as far as they are known."""
    counted = {each.metric: [each.counted(arch)] for each in OBJECTIVES.values() if each.counted}
    return {"score": [score], "latency_ms": latencies_ms, **counted, **{name: [v] for name, v in figures.items()}}


def values(numbers: Numbers, settings: SearchSettings) -> list[float]:
    """What a trial is told, objective by objective."""
    return [value for name in settings.objectives for value in numbers[OBJECTIVES[name].metric]]


def losses(numbers: Numbers, settings: SearchSettings) -> np.ndarray:
    """(m,) the same, all of it to be minimised."""
    signs = [-1 if way is StudyDirection.MAXIMIZE else 1 for way in directions(settings)]
    return np.array(values(numbers, settings)) * signs


def directions(settings: SearchSettings) -> list[StudyDirection]:
    """Which way each value of a trial is better."""
    ways = {True: StudyDirection.MAXIMIZE, False: StudyDirection.MINIMIZE}
    return [ways[OBJECTIVES[name].higher_is_better] for name in settings.objectives for _ in _places(name, settings)]


def metric_names(settings: SearchSettings) -> list[str]:
    """What the values of a trial are called."""
    return [metric for name in settings.objectives for metric in _places(name, settings)]


def latency_names(settings: SearchSettings) -> list[str]:
    """What the latency on each device is called."""
    one = len(settings.targets) == 1
    return ["latency_ms" if one else f"latency_ms@{target.device}" for target in settings.targets]


def worst(seen: Sequence[np.ndarray], settings: SearchSettings) -> np.ndarray:
    """(m,) the corner from which hypervolume counts: the budgets, and of other objectives the greatest loss seen."""
    corner = np.max(seen, axis=0)
    budgets = {f: target.budget_ms for f, target in zip(latency_names(settings), settings.targets, strict=True)}
    return np.array([budgets.get(name, loss) for name, loss in zip(metric_names(settings), corner, strict=True)])


def limit_excess(numbers: Numbers, settings: SearchSettings) -> dict[str, float]:
    """Metric of each limit besides the budgets -> how far a candidate lies beyond it; zero or less keeps it.

    It is a share of the limit, but for the score, which may be negative, a difference. What is not known yet is left
    out.
    """
    beyond = {}
    for objective in OBJECTIVES.values():
        limit = getattr(settings.limits, objective.metric, None)
        if limit is None or objective.metric not in numbers:
            continue
        [value] = numbers[objective.metric]
        beyond[objective.metric] = limit - value if objective.higher_is_better else value / limit - 1
    return beyond


def _places(name: str, settings: SearchSettings) -> list[str]:
    """The metrics of one objective: for the latency one on each device."""
    return latency_names(settings) if name == "latency" else [OBJECTIVES[name].metric]
