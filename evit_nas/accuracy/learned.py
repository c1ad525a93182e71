"""Accuracy learned from a table of trained networks: microseconds for a candidate, with an interval."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evit_nas.accuracy.features import table as features_of
from evit_nas.accuracy.predictor import AccuracyPredictor
from evit_nas.accuracy.table import LabelTable
from evit_nas.arch import ArchConfig

Z_80 = 1.2816  # standard deviations either way that hold four values in five
INPUTS = ("code", "size")


class LearnedAccuracy:
    """A predictor of the labels' accuracy in percent."""

    def __init__(self, predictor: AccuracyPredictor) -> None:
        self._predictor = predictor

    @classmethod
    def of_table(cls, table: LabelTable) -> LearnedAccuracy:
        """Fitted to all networks of `table`; those trained with several seeds count for more."""
        return cls(AccuracyPredictor.fit(features_of(table.archs, INPUTS), *table.truth()))

    def intervals(self, archs: Sequence[ArchConfig]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(n,) accuracies in percent on the table's data, and the ends of the intervals that hold four in five."""
        mean, sd = self._predictor.predict(features_of(archs, INPUTS))
        return mean, mean - Z_80 * sd, mean + Z_80 * sd
