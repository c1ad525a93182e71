"""The paired protocol on a clock that the test owns: exact numbers, no waiting."""

import itertools
import math

import numpy as np
import pytest

from evit_nas.latency import Protocol
from evit_nas.latency.protocol import REWARM_NS, SAMPLE_NS, Pairs, measure_pairs, pool

MS = 1_000_000


class Workshop:
    """A fake clock and networks that move it; `slowdown` makes the whole machine slower from one call to the next."""

    def __init__(self, slowdown=lambda now: 1.0):
        self.now, self.slowdown, self.calls = 0, slowdown, []

    def clock(self):
        return self.now

    def network(self, name, cost_ns):
        def run():
            self.calls.append(name)
            self.now += round(cost_ns * self.slowdown(self.now))

        return run


def measure(workshop, candidate_ns=6 * MS, canary_ns=2 * MS, **protocol):
    candidate, canary = workshop.network("net", candidate_ns), workshop.network("canary", canary_ns)
    return measure_pairs(candidate, canary, Protocol(**protocol), workshop.clock)


def test_ratio_is_exact_on_a_quiet_machine_and_stops_at_the_fewest_pairs():
    pairs = measure(Workshop(), min_pairs=12)
    assert pairs.ratio == 3.0
    assert pairs.rel_error == 0.0
    assert len(pairs.ratios) == 12


def test_warm_up_is_not_counted():
    workshop = Workshop()
    pairs = measure(workshop, warmup_ms=100, min_pairs=12)
    assert workshop.calls.count("net") > 12 + 5
    assert len(pairs.candidate_ns) == 12


def test_order_alternates_so_that_drift_favours_neither_and_each_refills_its_caches_first():
    workshop = Workshop()
    measure(workshop, min_pairs=4, max_pairs=4, warmup_ms=0)
    net = ["net"] * 2  # 6 ms a run: one untimed run is 4 ms and more, then the sample
    canary = ["canary"] * 3  # 2 ms a run: two untimed ones
    assert workshop.calls[5 + 5 :] == (net + canary + canary + net) * 2


def test_caches_that_another_network_emptied_do_not_count():
    """A network is four times slower on its first 2 ms after another one ran."""
    workshop = Workshop()

    def network(name, cost_ns):
        def run():
            own = list(itertools.takewhile(lambda call: call == name, reversed(workshop.calls)))
            cold = workshop.calls and len(own) * cost_ns < 2 * MS
            workshop.calls.append(name)
            workshop.now += cost_ns * (4 if cold else 1)

        return run

    pairs = measure_pairs(network("net", MS), network("canary", MS // 2), Protocol(), workshop.clock)
    assert pairs.ratio == 2.0


def test_ratio_survives_a_machine_that_slows_down_fourfold():
    pairs = measure(
        Workshop(slowdown=lambda now: 1 + min(3.0, now / (1000 * MS))),
        min_pairs=200,
        max_pairs=200,
        warmup_ms=0,
    )
    assert max(pairs.candidate_ns) / min(pairs.candidate_ns) > 2
    assert pairs.ratio == pytest.approx(3.0, rel=0.02)


def test_a_noisy_network_is_measured_longer_but_not_for_ever():
    rng = np.random.default_rng(0)
    pairs = measure(Workshop(slowdown=lambda now: rng.uniform(1, 3)), min_pairs=12, max_pairs=40)
    assert len(pairs.ratios) == 40
    assert pairs.rel_error > 0.02


def test_a_fast_network_is_repeated_inside_its_sample():
    workshop = Workshop()
    pairs = measure(workshop, candidate_ns=MS // 10, warmup_ms=0, min_pairs=4, max_pairs=4)
    assert workshop.calls.count("net") == 5 + 4 * (REWARM_NS + SAMPLE_NS) // (MS // 10)
    assert pairs.ratio == pytest.approx(0.05)


def test_spread_follows_the_formula():
    pairs = Pairs(np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.ones(5))
    mad = 1.0  # deviations from the median 3: 2 1 0 1 2
    assert pairs.rel_error == pytest.approx(1.6 * 1.2533 * 1.4826 * mad / math.sqrt(5) / 3)


def test_two_pairs_say_nothing_about_the_spread():
    assert Pairs(np.ones(2), np.ones(2)).rel_error == math.inf


def test_pooling_visits_keeps_every_pair():
    both = pool([Pairs(np.array([1.0]), np.array([2.0])), Pairs(np.array([3.0]), np.array([4.0]))])
    assert both.ratios.tolist() == [0.5, 0.75]
