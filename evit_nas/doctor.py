"""Is a machine, this one or a board, fit to measure on? Versions, clock control, load, the canary against itself."""

from __future__ import annotations

import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from evit_nas import __version__
from evit_nas.config import Conditions
from evit_nas.errors import LostLink, MeasurementError
from evit_nas.latency import STRICT, Device, open_device
from evit_nas.latency.child import MAX_DUEL, MAX_FOREIGN_CORES
from evit_nas.latency.machine import LoadMeter, probe
from evit_nas.latency.remote import RemoteDevice
from evit_nas.latency.yardstick import CANARIES

LOAD_S = 0.2  # over which the load of others is counted
GOOD_DUEL = 0.02  # |canary / canary - 1| that proves the protocol; MAX_DUEL disproves it


@dataclass(frozen=True)
class Finding:
    """One line of the examination; `ok` is None for plain facts."""

    check: str
    result: str
    ok: bool | None = None
    fatal: bool = False


def examine(conditions: Conditions) -> list[Finding]:
    """Everything that matters for latencies measured under `conditions`, in the order of a report.

    Raises:
        UsageError: there is no such device, or no worker answers, or it refuses.
    """
    if conditions.family == "remote":
        return examine_board(RemoteDevice(conditions))
    machine = probe()
    turbo = {True: "on", False: "off", None: "unknown"}[machine.turbo]
    governor_ok = machine.governor in (None, "performance")
    findings = [
        Finding("processor", machine.processor),
        Finding("cores", str(machine.cores)),
        Finding("memory", f"{machine.memory_gb} GiB" if machine.memory_gb else "unknown"),
        Finding("system", machine.system),
        Finding("clock governor", machine.governor or "unknown (virtual machine?)", governor_ok),
        Finding("turbo", turbo),
        Finding("python", machine.python),
        Finding("evit-nas", __version__),
        *_packages(),
        _onnxruntime(),
    ]
    meter = LoadMeter()
    time.sleep(LOAD_S)
    load = meter.foreign_cores()
    if load is not None:
        findings.append(load_of_others(load))
    with open_device(conditions) as opened:
        return [*findings, *duel(opened)]


def examine_board(device: RemoteDevice) -> list[Finding]:
    """Everything that matters for latencies measured on `device`, in the order of a report.

    Raises:
        UsageError: no worker answers, or it refuses.
    """
    begin = time.perf_counter()
    version = str(device.info().get("evit_nas"))
    findings = [Finding("link, there and back", f"{1000 * (time.perf_counter() - begin):.1f} ms")]
    if version != __version__:  # a finding; `device.board` would raise
        return [*findings, Finding("evit-nas", f"{version}, here {__version__}", ok=False, fatal=True)]
    board, machine = device.board, device.board.machine
    findings += [
        Finding("evit-nas", version, ok=True),
        Finding("board", board.host),
        Finding("measures on", f"{board.device}, {board.runtime}"),
        Finding("processor", machine.processor),
        Finding("cores", str(machine.cores)),
        Finding("memory", f"{machine.memory_gb} GiB" if machine.memory_gb else "unknown"),
        Finding("system", machine.system),
        Finding("clock governor", machine.governor or "unknown", machine.governor in (None, "performance")),
        Finding("python", machine.python),
    ]
    load = device.load()
    if load["unfinished_jobs"]:
        findings.append(Finding("jobs of other clients", str(load["unfinished_jobs"]), ok=False))
    elif load["foreign_cores"] is not None:
        findings.append(load_of_others(float(load["foreign_cores"])))
    return [*findings, *duel(device)]


def load_of_others(cores: float) -> Finding:
    """Whether other processes leave a machine quiet enough for milliseconds."""
    return Finding("load of other processes", f"{cores:.2f} cores", cores <= MAX_FOREIGN_CORES)


def _packages() -> list[Finding]:
    found = []
    for name in ("torch", "timm", "optuna", "onnx"):
        try:
            found.append(Finding(name, version(name)))
        except PackageNotFoundError:
            found.append(Finding(name, "not installed", ok=False))
    return found


def _onnxruntime() -> Finding:
    import onnxruntime  # the package's name differs between builds, the module's does not

    names = [name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()]
    return Finding("onnxruntime", f"{onnxruntime.__version__}, runs on {', '.join(names)}")


def duel(device: Device) -> list[Finding]:
    """A canary measured as if it were any network: it must take as long as the canary."""
    try:
        latency, _ = device.measure(CANARIES[0], STRICT)
    except (MeasurementError, LostLink) as error:
        return [Finding("canary against itself", str(error), ok=False, fatal=True)]
    off = abs(latency.ratio - 1)
    return [
        Finding("canary against itself", f"ratio {latency.ratio:.3f}", off <= GOOD_DUEL, fatal=off > MAX_DUEL),
        Finding(
            f"canary, {latency.canary_ms:.2f} ms when quiet",
            f"{latency.doubts}: an estimate" if latency.noisy else "as when quiet",
            not latency.noisy,
        ),
    ]
