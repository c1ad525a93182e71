"""Labelled images as they are stored, one at a time: what every kind of source provides."""

from __future__ import annotations

import hashlib
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from evit_nas.errors import UsageError, in_a_line

GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")
_DARK = 2**13  # of 16 bits: a picture below it keeps fewer than 32 of 256 grey levels
WARNED: dict[str, tuple[str, type[Warning]]] = {}  # what was warned of in this process: of which image, and the kind
HELD_OUT = 10  # one image in so many is for validation, where a source has no split of its own


class Images(ABC):
    """Pairs of an RGB image and its label by index."""

    def __init__(self, labels: np.ndarray) -> None:
        self.labels = labels.astype(np.int64)  # (N,)

    @abstractmethod
    def picture(self, index: int) -> Image.Image:
        """The image as it is stored, possibly not decoded yet, so that what ails it may show only later."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What a person calls this image: a path below the source, or a number."""

    def file(self, index: int) -> Path | None:
        """Where the image is stored, if that is a file of its own."""
        return None

    def __len__(self) -> int:
        return len(self.labels)

    @contextmanager
    def opened(self, index: int) -> Iterator[Image.Image]:
        """`picture`, closed at the end of the block; what is warned of in it is said with the name, and only once."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            with self.picture(index) as image:
                yield image
        for warning in caught:
            warn_once(self.name(index), str(warning.message), warning.category)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        with self.opened(index) as image:
            return in_mode(plain(image), "RGB"), int(self.labels[index])


def warn_once(name: str, text: str, category: type[Warning]) -> None:
    """Says with the `name` of an image what was warned of, if nothing has said it of another one."""
    if text not in WARNED:
        WARNED[text] = name, category
        # 5: past this, `opened`, contextlib and the `with` (mostly `__getitem__`) to whoever asked for the image
        warnings.warn(f"{name}: {text}", category, stacklevel=5)


class ArrayImages(Images):
    """Gray images that are an array (N, H, W) of uint8."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        super().__init__(labels)
        self.pixels = pixels

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])

    def name(self, index: int) -> str:
        return f"image {index}"


class ChosenImages(Images):
    """Some of other images."""

    def __init__(self, images: Images, indices: np.ndarray) -> None:
        super().__init__(images.labels[indices])
        self.images, self.indices = images, indices

    def picture(self, index: int) -> Image.Image:
        return self.images.picture(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.images.name(int(self.indices[index]))

    def file(self, index: int) -> Path | None:
        return self.images.file(int(self.indices[index]))


@dataclass(frozen=True, eq=False)
class Source:
    """A data set as it is stored, not decoded."""

    name: str
    location: str
    """Where it is and how it was split: two sources with the same location are versions of one data set."""
    stamp: Callable[[], str]
    """What it returns changes when the data do; it asks the system about every file, and raises as `stamp_of` does."""
    classes: tuple[str, ...]
    train: Images
    val: Images
    whole: Images | None = None
    """All of them, where they are a folder without a split of its own, of which a tenth was held out."""
    remarks: tuple[str, ...] = ()
    """What its user should know of it."""


def hold_out(
    images: Images, classes: tuple[str, ...], shuffled: Callable[[np.ndarray], np.ndarray]
) -> tuple[Images, Images]:
    """`images` in two: a tenth of every class, and at least one image of it, is for validation.

    Args:
        shuffled: brings the indices of a class into the order in which they are held out.

    Raises:
        UsageError: a class has a single image.
    """
    held = []
    for label, class_name in enumerate(classes):
        members = shuffled(np.flatnonzero(images.labels == label))
        if len(members) < 2:
            raise UsageError(
                f"class '{class_name}' must have at least 2 images, one of them for validation, got {len(members)}."
            )
        held.append(members[: max(1, len(members) // HELD_OUT)])
    val = np.sort(np.concatenate(held))
    train = np.setdiff1d(np.arange(len(images)), val)
    return ChosenImages(images, train), ChosenImages(images, val)


def plain(image: Image.Image) -> Image.Image:
    """`image` decoded and upright (EXIF), with 8 bits a channel and without alpha: mode L or RGB.

    It is `image` itself where that is so already: a copy of a photograph takes a third of the time of its decoding.

    Raises:
        ValueError: the pixels are floating-point numbers, whose range nobody knows.
    """
    image = _upright(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not known: scale them to 8 or 16 bits")
    if image.mode.startswith("I"):  # Pillow's own conversion cuts 16 bits off at 255
        return Image.fromarray(_eight_bits(np.asarray(image)))
    if image.mode == "P" and "transparency" in image.info:  # Pillow warns of the direct way
        image = image.convert("RGBA")
    return in_mode(image, "L" if image.mode in GRAY_MODES else "RGB")


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """`image` itself, if it has this mode: Pillow's own conversion copies it."""
    return image if image.mode == mode else image.convert(mode)


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    with suppress(Exception):  # whatever Pillow raises on damaged EXIF; the pixels have been read
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # Pillow copies what stands upright, too
            return ImageOps.exif_transpose(image)
    return image


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Of whole numbers from 0 to 65535."""
    if pixels.min() < 0 or pixels.max() > 65535:
        warnings.warn("pixels below 0 or above 65535 are cut off there: scale them to 16 bits", stacklevel=2)
    elif 0 < pixels.max() < _DARK:
        warnings.warn(
            f"16-bit pixels that stay below {_DARK} keep fewer than {_DARK // 256} of 256 grey levels: if no image is "
            "brighter, scale all of them by one factor",
            stacklevel=2,
        )
    eight: np.ndarray = (np.clip(pixels, 0, 65535) // 257).astype(np.uint8)  # 65535 = 255 * 257
    return eight


def reason(error: Exception) -> str:
    """Why an image cannot be read, in words.

    Args:
        error: as Pillow raised it.
    """
    if isinstance(error, UnidentifiedImageError):
        return "empty, damaged, or of a kind that Pillow does not read, as with many bands"
    if isinstance(error, Image.DecompressionBombError):
        return f"beyond Pillow's limit of {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels: shrink it, or cut it in tiles"
    return in_a_line(error).removesuffix(".") or type(error).__name__


def stamp_of(files: Iterable[Path]) -> str:
    """Changes when a file is added, removed, renamed or written (names, sizes and times; contents are not read).

    Raises:
        UsageError: one has gone since it was found.
    """
    stamp = hashlib.blake2b(digest_size=16)
    for path in sorted(files):
        try:
            stat = _stat(path)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
        stamp.update(os.fsencode(path) + f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return stamp.hexdigest()


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except OSError:
        return path.lstat()  # a link that leads nowhere is a file too
