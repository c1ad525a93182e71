"""Charts as values: axes, and series of what stands in them. `templates/chart.html` draws them as inline SVG.

Places are shares of the drawing, not pixels: a chart takes any width, a phone's or a sheet of paper's, with letters and
marks of one size, and needs no script. Colours are names of the page's own, so that they follow its theme.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from matplotlib.ticker import MaxNLocator

ROUND = (1, 2, 5)  # in each decade of a logarithmic axis
BETWEEN = (1.5, 3, 7)
MARGIN = 0.04  # of an axis, beyond what stands in it

Colour = Literal["front", "low", "reference", "budget", "muted", "faint", "tint"]
Symbol = Literal["dot", "ring", "square", "diamond"]
Corner = Literal["below right", "above right", "above left"]


@dataclass(frozen=True)
class Tick:
    """A value that an axis names."""

    value: float
    text: str
    minor: bool = False
    """Whether it goes first where there is little room."""


@dataclass(frozen=True)
class Axis:
    """What a direction of the drawing means, from left to right or from bottom to top."""

    title: str
    low: float
    high: float
    ticks: Sequence[Tick]
    log: bool = False
    grid: bool = True

    def at(self, value: float) -> float:
        """Where a value stands, in percent of the axis."""
        low, high, own = (math.log(one) if self.log else one for one in (self.low, self.high, value))
        return 100 * (own - low) / (high - low)


@dataclass(frozen=True)
class Point:
    """A mark, with what is said when somebody points at it: the first line is its title."""

    x: float
    y: float
    tip: str = ""
    x_bar: tuple[float, float] | None = None
    """Ends of its interval along x."""
    y_bar: tuple[float, float] | None = None
    """Ends of its interval along y."""
    label: str = ""
    corner: Corner = "below right"
    """Where its label stands."""
    to: str = ""
    """The id of a place on the page that it leads to."""


@dataclass(frozen=True)
class Box:
    """A rectangle: a bar, or a band."""

    x: tuple[float, float]
    y: tuple[float, float]
    tip: str = ""


@dataclass(frozen=True)
class Series:
    """Marks, a line and boxes of one colour; with a name it is in the legend, where it can be hidden."""

    name: str
    colour: Colour
    points: Sequence[Point] = ()
    symbol: Symbol = "dot"
    size: float = 4.5
    """Half the width of a mark in pixels."""
    line: Sequence[tuple[float, float]] = ()
    dashed: bool = False
    boxes: Sequence[Box] = ()


@dataclass(frozen=True)
class Rule:
    """A line across the drawing at one x or one y, with a word beside it."""

    text: str
    colour: Colour
    x: float | None = None
    y: float | None = None


@dataclass(frozen=True)
class Chart:
    """A whole drawing; what comes later lies above what comes before."""

    title: str
    """For those who cannot see it."""
    x: Axis
    y: Axis
    series: Sequence[Series]
    height_px: int = 400
    rules: Sequence[Rule] = field(default=())

    def across(self, x: float) -> float:
        """Where an x stands, in percent from the left."""
        return round(self.x.at(x), 2)

    def down(self, y: float) -> float:
        """Where a y stands, in percent from the top."""
        return round(100 - self.y.at(y), 2)

    @property
    def left(self) -> int:
        """Letters of the longest name on the upright axis."""
        return max((len(tick.text) for tick in self.y.ticks), default=0)


def linear(
    title: str,
    values: Iterable[float],
    *,
    form: str = "g",
    zero: bool = False,
    whole: bool = False,
    margin: float = MARGIN,
) -> Axis:
    """An axis around the values, or from zero; `form` is how its ticks are written, `whole` keeps them integers."""
    known = [*values, *([0.0] if zero else [])]
    low, high = _around(min(known), max(known), margin)
    low = 0.0 if zero and min(known) == 0 else low
    return Axis(title, low, high, [Tick(value, format(value, form)) for value in _even(low, high, whole)])


def logarithmic(title: str, values: Iterable[float]) -> Axis:
    """A logarithmic axis around positive values, with ticks that people can read: 0.5, 0.7, 1, 1.5 and so on."""
    logs = [math.log10(value) for value in values]
    ends = _around(min(logs), max(logs), MARGIN)
    low, high = (10**end for end in ends)
    decades = range(math.floor(ends[0]), math.floor(ends[1]) + 1)
    ticks = [
        Tick(step * 10.0**decade, f"{step * 10.0**decade:g}", minor=step in BETWEEN)
        for decade in decades
        for step in sorted((*ROUND, *BETWEEN))
        if low <= step * 10.0**decade <= high
    ]
    if sum(not tick.minor for tick in ticks) < 3:  # a short axis needs them all
        ticks = [Tick(tick.value, tick.text) for tick in ticks]
    if len(ticks) < 3:
        ticks = [Tick(value, f"{value:g}") for value in _even(low, high)]
    return Axis(title, low, high, ticks, log=True)


def named(title: str, names: Sequence[str]) -> Axis:
    """An axis with a place, from 0 on, for each name."""
    return Axis(title, -0.6, len(names) - 0.4, [Tick(place, name) for place, name in enumerate(names)], grid=False)


def _around(low: float, high: float, margin: float) -> tuple[float, float]:
    """The ends with a margin; a single value gets some room as well."""
    room = margin * (high - low) or 0.05 * abs(high) or 0.05
    return low - room, high + room


def _even(low: float, high: float, whole: bool = False) -> list[float]:
    ticks = MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10], integer=whole).tick_values(low, high)
    return [float(tick) for tick in ticks if low <= tick <= high]
