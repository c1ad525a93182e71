"""What speaks against a trained network."""

from dataclasses import replace

import pytest

from evit_nas.training.verdict import judge
from tests.test_auto import PHOTOS

FALLING = [{"kind": "train", "loss": 2.3 - 0.02 * step} for step in range(50)]


def verdict(top1=60.0, images=5000, train_top1=65.0, rows=FALLING, seen=PHOTOS, fresh=True):
    return judge({"top1": top1, "images": images}, train_top1, rows, seen, fresh)


def test_nothing_speaks_against_a_network_that_learned():
    assert verdict() == verdict(train_top1=None)
    assert (verdict().no_good, verdict().doubts) == ("", ())


@pytest.mark.parametrize(
    ("counts", "top1", "good"),
    [((250, 250), 50.0, False), ((250, 250), 54.0, False), ((250, 250), 55.0, True), ((450, 50), 89.0, False)],
)
def test_naming_always_one_class_is_no_skill(counts, top1, good):
    """Two standard errors above the share of the most frequent class: 4.5 points of 50 % with 500 images."""
    found = verdict(top1=top1, images=500, seen=replace(PHOTOS, val_per_class=counts))
    assert (found.no_good == "") is good
    assert good or "no better than always naming one class" in found.no_good


@pytest.mark.parametrize("end", [2.3, 2.26, 3.0])
def test_a_loss_that_stands_is_no_training(end):
    rows = [{"kind": "train", "loss": 2.3 + (end - 2.3) * step / 49} for step in range(50)]
    assert "the training loss has not fallen (2.3" in verdict(rows=rows).no_good
    assert not verdict(rows=rows, fresh=False).no_good  # trained weights may have little to learn
    assert not verdict(rows=rows[:1]).no_good


def test_few_validation_images_say_how_coarse_they_are():
    (sentence,) = verdict(images=200).doubts  # 2 x sqrt(2) x sqrt(.6 x .4 / 200) = 9.8 points
    assert "200 validation images" in sentence
    assert "less than 10 points" in sentence


def test_classes_of_a_handful_are_named():
    seen = replace(PHOTOS, classes=("a", "b", "c", "d", "e"), per_class=(9, 10, 1, 2, 3))
    assert verdict(seen=seen).doubts == ("fewer than 10 training images of 4 classes: a, c, d, ...",)


def test_training_images_known_by_heart_are_said():
    assert "training images far better (99 %) than others (60 %)" in verdict(train_top1=99.0).doubts[0]
