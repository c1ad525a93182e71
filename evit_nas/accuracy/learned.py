"""Accuracy in percent under one regime, learned from all trained networks that are known: below a millisecond each."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np

from evit_nas.accuracy import evidence
from evit_nas.accuracy.evidence import Evidence, Networks, networks
from evit_nas.accuracy.predictor import MIN_LABELS, NORMAL_QUANTILE, AccuracyPredictor
from evit_nas.accuracy.table import LabelTable
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.errors import UsageError
from evit_nas.published import IMAGENET_1K, TOP1
from evit_nas.regime import IMAGENET, Regime

FEW_LABELS = 15  # below which predictions from labels rank hardly better than sizes (the score card)
FEW_VALIDATION = 1.0  # points of binomial error: what rivals differ by
NEAR_CHANCE = 0.5  # above chance, as a share of it: where not even the best network has learned much


@dataclass(frozen=True)
class LearnedAccuracy:
    """Top-1 in percent that networks are expected to reach under a regime, higher is better."""

    regime: Regime
    data: str
    """Name of the data, where networks were trained on just these; "" for a regime that nobody has trained in."""
    predictor: AccuracyPredictor
    known: Evidence
    """What it was learned from."""
    table_origin: str = ""
    """What the networks of the data's own table are, if there is one."""
    validation_sd: float = 0.0
    """What a validation set as large as that of the data adds to a log error by chance."""

    @classmethod
    def under(cls, regime: Regime, table: LabelTable | None = None) -> Self:
        """Learned from all that comes with the package, for a regime.

        Args:
            regime: images and classes.
            table: networks that were trained in just that regime, on the data that count.
        """
        known = evidence.shipped()
        if table is None:
            return cls(regime, IMAGENET_1K if regime == IMAGENET else "", AccuracyPredictor.fit(known), known)
        # a table that comes with the package as well is not counted twice
        known = Evidence.joined([known[known.data != table.source], evidence.of_table(table)])
        return cls(regime, table.source, AccuracyPredictor.fit(known), known, table.origin, _validation_sd(table))

    @classmethod
    def of_table(cls, table: LabelTable) -> Self:
        """For the regime of a table, whose own networks say most.

        Raises:
            UsageError: too few networks.
        """
        if len(table.networks) < MIN_LABELS:
            raise UsageError(f"a predictor needs at least {MIN_LABELS} trained networks, got {len(table.networks)}.")
        return cls.under(table.regime, table)

    def values(self, archs: Sequence[ArchConfig]) -> np.ndarray:
        """(n,) accuracies in percent."""
        # means alone: screening looks at thousands and asks for no interval
        value: np.ndarray = 100 - np.exp(self.predictor.mean(networks(archs, self.regime, self.data)))
        return value

    def intervals(self, archs: Sequence[ArchConfig]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(n,) accuracies in percent, and the ends of the intervals that hold four in five.

        The intervals are for comparisons: against the other networks that were trained on the same data, or against
        the paper's where none was. What all share (see `level_sd`) is left out.
        """
        asked = networks(archs, self.regime, self.data)
        mean, sd = self.predictor.mean(asked), self.predictor.against(asked, self._others)
        half = NORMAL_QUANTILE * np.hypot(sd, self.validation_sd)
        # the upper end of a log error may lie beyond 100 %
        value, low = 100 - np.exp(mean), np.maximum(100 - np.exp(mean + half), 0)
        return value, np.minimum(low, value), 100 - np.exp(mean - half)

    @property
    def digest(self) -> str:
        """Short, of the networks it was learned from and what these came to, of which `origin` tells the number."""
        # rounded, as logs differ in their last digit from machine to machine
        seen = [f"{key} {error:.4f}" for key, error in zip(self.known.keys, self.known.log_error, strict=True)]
        return hashlib.sha256("\n".join(seen).encode()).hexdigest()[:12]

    @property
    def origin(self) -> str:
        """A clause that says what the values are and where they come from."""
        others = sorted(set(self.known.data[self.known.keys != ""]) - {self.data, *TOP1})
        elsewhere = (
            f"{int(np.isin(self.known.data, others).sum())} networks trained on {_listed(others)}" if others else ""
        )
        if self.data == IMAGENET_1K:
            source = " and ".join(filter(None, ["the published m0 to m5 and their relatives", elsewhere]))
            return f"top-1 in percent on ImageNet after the paper's 300 epochs, predicted from {source}"
        if self.table_origin:
            return f"accuracy in percent, predicted from {self.table_origin}"
        source = " and ".join(filter(None, ["what is published on ImageNet", elsewhere]))
        return (
            f"top-1 in percent on {self.regime}, predicted from {source}; how hard the images are is not known, so all "
            f"together may be off by {self.level_sd:.0f} points: ± is for comparisons"
        )

    def doubts(self, table: LabelTable) -> Iterator[str]:
        """Sentences on labels that say little: few of them, few validation images, networks near chance."""
        truth, _ = table.truth()
        chance, best = 100 / self.regime.classes, float(truth.max())
        points = self.validation_sd * (100 - float(truth.mean()))  # of a log error, so a share of the error
        if best < chance + max(2 * points, NEAR_CHANCE * chance):
            yield (
                f"the best of the trained networks reaches {best:.1f} %, and guessing {chance:.1f} %: such labels "
                "hardly tell networks apart. More images, or larger ones, would."
            )
        if points > FEW_VALIDATION:
            yield (
                f"{table.validation_images} validation images leave an error of {points:.1f} points in every accuracy: "
                "the score follows other trained networks more than these."
            )
        if len(table.networks) < FEW_LABELS:
            yield f"{len(table.networks)} labels are few and add little to what other networks tell; --labels 30 does."

    @cached_property
    def level_sd(self) -> float:
        """By how many points all accuracies together may be off: small where networks were trained, else a guess."""
        mean, sd = self.predictor.predict(self._others)
        rest = self.predictor.against(self._others, self._others)
        shared = max(0.0, float(np.mean(sd**2 - rest**2)))
        return math.sqrt(shared) * float(np.exp(mean).mean())  # of log errors, so a share of the error

    @cached_property
    def _others(self) -> Networks:
        own = self.known.data == self.data
        if self.data and own.any():
            seen = self.known[own]
            return Networks(seen.data, seen.decades, seen.sizes, seen.plain, seen.features)
        return networks([ArchConfig.preset(name) for name in PRESETS], self.regime, self.data)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _validation_sd(table: LabelTable) -> float:
    if table.validation_images is None:
        return 0.0
    truth, _ = table.truth()
    error = np.maximum(100 - truth, evidence.LEAST_ERROR).mean() / 100
    return math.sqrt((1 - error) / (error * table.validation_images))  # sd of a binomial share, over the share
