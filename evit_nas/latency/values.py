"""What a number of milliseconds is here: a latency with its spread and conditions, and how carefully it is measured."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from evit_nas.arch import ArchConfig
from evit_nas.config import Conditions

UNCERTAIN = 0.12  # more than after a first use: the machine was never seen quiet, or its best moments do not agree


class Unit(NamedTuple):
    """A yardstick as figures are said by it: the smallest canary's quiet milliseconds, and how uncertain they are."""

    ms: float
    rel_error: float

    def improves(self, before: Unit) -> bool:
        """Whether it is better than the one before by more than it is uncertain, or by a percent."""
        return self.ms < before.ms * (1 - max(self.rel_error, 0.01))

    def supersedes(self, before: Unit) -> bool:
        """The same, or whether it is no worse and half as uncertain."""
        # one that is only more certain counts too: budgets are kept with `ms_error`, which holds its uncertainty
        return self.improves(before) or (self.ms <= before.ms and self.rel_error <= before.rel_error / 2)


class Latency(BaseModel):
    """One network's time per inference on one device, with how it was measured.

    What was measured is `ratio`; milliseconds are it times the yardstick `canary_ms`, and `by` says them by another.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    median_ms: float
    """Median time per inference (of the whole batch) in milliseconds, as it is on the quiet machine:
    `ratio` times `canary_ms`."""
    p90_ms: float
    """90th percentile of the samples whose median is `median_ms`: of means over two runs or more, not of single
    inferences, which scatter more. On a noisy machine it holds the noise as well."""
    rel_error: float
    """Uncertainty of the ratio, and so of every comparison on this device, as a share of it: standard error of the
    median, inflated for drift between visits."""
    ratio: float
    """`median_ms` in units of the smallest canary: what another machine of this kind can be compared by."""
    canary_ms: float
    """The smallest canary's time on this machine when quiet, in milliseconds: the yardstick."""
    canary_error: float | None = None
    """Uncertainty of the yardstick as a share of it; all figures of a device share it. None up to version 0.3."""
    yardstick: str = ""
    """Its identity on the machine that measured."""
    wall_ms: float | None = None
    """Median of single inferences by the wall clock, as the machine was just then. None up to version 0.3."""
    wall_p90_ms: float | None = None
    """Their 90th percentile."""
    rounds: int
    """Number of samples of this network, each beside samples of the canaries next to it in size."""
    conditions: Conditions
    """Device, threads, batch, precision and session entries."""
    input_shape: tuple[int, ...]
    """Of the input tensor: (batch, channels, height, width)."""
    clock: str
    """What was counted: "cpu" time of the calling thread, "wall" time, or "cuda" events."""
    runtime: str
    """Runtime and version, for example onnxruntime 1.32.0."""
    machine: str
    """Processor or GPU the figure belongs to."""
    noise: str = ""
    """Why the ratio is only an estimate; empty if it is none. See `doubts`."""

    def __str__(self) -> str:
        mark = " (noisy)" if self.noisy else ""
        return f"{self.median_ms:.2f} ms ± {100 * max(self.ms_error, 0.001):.1f}%{mark}"  # no measurement is exact

    @property
    def noisy(self) -> bool:
        """Whether one of the two uncertainties is not to be trusted: `doubts` says which, and why."""
        return bool(self.doubts)

    @property
    def doubts(self) -> str:
        """Why the figure is only an estimate; empty if it is none."""
        unknown = self.canary_error is not None and self.canary_error > UNCERTAIN
        loud = "this machine has not been quiet yet when it was measured"
        reasons = [self.noise, f"all milliseconds may be {self.canary_error:.0%} too many: {loud}" if unknown else ""]
        return "; ".join(filter(None, reasons))

    @property
    def ms_error(self) -> float:
        """Uncertainty of the milliseconds as a share of them: that of the ratio and that of the yardstick."""
        return math.hypot(self.rel_error, self.canary_error or 0.0)

    @property
    def unit(self) -> Unit | None:
        """What it is said by; None of figures up to version 0.3."""
        return None if self.canary_error is None else Unit(self.canary_ms, self.canary_error)

    def by(self, unit: Unit | None) -> Latency:
        """The same measurement by that unit; as it is without one, and figures up to version 0.3 as they are."""
        if unit is None or self.canary_error is None:
            return self
        factor = unit.ms / self.canary_ms
        return self.model_copy(
            update={  # neither the ratio nor what the wall clock said has a yardstick in it
                "median_ms": self.median_ms * factor,
                "p90_ms": self.p90_ms * factor,
                "canary_ms": unit.ms,
                "canary_error": unit.rel_error,
            }
        )

    def stat_ms(self, stat: str) -> float:
        """The "median" or the "p90" on the quiet machine, or the "typical" inference on it as it was; milliseconds."""
        if stat == "typical":
            return self.median_ms if self.wall_ms is None else self.wall_ms
        return self.p90_ms if stat == "p90" else self.median_ms

    def error_of(self, stat: str) -> float:
        """Relative uncertainty of `stat_ms`: no yardstick stands behind the milliseconds of the wall clock."""
        return self.rel_error if stat == "typical" else self.ms_error

    def said(self, stat: str) -> str:
        """`stat_ms` for people, by its name where it is not the median."""
        return str(self) if stat == "median" else f"{self.stat_ms(stat):.2f} ms ({stat})"


def about_ms(latencies: Iterable[Latency]) -> str:
    """What there is to know about the milliseconds of a table, in a line or two."""
    shown = [*latencies]
    lines = []
    if units := {latency.unit for latency in shown} - {None}:
        error = max(unit.rel_error for unit in units if unit)
        lines.append(
            f"ms: on the quiet machine; ± is for comparisons, and all of them together may be off by {error:.1%}; "
            "typical: by the wall clock, as the machine was"
        )
    if reasons := sorted({latency.doubts for latency in shown if latency.noisy}, key=len):
        lines.append(f"* an estimate: {reasons[0]}")
    return "\n".join(lines)


class Protocol(BaseModel):
    """How carefully to measure. The defaults suit a search; `STRICT` is for what is published."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    min_rounds: Annotated[int, Field(ge=3, le=10_000)] = 5  # fewer than 3 have no spread: see RawSamples.rel_error
    """Rounds of (network, canary) at least, with two timed runs of the network each: 8 to 12 runs are where more of
    them stop helping."""
    max_rounds: Annotated[int, Field(ge=3, le=10_000)] = 32
    """Rounds at most."""
    target_rel_error: Annotated[float, Field(gt=0, le=1)] = 0.02  # as BenchmarkDotNet's MaxRelativeError
    """Stop between the two once the inflated standard error of the median, of all visits, falls to this share of it."""
    warmup_ms: Annotated[float, Field(ge=0, le=60_000)] = 50.0
    """Time spent running, not measuring, before the first round."""
    visits: Annotated[int, Field(ge=1, le=100)] = 1
    """Independent visits (new session, new warm-up) whose rounds are pooled."""
    energy: bool = False
    """Whether to read the energy counter as well, where there is one: it takes two seconds more."""

    @property
    def visit_rel_error(self) -> float:
        """Where one visit may stop: the error of rounds that are pooled falls with the root of their number."""
        return self.target_rel_error * math.sqrt(self.visits)


# Two sessions: where a session's memory happens to lie moves it by a few percent for as long as it lives.
STRICT = Protocol(min_rounds=16, max_rounds=24, target_rel_error=0.01, visits=2, energy=True)
ENERGY = Protocol(min_rounds=3, max_rounds=3, energy=True)  # for the energy alone


BOARDS_DEFAULT = "board's default"  # the precision of a remote device that is asked for none; the board knows which


@dataclass(frozen=True)
class TimmModel:
    """A network of timm by name, at its own input size unless `image_size` says otherwise; random weights."""

    name: str
    image_size: int | None = None


Measurable = ArchConfig | Path | TimmModel  # what can be measured: an architecture, an ONNX file, a timm model
