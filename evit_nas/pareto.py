"""Pareto fronts: what no other point beats. Every coordinate is to be minimised."""

from __future__ import annotations

import math
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

    Exact: the sum of what each point adds to those after it (WFG, While et al. 2012), which is quick because seen from
    one point few of the others are left.

    Args:
        points: (n, m) finite floats, every column to be minimised; those beyond the reference count nothing.
        reference: (m,) the worst corner.
    """
    corner = np.asarray(reference, dtype=float)
    inside = points[(points < corner).all(1)]
    inside = inside[non_dominated(inside)]
    if len(inside) == 0:
        return 0.0
    # two objectives need the order; what each point adds to those after it sums to the same in any
    inside = inside[np.argsort(inside[:, 0])]
    if len(corner) == 2:  # steps of a staircase
        return float(np.diff(inside[:, 0], append=corner[0]) @ (corner[1] - inside[:, 1]))
    return math.fsum(_added(point, inside[place + 1 :], corner) for place, point in enumerate(inside))


class Growth:
    """The hypervolume of points that come one after another.

    Args:
        reference: (m,) the worst corner, as for `hypervolume`.
    """

    def __init__(self, reference: Sequence[float] | np.ndarray) -> None:
        self._corner = np.asarray(reference, dtype=float)
        self._front = np.empty((0, len(self._corner)))
        self.volume = 0.0

    def add(self, point: np.ndarray) -> float:
        """The hypervolume with one more point, (m,)."""
        if (point < self._corner).all() and not (self._front <= point).all(1).any():
            # the difference alone: whole fronts, trial by trial, took seconds each with four objectives
            self.volume += _added(point, self._front, self._corner)
            self._front = np.vstack([self._front[~(point <= self._front).all(1)], point])
        return self.volume


def _added(point: np.ndarray, others: np.ndarray, corner: np.ndarray) -> float:
    """What `point` beats and `others` do not."""
    # of the others only what lies in the point's own box is taken off: the limit set of WFG
    return float((corner - point).prod()) - hypervolume(np.maximum(others, point), corner)
