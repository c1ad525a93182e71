"""Picking from a front: by its purpose, and a few members that stand for all."""

import itertools

import numpy as np
import pytest

from evit_nas.config import SearchSettings
from evit_nas.errors import Infeasible, UsageError
from evit_nas.searching.front import Candidate
from evit_nas.searching.selection import pick, thin
from evit_nas.space import SearchSpace
from tests.fakes import latency_of
from tests.networks import tiny_arch


def member(name, score, *ms, certified=False, **latency):
    return Candidate(name, tiny_arch(), score, tuple(latency_of(one, **latency) for one in ms), certified, trial=None)


def settings_of(devices=1, **more):
    targets = [{"conditions": {"device": f"fake:{index}"}, "budget_ms": 9} for index in range(1, devices + 1)]
    space = SearchSpace.load("efficientvit-tiny")
    return SearchSettings(space_name="efficientvit-tiny", space=space, targets=targets, **more)


SETTINGS = settings_of()


@pytest.fixture
def front():
    """Cheap gains up to `bend`, dear ones after it."""
    return [member("quick", -3.0, 1.0), member("bend", -1.0, 2.0), member("slow", -0.8, 4.0), member("top", -0.5, 6.0)]


@pytest.mark.parametrize(
    ("what", "name"),
    [("best", "top"), ("fastest", "quick"), ("knee", "bend"), ("under=4ms", "slow"), ("under=3900us", "bend")],
)
def test_each_pick_takes_the_member_it_is_named_after(front, what, name):
    assert pick(front, what, SETTINGS).name == name
    assert pick(front[::-1], what, SETTINGS).name == name  # whatever the order


@pytest.mark.parametrize(("spread", "slowest"), [(0.001, 4 / 1.02), (0.01, 4 / 1.02), (0.04, 4 / 1.04)])
def test_a_certified_member_keeps_a_limit_only_with_its_uncertainty_and_what_sessions_differ_by(spread, slowest):
    for factor in (0.999, 1.001):
        hurried, strict = (
            member("a", -1.0, slowest * factor, rel_error=spread, certified=certified) for certified in (False, True)
        )
        assert pick([hurried], "under=4ms", SETTINGS) == hurried
        if factor < 1:
            assert pick([strict], "under=4ms", SETTINGS) == strict
        else:
            with pytest.raises(Infeasible, match=r"no member keeps 4ms by 2% .*: the fastest one, a, takes 3\.\d\d ms"):
                pick([strict], "under=4ms", SETTINGS)


def test_with_a_budget_on_the_90th_percentile_it_is_what_counts():
    steady, jumpy = member("steady", -1.0, 3.0, p90_ms=3.1), member("jumpy", -0.5, 2.0, p90_ms=5.0)
    assert pick([steady, jumpy], "fastest", SETTINGS).name == "jumpy"
    assert pick([steady, jumpy], "fastest", settings_of(budget_stat="p90")).name == "steady"
    assert pick([steady, jumpy], "under=4ms", settings_of(budget_stat="p90")).name == "steady"


def test_the_knee_weighs_every_device():
    scores, here, there = (-3.0, -1.0, -0.9, -0.5), (1.0, 1.2, 1.1, 5.0), (9, 10, 90, 11)
    one = [member(*row) for row in zip("abcd", scores, here, strict=True)]
    both = [member(*row) for row in zip("abcd", scores, here, there, strict=True)]
    assert pick(one, "knee", SETTINGS).name == "c"
    assert pick(both, "knee", settings_of(devices=2)).name == "b"


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_knee_does_not_depend_on_how_fast_a_device_is(front, scale):
    scaled = [member(m.name, m.score, m.latency.median_ms * scale) for m in front]
    assert pick(scaled, "knee", SETTINGS).name == "bend"


def test_one_member_is_every_pick(front):
    assert {pick(front[:1], what, SETTINGS).name for what in ("best", "fastest", "knee", "under=9ms")} == {"quick"}


def test_a_pick_from_nothing_says_so():
    with pytest.raises(Infeasible, match="nothing to pick from"):
        pick([], "knee", SETTINGS)


@pytest.mark.parametrize("what", ["elbow", "under", "under4ms", "best=3", ""])
def test_an_unknown_pick_is_told_what_there_is(front, what):
    with pytest.raises(UsageError, match="best, fastest, knee, under=4ms; got"):
        pick(front, what, SETTINGS)


@pytest.mark.parametrize("limit", ["4", "", "-1ms", "0ms", "4 m"])
def test_a_limit_needs_a_number_and_a_unit(front, limit):
    with pytest.raises(UsageError, match="try under=4ms"):
        pick(front, f"under={limit}", SETTINGS)


def curve(n):
    """A convex front of n members, crowded at its slow end."""
    shares = np.sqrt(np.linspace(0, 1, n))
    return [member(f"{i}", float(-(1 / (1 + 5 * s))), float(1 + 9 * s)) for i, s in enumerate(shares)]


@pytest.mark.parametrize("size", [3, 4, 9, 39])
def test_thinning_keeps_the_fastest_the_best_and_the_knee_in_the_fronts_order(size):
    front = curve(40)
    kept = thin(front, size, SETTINGS)
    assert len(kept) == size
    assert {pick(front, what, SETTINGS).name for what in ("fastest", "best", "knee")} <= {m.name for m in kept}
    assert [int(m.name) for m in kept] == sorted({int(m.name) for m in kept})


def test_what_thinning_leaves_out_is_nearer_to_what_it_keeps_than_that_is_to_each_other():
    front = curve(40)
    place = {m.name: np.array([m.score * 6 / 5, m.latency.median_ms / 9]) for m in front}  # both range over 1
    kept = [m.name for m in thin(front, 9, SETTINGS)]
    gaps = [np.linalg.norm(place[a] - place[b]) for a, b in itertools.combinations(kept, 2)]
    missed = [min(np.linalg.norm(place[m.name] - place[name]) for name in kept) for m in front]
    assert max(missed) <= min(gaps)


def test_what_comes_first_stays_where_others_would_stand_no_farther_apart():
    front = curve(40)
    beside = [front[int(m.name) - 1] for m in thin(front, 9, SETTINGS)[1:-1]]  # neighbours of what would be kept
    kept = {m.name for m in thin(front, 9, SETTINGS, first=beside)}
    assert len(kept) == 9
    assert len(kept & {m.name for m in beside}) >= 6  # the fastest, the best and the knee come before
    assert thin(front, 9, SETTINGS, first=front) == thin(front, 9, SETTINGS)


def test_what_comes_first_leaves_no_gap_that_others_close():
    """What was measured strictly may have fallen off the front by it, where its neighbours still stand."""
    front = curve(40)
    place = {m.name: np.array([m.score * 6 / 5, m.latency.median_ms / 9]) for m in front}

    def widest(kept):
        return max(min(np.linalg.norm(place[m.name] - place[one.name]) for one in kept) for m in front)

    some = thin(front, 9, SETTINGS, first=front[:12])
    assert len({m.name for m in some} & {m.name for m in front[:12]}) > 3
    assert widest(some) <= 2 * widest(thin(front, 9, SETTINGS))


def test_a_small_front_stays_whole_and_a_tiny_size_keeps_the_best(front):
    assert thin(front, 4, SETTINGS) == thin(front, 99, SETTINGS) == front
    assert [m.name for m in thin(front, 1, SETTINGS)] == ["top"]
    assert [m.name for m in thin(front, 2, SETTINGS)] == ["quick", "top"]
    assert thin([], 3, SETTINGS) == []


def test_a_size_below_one_is_refused(front):
    with pytest.raises(UsageError, match="got a size of 0"):
        thin(front, 0, SETTINGS)
