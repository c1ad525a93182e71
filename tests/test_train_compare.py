"""Trained networks side by side: what makes one row, and what each is compared with."""

import pytest

from evit_nas.network.cost import cost
from evit_nas.training.compare import compare
from evit_nas.training.recipe import load_recipe
from evit_nas.training.settings import TrainSettings
from tests.networks import tiny_arch
from tests.trainings import TRAINED


def trained(name, top1, **changes):
    """Settings and what came of them; all equal but for `changes`."""
    fields = {"arch": tiny_arch(), "data": "digits", "recipe_name": "tiny", "recipe": load_recipe("tiny", {})} | changes
    return TrainSettings(name=name, **fields), TRAINED.model_copy(update={"name": name, "top1": top1})


def test_seeds_of_one_training_make_one_row():
    (row,) = compare(dict([trained("a", 80.0), trained("a", 82.0, seed=1)]), {})
    assert (row["seeds"], row["top1"], row["top1_sd"]) == (2, 81.0, pytest.approx(2**0.5))
    assert (row["params"], row["macs"]) == (cost(tiny_arch()).params, cost(tiny_arch()).macs)


@pytest.mark.parametrize(
    "change",
    [
        {"arch": tiny_arch(heads=1)},
        {"data": "elsewhere"},
        {"recipe": load_recipe("tiny", {"epochs": 9})},
        {"init": "m0.pth"},
        {"teacher": "m5.pth"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_differs_in_more_than_the_seed_is_another_row(change):
    rows = compare(dict([trained("a", 80.0), trained("a", 90.0, seed=1, **change)]), {})
    assert [(row["seeds"], row["top1"]) for row in rows] == [(1, 80.0), (1, 90.0)]


def test_each_network_is_compared_with_its_own_baseline():
    trainings = dict([trained("a", 80.0), trained("b", 90.0), trained("m0", 70.0), trained("m1", 85.0)])
    rows = compare(trainings, {"a": "m0", "b": "m1"})
    found = {row["name"]: (row["baseline"], row["gain"]) for row in rows}
    assert found == {"a": ("m0", 10.0), "b": ("m1", 5.0), "m0": (None, None), "m1": (None, None)}


def test_at_equal_time_a_baseline_has_epochs_of_its_own():
    settings, result = trained("m0", 70.0, recipe=load_recipe("tiny", {"epochs": 9}))
    found = dict([trained("a", 80.0), (settings, result)])
    (row, _) = compare(found, {"a": "m0"}, equal_time=True)
    assert (row["baseline"], row["gain"]) == ("m0", 10.0)
    other = settings.model_copy(update={"recipe": load_recipe("tiny", {"epochs": 9, "flip": 0.3})})
    assert compare(dict([trained("a", 80.0), (other, result)]), {"a": "m0"}, equal_time=True)[0]["gain"] is None


def test_a_baseline_that_was_trained_otherwise_is_none():
    other = trained("m0", 70.0, recipe=load_recipe("tiny", {"epochs": 9}))
    assert compare(dict([trained("a", 80.0), other]), {"a": "m0"})[0]["gain"] is None
