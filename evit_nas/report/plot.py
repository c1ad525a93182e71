"""Figures for a paper or a README, the front and the score card: drawn by matplotlib, which needs no browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from evit_nas.accuracy.scorecard import Card
from evit_nas.errors import UsageError
from evit_nas.files import writing
from evit_nas.report.figures import staircase
from evit_nas.runs import Run
from evit_nas.searching.findings import Findings, find

SUFFIXES = (".pdf", ".png", ".svg")
FRONT, REFERENCE, BUDGET, FAINT = "#0f5fa8", "#b0520c", "#a3253d", "#c4c8cb"
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # letters stay letters: many a journal asks for it
    "svg.hashsalt": "evit-nas",  # the same run gives the same file
}


def write_plot(run: Run, path: Path) -> None:
    """Writes score against latency, a panel for each device, as PNG, SVG or PDF by the file's suffix.

    Raises:
        UsageError: another suffix, the file cannot be written, or the run has not evaluated anything yet.
    """
    _check(path)
    found = find(run)
    devices = len(found.settings.targets)
    with rc_context(STYLE):
        figure = Figure(figsize=(5.2 * devices, 4), layout="constrained")
        for index, axes in enumerate(figure.subplots(1, devices, sharey=True, squeeze=False)[0]):
            _draw(axes, found, index)
        figure.axes[0].set_ylabel("score (higher is better)")
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
        _save(figure, path)


def _check(path: Path) -> None:
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"--plot writes {', '.join(SUFFIXES)}; got '{path.name}'.")


def _save(figure: Figure, path: Path) -> None:
    undated = {".png": {}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}[path.suffix.lower()]
    with writing(path):
        figure.savefig(path, dpi=200, metadata=undated)


def _draw(axes: Axes, found: Findings, index: int) -> None:
    target, stat = found.settings.targets[index], found.settings.budget_stat
    members, references = found.front.members, found.front.references
    if found.predicted:
        predicted_ms = [one.predicted_ms[index] for one in found.predicted]
        scores = [one.score for one in found.predicted]
        axes.plot(predicted_ms, scores, "o", mfc="none", color=FAINT, ms=3, label="predicted only")
    measured_ms = [candidate.latencies[index].stat_ms(stat) for candidate in found.measured]
    axes.plot(measured_ms, [candidate.score for candidate in found.measured], "o", color=FAINT, ms=3, label="measured")
    steps_ms, steps_score = staircase(members, index, stat)
    axes.step(steps_ms, steps_score, where="post", color=FRONT, lw=1)
    for marker, color, label, candidates in (
        ("o", FRONT, "front", [member for member in members if member.certified]),
        ("D", FRONT, "front, not certified", [member for member in members if not member.certified]),
        ("s", REFERENCE, "EfficientViT-M0 to M5", references),
    ):
        if candidates:
            ms = [candidate.latencies[index].stat_ms(stat) for candidate in candidates]
            error = [one * candidate.latencies[index].rel_error for one, candidate in zip(ms, candidates, strict=True)]
            scores = [candidate.score for candidate in candidates]
            axes.errorbar(ms, scores, xerr=error, fmt=marker, color=color, ms=4, elinewidth=1, label=label)
    for number, one in enumerate(references):
        at = (one.latencies[index].stat_ms(stat), one.score)
        below = number % 2 == 0  # and the next one above: m3 and m4 are neighbours
        offset = (4, -9) if below else (4, 4)
        axes.annotate(one.name, at, xytext=offset, textcoords="offset points", color=REFERENCE)
    axes.axvline(target.budget_ms, color=BUDGET, ls="--", lw=1, label="budget")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    # matplotlib takes $ for mathematics; chr(92), as f-strings take no backslash before Python 3.12
    axes.set_xlabel(f"{stat} latency on {target.device.replace('$', chr(92) + '$')} (ms)")


def write_card_plot(card: Card, path: Path) -> None:
    """Writes the score card as a row of intervals: Kendall's tau among rivals, best below, sizes in their own colour.

    Raises:
        UsageError: the suffix is none of SUFFIXES, or the file cannot be written.
    """
    _check(path)
    rows = sorted(card.rows, key=lambda row: row.iso.value)
    colours = {"size": REFERENCE, "predictor": FRONT}
    with rc_context(STYLE):
        figure = Figure(figsize=(5.6, 0.8 + 0.24 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            colour = colours.get(row.kind, "#5f6a72")
            axes.plot([row.iso.low, row.iso.high], [place, place], color=colour, linewidth=1)
            axes.plot(row.iso.value, place, "o", color=colour, markersize=4)
        axes.set_yticks(range(len(rows)), [row.score for row in rows])
        axes.axvline(0, color=FAINT, linewidth=0.8)
        if card.ceiling is not None:
            axes.axvline(card.ceiling.value, color=BUDGET, linestyle="--", linewidth=1)
            axes.set_title("dashed: what a perfect score could reach", fontsize=8, loc="left")
        axes.set_xlabel(f"Kendall's tau, {card.pairs} pairs within 10 % of latency")
        _save(figure, path)
