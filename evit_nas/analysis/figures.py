"""The four charts of an analysis, as Plotly figures in the colours of the report's page."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from evit_nas.analysis.proportion import Proportion
from evit_nas.analysis.results import INNER, Analysis, Kind
from evit_nas.analysis.suggest import kept
from evit_nas.latency.profile import Profile, memory_bound
from evit_nas.report.figures import layout

BOUND, COMPUTE = "var(--reference)", "var(--front)"
NETWORKS = ("var(--front)", "var(--reference)", "var(--budget)", "var(--muted)")
STAGES = ("var(--low)", "var(--front)", "var(--reference)", "var(--budget)")
SYMBOLS = ("circle", "square", "diamond", "cross")
KINDS: tuple[Kind, ...] = (*INNER, "width")
FEW = 0.01  # operators with a smaller share of the time are one bar
MANY = 24  # blocks; more are joined by what they are part of
BAND = (0.2, 0.4)  # the share of attention that the paper found best


def figures(analyses: Sequence[Analysis], proportion: Proportion | None, cut: float) -> dict[str, go.Figure]:
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


def operators(profile: Profile) -> go.Figure:
    """Time by kind of operator, the memory-bound ones in another colour."""
    shown = [op for op in profile.ops if op.share >= FEW]
    rest = [op for op in profile.ops if op.share < FEW]
    if len(rest) == 1:
        shown, rest = [*shown, *rest], []
    names, times = [op.name for op in shown], [op.time_ms for op in shown]
    colours = [BOUND if memory_bound(op.name) else COMPUTE for op in shown]
    if rest:
        names.append(f"{len(rest)} others")
        times.append(sum(op.time_ms for op in rest))
        colours.append("var(--faint)")
    figure = go.Figure(layout=layout(height=90 + 26 * len(names), showlegend=False))
    figure.add_bar(x=times[::-1], y=names[::-1], orientation="h", marker_color=colours[::-1], hoverinfo="x+y")
    figure.update_xaxes(title_text="ms", rangemode="tozero")
    return figure.update_yaxes(showgrid=False)


def blocks(profile: Profile) -> go.Figure:
    """Time by block, split into compute and memory-bound operators."""
    deep = len(profile.blocks) > MANY  # timm's transformers: every norm is a module of its own
    compute, bound = defaultdict[str, float](float), defaultdict[str, float](float)
    for part in profile.blocks[::-1]:
        name = part.name.rpartition(".")[0] or part.name if deep else part.name
        bound[name] += part.time_ms * part.memory_bound_share
        compute[name] += part.time_ms * (1 - part.memory_bound_share)
    figure = go.Figure(layout=layout(height=110 + 26 * len(bound), barmode="stack"))
    for title, times, colour in (("compute", compute, COMPUTE), ("memory-bound", bound, BOUND)):
        figure.add_bar(
            name=title, x=[*times.values()], y=[*times], orientation="h", marker_color=colour, hoverinfo="x+y"
        )
    figure.update_xaxes(title_text="ms", rangemode="tozero")
    return figure.update_yaxes(showgrid=False)


def heads(analyses: Sequence[Analysis]) -> go.Figure:
    """Each head's similarity to its nearest neighbour, layer by layer; lines join the means."""
    figure = go.Figure(layout=layout(height=420))
    for index, one in enumerate(analyses):
        colour, symbol = NETWORKS[index % len(NETWORKS)], SYMBOLS[index % len(SYMBOLS)]
        layers = range(1, len(one.heads) + 1)
        figure.add_scatter(
            name=escape(one.network),
            x=[*layers],
            y=[block.mean for block in one.heads],
            mode="lines+markers",
            line={"color": colour, "width": 2},
            marker={"size": 9, "symbol": symbol},
            hoverinfo="text",
            hovertext=[f"{escape(one.network)}<br>{b.block}<br>mean {b.mean:.3f}" for b in one.heads],
        )
        figure.add_scatter(
            x=[layer for layer, block in zip(layers, one.heads, strict=True) for _ in block.similarity],
            y=[value for block in one.heads for value in block.similarity],
            mode="markers",
            marker={"size": 6, "symbol": f"{symbol}-open", "color": colour, "opacity": 0.7},
            showlegend=False,
            hoverinfo="text",
            hovertext=[
                f"{escape(one.network)}<br>{block.block}<br>head {head}: {value:.3f}"
                for block in one.heads
                for head, value in enumerate(block.similarity)
            ],
        )
    figure.update_xaxes(title_text="layer of attention, in order of execution", dtick=1)
    return figure.update_yaxes(title_text="similarity to the nearest head")


def channels(one: Analysis, cut: float) -> go.Figure:
    """What a cut leaves of each kind of channels in each stage."""
    left = {(row.stage, row.kind): row for row in kept(one.channels, cut)}
    figure = go.Figure(layout=layout(height=360, barmode="group"))
    for stage in sorted({stage for stage, _ in left}):
        rows = [left[stage, kind] for kind in KINDS if (stage, kind) in left]
        figure.add_bar(
            name=f"stage {stage + 1}",
            x=[row.kind for row in rows],
            y=[row.share for row in rows],
            marker_color=STAGES[stage % len(STAGES)],
            hoverinfo="text",
            hovertext=[
                f"stage {stage + 1}, {row.kind}: {round(row.share * row.channels)} of {row.channels} channels stay"
                for row in rows
            ],
        )
    figure.add_hline(1 - cut, line={"color": "var(--muted)", "dash": "dot", "width": 1})
    return figure.update_yaxes(title_text="channels that stay", tickformat=".0%", range=[0, 1.02])


def attention(proportion: Proportion) -> go.Figure:
    """Accuracy against the share of attention, at equal latency."""
    points = proportion.points
    figure = go.Figure(layout=layout(height=420, showlegend=False))
    figure.add_vrect(*BAND, fillcolor="var(--low)", opacity=0.25, line_width=0)
    figure.add_scatter(
        x=[point.variant.share for point in points],
        y=[point.mean for point in points],
        error_y={
            "array": [
                np.std(p.accuracy, ddof=1) / len(p.accuracy) ** 0.5 if len(p.accuracy) > 1 else 0 for p in points
            ],
            "color": "var(--faint)",
            "thickness": 1.5,
            "width": 3,
        },
        mode="markers",
        marker={"size": 9, "color": "var(--front)", "line": {"width": 1, "color": "var(--paper)"}},
        hoverinfo="text",
        hovertext=[
            f"<b>{point.variant.name}</b><br>{point.variant.latency}<br>"
            f"{point.mean:.2f} %, {len(point.accuracy)} seeds<br>"
            + " – ".join(f"{stage.width}×{stage.depth}" for stage in point.variant.arch.stages)
            for point in points
        ],
    )
    figure.update_xaxes(title_text="attention among the layers of the blocks", tickformat=".0%", range=[0, 1.05])
    return figure.update_yaxes(title_text="accuracy (%)")
