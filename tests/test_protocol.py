"""The paired protocol, and the bench that runs it, on a clock that the test owns: exact numbers, no waiting."""

import itertools
import math
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from evit_nas.config import Conditions
from evit_nas.errors import MeasurementError
from evit_nas.latency import STRICT, Protocol, child, machine, torch_backend, yardstick
from evit_nas.latency.protocol import (
    REWARM_NS,
    REWARM_RUNS,
    SAMPLE_NS,
    TIMED_RUNS,
    Canary,
    RawSamples,
    clocked,
    cpu_time,
    enclosing,
    measure_rounds,
    pool,
    visits_error,
    wall_time,
)
from evit_nas.latency.runtimes import RUNTIMES, Loaded, Runtime
from evit_nas.latency.yardstick import BESIDE_WORK, CANARIES, FIRST
from tests.networks import tiny_arch

MS = 1_000_000
LADDER = (MS, 3 * MS, 6 * MS)


class Workshop:
    """A fake clock and networks that move it; `slowdown` says how much longer than when quiet a run takes now."""

    def __init__(self, slowdown=lambda now, cost_ns: 1.0):
        self.now, self.slowdown, self.calls = 0, slowdown, []

    def clock(self):
        return self.now

    def network(self, name, cost_ns):
        def run():
            self.calls.append(name)
            self.now += round(cost_ns * self.slowdown(self.now, cost_ns))

        return run

    def canaries(self, *costs_ns):
        return [Canary([self.network(f"canary {cost / MS:g}", cost)], cost) for cost in costs_ns]


def measure(workshop, candidate_ns=4 * MS, ladder=LADDER, **protocol):
    candidate = workshop.network("net", candidate_ns)
    return measure_rounds(candidate, workshop.canaries(*ladder), Protocol(**protocol), clocked(workshop.clock))


def growing(now, cost_ns):
    """A neighbour on the same core hurts large networks more."""
    return 1 + 0.2 * math.log(cost_ns / MS)


def rounds_of(candidate_ns, slowdown):
    return RawSamples(candidate_ns, slowdown, candidate_ns)


def names_and_weights(candidate_ns, ladder=LADDER):
    chosen = enclosing([Canary(cost, cost) for cost in ladder], candidate_ns)
    return [(canary.quiet_ns, pytest.approx(weight)) for canary, weight in chosen]


class TestEnclosing:
    def test_halfway_between_two_on_the_logarithm_both_count_the_same(self):
        assert names_and_weights(math.sqrt(3 * 6) * MS) == [(3 * MS, 0.5), (6 * MS, 0.5)]

    @pytest.mark.parametrize(
        ("candidate_ns", "nearest"), [(MS // 10, MS), (MS, MS), (6 * MS, 6 * MS), (60 * MS, 6 * MS)]
    )
    def test_at_the_ends_and_beyond_them_the_last_one_counts_alone(self, candidate_ns, nearest):
        assert names_and_weights(candidate_ns) == [(nearest, 1)]

    def test_one_of_the_candidates_own_size_has_all_the_weight(self):
        assert dict(names_and_weights(3 * MS))[3 * MS] == 1

    def test_a_single_canary_always_counts_alone(self):
        assert [names_and_weights(size, [MS]) for size in (MS // 2, MS, 2 * MS)] == [[(MS, 1)]] * 3

    def test_weights_add_up_to_one_and_grow_steadily_towards_the_larger(self):
        sizes = np.geomspace(MS / 2, 12 * MS, 200)
        chosen = [enclosing([Canary(cost, cost) for cost in reversed(LADDER)], size) for size in sizes]
        assert [sum(weight for _, weight in pair) for pair in chosen] == pytest.approx([1] * 200)
        assert all(0 <= weight <= 1 for pair in chosen for _, weight in pair)
        centres = [sum(weight * math.log(canary.quiet_ns) for canary, weight in pair) for pair in chosen]
        assert centres == pytest.approx(np.log(np.clip(sizes, MS, 6 * MS)))


class TestRoundsOfSamples:
    def test_are_exact_on_a_quiet_machine_and_stop_at_the_fewest(self):
        rounds = measure(Workshop(), min_rounds=12)
        assert rounds.median_ns == rounds.p90_ns == 4 * MS
        assert set(rounds.slowdown) == {1.0}
        assert rounds.rel_error == 0
        assert len(rounds.candidate_ns) == 12

    def test_leave_the_warm_up_out(self):
        workshop = Workshop()
        rounds = measure(workshop, warmup_ms=100, min_rounds=12)
        # 25 runs of 4 ms, then the untimed and the timed ones of each round
        assert workshop.calls.count("net") == 25 + 12 * (REWARM_RUNS + TIMED_RUNS)
        assert len(rounds.candidate_ns) == 12

    def test_are_the_network_and_one_of_its_two_canaries_in_turn_each_with_its_caches_refilled(self):
        workshop = Workshop()
        measure(workshop, min_rounds=4, max_rounds=4, warmup_ms=0)
        net, low, high = ["net"] * 5, ["canary 3"] * 4, ["canary 6"] * 4  # three untimed runs, then two timed, or one
        before = ["net"] * 5 + (low + high) * 2  # a warm-up, how slow the machine is just now, and both canaries once
        assert workshop.calls == before + net + net + high + net + low + net + high

    def test_take_each_canary_as_it_was_in_its_latest_sample(self):
        """Each run of a canary is a hundredth slower than its run before, as a slow machine's would be."""
        workshop = Workshop()
        small, large = 3 * MS, 6 * MS

        def tiring(name, cost_ns):
            def run():
                workshop.calls.append(name)
                workshop.now += round(cost_ns * (1 + workshop.calls.count(name) / 100))

            return run

        ladder = [Canary([tiring("small", small)], small), Canary([tiring("large", large)], large)]
        candidate = workshop.network("net", round(math.sqrt(3 * 6) * MS))
        rounds = measure_rounds(candidate, ladder, Protocol(min_rounds=4, max_rounds=4), clocked(workshop.clock))
        # the timed run is the fourth of each sample; both had one before, to see how slow the machine is
        seen = {"small": [1.08, 1.08, 1.12, 1.12], "large": [1.08, 1.12, 1.12, 1.16]}
        halfway = [math.sqrt(low * high) for low, high in zip(seen["small"], seen["large"], strict=True)]
        assert rounds.slowdown == pytest.approx(halfway, rel=0.005)  # nearly halfway: both are a little tired already

    def test_run_no_canary_that_is_not_next_to_the_network(self):
        workshop = Workshop()
        measure(workshop, candidate_ns=12 * MS)
        assert set(workshop.calls) == {"net", "canary 6"}

    def test_take_turns_between_the_sessions_of_a_canary(self):
        """One session 3 % faster and one 3 % slower than the canary is: the candidate comes out right."""
        workshop = Workshop()
        sessions = [workshop.network(f"session {share}", round(share * 4 * MS)) for share in (0.97, 1.0, 1.03)]
        rounds = measure_rounds(
            workshop.network("net", 4 * MS),
            [Canary(sessions, 4 * MS)],
            Protocol(min_rounds=12, max_rounds=12),
            clocked(workshop.clock),
        )
        assert rounds.slowdown == pytest.approx([0.97, 1.0, 1.03] * 4)
        assert rounds.median_ns == pytest.approx(4 * MS)

    def test_repeat_a_fast_network_inside_its_sample(self):
        workshop = Workshop()
        rounds = measure(workshop, candidate_ns=MS // 10, warmup_ms=0, min_rounds=4, max_rounds=4)
        assert workshop.calls.count("net") == 5 + 4 * (REWARM_NS + SAMPLE_NS) // (MS // 10)
        assert rounds.median_ns == MS // 10

    def test_give_a_slow_network_as_many_untimed_runs_as_its_caches_need(self):
        workshop = Workshop()
        measure(workshop, candidate_ns=20 * MS, warmup_ms=0, min_rounds=4, max_rounds=4)
        assert workshop.calls.count("net") == 5 + 4 * (REWARM_RUNS + TIMED_RUNS)

    def test_do_not_notice_caches_that_another_network_emptied(self):
        """A network is four times slower on its first 2 ms after another one ran."""
        workshop = Workshop()

        def network(name, cost_ns):
            def run():
                own = list(itertools.takewhile(lambda call: call == name, reversed(workshop.calls)))
                cold = workshop.calls and len(own) * cost_ns < 2 * MS
                workshop.calls.append(name)
                workshop.now += cost_ns * (4 if cold else 1)

            return run

        canary = Canary([network("canary", MS // 2)], MS // 2)
        rounds = measure_rounds(network("net", MS), [canary], Protocol(), clocked(workshop.clock))
        assert rounds.median_ns == MS


class TestSlowMachines:
    @pytest.mark.parametrize("factor", [0.5, 1.5, 4])
    def test_what_slows_everything_alike_cancels_exactly(self, factor):
        rounds = measure(Workshop(lambda now, cost_ns: factor))
        assert rounds.quiet_ns == pytest.approx(4 * MS, rel=1e-12)
        assert rounds.slowdown == pytest.approx(factor, rel=1e-12)

    def test_a_machine_that_slows_down_fourfold_meanwhile_changes_little(self):
        drifting = Workshop(lambda now, cost_ns: 1 + min(3.0, now / (4000 * MS)))
        rounds = measure(drifting, min_rounds=200, max_rounds=200, warmup_ms=0)
        assert max(rounds.candidate_ns) / min(rounds.candidate_ns) > 2
        assert rounds.median_ns == pytest.approx(4 * MS, rel=0.02)

    @pytest.mark.parametrize("candidate_ns", [2 * MS, 4 * MS, 5 * MS])
    def test_what_slows_large_networks_more_cancels_between_canaries_and_not_against_a_small_one(self, candidate_ns):
        off = [
            abs(measure(Workshop(growing), candidate_ns, ladder).median_ns / candidate_ns - 1)
            for ladder in (LADDER, LADDER[:1])
        ]
        assert off[0] < 0.01
        assert off[1] == pytest.approx(growing(0, candidate_ns) - 1, rel=1e-6)
        assert off[1] > 3 * off[0]


class TestStopping:
    def test_comes_as_soon_as_the_spread_is_small_enough(self):
        rng = np.random.default_rng(0)
        rounds = measure(Workshop(lambda now, cost_ns: rng.uniform(1, 1.25)), min_rounds=12, max_rounds=1000)
        n = len(rounds.candidate_ns)
        assert 12 < n < 1000
        assert rounds.rel_error <= 0.02
        assert all(rounds_of(rounds.candidate_ns[:k], rounds.slowdown[:k]).rel_error > 0.02 for k in range(12, n))

    def test_comes_earlier_where_several_visits_are_pooled(self):
        rng = np.random.default_rng(0)

        def visit(visits=1):
            restless = Workshop(lambda now, cost_ns: rng.uniform(1, 1.25))
            return measure(restless, min_rounds=12, max_rounds=1000, visits=visits)

        alone, several = [visit() for _ in range(20)], [visit(visits=4) for _ in range(80)]
        n, n_pooled = (np.mean([len(one.candidate_ns) for one in visits]) for visits in (alone, several))
        assert n_pooled < n
        together = [pool(several[first : first + 4]).rel_error for first in range(0, 80, 4)]
        assert np.mean(together) <= 0.02

    def test_comes_in_the_end_however_noisy_the_machine_is(self):
        rng = np.random.default_rng(0)
        rounds = measure(Workshop(lambda now, cost_ns: rng.uniform(1, 3)), min_rounds=12, max_rounds=40)
        assert len(rounds.candidate_ns) == 40
        assert rounds.rel_error > 0.02


class TestFigures:
    def test_are_of_the_quiet_machine(self):
        rounds = rounds_of(np.array([10.0, 30.0, 90.0]), np.array([1.0, 2.0, 3.0]))
        assert rounds.quiet_ns.tolist() == [10, 15, 30]
        assert rounds.median_ns == 15
        assert rounds.p90_ns == pytest.approx(15 + 0.8 * (30 - 15))

    def test_error_follows_the_formula(self):
        rounds = rounds_of(np.array([2.0, 4.0, 6.0, 8.0, 10.0]), np.full(5, 2.0))
        mad = 1.0  # deviations of 1 2 3 4 5 from their median 3: 2 1 0 1 2
        assert rounds.rel_error == pytest.approx(1.6 * 1.2533 * 1.4826 * mad / math.sqrt(5) / 3)

    def test_error_is_unknown_below_three_rounds(self):
        assert rounds_of(np.ones(2), np.ones(2)).rel_error == math.inf
        assert rounds_of(np.ones(3), np.ones(3)).rel_error == 0

    def test_pooling_visits_keeps_every_round(self):
        visits = [rounds_of(np.array([1.0]), np.array([2.0])), rounds_of(np.array([3.0, 5.0]), np.array([4.0, 1.0]))]
        assert pool(visits).quiet_ns.tolist() == [0.5, 0.75, 5]

    @pytest.mark.parametrize(
        ("medians", "error"), [([9.0], 0), ([10.0, 12.0], 1 / 11), ([9.0, 10.0, 11.0], 1 / math.sqrt(3) / 10)]
    )
    def test_error_over_visits_is_that_of_their_mean(self, medians, error):
        visits = [rounds_of(np.array([0.0, 2 * median, 1000.0]), np.full(3, 2.0)) for median in medians]
        assert visits_error(visits) == pytest.approx(error)


def test_waiting_costs_wall_time_and_no_processor_time():
    def wait():
        time.sleep(0.02)

    assert cpu_time(wait, 2) < 0.5 * wall_time(wait, 2)


class Backend:
    """A runtime module whose networks run in a workshop: the canaries as on the ladder, any other takes 4 ms."""

    def __init__(self, workshop):
        self.workshop, self.luck = workshop, itertools.repeat(1.0)

    def version(self, family):
        return "imaginary 1.0"

    def load(self, subject, conditions):
        if subject in CANARIES:
            return Loaded(self.workshop.network("canary", LADDER[CANARIES.index(subject)]), (1, 3, 224, 224))
        return Loaded(self.workshop.network("net", 4 * MS * next(self.luck)), (conditions.batch, 3, 64, 64))


@pytest.fixture
def workshop():
    return Workshop()


@pytest.fixture
def backend(workshop, monkeypatch):
    """The runtime "fake", with every clock that the measuring process reads set to the workshop's."""
    backend = Backend(workshop)
    monkeypatch.setitem(sys.modules, "evit_nas.latency.fake_backend", backend)
    monkeypatch.setitem(RUNTIMES, "fake", Runtime("an imaginary chip", "fake_backend"))
    moments = itertools.count(step=yardstick.MOMENT_S)
    monkeypatch.setattr(yardstick.time, "time", lambda: float(next(moments)))
    monkeypatch.setattr(child, "LEARNING_S", 0.1)
    for name in ("cpu_time", "wall_time"):
        monkeypatch.setattr(child, name, clocked(workshop.clock))
    monkeypatch.setattr(child, "meter", lambda conditions: None)
    load_of_others(monkeypatch, 0.0)
    return backend


def load_of_others(monkeypatch, cores, everywhere=0.0):
    """On the core that measures, and on all of them."""
    monkeypatch.setattr(
        child,
        "LoadMeter",
        lambda asked=None: SimpleNamespace(foreign_cores=lambda: cores if asked is None else everywhere),
    )


def torch_gpu(index):
    return SimpleNamespace(uuid=f"uuid-of-{index}", name="Imaginary", total_memory=2**30)


def bench(**conditions):
    return child.MeasuringBench(Conditions(device="fake", **conditions))


@pytest.mark.usefixtures("backend")
class TestMeasuringBench:
    def test_a_figure_says_what_it_is_and_holds_its_samples(self):
        latency, samples = bench(batch=2).measure(tiny_arch(), Protocol())
        figures = (latency.median_ms, latency.p90_ms, latency.ratio, latency.canary_ms, latency.wall_ms)
        assert figures == pytest.approx((4, 4, 4, 1, 4))
        assert 0 < latency.canary_error <= FIRST
        assert latency.input_shape == (2, 3, 64, 64)
        assert latency.conditions == Conditions(device="fake", batch=2)
        assert latency.runtime == "imaginary 1.0"
        n = Protocol().min_rounds
        assert (latency.rounds, latency.noise) == (n, "")
        runs = TIMED_RUNS * n
        assert samples == {
            "visits": [{"candidate_ns": [4 * MS] * n, "slowdown": pytest.approx([1] * n), "wall_ns": [4 * MS] * runs}]
        }

    def test_a_busy_moment_changes_no_figure_and_is_told(self, workshop):
        quiet = bench()
        workshop.slowdown = lambda now, cost_ns: 1.75
        latency, _ = quiet.measure(tiny_arch(), Protocol())
        assert latency.median_ms == pytest.approx(4)
        assert latency.noise == "the canaries ran 1.75 times as long as when quiet"

    def test_whoever_waits_is_told_how_long_it_took_as_it_was(self, workshop):
        quiet = bench()
        workshop.slowdown = lambda now, cost_ns: 1.25
        latency, _ = quiet.measure(tiny_arch(), Protocol())
        assert (latency.median_ms, latency.wall_ms, latency.wall_p90_ms) == pytest.approx((4, 5, 5))

    @pytest.mark.parametrize(("cores", "busy"), [(2, True), (12, True), (64, False)])
    def test_the_daemons_of_a_large_machine_are_no_other_work(self, cores, busy, monkeypatch):
        monkeypatch.setattr(child, "every_core", lambda: frozenset(range(cores)))
        assert child._busy(SimpleNamespace(foreign_cores=lambda: 0.3)) == busy

    def test_a_slight_slow_down_is_no_noise(self, workshop):
        quiet = bench()
        workshop.slowdown = lambda now, cost_ns: 1.4
        assert not quiet.measure(tiny_arch(), Protocol())[0].noisy

    def test_a_process_that_starts_in_a_busy_moment_knows_the_quiet_times(self, workshop):
        bench()
        workshop.slowdown = lambda now, cost_ns: 2
        latency, _ = bench().measure(tiny_arch(), Protocol())
        assert (latency.canary_ms, latency.median_ms) == pytest.approx((1, 4))
        assert latency.noisy

    def test_a_process_that_starts_in_a_slow_moment_learns_of_quieter_ones_as_it_measures(self, workshop):
        workshop.slowdown = lambda now, cost_ns: 1.25
        slow = bench()
        assert slow.measure(tiny_arch(), Protocol())[0].median_ms == pytest.approx(5)
        workshop.slowdown = lambda now, cost_ns: 1.0
        found = [slow.measure(tiny_arch(), STRICT)[0] for _ in range(3)]
        assert [latency.ratio for latency in found] == pytest.approx([4] * 3)  # whatever the yardstick
        assert found[-1].median_ms == pytest.approx(4)
        assert bench().measure(tiny_arch(), Protocol())[0].canary_ms == pytest.approx(1)  # the next one knows

    def test_a_process_that_starts_in_a_quiet_moment_is_not_led_astray_by_slow_ones(self, workshop):
        quiet = bench()
        workshop.slowdown = lambda now, cost_ns: 1.25
        found = [quiet.measure(tiny_arch(), STRICT)[0] for _ in range(3)]
        assert [latency.median_ms for latency in found] == pytest.approx([4] * 3)

    def test_what_is_learnt_beside_other_work_is_not_trusted(self, monkeypatch):
        load_of_others(monkeypatch, 0.0, everywhere=1.0)
        latency, _ = bench().measure(tiny_arch(), Protocol())
        assert latency.canary_error == BESIDE_WORK
        assert latency.doubts == (
            "all milliseconds may be 15% too many: this machine has not been quiet yet when it was measured"
        )
        load_of_others(monkeypatch, 0.0)
        assert not bench().measure(tiny_arch(), STRICT)[0].noisy

    def test_quiet_times_belong_to_the_conditions_they_were_learnt_under(self, workshop):
        bench()
        workshop.slowdown = lambda now, cost_ns: 2
        assert bench(batch=2).measure(tiny_arch(), Protocol())[0].canary_ms == pytest.approx(2)

    def test_the_load_of_others_is_noise_to_every_clock_but_the_threads_own(self, workshop, monkeypatch):
        """A GPU's events too: while the processor is late with the next kernel, their time goes on."""
        load_of_others(monkeypatch, 0.9)
        one, two = (bench(threads=threads).measure(tiny_arch(), Protocol())[0] for threads in (1, 2))
        monkeypatch.setitem(RUNTIMES, "fake", Runtime("an imaginary GPU", "fake_backend", clock="cuda"))
        monkeypatch.setattr(torch_backend, "cuda_stopwatch", lambda conditions: clocked(workshop.clock))
        gpu, _ = bench().measure(tiny_arch(), Protocol())
        assert (one.clock, one.noise) == ("cpu", "")
        assert (two.clock, two.noise) == ("wall", "other processes kept 0.9 cores busy")
        assert (gpu.clock, gpu.noise) == ("cuda", "other processes kept 0.9 cores busy")

    def test_load_that_cannot_be_read_is_no_noise(self, monkeypatch):
        load_of_others(monkeypatch, None)
        assert not bench(threads=2).measure(tiny_arch(), Protocol())[0].noisy

    def test_a_canary_that_does_not_equal_itself_certifies_nothing(self, workshop, monkeypatch):
        def measured(candidate, canaries, *rest):
            rounds = measure_rounds(candidate, canaries, *rest)
            return (
                rounds_of(rounds.candidate_ns * 1.1, rounds.slowdown)
                if candidate is canaries[0].sessions[0]
                else rounds
            )

        monkeypatch.setattr(child, "measure_rounds", measured)
        latency, _ = bench().measure(tiny_arch(), Protocol())
        assert latency.noise == "the canary against itself came out as 1.100"

    def test_strict_visits_are_sessions_of_their_own(self, backend):
        backend.luck = iter([1.0, 1.04])
        latency, samples = bench().measure(tiny_arch(), STRICT)
        assert [visit["candidate_ns"][0] for visit in samples["visits"]] == [4 * MS, 4.16 * MS]
        assert latency.rounds == sum(len(visit["candidate_ns"]) for visit in samples["visits"])
        assert latency.rel_error == pytest.approx(0.08 / 4.08)  # half of what lies between the two, of their mean

    def test_two_visits_that_disagree_call_for_a_third_and_for_no_fourth(self, backend):
        backend.luck = iter([1.0, 1.06, 1.2, 1.0])
        latency, samples = bench().measure(tiny_arch(), STRICT)
        assert len(samples["visits"]) == 3
        assert latency.median_ms == pytest.approx(4 * 1.06)

    def test_a_single_visit_has_nothing_to_disagree_with(self, backend):
        backend.luck = iter([1.0, 2.0])
        assert len(bench().measure(tiny_arch(), Protocol(visits=1))[1]["visits"]) == 1

    def test_a_figure_of_a_gpu_names_the_gpu(self, monkeypatch, tmp_path):
        monkeypatch.setitem(RUNTIMES, "fake", Runtime("an imaginary GPU", "fake_backend", argument="index"))
        monkeypatch.setenv("PATH", str(tmp_path))
        machine._gpu.cache_clear()
        assert machine.machine_of(Conditions(device="fake:1")) == "GPU 1"  # no driver to ask
        machine._gpu.cache_clear()
        (tmp_path / "nvidia-smi").write_text('#!/bin/sh\necho "Imaginary $*"\n')
        (tmp_path / "nvidia-smi").chmod(0o755)
        latency, _ = child.MeasuringBench(Conditions(device="fake:1")).measure(tiny_arch(), Protocol())
        assert latency.machine.startswith("Imaginary")
        assert latency.machine.endswith("-i 1")

    def test_the_driver_is_asked_once_and_for_the_gpu_that_cuda_numbers_so(self, monkeypatch):
        asked = []

        def smi(query, **_):
            asked.append(query[-1])
            return SimpleNamespace(stdout="Imaginary\n")

        monkeypatch.setitem(RUNTIMES, "fake", Runtime("an imaginary GPU", "fake_backend", argument="index"))
        monkeypatch.setattr("torch.cuda.get_device_properties", torch_gpu)
        monkeypatch.setattr(machine.subprocess, "run", smi)
        machine._gpu.cache_clear()
        assert [machine.machine_of(Conditions(device="fake:1")) for _ in range(2)] == ["Imaginary"] * 2
        machine._gpu.cache_clear()
        assert asked == ["GPU-uuid-of-1"]

    def test_a_gpu_whose_driver_cannot_be_asked_is_called_as_torch_knows_it(self, monkeypatch):
        seen = SimpleNamespace(uuid="a-slice", name="A100 MIG 1g.5gb", total_memory=5 * 2**30)
        monkeypatch.setitem(RUNTIMES, "fake", Runtime("an imaginary GPU", "fake_backend", argument="index"))
        monkeypatch.setattr("torch.cuda.get_device_properties", lambda index: seen)
        monkeypatch.setenv("PATH", "")
        machine._gpu.cache_clear()
        assert machine.machine_of(Conditions(device="fake:0")) == "A100 MIG 1g.5gb, 5 GiB"
        machine._gpu.cache_clear()


@pytest.mark.usefixtures("backend")
class TestEnergyOfAMeasurement:
    def test_is_measured_strictly_where_there_is_a_meter(self, monkeypatch):
        monkeypatch.setattr(child, "meter", lambda conditions: lambda: 0.0)
        monkeypatch.setattr(child, "energy_mj", lambda run, meter: 3.5)
        strict = bench()
        assert strict.measure(tiny_arch(), STRICT)[1]["energy_mj"] == 3.5
        assert "energy_mj" not in strict.measure(tiny_arch(), Protocol())[1]

    def test_is_absent_without_a_meter(self):
        assert "energy_mj" not in bench().measure(tiny_arch(), STRICT)[1]

    def test_is_unknown_on_a_machine_too_busy_for_it(self, monkeypatch):
        def too_busy(run, meter):
            raise MeasurementError("running drew no more than idling", "noisy")

        monkeypatch.setattr(child, "meter", lambda conditions: lambda: 0.0)
        monkeypatch.setattr(child, "energy_mj", too_busy)
        assert bench().measure(tiny_arch(), STRICT)[1]["energy_mj"] is None
