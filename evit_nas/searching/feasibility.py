"""Whether anything can keep the limits, answered before a search starts, and what to say when nothing does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.config import SearchSettings
from evit_nas.errors import Infeasible, MeasurementError
from evit_nas.latency import Latency
from evit_nas.network.cost import cost
from evit_nas.searching.evaluate import Evaluator
from evit_nas.searching.objectives import OBJECTIVES, figures_of, limit_excess

UNITS = {each.metric: each.unit for each in OBJECTIVES.values()}


@dataclass(frozen=True)
class Feasibility:
    """The extremes of the space and m0..m5 on each device, before anything is searched."""

    smallest: tuple[Latency, ...]
    """Of the least in every dimension, or of the fewest MACs if the other keeps no budget."""
    largest: tuple[Latency, ...] | None
    """None if it cannot be measured."""
    presets: dict[str, tuple[Latency, ...]]
    """Those that can be measured."""


def feasibility(evaluator: Evaluator, settings: SearchSettings, note: Callable[[str], None]) -> Feasibility:
    """Measures the extremes of the space and m0..m5 at its input size. (A lowest score is for the search to find.)

    Args:
        evaluator: measures.
        settings: space, devices and limits.
        note: told which of them cannot be measured, and why; the smallest has to be.

    Raises:
        Infeasible: even the smallest architecture misses a limit; names the figure and the way out.
        MeasurementError: memory or energy is asked for and cannot be had on the first device, the smallest
            architecture cannot be measured, or the link to a device was lost.
    """
    check_sizes(settings)
    space = settings.space
    try:
        latencies = _checked(space.smallest(), evaluator, settings)
    except Infeasible:  # widths are multiples of the heads: the least in every dimension is not always the fastest
        latencies = _checked(space.cheapest(lambda arch: cost(arch).macs), evaluator, settings)

    def measured(name: str, arch: ArchConfig) -> tuple[Latency, ...] | None:
        try:
            return evaluator.latencies(arch)
        except MeasurementError as error:
            note(f"{name} cannot be measured: {error}")
            return None

    found = {name: measured(name, space.adapted(ArchConfig.preset(name))) for name in PRESETS}
    presets = {name: ms for name, ms in found.items() if ms is not None}
    return Feasibility(latencies, measured("the largest network of the space", space.largest()), presets)


def _checked(arch: ArchConfig, evaluator: Evaluator, settings: SearchSettings) -> tuple[Latency, ...]:
    """Its latencies.

    Raises:
        Infeasible: it misses a limit or a budget.
    """
    _check_limits(figures_of(arch, evaluator, settings), settings)
    latencies = evaluator.latencies(arch)
    for latency, target in zip(latencies, settings.targets, strict=True):
        if latency.stat_ms(settings.budget_stat) > target.budget_ms:
            raise Infeasible(nothing_fits(settings, latencies, "of the space"))
    return latencies


def check_sizes(settings: SearchSettings) -> None:
    """
    Raises:
        Infeasible: even the network that has the least of something countable has more than the limit.
    """
    counted = {each.metric: each.counted for each in OBJECTIVES.values() if each.counted}
    _check_limits({metric: count(settings.space.cheapest(count)) for metric, count in counted.items()}, settings)


def _check_limits(least: Mapping[str, float], settings: SearchSettings) -> None:
    """`least`: metric -> the least that a network of the space has of it."""
    numbers = {metric: [value] for metric, value in least.items()}
    beyond = limit_excess(numbers, settings)
    for objective in OBJECTIVES.values():
        if beyond.get(objective.metric, 0) > 0:
            limit = getattr(settings.limits, objective.metric)
            raise Infeasible(
                f"nothing keeps {objective.limit}: the smallest architecture of the space has "
                f"{plainly(numbers[objective.metric][0], objective.metric)}, the limit is "
                f"{plainly(limit, objective.metric)}. Raise it, or use a smaller --space."
            )


def plainly(value: float, metric: str) -> str:
    """A value of a metric as its option takes it: rounded to four digits, without an exponent, with its unit."""
    return f"{float(f'{value:.4g}'):.10f}".rstrip("0").rstrip(".") + UNITS[metric]


def nothing_fits(settings: SearchSettings, nearest: Sequence[Latency] | None, which: str) -> str:
    """The message for a search in which nothing keeps the budgets: the figure that came nearest, and the way out."""
    if nearest is None:
        return "no architecture could be evaluated; the reasons are in the run's record: evit_nas.Result(RUN).trials."
    budgets, found = [], []
    for latency, target in zip(nearest, settings.targets, strict=True):
        on = f" on {target.device}" if len(settings.targets) > 1 else ""
        budgets.append(f"{target.budget_ms:g} ms{on}")
        found.append(f"{latency.said(settings.budget_stat)}{on}")
    return (
        f"nothing keeps the budget of {' and '.join(budgets)} ({settings.budget_stat}): "
        f"the fastest architecture {which} takes {' and '.join(found)}. "
        f"Try --budget {enough(settings, nearest)}, or a --space with smaller widths, depths or images."
    )


def enough(settings: SearchSettings, latencies: Sequence[Latency]) -> str:
    """The smallest budgets that a network of these latencies keeps, as --budget takes them."""
    needed = []
    for latency, target in zip(latencies, settings.targets, strict=True):
        stat = settings.budget_stat
        ms = max(target.budget_ms, latency.stat_ms(stat) * (1 + latency.error_of(stat)) * 1.05)
        on = f"{target.device}=" if len(settings.targets) > 1 else ""
        needed.append(f"{on}{plainly(ms, 'latency_ms')}")
    return ",".join(needed)
