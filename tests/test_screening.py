"""Screening: what it proposes is the predicted front, by comparison with every point of a small space."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from evit_nas.choices import FixedTrial
from evit_nas.network.cost import cost
from evit_nas.pareto import non_dominated
from evit_nas.searching.screening import screen
from evit_nas.space import SearchSpace
from evit_nas.yamlio import validate

STAGE = {"width": 32, "depth": 1, "heads": 1, "q_kernels": 3}
SPACE = validate(
    SearchSpace,
    {
        "image_size": 64,
        "num_classes": 10,
        "stages": [
            STAGE | {"width": [16, 32, 48], "mixer": ["softmax", "linear"]},
            STAGE | {"width": [32, 48, 64], "heads": [1, 2], "ffn_ratio": [1.0, 1.5, 2.0]},
            STAGE | {"width": [48, 64], "depth": [1, 2, 3], "cascade": [True, False]},
        ],
    },
    "space",
)
COUNT = 5


def look(archs):
    """Few MACs against attention and width, in conflict but not in step; the slowest half misses a limit."""
    macs = np.array([cost(arch).macs / 1e6 for arch in archs])
    worth = [sum(s.width * (s.mixer == "softmax") + 7 * s.depth**0.5 for s in arch.stages) for arch in archs]
    return np.column_stack([-np.array(worth), macs]), macs / 1.0 - 1


def every_point():
    """Key -> (answers, architecture) of each distinct network of the space."""
    names = sorted(SPACE.params(SPACE.sample(random.Random(0))))
    choices = dict(SPACE.dimensions())
    found = {}
    for values in itertools.product(*(choices[name] for name in names)):
        answers = dict(zip(names, values, strict=True))
        arch = SPACE.suggest(FixedTrial(answers))
        found[arch.key] = answers, arch
    return found


@pytest.fixture(scope="module")
def points():
    return every_point()


@pytest.fixture(scope="module")
def front(points):
    """Keys of the true front."""
    archs = [arch for _, arch in points.values()]
    objectives, excess = look(archs)
    feasible = np.flatnonzero(excess <= 0)
    assert 0 < len(feasible) < len(archs)
    return {archs[index].key for index in feasible[non_dominated(objectives[feasible])]}


def test_proposals_are_of_the_true_front_until_it_stands(points, front):
    known = [answers for answers, _ in itertools.islice(points.values(), 3)]
    proposed: list[str] = []
    while found := screen(SPACE, known, look, COUNT, random.Random(len(known))):
        assert len(found) <= COUNT
        keys = [arch.key for arch in found]
        assert not set(keys) & {SPACE.suggest(FixedTrial(answers)).key for answers in known}
        proposed += keys
        known += [points[key][0] for key in keys]
    assert len(proposed) == len(set(proposed))
    assert set(proposed) == front - {SPACE.suggest(FixedTrial(answers)).key for answers in known[:3]}


def test_a_few_are_spread_over_the_front_with_both_its_ends(front, points):
    found = screen(SPACE, [], look, COUNT, random.Random(0))
    ends = sorted(front, key=lambda key: look([points[key][1]])[0][0, 0])
    assert len(found) == COUNT < len(front)
    assert {ends[0], ends[-1]} <= {arch.key for arch in found}


def test_the_same_chance_proposes_the_same(points):
    known = [answers for answers, _ in itertools.islice(points.values(), 10)]
    first, again = (screen(SPACE, known, look, COUNT, random.Random(3)) for _ in range(2))
    assert first == again


def test_nothing_is_proposed_where_nothing_keeps_the_limits():
    def hopeless(archs):
        points, excess = look(archs)
        return points, excess + 100

    assert screen(SPACE, [], hopeless, COUNT, random.Random(0)) == []


def test_in_a_space_with_millions_of_points_the_front_is_beaten_by_none_of_twice_as_many_random_ones():
    space = SearchSpace.load("efficientvit-tiny")

    def tiny_look(archs):
        points, _ = look(archs)
        return points, points[:, 1] / 0.8 - 1

    found, _ = tiny_look(screen(space, [], tiny_look, 16, random.Random(0)))
    rng = random.Random(1)
    drawn, excess = tiny_look([space.sample(rng) for _ in range(1000)])
    for point in drawn[excess <= 0]:
        assert not ((point <= found).all(1) & (point < found).any(1)).any()


def test_each_candidate_is_looked_at_once():
    seen = []

    def counting(archs):
        seen.extend(arch.key for arch in archs)
        return look(archs)

    screen(SPACE, [], counting, COUNT, random.Random(0))
    assert len(seen) == len(set(seen))
