"""The settings of a search: what `run.yaml` records, and budgets as people write them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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


def parse_budgets(text: str, devices: Sequence[str]) -> list[float]:
    """The budget of each device in milliseconds: "5ms" for one device, "cpu=5ms,pi=40ms" for several.

    A remote device may be called by its host alone: pi for remote:pi.

    Raises:
        UsageError: a device without a budget, a budget without a device, or not a positive number with a unit.
    """
    if "=" not in text:
        if len(devices) > 1:
            example = ",".join(f"{name}=5ms" for name in devices)
            raise UsageError(f"--budget needs one limit for each of the {len(devices)} devices: {example}.")
        return [parse_budget(text)]
    budgets: dict[str, float] = {}
    for part in text.split(","):
        name, _, limit = part.partition("=")
        found = [device for device in devices if name.strip() in (device, device.removeprefix("remote:").split(":")[0])]
        if not found:
            raise UsageError(f"--budget names the device '{name.strip()}', but --device has {', '.join(devices)}.")
        if found[0] in budgets:
            raise UsageError(f"--budget gives the device '{name.strip()}' two limits.")
        budgets[found[0]] = parse_budget(limit)
    without = [device for device in devices if device not in budgets]
    if without:
        raise UsageError(f"--budget has no limit for the device '{without[0]}'; add {without[0]}=5ms.")
    return [budgets[device] for device in devices]


_QUANTITY = re.compile(r"\s*(?P<number>\d+(\.\d*)?|\.\d+)\s*(?P<unit>[kMG]?)(?P<byte>B?)\s*")
_UNIT = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


def parse_quantity(text: str, option: str) -> float:
    """A count or a number of bytes as people write them: 10M, 300M, 1.2G, 64MB.

    Raises:
        UsageError: not a positive number with k, M or G.
    """
    match = _QUANTITY.fullmatch(text)
    value = float(match["number"]) * _UNIT[match["unit"]] if match else 0.0
    if not value:
        raise UsageError(f"{option} must be a positive number, with k, M or G if you like, got '{text}'; try 10M.")
    return value


class Conditions(BaseModel):
    """Everything besides the network and the protocol that a user can choose and that moves the number."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    device: str = "cpu"
    """As given to --device: a name in DEVICES, and after a colon what that device takes."""
    threads: Annotated[int, Field(ge=1, le=1024)] = 1
    """Threads the runtime may use for one inference."""
    batch: Annotated[int, Field(ge=1, le=4096)] = 1
    """Images per inference."""
    precision: str = "fp32"
    """Arithmetic of the deployed network."""
    entries: dict[str, str] = Field(default_factory=dict)
    """Session settings handed to the runtime as they are, for example session.set_denormal_as_zero=1."""

    @property
    def family(self) -> str:
        """The device's name in DEVICES."""
        return self.device.partition(":")[0]

    @property
    def argument(self) -> str:
        """What follows the colon in `device`; empty if nothing does."""
        return self.device.partition(":")[2]

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return ", ".join([self.device, threads, f"batch {self.batch}", self.precision, *self.listed_entries])

    @property
    def listed_entries(self) -> list[str]:
        """The free-form entries as `name=value`, in a fixed order."""
        return [f"{name}={value}" for name, value in sorted(self.entries.items())]


class Target(BaseModel):
    """One device that a search measures on, and the latency allowed there."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    conditions: Conditions = Conditions()
    """Device, threads, batch, precision and session entries."""
    budget_ms: Annotated[float, Field(gt=0)]
    """Upper limit of the latency in milliseconds."""

    @property
    def device(self) -> str:
        """As given to --device."""
        return self.conditions.device


class Limits(BaseModel):
    """Upper limits besides latency; None leaves one out."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    params: Annotated[int, Field(gt=0)] | None = None
    """Trainable parameters."""
    macs: Annotated[int, Field(gt=0)] | None = None
    """Multiply-accumulates for one image."""
    memory_mb: Annotated[float, Field(gt=0)] | None = None
    """Peak resident memory in megabytes of a fresh process that loads the network on the first device and runs it."""


class SearchSettings(BaseModel):
    """Everything that a user decides about a search; with equal settings and latencies two runs do the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    space_name: str
    """Name or path the space was loaded from."""
    space: SearchSpace
    """The space itself, so that a run folder stands on its own."""
    targets: tuple[Target, ...]
    """Where latency is measured, and how much of it is allowed there; the first one names the front's files."""
    budget_stat: Literal["median", "p90"] = "median"
    """What must keep the budget: the median latency, or its 90th percentile."""
    limits: Limits = Limits()
    """Limits on parameters, MACs and memory."""
    trials: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    """Distinct architectures to evaluate, the reference pool included."""
    pool: Annotated[int, Field(ge=4, le=10_000)] = 40
    """Random architectures evaluated first: the pool against which proxies are ranked."""
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0
    """Seed of sampling and of every proxy."""

    @model_validator(mode="after")
    def _check(self) -> SearchSettings:
        if not self.targets:
            raise ValueError("targets must name at least one device")
        names = [target.device for target in self.targets]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"each device can be a target once, got '{twice.pop()}' twice")
        return self
