"""How good trained networks are on labelled images, side by side: torch, ONNX and 8 bits on the very same inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

from evit_nas.errors import MeasurementError, UsageError
from evit_nas.evaluation.figures import (
    Answers,
    Evaluation,
    class_cells,
    confusion_cells,
    figures,
    rows,
    summary,
    summary_cells,
)

if TYPE_CHECKING:
    from torch import Tensor

    from evit_nas.data.preprocessing import Preprocessing
    from evit_nas.evaluation.classifiers import Classifier

__all__ = ["Evaluation", "class_cells", "confusion_cells", "evaluate", "rows", "summary", "summary_cells"]


def evaluate(
    networks: Sequence[str],
    data: str,
    *,
    split: Literal["val", "train"] = "val",
    batch: int = 64,
    workers: int = 2,
    like: str | None = None,
    note: Callable[[str], None] = lambda message: None,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> list[Evaluation]:
    """The figures of each form of each of `networks`, in their order, on every image that can be read.

    A folder without a split of its own is taken whole, but for images that a network was trained on: see `unseen`.

    The classes of the data must be those of a network, in any order.

    Args:
        networks: what `open_classifiers` takes.
        data: what `open_source` takes.
        batch: images at a time; ONNX files with a fixed batch keep theirs.
        workers: processes that decode images; 0 decodes them here.
        like: a folder that tells the classes and the preprocessing of files that have none.
        note: told about skipped images and about classes that have none.
        step: told how many batches are done, of how many.

    Raises:
        UsageError: a network or the data cannot be used, or their classes differ.
        MeasurementError: a network's outputs are not finite.
    """
    from evit_nas.data.cache import why_unreadable
    from evit_nas.data.sources import open_source
    from evit_nas.evaluation.classifiers import open_classifiers
    from evit_nas.evaluation.unseen import unseen
    from evit_nas.training.batches import plain_batches

    if batch < 1 or not networks:
        raise UsageError(f"give at least one network and a batch of at least 1, got {list(networks)} and {batch}.")
    source = open_source(data)
    classifiers = [one for text in networks for one in open_classifiers(text, like)]
    for remark in source.remarks:
        note(f"{source.name}: {remark}")
    images, taken = source.train, ""
    if split == "val":
        images, taken = unseen(source, [one.training for one in classifiers if one.training])
    elif source.whole is not None:
        taken = f"{len(images)} of its {len(source.whole)} images are taken, what is left when a tenth is held out"
    if taken:
        note(f"{source.name} has no split of its own: {taken}")
    runs = [_Run(one, _order(source.classes, one, note)) for one in classifiers]
    groups: dict[Preprocessing, list[_Run]] = {}
    for run in runs:  # those that want the same inputs share them
        groups.setdefault(run.classifier.preprocessing, []).append(run)
    batches = -(-len(images) // batch)

    def progress(before: int, done: int) -> None:
        step(before + done, len(groups) * batches)

    for number, (preprocessing, members) in enumerate(groups.items()):
        loader = plain_batches(images, preprocessing, range(len(images)), batch=batch, workers=workers)
        # every group sees the same images: what the last one could read all could
        labels, unreadable = _answer(members, loader, partial(progress, number * batches))
    if not len(labels):
        raise UsageError(f"{source.name}: none of its {split} images can be read.")
    skipped = tuple(images.name(index) for index in unreadable)
    if skipped:
        note(f"{source.name}: skipped {len(skipped)} unreadable images: {why_unreadable(images, unreadable)}")
    found = [
        Evaluation(
            network=run.classifier.network,
            form=run.classifier.form,
            path=run.classifier.path,
            data=source.name if images is source.whole else f"{source.name} {split}",
            skipped=skipped,
            classes=source.classes,
            images_per_s=run.images_per_s,
            batch=run.classifier.batch or batch,
            **figures(Answers.joined(run.answers), labels, len(source.classes)),
        )
        for run in runs
    ]
    if empty := found[0].empty_classes:
        note(f"{source.name} has no {split} images of: {', '.join(empty)}")
    return found


class _Run:
    """One classifier on its way through the images."""

    def __init__(self, classifier: Classifier, order: list[int]) -> None:
        self.classifier, self.order = classifier, order
        self.answers: list[Answers] = []
        self._speeds: list[float] = []

    def answer(self, inputs: Tensor, labels: np.ndarray) -> None:
        """Takes one batch."""
        start = time.perf_counter()
        logits = self.classifier.run(inputs)
        self._speeds.append(len(labels) / (time.perf_counter() - start))
        if logits.shape != (len(labels), len(self.order)):
            raise UsageError(
                f"{self.classifier.path} must have an output for each of the {len(self.order)} classes of the data, "
                f"got {logits.shape[1]}."
            )
        if not np.isfinite(logits).all():
            raise MeasurementError(
                f"{self.classifier.path}: its outputs are not finite; the weights are damaged or diverged"
            )
        self.answers.append(Answers.of(logits[:, self.order], labels))  # classes as the data order them

    @property
    def images_per_s(self) -> float:
        """Of the median batch, so that a slow first one does not count."""
        return float(np.median(self._speeds))


def _answer(
    runs: Sequence[_Run], loader: Iterable[Sequence[Tensor]], step: Callable[[int], None]
) -> tuple[np.ndarray, list[int]]:
    """Puts all images to all runs: the (N,) labels of those that could be read, and the indices of the others."""
    labels, unreadable = [np.empty(0, np.int64)], []
    for done, (inputs, truth, missing) in enumerate(loader, start=1):
        readable = truth >= 0
        unreadable += missing[~readable].tolist()
        if readable.any():
            labels.append(truth[readable].numpy())
            for run in runs:
                run.answer(inputs[readable], labels[-1])
        step(done)
    return np.concatenate(labels), unreadable


def _order(classes: Sequence[str], classifier: Classifier, note: Callable[[str], None]) -> list[int]:
    from evit_nas.network.saved import class_order

    if classifier.classes is None:
        note(f"{classifier.path}: the names of its classes are not known; they are taken in the order of the data")
        return list(range(len(classes)))
    return class_order(classes, classifier.classes, classifier.path)
