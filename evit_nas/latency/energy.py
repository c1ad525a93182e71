"""Energy per inference, where the hardware counts it: RAPL for processors, NVML for NVIDIA GPUs; never an estimate.

Both are counters of everything that runs on that processor or GPU, so they are read before and after a long block of
inferences, and what the idle machine draws just before is taken off. On most systems only root may read RAPL, and
virtual machines have none: then energy is simply not available. A figure derived from a rated power would look like a
measurement and is none.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from evit_nas.config import Conditions
from evit_nas.errors import MeasurementError
from evit_nas.latency.machine import read
from evit_nas.latency.runtimes import RUNTIMES

Meter = Callable[[], float]  # joules since some moment in the past

POWERCAP = Path("/sys/class/powercap")
BLOCK_S = 1.0  # the counters tick every 1 ms (RAPL) to 100 ms (NVML)


def energy_mj(
    run: Callable[[], object],
    meter: Meter,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Millijoules per inference (of the whole batch) above what the idle machine draws.

    Args:
        run: one inference, finished when it returns, warmed up.
        meter: from `meter`.
        clock: seconds.
        sleep: waits that many seconds without work.

    Raises:
        MeasurementError: the machine drew no more than when idle, so other processes were at work before.
    """
    idle_j, idle_s, _ = _spent(lambda: sleep(BLOCK_S), meter, clock)
    busy_j, busy_s, runs = _spent(run, meter, clock)
    joules = busy_j - idle_j / idle_s * busy_s
    if joules <= 0:
        raise MeasurementError(
            f"running drew {busy_j / busy_s:.1f} W, no more than the {idle_j / idle_s:.1f} W before it; "
            "end other work on this machine to measure energy.",
            "noisy",
        )
    return 1000 * joules / runs


def _spent(work: Callable[[], object], meter: Meter, clock: Callable[[], float]) -> tuple[float, float, int]:
    """Joules, seconds and repetitions of `work` over a block."""
    joules, start, runs = meter(), clock(), 0
    while clock() - start < BLOCK_S:
        work()
        runs += 1
    return meter() - joules, clock() - start, runs


def meter(conditions: Conditions) -> Meter | None:
    """The energy counter of the processor or GPU that `conditions` name; None if there is none to be read here."""
    runtime = RUNTIMES.get(conditions.family)
    if runtime is None:
        return None
    if runtime.argument == "index":
        return nvml(int(conditions.argument or 0))
    return rapl()


def rapl(root: Path = POWERCAP) -> Meter | None:
    """The counters of all processor packages together; None unless every one can be read.

    Sub-domains (intel-rapl:0:1: cores, graphics, memory) are parts of their package and "psys" contains it, so neither
    is added. Processors of AMD appear under the same names.
    """
    # intel-rapl-mmio:* are left out: the same packages, seen another way
    packages = [domain for domain in root.glob("intel-rapl:*") if (read(domain / "name") or "").startswith("package")]
    counters = [_Counter(domain) for domain in packages if read(domain / "energy_uj")]
    if not packages or len(counters) < len(packages):
        return None
    return lambda: math.fsum(counter.joules() for counter in counters)


class _Counter:
    """A RAPL domain, counting on where the hardware starts again from 0 (after minutes to hours)."""

    def __init__(self, domain: Path) -> None:
        self._path = domain / "energy_uj"
        self._range_uj = int((domain / "max_energy_range_uj").read_text(encoding="utf-8"))
        self._last_uj = int(self._path.read_text(encoding="utf-8"))
        self._total_uj = 0

    def joules(self) -> float:
        """Since construction."""
        now_uj = int(self._path.read_text(encoding="utf-8"))
        self._total_uj += (now_uj - self._last_uj) % (self._range_uj + 1)  # the range is the last value before 0
        self._last_uj = now_uj
        return self._total_uj / 1e6


def nvml(index: int) -> Meter | None:
    """The counter of the GPU that torch calls cuda:`index`; None without NVML or on a GPU that has no counter."""
    try:
        import pynvml
        import torch

        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(index).uuid  # NVML's own numbering ignores CUDA_VISIBLE_DEVICES
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except (ImportError, RuntimeError, AssertionError):  # no torch, or none that finds the GPU
        return None
    except pynvml.NVMLError:
        return None
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000  # it counts millijoules
