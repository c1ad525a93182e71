"""One architecture, all its numbers, each computed once: the run's journal is the memo.

A number is remembered by the network's key and by everything else that changes it (device, runtime, protocol,
seed, versions), so it survives being killed, and another machine's figure is never taken for this one's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

from evit_nas import __version__
from evit_nas.accuracy.aggregate import NAMES
from evit_nas.arch import ArchConfig
from evit_nas.config import Conditions
from evit_nas.errors import MeasurementError
from evit_nas.files import Journal
from evit_nas.latency import ENERGY, STRICT, Device, Latency, Protocol, Unit
from evit_nas.latency.machine import measuring_core
from evit_nas.latency.runtimes import RUNTIMES, clock_of
from evit_nas.latency.samples import Table
from evit_nas.latency.yardstick import Units, best_units, said_by
from evit_nas.workers import end, worker_pool

if TYPE_CHECKING:
    from evit_nas.searching.parallel import Cluster

SEARCH = Protocol()


class Work(NamedTuple):
    """What has to be computed once for a network: numbers by name, remembered by `memo_id`."""

    memo_id: str
    function: Callable[[], Callable[[], dict[str, float]]]
    """Gives the function to call, with all that it must import; not asked where the numbers are remembered."""

    @property
    def name(self) -> str:
        """For people, for example proxies of 0f3a5b6c7d8e."""
        kind, key, _ = self.memo_id.split(":")
        return f"{kind} of {key}"


class Evaluator:
    """Measures on `devices` and scores with `seed`, remembering everything in `journal`.

    With `workers`, proxies are computed in processes of their own, off the core that measures; use it as a context
    manager then. With a `cluster`, they are trials there.
    """

    def __init__(
        self,
        devices: Sequence[Device],
        journal: Journal,
        seed: int,
        workers: int = 0,
        cluster: Cluster | None = None,
    ) -> None:
        self.devices, self._journal, self._seed, self._workers = devices, journal, seed, workers
        self._cluster = cluster
        self._pool: ProcessPoolExecutor | None = None
        self._expected: dict[str, Future[Any]] = {}
        self._memo: dict[str, dict[str, Any]] = {record["id"]: record["value"] for record in journal.read()}
        self.units: Units = {}
        """By which it says latencies."""
        self._quickest: dict[str, Latency] = {}  # of each device, the one by the best yardstick
        for memo_id, value in self._memo.items():
            if memo_id.startswith(("latency:", "strict:")):
                self._note_unit(Latency.model_validate(value))

    def repair(self) -> None:
        """Makes the journal fit for appending after a process was killed; only for the run's owner."""
        self._journal.repair()

    def latencies(self, arch: ArchConfig, strict: bool = False) -> tuple[Latency, ...]:
        """Latency on each device by `units`, as quickly as a search needs it or as carefully as what is published."""
        return said_by(self.units, self.measured(arch, strict))

    def measured(self, arch: ArchConfig, strict: bool = False) -> tuple[Latency, ...]:
        """The same by the yardsticks that it was measured by."""
        return tuple(self._latency(arch, device, strict) for device in self.devices)

    def certified(self, arch: ArchConfig) -> bool:
        """Whether the network has been measured strictly on every device, so that it costs nothing to ask again."""
        return all(self._latency_id(arch, device, strict=True) in self._memo for device in self.devices)

    def seen_units(self) -> dict[str, Unit]:
        """The best yardstick of each device: of what was measured for this run, and as this machine knows it by now."""
        return best_units(self._quickest.values())

    def _note_unit(self, latency: Latency) -> None:
        before = self._quickest.get(latency.conditions.device)
        # units compare by their milliseconds first: the quieter one is less
        if latency.unit and (before is None or before.unit is None or latency.unit < before.unit):
            self._quickest[latency.conditions.device] = latency

    def _latency(self, arch: ArchConfig, device: Device, strict: bool) -> Latency:
        memo_id, conditions = self._latency_id(arch, device, strict), device.conditions
        if memo_id in self._memo:
            return Latency.model_validate(self._memo[memo_id])
        if conditions.family in RUNTIMES and clock_of(conditions) != "cpu":
            self._wait_for_workers(conditions)  # any other clock counts what they take from the measurement
        latency, samples = device.measure(arch, STRICT if strict else SEARCH)
        self._remember(memo_id, arch, latency.model_dump(mode="json"), samples=samples)
        self._note_unit(latency)
        Table(device.context(), arch).add(arch, latency)  # what later searches begin their predictions with
        return latency

    def _latency_id(self, arch: ArchConfig, device: Device, strict: bool) -> str:
        kind, protocol = ("strict", STRICT) if strict else ("latency", SEARCH)
        return memo_id_of(kind, arch, device.context() | protocol.model_dump())

    def memory_mb(self, arch: ArchConfig) -> float:
        """Peak resident memory of the network in a fresh process on the first device.

        Raises:
            MeasurementError: it cannot be had there.
        """
        conditions = self.devices[0].conditions
        memo_id = memo_id_of("memory", arch, self.devices[0].context())
        if memo_id not in self._memo:
            from evit_nas.latency import memory

            peak_mb = self._cluster.peak_memory_mb(arch) if self._cluster else memory.peak_memory_mb(arch, conditions)
            self._remember(memo_id, arch, {"memory_mb": peak_mb})
        value: float | None = self._memo[memo_id]["memory_mb"]
        if value is None:
            raise self._without("memory", "the system there does not show the memory of a process")
        return value

    def energy_mj(self, arch: ArchConfig) -> float:
        """Millijoules per inference on the first device, above what it draws when idle.

        Raises:
            MeasurementError: it cannot be had there, or other processes draw too much to tell.
        """
        device = self.devices[0]
        memo_id = memo_id_of("energy", arch, device.context() | ENERGY.model_dump())
        if self._memo.get(memo_id, {}).get("energy_mj") is None:
            self._wait_for_workers(device.conditions)  # the counters count what they draw
            _, samples = device.measure(arch, ENERGY)
            if samples.get("energy_mj") is None:  # perhaps for the moment only: nothing to remember
                raise self._without("energy", "no counter can be read, or other work hides what the network draws")
            self._remember(memo_id, arch, {"energy_mj": samples["energy_mj"]})
        value: float = self._memo[memo_id]["energy_mj"]
        return value

    def _wait_for_workers(self, conditions: Conditions) -> None:
        """Until nothing of the search is at work on the machine of a device; a cluster's and a board are other ones."""
        if self._cluster is None and conditions.family in RUNTIMES:
            wait(self._expected.values())

    def _without(self, name: str, reason: str) -> MeasurementError:
        return MeasurementError(
            f"{name} cannot be had on '{self.devices[0].conditions.device}': {reason}. "
            f"Leave out --objective {name} and --max-{name}."
        )

    def expect(self, arch: ArchConfig) -> None:
        """Begins to compute the proxies in a worker process or on the cluster, if there are any."""
        self.begin_once(self._scoring(arch))

    def proxies(self, arch: ArchConfig) -> dict[str, float]:
        """The zero-cost proxies that the score is made of, by name; higher is better."""
        return self.computed(arch, self._scoring(arch))

    def begin_once(self, work: Work) -> None:
        """Begins it in a worker process or on the cluster, if there are any, unless its outcome is known."""
        if work.memo_id not in self._memo:
            self.begin(work.name, work.function())

    def computed(self, arch: ArchConfig, work: Work) -> dict[str, float]:
        """The numbers of a network; raises what its function and `result` do."""
        if work.memo_id not in self._memo:
            self._remember(work.memo_id, arch, self.result(work.name, work.function()))
        return self._memo[work.memo_id]

    def begin(self, name: str, function: Callable[..., Any], *args: Any) -> None:
        """Has a function called in a worker process or on the cluster, if there are any; `result` tells what came."""
        if (executor := self._executor()) is not None and name not in self._expected:
            with contextlib.suppress(BrokenProcessPool):  # it will be called once those before it are done with
                self._expected[name] = executor.submit(function, *args)

    def result(self, name: str, function: Callable[..., Any], *args: Any) -> Any:
        """What the function that was begun by that name returns; it is called here if there are no workers.

        Raises:
            MeasurementError: its process died again and again.
        """
        if self._executor() is None:
            return function(*args)
        for _ in range(2):  # if a worker dies any of its fellows may be to blame; the second time there are none
            self.begin(name, function, *args)
            try:
                return self._expected.pop(name).result()
            except (BrokenProcessPool, KeyError):  # KeyError: the pool was broken before, see `begin`
                self.rest()
        raise MeasurementError(f"a worker died while it was at {name}", "crashed")

    def _scoring(self, arch: ArchConfig) -> Work:
        def function() -> partial[dict[str, float]]:
            from evit_nas.accuracy.zero_cost import score_all

            return partial(score_all, arch, seed=self._seed, names=NAMES)

        context = {"seed": self._seed, "names": NAMES, "torch": version("torch"), "evit_nas": __version__}
        return Work(memo_id_of("proxies", arch, context), function)

    def _executor(self) -> Executor | None:
        if self._cluster is None and self._pool is None and self._workers:
            self._pool = worker_pool(self._workers, avoid=measuring_core())
        return self._cluster or self._pool

    def rest(self) -> None:
        """Ends what was begun and is not needed any more: what comes next is measured beside nothing."""
        if self._cluster is not None:
            self._cluster.rest()
        if self._pool is not None:
            end(self._pool)
        self._pool = None
        self._expected.clear()

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.rest()

    def _remember(self, memo_id: str, arch: ArchConfig, value: dict[str, Any], **details: Any) -> None:
        self._journal.append({"id": memo_id, "key": arch.key, "value": value, **details})
        self._memo[memo_id] = value


def recorded(journal: Journal, kind: str) -> dict[str, dict[str, Any]]:
    """Key of the network -> its latest value of that kind ("proxies", "memory"), whatever machine made it."""
    return {r["key"]: r["value"] for r in journal.read() if r["id"].startswith(f"{kind}:")}


def recorded_latencies(journal: Journal, kind: str, units: Units) -> dict[str, dict[str, Latency]]:
    """Key of the network -> device -> its latest "latency" or "strict" there, whatever machine made it, by `units`."""
    found: dict[str, dict[str, Latency]] = {}
    for record in journal.read():
        if record["id"].startswith(f"{kind}:"):
            [latency] = said_by(units, [Latency.model_validate(record["value"])])
            found.setdefault(record["key"], {})[latency.conditions.device] = latency
    return found


def memo_id_of(kind: str, arch: ArchConfig, context: dict[str, Any]) -> str:
    """By which a number of a network is remembered: its kind, and all else that changes it."""
    digest = hashlib.sha256(json.dumps(context, sort_keys=True).encode()).hexdigest()[:12]
    return f"{kind}:{arch.key}:{digest}"
