"""A place to measure."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from evit_nas.config import Conditions
from evit_nas.latency.values import Latency, Measurable, Protocol, Unit


class Device(ABC):
    """A place to measure: `measure` returns a Latency and the raw samples it came from.

    Use as a context manager; a device may hold a process or a connection open.
    """

    conditions: Conditions

    @abstractmethod
    def measure(self, network: Measurable, protocol: Protocol) -> tuple[Latency, dict[str, Any]]:
        """The latency of `network` here, and the samples in nanoseconds.

        Raises:
            MeasurementError: the runtime rejected the network, died or ran out of time; the device stays usable.
            LostLink: the device is out of reach.
        """

    @abstractmethod
    def context(self) -> dict[str, str]:
        """Everything besides the network and the protocol that changes the number."""

    @abstractmethod
    def close(self) -> None:
        """Releases what the device holds."""

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Steady(Device):
    """A device all of whose figures are by one yardstick, as they are compared in milliseconds.

    Args:
        device: measures.
        unit: of figures that there are already; by default that of the first one.
    """

    def __init__(self, device: Device, unit: Unit | None = None) -> None:
        self.conditions, self._device, self._unit = device.conditions, device, unit

    def measure(self, network: Measurable, protocol: Protocol) -> tuple[Latency, dict[str, Any]]:
        latency, samples = self._device.measure(network, protocol)
        self._unit = self._unit or latency.unit  # a better one may be learnt between two figures
        return latency.by(self._unit), samples

    def context(self) -> dict[str, str]:
        return self._device.context()

    def close(self) -> None:
        self._device.close()
