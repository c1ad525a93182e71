"""The score under regimes: what is published comes out right, and intervals say what they are for."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evit_nas.accuracy import ShortScore, evidence, imagenet
from evit_nas.accuracy.evidence import without_cascade
from evit_nas.accuracy.imagenet import imagenet_card
from evit_nas.accuracy.learned import LearnedAccuracy
from evit_nas.accuracy.table import LabelTable, TrainedNetwork, Training, shipped_tables
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.config import ShortRecipe
from evit_nas.published import IMAGENET_1K, IMAGENET_100, REGIMES, TOP1
from evit_nas.regime import IMAGENET, Regime
from evit_nas.space import SearchSpace

PAPER = [ArchConfig.preset(name) for name in PRESETS]
FAR = Regime(images=300, classes=3)


@pytest.fixture(scope="module")
def on_imagenet() -> LearnedAccuracy:
    return LearnedAccuracy.under(IMAGENET)


def test_left_out_in_turn_the_papers_networks_keep_their_order_and_their_gaps():
    card = imagenet_card()
    assert card.ordered
    assert card.spread >= 12
    assert max(abs(one.predicted - one.published) for one in card.presets) < 1
    assert sum(one.holds for one in card.presets) >= 4


def test_who_is_left_out_is_not_told_by_what_derives_from_them(monkeypatch):
    left = {}

    def predicted(names, known, asked):
        left[names[0]] = set(known.keys)
        return iter(())

    monkeypatch.setattr(imagenet, "_predicted", predicted)
    imagenet_card()
    for name in PRESETS:
        assert not left[name] & {ArchConfig.preset(name).key, without_cascade(ArchConfig.preset(name)).key}


def test_relatives_of_other_papers_are_predicted_by_their_size():
    card = imagenet_card()
    assert card.rmse < 0.6
    assert all(one.holds for one in card.relatives)


def test_the_score_of_the_papers_networks_is_their_published_accuracy(on_imagenet):
    """One number, one truth: what is scored above a preset is expected above its published figure."""
    value, low, high = on_imagenet.intervals(PAPER)
    published = np.array([TOP1[IMAGENET_1K][name] for name in PRESETS])
    assert np.abs(value - published).max() < 0.3
    assert ((low < published) & (published < high)).all()
    assert on_imagenet.level_sd < 0.5


@pytest.mark.parametrize("name", PRESETS)
def test_the_cascade_is_worth_something_on_imagenet(on_imagenet, name):
    arch = ArchConfig.preset(name)
    value, _, _ = on_imagenet.intervals([arch, without_cascade(arch)])
    assert 0.3 < value[0] - value[1] < 3  # the paper: 1.5 points of m4


def test_parameters_are_worth_something_on_imagenet_and_cost_on_a_tenth_of_it(on_imagenet):
    tenth = LearnedAccuracy(REGIMES[IMAGENET_100], IMAGENET_100, on_imagenet.predictor, on_imagenet.known)
    value, _, _ = tenth.intervals(PAPER)
    m1, *larger = value[1:5]
    assert m1 > max(larger)  # the third party's training: 76.7 against 75.1 to 75.4
    much, _, _ = on_imagenet.intervals(PAPER)
    assert (np.diff(much) > 0).all()


def test_regimes_disagree_about_networks_of_one_size(on_imagenet):
    """Of two networks of about equal MACs ImageNet wants the one with parameters, a few images the other."""
    m1 = ArchConfig.preset("m1").model_dump()
    last = m1["stages"][2]
    rich = ArchConfig.model_validate(m1 | {"stages": [*m1["stages"][:2], last | {"width": 384, "ffn_ratio": 3.0}]})
    small = LearnedAccuracy.under(Regime(images=10_000, classes=10))
    for learned, wanted in ((on_imagenet, 1), (small, 0)):
        value, _, _ = learned.intervals([ArchConfig.preset("m1"), rich])
        assert value.argmax() == wanted


def test_the_farther_the_regime_the_less_is_known(on_imagenet):
    near = LearnedAccuracy.under(Regime(images=700_000, classes=700))
    far = LearnedAccuracy.under(FAR)
    widths = [high - low for _, low, high in (learned.intervals(PAPER) for learned in (on_imagenet, near, far))]
    assert (widths[0] < widths[1]).all()
    assert widths[1].mean() < widths[2].mean()
    assert on_imagenet.level_sd < near.level_sd < far.level_sd


def test_what_all_networks_share_is_no_part_of_an_interval():
    far = LearnedAccuracy.under(FAR)
    value, low, high = far.intervals(PAPER)
    assert ((high - low) / 2).mean() < far.level_sd
    assert (low < value).all()
    assert (value < high).all()
    assert f"may be off by {far.level_sd:.0f} points" in far.origin


def test_the_origin_names_the_regime_and_what_was_learned_from(on_imagenet):
    assert on_imagenet.origin.startswith("top-1 in percent on ImageNet after the paper's 300 epochs, predicted from")
    trained = sum(len(LabelTable.load(name).networks) for name in shipped_tables())
    data = "fashion-mnist (10k images of 10 classes) and photos-101 (24.2k images of 101 classes)"
    assert f"{trained} networks trained on {data}" in on_imagenet.origin
    assert "top-1 in percent on 300 images of 3 classes" in LearnedAccuracy.under(FAR).origin


def own_table(accuracies: list[float], validation: int | None, classes: int = 10) -> LabelTable:
    """As many networks of the tiny space, trained to these accuracies."""
    import random

    space, rng = SearchSpace.load("efficientvit-tiny"), random.Random(0)
    networks = []
    for accuracy in accuracies:
        score = ShortScore(accuracy=accuracy, cross_entropy=-math.log(accuracy), curve=(1.0,))
        training = Training(seed=0, score=score, seconds=1.0)
        networks.append(TrainedNetwork(arch=space.sample(rng), latency_ms=1.0, trainings=(training,)))
    return LabelTable(
        data="mine",
        recipe=ShortRecipe(),
        images=600,
        classes=classes,
        validation_images=validation,
        device="cpu",
        networks=tuple(networks),
    )


def test_an_interval_has_the_error_of_the_validation_images_in_it():
    """200 images that 60 % are classified right of: a binomial error of 3.5 points, 4.4 for four in five."""
    accuracies = np.linspace(0.58, 0.62, 16).tolist()
    table = own_table(accuracies, validation=200)
    _, low, high = LearnedAccuracy.of_table(table).intervals(table.archs)
    assert ((high - low) / 2 > 4.4).all()
    many = own_table(accuracies, validation=1_000_000)
    _, low, high = LearnedAccuracy.of_table(many).intervals(many.archs)
    assert ((high - low) / 2 < 3).all()


def test_own_labels_are_followed_as_far_as_their_noise_allows():
    gaps = []
    for validation in (1_000_000, 50):
        table = own_table([0.5, 0.7] * 8, validation)
        value, _, _ = LearnedAccuracy.of_table(table).intervals(table.archs)
        gaps.append(value[1::2].mean() - value[::2].mean())
    assert gaps[0] > 2 * gaps[1] > 0


@pytest.mark.parametrize(
    ("accuracies", "validation", "said"),
    [
        (np.linspace(0.58, 0.62, 16), 100_000, []),
        (np.linspace(0.09, 0.12, 16), 100_000, ["guessing 10.0 %"]),
        (np.linspace(0.58, 0.62, 16), 200, ["200 validation images leave an error of 3.5 points"]),
        (np.linspace(0.58, 0.62, 8), 100_000, ["8 labels are few"]),
    ],
)
def test_labels_that_say_little_are_called_so(accuracies, validation, said):
    table = own_table(list(accuracies), validation)
    doubts = list(LearnedAccuracy.of_table(table).doubts(table))
    assert len(doubts) == len(said)
    assert all(part in doubt for part, doubt in zip(said, doubts, strict=True))


def test_a_network_without_a_mistake_is_not_infinitely_good():
    table = own_table([1.0, 0.9] * 8, validation=100)
    value, low, high = LearnedAccuracy.of_table(table).intervals(table.archs)
    assert np.isfinite([value, low, high]).all()
    assert (high <= 100).all()


def test_evidence_is_one_row_for_each_training_set_of_a_network():
    known = evidence.published()
    m0 = known[known.keys == ArchConfig.preset("m0").key]
    assert sorted(m0.data) == [IMAGENET_100, IMAGENET_1K]
    assert np.exp(m0.log_error[m0.data == IMAGENET_1K]) == pytest.approx(100 - TOP1[IMAGENET_1K]["m0"])
    assert (known.keys == "").sum() == 7
    assert np.isnan(known.features[known.keys == ""]).all()
