"""Latency predicted from an ArchConfig in a fraction of a millisecond: to choose what to measure, never instead of it.

A linear model over the network's operators, fitted to whole networks measured on the device. One thread of a
runtime is close to additive, so the coefficients are marginal costs in context: layout changes and cache misses between
operators are in them. A table of whole blocks would be exact, but the default space has some ten thousand
distinct blocks a stage, more than anybody measures; operators are shared by all of them. Channels enter in
blocks of 16, as convolutions run, so that a prediction steps where the runtime steps and never interpolates between.

Every real measurement on a device is kept in the user's cache folder, under the conditions, processor and runtime it
belongs to, and refines the next fit. A fit checks itself by cross-validation; where operators do not add up (threads,
GPUs) a Gaussian process on stage features competes, and where neither is good enough everything is measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from evit_nas.arch import SE_RATIO, ArchConfig, StageConfig, round_to
from evit_nas.errors import MeasurementError, UsageError
from evit_nas.latency import Device, Latency, Protocol
from evit_nas.network.cost import cost
from evit_nas.runs import Journal, write_atomically
from evit_nas.space import SearchSpace

CHANNEL_BLOCK = 16  # of ONNX Runtime's convolutions with AVX-512
CACHES_MB = (2, 4, 8, 16)  # weights that do not fit have to be fetched in each inference
MIN_SAMPLES = 32  # distinct networks below which no fit is tried
MAX_MAPE, MIN_WITHIN_10 = 0.05, 0.9  # of a cross-validated fit that a search relies on
FOLDS = 5
SHRINKAGE = 0.01  # of coefficients to zero, in relative errors: decides only what the samples leave open
SEED = 0


@dataclass(frozen=True)
class Sample:
    """One network measured on the device; several visits of it count as one."""

    arch: ArchConfig
    ms: float
    rel_error: float


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
        """Whether a search may leave networks unmeasured because of such predictions."""
        return self.mape <= MAX_MAPE and self.within_10 >= MIN_WITHIN_10

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

    The Gaussian process on stage features is tried only where the linear model over operators is not good enough.
    """
    if len(samples) < MIN_SAMPLES:
        return None
    fitted = [_checked("operators", fit_operators, samples)]
    if not fitted[0].check.trusted:
        fitted.append(_checked("stages", fit_stages, samples))
    return min(fitted, key=lambda predictor: (not predictor.check.trusted, predictor.check.mape))


Fit = Callable[[Sequence[Sample]], Callable[[Sequence[ArchConfig]], np.ndarray]]


def _checked(method: str, fit_model: Fit, samples: Sequence[Sample]) -> Predictor:
    """The model of all samples, with the check of its cross-validation."""
    folds = np.random.default_rng(SEED).permutation(len(samples)) % FOLDS
    predicted = np.empty(len(samples))
    for fold in range(FOLDS):
        model = fit_model([sample for sample, own in zip(samples, folds, strict=True) if own != fold])
        predicted[folds == fold] = model([s.arch for s, own in zip(samples, folds, strict=True) if own == fold])
    check = compare(predicted, [sample.ms for sample in samples])
    return Predictor(method, len(samples), check, fit_model(samples))


def fit_operators(samples: Sequence[Sample]) -> Callable[[Sequence[ArchConfig]], np.ndarray]:
    """Non-negative least squares of relative errors over `operators`, barely shrunk."""
    from scipy.optimize import nnls

    terms = [operators(sample.arch) for sample in samples]
    names = sorted(set().union(*terms))
    matrix = _matrix(terms, names)
    scale = matrix.mean(0)
    ms = np.array([sample.ms for sample in samples])
    # A noisy measurement counts less, but none counts alone: below 2 % the model is what errs.
    weight = 1 / np.maximum([sample.rel_error for sample in samples], 0.02)
    weight /= weight.mean()
    rows = matrix / scale / ms[:, None] * weight[:, None]
    shrink = SHRINKAGE * np.eye(len(names))
    solution, _ = nnls(
        np.vstack([rows, shrink]), np.concatenate([weight, np.zeros(len(names))]), maxiter=100 * len(names)
    )
    coefficients = solution / scale

    def predict_ms(archs: Sequence[ArchConfig]) -> np.ndarray:
        predicted: np.ndarray = _matrix([operators(arch) for arch in archs], names) @ coefficients
        return predicted

    return predict_ms


def fit_stages(samples: Sequence[Sample]) -> Callable[[Sequence[ArchConfig]], np.ndarray]:
    """A Gaussian process (Matern 5/2) on the logarithm, over what each stage is like and the MACs."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    features = np.array([_stage_features(sample.arch) for sample in samples])
    mean, spread = features.mean(0), features.std(0) + 1e-9
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
        heads = stage.heads if stage.cascaded else 0
        features += [
            stage.depth,
            np.log(stage.width),
            stage.ffn_count * stage.ffn_dim / stage.width,
            heads * stage.depth,
        ]
        features += [stage.mixer == "softmax", stage.mixer == "linear", stage.qk_dim, stage.v_dim]
        features += [np.log(arch.merge_dim(index)) if index else 0.0]
    return [float(feature) for feature in features]


def operators(arch: ArchConfig) -> dict[str, float]:
    """What the deploy graph is made of: kind of operator -> how many, how much arithmetic, how much data.

    Arithmetic and data are in blocks of 16 channels where convolutions run on blocks, in channels elsewhere; scaled by
    powers of ten to about 1.
    """
    terms: dict[str, float] = {"network": 1.0, "head": arch.stages[-1].width * (1 + arch.num_classes) / 1e5}
    weights_mb = cost(arch).weight_bytes / 2**20
    for cache_mb in CACHES_MB:
        if weights_mb > cache_mb:  # a term that no network has would have no scale
            terms[f"weights beyond {cache_mb} MB"] = weights_mb - cache_mb
    _add_stem(terms, arch)
    for index, stage in enumerate(arch.stages):
        grid = arch.grids[index]
        area = grid[0] * grid[1]
        if index:
            _add_downsample(terms, arch, index)
        _add_ffn(terms, stage, area, 2 * stage.ffn_count * stage.depth)
        if stage.mixer == "softmax":
            side = arch.window_side(index)
            windows = -(-grid[0] // side) * -(-grid[1] // side)
            _add_softmax(terms, stage, index, windows, side * side, area)
        elif stage.mixer == "linear":
            _add_linear(terms, stage, index, area)
    return terms


def _blocks(channels: int) -> int:
    return -(-channels // CHANNEL_BLOCK)


def _add(terms: dict[str, float], name: str, value: float) -> None:
    terms[name] = terms.get(name, 0.0) + value


def _add_pointwise(terms: dict[str, float], ins: int, outs: int, area: int, count: int = 1) -> None:
    """Pointwise convolutions on a map of `area` positions."""
    _add(terms, f"{area} pointwise", count)
    _add(terms, f"{area} pointwise arithmetic", count * _blocks(ins) * _blocks(outs) * area / 1e3)
    _add(terms, f"{area} pointwise weights", count * ins * outs / 1e5)
    _add(terms, f"{area} pointwise data", count * (_blocks(ins) + _blocks(outs)) * area / 1e3)
    _add(terms, f"{area} pointwise input", count * _blocks(ins) * area / 1e3)


def _add_ffn(terms: dict[str, float], stage: StageConfig, area: int, count: int) -> None:
    """Depthwise convolution and FFN."""
    _add(terms, f"{area} depthwise", count)
    _add(terms, f"{area} depthwise data", count * _blocks(stage.width) * area / 1e3)
    _add_pointwise(terms, stage.width, stage.ffn_dim, area, count)
    _add_pointwise(terms, stage.ffn_dim, stage.width, area, count)


def _add_stem(terms: dict[str, float], arch: ArchConfig) -> None:
    area = arch.input_size[0] * arch.input_size[1]
    before = 1  # the image counts as one block: its few channels are not blocked
    for index, width in enumerate(arch.stem_widths):
        area //= 4
        _add(terms, f"stem {index} arithmetic", before * _blocks(width) * area * 9 / 1e4)
        _add(terms, "stem data", _blocks(width) * area / 1e4)
        before = _blocks(width)


def _add_downsample(terms: dict[str, float], arch: ArchConfig, index: int) -> None:
    before, after, hidden = arch.stages[index - 1], arch.stages[index], arch.merge_dim(index)
    in_area, area = (grid[0] * grid[1] for grid in arch.grids[index - 1 : index + 1])
    _add_ffn(terms, before, in_area, 1)
    _add_pointwise(terms, before.width, hidden, in_area)
    _add(terms, "downsample depthwise data", _blocks(hidden) * in_area / 1e3)
    _add(terms, "downsample gate data", _blocks(hidden) * area / 1e3)
    _add(terms, "downsample gate weights", hidden * round_to(hidden * SE_RATIO, 8) / 1e4)
    _add_pointwise(terms, hidden, after.width, area)
    _add_ffn(terms, after, area, 1)


def _add_softmax(terms: dict[str, float], stage: StageConfig, index: int, windows: int, tokens: int, area: int) -> None:
    """Window attention of a stage's blocks; `area` positions without the windows' padding, which `tokens` include."""
    heads, dim, qk, v_dim, count = stage.heads, stage.head_dim, stage.qk_dim, stage.v_dim, stage.depth
    padded = windows * tokens
    kind = "cascade" if stage.cascaded else "parallel"
    _add(terms, f"stage {index} {kind}", count)
    _add(terms, f"stage {index} attention data", count * stage.width * padded / 1e4)
    _add(terms, f"{kind} qkv arithmetic", count * heads * dim * (2 * qk + v_dim) * padded / 1e5)
    _add(terms, f"{kind} qkv data", count * heads * (2 * qk + v_dim) * padded / 1e4)
    _add(terms, f"{kind} attention arithmetic", count * heads * padded * tokens * (qk + v_dim) / 1e5)
    _add(terms, f"{kind} softmax", count * heads * padded * tokens / 1e4)
    if stage.cascaded:
        taps = sum(kernel**2 for kernel in stage.used_q_kernels)
        _add(terms, f"stage {index} head step", count * heads)
        _add(terms, "cascade query arithmetic", count * _blocks(qk) * taps * padded / 1e4)
        _add(terms, "cascade query data", count * heads * qk * padded / 1e4)
        _add(terms, "cascade output data", count * heads * v_dim * padded / 1e4)
        if v_dim != dim:
            _add(terms, "cascade back", count * (heads - 1))
            _add(terms, "cascade back arithmetic", count * (heads - 1) * v_dim * dim * padded / 1e5)
    else:
        blocked = _blocks(dim) * (_blocks(qk) + _blocks(qk + v_dim))
        _add(terms, "parallel qkv blocks", count * heads * blocked * padded / 1e3)
        _add(
            terms,
            "parallel query arithmetic",
            count * _blocks(heads * qk) * stage.used_q_kernels[0] ** 2 * padded / 1e4,
        )
        whole = heads == 1 or not (dim % CHANNEL_BLOCK or qk % CHANNEL_BLOCK or (qk + v_dim) % CHANNEL_BLOCK)
        if not whole:  # groups that cut through blocks run as an ordinary, slower convolution
            _add(terms, "parallel qkv unblocked", count * heads * dim * (2 * qk + v_dim) * padded / 1e5)
    _add_pointwise(terms, heads * v_dim, stage.width, area, count)


def _add_linear(terms: dict[str, float], stage: StageConfig, index: int, area: int) -> None:
    heads, qk, v_dim, count = stage.heads, stage.qk_dim, stage.v_dim, stage.depth
    _add(terms, f"stage {index} linear", count)
    _add(terms, "linear heads", count * heads)
    _add(terms, "linear depthwise data", count * _blocks(heads * v_dim) * area / 1e3)
    _add(terms, "linear arithmetic", count * 2 * heads * v_dim * qk * area / 1e5)
    _add(terms, "linear key data", count * heads * qk * area / 1e4)
    _add(terms, "linear value data", count * heads * v_dim * area / 1e4)
    _add_pointwise(terms, stage.width, 2 * heads * qk, area, count)
    _add_pointwise(terms, stage.width, heads * v_dim, area, count)
    _add_pointwise(terms, heads * v_dim, stage.width, area, count)


class Table:
    """Everything ever measured under one device context, in the user's cache folder: one JSON line a measurement.

    Networks of another input have other operators, of which a fit would know nothing: they are another table.
    """

    def __init__(self, context: Mapping[str, str], task: ArchConfig | SearchSpace) -> None:
        self.context = {**context, "image_size": str(task.image_size), "in_channels": str(task.in_channels)}
        self.digest = hashlib.sha256(json.dumps(self.context, sort_keys=True).encode()).hexdigest()[:12]
        self._journal = Journal(Path(platformdirs.user_cache_dir("evit-nas")) / f"latency-{self.digest}.jsonl")

    def add(self, arch: ArchConfig, latency: Latency) -> None:
        """Keeps one more measurement, unless the machine was noisy; without a cache folder it is forgotten."""
        if latency.noisy:
            return
        with contextlib.suppress(OSError):
            self._append([Sample(arch, latency.median_ms, latency.rel_error)])

    def samples(self) -> list[Sample]:
        """The distinct networks, each with the mean of its measurements, weighted by their errors."""
        return merged(_sample(record) for record in self._journal.read())

    def export_to(self, path: Path) -> int:
        """Writes the table as one JSON file; returns the number of networks in it.

        Raises:
            UsageError: the file cannot be written.
        """
        samples = self.samples()
        networks = [_record(sample) for sample in samples]
        try:
            write_atomically(path, json.dumps({"context": self.context, "networks": networks}, indent=1))
        except OSError as error:
            raise UsageError(f"cannot write {path}: {error.strerror}.") from None
        return len(samples)

    def import_from(self, path: Path) -> int:
        """Adds the networks of an exported table that are not known yet; returns their number.

        Raises:
            UsageError: not such a file, or measured under other conditions.
        """
        try:
            found = json.loads(path.read_text())
            context, samples = dict(found["context"]), read_samples(found)
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}.") from None
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"{path} is not a latency table; write one with: evit-nas latency show --export FILE"
            ) from None
        other = [
            f"{name} {context.get(name)} there, {own} here"
            for name, own in self.context.items()
            if context.get(name) != own
        ]
        if other:
            raise UsageError(f"{path} was measured under other conditions: {'; '.join(other)}.")
        known = {sample.arch.key for sample in self.samples()}
        fresh = [sample for sample in samples if sample.arch.key not in known]
        try:
            self._append(fresh)
        except OSError as error:
            raise UsageError(f"cannot write {self._journal.path}: {error.strerror}.") from None
        return len(fresh)

    def _append(self, samples: Sequence[Sample]) -> None:
        self._journal.path.parent.mkdir(parents=True, exist_ok=True)
        self._journal.repair()  # else a line torn by a kill would swallow the next one and make the file unreadable
        for sample in samples:
            self._journal.append(_record(sample))


def read_samples(exported: Mapping[str, Any]) -> list[Sample]:
    """The networks of an exported table."""
    return [_sample(record) for record in exported["networks"]]


def _record(sample: Sample) -> dict[str, Any]:
    return {"arch": sample.arch.model_dump(mode="json"), "ms": sample.ms, "rel_error": sample.rel_error}


def _sample(record: Mapping[str, Any]) -> Sample:
    ms, rel_error = float(record["ms"]), float(record["rel_error"])
    if not 0 < ms < math.inf or not 0 <= rel_error < math.inf:
        raise ValueError(f"a latency must be positive and its error no less than 0, got {ms} and {rel_error}")
    return Sample(ArchConfig.model_validate(record["arch"]), ms, rel_error)


def merged(samples: Iterable[Sample]) -> list[Sample]:
    """One sample for each network: the mean of its measurements, weighted by their errors."""
    visits: dict[str, list[Sample]] = {}
    for sample in samples:
        visits.setdefault(sample.arch.key, []).append(sample)
    found = []
    for same in visits.values():
        weights = np.array([1 / max(sample.rel_error, 1e-3) ** 2 for sample in same])
        ms = float(np.average([sample.ms for sample in same], weights=weights))
        found.append(Sample(same[0].arch, ms, float(1 / np.sqrt(weights.sum()))))
    return found


def measure_unseen(
    device: Device,
    table: Table,
    archs: Iterable[ArchConfig],
    count: int,
    protocol: Protocol,
    step: Callable[[int], None],
    note: Callable[[str], None],
) -> list[Sample]:
    """Measures the first `count` of `archs` that the table does not hold, and adds them to it.

    Args:
        device: where.
        table: of that device.
        archs: as many as needed are drawn; those that cannot be measured are left out.
        count: how many to measure.
        protocol: how carefully.
        step: told how many are done.
        note: told what was left out and why.
    """
    known = {sample.arch.key for sample in table.samples()}
    fresh: list[Sample] = []
    for arch in archs:
        if len(fresh) >= count:
            break
        if arch.key in known:
            continue
        known.add(arch.key)
        try:
            latency, _ = device.measure(arch, protocol)
        except MeasurementError as error:
            note(f"left out: {arch.key}: {error}")
            continue
        table.add(arch, latency)
        fresh.append(Sample(arch, latency.median_ms, latency.rel_error))
        step(len(fresh))
    return fresh
