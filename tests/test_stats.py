"""Rank statistics against scipy, brute force and closed forms; noise and uncertainty against simulation."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, kendalltau, norm

from evit_nas.stats import (
    Runs,
    binomial_error,
    bootstrap,
    jackknife,
    kendall_tau,
    noise_ceiling,
    resampled_tau,
    rivals,
    seed_effects,
    seed_sd,
    spread,
    top_regret,
    without_seed_effects,
)

TIED = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(90, 130)), min_size=2, max_size=12)


@pytest.mark.parametrize(("right", "images"), [(31, 100), (155, 500), (9000, 10_000)])
def test_an_accuracy_of_many_images_is_known_to_the_root_of_pq_over_n(right: int, images: int) -> None:
    p = right / images
    assert binomial_error(100 * p, images) == pytest.approx(100 * math.sqrt(p * (1 - p) / images), rel=0.01)


def test_few_images_leave_doubt_where_all_or_none_are_right() -> None:
    interval = binomtest(6, 6).proportion_ci(2 * norm.cdf(1) - 1, method="wilson")
    assert binomial_error(100, 6) == pytest.approx(50 * (interval.high - interval.low))
    assert binomial_error(0, 6) == binomial_error(100, 6) > binomial_error(100, 600) > 0


def columns(rows: list[tuple[int, ...]]) -> tuple[np.ndarray, ...]:
    return tuple(np.array(column, dtype=float) for column in zip(*rows, strict=True))


def brute_force_tau(scores: np.ndarray, truth: np.ndarray, latency_ms: np.ndarray) -> float:
    agreement, by_score, by_truth, pairs = 0.0, 0, 0, 0
    for i, j in itertools.combinations(range(len(truth)), 2):
        if max(latency_ms[i], latency_ms[j]) <= 1.1 * min(latency_ms[i], latency_ms[j]):
            pairs += 1
            agreement += np.sign(scores[i] - scores[j]) * np.sign(truth[i] - truth[j])
            by_score += scores[i] != scores[j]
            by_truth += truth[i] != truth[j]
    if not pairs:
        return math.nan
    return agreement / math.sqrt(by_score * by_truth) if by_score and by_truth else 0.0


@given(TIED)
def test_tau_among_all_networks_is_tau_b(rows):
    scores, truth, _ = columns(rows)
    expected = kendalltau(scores, truth).statistic
    assert kendall_tau(scores, truth) == pytest.approx(0.0 if math.isnan(expected) else expected)


@given(TIED)
def test_iso_latency_tau_counts_the_pairs_of_about_equal_latency(rows):
    scores, truth, latency_ms = columns(rows)
    expected = brute_force_tau(scores, truth, latency_ms)
    assert kendall_tau(scores, truth, latency_ms) == pytest.approx(expected, nan_ok=True)


def test_a_score_that_is_only_latency_has_no_iso_latency_tau():
    rng = np.random.default_rng(0)
    latency_ms = np.exp(rng.uniform(0, 2, 400))
    truth = np.log(latency_ms) + 0.3 * rng.standard_normal(400)
    assert kendall_tau(latency_ms, truth) > 0.6
    assert abs(kendall_tau(latency_ms, truth, latency_ms)) < 0.15


def test_without_rivals_there_is_no_tau_and_no_regret():
    truth, latency_ms = np.array([1.0, 2.0]), np.array([1.0, 2.0])
    assert math.isnan(kendall_tau(truth, truth, latency_ms))
    assert math.isnan(top_regret(truth, truth, 1, latency_ms))


def test_rivals_differ_by_at_most_the_tolerance_and_are_two_networks():
    mask = rivals(3, np.array([1.0, 1.1, 1.2]))
    assert mask.tolist() == [[False, True, False], [True, False, True], [False, True, False]]


@pytest.mark.parametrize(
    ("scores", "latency_ms", "message"),
    [
        ([1.0, math.nan], None, "scores must be finite, but network 1 has nan"),
        ([1.0, 2.0, 3.0], None, r"scores must have one value for each of the 2 networks, got shape \(3,\)"),
        ([1.0, 2.0], [0.0, 1.0], "latencies must be positive, got 0.0"),
    ],
)
def test_what_cannot_be_ranked_is_refused(scores, latency_ms, message):
    with pytest.raises(ValueError, match=message):
        kendall_tau(np.array(scores), np.array([1.0, 2.0]), None if latency_ms is None else np.array(latency_ms))


def test_regret_is_what_the_best_of_the_top_k_lacks():
    truth, scores = np.array([5.0, 9.0, 7.0, 8.0]), np.array([4.0, 1.0, 3.0, 2.0])
    assert [top_regret(scores, truth, k) for k in (1, 2, 3)] == [4.0, 2.0, 1.0]
    assert top_regret(truth, truth, 1) == 0


def test_regret_is_averaged_over_the_neighbourhoods_that_leave_a_choice():
    latency_ms = np.array([1.0, 1.05, 10.0, 10.5, 10.9, 50.0])  # the last one has no rival
    truth = np.array([1.0, 2.0, 1.0, 2.0, 5.0, 100.0])
    assert top_regret(-truth, truth, 1, latency_ms) == (2 * 1 + 3 * 4) / 5


def test_ties_count_against_a_score_in_any_order():
    truth = np.array([1.0, 3.0, 2.0])
    for order in itertools.permutations(range(3)):
        assert top_regret(np.zeros(3), truth[list(order)], 2) == 1.0


@pytest.mark.parametrize(("arch_sd", "seed_sd", "expected"), [(0.5, 0.2, 0.76), (0.3, 0.2, 0.63), (0.2, 0.2, 0.5)])
def test_noise_ceiling_in_closed_form(arch_sd, seed_sd, expected):
    assert noise_ceiling(arch_sd, seed_sd) == pytest.approx(expected, abs=0.005)


def test_noise_ceiling_without_noise_is_one_and_without_differences_zero():
    assert noise_ceiling(1.0, 0.0) == 1.0
    assert noise_ceiling(0.0, 1.0) == noise_ceiling(0.0, 0.0) == 0.0


def simulated(networks: int, arch_sd: float, noise_sd: float, seed: int = 0) -> tuple[np.ndarray, Runs]:
    """True values, and the labels of 1 to 3 trainings each; the seeds themselves add 0, 1 and 2."""
    rng = np.random.default_rng(seed)
    truth = arch_sd * rng.standard_normal(networks)
    return truth, [
        {seed: value + seed + noise_sd * rng.standard_normal() for seed in range(rng.integers(1, 4))} for value in truth
    ]


def runs_of(*labels: list[float]) -> Runs:
    return [dict(enumerate(one)) for one in labels]


def test_what_a_seed_adds_to_all_networks_is_found_and_taken_out():
    """Network + seed and nothing else: which networks have a second seed changes no difference; no noise is left."""
    runs = [{0: 5.0, 1: 4.0}, {0: 7.0}, {1: 1.0}, {0: 3.0, 1: 2.0}]
    effects, number = seed_effects(runs)
    assert number == 1
    assert effects[0] - effects[1] == pytest.approx(1)
    assert 3 * effects[0] + 3 * effects[1] == pytest.approx(0)
    means = [np.mean(list(labels.values())) for labels in without_seed_effects(runs)]
    assert np.diff(means) == pytest.approx([2, -5, 1])
    assert seed_sd(runs) == pytest.approx(0, abs=1e-12)


def test_three_seeds_that_networks_link_in_a_chain_are_all_told_apart():
    runs = [{0: 1.0, 1: 3.0}, {1: 13.0, 2: 10.0}, {2: 20.0}]
    effects, number = seed_effects(runs)
    assert number == 2
    assert (effects[1] - effects[0], effects[2] - effects[1]) == (pytest.approx(2), pytest.approx(-3))


def test_seeds_that_no_network_links_cannot_be_told_from_their_networks_and_have_no_effect():
    effects, number = seed_effects([{0: 5.0}, {0: 6.0}, {1: 9.0}])
    assert (effects, number) == ({0: 0, 1: 0}, 0)


def test_a_seed_without_a_link_has_no_effect_beside_those_that_have_one():
    effects, number = seed_effects([{0: 5.0, 1: 4.0}, {0: 7.0}, {2: 9.0}])
    assert (effects[2], number) == (0, 1)
    assert effects[0] - effects[1] == pytest.approx(1)
    assert 2 * effects[0] + effects[1] == pytest.approx(0)


def test_with_one_network_of_two_seeds_the_noise_is_not_known():
    assert math.isnan(seed_sd([{0: 5.0, 1: 4.0}, {0: 7.0}]))


def test_noise_between_seeds_is_what_is_left_of_the_additive_fit():
    """Two networks, two seeds: differences of 1 and 3, so each label is half a point off the fit; one degree left."""
    assert seed_sd([{0: 0.0, 1: 1.0}, {0: 0.0, 1: 3.0}]) == pytest.approx(1.0)


def test_spread_and_ceiling_are_found_again_with_unequal_numbers_of_seeds():
    truth, runs = simulated(1500, arch_sd=0.3, noise_sd=0.2)
    found = spread(runs)
    assert found.arch_sd == pytest.approx(0.3, rel=0.05)
    assert found.seed_sd == pytest.approx(0.2, rel=0.05)
    means = np.array([np.mean(list(labels.values())) for labels in without_seed_effects(runs)])
    assert found.ceiling == pytest.approx(kendall_tau(truth, means), abs=0.02)


def test_spread_equals_the_analysis_of_variance_by_hand():
    found = spread(runs_of([1.0, 3.0], [5.0, 5.0], [9.0]))
    # the seeds differ by 1: -0.4 and 0.6; what is left differs by 1 in both networks: squares 1/2 + 1/2, one degree
    assert found.seed_sd == pytest.approx(1.0)
    assert found.label_sd == pytest.approx(math.sqrt(2 / 3))
    # means 1.9, 4.9 and 9.4: half the mean squared difference is (9 + 56.25 + 20.25) / 6
    assert found.arch_sd == pytest.approx(math.sqrt(85.5 / 6 - 2 / 3))


def test_spread_counts_differences_among_rivals_only():
    runs = runs_of([1.0, 1.0], [1.0, 1.0], [9.0], [9.0])
    assert spread(runs).arch_sd > 4
    assert spread(runs, np.array([1.0, 1.0, 5.0, 5.0])).arch_sd == 0


def test_spread_of_networks_that_differ_by_noise_only_is_never_negative():
    found = [spread(simulated(20, arch_sd=0.0, noise_sd=1.0, seed=seed)[1]).arch_sd for seed in range(20)]
    assert min(found) == 0.0
    assert max(found) < 1


@pytest.mark.parametrize("labels", [[[1.0], [2.0]], [[1.0, 2.0], [1.0, 2.0], []], [[1.0, 2.0], [1.0]]])
def test_spread_needs_repeated_trainings(labels):
    with pytest.raises(ValueError, match="every network needs a label and some need two"):
        spread(runs_of(*labels))


def test_jackknife_of_a_mean_is_its_standard_error_in_closed_form():
    values = np.random.default_rng(0).standard_normal(30)
    found = jackknife(lambda i: float(values[i].mean()), len(values))
    assert found.value == values.mean()
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * values.std(ddof=1) / math.sqrt(len(values)))


def test_resampled_tau_is_the_tau_of_the_networks_drawn():
    rng = np.random.default_rng(0)
    scores, truth, ms = rng.integers(5, size=30).astype(float), rng.standard_normal(30), rng.uniform(1, 1.3, 30)
    tau = resampled_tau(scores, truth, ms)
    for _ in range(20):
        index = rng.integers(30, size=30)
        assert tau(index) == pytest.approx(kendall_tau(scores[index], truth[index], ms[index]))
    assert math.isnan(tau(np.array([3, 3])))
    assert resampled_tau(np.zeros(30), truth)(index) == 0


def test_resampled_tau_leaves_out_networks_without_a_score():
    truth = np.array([1.0, 2.0, 3.0, 4.0])
    assert resampled_tau(np.array([1.0, 2.0, math.nan, 0.0]), truth)(np.arange(4)) == pytest.approx(-1 / 3)


def test_bootstrap_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).standard_normal(400)
    found = bootstrap(lambda i: float(values[i].mean()), len(values))
    half = 1.96 * values.std() / math.sqrt(len(values))
    assert found.value == values.mean()
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.1)


def test_bootstrap_intervals_of_tau_hold_the_true_tau():
    hits = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        truth = rng.standard_normal(40)
        scores = truth + rng.standard_normal(40)  # a correlation of 1 / sqrt 2, so a tau of 1 / 2
        found = bootstrap(lambda i, s=scores, t=truth: kendall_tau(s[i], t[i]), 40, resamples=200)
        hits += found.low <= 0.5 <= found.high
    assert 35 <= hits <= 40


def test_paired_bootstrap_sees_a_difference_that_single_intervals_hide():
    rng = np.random.default_rng(1)
    truth = rng.standard_normal(60)
    worse = truth + 1.0 * rng.standard_normal(60)
    better = truth + 0.8 * (worse - truth)  # the same errors, a little smaller

    def tau(scores: np.ndarray, i: np.ndarray) -> float:
        return kendall_tau(scores[i], truth[i])

    difference = bootstrap(lambda i: tau(better, i) - tau(worse, i), 60)
    apart = [bootstrap(lambda i, s=scores: tau(s, i), 60) for scores in (worse, better)]
    assert difference.low > 0
    assert apart[0].high > apart[1].low


def test_bootstrap_skips_draws_that_have_no_value_and_repeats_by_seed():
    def mean_with_the_first(i: np.ndarray) -> float:
        return float(i.mean()) if 0 in i else math.nan

    found = bootstrap(mean_with_the_first, 4, seed=1)
    assert found == bootstrap(mean_with_the_first, 4, seed=1)
    assert found != bootstrap(mean_with_the_first, 4, seed=2, resamples=50)
    assert 0 <= found.low < found.high < 3
