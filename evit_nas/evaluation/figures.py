"""The figures of an evaluation: what they are, and how they follow from the answers to labelled images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict
from scipy.special import log_softmax

from evit_nas.stats import binomial_error

BINS = 15  # of confidence; as many as in the paper of the calibration error
TOP = 5


@dataclass(frozen=True)
class Answers:
    """What a network says to N images."""

    predicted: np.ndarray
    """(N,) class with the largest logit."""
    rank: np.ndarray
    """(N,) how many classes come before the right one."""
    confidence: np.ndarray
    """(N,) probability of the predicted class."""
    surprise: np.ndarray
    """(N,) cross-entropy in nats."""

    @classmethod
    def of(cls, logits: np.ndarray, labels: np.ndarray) -> Answers:
        """From (N, classes) finite logits and (N,) labels; of equal logits the first comes first."""
        log_p = log_softmax(logits.astype(np.float64), axis=1)
        rows = np.arange(len(labels))
        own = logits[rows, labels][:, None]
        earlier = np.arange(logits.shape[1]) < labels[:, None]
        rank = ((logits > own) | ((logits == own) & earlier)).sum(axis=1)
        return cls(logits.argmax(axis=1), rank, np.exp(log_p.max(axis=1)), -log_p[rows, labels])

    @classmethod
    def joined(cls, parts: Sequence[Answers]) -> Answers:
        """Those to several batches, in their order."""
        names = cls.__dataclass_fields__
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


class Confusion(NamedTuple):
    """Images of one class that were taken for another."""

    truth: str
    taken_for: str
    images: int
    share: float
    """Of the images of the true class."""


class Evaluation(BaseModel):
    """How one network does on one set of images; percentages of the images that could be read."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    network: str
    """For people, for example evit-4.31ms-6.2M."""
    form: str
    """torch, onnx or int8."""
    path: str
    """What was evaluated."""
    data: str
    """Name of the data set and its split."""
    images: int
    """How many could be read."""
    skipped: tuple[str, ...]
    """Names of those that could not."""
    classes: tuple[str, ...]
    """In the order of the data, as in the lists below."""
    top1: float
    """Right answers, in percent."""
    top1_error: float
    """Standard error of `top1` in points that so few images leave: see `binomial_error`."""
    top5: float | None
    """The same with the right class among the first five; None with five classes or fewer."""
    per_class: tuple[float | None, ...]
    """Right answers among the images of each class, in percent; None for a class without images."""
    confusion: tuple[tuple[int, ...], ...]
    """Numbers of images: the true class in rows, the predicted one in columns."""
    cross_entropy: float
    """Mean, in nats."""
    calibration_error: float
    """Expected calibration error in percent: see `calibration_error`."""
    images_per_s: float
    """Of the network alone, without decoding, in this run beside everything else: no certified latency."""
    batch: int
    """Images at a time for `images_per_s`."""

    @property
    def empty_classes(self) -> tuple[str, ...]:
        """Those without images."""
        return tuple(name for name, value in zip(self.classes, self.per_class, strict=True) if value is None)

    def worst_pairs(self, count: int = 5) -> list[Confusion]:
        """The most frequent confusions, by numbers of images."""
        matrix = np.array(self.confusion)
        totals = matrix.sum(axis=1)
        np.fill_diagonal(matrix, 0)
        order = np.argsort(-matrix, axis=None, kind="stable")[:count]
        pairs = (divmod(int(place), len(matrix)) for place in order)
        return [
            Confusion(self.classes[i], self.classes[j], int(matrix[i, j]), float(matrix[i, j] / totals[i]))
            for i, j in pairs
            if matrix[i, j]
        ]


def figures(answers: Answers, labels: np.ndarray, classes: int) -> dict[str, Any]:
    """The fields of an `Evaluation` that follow from the answers and the (N,) right labels, N at least 1."""
    right = answers.predicted == labels
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, answers.predicted), 1)  # += would count equal pairs once only
    top1 = 100 * float(right.mean())
    return {
        "images": len(labels),
        "top1": top1,
        "top1_error": binomial_error(top1, len(labels)),
        "top5": 100 * float((answers.rank < TOP).mean()) if classes > TOP else None,
        "per_class": [100 * int(row[i]) / int(row.sum()) if row.any() else None for i, row in enumerate(confusion)],
        "confusion": confusion.tolist(),
        "cross_entropy": float(answers.surprise.mean()),
        "calibration_error": 100 * calibration_error(answers.confidence, right),
    }


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error (arXiv 1706.04599, equation 3), from 0 to 1.

    Images are sorted by the probability of the predicted class into equal parts of (0, 1], each closed at its upper
    end. The differences between mean confidence and share of right answers are averaged over the images.

    Args:
        confidence: (N,) above 0 and at most 1.
        right: (N,) bool.
    """
    parts = np.ceil(confidence * bins).astype(int) - 1
    # |sum of confidence - sum of right answers| of a part is its size times the difference of the means
    gaps = np.bincount(parts.clip(0, bins - 1), weights=confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(confidence))


def rows(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Everything, for programs."""
    return [evaluation.model_dump(mode="json") for evaluation in evaluations]


def summary(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Of each network what fits into a row: how good it is, how sure that is, and how fast."""
    names = ("network", "form", "top1", "top1_error", "top5", "cross_entropy", "calibration_error", "images_per_s")
    return [{name: getattr(each, name) for name in (*names, "batch")} for each in evaluations]


def summary_cells(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the table of networks."""
    columns = ["network", "form", "top-1 %", "±", "top-5 %", "loss", "ECE %", "images/s", "batch"]
    return columns, [
        [
            e.network,
            e.form,
            f"{e.top1:.2f}",
            f"{e.top1_error:.2f}",
            "-" if e.top5 is None else f"{e.top5:.2f}",
            f"{e.cross_entropy:.4f}",
            f"{e.calibration_error:.2f}",
            f"{e.images_per_s:.0f}",
            str(e.batch),
        ]
        for e in evaluations
    ]


def class_cells(evaluations: Sequence[Evaluation]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the table of classes: the accuracy of each network on each of them, ± its error."""
    first = evaluations[0]
    counts = [sum(row) for row in first.confusion]
    columns = ["class", "images", *(f"{e.network} {e.form}" for e in evaluations)]
    return columns, [
        [name, str(count), *(_with_error(e.per_class[i], count) for e in evaluations)]
        for i, (name, count) in enumerate(zip(first.classes, counts, strict=True))
    ]


def _with_error(percent: float | None, images: int) -> str:
    return "-" if percent is None else f"{percent:.1f} ± {binomial_error(percent, images):.1f}"


def confusion_cells(evaluation: Evaluation) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the table of the most frequent confusions."""
    columns = ["class", "taken for", "images", "% of the class"]
    pairs = evaluation.worst_pairs()
    return columns, [[p.truth, p.taken_for, str(p.images), f"{100 * p.share:.1f}"] for p in pairs]
