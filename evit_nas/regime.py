"""A regime: how many images of how many classes a network learns from.

What a parameter is worth depends on it, even in sign: from m0 to m5 parameters lower the error on ImageNet's 1.28
million images and raise it on the 130,000 of ImageNet-100. So a score without its regime says nothing.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

IMAGES_PER_CLASS = 1000  # where nobody says: those of Fashion-MNIST's labels, and nearly ImageNet's


class Regime(BaseModel):
    """The training images and their classes."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    images: Annotated[int, Field(ge=2, le=10**12)]
    """Training images of all classes together."""
    classes: Annotated[int, Field(ge=2, le=10**9)]
    """Classes that they are of."""

    @model_validator(mode="after")
    def _check(self) -> Regime:
        if self.images < self.classes:
            raise ValueError(
                f"there must be an image of every class, got {self.images:,} images of {self.classes:,} classes: "
                "say --classes and --images together"
            )
        return self

    @property
    def decades(self) -> tuple[float, float]:
        """log10 of images and of classes: as far as regimes are apart, so little do they say of each other."""
        return math.log10(self.images), math.log10(self.classes)

    def __str__(self) -> str:
        name = " (ImageNet)" if self == IMAGENET else ""
        return f"{_short(self.images)} images of {self.classes:,} classes{name}"


IMAGENET = Regime(images=1_281_167, classes=1000)


def default_regime(num_classes: int) -> Regime:
    """What a search scores for if nobody says: ImageNet for 1000 classes, else `IMAGES_PER_CLASS` of each."""
    if num_classes == IMAGENET.classes:
        return IMAGENET
    classes = max(num_classes, 2)  # one output tells two classes apart
    return Regime(images=IMAGES_PER_CLASS * classes, classes=classes)


def _short(count: int) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if count >= unit * 10 or (count >= unit and unit == 1e6):  # 1.28M and 24.2k, but 5,000
            return f"{count / unit:.3g}{name}"
    return f"{count:,}"
