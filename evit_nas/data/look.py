"""A data set at a glance, in a second: how many images of what, before anything long begins."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median_low

import numpy as np

from evit_nas.data.cache import UNREADABLE
from evit_nas.data.images import GRAY_MODES, Source
from evit_nas.errors import UsageError

SAMPLE = 200  # images whose size and colours are looked at, spread over the training images
FEW = 10  # training images below which nothing much is learned of a class
FEW_IMAGES = 5000  # training images, below which a word is due about what they bring


@dataclass(frozen=True)
class Look:
    """What was seen."""

    name: str
    train: int
    """Training images."""
    val: int
    """Validation images."""
    classes: tuple[str, ...]
    per_class: tuple[int, ...]
    """Training images of each class."""
    val_per_class: tuple[int, ...]
    """Validation images of each class."""
    sides_px: tuple[int, int, int]
    """Shorter sides of the images looked at: least, median, most; zeros where none could be opened."""
    grey: bool
    """Whether all of them are grey."""
    held_out: bool
    """Whether the validation images were held out of a set that has no split."""
    remarks: tuple[str, ...]
    """What its user should know of it, for example what was skipped."""

    @property
    def side_px(self) -> int:
        """The median shorter side."""
        return self.sides_px[1]

    @property
    def rare(self) -> tuple[str, ...]:
        """The classes with fewer than FEW training images."""
        return tuple(name for name, count in zip(self.classes, self.per_class, strict=True) if count < FEW)

    def __str__(self) -> str:
        least, most = min(self.per_class), max(self.per_class)
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        shortest, median, longest = self.sides_px
        sides = f"{median} px" if shortest == longest else f"{median} px ({shortest} to {longest})"
        parts = [
            f"{self.train:,} training and {self.val:,} validation images",
            f"{len(self.classes)} classes, {each} training images in each",
            f"{sides if longest else 'none could be opened'}, {'grey' if self.grey else 'colour'}",
            *(["a tenth held out"] if self.held_out else []),
            *self.remarks,
        ]
        return f"{self.name}: {'; '.join(parts)}"


def look(source: Source) -> Look:
    """Counts the labels and opens the headers of up to SAMPLE images; those that cannot be opened are passed over.

    Raises:
        UsageError: the name of a class is not UTF-8, so no record of a training could hold it.
    """
    for name in source.classes:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{source.name}: class {name}: its name must be UTF-8. Rename the folder.") from None
    sides, modes = [], set()
    for index in np.linspace(0, len(source.train) - 1, min(SAMPLE, len(source.train))).astype(int):
        try:
            with source.train.opened(int(index)) as image:
                sides.append(min(image.size))
                modes.add(image.mode)
        except UNREADABLE:
            continue
    classes = len(source.classes)
    return Look(
        name=source.name,
        train=len(source.train),
        val=len(source.val),
        classes=source.classes,
        per_class=tuple(np.bincount(source.train.labels, minlength=classes).tolist()),
        val_per_class=tuple(np.bincount(source.val.labels, minlength=classes).tolist()),
        sides_px=(min(sides), median_low(sides), max(sides)) if sides else (0, 0, 0),
        grey=modes <= set(GRAY_MODES),
        held_out=source.whole is not None,
        remarks=source.remarks,
    )


def few(images: int) -> str:
    """What can be expected of so few training images from scratch, and what to try from there.

    The figure is of docs/results/transfer.md.
    """
    return (
        f"{images:,} images are few to learn from scratch (600 of ten classes came to 64 %): more images help, and so "
        "may weights that were trained for long (--init with a training or shipped folder, a file of m0..m5, or "
        "timm:efficientvit_m1); see docs/photographs.md"
    )
