"""The accuracy predictor on synthetic truths: what it learns, what it says about its errors, what it must not see.

A truth, the log of an error, adds a power law of size, a term of the architecture code, one of interactions, and noise.
"""

from __future__ import annotations

import dataclasses
import math
import random
from functools import lru_cache

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from evit_nas.accuracy.evidence import Evidence, Networks, networks, typical_features
from evit_nas.accuracy.features import code, size, table
from evit_nas.accuracy.predictor import PRIOR, AccuracyPredictor, cross_validated, with_labels
from evit_nas.arch import ArchConfig
from evit_nas.errors import UsageError
from evit_nas.network.cost import cost
from evit_nas.regime import Regime
from evit_nas.space import SearchSpace
from evit_nas.stats import kendall_tau
from tests.networks import VARIANTS, tiny_arch

NOISE_SD = 0.01
HERE, FAR = Regime(images=10_000, classes=10), Regime(images=1_000_000, classes=1000)


@lru_cache
def members(count: int, space: str = "efficientvit-96") -> list[ArchConfig]:
    found, rng = SearchSpace.load(space), random.Random(0)
    return [found.sample(rng) for _ in range(count)]


def standardised(values: np.ndarray) -> np.ndarray:
    scale = np.nanstd(values, 0)
    return np.nan_to_num((values - np.nanmean(values, 0)) / np.where(scale > 1e-9, scale, 1))


def labelled(
    archs: list[ArchConfig], log_error: np.ndarray, noise_sd: float = NOISE_SD, regime: Regime = HERE, **more: object
) -> Evidence:
    """The networks with these labels, by data of their own."""
    rows = networks(archs, regime, **{"data": str(regime), **more})
    columns = {field.name: getattr(rows, field.name) for field in dataclasses.fields(Networks)}
    keys = np.array([arch.key for arch in archs], dtype=object)
    return Evidence(**columns, keys=keys, log_error=log_error, noise_sd=np.full(len(archs), noise_sd))


NOTHING = labelled([], np.zeros(0))


@lru_cache
def problem(seed: int, count: int = 150) -> tuple[Evidence, np.ndarray, np.ndarray]:
    """`count` networks with noisy labels, their true values, and MACs in place of latencies."""
    archs, rng = members(count), np.random.default_rng(seed)
    choices = standardised(table(archs, ["code"]))
    law = 3.0 + networks(archs, HERE).sizes @ np.array([-0.15, 0.05])
    additive = choices @ (rng.standard_normal(choices.shape[1]) * (rng.random(choices.shape[1]) < 0.4))
    one, other = rng.integers(choices.shape[1], size=(2, 12))
    interaction = (choices[:, one] * choices[:, other]) @ rng.standard_normal(12)
    truth = law + 0.04 * standardised(additive) + 0.02 * standardised(interaction)
    labels = truth + NOISE_SD * rng.standard_normal(count)
    return labelled(archs, labels), truth, np.array([cost(arch).macs for arch in archs]) / 1e6


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


def test_the_posterior_is_that_of_a_gaussian_process_by_brute_force():
    own, _, _ = problem(0)
    seen, asked = own[np.arange(20)], own[np.arange(20, 90)]
    predictor = AccuracyPredictor.fit(seen)
    law = {name: predictor._law(rows) for name, rows in (("seen", seen), ("asked", asked))}
    prior = predictor._covariance(seen, seen) + np.diag(seen.noise_sd**2 + PRIOR.rest**2)
    cross = predictor._covariance(asked, seen)
    inverse = np.linalg.inv(prior)
    posterior = predictor._covariance(asked, asked) - cross @ inverse @ cross.T

    mean, sd = predictor.predict(asked)
    assert mean == pytest.approx(law["asked"] + cross @ inverse @ (seen.log_error - law["seen"]))
    without = [AccuracyPredictor.fit(seen[np.delete(np.arange(20), i)]) for i in range(20)]
    off = []
    for i, fitted in enumerate(without):
        one, fitted = seen[np.array([i])], dataclasses.replace(fitted, _scale=predictor._scale)
        expected, cross_one = fitted.mean(one), fitted._covariance(one, fitted._seen)
        variance = fitted._variance(one) - (cross_one * fitted._solved(cross_one.T).T).sum(1)
        off.append((one.log_error - expected) ** 2 / (variance + NOISE_SD**2 + PRIOR.rest**2))
    stretch = (10 + np.sum(off)) / (10 + 20)  # the prior counts as ten labels
    assert sd**2 == pytest.approx(stretch * np.diag(posterior))
    share = np.full(5, 1 / 5)
    others = np.arange(65, 70)
    contrast = np.diag(posterior) - 2 * posterior[:, others] @ share + share @ posterior[np.ix_(others, others)] @ share
    assert predictor.against(asked, asked[others]) == pytest.approx(np.sqrt(stretch * contrast))
    density = multivariate_normal(law["seen"], prior).logpdf(seen.log_error)
    assert predictor.evidence_log_likelihood == pytest.approx(density)


def test_the_typical_network_of_the_paper_departs_from_nothing():
    own, _, _ = problem(0)
    predictor = AccuracyPredictor.fit(own[np.arange(20)])
    typical = dataclasses.replace(own[np.arange(1)], features=typical_features()[None])
    departures = predictor._departures(typical)
    assert (departures == 0).all()
    assert predictor._departure(departures, predictor._departures(own)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("macs", "params"), [(-0.25, 0.1), (-0.1, -0.15)])
def test_the_slopes_of_a_power_law_are_learned_from_sizes_alone(macs, params):
    archs = members(60)
    sizes = networks(archs, HERE).sizes
    own = labelled(archs, 3 + sizes @ np.array([macs, params]), 0.003, inputs=())
    predictor = AccuracyPredictor.fit(own)
    asked = dataclasses.replace(own[np.zeros(3, dtype=int)], sizes=np.array([[-1.7, -1], [-0.7, -1], [-1.7, 0]]))
    origin, more_macs, more_params = predictor.mean(asked)
    assert more_macs - origin == pytest.approx(macs, abs=0.03)
    assert more_params - origin == pytest.approx(params, abs=0.03)


def held_out_tau(own: Evidence, problem_seed: int, labels: int) -> float:
    """Mean iso-latency tau against the true values; 1 is best."""
    _, truth, latency_ms = problem(problem_seed)
    found = with_labels(labels, own, NOTHING, latency_ms, repeats=3)
    return float(np.mean([kendall_tau(h.mean, truth[h.index], latency_ms[h.index]) for h in found]))


def test_code_and_size_order_networks_of_equal_latency_better_than_size():
    both, only_size = [], []
    for seed in range(3):
        own, _, _ = problem(seed)
        both.append(held_out_tau(own, seed, 40))
        without = dataclasses.replace(own, features=np.full_like(own.features, math.nan))
        only_size.append(held_out_tau(without, seed, 40))
    assert np.mean(both) > 0.5
    assert np.mean(both) > np.mean(only_size) + 0.1


def test_more_labels_help():
    own, _, _ = problem(1)
    assert held_out_tau(own, 1, 80) > held_out_tau(own, 1, 10) + 0.05


def test_labels_of_a_near_regime_help_more_than_those_of_a_far_one():
    """The same truth in three regimes; 10 labels here, 60 others elsewhere."""
    own, truth, _ = problem(0)
    here, unseen = own[np.arange(10)], np.arange(70, 150)
    taus = []
    for regime in (Regime(images=12_000, classes=12), FAR, None):
        parts = [here]
        if regime is not None:
            parts.append(labelled(members(150)[10:70], own.log_error[10:70], regime=regime))
        mean = AccuracyPredictor.fit(Evidence.joined(parts)).mean(own[unseen])
        taus.append(kendall_tau(mean, truth[unseen]))
    near, far, none = taus
    assert near > far > none


def test_uncertainty_grows_with_the_distance_of_the_regime():
    own, _, _ = problem(0)
    predictor = AccuracyPredictor.fit(own)
    spreads, contrasts = [], []
    for decades in range(4):
        regime = Regime(images=10_000 * 10**decades, classes=10)
        asked = networks(members(150)[:30], regime, str(HERE) if not decades else "")
        spreads.append(predictor.predict(asked)[1].mean())
        contrasts.append(predictor.against(asked, asked).mean())
    assert spreads == sorted(spreads)
    assert contrasts == sorted(contrasts)
    assert spreads[-1] > 2 * contrasts[-1]  # of a far regime it is the level that nobody knows


@pytest.mark.slow
def test_eighty_percent_intervals_hold_at_least_eighty_percent_of_unseen_labels():
    inside = []
    for seed in range(4):
        own, _, latency_ms = problem(seed)
        for held in with_labels(40, own, NOTHING, latency_ms, repeats=2, seed=seed):
            off = np.abs(held.mean - own.log_error[held.index])
            inside.append(np.mean(off < 1.2816 * np.hypot(held.sd, NOISE_SD)))
    assert 0.75 < np.mean(inside) < 0.95


def test_a_label_that_is_known_to_be_noisy_counts_less():
    own, truth, _ = problem(2)
    labels = truth[:40].copy()
    labels[7] += 0.5
    few = dataclasses.replace(own[np.arange(40)], log_error=labels)
    trusting = AccuracyPredictor.fit(few).mean(few)[7]
    noise_sd = few.noise_sd.copy()
    noise_sd[7] = 0.5
    wary = AccuracyPredictor.fit(dataclasses.replace(few, noise_sd=noise_sd)).mean(few)[7]
    assert abs(wary - truth[7]) < 0.5 * abs(trusting - truth[7])


def test_draws_have_the_mean_and_spread_of_the_prediction_and_similar_networks_err_alike():
    own, _, _ = problem(0)
    predictor = AccuracyPredictor.fit(own[np.arange(60)])
    asked = own[np.append(np.arange(60, 150), 100)]  # one of them twice
    mean, sd = predictor.predict(asked)
    drawn = predictor.sample(asked, 2000, np.random.default_rng(0))

    assert drawn.shape == (2000, len(asked))
    assert np.abs((drawn.mean(0) - mean) / sd).max() < 0.15
    assert np.median(drawn.std(0) / sd) == pytest.approx(1, abs=0.1)
    together = np.corrcoef(drawn.T)
    assert together[40, -1] > 0.9 > np.median(together[40, :40])


def test_the_order_of_the_networks_changes_nothing():
    own, _, _ = problem(0)
    order = np.random.default_rng(0).permutation(40)
    one, other = AccuracyPredictor.fit(own[np.arange(40)]), AccuracyPredictor.fit(own[order])
    for before, after in zip(one.predict(own), other.predict(own), strict=True):
        assert np.allclose(before, after, rtol=1e-9)


def test_held_out_predictions_never_see_their_own_label():
    own, _, latency_ms = problem(0)
    own, latency_ms = own[np.arange(16)], latency_ms[:16]
    changed = dataclasses.replace(own, log_error=own.log_error + (np.arange(16) == 7))
    before, after = (next(cross_validated(labels, NOTHING, folds=2)) for labels in (own, changed))
    same = after.mean == before.mean
    assert same[7]
    assert same.sum() == 8  # all of its fold and nobody else

    drawn = next(with_labels(10, own, NOTHING, latency_ms))
    log_error = own.log_error.copy()
    log_error[drawn.index] += 1
    again = next(with_labels(10, dataclasses.replace(own, log_error=log_error), NOTHING, latency_ms))
    assert np.array_equal(again.mean, drawn.mean)


def test_a_network_that_is_judged_is_left_out_of_every_other_regime_too():
    own, _, latency_ms = problem(0)
    own, latency_ms = own[np.arange(16)], latency_ms[:16]
    elsewhere = labelled(members(150)[:30], problem(0)[0].log_error[:30], regime=FAR)
    its_own, others = (
        dataclasses.replace(elsewhere, log_error=elsewhere.log_error + 5 * moved)
        for moved in (np.arange(30) < 16, np.arange(30) >= 16)
    )
    before, same, moved = (next(with_labels(0, own, known, latency_ms)) for known in (elsewhere, its_own, others))
    assert np.array_equal(same.mean, before.mean)
    assert not np.isclose(moved.mean, before.mean).any()


def test_labelled_networks_are_spread_over_the_latencies():
    own, _, latency_ms = problem(0)
    for held_out in with_labels(15, own, NOTHING, latency_ms, repeats=2):
        chosen = np.setdiff1d(np.arange(150), held_out.index)
        assert len(chosen) == 15
        ranks = np.sort(np.argsort(np.argsort(latency_ms))[chosen])
        assert (ranks // 10 == np.arange(15)).all()  # one of each ten neighbours


@pytest.mark.parametrize("field", ["log_error", "noise_sd", "sizes", "decades"])
def test_evidence_that_is_not_finite_is_refused(field):
    own, _, _ = problem(0)
    broken = getattr(own, field).copy()
    broken[3] = math.nan
    with pytest.raises(ValueError, match=f"{field} must be finite"):
        AccuracyPredictor.fit(dataclasses.replace(own, **{field: broken}))


def test_no_evidence_at_all_is_refused():
    with pytest.raises(ValueError, match="needs trained networks, got none"):
        AccuracyPredictor.fit(NOTHING)


@pytest.mark.parametrize("labels", [-1, 150])
def test_labels_must_leave_networks_to_predict(labels):
    own, _, latency_ms = problem(0)
    with pytest.raises(ValueError, match=f"of 150 networks 0 to 149 can be labelled, got {labels}"):
        next(with_labels(labels, own, NOTHING, latency_ms))
