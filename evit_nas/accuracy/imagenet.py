"""What the score is worth on ImageNet, where the truth is known for few networks: the paper's six and their relatives.

Each of m0 to m5 is left out of all evidence, whatever it was trained on, and predicted from the rest; the relatives are
predicted from m0 to m5 without any of them. Six points say nothing about networks of equal latency: what they can show
is the order over the family's range, how large the errors are, and whether the intervals hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from evit_nas.accuracy import evidence
from evit_nas.accuracy.evidence import Evidence
from evit_nas.accuracy.predictor import NORMAL_QUANTILE, AccuracyPredictor
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.published import IMAGENET_1K, RELATIVES, WITHOUT_CASCADE


@dataclass(frozen=True)
class Prediction:
    """A published network, as it is predicted by those that do not know it; top-1 in %."""

    name: str
    published: float
    predicted: float
    low: float
    """End of the interval that should hold four in five."""
    high: float
    """Its other end."""

    @property
    def holds(self) -> bool:
        """Whether the published figure lies in the interval."""
        return self.low <= self.published <= self.high


@dataclass(frozen=True)
class ImageNetCard:
    """The published networks, each predicted without having been seen."""

    presets: tuple[Prediction, ...]
    """m0 to m5, each left out in turn."""
    relatives: tuple[Prediction, ...]
    """By their sizes, from m0 to m5."""

    @property
    def rmse(self) -> float:
        """Root of the mean squared error over the relatives, in points."""
        return math.sqrt(float(np.mean([(one.predicted - one.published) ** 2 for one in self.relatives])))

    @property
    def spread(self) -> float:
        """Predicted top-1 of m5 less that of m0, in points; published they are 13.8 apart."""
        return self.presets[-1].predicted - self.presets[0].predicted

    @property
    def ordered(self) -> bool:
        """Whether the predictions have the published order."""
        predicted = [one.predicted for one in self.presets]
        return predicted == sorted(predicted)


def imagenet_card() -> ImageNetCard:
    """Predicts what is published from the rest of what comes with the package."""
    known = evidence.shipped()
    return ImageNetCard(tuple(_presets(known)), tuple(_relatives(known)))


def _presets(known: Evidence) -> Iterator[Prediction]:
    for name in PRESETS:
        preset = ArchConfig.preset(name)
        own = [preset.key]
        if name == WITHOUT_CASCADE[0]:  # what is known of the cascade is a difference to its published accuracy
            own.append(evidence.without_cascade(preset).key)
        asked = known[(known.keys == preset.key) & (known.data == IMAGENET_1K)]
        yield from _predicted([name], known[~np.isin(known.keys, own)], asked)


def _relatives(known: Evidence) -> Iterator[Prediction]:
    asked = evidence.relatives()
    yield from _predicted([one.name for one in RELATIVES], known[known.keys != ""], asked)


def _predicted(names: list[str], seen: Evidence, asked: Evidence) -> Iterator[Prediction]:
    mean, sd = AccuracyPredictor.fit(seen).predict(asked)
    half = NORMAL_QUANTILE * np.hypot(sd, asked.noise_sd)
    # the larger error is the lower accuracy
    for row in zip(names, asked.log_error, mean, mean + half, mean - half, strict=True):
        name, *logs = row
        yield Prediction(name, *(100 - math.exp(log) for log in logs))
