"""Accuracy learned from a table of trained networks: less than a millisecond for a candidate, with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evit_nas.accuracy.features import table as features_of
from evit_nas.accuracy.predictor import MIN_LABELS, NORMAL_QUANTILE, AccuracyPredictor
from evit_nas.accuracy.table import LabelTable
from evit_nas.arch import ArchConfig
from evit_nas.errors import UsageError


@dataclass(frozen=True)
class LearnedAccuracy:
    """A predictor of the labels of a table: accuracy in percent, higher is better."""

    _predictor: AccuracyPredictor

    @classmethod
    def of_table(cls, table: LabelTable) -> LearnedAccuracy:
        """Fitted to all networks of `table`; those trained with several seeds count for more.

        Raises:
            UsageError: too few networks.
        """
        if len(table.networks) < MIN_LABELS:
            raise UsageError(f"a predictor needs at least {MIN_LABELS} trained networks, got {len(table.networks)}.")
        return cls(AccuracyPredictor.fit(features_of(table.archs), *table.truth()))

    def intervals(self, archs: Sequence[ArchConfig]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(n,) accuracies in percent on the table's data, and the ends of the intervals that hold four in five."""
        mean, sd = self._predictor.predict(features_of(archs))
        return mean, mean - NORMAL_QUANTILE * sd, mean + NORMAL_QUANTILE * sd
