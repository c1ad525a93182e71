"""Pareto fronts: what no other point beats. Every coordinate is to be minimised."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def non_dominated(points: np.ndarray) -> np.ndarray:
    """Mask of the points that no other point beats; of equal points only the first is kept.

    A search that proposes one architecture ten times has found one architecture.

    Args:
        points: (n, m) finite floats, every column to be minimised.

    Returns:
        (n,) booleans.

    Raises:
        ValueError: a coordinate is NaN or infinite.
    """
    if len(points) == 0:
        return np.zeros(0, dtype=bool)
    if not np.isfinite(points).all():
        row = int(np.argwhere(~np.isfinite(points))[0, 0])
        raise ValueError(f"points must be finite, but row {row} is {points[row]}.")
    no_worse = (points[:, None] <= points[None]).all(-1)  # (n, n): i is no worse than j
    better = (points[:, None] < points[None]).any(-1)
    equal_earlier = np.triu((points[:, None] == points[None]).all(-1), k=1)  # i < j, the same point
    beaten: np.ndarray = ((no_worse & better) | equal_earlier).any(0)
    return ~beaten


def hypervolume(points: np.ndarray, reference: Sequence[float] | np.ndarray) -> float:
    """The volume between points and a reference that is worse than them: what the points beat, and it does not.

    It is summed slice by slice along the last objective: exact, and quick enough for the fronts of a few hundred
    trials in up to four objectives.

    Args:
        points: (n, m) finite floats, every column to be minimised; those beyond the reference count nothing.
        reference: (m,) the worst corner.
    """
    corner = np.asarray(reference, dtype=float)
    inside = points[(points < corner).all(1)]
    if len(inside) == 0:
        return 0.0
    if len(corner) == 1:
        return float(corner[0] - inside.min())
    inside = inside[np.argsort(inside[:, -1], kind="stable")]
    depths = np.diff(inside[:, -1], append=corner[-1])
    slices = ((depth, inside[: place + 1, :-1]) for place, depth in enumerate(depths) if depth > 0)
    return float(sum(depth * hypervolume(beaten, corner[:-1]) for depth, beaten in slices))


def growth(points: np.ndarray, reference: Sequence[float] | np.ndarray) -> list[float]:
    """The hypervolume of the first point, of the first two, and so on: (n,) for (n, m) points."""
    front, volumes = points[:0], list[float]()
    for point in points:
        reached = bool((front <= point).all(1).any())
        if not reached:
            front = np.vstack([front[~(point <= front).all(1)], point])
        volumes.append(volumes[-1] if reached and volumes else hypervolume(front, reference))
    return volumes
