"""Latency: what it is (`values.py`), what measures it (`device.py`), and the table of that (`devices.py`)."""

from evit_nas.latency.device import Device, Steady
from evit_nas.latency.devices import DEVICES, open_device, parse_conditions
from evit_nas.latency.values import (
    BOARDS_DEFAULT,
    ENERGY,
    STRICT,
    Latency,
    Measurable,
    Protocol,
    TimmModel,
    Unit,
    about_ms,
)

__all__ = [
    "BOARDS_DEFAULT",
    "DEVICES",
    "ENERGY",
    "STRICT",
    "Device",
    "Latency",
    "Measurable",
    "Protocol",
    "Steady",
    "TimmModel",
    "Unit",
    "about_ms",
    "open_device",
    "parse_conditions",
]
