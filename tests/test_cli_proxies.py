"""`evit-nas proxies`: what is asked for reaches the score card, and what is wrong is said of its own option."""

from __future__ import annotations

import json
import random

import pytest

from evit_nas.accuracy import ShortScore, scorecard, zero_cost
from evit_nas.accuracy.table import LabelTable, TrainedNetwork, Training
from evit_nas.config import ShortRecipe
from evit_nas.errors import UsageError
from evit_nas.space import SearchSpace

SCORE_ALL = zero_cost.score_all  # the real one, which `call` has a fake for


@pytest.mark.parametrize("slices", ["2,3", "2ms,", "0ms"])
def test_slices_without_a_positive_number_or_unit_are_refused_by_their_option(call, slices):
    result = call("proxies", "bench", "--data", "digits", "--slices", slices)
    assert result.code == 2
    assert "each of --slices must be a positive number with a unit" in result.err
    assert "--budget" not in result.err


def test_the_seed_is_that_of_the_score_card(call, monkeypatch):
    asked = []

    def no_card(table, **options):
        asked.append(options)
        raise UsageError("no card")

    monkeypatch.setattr(scorecard, "score_card", no_card)
    assert call("proxies", "bench", "--from-table", "fashion-mnist-64", "--seed", "3").code == 2
    assert asked == [{"seed": 3}]


@pytest.fixture
def small_table(tmp_path, monkeypatch):
    """16 networks of the tiny space with two proxies that the package knows and one that it does not."""
    monkeypatch.setattr(scorecard, "INPUTS", {})
    rng, space = random.Random(0), SearchSpace.load("efficientvit-tiny")
    score = ShortScore(accuracy=0.9, cross_entropy=0.3, curve=(1.0,))
    networks = [
        TrainedNetwork(
            arch=arch,
            latency_ms=1.0,
            proxies={"snip": rng.random(), "naswot": rng.random(), "of_ones_own": rng.random()},
            trainings=(Training(seed=0, score=score.model_copy(update={"cross_entropy": rng.random()}), seconds=75),),
        )
        for arch in (space.sample(rng) for _ in range(16))
    ]
    table = LabelTable(data="digits", recipe=ShortRecipe(), device="cpu", networks=tuple(networks))
    table.save(tmp_path / "table.json")
    return tmp_path / "table.json"


def test_the_card_says_what_a_proxy_costs_here_and_what_a_label_did(call, small_table, monkeypatch):
    monkeypatch.setattr(zero_cost, "score_all", SCORE_ALL)
    card = ("proxies", "bench", "--from-table", small_table)
    costs = {row["score"]: row["cpu_seconds"] for row in json.loads(call(*card, "--format", "json").out)}
    assert list(costs) == ["params", "macs", "depth", "latency", "snip", "naswot", "of_ones_own"]
    assert [name for name, cost in costs.items() if cost is not None] == ["snip", "naswot"]
    assert 0 < costs["naswot"] < costs["snip"]  # which draws twice, and needs gradients
    assert "a label is one training, 1m15s of a core" in call(*card).err
