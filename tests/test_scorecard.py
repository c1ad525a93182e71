"""The score card on synthetic tables whose answer is known."""

from __future__ import annotations

import math
import random
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
import pytest

from evit_nas.accuracy import ShortScore, scorecard
from evit_nas.accuracy.aggregate import NAMES
from evit_nas.accuracy.features import code, size
from evit_nas.accuracy.scorecard import Card, Row, score_card
from evit_nas.accuracy.table import LabelTable, TrainedNetwork, Training
from evit_nas.arch import ArchConfig
from evit_nas.config import ShortRecipe
from evit_nas.errors import UsageError
from evit_nas.space import SearchSpace
from evit_nas.stats import Interval, kendall_tau

COUNT = 40


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    for name, value in {"FOLDS": 4, "DRAWS": 2, "RESAMPLES": 60}.items():
        monkeypatch.setattr(scorecard, name, value)


@pytest.fixture
def without_predictors(monkeypatch):
    monkeypatch.setattr(scorecard, "INPUTS", {})


@lru_cache
def members(count: int = COUNT) -> list[ArchConfig]:
    space, rng = SearchSpace.load("efficientvit-96"), random.Random(0)
    return [space.sample(rng) for _ in range(count)]


def standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


def learnable(archs: list[ArchConfig]) -> np.ndarray:
    """(n,) a truth that choices make and size does not."""
    chosen = np.array([[code(arch)[f"stage{stage}.ffn_ratio"] for stage in (1, 2, 3)] for arch in archs])
    return standardised(chosen.sum(axis=1))


def table_of(
    truth: np.ndarray, *, seeds: int = 1, noise: float = 0.0, ms: float | np.ndarray = 3.0, **proxies: np.ndarray
) -> LabelTable:
    """Networks of that truth, all of about one latency; labels are in percent, ten points a nat."""
    rng, archs = np.random.default_rng(1), members(len(truth))
    latency_ms = np.broadcast_to(ms, len(truth)) * rng.uniform(1, 1.09, len(truth))
    networks = []
    for index, (arch, value) in enumerate(zip(archs, truth, strict=True)):
        labels = 60 + value + noise * rng.standard_normal(seeds)
        scores = [ShortScore(accuracy=x / 100, cross_entropy=(100 - x) / 10, curve=(1.0,)) for x in labels]
        trainings = tuple(Training(seed=seed, score=score, seconds=1.0) for seed, score in enumerate(scores))
        known = {name: float(values[index]) for name, values in proxies.items() if math.isfinite(values[index])}
        networks.append(TrainedNetwork(arch=arch, latency_ms=latency_ms[index], proxies=known, trainings=trainings))
    return LabelTable(data="made up", recipe=ShortRecipe(), device="cpu", networks=tuple(networks))


def row(card: Card, name: str) -> Row:
    (found,) = [row for row in card.rows if row.score == name]
    return found


def best_size(card: Card) -> Row:
    return max((row for row in card.rows if row.kind == "size"), key=lambda row: row.iso.value)


RNG = np.random.default_rng(0)
TRUTH = learnable(members())


def test_a_score_equal_to_the_truth_has_tau_1_no_regret_and_gains_what_the_best_size_lacks(without_predictors):
    card = score_card(table_of(TRUTH, oracle=TRUTH))
    found = row(card, "oracle")
    assert found.kind == "proxy"
    assert found.overall == pytest.approx(1)
    assert found.iso == Interval(pytest.approx(1), pytest.approx(1), pytest.approx(1))
    assert found.regret == 0
    assert found.gain.value == pytest.approx(1 - best_size(card).iso.value)
    assert 0 < found.gain.low < found.gain.value < found.gain.high


def test_a_score_against_the_truth_has_tau_minus_1_and_loses_most(without_predictors):
    found = row(score_card(table_of(TRUTH, liar=-TRUTH)), "liar")
    assert found.iso.value == pytest.approx(-1)
    assert found.regret == pytest.approx(np.ptp(TRUTH) - (np.sort(TRUTH)[4] - TRUTH.min()), abs=1e-9)


def test_noise_has_no_tau_and_its_interval_says_so(without_predictors):
    found = row(score_card(table_of(TRUTH, noise_=RNG.standard_normal(COUNT))), "noise_")
    assert abs(found.iso.value) < 0.2
    assert found.iso.low < 0 < found.iso.high


def test_only_pairs_of_about_equal_latency_count(without_predictors):
    """Slow networks are better and a score repeats the latency: great over all, nothing under a budget."""
    speeds = np.repeat([1.0, 2.0, 4.0, 8.0], COUNT // 4)
    truth = 5 * np.log(speeds) + TRUTH
    card = score_card(table_of(truth, ms=speeds, repeats=speeds))
    assert row(card, "repeats").overall > 0.7
    assert row(card, "repeats").iso.value == 0
    assert card.pairs == 4 * math.comb(10, 2)


def test_sizes_are_the_baseline_and_have_no_gain(without_predictors):
    macs = standardised(np.array([size(arch)["log_macs"] for arch in members()]))
    card = score_card(table_of(macs, copy=macs))
    assert [found.score for found in card.rows if found.kind == "size"] == ["params", "macs", "depth", "latency"]
    assert all(found.gain is None for found in card.rows if found.kind == "size")
    assert best_size(card) == row(card, "macs")
    assert row(card, "copy").gain == Interval(0, 0, 0)


def test_sizes_among_the_proxies_are_not_judged_twice(without_predictors):
    card = score_card(table_of(TRUTH, params=TRUTH, macs=TRUTH, snip=TRUTH))
    assert [found.score for found in card.rows] == ["params", "macs", "depth", "latency", "snip"]


def test_the_aggregate_stands_where_all_its_proxies_do(without_predictors):
    proxies = dict.fromkeys(NAMES, TRUTH)
    assert row(score_card(table_of(TRUTH, **proxies)), "zero-cost aggregate").iso.value == pytest.approx(1)
    del proxies["snip"]
    assert "zero-cost aggregate" not in [found.score for found in score_card(table_of(TRUTH, **proxies)).rows]


def test_a_score_that_some_networks_lack_is_judged_with_the_sizes_on_the_others(without_predictors):
    some = np.where(np.arange(COUNT) < 30, TRUTH, math.nan)
    few = np.where(np.arange(COUNT) < 15, TRUTH, math.nan)
    whole = table_of(TRUTH, some=some, few=few, **(dict.fromkeys(NAMES, TRUTH) | {"snip": some}))
    card = score_card(whole)
    found = row(card, "some")
    assert found.overall == pytest.approx(1)
    assert row(card, "zero-cost aggregate").iso.value == pytest.approx(1)
    assert "few" not in [found.score for found in card.rows]
    sizes = {found.score: index for index, found in enumerate(card.rows)}
    columns = np.array([list(size(arch).values()) for arch in members()]).T
    best = [*columns, whole.latency_ms][sizes[best_size(card).score]]
    expected = 1 - kendall_tau(best[:30], whole.truth()[0][:30], whole.latency_ms[:30])
    assert found.gain.value == pytest.approx(expected)


def test_seeds_tell_the_noise_and_the_ceiling(without_predictors):
    noisy = table_of(np.tile(TRUTH, 5)[:200], seeds=2, noise=1.0)
    card = score_card(noisy)
    assert card.spread.seed_sd == pytest.approx(1, rel=0.15)
    assert card.spread.arch_sd == pytest.approx(1, rel=0.15)
    expected = (
        2 / math.pi * math.asin(1 / math.hypot(1, math.sqrt(0.5)))
    )  # of two seeds' mean, half the variance is left
    assert card.ceiling.value == card.spread.ceiling == pytest.approx(expected, abs=0.08)
    assert 0 < card.ceiling.low < card.ceiling.value < card.ceiling.high < 1


def test_with_one_seed_there_is_no_ceiling(without_predictors):
    card = score_card(table_of(TRUTH))
    assert (card.spread, card.ceiling) == (None, None)


@pytest.mark.parametrize(
    ("count", "ms", "message"),
    [
        (15, 3.0, "needs 16 networks and 10 pairs of about equal latency, got 15 and 105"),
        (16, 1.3 ** np.arange(16), "needs 16 networks and 10 pairs of about equal latency, got 16 and 0"),
    ],
)
def test_a_table_too_small_to_judge_by_is_refused(count, ms, message):
    with pytest.raises(UsageError, match=message):
        score_card(table_of(learnable(members(count)), ms=ms))


def test_a_predictor_beats_size_where_choices_decide_and_more_labels_help():
    card = score_card(table_of(5 * TRUTH), labels=(10,))
    learned = row(card, "predictor, 30 labels")
    assert learned.kind == "predictor"
    assert learned.iso.value > max(0.35, row(card, "predictor, 10 labels").iso.value)
    assert learned.gain.value > 0.1
    assert learned.iso.value > row(card, "predictor (size), 30 labels").iso.value


@pytest.mark.parametrize("tau", [1, -1])
def test_predictions_from_few_labels_are_judged_on_the_networks_they_are_for(monkeypatch, tau):
    """By predictions that are the truth, or its opposite."""
    worth = np.arange(COUNT, dtype=float)

    def told(labels, own, others, latency_ms, *, repeats, seed):
        for draw in range(repeats):
            unseen = np.random.default_rng(draw).permutation(COUNT)[labels:]
            yield SimpleNamespace(index=unseen, mean=tau * own.log_error[unseen])

    monkeypatch.setattr(scorecard, "with_labels", told)
    monkeypatch.setattr(scorecard, "INPUTS", {"predictor": ()})
    found = row(score_card(table_of(worth), labels=(10,)), "predictor, 10 labels")
    assert found.overall == pytest.approx(tau)
    assert found.iso == Interval(pytest.approx(tau), pytest.approx(tau), pytest.approx(tau))
    assert (found.regret == 0) == (tau == 1)


def test_a_predictor_has_no_skill_where_there_is_nothing_to_learn():
    """In sample its tau would be near 1: this is how a leak would show."""
    card = score_card(table_of(RNG.standard_normal(COUNT)), labels=(24,))
    for name in ("predictor, 30 labels", "predictor, 24 labels"):
        assert row(card, name).iso.value < 0.3


def test_numbers_of_labels_that_leave_too_few_networks_are_passed_over(monkeypatch):
    monkeypatch.setattr(scorecard, "INPUTS", {"predictor": ()})
    card = score_card(table_of(TRUTH[:20]), labels=(4, 12, 13))
    assert [found.score for found in card.rows if found.kind == "predictor"] == [
        "predictor, 15 labels",
        "predictor, 12 labels",
    ]


def test_what_cannot_be_told_is_none_in_plain_figures_and_warns_nobody(monkeypatch, recwarn):
    """Three rivals at a time: nobody has five of them, and few draws leave a pair unseen."""
    monkeypatch.setattr(scorecard, "INPUTS", {"predictor": ()})
    speeds = np.concatenate([1.5 ** np.arange(10), np.repeat(100.0, 5)])
    speeds = np.append(speeds, 1e6)
    card = score_card(table_of(TRUTH[:16], ms=speeds), labels=(8,))
    plain = {found.score: found.plain() for found in card.rows}
    assert plain["params"]["top5_regret"] is None
    assert plain["params"]["gain"] is None
    assert all(value is None or math.isfinite(value) for line in plain.values() for value in list(line.values())[2:])
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


def test_plain_figures_are_rounded_and_named():
    line = Row("snip", "proxy", 0.51239, Interval(0.4, 0.3, 0.5), Interval(0.1, -0.1, 0.3), 0.25).plain()
    assert line == {
        "score": "snip",
        "kind": "proxy",
        "tau": 0.512,
        "iso_latency_tau": 0.4,
        "low": 0.3,
        "high": 0.5,
        "gain": 0.1,
        "gain_low": -0.1,
        "gain_high": 0.3,
        "top5_regret": 0.25,
    }


def test_equal_seeds_give_equal_cards(without_predictors):
    found = table_of(TRUTH, noise_=RNG.standard_normal(COUNT))
    assert score_card(found, seed=1) == score_card(found, seed=1)
    assert score_card(found, seed=1) != score_card(found, seed=2)
