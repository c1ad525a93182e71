"""What a training reads: images of one size and their labels, in two splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from evit_nas.errors import UsageError


@dataclass(frozen=True, eq=False)
class Split:
    """Images and their labels, in one order."""

    images: np.ndarray
    """(N, H, W, C) uint8, memory-mapped unless it is a `subset`; C is 1 or 3."""
    labels: np.ndarray
    """(N,) int64, indices into `Dataset.classes`."""

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, count: int, seed: int) -> Split:
        """`count` images, as many of each class as there are of the others while the classes last.

        Class sizes differ by one where `count` does not divide, by more where a class has run out. The chosen images
        keep their order and are copied into memory; with the same seed a smaller subset is part of a larger one.

        Raises:
            UsageError: see `check_subset`.
        """
        self.check_subset(count)
        sizes = np.bincount(self.labels)
        shuffled = np.random.default_rng(seed).permutation(len(self))
        # stable: a class keeps its shuffled order, so that a smaller subset is part of a larger one
        by_class = shuffled[np.argsort(self.labels[shuffled], kind="stable")]
        turn = np.concatenate([np.arange(size) for size in sizes])  # the first of its class, the second, ...
        chosen = np.sort(by_class[np.argsort(turn, kind="stable")[:count]])
        return Split(np.asarray(self.images[chosen]), self.labels[chosen])

    def check_subset(self, count: int) -> None:
        """
        Raises:
            UsageError: a subset of `count` images would have fewer than there are classes, or more than all.
        """
        classes = len(np.unique(self.labels))
        if not classes <= count <= len(self):
            raise UsageError(
                f"a subset must have at least one image of each of the {classes} classes and at most all {len(self)} "
                f"images, got {count}."
            )


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set at one image size."""

    name: str
    """For reports; that of a generated one starts with "procedural"."""
    classes: tuple[str, ...]
    train: Split
    val: Split
    skipped: Mapping[str, str]
    """The unreadable images by name, and why; they are in neither split."""
    digest: str
    """Hash of the classes, pixels and labels of both splits: equal for equal data, wherever it lies."""


def check_channels(images: int, networks: int) -> None:
    """Grey images are repeated for every channel of a network; colours need as many as there are.

    Raises:
        UsageError: `networks` take another number of channels than `images` have.
    """
    if images not in (1, networks):
        raise UsageError(
            f"the images have {images} channels, but the networks take {networks}: set in_channels: {images} in the "
            "search space."
        )
