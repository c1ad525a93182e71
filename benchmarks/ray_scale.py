"""What a search with many workers waits for: simulated workers, the real search loop, and what a call costs.

    PYTHONPATH=. python benchmarks/ray_scale.py --workers 1 8 64 512 --rounds 4

The workers are simulated: a score takes as long as a real one does (log-normal around `--score-s`), a measurement
`--measure-s`, but nothing is computed. The search around them is the real one and runs in real time: proposals, record,
journal and forecasts cost what they cost. For each number of workers it prints candidates a minute, what the driver
spent on one candidate, and how long it waited for scores. Then calls that do nothing, answered by real trials, tell how
many of them a second one driver can hand out; that bounds any cluster, however many workers it has.
"""

from __future__ import annotations

import argparse
import cProfile
import heapq
import itertools
import os
import pstats
import random
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evit_nas.accuracy import zero_cost
from evit_nas.latency import DEVICES
from evit_nas.latency.machine import probe
from evit_nas.searching import study
from tests.fakes import FakeDevice, fake_proxies
from tests.searches import Silent
from tests.test_resume import new_run

SPREAD = 0.3  # of the logarithm of a score's time


class Simulated(Executor):
    """So many workers, each of which takes its time and then answers at once."""

    def __init__(self, workers: int, seconds: float) -> None:
        self._free = [0.0] * workers  # when each of them will be
        self._seconds, self._rng = seconds, random.Random(0)
        self._due: list[tuple[float, int, Future[Any], Callable[[], Any]]] = []
        self._news, self._count = threading.Condition(), itertools.count()
        threading.Thread(target=self._answer, daemon=True).start()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self._news:
            begin = max(heapq.heappop(self._free), time.monotonic())
            end = begin + self._seconds * self._rng.lognormvariate(0, SPREAD)
            heapq.heappush(self._free, end)
            heapq.heappush(self._due, (end, next(self._count), future, lambda: function(*args, **kwargs)))
            self._news.notify()
        return future

    def rest(self) -> None: ...

    def _answer(self) -> None:
        while True:
            with self._news:
                while not self._due or self._due[0][0] > time.monotonic():
                    self._news.wait(self._due[0][0] - time.monotonic() if self._due else None)
                _, _, future, answer = heapq.heappop(self._due)
            future.set_result(answer())


class SlowDevice(FakeDevice):
    """Measures as fast as a real one."""

    seconds = 0.0

    def measure(self, subject: Any, protocol: Any) -> Any:
        time.sleep(self.seconds if protocol.visits == 1 else 0)
        return super().measure(subject, protocol)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 8, 64, 512])
    parser.add_argument("--rounds", type=int, default=3, help="of as many candidates as there are workers")
    parser.add_argument("--score-s", type=float, default=1.6)
    parser.add_argument("--measure-s", type=float, default=0.35)
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--tune", type=int, nargs="*", default=[2, 8], help="real trials, for calls that do nothing")
    wish = parser.parse_args()
    print(
        f"machine: {probe()}\nscores take {wish.score_s} s, measurements {wish.measure_s} s, sampler {wish.sampler}\n"
    )
    print(f"{'workers':>8}{'trials':>8}{'a minute':>10}{'ideal':>8}  driver's seconds for one candidate")
    for workers in wish.workers:
        simulate(workers, wish)
    for places in wish.tune:
        call_overhead(places)


def simulate(workers: int, wish: argparse.Namespace) -> None:
    DEVICES["fake"], zero_cost.score_all, SlowDevice.seconds = SlowDevice, fake_proxies, wish.measure_s
    trials = max(wish.rounds * workers, 40)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        run = new_run(
            Path(folder) / "run", trials=trials, pool=8, together=max(workers, 4), sampler=wish.sampler, workers=workers
        )
        cluster = Simulated(workers, wish.score_s)

        @contextmanager
        def connected(*_: Any) -> Any:
            yield cluster

        study.open_cluster = connected
        study.open_devices = lambda settings, _: DevicesOf(settings)
        profile, start = cProfile.Profile(), time.monotonic()
        profile.runcall(study.Search(run, Silent()).run)
        seconds = time.monotonic() - start
    spent = {name: share / trials for name, share in cumulative(profile).items()}
    ideal = 60 * workers / wish.score_s
    told = ", ".join(f"{name} {each:.3f}" for name, each in spent.items())
    print(f"{workers:8}{trials:8}{60 * trials / seconds:10.0f}{ideal:8.0f}  {told}", flush=True)


class DevicesOf:
    """Stands for `open_devices`."""

    def __init__(self, settings: Any) -> None:
        self._devices = [SlowDevice(target.conditions) for target in settings.targets]

    def __enter__(self) -> list[SlowDevice]:
        return self._devices

    def __exit__(self, *exc: object) -> None: ...


def cumulative(profile: cProfile.Profile) -> dict[str, float]:
    """Seconds in the parts of the loop."""
    wanted = {
        "waiting for scores": ("evaluate.py", "result"),
        "measuring": ("evaluate.py", "measured"),
        "proposing": ("rounds.py", "make"),
        "recording": ("study.py", "add_trial"),
        "forecasting": ("forecast.py", "learn"),
    }
    found = dict.fromkeys(wanted, 0.0)
    statistics = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for (file, _, function), (_, _, _, seconds, _) in statistics.items():
        for name, (part, called) in wanted.items():
            if function == called and Path(file).name == part:
                found[name] += seconds
    return found


def call_overhead(places: int, calls: int = 500) -> None:
    """Prints what a call costs that does nothing."""
    from evit_nas.searching.parallel import Cluster

    DEVICES["fake"] = FakeDevice
    with tempfile.TemporaryDirectory() as folder:
        run = new_run(Path(folder) / "run", engine="ray", cluster={"concurrent": places})
        with Cluster(run.settings, run.path, print) as cluster:
            for answer in [cluster.submit(os.getpid) for _ in range(2 * places)]:
                answer.result()
            start = time.monotonic()
            for answer in [cluster.submit(os.getpid) for _ in range(calls)]:
                answer.result()
            each = (time.monotonic() - start) / calls
    print(f"{places} trials: {1000 * each:.1f} ms for a call that does nothing, {1 / each:.0f} calls a second")


if __name__ == "__main__":
    main()
