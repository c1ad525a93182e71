"""The settings of a search: what `run.yaml` records, and budgets as people write them."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from evit_nas.errors import UsageError
from evit_nas.space import SearchSpace

_BUDGET = re.compile(r"\s*(?P<number>\d+(\.\d*)?|\.\d+)\s*(?P<unit>us|µs|ms|s)\s*")
_UNIT_MS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}


def parse_budget(text: str) -> float:
    """A latency budget such as "5ms", "750us" or "0.02s" in milliseconds.

    Raises:
        UsageError: not a positive number with a unit.
    """
    match = _BUDGET.fullmatch(text)
    value = float(match["number"]) * _UNIT_MS[match["unit"]] if match else 0.0
    if not value:
        raise UsageError(f"--budget must be a positive number with a unit (us, ms or s), got '{text}'; try 5ms.")
    return value


class SearchSettings(BaseModel):
    """Everything that decides what a search does; two runs with equal settings do the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    space_name: str
    """Name or path the space was loaded from."""
    space: SearchSpace
    """The space itself, so that a run folder stands on its own."""
    device: str = "cpu"
    """Where latency is measured: a name in latency.DEVICES."""
    budget_ms: Annotated[float, Field(gt=0)]
    """Upper limit of the median latency in milliseconds."""
    trials: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    """Distinct architectures to evaluate, the reference pool included."""
    pool: Annotated[int, Field(ge=4, le=10_000)] = 40
    """Random architectures evaluated first: the pool against which proxies are ranked."""
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0
    """Seed of sampling and of every proxy."""

    def differences(self, other: SearchSettings) -> dict[str, tuple[Any, Any]]:
        """Field -> (own, other's) for every field that differs."""
        own, others = self.model_dump(mode="json"), other.model_dump(mode="json")
        return {name: (own[name], others[name]) for name in own if own[name] != others[name]}
