"""Choosing from a front that is too long to read: one member by what it is for, or a few that stand for all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evit_nas.config import SearchSettings, Target
from evit_nas.errors import Infeasible, UsageError
from evit_nas.quantities import parse_latency
from evit_nas.searching.front import REPEATS, Candidate, excess, points

GAP = 2  # times as far from all that is kept: what is worth a strict measurement more
PICKS = ("best", "fastest", "knee", "under=4ms")


def pick(members: Sequence[Candidate], what: str, settings: SearchSettings) -> Candidate:
    """One member of a front; on several devices latencies are those on the first, for the knee those on all.

    Args:
        members: a front, as `load_front` gives it.
        what: "best" (the highest score), "fastest", "knee" (where giving up more of one objective buys little of the
            others: the lowest sum of objectives, each scaled to 0..1 over the front), or "under=4ms" (the highest score
            that keeps 4 ms, with its uncertainty and by REPEATS once it is certified).
        settings: of the search: its objectives, and which latency counts.

    Raises:
        UsageError: `what` is none of these.
        Infeasible: there are no members, or none is as fast as asked.
    """
    name, equals, limit = what.partition("=")
    if what not in PICKS and (name != "under" or not equals):
        raise UsageError(f"a member is picked by {', '.join(PICKS)}; got '{what}'.")
    if not members:
        raise Infeasible("there is nothing to pick from: no architecture within the budget has been found yet.")
    stat = settings.budget_stat
    fastest = min(members, key=lambda member: member.latency.stat_ms(stat))
    if what == "fastest":
        return fastest
    if what == "knee":
        return members[int(_normalised(members, settings).sum(1).argmin())]
    if name == "under":
        target = Target(budget_ms=parse_latency(limit, "under=", "under=4ms"))
        members = [member for member in members if excess(member.latency, member.certified, target, stat) <= 0]
        if not members:
            raise Infeasible(
                f"no member keeps {limit} by {REPEATS:.0%} or its uncertainty: the fastest one, {fastest.name}, takes "
                f"{fastest.latency.said(stat)}."
            )
    return max(members, key=lambda member: member.score)


def beside(member: Candidate, references: Sequence[Candidate]) -> Candidate | None:
    """The network of the paper whose latency on the first device is nearest; None if none was measured."""
    own = member.latency.median_ms
    return min(references, key=lambda reference: abs(reference.latency.median_ms / own - 1), default=None)


def thin(
    members: Sequence[Candidate], size: int, settings: SearchSettings, first: Sequence[Candidate] = ()
) -> list[Candidate]:
    """At most `size` members that stand for the whole front, in its order.

    The best, the fastest and the knee stay (in this order, if there is no room for all three). Then comes, again and
    again, the member farthest from all those kept, objectives scaled to 0..1 over the front (Gonzalez 1985: what is
    left out is at most twice as far from something kept as in the best possible choice). The members kept are thus
    all different from each other, where a choice by hypervolume would crowd around the knee. Those of `first`, such
    as what has been measured strictly already, come before all others by the same rule, but for one that closes a gap
    twice as wide as any of them.

    Raises:
        UsageError: `size` is not positive.
    """
    if size < 1:
        raise UsageError(f"a front has at least one member, got a size of {size}.")
    if size >= len(members):
        return list(members)
    anchors = [members.index(pick(members, what, settings)) for what in ("best", "fastest", "knee")]
    kept, points = list(dict.fromkeys(anchors))[:size], _normalised(members, settings)
    preferred = np.array([member in first for member in members])
    while len(kept) < size:
        preferred[kept] = False
        distance = np.linalg.norm(points[:, None] - points[kept], axis=-1).min(1)  # (n,) to the nearest one kept
        near, far = int(np.where(preferred, distance, -1).argmax()), int(distance.argmax())
        kept.append(near if preferred.any() and GAP * distance[near] >= distance[far] else far)
    return [members[index] for index in sorted(kept)]


def _normalised(members: Sequence[Candidate], settings: SearchSettings) -> np.ndarray:
    """(n, m) losses, each from 0 for the front's best to 1 for its worst."""
    found = points(members, settings)
    spread = np.ptp(found, axis=0)
    scaled: np.ndarray = (found - found.min(0)) / np.where(spread > 0, spread, 1)
    return scaled
