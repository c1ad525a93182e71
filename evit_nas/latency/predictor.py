"""Latency predicted from an ArchConfig in a fraction of a millisecond: to choose what to measure, never instead of it.

A linear model over the network's operators, fitted to whole networks measured on the device. One thread of a
runtime is close to additive, so the coefficients are marginal costs in context: layout changes and cache misses between
operators are in them. A table of whole blocks would be exact, but the default space has some ten thousand
distinct blocks a stage, more than anybody measures; operators are shared by all of them.

A fit starts from what operators cost beside one another on another processor, and checks itself by cross-validation;
where operators do not add up (threads, GPUs) a Gaussian process on stage features competes, and where nothing is good
enough everything is measured.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from evit_nas.arch import ArchConfig
from evit_nas.latency.operator_costs import cost_of, shipped_costs
from evit_nas.latency.operators import operators
from evit_nas.latency.samples import Sample
from evit_nas.network.cost import cost

MIN_SAMPLES = 32  # distinct networks that make a fit; fewer leave more open than they can check
# not 16: fits that call themselves good are off by 5 % by then, by 3 to 4 % with 24 (docs/results/predictor.md)
MIN_SAMPLES_WITH_PRIOR = 24  # distinct networks that may do where operators cost about what they do elsewhere
MAX_MAPE, MIN_WITHIN_10 = 0.05, 0.9  # of a cross-validated fit that a search relies on
FOLDS = 16  # so that of few networks one or two are left out: with fewer left a fit looks worse than it is
# Of costs, in relative errors of a network. To zero: decides only what the samples leave open. To a prior: an operator
# that takes a tenth of a network more than the prior says counts as much as a network that is off by a tenth.
SHRINKAGE, PRIOR_WEIGHT = 0.01, 1.0
SEED = 0


@dataclass(frozen=True)
class Check:
    """How predictions compare with measurements of networks the fit did not see."""

    networks: int
    mape: float
    """Mean of |predicted / measured - 1|."""
    within_5: float
    """Share of the networks predicted within 5 %."""
    within_10: float
    """Share predicted within 10 %."""
    spearman: float
    """Rank correlation; 1 is the same order."""

    @property
    def trusted(self) -> bool:
        """Whether a search may leave networks unmeasured because of such predictions.

        What counts is how likely the next network is within 10 %, by the rule of succession: the share, and less than
        it where the networks are few.
        """
        next_within_10 = (self.within_10 * self.networks + 1) / (self.networks + 2)
        return self.mape <= MAX_MAPE and next_within_10 >= MIN_WITHIN_10

    def __str__(self) -> str:
        return (
            f"off by {100 * self.mape:.1f} % on average, {100 * self.within_5:.0f} % within 5 %, "
            f"{100 * self.within_10:.0f} % within 10 %, rank correlation {self.spearman:.3f} ({self.networks} networks)"
        )


def compare(predicted_ms: Sequence[float] | np.ndarray, measured_ms: Sequence[float] | np.ndarray) -> Check:
    """The check of (n,) predictions against (n,) measurements."""
    from scipy.stats import spearmanr

    predicted, measured = np.asarray(predicted_ms), np.asarray(measured_ms)
    off = np.abs(predicted / measured - 1)
    tied = min(np.ptp(predicted), np.ptp(measured)) == 0  # no order to compare
    return Check(
        networks=len(off),
        mape=float(off.mean()),
        within_5=float((off <= 0.05).mean()),
        within_10=float((off <= 0.1).mean()),
        spearman=0.0 if tied else float(spearmanr(predicted, measured).statistic),
    )


@dataclass(frozen=True)
class Predictor:
    """A fitted model; `check` says how good it is on networks it did not see."""

    method: str
    samples: int
    check: Check
    _model: Callable[[Sequence[ArchConfig]], np.ndarray]

    def predict_ms(self, archs: Sequence[ArchConfig]) -> np.ndarray:
        """(n,) predicted median latencies in milliseconds."""
        return self._model(archs)


def fit(samples: Sequence[Sample]) -> Predictor | None:
    """The best model of the measured networks by cross-validation; None for too few of them.

    Beside the shipped costs of operators a few are enough if predictions can be trusted then. On a device that is like
    no processor these costs are wrong: the networks alone compete with them where they are enough, and a Gaussian
    process on stage features where no sum over operators is good enough.
    """
    if len(samples) < MIN_SAMPLES_WITH_PRIOR:
        return None
    with_prior = checked("operators with prior", partial(fit_operators, prior=shipped_costs()), samples)
    if len(samples) < MIN_SAMPLES:
        return with_prior if with_prior.check.trusted else None
    fitted = [with_prior, checked("operators", fit_operators, samples)]
    if not any(predictor.check.trusted for predictor in fitted):
        fitted.append(checked("stages", fit_stages, samples))
    return min(fitted, key=lambda predictor: (not predictor.check.trusted, predictor.check.mape))


Fit = Callable[[Sequence[Sample]], Callable[[Sequence[ArchConfig]], np.ndarray]]


def checked(method: str, fit_model: Fit, samples: Sequence[Sample]) -> Predictor:
    """The model of all samples, with the check of its cross-validation."""
    folds = np.random.default_rng(SEED).permutation(len(samples)) % FOLDS
    predicted = np.empty(len(samples))
    for fold in range(FOLDS):
        model = fit_model([sample for sample, own in zip(samples, folds, strict=True) if own != fold])
        predicted[folds == fold] = model([s.arch for s, own in zip(samples, folds, strict=True) if own == fold])
    check = compare(predicted, [sample.ms for sample in samples])
    return Predictor(method, len(samples), check, fit_model(samples))


def fit_operators(
    samples: Sequence[Sample], prior: Mapping[str, float] | None = None
) -> Callable[[Sequence[ArchConfig]], np.ndarray]:
    """What the operators of a network cost in all, by `fitted_costs`."""
    costs = fitted_costs(samples, prior or {})
    names, of_each = list(costs), np.array(list(costs.values()))

    def predict_ms(archs: Sequence[ArchConfig]) -> np.ndarray:
        predicted: np.ndarray = _matrix([operators(arch) for arch in archs], names) @ of_each
        return predicted

    return predict_ms


def fitted_costs(samples: Sequence[Sample], prior: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds for a unit of each of `operators`: non-negative least squares of relative errors, barely shrunk.

    Where the `prior` knows what an operator costs beside the others, its cost is shrunk to that instead of to zero: to
    that times a factor, the same for all, which is fitted with the costs. What no sample has costs what the prior says.
    """
    from scipy.optimize import nnls

    terms = [operators(sample.arch) for sample in samples]
    names = sorted(set(prior).union(*terms))
    matrix = _matrix(terms, names)  # (samples, names)
    scale = np.where(matrix.any(0), matrix.mean(0), 1.0)  # (names,); what no sample has is left to the prior
    ms = np.array([sample.ms for sample in samples])
    typical_ms = float(np.exp(np.log(ms).mean()))
    # A noisy measurement counts less, but none counts alone: below 2 % the model is what errs.
    weight = 1 / np.maximum([sample.rel_error for sample in samples], 0.02)
    weight /= weight.mean()  # so that shrinking means the same whatever the errors are
    # Unknown is what each operator takes of a typical network; and, last, the factor of the prior.
    rows = np.column_stack([matrix / scale * (typical_ms / ms * weight)[:, None], np.zeros(len(samples))])
    believed = [cost_of(name, prior) for name in names]
    shrink = np.diag([SHRINKAGE if cost is None else PRIOR_WEIGHT for cost in believed])
    pull = np.column_stack([shrink, -shrink @ (scale * [cost or 0.0 for cost in believed])])  # (names, names + 1)
    # left to itself scipy gives up, with an error, after 3 iterations a column
    solution, _ = nnls(
        np.vstack([rows, pull]), np.concatenate([weight, np.zeros(len(names))]), maxiter=100 * len(names)
    )
    return dict(zip(names, (solution[:-1] * typical_ms / scale).tolist(), strict=True))


def fit_stages(samples: Sequence[Sample]) -> Callable[[Sequence[ArchConfig]], np.ndarray]:
    """A Gaussian process (Matern 5/2) on the logarithm, over what each stage is like and the MACs."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    features = np.array([_stage_features(sample.arch) for sample in samples])
    mean, spread = features.mean(0), features.std(0) + 1e-9  # a feature may be the same in all
    kernel = ConstantKernel(1.0) * Matern(5.0, nu=2.5) + WhiteKernel(1e-3)
    model = GaussianProcessRegressor(kernel, normalize_y=True, random_state=SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of a hyperparameter at its bound; cross-validation judges
        model.fit((features - mean) / spread, np.log([sample.ms for sample in samples]))

    def predict_ms(archs: Sequence[ArchConfig]) -> np.ndarray:
        asked = np.array([_stage_features(arch) for arch in archs])
        predicted: np.ndarray = np.exp(model.predict((asked - mean) / spread))
        return predicted

    return predict_ms


def _matrix(terms: Sequence[Mapping[str, float]], names: Sequence[str]) -> np.ndarray:
    return np.array([[found.get(name, 0.0) for name in names] for found in terms])


def _stage_features(arch: ArchConfig) -> list[float]:
    features = [np.log(cost(arch).macs), arch.stem_ratio, *np.log(arch.input_size)]
    for index, stage in enumerate(arch.stages):
        heads = stage.heads if stage.cascaded else 0  # serial steps, which count more than MACs at batch 1
        features += [
            stage.depth,
            np.log(stage.width),
            stage.ffn_count * stage.ffn_dim / stage.width,
            heads * stage.depth,
        ]
        features += [stage.mixer == "softmax", stage.mixer == "linear", stage.qk_dim, stage.v_dim]
        features += [np.log(arch.merge_dim(index)) if index else 0.0]
    return [float(feature) for feature in features]
