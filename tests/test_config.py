"""Settings: lengths of time as people write them, the learning rate of a recipe, and what a recipe may not be."""

from __future__ import annotations

import math

import pytest

from evit_nas.config import AccuracySettings, ShortRecipe
from evit_nas.errors import UsageError
from evit_nas.quantities import parse_budgets, parse_duration
from evit_nas.yamlio import validate


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("10min", 600), ("2h", 7200), ("1h30m", 5400), (" 1h 5m 3s ", 3903), ("0h1s", 1)],
)
def test_lengths_of_time_as_people_write_them(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "10", "0m", "-5m", "5ms", "1.5h", "30m1h", "ten minutes", "1h30"])
def test_a_length_of_time_without_number_or_unit_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match=f"--time must be a positive length of time, got '{text}'; try 10m or 1h30m"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "devices", "budgets"),
    [
        ("5ms", ["cpu"], [5]),
        ("cpu:4=3ms,cpu=5ms", ["cpu", "cpu:4"], [5, 3]),
        ("owl=40ms,cpu=5ms", ["cpu", "remote:owl:8642"], [5, 40]),
        ("gpu:1=2ms,int8=5ms", ["cpu-int8", "cuda:1"], [5, 2]),
        ("gpu=40ms,cuda=2ms", ["cuda", "remote:gpu"], [2, 40]),
    ],
)
def test_a_budget_belongs_to_the_device_of_its_name_or_else_of_its_host(text, devices, budgets):
    assert parse_budgets(text, devices) == budgets


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("5ms", "needs one limit for each of the 2 devices: cpu=5ms,cpu:4=5ms"),
        ("cpu=5ms", "has no limit for the device 'cpu:4'; add cpu:4=5ms"),
        ("cpu=5ms,cpu=4ms,cpu:4=3ms", "gives the device 'cpu' two limits"),
        ("cpu=5ms,gpu=4ms", "names the device 'gpu', but --device has cpu, cpu:4"),
        ("cpu=5ms,cpu:4=fast", "must be a positive number with a unit"),
    ],
)
def test_budgets_that_do_not_fit_the_devices_are_refused(text, words):
    with pytest.raises(UsageError, match=words):
        parse_budgets(text, ["cpu", "cpu:4"])


ONE_CYCLE = ShortRecipe(cycles=(8,), warmup=0.25, learning_rate=1.0)
TWO_CYCLES = ShortRecipe(cycles=(4, 8), warmup=0.25, learning_rate=1.0)


@pytest.mark.parametrize(("epoch", "rate"), [(0, 0), (1, 0.5), (2, 1), (5, 0.5), (8, 0), (9, 0)])
def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine(epoch, rate):
    assert ONE_CYCLE.rate(epoch) == pytest.approx(rate)


def test_the_cosine_is_one():
    assert ONE_CYCLE.rate(3.5) == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize(("epoch", "rate"), [(0.5, 0.5), (1, 1), (2.5, 0.5), (3.999999, 0), (4, 1), (8, 0.5), (12, 0)])
def test_the_next_cycle_restarts_at_the_highest_rate_without_a_warm_up(epoch, rate):
    assert TWO_CYCLES.rate(epoch) == pytest.approx(rate, abs=1e-6)


def test_without_a_warm_up_training_begins_at_the_highest_rate():
    assert ShortRecipe(warmup=0, learning_rate=0.5).rate(0) == 0.5


def test_a_rung_ends_with_its_cycle():
    assert [TWO_CYCLES.end_of(rung) for rung in (0, 1)] == [4, 12]
    assert (TWO_CYCLES.epochs, TWO_CYCLES.last_rung) == (12, 1)
    for rung in (-1, 2):
        with pytest.raises(ValueError, match=f"a rung must be from 0 to 1, got {rung}"):
            TWO_CYCLES.end_of(rung)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 32),
        ("image_size", 100),
        ("width", 0),
        ("width", 1.5),
        ("images", 1),
        ("cycles", ()),
        ("cycles", (0,)),
        ("batch_size", 1),
        ("learning_rate", math.inf),
        ("warmup", 1),
        ("shift", 0.6),
        ("epochs", 8),
    ],
)
def test_a_recipe_that_cannot_be_trained_by_is_refused_with_its_field(field, value):
    with pytest.raises(UsageError, match=field):
        validate(ShortRecipe, {field: value}, "recipe")


def test_a_method_that_trains_needs_data():
    with pytest.raises(UsageError, match="'predictor' trains networks and needs data: add --data PATH"):
        validate(AccuracySettings, {"method": "predictor"}, "accuracy")
    assert validate(AccuracySettings, {"method": "predictor", "data": "digits"}, "accuracy").data == "digits"


@pytest.mark.parametrize("method", ["table", "zero-cost"])
def test_methods_that_do_not_train_need_none(method):
    assert validate(AccuracySettings, {"method": method}, "accuracy").data is None
