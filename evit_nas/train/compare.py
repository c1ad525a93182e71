"""Trained networks side by side: means over seeds, and how far each is from the baseline."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any

from evit_nas.trained import Trained


def compare(trainings: Sequence[Trained], baseline: str | None = None) -> list[dict[str, Any]]:
    """A row for each architecture, in the order of the trainings.

    Args:
        trainings: of one data set by one recipe; several seeds of a network make one row.
        baseline: name of the network that the others are compared with.

    Returns:
        Rows of name, seeds, mean top-1 and top-5 (percent) and loss (nats), the standard deviation of top-1 over seeds,
        and `gain`: points of top-1 above the baseline, with the standard error of that difference (`gain_error`; both
        None for the baseline itself, the error also while a network has one seed).
    """
    by_name: dict[str, list[Trained]] = {}
    for training in trainings:
        by_name.setdefault(training.name, []).append(training)
    reference = by_name.get(baseline) if baseline else None
    rows = []
    for name, group in by_name.items():
        top5 = [training.top5 for training in group if training.top5 is not None]
        row: dict[str, Any] = {
            "name": name,
            "seeds": len(group),
            "top1": fmean(training.top1 for training in group),
            "top1_sd": _deviation(group),
            "top5": fmean(top5) if top5 else None,
            "loss": fmean(training.loss for training in group),
            "gain": None,
            "gain_error": None,
        }
        if reference is not None and name != baseline:
            row["gain"] = row["top1"] - fmean(training.top1 for training in reference)
            row["gain_error"] = _error(group, reference)
        rows.append(row)
    return rows


def _deviation(group: Sequence[Trained]) -> float | None:
    return stdev(training.top1 for training in group) if len(group) > 1 else None


def _error(group: Sequence[Trained], other: Sequence[Trained]) -> float | None:
    """Of the difference of two means: the root of the sum of their variances."""
    deviations = [(_deviation(each), len(each)) for each in (group, other)]
    if any(deviation is None for deviation, _ in deviations):
        return None
    return math.sqrt(sum(deviation**2 / count for deviation, count in deviations if deviation is not None))
