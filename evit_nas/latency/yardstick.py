"""The yardstick: what the canaries take on this machine when it is quiet. It turns ratios into milliseconds.

Ratios to a canary of about the same size repeat on a loaded machine, absolute times do not; and no machine says which
of its moments are quiet. So canary samples fall into windows of a few, a window stands for what its quickest samples
say, and the yardstick is the mean of the best windows that were ever seen, at most one of each five seconds: what a
neighbour takes, it takes for a while. The more moments there were, the more it is worth. Every measurement of every
process adds its windows, so it changes in one direction only, and by ever less; it is kept for a machine, a runtime
and conditions in the user's cache folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import geometric_mean
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from evit_nas.arch import ArchConfig, StageConfig
from evit_nas.caches import cache_folder
from evit_nas.config import Conditions
from evit_nas.files import write_atomically
from evit_nas.latency.machine import installation, machine_of
from evit_nas.latency.runtimes import RUNTIMES
from evit_nas.latency.values import Latency, Unit
from evit_nas.network.onnx_graph import build_onnx

# About 1, 3 and 6 ms on one core of a server: what a search looks at lies between them or not far beside.
# The smallest has a few megabytes of weights: soon back in the caches, and yet slowed down by a slow memory.
CANARIES = (
    ArchConfig(stages=tuple(StageConfig(width=width, depth=1, heads=2, q_kernels=(5, 5)) for width in (48, 96, 192))),
    ArchConfig.preset("m1"),
    ArchConfig.preset("m4"),
)
WINDOW = 12  # samples: a second or less, short enough to be quiet as a whole now and then
QUICKEST = 10  # percentile of a window that stands for it: of a dozen the second, so that one freak sample is none
MOMENT_S = 5.0
BEST = 3  # moments whose mean is the yardstick
# How far off it may be for want of quiet moments, as a share; docs/results/first_use.md has what was seen.
FIRST, FIRST_MOMENTS = 0.1, 6  # after a first use; then it goes with the root of the moments, 4 % after three minutes
BESIDE_WORK = 0.15  # as long as other processes have kept a core busy all the time
BUSY_CORES, BUSY_SHARE = 0.25, 0.02  # kept by others: the first, or so many of a large machine's, whose daemons add up

Units = Mapping[str, Unit]  # by the name of the device

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Window(BaseModel):
    """The quickest moments of a few canary samples."""

    model_config = ConfigDict(frozen=True)

    ms: Positive
    """Of the smallest canary."""
    shape: tuple[Positive, ...]
    """What each canary takes, in units of the smallest."""
    beside_work: bool
    """Whether other processes kept a core busy meanwhile."""
    at: float
    """When it was seen, in seconds since 1970."""

    @property
    def moment(self) -> int:
        """Number of the moment it belongs to."""
        return int(self.at / MOMENT_S)


class Yardstick(BaseModel):
    """The best windows, best first."""

    model_config = ConfigDict(frozen=True)

    identity: str
    """Of the device that it belongs to: see `identity_of`."""
    windows: Annotated[tuple[Window, ...], Field(min_length=1)]
    calm: bool = False
    """Whether one was ever seen, best or not, while no other process kept a core busy."""
    moments: int = 1
    """How many were seen."""
    latest: int = 0
    """Number of the last of them."""

    @classmethod
    def first(cls, identity: str, window: Window) -> Yardstick:
        """Of a device that has never been used."""
        return cls(identity=identity, windows=(window,), calm=not window.beside_work, latest=window.moment)

    @property
    def ms(self) -> float:
        """The smallest canary's time on the quiet machine."""
        return geometric_mean(window.ms for window in self.windows)

    @property
    def quiet_ms(self) -> list[float]:
        """All canaries' times, smallest first."""
        return [self.ms * share for share in self.windows[0].shape]

    @property
    def rel_error(self) -> float:
        """How far `ms` may be off, as a share of it: half of what the best windows differ by, and more if need be."""
        apart = self.windows[-1].ms / self.windows[0].ms - 1
        to_come = FIRST * math.sqrt(min(FIRST_MOMENTS / self.moments, 1.0))
        return max(apart / 2, to_come, 0.0 if self.calm else BESIDE_WORK)

    def seen(self, *windows: Window) -> Yardstick:
        """It and these windows, of which the best of each moment counts."""
        moments: dict[int, Window] = {}
        for window in sorted([*self.windows, *windows], key=lambda window: window.ms):
            moments.setdefault(window.moment, window)
        new = {window.moment for window in windows if window.moment > self.latest}
        calm = self.calm or not all(window.beside_work for window in windows)
        return self.model_copy(
            update={
                "windows": tuple(moments.values())[:BEST],
                "calm": calm,
                "moments": self.moments + len(new),
                "latest": max(new, default=self.latest),
            }
        )


def window_of(samples_ms: Sequence[Sequence[float]], beside_work: bool) -> Window:
    """The window of samples that each hold all canaries, in the order of CANARIES.

    Their ratios come from the quicker half: what slows a machine down slows large and small networks differently.
    """
    rows = np.array(samples_ms)  # (n, canaries)
    level = np.exp(np.log(rows).mean(1))  # (n,)
    quick = np.median(rows[level <= np.median(level)], axis=0)  # (canaries,)
    shape = quick / quick[0]
    scale = math.exp(np.log(shape).mean())
    ms = float(np.percentile(level, QUICKEST)) / scale  # of the smallest canary: a level is the mean of all
    return Window(ms=ms, shape=tuple(shape.tolist()), beside_work=beside_work, at=time.time())


def identity_of(conditions: Conditions) -> str:
    """What the yardstick of a device depends on, as a hash: machine, processor, runtime, conditions, canary graphs."""
    version = RUNTIMES[conditions.family].version(conditions.family)
    # two machines of one processor may share a cache folder, and differ in memory, cooling and neighbours
    where = f"{installation()}; {machine_of(conditions)}"
    digest = hashlib.sha256(f"{where}; {version}; {conditions.model_dump_json()}".encode())
    for arch in CANARIES:
        digest.update(build_onnx(arch).SerializeToString())  # with the version of this package in it
    return digest.hexdigest()[:12]


def known(identity: str) -> Yardstick | None:
    """The yardstick as this machine knows it by now; None if it does not, or the file is damaged."""
    try:
        return Yardstick.model_validate_json(path_of(identity).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def kept(yardstick: Yardstick) -> Yardstick:
    """The yardstick with what other processes have seen meanwhile, as it is kept from now on.

    Without a folder to keep it in, it is learnt anew by every process.
    """
    with suppress(OSError), _locked(path_of(yardstick.identity)) as path:
        others = known(yardstick.identity)
        if others is not None:
            own = yardstick.model_dump(include={"calm", "moments", "latest"})
            # of moments the larger number, no sum: both may have seen the same ones
            most = {name: max(value, getattr(others, name)) for name, value in own.items()}
            yardstick = others.seen(*yardstick.windows).model_copy(update=most)
        if yardstick != others:
            write_atomically(path, yardstick.model_dump_json())
    return yardstick


def best_units(latencies: Iterable[Latency]) -> dict[str, Unit]:
    """The best yardstick of each device that these were measured by, or that this machine knows for it by now."""
    found: dict[str, Unit] = {}
    identities: dict[str, str] = {}
    for latency in latencies:
        device, unit = latency.conditions.device, latency.unit
        if unit is not None:
            found[device] = min(unit, found.get(device, unit))  # by ms first
            identities[device] = latency.yardstick
    for device, identity in identities.items():
        if now := known(identity):
            found[device] = min(Unit(now.ms, now.rel_error), found[device])
    return found


def said_by(units: Units, latencies: Iterable[Latency]) -> tuple[Latency, ...]:
    """The same measurements, all by these units."""
    return tuple(latency.by(units.get(latency.conditions.device)) for latency in latencies)


@contextmanager
def _locked(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("ab") as lock:  # `write_atomically` puts a new file in the place of `path`
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path


def path_of(identity: str) -> Path:
    """Where the yardstick of a device is kept."""
    return cache_folder() / f"yardstick-{identity}.json"
