"""Looks at thousands of candidates by prediction alone, and says which ones are worth a measurement.

Where accuracy and latency are both predicted in microseconds, chance would waste the measurements: an evolution on the
predictions (regularised by nothing but its budget of candidates) comes first, and only its front is measured.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from evit_nas.arch import ArchConfig
from evit_nas.pareto import non_dominated
from evit_nas.space import FixedTrial, Param, SearchSpace

GENERATIONS = 6
CHILDREN = 500  # in each generation
PARENTS = 60  # survivors of each generation
CROSSOVER = 0.3  # share of the children with two parents
MUTATIONS = (1, 1, 1, 2, 3)  # dimensions that are drawn anew in a child

Look = Callable[[Sequence[ArchConfig]], tuple[np.ndarray, np.ndarray]]
"""Predicts (n, m) objectives, lower is better everywhere, and (n,) by how much limits are missed, 0 or less if kept."""


def screen(
    space: SearchSpace,
    known: Sequence[ArchConfig],
    look: Look,
    count: int,
    rng: random.Random,
) -> list[ArchConfig]:
    """Up to `count` new architectures of the predicted front, spread over it; none once the front stands.

    Args:
        space: where to look.
        known: evaluated architectures of the space: among the first parents, and not to be proposed again.
        look: predicts.
        count: how many to return.
        rng: decides everything random.
    """
    old = {arch.key for arch in known}
    archs = list({arch.key: arch for arch in (*known, *(space.sample(rng) for _ in range(CHILDREN)))}.values())
    points, excess = look(archs)
    seen = {arch.key for arch in archs}
    for _ in range(GENERATIONS):
        living = _survivors(points, excess, PARENTS)
        archs, points, excess = [archs[index] for index in living], points[living], excess[living]
        parents = [space.params(arch) for arch in archs]
        born = {child.key: child for child in (_child(space, parents, rng) for _ in range(CHILDREN))}
        fresh = [child for key, child in born.items() if key not in seen]
        if not fresh:
            break
        seen |= born.keys()
        archs += fresh
        found, missed = look(fresh)
        points, excess = np.vstack([points, found]), np.append(excess, missed)
    feasible = np.flatnonzero(excess <= 0)
    front = feasible[non_dominated(points[feasible])]
    return [archs[index] for index in _spread([i for i in front if archs[i].key not in old], points, count)]


def _survivors(points: np.ndarray, excess: np.ndarray, count: int) -> list[int]:
    """Indices of the best: those that keep the limits front by front, then those that miss them least."""
    found: list[int] = []
    rest = np.flatnonzero(excess <= 0)
    while len(rest) and len(found) < count:
        best = non_dominated(points[rest])
        found += [int(index) for index in rest[best]]
        rest = rest[~best]
    missing = np.flatnonzero(excess > 0)
    return [*found, *(int(index) for index in missing[np.argsort(excess[missing], kind="stable")])][:count]


def _spread(front: list[int], points: np.ndarray, count: int) -> list[int]:
    """`count` of the front, evenly along its first objective, the best in it first."""
    ordered = sorted(front, key=lambda index: tuple(points[index]))
    if len(ordered) <= count:
        return ordered
    return [ordered[round(place)] for place in np.linspace(0, len(ordered) - 1, count)]


def _child(space: SearchSpace, parents: Sequence[Mapping[str, Param]], rng: random.Random) -> ArchConfig:
    """A parent with a few dimensions drawn anew; at times one of its stages is another parent's."""
    child = dict(rng.choice(parents))
    if rng.random() < CROSSOVER:
        stage = f"stage{rng.randint(1, len(space.stages))}."
        child |= {name: answer for name, answer in rng.choice(parents).items() if name.startswith(stage)}
    drawn = space.params(space.sample(rng))
    changed = rng.sample(sorted(child), min(rng.choice(MUTATIONS), len(child)))
    return space.suggest(FixedTrial(child | {name: drawn[name] for name in changed}))
