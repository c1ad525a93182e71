"""Non-domination against brute force."""

import numpy as np
import pytest

from evit_nas.pareto import Growth, hypervolume, non_dominated


def brute_force(points: np.ndarray) -> list[bool]:
    kept = []
    for i, p in enumerate(points):
        beaten = any((q <= p).all() and (q < p).any() for q in points)
        seen = any((q == p).all() for q in points[:i])
        kept.append(not beaten and not seen)
    return kept


@pytest.mark.parametrize("seed", range(50))
def test_non_dominated_equals_brute_force(seed):
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 6, (rng.integers(1, 30), rng.integers(1, 4))).astype(float)  # many ties
    assert non_dominated(points).tolist() == brute_force(points)


def test_non_dominated_keeps_one_of_equal_points():
    assert non_dominated(np.array([[1.0, 2.0], [1.0, 2.0], [2.0, 1.0]])).tolist() == [True, False, True]


def test_non_dominated_of_nothing_is_nothing():
    assert non_dominated(np.empty((0, 2))).tolist() == []


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_dominated_refuses_what_cannot_be_ordered(bad):
    with pytest.raises(ValueError, match="row 1"):
        non_dominated(np.array([[0.0, 1.0], [bad, 1.0]]))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("dimensions", [1, 2, 3, 4])
def test_hypervolume_equals_a_count_of_cells(seed, dimensions):
    points = np.random.default_rng(seed).integers(0, 12, (12, dimensions)).astype(float)
    cells = np.stack(np.meshgrid(*[np.arange(10)] * dimensions), -1).reshape(-1, dimensions)
    covered = (points[:, None] <= cells[None]).all(-1).any(0)  # a cell is what lies right of and above its corner
    assert hypervolume(points, [10.0] * dimensions) == covered.sum()


@pytest.mark.parametrize("seed", range(5))
def test_growth_is_the_hypervolume_of_the_first_points(seed):
    points = np.random.default_rng(seed).integers(0, 12, (20, 3)).astype(float)
    growth = Growth((10.0, 10.0, 10.0))
    volumes = [growth.add(point) for point in points]
    assert volumes == [hypervolume(points[: count + 1], (10.0, 10.0, 10.0)) for count in range(20)]


def test_hypervolume_of_a_staircase():
    assert hypervolume(np.array([[1.0, 3.0], [2.0, 1.0]]), (4.0, 4.0)) == 3 * 1 + 2 * 2


@pytest.mark.parametrize("points", [np.zeros((0, 2)), np.array([[5.0, 1.0]]), np.array([[4.0, 1.0]])])
def test_what_is_not_better_than_the_reference_counts_nothing(points):
    assert hypervolume(points, (4.0, 4.0)) == 0.0


def test_growth_in_five_objectives_is_quick_enough_for_a_front_and_exact():
    points = np.abs(np.random.default_rng(0).standard_normal((60, 5)))
    points = 1 - points / np.linalg.norm(points, axis=1, keepdims=True)  # none beats another
    growth = Growth(np.ones(5))
    assert [growth.add(point) for point in points][-1] == pytest.approx(hypervolume(points, np.ones(5)))
