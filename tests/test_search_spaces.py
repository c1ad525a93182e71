"""What a shipped space proposes is what gets deployed, from torch over folding to ONNX Runtime.

Members are chosen so that every pair of choices occurs in one of them; `benchmarks/parity.py` takes hundreds at random.
"""

import itertools
import random
from functools import cache

import pytest

from benchmarks.parity import parity
from evit_nas.arch import ArchConfig
from evit_nas.choices import FixedTrial
from evit_nas.space import SearchSpace, shipped_spaces

LEVELS = 3  # of a dimension with more choices than that: low, middle and high
DRAWS = 30  # of which the one that covers most new pairs is taken
MOST, PARTS = 40, 4  # members of a space, and tests of them


class Noted:
    """A trial that answers at random and notes each answer's level."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self.params, self.levels = rng, {}, set()

    def _note(self, name, answer, index, count):
        self.params[name] = answer
        self.levels.add((name, index if count <= LEVELS else index * LEVELS // count))
        return answer

    def suggest_int(self, name, low, high, *, step=1):
        count = (high - low) // step + 1
        index = self._rng.randrange(count)
        return self._note(name, low + step * index, index, count)

    def suggest_float(self, name, low, high, *, step=None):
        count = round((high - low) / step) + 1
        index = self._rng.randrange(count)
        return self._note(name, low + step * index, index, count)

    def suggest_categorical(self, name, choices):
        index = self._rng.randrange(len(choices))
        self.params[name] = choices[index]
        self.levels.add((name, index))  # kinds have no levels: each of them counts
        return choices[index]


def pairs(noted: Noted) -> set[frozenset]:
    return {frozenset(pair) for pair in itertools.combinations(sorted(noted.levels), 2)}


@cache
def covering(name: str) -> list[ArchConfig]:
    """Members of a space in which every pair of levels occurs that two dimensions have."""
    space, rng = SearchSpace.load(name), random.Random(0)
    wanted: set[frozenset] = set()
    for _ in range(3000):
        space.suggest(noted := Noted(rng))
        wanted |= pairs(noted)
    found = []
    while wanted:
        tries = [Noted(rng) for _ in range(DRAWS)]
        for noted in tries:
            space.suggest(noted)
        best = max(tries, key=lambda noted: len(pairs(noted) & wanted))
        wanted -= pairs(best)
        found.append(space.suggest(FixedTrial(best.params)))
        assert len(found) <= MOST
    return found


NAMES = sorted(shipped_spaces())


@pytest.mark.parametrize("name", NAMES)
def test_the_members_have_every_choice_that_is_no_number_among_many(name):
    found = covering(name)
    for dimension, choices in SearchSpace.load(name).dimensions():
        if len(choices) <= LEVELS and dimension.startswith("stage"):
            stage, field = dimension.removeprefix("stage").split(".")
            seen = {getattr(arch.stages[int(stage) - 1], field) for arch in found}
            assert len(seen) >= len(choices), dimension


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", NAMES)
def test_members_compute_the_same_in_torch_folded_and_in_onnx_runtime(name, part):
    for number, arch in [*enumerate(covering(name))][part::PARTS]:
        found = parity(arch, number)
        assert found.holds, f"{found}\n{arch.to_yaml()}"
