"""A device and proxies that answer at once and always the same, so that a search can be followed exactly."""

from __future__ import annotations

from typing import Any, ClassVar

from evit_nas.arch import ArchConfig
from evit_nas.latency import Device, Latency, Protocol
from evit_nas.network.cost import cost


def latency_of(ms: float, **changes: Any) -> Latency:
    fields: dict[str, Any] = {
        "median_ms": ms,
        "p90_ms": ms * 1.1,
        "rel_error": 0.01,
        "ratio": ms / 2,
        "canary_ms": 2.0,
        "pairs": 12,
        "device": "fake",
        "threads": 1,
        "batch": 1,
        "precision": "fp32",
        "runtime": "none 1.0",
        "machine": "imaginary",
        "noisy": False,
    }
    return Latency.model_validate(fields | changes)


class FakeDevice(Device):
    """One millisecond for each million MACs."""

    name = "fake"
    calls: ClassVar[list[tuple[str, int]]] = []  # of all devices; a fixture clears them
    conditions: ClassVar[dict[str, str]] = {"device": "fake", "processor": "imaginary"}

    def measure(self, arch: ArchConfig, protocol: Protocol) -> tuple[Latency, dict[str, Any]]:
        self.calls.append((arch.key, protocol.visits))
        return latency_of(cost(arch).macs / 1e6), {"candidate_ns": [1.0], "canary_ns": [1.0]}

    def measure_file(self, path: str, protocol: Protocol) -> tuple[Latency, dict[str, Any]]:
        return latency_of(1.0), {}

    def context(self) -> dict[str, str]:
        return dict(self.conditions)

    def close(self) -> None: ...


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
