"""The table of devices: from what a user gives to `--device` to what measures there.

`DEVICES` maps the first word of it to a `Device`; `runtimes.py` holds the runtime behind each word.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from evit_nas.config import Conditions
from evit_nas.errors import UsageError, did_you_mean
from evit_nas.latency.device import Device
from evit_nas.latency.runtimes import RUNTIMES, Runtime
from evit_nas.latency.values import BOARDS_DEFAULT
from evit_nas.quantities import resolved_device
from evit_nas.yamlio import validate

_log = logging.getLogger(__name__)


def _local(conditions: Conditions) -> Device:
    from evit_nas.latency.local import LocalDevice  # here: by way of the yardstick it imports onnx

    return LocalDevice(conditions)


def _remote(conditions: Conditions) -> Device:
    from evit_nas.latency.remote import RemoteDevice

    return RemoteDevice(conditions)


DEVICES: dict[str, Callable[[Conditions], Device]] = {**dict.fromkeys(RUNTIMES, _local), "remote": _remote}


def parse_conditions(
    device: str,
    *,
    threads: int | None = None,
    batch: int = 1,
    precision: str | None = None,
    entries: Sequence[str] | Mapping[str, str] = (),
) -> Conditions:
    """The conditions that a user's words describe; what is left out takes the device's default.

    Args:
        device: a name in DEVICES (or gpu, or int8), and after a colon what it takes: cpu:4, cuda:1, remote:HOST.
        threads: for one inference; the same as the number in cpu:4.
        batch: images per inference.
        precision: one of those the device has.
        entries: session settings, as a mapping or as `name=value` texts.

    Raises:
        UsageError: no such device, or it does not take what follows its name, or not that precision.
    """
    if (resolved := resolved_device(device)) != device:
        _log.warning("--device %s is %s", device, resolved)
        device = resolved
    family, _, argument = device.partition(":")
    if family not in DEVICES:
        raise UsageError(f"no device is called '{family}'. {did_you_mean(family, DEVICES)}")
    given = _entries(entries)
    if family == "remote":
        precision = precision or BOARDS_DEFAULT
    if family in RUNTIMES:
        runtime = RUNTIMES[family]
        threads = _argued(runtime, family, argument, threads)
        precision = precision or runtime.precisions[0]
        if precision not in runtime.precisions:
            offered = ", ".join(runtime.precisions)
            raise UsageError(f"device '{family}' computes in {offered}, got --precision {precision}.")
        if given and not runtime.takes_entries:
            raise UsageError(f"device '{family}' has no session settings, got --session {next(iter(given))}.")
        if runtime.argument == "threads":  # one name for the same thing
            device = f"{family}:{threads}" if threads and threads > 1 else family
    fields = {
        "device": device,
        "threads": 1 if threads is None else threads,
        "batch": batch,
        "precision": precision or "fp32",
    }
    return validate(Conditions, fields | {"entries": given}, "device")


def _argued(runtime: Runtime, family: str, argument: str, threads: int | None) -> int | None:
    """The number of threads, once it is clear that a device takes what follows its colon."""
    if runtime.argument == "index" and threads is not None:
        raise UsageError(f"device '{family}' takes no --threads: its work is not done by the processor's.")
    if not argument:
        return threads
    if runtime.argument == "threads":
        if not argument.isdecimal() or int(argument) < 1:
            raise UsageError(f"--device {family}:N takes a number of threads, got '{argument}'; try {family}:4.")
        if threads not in (None, int(argument)):
            raise UsageError(f"--device {family}:{argument} and --threads {threads} disagree; leave one out.")
        return int(argument)
    if runtime.argument == "index" and not argument.isdecimal():
        raise UsageError(f"--device {family}:N takes the number of a GPU, got '{argument}'; try {family}:0.")
    if runtime.argument is None:
        raise UsageError(f"device '{family}' takes nothing after a colon, got '{argument}'.")
    if runtime.argument != "index" and argument != runtime.argument:
        raise UsageError(f"device '{family}' takes ':{runtime.argument}' or nothing, got '{argument}'.")
    return threads


def _entries(entries: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    if isinstance(entries, Mapping):
        return dict(entries)
    pairs = [entry.partition("=") for entry in entries]
    for entry, (name, equals, _) in zip(entries, pairs, strict=True):
        if not name or not equals:
            raise UsageError(f"a session entry reads name=value, got '{entry}'.")
    found = {name: value for name, _, value in pairs}
    if len(found) < len(pairs):
        raise UsageError("a session entry can be given once; leave the repeated one out.")
    return found


def open_device(conditions: Conditions) -> Device:
    """The device that `conditions` name, ready to measure.

    Raises:
        UsageError: it cannot run here, or not with so many threads; says why.
    """
    runtime = RUNTIMES.get(conditions.family)
    missing = runtime.missing(conditions.family) if runtime else None
    if missing:
        raise UsageError(f"device '{conditions.device}' cannot run here: {missing}")
    if runtime:  # one of this machine: a board has other cores
        from evit_nas.latency.machine import check_threads

        check_threads(conditions)
    return DEVICES[conditions.family](conditions)
