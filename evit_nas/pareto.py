"""Pareto fronts: what no other point beats. Every coordinate is to be minimised."""

from __future__ import annotations

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


def hypervolume(points: np.ndarray, reference: tuple[float, float]) -> float:
    """The area between two-dimensional points and a reference that is worse than them.

    Args:
        points: (n, 2) finite floats, both columns to be minimised; those beyond the reference count nothing.
        reference: the worst corner.
    """
    inside = points[(points < reference).all(1)]
    area, height = 0.0, reference[1]
    for x, y in inside[np.argsort(inside[:, 0], kind="stable")]:  # from left to right, in steps downwards
        if y < height:
            area += (reference[0] - x) * (height - y)
            height = y
    return float(area)
