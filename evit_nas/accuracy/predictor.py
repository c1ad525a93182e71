"""Accuracy predicted from 15 to 100 trained networks: which candidates to train next, never instead of training them.

Three regressors of different kinds look at a table of features (`evit_nas.accuracy.features`) and are averaged: a
Gaussian process for smooth interactions, extremely randomised trees for steps and for features that do not matter,
ridge for the trends that few labels show. Signs and weights come from the labels; no feature is assumed to be good.

The uncertainty has the shape of the Gaussian process's and the size that cross-validation finds. Only held-out
predictions say what a predictor is worth: `cross_validated` and `with_labels` make them, `evit_nas.stats` judges them.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

MIN_LABELS = 8
FOLDS = 5  # of the calibration inside a fit
TREES = 100
COVERAGE, NORMAL_QUANTILE = 0.8, 1.2816  # mean +- 1.2816 sd is calibrated to hold 80 % of the labels
FREQUENCIES = 512  # random Fourier features of a posterior draw: 80 MB for 20,000 candidates
SMOOTHNESS = 2.5  # of the Matern kernel: sample paths are twice differentiable
SEED = 0


@dataclass(frozen=True)
class AccuracyPredictor:
    """Predicts the label of a network from its features, in the labels' unit, higher or lower as they are.

    Fits are deterministic and do not depend on the order of the networks.
    """

    _ensemble: _Ensemble
    _features: np.ndarray
    _truth: np.ndarray
    _noise_sd: np.ndarray

    @classmethod
    def fit(
        cls, features: np.ndarray, truth: np.ndarray, noise_sd: float | np.ndarray | None = None
    ) -> AccuracyPredictor:
        """Learns from labelled networks, each of which appears once with its mean label.

        Args:
            features: (n, d); NaN where a network has no such feature, which counts as average.
            truth: (n,) finite labels.
            noise_sd: the labels' standard errors, one for all or (n,), e.g. `Spread.seed_sd` over the root of the
                seeds. None takes the labels as exact: their noise then counts as uncertainty about the network.

        Raises:
            ValueError: fewer than MIN_LABELS labels, shapes that do not fit, or a value that is not finite.
        """
        features, truth, noise_sd = _checked(features, truth, noise_sd)
        order = np.lexsort((truth, *features.T))
        features, truth, noise_sd = features[order], truth[order], noise_sd[order]
        return cls(_Ensemble.fit(features, truth, noise_sd), features, truth, noise_sd)

    @cached_property
    def _factor(self) -> float:
        """By how much the Gaussian process underrates the errors of the ensemble; five times as dear as the fit."""
        off = np.zeros(len(self._truth))
        for train, test in _folds(len(off), FOLDS, np.random.default_rng(SEED)):
            fitted = _Ensemble.fit(self._features[train], self._truth[train], self._noise_sd[train])
            off[test] = (self._truth[test] - fitted.mean(self._features[test])) / np.hypot(
                fitted.sd(self._features[test]), self._noise_sd[test]
            )
        # the rank that makes an interval cover a newcomer too (split conformal prediction, arXiv 1604.04173)
        bound = np.sort(np.abs(off))[math.ceil(COVERAGE * (len(off) + 1)) - 1]
        return float(bound) / NORMAL_QUANTILE

    def mean(self, features: np.ndarray) -> np.ndarray:
        """(m,) expected labels of networks with (m, d) features."""
        return self._ensemble.mean(features)

    def predict(self, features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(m,) expected labels of networks with (m, d) features, and their standard deviations, noise left out."""
        return self.mean(features), self._factor * self._ensemble.sd(features)

    def sample(self, features: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
        """(draws, m) labels that (m, d) networks may well have, drawn jointly: similar networks err alike.

        For Thompson sampling: train what is best in a draw. The draws have the mean and spread of `predict`.
        """
        return self.mean(features) + self._factor * self._ensemble.deviations(features, draws, rng)


@dataclass(frozen=True)
class HeldOut:
    """Predictions for networks whose labels the predictor has not seen, made when they are asked for."""

    parts: Sequence[tuple[np.ndarray, np.ndarray, AccuracyPredictor]]
    """Rows of the table, their features, and a predictor that was fitted without them."""

    @cached_property
    def index(self) -> np.ndarray:
        """(m,) which rows of the table they are, in their order."""
        return np.sort(np.concatenate([rows for rows, _, _ in self.parts]))

    @cached_property
    def mean(self) -> np.ndarray:
        """(m,) in the labels' unit."""
        return self._joined([predictor.mean(features) for _, features, predictor in self.parts])

    @cached_property
    def sd(self) -> np.ndarray:
        """(m,) standard deviations; they cost five times as much as the means."""
        return self._joined([predictor.predict(features)[1] for _, features, predictor in self.parts])

    def _joined(self, values: Sequence[np.ndarray]) -> np.ndarray:
        joined: np.ndarray = np.concatenate(values)[np.argsort(np.concatenate([rows for rows, _, _ in self.parts]))]
        return joined


def cross_validated(
    features: np.ndarray,
    truth: np.ndarray,
    noise_sd: float | np.ndarray | None = None,
    *,
    folds: int = 10,
    repeats: int = 1,
    seed: int = 0,
) -> Iterator[HeldOut]:
    """Predictions for every network by predictors that were fitted without its fold, once for each repeat.

    All but the labels' noise is learned inside the folds, standardisation and calibration too. A predictor without any
    skill gets a tau a little below 0 here: without a fold of high labels the mean of the others is lower. Arguments as
    for `AccuracyPredictor.fit`.
    """
    features, truth, noise_sd = _checked(features, truth, noise_sd)
    rng = np.random.default_rng(seed)
    for _ in range(repeats):
        yield HeldOut(
            [
                (test, features[test], AccuracyPredictor.fit(features[train], truth[train], noise_sd[train]))
                for train, test in _folds(len(truth), folds, rng)
            ]
        )


def with_labels(
    labels: int,
    features: np.ndarray,
    truth: np.ndarray,
    latency_ms: np.ndarray,
    noise_sd: float | np.ndarray | None = None,
    *,
    repeats: int = 20,
    seed: int = 0,
) -> Iterator[HeldOut]:
    """What that many labels are worth: predictions for all other networks, once for each draw of the labelled ones.

    The labelled networks are spread over the latencies: one at random from each of `labels` groups of neighbours.

    Args:
        labels: how many networks are labelled, at least MIN_LABELS and fewer than there are.
        features, truth, noise_sd: as for `AccuracyPredictor.fit`.
        latency_ms: (n,).
        repeats: number of draws.
        seed: the same draws for the same seed.
    """
    features, truth, noise_sd = _checked(features, truth, noise_sd)
    if not MIN_LABELS <= labels < len(truth):
        raise ValueError(f"of {len(truth)} networks {MIN_LABELS} to {len(truth) - 1} can be labelled, got {labels}.")
    groups = np.array_split(np.argsort(latency_ms, kind="stable"), labels)
    rng = np.random.default_rng(seed)
    for _ in range(repeats):
        train = np.array([rng.choice(group) for group in groups])
        test = np.setdiff1d(np.arange(len(truth)), train)
        predictor = AccuracyPredictor.fit(features[train], truth[train], noise_sd[train])
        yield HeldOut([(test, features[test], predictor)])


@dataclass(frozen=True)
class _Ensemble:
    """The three regressors, fitted to standardised features and labels; its uncertainty is not calibrated."""

    center: np.ndarray  # (d,)
    scale: np.ndarray  # (d,)
    label_mean: float
    label_sd: float
    process: Any
    trees: Any
    ridge: Any

    @classmethod
    def fit(cls, features: np.ndarray, truth: np.ndarray, noise_sd: np.ndarray) -> _Ensemble:
        from sklearn.ensemble import ExtraTreesRegressor
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
        from sklearn.linear_model import RidgeCV

        known = np.ma.masked_invalid(features)
        center, scale = known.mean(0).filled(0.0), known.std(0).filled(0.0)
        scale[scale < 1e-9] = 1  # a feature that does not vary stays at 0
        label_mean, label_sd = float(truth.mean()), float(truth.std()) or 1.0
        z, y = _standardised(features, center, scale), (truth - label_mean) / label_sd

        typical = math.sqrt(2 * max(1, int(z.any(0).sum())))  # distance of two random networks
        kernel = ConstantKernel(1.0, (1e-2, 1e2)) * Matern(
            typical, (typical / 10, typical * 100), nu=SMOOTHNESS
        ) + WhiteKernel(0.1, (1e-4, 2.0))
        process = GaussianProcessRegressor(kernel, alpha=(noise_sd / label_sd) ** 2 + 1e-9)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # of a hyperparameter at its bound
            process.fit(z, y)
        trees = ExtraTreesRegressor(TREES, min_samples_leaf=2, random_state=SEED).fit(z, y)
        ridge = RidgeCV(np.logspace(-1, 4, 11)).fit(z, y)
        return cls(center, scale, label_mean, label_sd, process, trees, ridge)

    def mean(self, features: np.ndarray) -> np.ndarray:
        z = _standardised(features, self.center, self.scale)
        mean = (self.process.predict(z) + self.trees.predict(z) + self.ridge.predict(z)) / 3
        labels: np.ndarray = self.label_mean + self.label_sd * mean
        return labels

    def sd(self, features: np.ndarray) -> np.ndarray:
        _, sd = self.process.predict(_standardised(features, self.center, self.scale), return_std=True)
        deviation: np.ndarray = self.label_sd * sd
        return deviation

    def deviations(self, features: np.ndarray, draws: int, rng: np.random.Generator) -> np.ndarray:
        """(draws, m) joint draws of the Gaussian process, less its mean.

        A covariance of 20,000 candidates fits no memory, so a draw is a random function, a sum of waves whose
        frequencies have the kernel's spectrum (a t distribution for Matern), moved onto the labels by the kernel
        (pathwise conditioning, Wilson et al., arXiv 2002.09309).
        """
        from scipy.linalg import cho_solve

        z = _standardised(features, self.center, self.scale)
        labelled, kernel = self.process.X_train_, self.process.kernel_
        smooth, white = kernel.k1, kernel.k2.noise_level
        widths = np.sqrt(2 * SMOOTHNESS / rng.chisquare(2 * SMOOTHNESS, FREQUENCIES)) / smooth.k2.length_scale
        waves = rng.standard_normal((z.shape[1], FREQUENCIES)) * widths
        phases = rng.uniform(0, 2 * math.pi, FREQUENCIES)
        heights = rng.standard_normal((FREQUENCIES, draws)) * math.sqrt(2 * smooth.k1.constant_value / FREQUENCIES)

        noise = np.sqrt(white + self.process.alpha)[:, None] * rng.standard_normal((len(labelled), draws))
        seen = np.cos(labelled @ waves + phases) @ heights + noise  # (n, draws)
        drawn = np.cos(z @ waves + phases) @ heights - smooth(z, labelled) @ cho_solve((self.process.L_, True), seen)
        drawn += math.sqrt(white) * rng.standard_normal(drawn.shape)  # (m, draws)
        deviations: np.ndarray = self.label_sd * drawn.T
        return deviations


def _standardised(features: np.ndarray, center: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Features in standard deviations from the mean; what a network does not have counts as average."""
    z: np.ndarray = np.nan_to_num((features - center) / scale)
    return z


def _folds(n: int, folds: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Indices to fit and to predict, for each of the random folds."""
    for test in np.array_split(rng.permutation(n), folds):
        yield np.setdiff1d(np.arange(n), test), test


def _checked(
    features: np.ndarray, truth: np.ndarray, noise_sd: float | np.ndarray | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    features, truth = np.asarray(features, dtype=float), np.asarray(truth, dtype=float)
    if features.ndim != 2 or truth.shape != (len(features),):
        raise ValueError(f"features must be (n, d) and truth (n,), got {features.shape} and {truth.shape}.")
    if len(truth) < MIN_LABELS:
        raise ValueError(f"a predictor needs at least {MIN_LABELS} labelled networks, got {len(truth)}.")
    noise = np.broadcast_to(np.asarray(0.0 if noise_sd is None else noise_sd, dtype=float), truth.shape)
    if np.isinf(features).any() or not np.isfinite(truth).all() or not (np.isfinite(noise) & (noise >= 0)).all():
        raise ValueError("labels and their noise must be finite, noise >= 0, and features finite or NaN.")
    return features, truth, noise
