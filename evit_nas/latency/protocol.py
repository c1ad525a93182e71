"""The paired protocol: a sample of the canary, a sample of the candidate, alternating order, in thread CPU time.

On a machine that does other work a wall-clock median is off by half; the median over pairs of the CPU-time
ratio candidate / canary repeats within 2 %. Thread CPU time removes pre-emption, the pairing removes clock
frequency and neighbours, which slow both networks of a pair alike. CPU time sees only the calling thread, so this
protocol is for one-thread inference.

Before each sample the same network runs untimed: a user's network finds its own weights in the caches, not
another's. Without that, large networks evict the canary's weights and look up to a third too fast.

Pure functions over callables and a clock: no runtime is imported here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evit_nas.latency import Protocol

Clock = Callable[[], int]  # nanoseconds

SAMPLE_NS = 1_000_000  # a shorter run is repeated inside its sample: the clock and the call cost too much of it
REWARM_NS = 4_000_000  # of untimed runs before each sample: how long a small network takes to refill its caches
MEDIAN_SE = 1.2533  # standard error of a median, in standard errors of a mean: sqrt(pi / 2)
MAD_TO_SIGMA = 1.4826  # normal samples: sigma over median absolute deviation
DRIFT_INFLATION = 1.6  # contention drifts slowly: nominal 95 % intervals of one visit covered only 80 %


@dataclass(frozen=True)
class Pairs:
    """Raw samples: nanoseconds of CPU per run, (n,) each, run i of one next to run i of the other."""

    candidate_ns: np.ndarray
    canary_ns: np.ndarray

    @property
    def ratios(self) -> np.ndarray:
        """(n,) candidate over canary."""
        ratios: np.ndarray = self.candidate_ns / self.canary_ns
        return ratios

    @property
    def ratio(self) -> float:
        """Median of the ratios."""
        return float(np.median(self.ratios))

    @property
    def p90_ratio(self) -> float:
        """90th percentile of the ratios."""
        return float(np.percentile(self.ratios, 90))

    @property
    def rel_error(self) -> float:
        """Inflated standard error of the median ratio, relative to it; infinite below 3 pairs."""
        n = len(self.ratios)
        if n < 3:
            return math.inf
        mad = float(np.median(np.abs(self.ratios - self.ratio)))
        return DRIFT_INFLATION * MEDIAN_SE * MAD_TO_SIGMA * mad / math.sqrt(n) / self.ratio


def pool(visits: list[Pairs]) -> Pairs:
    """All pairs of several visits."""
    return Pairs(
        np.concatenate([visit.candidate_ns for visit in visits]),
        np.concatenate([visit.canary_ns for visit in visits]),
    )


def measure_pairs(
    candidate: Callable[[], object],
    canary: Callable[[], object],
    protocol: Protocol,
    clock: Clock = time.thread_time_ns,
) -> Pairs:
    """Runs candidate and canary in pairs until the spread is small enough or the pairs run out.

    Args:
        candidate: one inference of the network in question, on the calling thread.
        canary: one inference of the reference network.
        protocol: pairs, target error and warm-up.
        clock: nanoseconds; the default counts the CPU time of the calling thread.
    """
    candidate_ns = _warm_up(candidate, protocol.warmup_ms, clock)
    canary_ns = _warm_up(canary, protocol.warmup_ms / 2, clock)
    samples: list[tuple[float, float]] = []
    while True:
        if len(samples) % 2 == 0:
            first = _sample(candidate, candidate_ns, clock)
            samples.append((first, _sample(canary, canary_ns, clock)))
        else:
            first = _sample(canary, canary_ns, clock)
            samples.append((_sample(candidate, candidate_ns, clock), first))
        pairs = Pairs(*(np.array(column) for column in zip(*samples, strict=True)))
        enough = len(samples) >= protocol.min_pairs and pairs.rel_error <= protocol.target_rel_error
        if enough or len(samples) >= protocol.max_pairs:
            return pairs


def _sample(network: Callable[[], object], run_ns: float, clock: Clock) -> float:
    """Nanoseconds a run, of a network that takes about `run_ns`, with its caches refilled."""
    for _ in range(math.ceil(REWARM_NS / run_ns)):
        network()
    repeats = math.ceil(SAMPLE_NS / run_ns)
    start = clock()
    for _ in range(repeats):
        network()
    return (clock() - start) / repeats


def _warm_up(network: Callable[[], object], warmup_ms: float, clock: Clock) -> float:
    """Runs for `warmup_ms` (five runs at least); returns the nanoseconds of the fastest run."""
    fastest, begin, runs = math.inf, clock(), 0
    while runs < 5 or (clock() - begin < warmup_ms * 1e6 and runs < 10_000):
        start = clock()
        network()
        fastest, runs = min(fastest, clock() - start), runs + 1
    return max(fastest, 1.0)
