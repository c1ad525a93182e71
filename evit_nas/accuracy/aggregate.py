"""One score from sizes and proxies while no network has been trained: the mean log rank in a reference pool.

After AZ-NAS (arXiv 2403.19232, section 3), which ranks the networks of a search among themselves: there every
newcomer moves the scores of all others. Here the pool is scored before the search and then fixed, so that the
score is a function of the network alone, as an objective must be.

It is weak evidence. Over a wide range of sizes proxies mostly repeat the size; at equal size they say little.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evit_nas.errors import UsageError, did_you_mean

# Two sizes, what follows them (snip), and two that mostly follow depth. Without the sizes a search is led to deep and
# narrow networks, which outscore m5 at a quarter of its latency: nobody has seen such networks train that well.
NAMES = ("params", "macs", "snip", "synflow_log", "az_expressivity")


@dataclass(frozen=True)
class RankAggregate:
    """Turns a network's proxies into one score by their ranks in a pool."""

    pool: Mapping[str, tuple[float, ...]]
    """The values of the pool's networks in rising order, by name of the proxy."""

    @classmethod
    def fit(cls, pool: Sequence[Mapping[str, float]], names: Sequence[str] = NAMES) -> RankAggregate:
        """Ranks against the networks whose proxies are `pool`; only `names` count.

        Raises:
            UsageError: the pool is empty, or one of its networks lacks a proxy or has one that is not finite.
        """
        if not pool or not names:
            raise UsageError(f"a pool needs networks and proxies, got {len(pool)} and {len(names)} of them.")
        return cls({name: tuple(sorted(_value(proxies, name) for proxies in pool)) for name in names})

    def score(self, proxies: Mapping[str, float]) -> float:
        """Mean over the proxies of log(rank / (m + 1)) for a pool of m networks; higher is better.

        About -0.7 (log 1/2) for a network in the middle of the pool by every proxy, about 0 for one like its best; -1
        is the pool's mean score. See `rank` for the networks between and beyond. Proxies that are not aggregated may
        be present and do not count.

        Raises:
            UsageError: a proxy is missing or not finite.
        """
        ranks = {name: rank(_value(proxies, name), values) for name, values in self.pool.items()}
        return math.fsum(math.log(ranks[name] / (len(self.pool[name]) + 1)) for name in ranks) / len(ranks)

    def to_json(self) -> dict[str, list[float]]:
        """Plain values that `from_json` reads back to an equal aggregate."""
        return {name: list(values) for name, values in self.pool.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Sequence[float]]) -> RankAggregate:
        """The aggregate that `to_json` wrote.

        Raises:
            UsageError: the columns have different lengths, are empty or hold something that is not finite.
        """
        lengths = {name: len(values) for name, values in data.items()}
        if len(set(lengths.values())) > 1:
            raise UsageError(f"every proxy must have a value for each network of the pool, got {lengths}.")
        rows = zip(*data.values(), strict=True)
        return cls.fit([dict(zip(data, row, strict=True)) for row in rows], list(data))


def rank(value: float, pool: Sequence[float]) -> float:
    """The rank of `value` among the m values of the sorted `pool`: 1 at its lowest, m at its highest.

    Continuous and strictly increasing everywhere. Equal values of the pool share their mean rank, and between
    neighbours the rank is linear. Beyond the ends the pool's average gap is the unit: d gaps above the
    highest value the rank is that value's plus d, d gaps below the lowest it is that value's over 1 + d. So
    its log goes on like log d on both sides: a far better network still scores higher, and no outlier can
    drown the other proxies.
    """
    below, up_to = bisect_left(pool, value), bisect_right(pool, value)
    if below < up_to:
        return (below + 1 + up_to) / 2
    lowest, highest = pool[0], pool[-1]
    if lowest < value < highest:
        left, right = pool[below - 1], pool[below]
        share = (value - left) / (right - left)
        return (1 - share) * rank(left, pool) + share * rank(right, pool)
    # a pool of one distinct value has no gaps: its magnitude stands in
    gap = (highest - lowest) / (len(pool) - 1) if lowest < highest else abs(lowest) or 1.0
    if value > highest:
        return rank(highest, pool) + (value - highest) / gap
    return rank(lowest, pool) / (1 + (lowest - value) / gap)


def _value(proxies: Mapping[str, float], name: str) -> float:
    if name not in proxies:
        raise UsageError(f"the score needs the proxy '{name}'. {did_you_mean(name, proxies)}")
    if not math.isfinite(proxies[name]):
        raise UsageError(f"the proxy '{name}' must be finite, got {proxies[name]}.")
    return float(proxies[name])
