"""How good a network will be: from its size, from proxies, from briefly trained networks, or by training it briefly."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Estimate(BaseModel):
    """What a network is thought to be worth; higher is better."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    value: float
    """In the unit of the method; values of different methods do not compare."""
    low: float | None = None
    """End of the interval that holds the truth four times in five; None where nobody knows."""
    high: float | None = None
    """Its other end."""
    method: str
    """Name in `evit_nas.searching.judges.JUDGES`."""


class RungEstimate(Estimate):
    """The accuracy at the end of the last rung that a network was trained to."""

    slice: int
    """Number of its latency slice."""
    losses: tuple[float, ...]
    """Cross-entropy at the end of each rung; lower is better."""
    unfinished: float
    """Share of the rungs that it was not trained for; zero for those that may enter a front."""
    device: str = "cpu"
    """What it was trained on: cpu, or the name of a GPU, on which another training comes to another value."""
    error: float = 0.0
    """Standard error of the value, in points, that comes from the number of validation images; 0 if not known."""


class ShortScore(BaseModel):
    """What one short training came to."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    accuracy: Annotated[float, Field(ge=0, le=1)]
    """Share of the validation images classified right; higher is better."""
    cross_entropy: float
    """On the validation images, in nats; lower is better. Ranks with half the noise of the accuracy."""
    curve: Annotated[tuple[float, ...], Field(min_length=1)]
    """Mean training loss of each epoch, in nats."""
