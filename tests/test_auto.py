"""The recipe and the size that follow from the images."""

from dataclasses import replace

import pytest

from evit_nas.data.look import Look
from evit_nas.training.auto import BATCHES, EPOCHS, PAPER_IMAGES, SIZES_PX, STEPS_AN_EPOCH, auto_fields, auto_size
from evit_nas.training.recipe import RECIPES, Recipe

PHOTOS = Look("photos", 2400, 500, ("a", "b"), (1200, 1200), (250, 250), (64, 64, 64), False, False, ())


def recipe(images, from_weights=False):
    return Recipe(**auto_fields(replace(PHOTOS, train=images), from_weights))


@pytest.mark.parametrize("images", [600, 2400, 10_000, 60_000, PAPER_IMAGES - 1])
def test_there_are_thousands_of_steps_and_never_two_an_epoch(images):
    found = recipe(images)
    steps = images // found.batch_size
    assert steps >= STEPS_AN_EPOCH
    assert steps * found.epochs >= 5000
    assert EPOCHS[0] <= found.epochs <= EPOCHS[1]


@pytest.mark.parametrize("images", [2, 5, 20, 70, 200])
def test_a_handful_of_images_is_trained_as_well(images):
    found = recipe(images)
    assert images // found.batch_size >= 1
    assert found.batch_size <= BATCHES[0]
    assert found.epochs == EPOCHS[1]


def test_more_images_never_make_the_batch_smaller():
    batches = [recipe(images).batch_size for images in range(100, 30_000, 100)]
    assert batches == sorted(batches)
    assert (batches[0], batches[-1]) == BATCHES


def test_with_hundreds_of_thousands_the_paper_is_followed():
    assert recipe(PAPER_IMAGES) == Recipe()
    assert recipe(PAPER_IMAGES, from_weights=True) == Recipe(**RECIPES["finetune"])


def test_trained_weights_need_fewer_steps_at_a_lower_rate():
    fresh, tuned = recipe(2400), recipe(2400, from_weights=True)
    assert tuned.epochs < fresh.epochs
    assert tuned.peak_rate < fresh.peak_rate


def test_grey_images_have_no_colours_to_change():
    assert Recipe(**auto_fields(replace(PHOTOS, grey=True), False)).auto_augment is None


@pytest.mark.parametrize(
    ("side_px", "own_px", "size"),
    [(64, 224, 112), (28, 224, 64), (128, 224, 224), (4000, 224, 224), (64, 96, 96), (500, 512, 512), (0, 224, 64)],
)
def test_the_size_follows_the_images_and_stays_within_the_networks_own(side_px, own_px, size):
    assert auto_size(replace(PHOTOS, sides_px=(side_px,) * 3), own_px) == size


def test_every_size_is_one_that_a_network_can_have():
    assert all(size % 16 == 0 for size in SIZES_PX)
