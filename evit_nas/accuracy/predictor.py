"""Accuracy predicted from trained networks of any regime: which candidates to train next, never instead of training.

One Gaussian process over architectures and regimes. Its mean is a power law: the log of the error is a line in the logs
of MACs and parameters. What is learned is how steep, and by how much a network departs from others of its size:

    log error = level + slopes . sizes + departure(features)

each of the three with a part that all regimes share, one that only near regimes do (by images and classes), and one
that belongs to the data that networks were trained on. So labels of one regime say something about every other one, the
less the farther it is, and where nothing is near the uncertainty grows. Departures are 0 at the typical network of the
paper, which has only its size to speak for it.

How strong each part is was fitted once to all networks that come with the package (`benchmarks/prior.py`), so that a
fit to a user's own few labels has nothing left to tune. Only held-out predictions say what a predictor is worth:
`cross_validated` and `with_labels` make them, `evit_nas.stats` judges them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from evit_nas.accuracy.evidence import Evidence, Networks, typical_features
from evit_nas.regime import IMAGENET

MIN_LABELS = 8
NORMAL_QUANTILE = 1.2816  # mean +- 1.2816 sd holds the label four times in five
DOUBT = 10  # labels after which they say as much about the size of errors as the prior does


@dataclass(frozen=True)
class Prior:
    """What is believed before any label: standard deviations, of log errors, and where the law begins."""

    level: float = 3.4
    """log of the error in percent of the paper's typical network: 30 %."""
    macs: float = -0.15  # m0 to m5 on ImageNet give -0.165 ± 0.028
    """Slope of the log error on log MACs."""
    params: float = -0.03  # they give -0.099 ± 0.027 on ImageNet, 0.242 ± 0.051 on ImageNet-100
    """Slope on log parameters, whose sign depends on the regime."""
    no_attention: float = 0.04
    """What a network loses that is without the paper's attention, where there is as much to learn as on ImageNet."""
    near: float = 1.0
    """Decades of images and classes over which regimes resemble each other."""
    level_near: float = 0.7
    level_own: float = 1.0
    """Images are easy or hard, whatever their number: errors on ten classes of anything reach from 1 to 40 %."""
    macs_shared: float = 0.035
    macs_near: float = 0.063
    macs_own: float = 0.054
    params_shared: float = 0.055
    params_near: float = 0.127
    params_own: float = 0.053
    linear: float = 0.024
    """Departures in proportion to the features."""
    smooth: float = 0.040
    """Departures of any smooth form (a Matern 5/2 kernel)."""
    length: float = 0.875
    """Of these, as a share of the distance of two random networks."""
    departure_shared: float = 0.5
    """Share of a departure's variance that all regimes have in common; half of the rest is that of near regimes."""
    rest: float = 0.006
    """Of one network, for what no feature tells."""


PRIOR = Prior()


@dataclass(frozen=True)
class AccuracyPredictor:
    """Predicts log errors, lower is better, from evidence. Fits are deterministic and take milliseconds."""

    _seen: Evidence
    _prior: Prior
    _scale: np.ndarray  # (d,) standard deviations of the features, infinite for those that do not vary

    @classmethod
    def fit(cls, evidence: Evidence, prior: Prior = PRIOR) -> AccuracyPredictor:
        """Learns from trained networks, each of which appears once for every data set that it was trained on.

        Raises:
            ValueError: there is no evidence, or a value in it is not finite.
        """
        if not len(evidence):
            raise ValueError("a predictor needs trained networks, got none.")
        for name in ("decades", "sizes", "log_error", "noise_sd"):
            if not np.isfinite(getattr(evidence, name)).all():
                raise ValueError(f"{name} must be finite.")
        # sums depend on their order: a fit should be one of the set of networks, in whatever order they come
        order = np.lexsort((evidence.log_error, evidence.sizes[:, 0], evidence.sizes[:, 1]))
        scale = np.ma.masked_invalid(evidence.features).std(0).filled(0.0)
        scale[scale < 1e-9] = math.inf  # a feature that does not vary says nothing
        return cls(evidence[order], prior, scale)

    def mean(self, asked: Networks) -> np.ndarray:
        """(m,) expected log errors."""
        value: np.ndarray = self._law(asked) + self._covariance(asked, self._seen) @ self._weights
        return value

    def predict(self, asked: Networks) -> tuple[np.ndarray, np.ndarray]:
        """(m,) expected log errors and their standard deviations; label noise left out, the level's own put in."""
        cross = self._covariance(asked, self._seen)
        mean = self._law(asked) + cross @ self._weights
        variance = self._variance(asked) - (cross * self._solved(cross.T).T).sum(1)
        return mean, self._stretch(asked) * np.sqrt(np.maximum(variance, 0))  # rounding may leave a little less than 0

    def against(self, asked: Networks, others: Networks) -> np.ndarray:
        """(m,) standard deviations of the differences to the mean of `others`: what comparisons hold to.

        Where nothing was trained in a regime, its level is a guess that all networks share.
        """
        cross, cross_others = self._covariance(asked, self._seen), self._covariance(others, self._seen)
        solved = self._solved(cross_others.mean(0))  # (n,)
        # var(a - b) = var(a) - 2 cov(a, b) + var(b), all after the labels; b is the mean of the others
        own = self._variance(asked) - (cross * self._solved(cross.T).T).sum(1)
        both = self._covariance(asked, others).mean(1) - cross @ solved  # (m,)
        theirs = self._covariance(others, others).mean() - cross_others.mean(0) @ solved
        sd: np.ndarray = self._stretch(asked) * np.sqrt(np.maximum(own - 2 * both + theirs, 0))
        return sd

    def sample(self, asked: Networks, draws: int, rng: np.random.Generator) -> np.ndarray:
        """(draws, m) log errors that (m,) networks may well have, drawn jointly: similar networks err alike.

        For Thompson sampling: train what is best in a draw. The draws have the mean and spread of `predict`.
        """
        from scipy.linalg import cholesky

        cross = self._covariance(asked, self._seen)
        rest = self._covariance(asked, asked) - cross @ self._solved(cross.T)  # (m, m)
        # also keeps the matrix definite where a network is asked about twice
        rest[np.diag_indices_from(rest)] += self._prior.rest**2 + 1e-9
        around = (cholesky(rest, lower=True) @ rng.standard_normal((len(asked), draws))).T
        drawn: np.ndarray = self._law(asked) + cross @ self._weights + self._stretch(asked) * around
        return drawn

    @cached_property
    def evidence_log_likelihood(self) -> float:
        """Log of the density of the labels under the prior; higher is better: by what a prior is chosen."""
        factor = self._factor[0]
        off = self._seen.log_error - self._law(self._seen)
        # Rasmussen and Williams 2006, eq. 2.30; the factor's diagonal makes the root of the determinant
        half = off @ self._weights / 2 + np.log(np.diag(factor)).sum()
        return float(-half - len(off) / 2 * math.log(2 * math.pi))

    def _stretch(self, asked: Networks) -> np.ndarray:
        """(m,) factors on the standard deviations: how wrong the prior's were about the labels of the same data.

        The prior counts as `DOUBT` labels that were as far off as it said.
        """
        factors = np.ones(len(asked))
        for data in {*self._seen.data} & {*asked.data}:
            own = self._left_out[self._seen.data == data]
            factors[asked.data == data] = math.sqrt((DOUBT + own.sum()) / (DOUBT + len(own)))
        return factors

    @cached_property
    def _left_out(self) -> np.ndarray:
        """(n,) squared errors over their variances, each label predicted from all others.

        In closed form: Rasmussen and Williams 2006, eq. 5.12.
        """
        precision = np.diag(self._solved(np.eye(len(self._seen))))
        off: np.ndarray = self._weights**2 / precision
        return off

    @cached_property
    def _factor(self) -> tuple[Any, bool]:
        from scipy.linalg import cho_factor

        covariance = self._covariance(self._seen, self._seen)
        covariance[np.diag_indices_from(covariance)] += self._seen.noise_sd**2 + self._prior.rest**2
        factor: tuple[Any, bool] = cho_factor(covariance, lower=True)
        return factor

    @cached_property
    def _weights(self) -> np.ndarray:
        return self._solved(self._seen.log_error - self._law(self._seen))

    def _solved(self, right: np.ndarray) -> np.ndarray:
        from scipy.linalg import cho_solve

        solved: np.ndarray = cho_solve(self._factor, right)
        return solved

    def _law(self, asked: Networks) -> np.ndarray:
        """(m,) the mean before any label."""
        prior = self._prior
        apart = asked.decades - np.array(IMAGENET.decades)
        much_data = np.exp(
            -(apart**2).sum(-1) / (2 * prior.near**2)
        )  # attention is worth more the more there is to learn
        law: np.ndarray = (
            prior.level
            + asked.sizes @ np.array([prior.macs, prior.params])
            + prior.no_attention * asked.plain * much_data
        )
        return law

    def _departures(self, asked: Networks) -> np.ndarray:
        """(m, d) features in standard deviations from the paper's; what a network does not have counts as typical."""
        z: np.ndarray = np.nan_to_num((asked.features - typical_features()) / self._scale)
        return z

    def _covariance(self, one: Networks, other: Networks) -> np.ndarray:
        """(m, n) between the expected log errors of networks."""
        prior = self._prior
        apart = one.decades[:, None] - other.decades[None]
        near = np.exp(-(apart**2).sum(-1) / (2 * prior.near**2))  # (m, n)
        own = (one.data[:, None] == other.data[None]) & (one.data != "")[:, None]  # (m, n); "" is never the same data
        total = prior.level_near**2 * near + prior.level_own**2 * own
        for column, (shared, nearby, alone) in enumerate(
            (
                (prior.macs_shared, prior.macs_near, prior.macs_own),
                (prior.params_shared, prior.params_near, prior.params_own),
            )
        ):
            # times the variance of a slope: the covariance of points on its line
            together = np.multiply.outer(one.sizes[:, column], other.sizes[:, column])
            total += together * (shared**2 + nearby**2 * near + alone**2 * own)
        common = prior.departure_shared + (1 - prior.departure_shared) / 2 * (near + own)
        covariance: np.ndarray = total + common * self._departure(self._departures(one), self._departures(other))
        return covariance

    def _departure(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """(m, n) between departures of (m, d) and (n, d) networks, with that of the typical network known to be 0."""
        varying = max(1, int(np.isfinite(self._scale).sum()))
        length = self._prior.length * math.sqrt(2 * varying)  # the distance of two random networks, standardised

        def smooth(distance: np.ndarray) -> np.ndarray:
            r = math.sqrt(5) * distance / length  # Rasmussen and Williams 2006, eq. 4.17
            matern: np.ndarray = (1 + r + r**2 / 3) * np.exp(-r)
            return matern

        from scipy.spatial.distance import cdist

        to_typical = smooth(np.linalg.norm(one, axis=1)), smooth(np.linalg.norm(other, axis=1))
        # the covariance of f(x) - f(typical), for which smooth(0) = 1
        pinned = smooth(cdist(one, other)) - to_typical[0][:, None] - to_typical[1][None] + 1
        # divided, so that more features do not make departures larger
        kernel: np.ndarray = self._prior.linear**2 / varying * (one @ other.T) + self._prior.smooth**2 * pinned
        return kernel

    def _variance(self, asked: Networks) -> np.ndarray:
        """(m,) before any label."""
        step = 64  # of the diagonal, block by block: a whole covariance of thousands fits no memory
        blocks = [asked[np.arange(at, min(at + step, len(asked)))] for at in range(0, len(asked), step)]
        return np.concatenate([np.diag(self._covariance(block, block)) for block in blocks]) if blocks else np.zeros(0)


@dataclass(frozen=True)
class HeldOut:
    """Predictions for networks that the predictor has not seen, under any regime."""

    index: np.ndarray
    """(m,) which rows of the evidence they are, in their order."""
    mean: np.ndarray
    """(m,) log errors."""
    sd: np.ndarray
    """(m,) their standard deviations, label noise left out."""


def cross_validated(
    own: Evidence, others: Evidence, *, folds: int = 10, repeats: int = 1, seed: int = 0
) -> Iterator[HeldOut]:
    """Predictions for every network by predictors that were fitted without its fold, once for each repeat.

    A network of the fold is left out of `others` too. A predictor without any skill gets a tau a little below 0 here:
    without a fold of high labels the mean of the others is lower.

    Args:
        own: the networks that are judged, each once.
        others: what is known besides.
        folds: of about equal sizes.
        repeats: number of divisions into folds.
        seed: the same folds for the same seed.
    """
    rng = np.random.default_rng(seed)
    for _ in range(repeats):
        parts = [
            _held_out(own, others, np.setdiff1d(np.arange(len(own)), test))
            for test in np.array_split(rng.permutation(len(own)), min(folds, len(own)))
        ]
        index = np.concatenate([part.index for part in parts])
        order = np.argsort(index)
        mean, sd = (np.concatenate([getattr(part, name) for part in parts])[order] for name in ("mean", "sd"))
        yield HeldOut(index[order], mean, sd)


def with_labels(
    labels: int, own: Evidence, others: Evidence, latency_ms: np.ndarray, *, repeats: int = 20, seed: int = 0
) -> Iterator[HeldOut]:
    """What that many labels are worth: predictions for all other networks, once for each draw of the labelled ones.

    The labelled networks are spread over the latencies: one at random from each of `labels` groups of neighbours.

    Args:
        labels: how many networks are labelled; none leaves what other data tell.
        own, others: as for `cross_validated`.
        latency_ms: (n,) of `own`.
        repeats: number of draws.
        seed: the same draws for the same seed.

    Raises:
        ValueError: so many cannot be labelled.
    """
    if not 0 <= labels < len(own):
        raise ValueError(f"of {len(own)} networks 0 to {len(own) - 1} can be labelled, got {labels}.")
    groups: Sequence[np.ndarray] = np.array_split(np.argsort(latency_ms, kind="stable"), labels) if labels else []
    rng = np.random.default_rng(seed)
    for _ in range(repeats):
        yield _held_out(own, others, np.array([rng.choice(group) for group in groups], dtype=int))


def _held_out(own: Evidence, others: Evidence, labelled: np.ndarray) -> HeldOut:
    test = np.setdiff1d(np.arange(len(own)), labelled)
    unseen = others[~np.isin(others.keys, own.keys[test])]
    predictor = AccuracyPredictor.fit(Evidence.joined([own[labelled], unseen]))
    return HeldOut(test, *predictor.predict(own[test]))
