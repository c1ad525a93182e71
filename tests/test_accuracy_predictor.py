"""The accuracy predictor on synthetic truths: what it learns, what it says about its errors, what it must not see.

A truth adds a term of size, one of the architecture code, one of interactions of the code, and noise.
"""

from __future__ import annotations

import math
import random
from functools import lru_cache

import numpy as np
import pytest

from evit_nas.accuracy.features import code, size, table
from evit_nas.accuracy.predictor import MIN_LABELS, AccuracyPredictor, cross_validated, with_labels
from evit_nas.arch import ArchConfig
from evit_nas.errors import UsageError
from evit_nas.network.cost import cost
from evit_nas.space import SearchSpace
from evit_nas.stats import kendall_tau
from tests.networks import VARIANTS, tiny_arch

NOISE_SD = 0.3


@lru_cache
def members(count: int, space: str = "efficientvit-96") -> list[ArchConfig]:
    found, rng = SearchSpace.load(space), random.Random(0)
    return [found.sample(rng) for _ in range(count)]


def standardised(values: np.ndarray) -> np.ndarray:
    scale = np.nanstd(values, 0)
    return np.nan_to_num((values - np.nanmean(values, 0)) / np.where(scale > 1e-9, scale, 1))


@lru_cache
def problem(seed: int, count: int = 150) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features of `count` networks, their true values, noisy labels, and MACs in place of latencies."""
    archs, rng = members(count), np.random.default_rng(seed)
    choices = standardised(table(archs, ["code"]))
    large = standardised(table(archs, ["size"])).sum(1)
    additive = choices @ (rng.standard_normal(choices.shape[1]) * (rng.random(choices.shape[1]) < 0.4))
    one, other = rng.integers(choices.shape[1], size=(2, 12))
    interaction = (choices[:, one] * choices[:, other]) @ rng.standard_normal(12)
    truth = standardised(large) + 0.8 * standardised(additive) + 0.4 * standardised(interaction)
    labels = truth + NOISE_SD * rng.standard_normal(count)
    return table(archs), truth, labels, np.array([cost(arch).macs for arch in archs]) / 1e6


@pytest.mark.parametrize("name", VARIANTS)
def test_equal_networks_have_equal_features(name):
    arch = tiny_arch(**VARIANTS[name])
    stages = []
    for stage in arch.stages:
        unused = {"q_kernels": (*stage.used_q_kernels, 9, 9)} if stage.used_q_kernels else {"q_kernels": (11, 11)}
        if stage.heads == 1 or stage.mixer != "softmax":
            unused["cascade"] = not stage.cascade
        if stage.mixer == "none":
            unused |= {"heads": 1, "qk_dim": 64, "v_ratio": 2.0}
        stages.append(stage.model_copy(update={**unused, "window": stage.window + 50 * (stage.mixer != "softmax")}))
    same = arch.model_copy(update={"stages": tuple(stages)})
    assert same != arch
    assert same.key == arch.key
    assert np.array_equal(table([same]), table([arch]), equal_nan=True)


@pytest.mark.parametrize(
    "change",
    [change for change in VARIANTS.values() if change] + [{"depth": 2}, {"qk_dim": 16}, {"q_kernels": [3, 3]}],
)
def test_every_choice_shows_in_the_code_of_its_stage(change):
    stage = "stage2" if "merge_ratio" in change else "stage1"  # later maps are too small for another window
    paper, changed = (
        {name: value for name, value in code(arch).items() if name.startswith(stage)}
        for arch in (tiny_arch(), tiny_arch(**change))
    )
    assert paper != changed


def test_the_stem_shows_in_the_code():
    assert code(tiny_arch().model_copy(update={"stem_ratio": 0.5})) != code(tiny_arch())


def test_a_stage_has_only_the_features_it_uses():
    assert "stage1.log_heads" not in code(tiny_arch(mixer="none"))
    assert "stage1.cascade" not in code(tiny_arch(mixer="linear"))
    assert "stage1.log_heads" in code(tiny_arch(mixer="linear"))
    assert np.isnan(table([tiny_arch(mixer="none")], ["code"])).sum() == 3 * 6


def test_size_is_params_macs_and_depth():
    m0 = ArchConfig.preset("m0")
    assert list(size(m0).values()) == [math.log(v) for v in (cost(m0).params, cost(m0).macs, cost(m0).depth)]
    assert table([m0], ["size"]).tolist() == [list(size(m0).values())]


def test_an_unknown_input_is_named():
    with pytest.raises(UsageError, match=r"no input of the predictor is called 'codes'. Did you mean 'code'\?"):
        table([tiny_arch()], ["codes"])


def held_out_tau(features: np.ndarray, problem_seed: int, labels: int) -> float:
    """Mean iso-latency tau against the true values."""
    _, truth, noisy, latency_ms = problem(problem_seed)
    found = with_labels(labels, features, noisy, latency_ms, repeats=2)
    return float(np.mean([kendall_tau(h.mean, truth[h.index], latency_ms[h.index]) for h in found]))


@pytest.mark.slow
def test_code_and_size_order_networks_of_equal_latency_better_than_size():
    archs, seeds = members(150), range(3)
    only_size = [held_out_tau(table(archs, ["size"]), seed, 40) for seed in seeds]
    both = [held_out_tau(table(archs), seed, 40) for seed in seeds]
    assert np.mean(both) > 0.35
    assert np.mean(both) > np.mean(only_size) + 0.2


def test_more_labels_help():
    features = problem(1)[0]
    assert held_out_tau(features, 1, 60) > held_out_tau(features, 1, 15) + 0.05


def test_an_informative_extra_feature_helps_and_its_sign_is_learned():
    features, truth, noisy, _ = problem(0)
    short = -truth + 0.5 * np.random.default_rng(9).standard_normal(len(truth))  # like a loss: lower is better
    seen, unseen = slice(0, 40), slice(40, None)

    def tau(table_: np.ndarray) -> float:
        mean, _ = AccuracyPredictor.fit(table_[seen], noisy[seen]).predict(table_[unseen])
        return kendall_tau(mean, truth[unseen])

    assert tau(np.column_stack([features, short])) > tau(features) + 0.03


@pytest.mark.slow
def test_eighty_percent_intervals_hold_eighty_percent_of_unseen_labels():
    inside = []
    for seed in range(4):
        features, _, noisy, latency_ms = problem(seed)
        found = with_labels(40, features, noisy, latency_ms, repeats=2, seed=seed)
        inside += [np.mean(np.abs(h.mean - noisy[h.index]) < 1.2816 * h.sd) for h in found]
    assert 0.72 < np.mean(inside) < 0.88


def test_known_noise_of_the_labels_is_not_uncertainty_about_the_network():
    features, truth, _, _ = problem(2)
    rng = np.random.default_rng(0)
    labels = truth[:60] + rng.standard_normal(60)  # as noisy as the truth is spread
    told = AccuracyPredictor.fit(features[:60], labels, noise_sd=1.0)
    untold = AccuracyPredictor.fit(features[:60], labels)
    assert told.predict(features[60:])[1].mean() < 0.9 * untold.predict(features[60:])[1].mean()


def test_a_label_that_is_known_to_be_noisy_counts_less():
    features, truth, _, _ = problem(2)
    labels, noise_sd = truth[:40].copy(), np.full(40, 0.1)
    labels[7] += 5
    trusting, _ = AccuracyPredictor.fit(features[:40], labels, noise_sd).predict(features[7:8])
    noise_sd[7] = 5
    wary, _ = AccuracyPredictor.fit(features[:40], labels, noise_sd).predict(features[7:8])
    assert wary[0] < trusting[0] - 0.2


def test_draws_have_the_mean_and_spread_of_the_prediction_and_similar_networks_err_alike():
    features, _, noisy, _ = problem(0)
    predictor = AccuracyPredictor.fit(features[:60], 60 + 5 * noisy[:60])
    near = features[100:101] + 1e-6
    asked = np.vstack([features[60:], near])
    mean, sd = predictor.predict(asked)
    drawn = predictor.sample(asked, 2000, np.random.default_rng(0))

    assert drawn.shape == (2000, len(asked))
    assert np.abs((drawn.mean(0) - mean) / sd).max() < 0.15
    assert np.median(drawn.std(0) / sd) == pytest.approx(1, abs=0.1)
    together = np.corrcoef(drawn.T)
    assert together[40, -1] > 0.5 > np.median(together[40, :40])


def test_the_order_of_the_networks_changes_nothing():
    features, _, noisy, _ = problem(0)
    order = np.random.default_rng(0).permutation(40)
    one = AccuracyPredictor.fit(features[:40], noisy[:40], np.linspace(0.1, 0.2, 40))
    other = AccuracyPredictor.fit(features[order], noisy[order], np.linspace(0.1, 0.2, 40)[order])
    for before, after in zip(one.predict(features), other.predict(features), strict=True):
        assert np.allclose(before, after, rtol=1e-12)


def test_predictions_follow_the_unit_of_the_labels():
    features, _, noisy, _ = problem(0)
    mean, sd = AccuracyPredictor.fit(features[:30], noisy[:30]).predict(features)
    finer_mean, finer_sd = AccuracyPredictor.fit(features[:30], 4 * noisy[:30]).predict(features)
    assert np.allclose(finer_mean, 4 * mean)
    assert np.allclose(finer_sd, 4 * sd)


def test_held_out_predictions_never_see_their_own_label():
    features, _, noisy, latency_ms = (column[:16] for column in problem(0))
    changed = noisy.copy()
    changed[7] += 100
    before, after = (next(cross_validated(features, labels, folds=2)) for labels in (noisy, changed))
    same = after.mean == before.mean
    assert same[7]
    assert after.sd[7] == before.sd[7]
    assert same.sum() == 8  # all of its fold and nobody else

    drawn = next(with_labels(10, features, noisy, latency_ms))
    changed = noisy.copy()
    changed[drawn.index] += 100
    again = next(with_labels(10, features, changed, latency_ms))
    assert np.array_equal(again.mean, drawn.mean)


def test_labelled_networks_are_spread_over_the_latencies():
    features, _, noisy, latency_ms = problem(0)
    for held_out in with_labels(15, features, noisy, latency_ms, repeats=2):
        labelled = np.setdiff1d(np.arange(150), held_out.index)
        assert len(labelled) == 15
        ranks = np.sort(np.argsort(np.argsort(latency_ms))[labelled])
        assert (ranks // 10 == np.arange(15)).all()  # one of each ten neighbours


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x[: MIN_LABELS - 1], y[: MIN_LABELS - 1], None), "at least 8 labelled networks, got 7"),
        (lambda x, y: (x, y[1:], None), r"features must be \(n, d\) and truth \(n,\), got"),
        (lambda x, y: (x, np.where(y == y[0], np.nan, y), None), "must be finite"),
        (lambda x, y: (np.where(x == x[0, 0], np.inf, x), y, None), "must be finite"),
        (lambda x, y: (x, y, -0.1), "noise >= 0"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(change, message):
    features, _, noisy, _ = problem(0)
    with pytest.raises(ValueError, match=message):
        AccuracyPredictor.fit(*change(features[:20], noisy[:20]))


@pytest.mark.parametrize("labels", [MIN_LABELS - 1, 150])
def test_labels_must_leave_networks_to_predict(labels):
    features, _, noisy, latency_ms = problem(0)
    with pytest.raises(ValueError, match="of 150 networks 8 to 149 can be labelled"):
        next(with_labels(labels, features, noisy, latency_ms))


def test_labels_that_do_not_differ_are_predicted_as_they_are():
    features = problem(0)[0]
    mean, sd = AccuracyPredictor.fit(features[:20], np.full(20, 70.0)).predict(features)
    assert np.allclose(mean, 70)
    assert np.isfinite(sd).all()
