"""From a stored image to a network's input, as it is deployed: the same for validation, calibration and the card."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from PIL import Image
from pydantic import BaseModel, ConfigDict

from evit_nas.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

# as a whole a strip of 4000 x 1 pixels took 1.05 GB at 224 px (docs/situations-data.md)
LONGEST = 16  # times its shorter side, that an image is resized at
CHANNELS = (1, 3)  # of images: what else a file holds (alpha, near infrared) is not read


class Preprocessing(BaseModel):
    """Resize, centre crop, scale to 0..1, normalise."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    input_size: tuple[int, int, int]
    """(channels, height, width)."""
    mean: tuple[float, ...]
    """Of each channel, with pixels from 0 to 1."""
    std: tuple[float, ...]
    """Of each channel."""
    interpolation: str = "bicubic"
    """Of the resize."""
    crop_pct: float = 0.875
    """Side of the centre crop as a share of the resized image: 224 of 256."""

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """From an RGB image to its normalised (C, H, W) input.

        Raises:
            UsageError: the input has other channels than images have.
        """
        from timm.data import create_transform

        if self.input_size[0] not in CHANNELS:
            raise UsageError(
                f"images are read in grey or in colour; a network of {self.input_size[0]} channels has none."
            )
        transform: Callable[[Image.Image], Tensor] = create_transform(
            self.input_size,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            normalize=True,
        )
        return partial(_of_middle, gray_first(transform) if self.input_size[0] == 1 else transform)

    def timm_config(self) -> dict[str, Any]:
        """The same under the names of timm's pretrained_cfg."""
        return self.model_dump(mode="json")


def gray_first(transform: Callable[[Image.Image], Tensor]) -> Callable[[Image.Image], Tensor]:
    """`transform` of the image without its colours, for networks of one channel.

    It can be pickled, as processes that load images need it where they are not forked.
    """
    return partial(_of_gray, transform)


def _of_middle(transform: Callable[[Image.Image], Tensor], image: Image.Image) -> Tensor:
    """`transform`, which ends with a centre crop, of what that can see: a strip resized whole may take gigabytes."""
    width, height = image.size
    longest = LONGEST * min(width, height)
    if max(width, height) > longest:
        left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
        image = image.crop((left, top, left + min(width, longest), top + min(height, longest)))
    return transform(image)


def _of_gray(transform: Callable[[Image.Image], Tensor], image: Image.Image) -> Tensor:
    return transform(image.convert("L"))
