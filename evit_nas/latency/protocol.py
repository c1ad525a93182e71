"""The paired protocol: a sample of the candidate next to samples of canaries of about its size, again and again.

On a machine that does other work a wall-clock median is off by half. CPU time of the calling thread takes out
pre-emption. What remains (clock frequency, a neighbour on the same core, memory that others use) slows the canaries
too, and how much depends on a network's size: beside busy programs a network of 6 ms repeated within 1 % against one
of its own size and within 15 % against one of 1 ms (benchmarks/canary.py). So in each round the slow-down is taken
from the two canaries that enclose the candidate, interpolated on the logarithm of their times; the candidate's time
divided by it is what it would have taken on the quiet machine. Several threads are timed on the wall clock and a GPU by
its own events: there the canaries alone have to do.

Before each sample the same network runs untimed: a user's network finds its own weights in the caches, not
another's. Without that, large networks evict the canary's weights and look up to a third too fast; with a number of
such runs that falls as networks grow, times step up where it falls.

Pure functions over callables and a clock: no runtime is imported here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evit_nas.latency.values import Protocol

Network = Callable[[], object]  # one inference, finished when it returns
Stopwatch = Callable[[Network, int], float]  # nanoseconds a run, over that many runs

SAMPLE_NS = 1_000_000  # a shorter run is repeated inside its sample: the clock and the call cost too much of it
TIMED_RUNS = 2  # in each sample of the candidate at least: the untimed runs before it cost more
CANARY_RUNS = 1  # in each of a canary at least, as when its quiet time was learnt
REWARM_NS = 4_000_000  # of untimed runs before each sample: how long a small network takes to refill its caches
REWARM_RUNS = 3  # at least: after one run networks of 2 to 6 ms are still 14 to 41 % slow, after three at most 7 %
MEDIAN_SE = 1.2533  # standard error of a median, in standard errors of a mean: sqrt(pi / 2)
MAD_TO_SIGMA = 1.4826  # normal samples: sigma over median absolute deviation
DRIFT_INFLATION = 1.6  # contention drifts slowly: nominal 95 % intervals of one visit covered only 80 %


@dataclass(frozen=True)
class Canary:
    """A network whose time on the quiet machine is known, in several sessions that take turns.

    Where a session's memory happens to lie moves it by a few percent for as long as it lives; several average that out.
    """

    sessions: Sequence[Network]
    quiet_ns: float


@dataclass(frozen=True)
class RawSamples:
    """Raw samples of one visit or more, in nanoseconds a run, and the slow-down that the canaries saw beside each."""

    candidate_ns: np.ndarray  # (n,)
    slowdown: np.ndarray  # (n,) 1 is the quiet machine
    wall_ns: np.ndarray  # (m,) each timed run of the candidate by the wall clock, m >= n

    @property
    def quiet_ns(self) -> np.ndarray:
        """(n,) what the candidate would have taken on the quiet machine."""
        quiet: np.ndarray = self.candidate_ns / self.slowdown
        return quiet

    @property
    def median_ns(self) -> float:
        """Median of `quiet_ns`."""
        return float(np.median(self.quiet_ns))

    @property
    def p90_ns(self) -> float:
        """90th percentile of `quiet_ns`: of means over runs, not of single runs, which scatter more."""
        return float(np.percentile(self.quiet_ns, 90))

    @property
    def rel_error(self) -> float:
        """Inflated standard error of the median, relative to it; infinite below 3 rounds."""
        n = len(self.candidate_ns)
        if n < 3:
            return math.inf
        mad = float(np.median(np.abs(self.quiet_ns - self.median_ns)))
        return DRIFT_INFLATION * MEDIAN_SE * MAD_TO_SIGMA * mad / math.sqrt(n) / self.median_ns


def pool(visits: Sequence[RawSamples]) -> RawSamples:
    """All rounds of several visits."""
    return RawSamples(
        np.concatenate([visit.candidate_ns for visit in visits]),
        np.concatenate([visit.slowdown for visit in visits]),
        np.concatenate([visit.wall_ns for visit in visits]),
    )


def visits_error(visits: Sequence[RawSamples]) -> float:
    """Standard error of the mean over visits, relative to it: what a session's luck with memory adds; 0 for one."""
    medians = np.array([visit.median_ns for visit in visits])
    return float(medians.std(ddof=1) / math.sqrt(len(medians)) / medians.mean()) if len(medians) > 1 else 0.0


def clocked(clock: Callable[[], int]) -> Stopwatch:
    """A stopwatch that reads `clock`, in nanoseconds."""

    def time_runs(network: Network, runs: int) -> float:
        start = clock()
        for _ in range(runs):
            network()
        return (clock() - start) / runs

    return time_runs


cpu_time = clocked(time.thread_time_ns)
wall_time = clocked(time.perf_counter_ns)


def enclosing(canaries: Sequence[Canary], candidate_ns: float) -> list[tuple[Canary, float]]:
    """The one or two canaries next to a candidate of that time, each with its weight; weights add up to 1."""
    ladder = sorted(canaries, key=lambda canary: canary.quiet_ns)
    upper = next((i for i, canary in enumerate(ladder) if canary.quiet_ns >= candidate_ns), len(ladder) - 1)
    low, high = ladder[max(upper - 1, 0)], ladder[upper]
    if low is high or candidate_ns >= high.quiet_ns:
        return [(high, 1.0)]
    share = math.log(candidate_ns / low.quiet_ns) / math.log(high.quiet_ns / low.quiet_ns)
    return [(low, 1 - share), (high, share)]


def measure_rounds(
    candidate: Network,
    canaries: Sequence[Canary],
    protocol: Protocol,
    stopwatch: Stopwatch = cpu_time,
    wall: Stopwatch = wall_time,
) -> RawSamples:
    """Runs candidate and canaries in rounds until the spread is small enough or the rounds run out.

    Two canaries take turns, and each counts with its latest sample: both of them in each round cost half as much time
    again, which on a quiet machine buys nothing. The candidate is always first: a network that ran just
    before finds its caches as it left them, and with an order that alternates every second sample would be such a one.

    Args:
        candidate: the network in question.
        canaries: of several sizes; the one or two next to the candidate's are used.
        protocol: rounds, target error and warm-up.
        stopwatch: times runs; the default counts the CPU time of the calling thread.
        wall: times the same runs of the candidate one by one, as whoever waits for them.
    """
    wall_ns: list[float] = []

    def waited_for() -> None:
        wall_ns.append(wall(candidate, 1))

    candidate_ns = _warm_up(candidate, protocol.warmup_ms, stopwatch)

    def seen(canary: Canary, turn: int) -> float:
        """How many times its quiet time a canary takes just now."""
        network = canary.sessions[turn % len(canary.sessions)]
        return sample(network, canary.quiet_ns, stopwatch) / canary.quiet_ns

    slowdown = math.prod(seen(canary, 0) ** weight for canary, weight in enclosing(canaries, candidate_ns))
    beside = enclosing(canaries, candidate_ns / slowdown)  # next to it in size, not in what it takes just now
    latest = [seen(canary, 0) for canary, _ in beside]
    samples: list[tuple[float, float]] = []
    while True:
        turn = len(samples)
        taken = sample(candidate, candidate_ns, stopwatch, TIMED_RUNS, waited_for)
        if turn:  # for the first, both were seen just now
            latest[turn % len(beside)] = seen(beside[turn % len(beside)][0], turn)
        samples.append((taken, math.prod(slow**weight for slow, (_, weight) in zip(latest, beside, strict=True))))
        taken_ns, slowdown = (np.array(column) for column in zip(*samples, strict=True))
        rounds = RawSamples(taken_ns, slowdown, np.array(wall_ns))
        enough = len(samples) >= protocol.min_rounds and rounds.rel_error <= protocol.visit_rel_error
        if enough or len(samples) >= protocol.max_rounds:
            return rounds


def sample(
    network: Network,
    run_ns: float,
    stopwatch: Stopwatch,
    runs: int = CANARY_RUNS,
    timed: Network | None = None,
) -> float:
    """Nanoseconds a run, of a network that takes about `run_ns`, with its caches refilled; of `runs` at least.

    Args:
        timed: runs the network once and notes something of it, in the runs that are timed.
    """
    for _ in range(max(REWARM_RUNS, math.ceil(REWARM_NS / run_ns))):
        network()
    return stopwatch(timed or network, max(runs, math.ceil(SAMPLE_NS / run_ns)))


def _warm_up(network: Network, warmup_ms: float, stopwatch: Stopwatch) -> float:
    """Runs for `warmup_ms` (five runs at least); returns the nanoseconds of the fastest run."""
    fastest, total, runs = math.inf, 0.0, 0
    while runs < 5 or (total < warmup_ms * 1e6 and runs < 10_000):  # and ends on a clock that stands still
        taken = stopwatch(network, 1)
        fastest, total, runs = min(fastest, taken), total + taken, runs + 1
    return max(fastest, 1.0)  # it is divided by
