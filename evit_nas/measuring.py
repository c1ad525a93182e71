"""Networks measured side by side, as `evit-nas measure` shows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.config import Conditions
from evit_nas.errors import MeasurementError
from evit_nas.latency import Device, Latency, Measurable, Protocol, open_device
from evit_nas.latency.references import PUBLISHED_TOP1, measure_references
from evit_nas.latency.samples import Table
from evit_nas.latency.yardstick import best_units, said_by


@dataclass(frozen=True)
class Measured:
    """A network and its figures."""

    network: str
    """As it was named."""
    latency: Latency
    memory_mb: float | None = None
    """Peak of a fresh process; None where it was not asked for or cannot be had."""
    energy_mj: float | None = None
    """Of an inference; None where no counter can be read."""
    published_top1: float | None = None
    """On ImageNet-1k in percent, as its authors report it."""

    def plain(self) -> dict[str, Any]:
        """For programs."""
        latency = self.latency
        return {
            "network": self.network,
            **latency.model_dump(mode="json"),
            "ms_error": latency.ms_error,
            "noisy": latency.noisy,
            "memory_mb": self.memory_mb,
            "energy_mj": self.energy_mj,
            "published_top1": self.published_top1,
        }


def measure_all(
    networks: Mapping[str, Measurable],
    conditions: Conditions,
    protocol: Protocol,
    note: Callable[[str], None],
    *,
    memory: bool = False,
    references: bool = False,
) -> tuple[list[Measured], list[str]]:
    """What could be measured, all by one yardstick, and the names of what could not, whose reasons `note` is told.

    Architectures are remembered for predictions.

    Args:
        memory: also the peak of a fresh process of each network; not on boards.
        references: also m0 to m5 and popular small networks, with their published accuracy.

    Raises:
        LostLink: the device is out of reach.
        UsageError: there is no such device, or it does not run what was asked for.
    """
    found: list[Measured] = []
    failed: list[str] = []

    @contextmanager
    def tried(what: str) -> Iterator[None]:
        try:
            yield
        except MeasurementError as error:
            note(f"{what}: {error}")
            failed.append(what)

    with open_device(conditions) as device:
        for name, network in networks.items():
            with tried(name):
                latency, samples = device.measure(network, protocol)
                if isinstance(network, ArchConfig):
                    Table(device.context(), network).add(network, latency)
                found.append(Measured(name, latency, energy_mj=samples.get("energy_mj")))
        if references:
            for name in PRESETS:
                label = f"EfficientViT-{name.upper()}"
                with tried(label):
                    latency, _ = device.measure(ArchConfig.preset(name), protocol)
                    found.append(Measured(label, latency, published_top1=PUBLISHED_TOP1[name]))
            found += _others(device, protocol, note)
    if memory and conditions.family != "remote":
        from evit_nas.latency.memory import peak_memory_mb

        for index, one in enumerate(found):
            if one.network in networks:
                with tried(f"memory of {one.network}"):
                    found[index] = replace(one, memory_mb=peak_memory_mb(networks[one.network], conditions))
    latencies = [one.latency for one in found]
    by_one = said_by(best_units(latencies), latencies)
    return [replace(one, latency=latency) for one, latency in zip(found, by_one, strict=True)], failed


def _others(device: Device, protocol: Protocol, note: Callable[[str], None]) -> list[Measured]:
    return [
        Measured(one.reference.label, one.latency, published_top1=one.reference.published_top1)
        for one in measure_references(device, protocol, note=note)
    ]
