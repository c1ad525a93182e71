"""A device and proxies that answer at once and always the same, so that a search can be followed exactly."""

from __future__ import annotations

from typing import Any, ClassVar

from evit_nas.arch import ArchConfig
from evit_nas.config import Conditions
from evit_nas.latency import Device, Latency, Measurable, Protocol
from evit_nas.network.cost import cost


def latency_of(ms: float, **changes: Any) -> Latency:
    fields: dict[str, Any] = {
        "median_ms": ms,
        "p90_ms": ms * 1.1,
        "rel_error": 0.01,
        "ratio": ms / 2,
        "canary_ms": 2.0,
        "canary_error": 0.005,
        "wall_ms": ms * 1.2,
        "wall_p90_ms": ms * 1.5,
        "rounds": 12,
        "conditions": Conditions(device="fake"),
        "input_shape": (1, 3, 224, 224),
        "clock": "cpu",
        "runtime": "none 1.0",
        "machine": "imaginary",
    }
    return Latency.model_validate(fields | changes)


class FakeDevice(Device):
    """One millisecond for each million MACs; "fake:2" is half as fast."""

    calls: ClassVar[list[tuple[str, int]]] = []  # of all devices; a fixture clears them
    machine: ClassVar[dict[str, str]] = {"processor": "imaginary"}

    def __init__(self, conditions: Conditions) -> None:
        self.conditions = conditions

    def measure(self, subject: Measurable, protocol: Protocol) -> tuple[Latency, dict[str, Any]]:
        assert isinstance(subject, ArchConfig)
        self.calls.append((subject.key, protocol.visits))
        ms = cost(subject).macs / 1e6 * float(self.conditions.argument or 1)
        return latency_of(ms, conditions=self.conditions), {"visits": []}

    def context(self) -> dict[str, str]:
        return {"conditions": self.conditions.model_dump_json(), **self.machine}

    def close(self) -> None: ...


class Powered(FakeDevice):
    """One that counts energy: a millijoule for each million MACs."""

    def measure(self, subject: Measurable, protocol: Protocol) -> tuple[Latency, dict[str, Any]]:
        assert isinstance(subject, ArchConfig)
        latency, samples = super().measure(subject, protocol)
        return latency, samples | ({"energy_mj": cost(subject).macs / 1e6} if protocol.energy else {})


def fake_proxies(arch: ArchConfig, *, seed: int = 0, names: object = None) -> dict[str, float]:
    """Deterministic stand-ins: sums over the configuration that favour some shapes over others."""
    size = cost(arch)
    heads = sum(stage.heads * stage.qk_dim for stage in arch.stages)
    return {
        "params": size.params,
        "macs": size.macs,
        "snip": size.params**0.5,
        "synflow_log": size.depth,
        "az_expressivity": heads + size.macs / 1e7,
    }
