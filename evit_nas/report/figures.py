"""The report's charts, as Plotly figures. Colours are the page's own (`var(--name)`), so that they follow its theme."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from evit_nas.latency import Latency
from evit_nas.pareto import non_dominated
from evit_nas.published import IMAGENET_1K, TOP1
from evit_nas.regime import IMAGENET
from evit_nas.report.findings import Findings, Forecast, sketch
from evit_nas.searching.front import Candidate, score_text

TICKS = (1, 1.5, 2, 3, 5, 7)  # in each decade of a logarithmic axis
SHOWN_PARAMS = 12  # of the most important ones
MAX_TICKS = 6  # of an axis that has a tick for each of its values
AXES = 8  # parameters in the parallel coordinates; more are not readable


def figures(found: Findings) -> dict[str, go.Figure]:
    """The charts that the run has data for, by the id of their place on the page; `pareto-0` is the first device's."""
    devices = range(len(found.settings.targets))
    drawn = {f"pareto-{index}": pareto(found, index) for index in devices}
    drawn |= {f"forecast-{i}": forecast(found.forecasts[i]) for i in devices if found.forecasts[i].names}
    if found.convergence:
        drawn["convergence"] = convergence(found)
    if found.importance:
        drawn["importance"] = importance(found.importance)
    if len(found.front.members) > 1:
        drawn["parallel"] = parallel(found)
    return drawn


def staircase(members: Sequence[Candidate], index: int, stat: str) -> tuple[list[float], list[float]]:
    """Latencies and scores of the members that no other one beats on that device, fastest first."""
    points = np.array([(member.latencies[index].stat_ms(stat), -member.score) for member in members]).reshape(-1, 2)
    kept = points[non_dominated(points)]
    kept = kept[kept[:, 0].argsort()]
    return kept[:, 0].tolist(), (-kept[:, 1]).tolist()


def pareto(found: Findings, index: int) -> go.Figure:
    """Score against latency on one device: all that was evaluated, the front, the paper's networks, the budget."""
    stat, target = found.settings.budget_stat, found.settings.targets[index]
    on_front = {member.arch.key for member in found.front.members}
    shown_apart = on_front | {reference.arch.key for reference in found.front.references}
    others = [candidate for candidate in found.measured if candidate.arch.key not in shown_apart]
    figure = go.Figure(layout=layout(height=520))
    if found.predicted:
        figure.add_scatter(
            name="predicted only",
            x=[one.predicted_ms[index] for one in found.predicted],
            y=[one.score for one in found.predicted],
            mode="markers",
            marker={"symbol": "circle-open", "size": 6, "color": "var(--faint)"},
            hoverinfo="text",
            hovertext=[
                f"trial {one.trial}, never measured<br>predicted {one.predicted_ms[index]:.2f} ms<br>{sketch(one.arch)}"
                for one in found.predicted
            ],
        )
    figure.add_scatter(
        name="measured",
        x=[candidate.latencies[index].stat_ms(stat) for candidate in others],
        y=[candidate.score for candidate in others],
        mode="markers",
        marker={"size": 6, "color": "var(--faint)"},
        hoverinfo="text",
        hovertext=[_hover(candidate, index) for candidate in others],
    )
    steps_ms, steps_score = staircase(found.front.members, index, stat)
    if steps_ms:
        figure.add_scatter(  # to the budget: nothing better was found up to there
            x=[*steps_ms, max(target.budget_ms, steps_ms[-1])],
            y=[*steps_score, steps_score[-1]],
            mode="lines",
            line={"shape": "hv", "color": "var(--front)", "width": 1.5},
            hoverinfo="skip",
            showlegend=False,
        )
    for certified, name, symbol in ((True, "front", "circle"), (False, "front, not certified", "diamond")):
        members = [member for member in found.front.members if member.certified is certified]
        if members:
            figure.add_trace(_points(members, index, stat, name, {"symbol": symbol, "color": "var(--front)"}))
    if found.front.references:
        marker = {"symbol": "square", "color": "var(--reference)"}
        trace = _points(found.front.references, index, stat, "the paper’s m0–m5", marker)
        names = [reference.name for reference in found.front.references]
        figure.add_trace(
            trace.update(
                mode="markers+text", text=names, textposition="bottom right", textfont_color="var(--reference)"
            )
        )
        if found.settings.accuracy.regime == IMAGENET:  # on the scale of the score, from other people's trainings
            known = [one for one in found.front.references if one.name in TOP1[IMAGENET_1K]]
            figure.add_scatter(
                name="published",
                x=[one.latencies[index].stat_ms(stat) for one in known],
                y=[TOP1[IMAGENET_1K][one.name] for one in known],
                mode="markers",
                marker={"symbol": "x-thin", "size": 9, "line": {"width": 1.5, "color": "var(--ink)"}},
                hoverinfo="text",
                hovertext=[f"{one.name}: {TOP1[IMAGENET_1K][one.name]:.1f} % published" for one in known],
            )
    figure.add_vline(target.budget_ms, line={"color": "var(--budget)", "dash": "dash", "width": 1.5})
    figure.add_annotation(
        x=math.log10(target.budget_ms),
        y=1,
        yref="paper",
        yanchor="bottom",
        text=f"budget {target.budget_ms:g} ms",
        showarrow=False,
        font_color="var(--budget)",
    )
    all_ms = [ms for trace in figure.data for ms in trace.x]
    what = "p90" if stat == "p90" else "median"
    figure.update_xaxes(
        type="log", title_text=f"latency on {escape(target.device)} (ms, {what})", **_ticks([*all_ms, target.budget_ms])
    )
    return figure.update_yaxes(title_text="score, higher is better")


def _points(candidates: Sequence[Candidate], index: int, stat: str, name: str, marker: dict[str, Any]) -> go.Scatter:
    """Networks with their error bars."""
    latencies = [candidate.latencies[index] for candidate in candidates]
    errors = [latency.rel_error * latency.stat_ms(stat) for latency in latencies]
    return go.Scatter(
        name=name,
        x=[latency.stat_ms(stat) for latency in latencies],
        y=[candidate.score for candidate in candidates],
        error_x={"array": errors, "color": marker["color"], "thickness": 1.5, "width": 3},
        error_y=_score_error(candidates),
        mode="markers",
        marker={"size": 8, "line": {"width": 1, "color": "var(--paper)"}, **marker},
        hoverinfo="text",
        hovertext=[_hover(candidate, index) for candidate in candidates],
    )


def _score_error(candidates: Sequence[Candidate]) -> dict[str, Any] | None:
    """Bars over the intervals of the scores; None where nobody knows them."""
    known = [(candidate.score, candidate.interval) for candidate in candidates if candidate.interval]
    if len(known) < len(candidates):
        return None
    above, below = [high - score for score, (_, high) in known], [score - low for score, (low, _) in known]
    return {"array": above, "arrayminus": below, "color": "var(--faint)", "thickness": 1, "width": 0}


def _hover(candidate: Candidate, index: int) -> str:
    latency: Latency = candidate.latencies[index]
    title = f"<b>{escape(candidate.name)}</b>" if candidate.name else f"trial {candidate.trial}"
    return "<br>".join(
        [
            f"{title}, {'certified' if candidate.certified else 'measured once'}",
            f"{latency}, p90 {latency.p90_ms:.2f} ms",
            f"score {score_text(candidate)}, {candidate.params / 1e6:.2f} M params, {candidate.macs / 1e6:.0f} M MACs",
            sketch(candidate.arch),
        ]
    )


def convergence(found: Findings) -> go.Figure:
    """Hypervolume of the feasible front over evaluations."""
    evaluations, share = zip(*found.convergence, strict=True)
    figure = go.Figure(layout=layout(height=320, showlegend=False))
    figure.add_scatter(
        x=evaluations, y=share, mode="lines", line={"shape": "hv", "color": "var(--front)", "width": 2}, hoverinfo="x+y"
    )
    if 0 < found.pool < len(evaluations):
        figure.add_vline(found.pool, line={"color": "var(--muted)", "dash": "dot", "width": 1})
        figure.add_annotation(
            x=found.pool, y=0, yref="paper", xanchor="left", yanchor="bottom", text="the search begins", showarrow=False
        )
    figure.update_xaxes(title_text="distinct networks evaluated")
    return figure.update_yaxes(title_text="share of the final hypervolume", tickformat=".0%", rangemode="tozero")


def importance(shares: dict[str, float]) -> go.Figure:
    """The parameters that matter most for the front."""
    top = list(shares.items())[:SHOWN_PARAMS][::-1]
    figure = go.Figure(layout=layout(height=90 + 24 * len(top), showlegend=False))
    figure.add_bar(
        x=[share for _, share in top],
        y=[name for name, _ in top],
        orientation="h",
        width=0.6,
        marker_color="var(--front)",
        hoverinfo="x",
    )
    figure.update_xaxes(title_text="share of importance", tickformat=".0%", rangemode="tozero")
    return figure.update_yaxes(showgrid=False)


def parallel(found: Findings) -> go.Figure:
    """The front's members as lines over what they cost, what they score, and the parameters that tell them apart."""
    members, stat = found.front.members, found.settings.budget_stat
    targets = found.settings.targets
    chosen = [found.params[member.arch.key] for member in members]
    names = [name for name in found.importance or chosen[0] if len({repr(one.get(name)) for one in chosen}) > 1]
    scores = [member.score for member in members]
    on_each = zip(*(member.latencies for member in members), strict=True)
    dimensions = [
        {
            "label": f"ms@{escape(target.device)}" if len(targets) > 1 else "ms",
            "values": [latency.stat_ms(stat) for latency in latencies],
            "tickformat": ".2f",
        }
        for target, latencies in zip(targets, on_each, strict=True)
    ]
    dimensions.append({"label": "score", "values": scores, "tickformat": ".2f"})
    dimensions += [_axis(name, [one.get(name) for one in chosen]) for name in names[:AXES]]
    figure = go.Figure(layout=layout(height=400, margin={"l": 40, "r": 64, "t": 64, "b": 24}))
    figure.add_parcoords(
        dimensions=dimensions,
        line={"color": scores, "colorscale": [[0, "var(--low)"], [1, "var(--front)"]]},
        labelangle=-20,
        labelfont={"size": 12, "color": "var(--ink)"},
        tickfont={"size": 11, "color": "var(--muted)"},
        rangefont={"size": 11, "color": "var(--muted)"},
    )
    return figure


def _axis(name: str, values: list[Any]) -> dict[str, Any]:
    """One axis of the parallel coordinates: numbers as they are, anything else (or a missing value) by its place."""
    choices = sorted(set(values), key=lambda value: (isinstance(value, str | None), str(value)))
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in choices):
        few = {"tickvals": choices} if len(choices) <= MAX_TICKS else {}
        return {"label": name, "values": values, **few}
    texts = [{True: "yes", False: "no", None: "–"}.get(value, str(value)) for value in choices]
    return {
        "label": name,
        "values": [choices.index(value) for value in values],
        "tickvals": list(range(len(choices))),
        "ticktext": texts,
    }


def forecast(one: Forecast) -> go.Figure:
    """Latency predicted against measured; on the diagonal they agree."""
    ends = [min(one.predicted_ms + one.measured_ms), max(one.predicted_ms + one.measured_ms)]
    figure = go.Figure(layout=layout(height=400, showlegend=False))
    figure.add_scatter(
        x=ends, y=ends, mode="lines", line={"color": "var(--muted)", "width": 1, "dash": "dot"}, hoverinfo="skip"
    )
    figure.add_scatter(
        x=one.measured_ms,
        y=one.predicted_ms,
        mode="markers",
        marker={"size": 7, "color": "var(--front)", "opacity": 0.7},
        hoverinfo="text",
        hovertext=[
            f"{name}<br>predicted {predicted:.2f} ms, measured {measured:.2f} ms ({predicted / measured - 1:+.1%})"
            for name, predicted, measured in zip(one.names, one.predicted_ms, one.measured_ms, strict=True)
        ],
    )
    figure.update_xaxes(type="log", title_text="measured (ms)", **_ticks(ends))
    return figure.update_yaxes(type="log", title_text="predicted (ms)", **_ticks(ends))


def _ticks(values_ms: Iterable[float]) -> dict[str, Any]:
    """Ticks of a logarithmic axis that people can read: 0.5, 0.7, 1, 1.5 and so on, around the values."""
    decades = [math.floor(math.log10(ms)) for ms in values_ms]
    ticks = [tick * 10.0**decade for decade in range(min(decades), max(decades) + 1) for tick in TICKS]
    return {"tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}


def layout(**more: Any) -> go.Layout:
    """Of every figure on our pages: colours are the page's own, light or dark."""
    ink, muted = {"color": "var(--ink)"}, {"color": "var(--muted)"}
    axis = {
        "gridcolor": "var(--rule)",
        "linecolor": "var(--rule)",
        "zeroline": False,
        "automargin": True,
        "ticks": "",
        "title_standoff": 12,
        "title_font": {"size": 13, **muted},
        "tickfont": muted,
    }
    base = {
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, **ink},
        "hovermode": "closest",
        "hoverlabel": {"bgcolor": "var(--paper)", "bordercolor": "var(--rule)", "font": ink, "align": "left"},
        "legend": {"orientation": "h", "x": 0, "y": 1.06, "yanchor": "bottom"},
        "margin": {"l": 24, "r": 16, "t": 24, "b": 48},
        "xaxis": axis,
        "yaxis": axis,
    }  # fmt: skip
    return go.Layout(**base | more)
