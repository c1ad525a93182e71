"""The report's charts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from evit_nas.pareto import non_dominated
from evit_nas.report.charts import Axis, Box, Chart, Corner, Point, Rule, Series, Tick, linear, logarithmic, named
from evit_nas.searching.findings import Backtest, Findings, highlights, published_top1, sketch, spread_text
from evit_nas.searching.front import Candidate, score_text

SHOWN_PARAMS = 12  # of the most important ones
MAX_TICKS = 6  # of an axis that has a tick for each of its values
CLOSE = 1.2  # times the latency: too close for two labels side by side
FEW = 3  # members; fewer have no course to follow
CHOICES = 8  # parameters that are followed along the front


def figures(found: Findings) -> dict[str, Chart]:
    """The charts that the run has data for, by the id of their place on the page; `pareto-0` is the first device's."""
    devices = range(len(found.settings.targets))
    scored = found.measured or found.predicted  # else there is no axis to draw
    drawn = {f"pareto-{index}": pareto(found, index) for index in devices if scored}
    drawn |= {f"forecast-{i}": forecast(found.forecasts[i]) for i in devices if found.forecasts[i].names}
    if found.convergence:
        drawn["convergence"] = convergence(found)
    if found.importance:
        drawn["importance"] = importance(found.importance)
    return drawn | {f"choice-{number}": chart for number, chart in enumerate(choices(found))}


def staircase(members: Sequence[Candidate], index: int, stat: str) -> tuple[list[float], list[float]]:
    """Latencies and scores of the members that no other one beats on that device, fastest first."""
    # (n, 2), of a front without members too
    points = np.array([(member.latencies[index].stat_ms(stat), -member.score) for member in members]).reshape(-1, 2)
    kept = points[non_dominated(points)]
    kept = kept[kept[:, 0].argsort()]
    return kept[:, 0].tolist(), (-kept[:, 1]).tolist()


def pareto(found: Findings, index: int) -> Chart:
    """Score against latency on one device: all that was evaluated, the front, the paper's networks, the budget."""
    stat, target, front = found.settings.budget_stat, found.settings.targets[index], found.front
    shown_apart = {one.arch.key for one in [*front.members, *front.references]}
    others = [one for one in found.measured if one.arch.key not in shown_apart]
    predicted = [
        Point(
            one.predicted_ms[index],
            one.score,
            f"trial {one.trial}, never measured\npredicted {one.predicted_ms[index]:.2f} ms\n{sketch(one.arch)}",
        )
        for one in found.predicted
    ]
    titles = {member.name: ", ".join(what) for what, member in highlights(found)}
    members = [
        replace(_point(one, index, stat), to=one.name, label=titles.get(one.name, ""), corner="above left")
        for one in front.members
    ]
    papers: list[Point] = []
    for one in front.references:
        point, top1 = _point(one, index, stat), published_top1(one, found)
        known = f"\npublished on ImageNet: {top1:.1f} %" if top1 else ""
        crowded = papers and papers[-1].corner == "below right" and point.x < CLOSE * papers[-1].x  # m3 and m4 are
        corner: Corner = "above right" if crowded else "below right"
        papers.append(replace(point, tip=point.tip + known, label=one.name, corner=corner))
    certified = [point for one, point in zip(front.members, members, strict=True) if one.certified]
    provisional = [point for one, point in zip(front.members, members, strict=True) if not one.certified]
    measured = [replace(_point(one, index, stat), x_bar=None, y_bar=None) for one in others]
    series = [
        Series("predicted only", "faint", predicted, "ring", 3),
        Series("measured", "faint", measured, size=3),
        Series("", "front", line=_stairs(*staircase(front.members, index, stat), end=target.budget_ms)),
        Series("the paper’s m0–m5", "reference", papers, "square", 4),
        Series("front", "front", certified),
        Series("front, not certified", "front", provisional, "diamond"),
    ]
    points = [point for one in series for point in one.points]
    return Chart(
        f"score against {stat} latency on {target.device}",
        logarithmic(
            f"{stat} latency on {target.device} (ms)",
            [target.budget_ms, *(ms for point in points for ms in (point.x, *(point.x_bar or ())))],
        ),
        linear("score, higher is better", [score for point in points for score in (point.y, *(point.y_bar or ()))]),
        [one for one in series if one.points or one.line],
        height_px=460,
        rules=[Rule(f"budget {target.budget_ms:g} ms", "budget", x=target.budget_ms)],
    )


def _point(candidate: Candidate, index: int, stat: str) -> Point:
    """A measured network with its intervals."""
    latency = candidate.latencies[index]
    ms = latency.stat_ms(stat)
    error = ms * latency.rel_error
    lines = [
        f"{candidate.name or f'trial {candidate.trial}'}, {'certified' if candidate.certified else 'measured once'}",
        f"{latency.median_ms:.2f} ms {spread_text(latency)}, p90 {latency.p90_ms:.2f} ms",
        f"score {score_text(candidate)}, {candidate.params / 1e6:.2f} M params, {candidate.macs / 1e6:.0f} M MACs",
        sketch(candidate.arch),
    ]
    return Point(ms, candidate.score, "\n".join(lines), (ms - error, ms + error), candidate.interval)


def _stairs(xs: Sequence[float], ys: Sequence[float], end: float) -> list[tuple[float, float]]:
    """A line that keeps each y until the next x, and the last one until `end`."""
    ends = [*xs[1:], max(end, *xs)] if xs else []
    return [corner for x, y, to in zip(xs, ys, ends, strict=True) for corner in ((x, y), (to, y))]


def convergence(found: Findings) -> Chart:
    """Hypervolume of the feasible front over evaluations."""
    evaluations, shares = zip(*found.convergence, strict=True)
    changes = [0, *(place for place, (a, b) in enumerate(pairwise(shares), start=1) if a != b)]
    line = _stairs([evaluations[i] for i in changes], [shares[i] for i in changes], evaluations[-1])
    begun = [Rule("the search begins", "muted", x=found.pool)] if 0 < found.pool < len(evaluations) else []
    return Chart(
        "share of the final hypervolume over evaluations",
        linear("distinct networks evaluated", evaluations, whole=True),
        linear("share of the final hypervolume", shares, form=".0%", zero=True),
        [Series("", "front", line=line)],
        height_px=240,
        rules=begun,
    )


def importance(shares: dict[str, float]) -> Chart:
    """The parameters that matter most for the front."""
    top = list(shares.items())[:SHOWN_PARAMS][::-1]
    bars = [
        Box((0, share), (place - 0.3, place + 0.3), f"{name}\n{share:.1%}") for place, (name, share) in enumerate(top)
    ]
    return Chart(
        "importance of the parameters",
        linear("share of importance", [share for _, share in top], form=".0%", zero=True),
        named("", [name for name, _ in top]),
        [Series("", "front", boxes=bars)],
        height_px=24 * len(top),
    )


def choices(found: Findings) -> Iterator[Chart]:
    """One chart for each parameter that tells the members apart, the most important ones: its value along the front."""
    members, stat = found.front.members, found.settings.budget_stat
    if len(members) < FEW:
        return
    chosen = [found.params[member.arch.key] for member in members]
    names = [name for name in found.importance or chosen[0] if len({repr(one.get(name)) for one in chosen}) > 1]
    ms = [member.latency.stat_ms(stat) for member in members]
    for name in names[:CHOICES]:
        axis, places = _values([one.get(name) for one in chosen])
        points = [
            Point(x, y, f"{member.name}\n{name}: {_text(one.get(name))}", to=member.name)
            for member, one, x, y in zip(members, chosen, ms, places, strict=True)
        ]
        series = [Series("", "front", points)]
        yield Chart(f"{name} along the front", logarithmic("", ms), replace(axis, title=name), series, height_px=96)


def _values(values: Sequence[Any]) -> tuple[Axis, list[float]]:
    """An axis for the values of one parameter, and where each stands: numbers as they are, all else by its place."""
    kinds = sorted(set(values), key=lambda value: (isinstance(value, str | None), str(value)))
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in kinds):
        axis = linear("", kinds, margin=0.15)
        few = [Tick(value, f"{value:g}") for value in sorted(kinds)]
        return (replace(axis, ticks=few) if len(kinds) <= MAX_TICKS else axis), [float(value) for value in values]
    return named("", [_text(value) for value in kinds]), [float(kinds.index(value)) for value in values]


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {True: "yes", False: "no", None: "–"}[value]
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def forecast(one: Backtest) -> Chart:
    """Latency predicted against measured; on the diagonal they agree."""
    every_ms = one.predicted_ms + one.measured_ms
    ends = (min(every_ms), max(every_ms))
    points = [
        Point(
            measured,
            predicted,
            f"{name}\npredicted {predicted:.2f} ms, measured {measured:.2f} ms ({predicted / measured - 1:+.1%})",
        )
        for name, predicted, measured in zip(one.names, one.predicted_ms, one.measured_ms, strict=True)
    ]
    return Chart(
        "latency predicted against measured",
        logarithmic("measured (ms)", ends),
        logarithmic("predicted (ms)", ends),
        [Series("", "muted", line=[(ends[0], ends[0]), (ends[1], ends[1])], dashed=True), Series("", "front", points)],
        height_px=360,
    )
