"""From a shipped folder to answers, by ONNX Runtime, numpy and Pillow alone: where it runs, there need be no torch.

A picture comes to the network as it does in the folder's own predict.py, which holds the steps.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evit_nas.data.cache import UNREADABLE
from evit_nas.data.folder import SUFFIXES, pictures_below
from evit_nas.data.images import Images, reason
from evit_nas.errors import MeasurementError, UsageError, in_a_line
from evit_nas.files import expanded
from evit_nas.shipped import FP32, INT8, Shipped

STDIN = "-"  # as a picture's name


@dataclass(frozen=True)
class Answer:
    """What a network says to one picture."""

    image: str
    """Where the picture lies; - where it came on standard input."""
    classes: tuple[str, ...]
    """The most likely ones, the likeliest first."""
    probabilities: tuple[float, ...]
    """Of each of them, from 0 to 1."""
    ms: float
    """Time of this one inference, without reading the picture."""


class Pictures(Images):
    """Pictures that a user has named: files, and standard input as "-"; they have no labels."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__(np.zeros(len(names)))
        self.names = names

    def picture(self, index: int) -> Image.Image:
        name = self.names[index]
        return Image.open(io.BytesIO(sys.stdin.buffer.read()) if name == STDIN else name)

    def name(self, index: int) -> str:
        return self.names[index]


def find_pictures(names: Sequence[str]) -> Pictures:
    """What `names` stand for: files, "-", and of folders the pictures in them, however deep.

    Raises:
        UsageError: there is no such file, a folder has no pictures, or one of them cannot be read.
    """
    found: list[str] = []
    for name in names:
        try:
            found += [name] if name == STDIN else _pictures_of(name)
        except OSError as error:
            raise UsageError(f"{error.filename or name} cannot be read: {error.strerror}.") from None
    return Pictures(found)


def _pictures_of(name: str) -> list[str]:
    path = expanded(name)
    if not path.is_dir():
        if not path.exists():
            raise UsageError(f"there is no picture or folder {name}.")
        return [str(path)]
    inside = pictures_below(path)
    if not inside:
        raise UsageError(f"{name} must have pictures ({' '.join(SUFFIXES)}), found none.")
    return [str(picture) for picture in inside]


def answers(
    folder: Path,
    pictures: Pictures,
    *,
    top: int = 1,
    int8: bool = False,
    skip: Callable[[str], None] = lambda name: None,
    step: Callable[[int, int], None] = lambda done, total: None,
) -> list[Answer]:
    """What the network in the shipped `folder` says to each of the pictures that can be read, in their order.

    Args:
        top: how many classes to name, all if there are fewer.
        int8: whether the file in 8 bits answers.
        skip: told the names of pictures that cannot be read, and why.
        step: told how many pictures are done, of how many.

    Raises:
        UsageError: it is no shipped folder, it has no file in 8 bits, or ONNX Runtime cannot open the file.
        MeasurementError: what the network says is no number.
    """
    from evit_nas.shipping.predict import answer, prepared

    shipped = Shipped.load(folder)
    session = _session(folder, shipped, INT8 if int8 else FP32)
    steps = shipped.trained.preprocessing.model_dump()
    found = []
    for index in range(len(pictures)):
        name = pictures.name(index)
        try:
            pixels = prepared(pictures[index][0], **steps)
        except UNREADABLE as error:
            skip(f"{name} ({error.strerror if isinstance(error, OSError) and error.errno else reason(error)})")
        else:
            odds, ms = answer(session, pixels)
            if not np.isfinite(odds).all():
                raise MeasurementError(f"{folder}: what the network says to {name} is no number; it is damaged.")
            first = np.argsort(-odds, kind="stable")[:top]
            classes = tuple(shipped.trained.classes[place] for place in first)
            found.append(Answer(name, classes, tuple(odds[first].tolist()), ms))
        step(index + 1, len(pictures))
    return found


def rows(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """A row for each class that an answer names: image, rank (1 is the likeliest), class, probability, ms."""
    return [
        {"image": answer.image, "rank": rank, "class": name, "probability": probability, "ms": answer.ms}
        for answer in answers
        for rank, (name, probability) in enumerate(zip(answer.classes, answer.probabilities, strict=True), start=1)
    ]


def _session(folder: Path, shipped: Shipped, file: str) -> Any:
    from evit_nas.shipping.predict import opened

    if file not in shipped.graphs:
        raise UsageError(f"{folder} has no {file}: {shipped.int8_refusal.removesuffix('.')}.")
    try:
        # as many threads as its recorded latency was measured with
        return opened(folder / file, shipped.fp32.latency.conditions.threads)
    except Exception as error:  # ONNX Runtime has many
        raise UsageError(f"{folder / file}: ONNX Runtime cannot open it: {in_a_line(error, most=300)}") from None
