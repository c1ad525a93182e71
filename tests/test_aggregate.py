"""Log ranks against a pool: by hand, monotone, and the same after JSON."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evit_nas.accuracy.aggregate import RankAggregate, rank
from evit_nas.errors import UsageError

NAMES = ("snip", "synflow_log", "az_expressivity")
ROUGH = st.integers(-1000, 1000)  # far enough apart for strict comparisons of floats
POOLS = st.lists(ROUGH, min_size=1, max_size=20).map(sorted)


def network(snip: float, synflow_log: float, az_expressivity: float) -> dict[str, float]:
    return {"snip": snip, "synflow_log": synflow_log, "az_expressivity": az_expressivity, "params": 1e6}


POOL = [network(1, 10, 5), network(2, 30, 5), network(4, 20, 6)]


@pytest.mark.parametrize(
    ("pool", "value", "expected"),
    [
        ([1, 2, 4], 1, 1),
        ([1, 2, 4], 4, 3),
        ([1, 2, 4], 3.5, 2.75),  # three quarters of the way from rank 2 to rank 3
        ([1, 2, 4], 5.5, 4),  # one average gap of 1.5 above the highest
        ([1, 2, 4], -0.5, 1 / 2),  # one gap below the lowest
        ([1, 2, 4], -2, 1 / 3),
        ([1, 2, 2, 5], 2, 2.5),  # ties share their mean rank
        ([1, 2, 2, 5], 3.5, 3.25),  # half way from 2.5 to 4
        ([3, 3, 3], 3, 2),  # one distinct value: its magnitude is the gap
        ([3, 3, 3], 6, 3),
        ([3, 3, 3], 0, 1),
        ([0], 2, 3),
    ],
)
def test_rank_by_hand(pool: list[float], value: float, expected: float) -> None:
    assert rank(value, pool) == pytest.approx(expected, rel=1e-12)


@given(POOLS, ROUGH, ROUGH)
def test_rank_is_strictly_increasing_within_and_beyond_the_pool(pool: list[int], a: int, b: int) -> None:
    low, high = sorted((a, b))

    assert (rank(low, pool) < rank(high, pool)) == (low < high)


@given(POOLS, ROUGH)
def test_rank_is_continuous(pool: list[int], value: int) -> None:
    assert rank(value + 1e-7, pool) == pytest.approx(rank(value - 1e-7, pool), abs=1e-5)


def test_rank_beyond_the_pool_neither_saturates_nor_explodes() -> None:
    pool = list(range(1, 65))
    above = [math.log(rank(64.0 + 64 * 10**power, pool) / 65) for power in range(4)]
    below = [math.log(rank(1.0 - 64 * 10**power, pool) / 65) for power in range(4)]

    assert all(1 < after - before < 2.4 for before, after in pairwise(above))  # at most log 10 a decade
    assert all(1 < before - after < 2.4 for before, after in pairwise(below))


def test_score_by_hand() -> None:
    aggregate = RankAggregate.fit(POOL, NAMES)

    # snip 2 is rank 2 of 3, synflow_log 15 is rank 1.5, az_expressivity 5 shares ranks 1 and 2
    expected = (math.log(2 / 4) + math.log(1.5 / 4) + math.log(1.5 / 4)) / 3
    assert aggregate.score(network(2, 15, 5)) == pytest.approx(expected, rel=1e-12)


def test_score_rises_with_every_proxy() -> None:
    aggregate = RankAggregate.fit(POOL, NAMES)
    base = network(2.5, 12, 5.5)

    for name in NAMES:
        assert aggregate.score(base | {name: base[name] + 0.1}) > aggregate.score(base)
        far, farther = (base | {name: base[name] + step} for step in (1e2, 1e3))
        assert aggregate.score(farther) > aggregate.score(far)
    assert aggregate.score(base | {"params": 9e9}) == aggregate.score(base)


def test_scores_of_the_pool_survive_a_monotone_transform_of_the_proxies() -> None:
    bent = [{name: math.exp(proxies[name] / 10) for name in NAMES} for proxies in POOL]
    plain, transformed = RankAggregate.fit(POOL, NAMES), RankAggregate.fit(bent, NAMES)

    for before, after in zip(POOL, bent, strict=True):
        assert plain.score(before) == transformed.score(after)


def test_json_round_trip() -> None:
    aggregate = RankAggregate.fit(POOL, NAMES)

    again = RankAggregate.from_json(json.loads(json.dumps(aggregate.to_json())))

    assert again == aggregate
    assert again.score(network(1.7, 99, 5.2)) == aggregate.score(network(1.7, 99, 5.2))


def test_missing_and_non_finite_proxies_are_named() -> None:
    aggregate = RankAggregate.fit(POOL, NAMES)
    without = {name: value for name, value in POOL[0].items() if name != "snip"}

    with pytest.raises(UsageError, match=r"needs the proxy 'snip'. Did you mean 'snap'"):
        aggregate.score(without | {"snap": 1.0})
    with pytest.raises(UsageError, match="'snip' must be finite, got nan"):
        aggregate.score(POOL[0] | {"snip": math.nan})
    with pytest.raises(UsageError, match="needs the proxy 'snip'"):
        RankAggregate.fit([*POOL, without], NAMES)
    with pytest.raises(UsageError, match="'snip' must be finite, got inf"):
        RankAggregate.fit([*POOL, network(math.inf, 1, 1)], NAMES)


def test_pools_that_are_none_are_refused() -> None:
    with pytest.raises(UsageError, match="networks and proxies, got 0 and 3"):
        RankAggregate.fit([], NAMES)
    with pytest.raises(UsageError, match="'snip': 2, 'synflow_log': 1"):
        RankAggregate.from_json({"snip": [1.0, 2.0], "synflow_log": [1.0]})
    with pytest.raises(UsageError, match="got 0 and 0"):
        RankAggregate.from_json({})
