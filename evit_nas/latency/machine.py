"""This machine, as far as a latency depends on it: processor, load, clock control; all may be unknown."""

from __future__ import annotations

import ctypes
import math
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from evit_nas.config import Conditions
from evit_nas.errors import UsageError
from evit_nas.latency.runtimes import RUNTIMES

PR_SET_PDEATHSIG = 1  # of prctl(2)
# of each core, in units of their own: ARM's and new kernels', AMD's and Intel's, and the clock
SPEEDS = ("cpu_capacity", "acpi_cppc/highest_perf", "cpufreq/cpuinfo_max_freq")
ONE_KIND = 0.8  # of the fastest: favoured cores of one kind differ by a few percent, kinds by a quarter or more


class Machine(BaseModel):
    """What a reader needs to know about the machine behind a figure."""

    model_config = ConfigDict(frozen=True)

    processor: str
    cores: int
    memory_gb: float | None
    system: str
    python: str
    governor: str | None
    """cpufreq governor; None in most virtual machines and containers, where it cannot be read."""
    turbo: bool | None


def probe() -> Machine:
    """This machine."""
    return Machine(
        processor=processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_gb=_memory_gb(),
        system=platform.platform(terse=True),
        python=platform.python_version(),
        governor=read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        turbo=_turbo(),
    )


def processor() -> str:
    """Name of the processor, or of the board it is on, and the numbers of its silicon."""
    info = read("/proc/cpuinfo") or ""
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {name.strip(): value.strip() for name, value in fields.items()}
    board = (read("/proc/device-tree/model") or "").rstrip("\0")  # as C writes a text
    name = fields.get("model name") or board or fields.get("Hardware") or platform.processor() or platform.machine()
    # virtual machines often hide the marketing name and 64-bit ARM has none; numbers still identify the silicon
    first, second = ("cpu family", "model") if "model name" in fields else ("CPU implementer", "CPU part")
    if fields.get(first) and fields.get(second):
        name = f"{name} ({first.split()[-1]} {fields[first]}, {second.split()[-1]} {fields[second]})"
    own = os.sched_getaffinity(0)
    fastest = _fastest(own | set(range(os.cpu_count() or 1)))
    return name if own & fastest else f"{name}, slower cores"  # whose figures are others


def machine_of(conditions: Conditions) -> str:
    """The processor, or the GPU as its driver calls it, that `conditions` measure on."""
    if RUNTIMES[conditions.family].argument != "index":
        return processor()
    return _gpu(int(conditions.argument or 0))


@cache
def _gpu(index: int) -> str:
    """The GPU that CUDA numbers so; nvidia-smi counts in another order, and does not heed CUDA_VISIBLE_DEVICES."""
    try:
        import torch

        seen = torch.cuda.get_device_properties(index)
        # a part of a GPU (MIG) has the name of the whole, and less memory
        named, known = f"GPU-{seen.uuid}", f"{seen.name}, {seen.total_memory / 2**30:.0f} GiB"
    except (ImportError, RuntimeError, AssertionError):  # no torch, or none that finds the GPU
        named, known = str(index), f"GPU {index}"
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "-i", named]
    try:
        return subprocess.run(query, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return known


def usable_cores() -> int:
    """Cores that this process can keep busy: those it may run on, as far as its control groups' quota goes."""
    return max(1, min([len(os.sched_getaffinity(0)), *map(math.ceil, _quotas())]))  # half a core runs a thread too


def check_threads(conditions: Conditions) -> None:
    """Refuses threads that would wait for each other's core: their figures belong to no machine.

    Raises:
        UsageError: `conditions` ask for more threads than there are cores; says which there are.
    """
    most = usable_cores()
    if conditions.threads > most:
        raise UsageError(
            f"device '{conditions.device}' with {conditions.threads} threads needs a core for each, and {_cores()}: "
            f"ask for {most} at most."
        )


def _cores() -> str:
    """Those that this process may use, by number, and how much of them."""
    own = sorted(os.sched_getaffinity(0))
    listed = ", ".join(map(str, own[:-1])) + (" and " if own[1:] else "") + str(own[-1])
    if len(own) > 2 and own[-1] - own[0] == len(own) - 1:
        listed = f"{own[0]} to {own[-1]}"
    who = "this machine has" if len(own) == os.cpu_count() else f"this process may use, of {os.cpu_count()},"
    quota = "" if usable_cores() == len(own) else f", with a CPU quota of {usable_cores()}"
    return f"{who} core{'s' if own[1:] else ''} {listed}{quota}"


def _quotas() -> Iterator[float]:
    """In cores: the CPU quota of each control group that this process is in, of either version; a group that has none
    is left out."""
    for line in (read("/proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):  # those of version 2 are not named
            continue
        root = Path("/sys/fs/cgroup/cpu" if controllers else "/sys/fs/cgroup")
        group = root / path.lstrip("/")  # of a container perhaps as its host names it, and not there: its parents are
        for folder in [group, *group.parents][: len(group.parts) - len(root.parts) + 1]:  # parents' quotas bind too
            texts = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
            numbers = " ".join(read(str(folder / text)) or "" for text in texts).split()
            if len(numbers) == 2 and numbers[0].isdecimal():  # else "max", -1, or no such file
                yield int(numbers[0]) / int(numbers[1])


def measuring_core() -> frozenset[int]:
    """The core that one-thread measurements are pinned to: of the fastest the last, as core 0 serves most interrupts.

    Empty where the system knows no pinning.
    """
    return frozenset({max(_fastest(os.sched_getaffinity(0)))} if hasattr(os, "sched_getaffinity") else ())


def _fastest(cores: set[int]) -> set[int]:
    """Those of the fastest kind, where a processor has several; all where the system does not tell."""
    for file in SPEEDS:
        texts = {core: read(f"/sys/devices/system/cpu/cpu{core}/{file}") or "" for core in cores}
        if all(text.isdecimal() for text in texts.values()):
            speeds = {core: int(text) for core, text in texts.items()}
            return {core for core in cores if speeds[core] >= ONE_KIND * max(speeds.values())}
    return cores


def installation() -> str:
    """What tells this machine from others of its kind: the operating system's own number; empty where it has none."""
    return read("/etc/machine-id") or read("/var/lib/dbus/machine-id") or ""


def boot() -> str:
    """What this machine's run of the operating system is called, in all of its containers; else the host's name."""
    return (read("/proc/sys/kernel/random/boot_id") or platform.node())[:12]


def pin_to_one_core() -> None:
    """Keeps this process on `measuring_core`, where the system allows it."""
    if core := measuring_core():
        os.sched_setaffinity(0, core)


def die_with_parent() -> None:
    """Ends this process with the thread that started it, even if that is killed; on Linux only.

    Else the child of a killed search measures on, beside whatever is measured next.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def every_core() -> frozenset[int]:
    """The cores that this user's work may run on: those of the process that started this one, which may be pinned."""
    try:
        return frozenset(os.sched_getaffinity(os.getppid()))
    except OSError:  # it has ended
        return frozenset(os.sched_getaffinity(0))


class LoadMeter:
    """Counts how busy other processes keep `cores`, or those that this process may use, from its construction on."""

    def __init__(self, cores: frozenset[int] | None = None) -> None:
        self._cores = cores or frozenset(os.sched_getaffinity(0))
        self._start = (_busy_seconds(self._cores), time.process_time(), time.monotonic())

    def foreign_cores(self) -> float | None:
        """Cores kept busy by other processes since the start; None where /proc/stat cannot be read."""
        busy, own, begin = self._start
        now = _busy_seconds(self._cores)
        elapsed = time.monotonic() - begin
        if busy is None or now is None or elapsed <= 0:
            return None
        return max(0.0, (now - busy - (time.process_time() - own)) / elapsed)


def _busy_seconds(numbers: frozenset[int]) -> float | None:
    """Of the cores with these numbers: a container shows all those of its host."""
    text = read("/proc/stat")
    if not text:
        return None
    cores, busy = {f"cpu{number}" for number in numbers}, 0
    for line in text.splitlines():
        name, *ticks = line.split()
        if name in cores:
            # what follows, the time of guests, is in user and nice already
            user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = map(int, ticks)
            busy += user + nice + system + irq + softirq + steal
    return busy / os.sysconf("SC_CLK_TCK")


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


def _turbo() -> bool | None:
    no_turbo = read("/sys/devices/system/cpu/intel_pstate/no_turbo")
    if no_turbo is not None:
        return no_turbo == "0"
    boost = read("/sys/devices/system/cpu/cpufreq/boost")
    return None if boost is None else boost == "1"


def read(path: Path | str) -> str | None:
    """What the system says in a file, without the white space around it; None if it has none or will not show it."""
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None
