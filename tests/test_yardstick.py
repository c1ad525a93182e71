"""The yardstick: learnt from quiet moments, whichever these are, and better with every measurement, never worse."""

import itertools
import multiprocessing
import os
import random

import numpy as np
import pytest

from evit_nas.config import Conditions
from evit_nas.latency import Unit, about_ms, yardstick
from evit_nas.latency.yardstick import (
    BESIDE_WORK,
    BEST,
    FIRST,
    FIRST_MOMENTS,
    MOMENT_S,
    WINDOW,
    Window,
    Yardstick,
    best_units,
    identity_of,
    kept,
    known,
    path_of,
    said_by,
    window_of,
)
from tests.fakes import latency_of

SHAPE = (1.0, 3.0, 6.0)


moments = itertools.count(step=MOMENT_S)


def window(ms, *, shape=SHAPE, beside_work=False, at=None):
    """Seen in a moment of its own, if nothing else is said."""
    return Window(ms=ms, shape=shape, beside_work=beside_work, at=next(moments) if at is None else at)


def of(*windows, identity="here", moments=1_000_000):
    """Of a device that has been measured for long."""
    calm = not all(window.beside_work for window in windows)
    return Yardstick(identity=identity, windows=windows, calm=calm, moments=moments)


def rows(slowdowns, ms=2.0, shape=SHAPE):
    """Samples of all canaries on a machine that is so many times as slow as when quiet."""
    return [[ms * slow * share for share in shape] for slow in slowdowns]


class TestWindow:
    def test_of_a_quiet_machine_is_what_the_canaries_take(self):
        found = window_of(rows([1.0] * WINDOW), beside_work=False)
        assert found.ms == pytest.approx(2)
        assert found.shape == pytest.approx(SHAPE)

    def test_is_told_by_its_quick_moments_however_slow_most_are(self):
        slow = [1.0, 1.0, 1.0, *[1.8] * (WINDOW - 3)]
        assert window_of(rows(slow), beside_work=False).ms == pytest.approx(2, rel=0.01)

    def test_is_not_told_by_one_freak(self):
        assert window_of(rows([0.5, *[1.0] * (WINDOW - 1)]), beside_work=False).ms > 1.8

    def test_takes_the_ratios_of_the_canaries_from_the_quicker_half(self):
        quick, slow = rows([1.0] * 6), rows([1.5] * 6, shape=(1, 3.9, 9.0))
        found = window_of([row for pair in zip(quick, slow, strict=True) for row in pair], beside_work=False)
        assert found.shape == pytest.approx(SHAPE)


class TestYardstick:
    def test_is_the_mean_of_the_best_windows(self):
        found = of(window(9.0)).seen(window(2.0), window(2.02), window(1.98), window(2.5))
        assert [one.ms for one in found.windows] == [1.98, 2.0, 2.02]
        assert found.ms == pytest.approx((1.98 * 2.0 * 2.02) ** (1 / 3))
        assert found.quiet_ms == pytest.approx([found.ms, 3 * found.ms, 6 * found.ms])

    def test_takes_one_window_of_each_moment(self):
        near = [window(2.0 + step / 10, at=100 + step) for step in range(4)]  # within five seconds
        assert of(near[3]).seen(*near[:3]).windows == (near[0],)
        later = window(2.5, at=100 + MOMENT_S)
        assert of(near[3]).seen(*near[:3], later).windows == (near[0], later)

    def test_is_uncertain_by_half_of_what_they_differ_by(self):
        assert of(window(2.0), window(2.02), window(2.1)).rel_error == pytest.approx(0.025)

    def test_is_worth_as_much_as_there_were_moments(self):
        found = Yardstick.first("here", window(2.0, at=1000.0))
        assert (found.moments, found.rel_error) == (1, FIRST)
        for second in range(1001, 1001 + int((FIRST_MOMENTS - 1) * MOMENT_S)):
            assert found.rel_error == FIRST
            found = found.seen(window(2.0 + second / 1e6, at=float(second)))
        assert found.moments == FIRST_MOMENTS
        for moment in range(400, 400 + 3 * FIRST_MOMENTS):
            found = found.seen(window(2.1, at=moment * MOMENT_S))
        assert found.rel_error == pytest.approx(FIRST / 2)  # four times as many

    def test_learnt_beside_other_work_is_uncertain_until_quiet_moments_were_no_better(self):
        beside = of(*[window(2.0 + step / 1000, beside_work=True) for step in range(BEST)])
        assert beside.rel_error == BESIDE_WORK
        quiet = beside.seen(window(2.5))
        assert quiet.windows == beside.windows
        assert quiet.rel_error < 0.001
        kept(quiet)
        assert kept(beside).rel_error < 0.001  # what another process tells later takes nothing back

    @pytest.mark.parametrize("seed", range(5))
    def test_gets_better_and_never_worse_whatever_comes(self, seed):
        rng = random.Random(seed)
        found = of(window(3.0), window(3.1), window(3.2))
        for ms in (rng.uniform(2, 5) for _ in range(100)):
            better = found.seen(window(ms))
            assert better.ms <= found.ms
            found = better

    @pytest.mark.parametrize("order", [sorted, lambda all_ms: sorted(all_ms, reverse=True)], ids=["later slow", "fast"])
    def test_comes_to_the_same_whether_the_machine_is_fast_first_or_slow_first(self, order):
        seen = of(window(2.9))
        for ms in order([2.0, 2.01, 2.02, 2.6, 2.7, 2.8]):
            seen = seen.seen(window(ms))
        assert [one.ms for one in seen.windows] == [2.0, 2.01, 2.02]


class TestKept:
    def test_what_one_process_learnt_the_next_one_knows(self):
        assert known("here") is None
        found = kept(of(window(2.0), window(2.1)))
        assert known("here") == found
        assert known("elsewhere") is None

    def test_two_processes_that_learn_at_once_lose_nothing_of_each_other(self):
        kept(of(window(9.0)))
        context = multiprocessing.get_context("spawn")
        learners = [context.Process(target=_learn, args=(first,)) for first in (0, 1)]
        for learner in learners:
            learner.start()
        for learner in learners:
            learner.join()
        assert [one.ms for one in known("here").windows] == [2.0, 2.01, 2.02]

    @pytest.mark.parametrize(
        "content", ["", "{broken", "[]", "{}", '{"identity": "here", "windows": []}', '{"quiet_ms": [1, 2, 3]}', "\0"]
    )
    def test_in_a_damaged_file_is_learnt_anew(self, content):
        kept(of(window(2.0)))
        path_of("here").write_text(content)
        assert known("here") is None
        assert kept(of(window(3.0))).ms == pytest.approx(3)
        assert known("here").ms == pytest.approx(3)

    @pytest.mark.parametrize("ms", [0.0, -1.0, float("inf"), float("nan")])
    def test_a_time_that_is_none_is_no_yardstick(self, ms):
        with pytest.raises(ValueError, match="ms"):
            window(ms)

    def test_needs_no_cache_folder(self, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setattr(yardstick, "cache_folder", lambda: tmp_path / "file")
        assert kept(of(window(2.0))).ms == pytest.approx(2)
        assert known("here") is None

    def test_leaves_nothing_half_written_on_a_full_disk(self, monkeypatch):
        monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert kept(of(window(2.0))).ms == pytest.approx(2)
        assert not list(path_of("here").parent.glob("*here*.json"))


def _learn(first):
    """Sees every second window of a hundred, the best of them last."""
    for step in range(49, -1, -1):
        number = 2 * step + first
        kept(of(window(2.0 + number / 100, at=MOMENT_S * number)))


class TestIdentity:
    def test_is_the_same_for_the_same_conditions_and_another_for_others(self):
        here = [identity_of(Conditions(device="cpu", batch=batch)) for batch in (1, 1, 2)]
        assert here[0] == here[1] != here[2]

    def test_is_another_on_another_machine_of_the_same_processor(self, monkeypatch):
        found = []
        for machine in ("one", "other", "one"):
            monkeypatch.setattr(yardstick, "installation", lambda machine=machine: machine)
            found.append(identity_of(Conditions(device="cpu")))
        assert found[0] == found[2] != found[1]


class TestUnits:
    def test_say_a_measurement_in_other_milliseconds(self):
        latency = latency_of(6.0)
        other = latency.by(Unit(1.5, 0.02))
        assert (other.median_ms, other.p90_ms) == pytest.approx((4.5, 4.95))
        assert other.median_ms == pytest.approx(other.ratio * other.canary_ms)
        assert (other.ratio, other.rel_error, other.wall_ms) == (latency.ratio, latency.rel_error, latency.wall_ms)
        assert other.unit == Unit(1.5, 0.02)
        assert other.by(latency.unit).median_ms == pytest.approx(6)

    def test_change_no_order(self):
        rng = np.random.default_rng(0)
        found = [latency_of(ms) for ms in rng.uniform(1, 9, 20)]
        again = [latency.by(Unit(1.3, 0.01)) for latency in found]
        before, after = (np.argsort([one.median_ms for one in latencies]).tolist() for latencies in (found, again))
        assert before == after

    def test_leave_figures_of_earlier_versions_as_they_are(self):
        old = latency_of(6.0, canary_error=None)
        assert old.unit is None
        assert old.by(Unit(1.0, 0.01)) == old
        assert latency_of(6.0).by(None) == latency_of(6.0)

    def test_the_uncertainty_of_milliseconds_holds_both(self):
        latency = latency_of(6.0, rel_error=0.03, canary_error=0.04)
        assert latency.ms_error == pytest.approx(0.05)
        assert str(latency) == "6.00 ms ± 5.0%"
        assert latency_of(6.0, rel_error=0.03, canary_error=None).ms_error == 0.03

    @pytest.mark.parametrize(("stat", "ms"), [("median", 6.0), ("p90", 6.6), ("typical", 7.2)])
    def test_each_statistic_is_a_figure(self, stat, ms):
        assert latency_of(6.0).stat_ms(stat) == pytest.approx(ms)

    def test_a_better_one_is_better_by_more_than_it_is_uncertain(self):
        assert Unit(1.9, 0.01).improves(Unit(2.0, 0.01))
        assert not Unit(1.99, 0.0).improves(Unit(2.0, 0.0))
        assert not Unit(1.9, 0.06).improves(Unit(2.0, 0.0))
        assert not Unit(2.1, 0.0).improves(Unit(2.0, 0.5))

    def test_one_that_is_half_as_uncertain_supersedes_its_equal(self):
        assert Unit(2.0, 0.04).supersedes(Unit(2.0, 0.08))
        assert not Unit(2.0, 0.05).supersedes(Unit(2.0, 0.08))
        assert not Unit(2.01, 0.0).supersedes(Unit(2.0, 0.08))
        assert Unit(1.9, 0.01).supersedes(Unit(2.0, 0.01))

    def test_the_best_of_each_device_is_taken(self):
        one, two = (Conditions(device=name) for name in ("fake", "fake:2"))
        found = best_units(
            [
                latency_of(6.0, conditions=one),
                latency_of(6.0, canary_ms=1.8, conditions=one),
                latency_of(6.0, canary_ms=5.0, conditions=two),
                latency_of(6.0, canary_ms=0.1, canary_error=None, conditions=two),
            ]
        )
        assert found == {"fake": Unit(1.8, 0.005), "fake:2": Unit(5.0, 0.005)}

    def test_figures_of_earlier_versions_have_none(self):
        assert best_units([latency_of(6.0, canary_error=None, yardstick="here")]) == {}

    def test_what_the_machine_has_learnt_since_counts(self):
        latency = latency_of(6.0, yardstick="here")
        assert best_units([latency]) == {"fake": latency.unit}
        better = kept(of(window(1.5), window(1.51), window(1.52)))
        assert best_units([latency]) == {"fake": Unit(better.ms, better.rel_error)}
        [said] = said_by(best_units([latency]), [latency])
        assert said.median_ms == pytest.approx(3 * better.ms)


class TestWords:
    def test_say_what_milliseconds_are_and_how_far_all_may_be_off(self):
        said = about_ms([latency_of(6.0), latency_of(7.0)])
        assert "may be off by 0.5%" in said
        assert "*" not in said

    def test_say_why_a_figure_is_an_estimate(self):
        noise = "other processes kept 0.9 cores busy"
        assert about_ms([latency_of(6.0), latency_of(7.0, noise=noise)]).endswith(f"* an estimate: {noise}")

    def test_of_earlier_versions_say_nothing(self):
        assert about_ms([latency_of(6.0, canary_error=None)]) == ""


def test_the_quiet_time_of_a_machine_that_is_busy_two_thirds_of_the_time_is_found():
    """In bursts of two to eight samples; from ten windows, nine times in ten within three percent."""
    off = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        busy = itertools.chain.from_iterable([bool(rng.random() < 2 / 3)] * rng.integers(2, 9) for _ in range(999))
        slow = [1 + (rng.uniform(0.2, 0.6) if next(busy) else abs(rng.normal(0, 0.01))) for _ in range(10 * WINDOW)]
        found = [
            window_of(rows(part), beside_work=False)
            for part in (slow[at : at + WINDOW] for at in range(0, len(slow), WINDOW))
        ]
        off.append(of(found[0]).seen(*found[1:]).ms / 2 - 1)
    assert min(off) >= 0
    assert np.percentile(off, 90) < 0.03
