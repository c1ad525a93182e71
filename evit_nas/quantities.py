"""Quantities and devices as people write them: 5ms, cpu=5ms,pi=40ms, 1h30m, 40mJ, 10M, gpu:1."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from evit_nas.errors import UsageError

_MEASURED = re.compile(r"\s*(?P<number>\d+(\.\d*)?|\.\d+)\s*(?P<unit>[a-zA-Zµμ]+)\s*")
# the micro sign, and the Greek letter that some keyboards have for it
_UNIT_MS = {"us": 1e-3, "µs": 1e-3, "μs": 1e-3, "ms": 1.0, "s": 1e3}
_UNIT_MJ = {"uJ": 1e-3, "µJ": 1e-3, "μJ": 1e-3, "mJ": 1.0, "J": 1e3}


def _measured(text: str, units: Mapping[str, float], named: str, option: str, example: str) -> float:
    """A number with one of the units, in the unit whose factor is 1; `named` is what people may write."""
    match = _MEASURED.fullmatch(str(text))  # from Python a number may come, which has no unit
    value = float(match["number"]) * units.get(match["unit"], 0.0) if match else 0.0  # an unknown unit makes 0
    if not value:
        raise UsageError(f"{option} must be a positive number with a unit ({named}), got '{text}'; try {example}.")
    return value


def parse_latency(text: str, option: str = "--budget", example: str = "5ms") -> float:
    """A latency such as "5ms", "750us" or "0.02s" in milliseconds; `option` and `example` are for the error.

    Raises:
        UsageError: not a positive number with a unit.
    """
    return _measured(text, _UNIT_MS, "us, ms or s", option, example)


_ALIASES = {"gpu": "cuda", "int8": "cpu-int8"}


def resolved_device(text: str) -> str:
    """A device as it is called here: cuda:1 where somebody says gpu:1."""
    family, colon, argument = text.partition(":")
    return f"{_ALIASES.get(family, family)}{colon}{argument}"


def parse_budgets(text: str, devices: Sequence[str]) -> list[float]:
    """The budget of each device in milliseconds: "5ms" for one device, "cpu=5ms,pi=40ms" for several.

    A remote device may be called by its host alone (pi for remote:pi), others as `resolved_device` knows them.

    Raises:
        UsageError: a device without a budget, a budget without a device, or not a positive number with a unit.
    """
    if "=" not in str(text):
        if len(devices) > 1:
            example = ",".join(f"{name}=5ms" for name in devices)
            raise UsageError(f"--budget needs one limit for each of the {len(devices)} devices: {example}.")
        return [parse_latency(text)]
    budgets: dict[str, float] = {}
    for part in text.split(","):
        name, _, limit = part.partition("=")
        hosts = [device for device in devices if name.strip() == device.removeprefix("remote:").split(":")[0]]
        found = [device for device in devices if name.strip() == device] or hosts
        found = found or [device for device in devices if resolved_device(name.strip()) == device]
        if not found:
            raise UsageError(f"--budget names the device '{name.strip()}', but --device has {', '.join(devices)}.")
        if found[0] in budgets:
            raise UsageError(f"--budget gives the device '{name.strip()}' two limits.")
        budgets[found[0]] = parse_latency(limit)
    without = [device for device in devices if device not in budgets]
    if without:
        raise UsageError(f"--budget has no limit for the device '{without[0]}'; add {without[0]}=5ms.")
    return [budgets[device] for device in devices]


_DURATION = re.compile(r"\s*(?:(?P<h>\d+)\s*h)?\s*(?:(?P<m>\d+)\s*m(?:in)?)?\s*(?:(?P<s>\d+)\s*s)?\s*")


def parse_duration(text: str) -> float:
    """A length of time as people write it, in seconds: 90s, 10m, 1h30m.

    Raises:
        UsageError: not a positive length of time.
    """
    match = _DURATION.fullmatch(str(text))
    hours, minutes, seconds = (int(match[unit] or 0) for unit in "hms") if match else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if not total:
        raise UsageError(f"--time must be a positive length of time, got '{text}'; try 10m or 1h30m.")
    return float(total)


def parse_energy(text: str) -> float:
    """A limit on energy such as "40mJ" or "0.04J" in millijoules.

    Raises:
        UsageError: not a positive number with a unit.
    """
    return _measured(text, _UNIT_MJ, "uJ, mJ or J", "--max-energy", "40mJ")


def parse_span(text: str, option: str) -> tuple[int, int]:
    """A range of counts such as 100M..300M.

    Raises:
        UsageError: not two positive numbers with .. between.
    """
    least, dots, most = str(text).partition("..")
    if not dots:
        raise UsageError(f"{option} takes a range, got '{text}'; try 100M..300M.")
    return round(parse_quantity(least, option)), round(parse_quantity(most, option))


_QUANTITY = re.compile(r"\s*(?P<number>\d+(\.\d*)?|\.\d+)\s*(?P<unit>[kMG]?)(?P<byte>B?)\s*")
_UNIT = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


def parse_quantity(text: str, option: str) -> float:
    """A count or a number of bytes as people write them: 10M, 300M, 1.2G, 64MB.

    Raises:
        UsageError: not a positive number with k, M or G.
    """
    match = _QUANTITY.fullmatch(str(text))
    value = float(match["number"]) * _UNIT[match["unit"]] if match else 0.0
    if not value:
        raise UsageError(f"{option} must be a positive number, with k, M or G if you like, got '{text}'; try 10M.")
    return value
