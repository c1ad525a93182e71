"""`evit-nas proxies`: what is asked for reaches the score card, and what is wrong is said of its own option."""

from __future__ import annotations

import pytest

from evit_nas.accuracy import scorecard
from evit_nas.errors import UsageError


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
