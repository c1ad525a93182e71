"""The four charts of an analysis, in the colours of the report's page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from evit_nas.analysis.proportion import Proportion
from evit_nas.analysis.results import INNER, Analysis, Kind
from evit_nas.analysis.suggest import kept
from evit_nas.latency.profile import Profile, memory_bound
from evit_nas.report.charts import Box, Chart, Colour, Point, Rule, Series, Symbol, linear, named

BOUND: Colour = "reference"
COMPUTE: Colour = "front"
NETWORKS: tuple[Colour, ...] = ("front", "reference", "budget", "muted")
STAGES: tuple[Colour, ...] = ("low", "front", "reference", "budget")
SYMBOLS: tuple[Symbol, ...] = ("dot", "square", "diamond")
KINDS: tuple[Kind, ...] = (*INNER, "width")
FEW = 0.01  # operators with a smaller share of the time are one bar
MANY = 24  # blocks; more are joined by what they are part of
BAND = (0.2, 0.4)  # the share of attention that the paper found best
BAR_PX = 24


def figures(analyses: Sequence[Analysis], proportion: Proportion | None, cut: float) -> dict[str, Chart]:
    """The charts that there are data for, by the id of their place on the page; a network’s end in its number."""
    drawn = {}
    for index, one in enumerate(analyses):
        if one.profile:
            drawn[f"operators-{index}"] = operators(one.profile)
            drawn[f"blocks-{index}"] = blocks(one.profile)
        if one.channels:
            drawn[f"channels-{index}"] = channels(one, cut)
    if any(one.heads for one in analyses):
        drawn["heads"] = heads([one for one in analyses if one.heads])
    if proportion:
        drawn["proportion"] = attention(proportion)
    return drawn


def operators(profile: Profile) -> Chart:
    """Time by kind of operator, the memory-bound ones in another colour."""
    shown = [op for op in profile.ops if op.share >= FEW]
    rest = [op for op in profile.ops if op.share < FEW]
    if len(rest) == 1:
        shown, rest = [*shown, *rest], []
    times = {op.name: (op.time_ms, BOUND if memory_bound(op.name) else COMPUTE) for op in shown}
    if rest:
        times[f"{len(rest)} others"] = (sum(op.time_ms for op in rest), "faint")
    names = [*times][::-1]  # the axis counts from the bottom
    kinds: tuple[tuple[str, Colour], ...] = (("compute", COMPUTE), ("memory-bound", BOUND), ("", "faint"))
    bars = {
        colour: [_bar(names.index(name), 0, ms, name) for name, (ms, own) in times.items() if own == colour]
        for _, colour in kinds
    }
    return Chart(
        "time by operator",
        linear("ms", [ms for ms, _ in times.values()], zero=True),
        named("", names),
        [Series(title, colour, boxes=bars[colour]) for title, colour in kinds if bars[colour]],
        height_px=BAR_PX * len(names),
    )


def blocks(profile: Profile) -> Chart:
    """Time by block, split into compute and memory-bound operators."""
    deep = len(profile.blocks) > MANY  # timm's transformers: every norm is a module of its own
    compute, bound = defaultdict[str, float](float), defaultdict[str, float](float)
    for part in profile.blocks[::-1]:  # the axis counts from the bottom
        name = part.name.rpartition(".")[0] or part.name if deep else part.name
        bound[name] += part.time_ms * part.memory_bound_share
        compute[name] += part.time_ms * (1 - part.memory_bound_share)
    names = [*compute]
    return Chart(
        "time by block",
        linear("ms", [compute[name] + bound[name] for name in names], zero=True),
        named("", names),
        [
            Series("compute", COMPUTE, boxes=[_bar(at, 0, compute[name], name) for at, name in enumerate(names)]),
            Series(
                "memory-bound",
                BOUND,
                boxes=[_bar(at, compute[name], bound[name], name) for at, name in enumerate(names)],
            ),
        ],
        height_px=BAR_PX * len(names),
    )


def _bar(place: int, start_ms: float, ms: float, name: str) -> Box:
    return Box((start_ms, start_ms + ms), (place - 0.35, place + 0.35), f"{name}\n{ms:.3g} ms")


def heads(analyses: Sequence[Analysis]) -> Chart:
    """Each head's similarity to its nearest neighbour, layer by layer; lines join the means."""
    series: list[Series] = []
    for index, one in enumerate(analyses):
        colour, symbol = NETWORKS[index % len(NETWORKS)], SYMBOLS[index % len(SYMBOLS)]
        layers = [*enumerate(one.heads, start=1)]
        each = [
            Point(layer, value, f"{one.network}, {block.block}\nhead {head}: {value:.3f}")
            for layer, block in layers
            for head, value in enumerate(block.similarity)
        ]
        means = [
            Point(layer, block.mean, f"{one.network}, {block.block}\nmean {block.mean:.3f}") for layer, block in layers
        ]
        series.append(Series(f"{one.network}, each head", colour, each, "ring", 3))
        line = [(layer, block.mean) for layer, block in layers]
        series.append(Series(one.network, colour, means, symbol, 5, line=line))
    points = [point for one in series for point in one.points]
    return Chart(
        "similarity of heads, layer by layer",
        linear("layer of attention, in order of execution", [point.x for point in points], whole=True),
        linear("similarity to the nearest head", [point.y for point in points]),
        series,
    )


def channels(one: Analysis, cut: float) -> Chart:
    """What a cut leaves of each kind of channels in each stage."""
    left = {(row.stage, row.kind): row for row in kept(one.channels, cut)}
    stages = sorted({stage for stage, _ in left})
    kinds = [kind for kind in KINDS if any(known == kind for _, known in left)]
    wide = 0.8 / len(stages)
    series = []
    for number, stage in enumerate(stages):
        bars = []
        for place, kind in enumerate(kinds):
            if row := left.get((stage, kind)):
                start = place - 0.4 + number * wide
                stay = f"{round(row.share * row.channels)} of {row.channels} channels stay"
                bars.append(Box((start, start + 0.9 * wide), (0, row.share), f"stage {stage + 1}, {kind}\n{stay}"))
        series.append(Series(f"stage {stage + 1}", STAGES[stage % len(STAGES)], boxes=bars))
    return Chart(
        f"channels of {one.network} that stay",
        named("", kinds),
        linear("channels that stay", [1.0], form=".0%", zero=True),
        series,
        height_px=280,
        rules=[Rule("average", "muted", y=1 - cut)],
    )


def attention(proportion: Proportion) -> Chart:
    """Accuracy against the share of attention, at equal latency."""
    points = []
    for one in proportion.points:
        stages = " – ".join(f"{stage.width}×{stage.depth}" for stage in one.variant.arch.stages)
        tip = f"{one.variant.name}\n{one.variant.latency}\n{one.mean:.2f} %, {len(one.accuracy)} seeds\n{stages}"
        error = np.std(one.accuracy, ddof=1) / len(one.accuracy) ** 0.5 if len(one.accuracy) > 1 else 0.0
        points.append(Point(one.variant.share, one.mean, tip, y_bar=(one.mean - float(error), one.mean + float(error))))
    y = linear("accuracy (%)", [end for point in points for end in (point.y_bar or ())])
    return Chart(
        "accuracy against the share of attention",
        linear("attention among the layers of the blocks", [1.0], form=".0%", zero=True),
        y,
        [Series("", "tint", boxes=[Box(BAND, (y.low, y.high))]), Series("", "front", points)],
    )
