"""The judge of a supernet: every candidate is judged with the weights that it inherits.

That takes a moment for each, too long to look at ten thousand. So some hundred random networks are judged first, and
a predictor learns from them where to look; what it proposes is judged itself. It decides what is looked at, never what
a network is worth.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evit_nas import __version__
from evit_nas.accuracy import Estimate, evidence
from evit_nas.accuracy.predictor import MIN_LABELS, NORMAL_QUANTILE, AccuracyPredictor, cross_validated
from evit_nas.arch import ArchConfig
from evit_nas.console import millions
from evit_nas.errors import MeasurementError
from evit_nas.network.cost import cost
from evit_nas.regime import Regime, default_regime
from evit_nas.searching.evaluate import Work, memo_id_of
from evit_nas.searching.judge import Judge, JudgeContext
from evit_nas.space import SearchSpace
from evit_nas.trained import WEIGHTS

if TYPE_CHECKING:
    from evit_nas.network.supernet import Supernet

JUDGED = 200  # random networks that the predictor learns from
MAX_DRAWS = 50  # for each of them, in a space with few distinct networks
LEAST_EXPLAINED = 0.5  # of the variance of scores: predictions that explain less are no guide


class SharedWeights(Judge):
    """Judges every candidate with the weights that it inherits from a supernet."""

    def __init__(self, context: JudgeContext) -> None:
        from evit_nas.network.supernet import Supernet

        self._settings, self._evaluator, self._watch = context.run.settings, context.evaluator, context.watch
        wish = self._settings.accuracy
        assert wish.supernet is not None
        self._folder = Path(wish.supernet).absolute()
        self._supernet = supernet = Supernet.load(self._folder)
        self._weights = hashlib.sha256((self._folder / WEIGHTS).read_bytes()).hexdigest()
        # a part of it stands in `origin`: no run goes on with other weights
        self.origin = (
            f"minus the cross-entropy in nats on {supernet.held_out} held-out images of {supernet.data_name}, no "
            f"accuracy: with the weights {self._weights[:6]} of a supernet of {supernet.name} after {supernet.epoch} "
            f"epochs, trained for {millions(supernet.macs[0])} to {millions(supernet.macs[1])} MACs"
        )

    @property
    def predicts(self) -> bool:
        return self._predictor is not None

    def expect(self, arch: ArchConfig) -> None:
        self._evaluator.begin_once(self._judging(arch))

    def estimate(self, arch: ArchConfig, latency_ms: float | None = None) -> Estimate:
        found = self._evaluator.computed(arch, self._judging(arch))
        value, half = -found["cross_entropy"], NORMAL_QUANTILE * found["error"]
        return Estimate(value=value, low=value - half, high=value + half, method="supernet")

    def values(self, archs: Sequence[ArchConfig]) -> np.ndarray:
        assert self._predictor is not None
        value: np.ndarray = -np.exp(self._predictor.mean(evidence.networks(archs, self._regime)))
        return value

    @cached_property
    def _predictor(self) -> AccuracyPredictor | None:
        """Predicts logs of cross-entropies; None where it cannot."""
        archs = to_judge(self._settings.space, self._supernet, self._settings.seed)
        for arch in archs:
            self.expect(arch)
        judged, entropy, error = list[ArchConfig](), list[float](), list[float]()
        for done, arch in enumerate(archs, start=1):
            self._watch.step("judging random networks", done, len(archs))
            try:
                found = self._evaluator.computed(arch, self._judging(arch))
            except (MeasurementError, RuntimeError, MemoryError) as reason:  # torch out of memory is a RuntimeError
                self._watch.note(f"left out: {arch.key}: {reason}")
                continue
            judged.append(arch)
            entropy.append(found["cross_entropy"])
            error.append(found["error"])
        if len(judged) < MIN_LABELS:
            return None
        asked = evidence.networks(judged, self._regime)
        own = evidence.labelled(asked, judged, np.log(entropy), np.divide(error, entropy))
        (held_out,) = cross_validated(own, own[np.zeros(0, dtype=int)])
        explained = 1 - float(np.mean((held_out.mean - own.log_error) ** 2) / max(np.var(own.log_error), 1e-12))
        said = f"predictions from {len(judged)} judged networks explain {max(explained, 0):.0%} of how scores differ"
        if explained < LEAST_EXPLAINED:
            self._watch.note(f"{said}: too little to look at thousands by them")
            return None
        self._watch.note(f"{said}: thousands are looked at by them, and the best are judged themselves")
        return AccuracyPredictor.fit(own)

    @cached_property
    def _regime(self) -> Regime:
        return default_regime(len(self._supernet.classes))  # any, if it is the same for all

    def _judging(self, arch: ArchConfig) -> Work:
        from evit_nas.accuracy.supernet import inherited

        context = {"weights": self._weights, "evit_nas": __version__}
        return Work(memo_id_of("judgement", arch, context), lambda: partial(inherited, self._folder, arch))


def to_judge(space: SearchSpace, supernet: Supernet, seed: int) -> list[ArchConfig]:
    """Distinct random networks of the space to learn from, half of them of what the supernet was trained for.

    The others come from anywhere: a screening asks about the whole space, and outside scores are too low.
    """
    (least, most), rng, found = supernet.macs, random.Random(seed), dict[str, ArchConfig]()
    for _ in range(MAX_DRAWS * JUDGED):
        if len(found) == JUDGED:
            break
        arch = space.sample(rng)
        if len(found) < JUDGED // 2 or least <= cost(supernet.space.adapted(arch)).macs <= most:
            found.setdefault(arch.key, arch)
    return [*found.values()]
