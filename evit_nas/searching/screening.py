"""Looks at thousands of candidates by prediction alone, and says which ones are worth a measurement.

Where accuracy and latency are both predicted in microseconds, chance would waste the measurements: an evolution on the
predictions (regularised by nothing but its budget of candidates) comes first, and only its front is measured.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evit_nas.arch import ArchConfig
from evit_nas.choices import FixedTrial, Param, RandomTrial
from evit_nas.pareto import non_dominated
from evit_nas.space import SearchSpace

GENERATIONS = 20  # four rounds of as many find what twelve rounds of six do, with a third of the measurements
CHILDREN = 500  # in each generation
PARENTS = 60  # survivors of each generation
CROSSOVER = 0.3  # share of the children with two parents
MUTATIONS = (1, 1, 1, 2, 3)  # dimensions that are drawn anew in a child

Answers = Mapping[str, Param]
"""The parameters of a trial: what makes `SearchSpace.suggest` return an architecture."""

Look = Callable[[Sequence[ArchConfig]], tuple[np.ndarray, np.ndarray]]
"""Predicts (n, m) objectives, lower is better everywhere, and (n,) by how much limits are missed, 0 or less if kept."""


@dataclass(frozen=True, eq=False)
class _Candidate:
    answers: Answers
    arch: ArchConfig
    point: tuple[float, ...]
    excess: float


def screen(
    space: SearchSpace, known: Iterable[Answers], look: Look, count: int, rng: random.Random
) -> list[ArchConfig]:
    """Up to `count` new architectures of the predicted front, spread over it; none once the front stands.

    Args:
        space: where to look.
        known: evaluated architectures of the space: among the first parents, and not to be proposed again.
        look: predicts.
        count: how many to return.
        rng: decides everything random.
    """
    seen: set[str] = set()

    def looked_at(proposals: Iterable[Answers]) -> list[_Candidate]:
        new: dict[str, tuple[Answers, ArchConfig]] = {}
        for answers in proposals:
            arch = space.suggest(FixedTrial(answers))
            if (key := arch.key) not in seen:
                seen.add(key)
                new[key] = answers, arch
        if not new:
            return []
        points, excess = look([arch for _, arch in new.values()])
        predicted = zip(new.values(), points.tolist(), excess.tolist(), strict=True)
        return [_Candidate(answers, arch, tuple(point), beyond) for (answers, arch), point, beyond in predicted]

    chance = [_drawn(space, rng) for _ in range(CHILDREN)]
    old = looked_at(known)
    living = [*old, *looked_at(chance)]
    front, _ = _split(living)
    for _ in range(GENERATIONS):
        living = _survivors(living)
        children = looked_at([_child(living, chance, rng) for _ in range(CHILDREN)])
        if not children:  # all were seen before: the space is all but used up
            break
        living += children
        front, _ = _split([*front, *children])
    return [candidate.arch for candidate in _spread([c for c in front if c not in old], count)]


def _split(candidates: Sequence[_Candidate]) -> tuple[list[_Candidate], list[_Candidate]]:
    """Those that keep the limits and are not beaten, and the others that keep them."""
    feasible = [candidate for candidate in candidates if candidate.excess <= 0]
    best = non_dominated(np.array([candidate.point for candidate in feasible]))
    return (
        [candidate for candidate, kept in zip(feasible, best, strict=True) if kept],
        [candidate for candidate, kept in zip(feasible, best, strict=True) if not kept],
    )


def _survivors(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """The best of them: those that keep the limits front by front, then those that miss them least."""
    found: list[_Candidate] = []
    front, rest = _split(candidates)
    while front and len(found) < PARENTS:
        found += _spread(front, PARENTS - len(found))
        front, rest = _split(rest)
    missing = sorted((c for c in candidates if c.excess > 0), key=lambda c: c.excess)
    return [*found, *missing][:PARENTS]


def _spread(front: Sequence[_Candidate], count: int) -> list[_Candidate]:
    """At most `count` of the front, evenly along its first objective, the best in it first."""
    ordered = sorted(front, key=lambda candidate: candidate.point)
    if len(ordered) <= count:
        return ordered
    return [ordered[round(place)] for place in np.linspace(0, len(ordered) - 1, count)]


def _child(parents: Sequence[_Candidate], chance: Sequence[Answers], rng: random.Random) -> Answers:
    """A parent with a few dimensions drawn anew; at times one of its stages is another parent's."""
    child = dict(rng.choice(parents).answers)
    if rng.random() < CROSSOVER:
        stage = rng.choice(sorted(child)).partition(".")[0]
        child |= {n: answer for n, answer in rng.choice(parents).answers.items() if n.partition(".")[0] == stage}
    drawn = rng.choice(chance)
    return child | {name: drawn[name] for name in rng.sample(sorted(child), min(rng.choice(MUTATIONS), len(child)))}


class _Drawn(RandomTrial):
    """Answers at random, and remembers the answers."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__(rng)
        self.answers: dict[str, Param] = {}

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1) -> int:
        answer = super().suggest_int(name, low, high, step=step)
        self.answers[name] = answer
        return answer

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        answer = super().suggest_float(name, low, high, step=step)
        self.answers[name] = answer
        return answer

    def suggest_categorical(self, name: str, choices: Sequence[Param]) -> Param:
        answer: Param = super().suggest_categorical(name, choices)
        self.answers[name] = answer
        return answer


def _drawn(space: SearchSpace, rng: random.Random) -> Answers:
    trial = _Drawn(rng)
    space.suggest(trial)
    return trial.answers
