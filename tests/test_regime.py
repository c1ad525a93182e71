"""Regimes: what they refuse, and which one counts where nobody says."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from evit_nas.regime import IMAGENET, Regime, default_regime


@pytest.mark.parametrize(
    ("images", "classes", "message"),
    [
        (0, 10, "images\n"),
        (100, 1, "classes\n"),
        (9, 10, "got 9 images of 10 classes: say --classes and --images together"),
    ],
)
def test_images_must_be_there_for_every_class(images, classes, message):
    with pytest.raises(ValidationError, match=message):
        Regime(images=images, classes=classes)


@pytest.mark.parametrize(
    ("num_classes", "images", "classes"), [(1000, 1_281_167, 1000), (10, 10_000, 10), (1, 2000, 2)]
)
def test_a_space_of_1000_classes_means_imagenet_and_any_other_a_thousand_images_of_each(num_classes, images, classes):
    assert default_regime(num_classes) == Regime(images=images, classes=classes)


@pytest.mark.parametrize(
    ("regime", "text"),
    [
        (IMAGENET, "1.28M images of 1,000 classes (ImageNet)"),
        (Regime(images=24_240, classes=101), "24.2k images of 101 classes"),
        (Regime(images=5000, classes=10), "5,000 images of 10 classes"),
    ],
)
def test_a_regime_reads_as_people_say_it(regime, text):
    assert str(regime) == text


def test_distances_are_in_decades():
    assert Regime(images=10_000, classes=100).decades == (4, 2)
