"""Latency: what a number of milliseconds is here, and the table of devices that can produce one.

A latency is never a bare float: `Latency` carries its spread and the conditions it was measured under.
`DEVICES` maps the name a user gives to `--device` to the function that measures there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from evit_nas.arch import ArchConfig
from evit_nas.errors import UsageError, did_you_mean


class Latency(BaseModel):
    """One network's time per inference on one device, with how it was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    median_ms: float
    """Median time per inference in milliseconds on the quiet machine: `ratio` times `canary_ms`."""
    p90_ms: float
    """90th percentile of the same; on a noisy machine it holds the noise as well."""
    rel_error: float
    """Standard error of the median as a share of it, inflated for drift between visits."""
    ratio: float
    """Median over pairs of (this network / canary): what stays true on a loaded machine."""
    canary_ms: float
    """The canary's time on this machine when quiet, in milliseconds."""
    pairs: int
    """Number of (network, canary) pairs of samples."""
    device: str
    """As given to --device."""
    threads: int
    """Threads the runtime used for one inference."""
    batch: int
    """Images per inference."""
    precision: str
    """Arithmetic of the deployed graph, for example fp32."""
    runtime: str
    """Runtime and version, for example onnxruntime 1.32.0."""
    machine: str
    """Processor the figure belongs to."""
    noisy: bool
    """The machine was not quiet while measuring: trust `ratio`, take the milliseconds as an estimate."""

    def __str__(self) -> str:
        spread = max(self.rel_error, 0.001)
        mark = " (noisy)" if self.noisy else ""
        return f"{self.median_ms:.2f} ms ± {100 * spread:.1f}%{mark}"

    @property
    def high_ms(self) -> float:
        """Upper end of the median's uncertainty in milliseconds; what must hold a budget."""
        return self.median_ms * (1 + self.rel_error)


class Protocol(BaseModel):
    """How carefully to measure. The defaults suit a search; `STRICT` is for what is published."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    min_pairs: int = 12
    """Pairs of (network, canary) runs at least; 8 to 12 is where more pairs stop helping."""
    max_pairs: int = 48
    """Pairs at most."""
    target_rel_error: float = 0.02
    """Stop between the two once the inflated standard error of the median falls to this share of it."""
    warmup_ms: float = 50.0
    """Time spent running, not measuring, before the first pair."""
    visits: int = 1
    """Independent visits (new session, new warm-up) whose pairs are pooled."""


# Two sessions: where a session's memory happens to lie moves it by a few percent for as long as it lives.
STRICT = Protocol(min_pairs=24, max_pairs=40, target_rel_error=0.01, visits=2)


class Device(ABC):
    """A place to measure: `measure` returns a Latency and the raw samples it came from.

    Use as a context manager; a device may hold a process or a connection open.
    """

    name: str

    @abstractmethod
    def measure(self, arch: ArchConfig, protocol: Protocol) -> tuple[Latency, dict[str, Any]]:
        """The latency of `arch`'s deploy graph here, and the samples in nanoseconds.

        Raises:
            MeasurementError: the runtime rejected the graph, died or ran out of time; the device stays usable.
        """

    @abstractmethod
    def measure_file(self, path: str, protocol: Protocol) -> tuple[Latency, dict[str, Any]]:
        """As `measure`, for an ONNX file."""

    @abstractmethod
    def context(self) -> dict[str, str]:
        """Everything besides the architecture and the protocol that changes the number."""

    @abstractmethod
    def close(self) -> None:
        """Releases what the device holds."""

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _cpu() -> Device:
    from evit_nas.latency.cpu import CpuDevice

    return CpuDevice()


DEVICES: dict[str, Callable[[], Device]] = {
    "cpu": _cpu,  # ONNX Runtime, one thread, batch 1, fp32
}


def open_device(name: str) -> Device:
    """The device called `name`, ready to measure.

    Raises:
        UsageError: no such device.
    """
    if name not in DEVICES:
        raise UsageError(f"no device is called '{name}'. {did_you_mean(name, DEVICES)}")
    return DEVICES[name]()


def ratio_table(latencies: Sequence[Latency]) -> list[float]:
    """Each latency relative to the first, from ratios to the canary (robust against load)."""
    return [latency.ratio / latencies[0].ratio for latency in latencies]
