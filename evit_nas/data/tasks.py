"""A generated data set: five visual skills with four classes each, for tests and trainings without any data.

Every picture is made on demand from its split and index alone, so the set is the same in every process. It is
synthetic: an accuracy on it says whether a network can learn, not how good it is on photographs.

    shape       which figure is drawn, among clutter
    texture     which pattern fills the picture
    jigsaw      in which order the quarters of a scene lie
    rotation    by how many quarter turns a scene is turned
    occlusion   which quarter of a scene is hidden behind a piece of another
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from evit_nas.data.images import Images, Source

SIDE = 64
COUNTS = {"train": 10_000, "val": 2_000}
_HALF = SIDE // 2
_VERSION = 1  # of the pictures; a new one makes cached ones void
_ROWS, _COLUMNS = np.mgrid[0:SIDE, 0:SIDE] / SIDE  # (H, W) each, in [0, 1)

_OUTLINES = (  # of a circle, a square, a triangle and a cross: corners as (part of a turn, distance from the centre)
    [(corner / 24, 1.0) for corner in range(24)],
    [(corner / 4, 1.0) for corner in range(4)],
    [(corner / 3, 1.0) for corner in range(3)],
    [(arm / 4 + turn, far) for arm in range(4) for turn, far in ((-0.045, 1.0), (0.045, 1.0), (0.125, 0.4))],
)
_ORDERS = ((0, 1, 2, 3), (1, 0, 3, 2), (2, 3, 0, 1), (3, 2, 1, 0))  # of the quarters, row by row
_QUARTERS = ((0, 0), (0, _HALF), (_HALF, 0), (_HALF, _HALF))  # their upper left corners


def shape(rng: np.random.Generator, kind: int) -> np.ndarray:
    """A circle, square, triangle or cross of any place, size, tilt and colour, with small lines around it."""
    image = Image.fromarray(_uint8(_blend(rng, _COLUMNS) * 0.5))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        start, step = rng.uniform(0, SIDE, 2), rng.uniform(-10, 10, 2)
        draw.line([*start, *(start + step)], fill=_colour(rng), width=2)
    radius, tilt = rng.uniform(0.15, 0.3) * SIDE, rng.uniform()
    x, y = rng.uniform(radius, SIDE - radius, 2)
    corners = [
        (x + radius * far * math.cos(math.tau * (turn + tilt)), y + radius * far * math.sin(math.tau * (turn + tilt)))
        for turn, far in _OUTLINES[kind]
    ]
    draw.polygon(corners, fill=_colour(rng))
    return np.asarray(image, np.float64)


def texture(rng: np.random.Generator, kind: int) -> np.ndarray:
    """Stripes, checks, dots or blobs of any scale, direction and pair of colours."""
    angle, waves = rng.uniform(0, math.tau), rng.uniform(4, 9)
    across = _COLUMNS * math.cos(angle) + _ROWS * math.sin(angle)
    along = _ROWS * math.cos(angle) - _COLUMNS * math.sin(angle)
    first, second = (np.sin(math.tau * (waves * way + rng.uniform())) for way in (across, along))
    if kind == 0:
        pattern = first
    elif kind == 1:
        pattern = first * second * 3
    elif kind == 2:
        pattern = first + second - 1
    else:
        coarse = Image.fromarray(rng.normal(size=(9, 9)).astype(np.float32))
        pattern = np.array(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float64) * 2
    return _blend(rng, 1 / (1 + np.exp(-4 * pattern)))  # with soft edges


def jigsaw(rng: np.random.Generator, kind: int) -> np.ndarray:
    """A scene cut in four and laid out in one of four orders, with a gap between the pieces."""
    whole = scene(rng)
    image = np.empty_like(whole)
    for target, source in enumerate(_ORDERS[kind]):
        _quarter(image, target)[:] = _quarter(whole, source)
    image[_HALF - 1 : _HALF + 1] = image[:, _HALF - 1 : _HALF + 1] = rng.uniform(0, 255)
    return image


def rotation(rng: np.random.Generator, kind: int) -> np.ndarray:
    """A scene after none to three quarter turns."""
    return np.rot90(scene(rng), kind)


def occlusion(rng: np.random.Generator, kind: int) -> np.ndarray:
    """A scene, one quarter of which shows a piece of another, which lies on its side."""
    image = scene(rng)
    _quarter(image, kind)[:] = _quarter(np.rot90(scene(rng)), int(rng.integers(4)))
    return image


TASKS: dict[str, tuple[Callable[[np.random.Generator, int], np.ndarray], tuple[str, ...]]] = {
    "shape": (shape, ("circle", "square", "triangle", "cross")),
    "texture": (texture, ("stripes", "checks", "dots", "blobs")),
    "jigsaw": (jigsaw, ("in place", "columns swapped", "rows swapped", "both swapped")),
    "rotation": (rotation, ("0", "90", "180", "270")),
    "occlusion": (occlusion, ("upper left", "upper right", "lower left", "lower right")),
}
CLASSES = tuple(f"{task}: {kind}" for task, (_, kinds) in TASKS.items() for kind in kinds)


def scene(rng: np.random.Generator) -> np.ndarray:
    """A landscape that has a top and a left: sky over ground, the sun at the left and a tower at the right."""
    sky, ground, tower = (np.array(_colour(rng)) * 0.6 for _ in range(3))
    horizon = rng.uniform(0.45, 0.65) + 0.04 * np.sin(math.tau * (2 * _COLUMNS + rng.uniform()))
    image = np.where((horizon > _ROWS)[..., None], sky + 90 * (1 - _ROWS[..., None]), ground)
    sun_y, sun_x = rng.uniform(0.12, 0.3), rng.uniform(0.12, 0.35)
    image[np.hypot(_ROWS - sun_y, _COLUMNS - sun_x) < rng.uniform(0.07, 0.12)] = (255, 235, 120)
    roof, left = rng.uniform(0.15, 0.35), rng.uniform(0.62, 0.78)
    in_tower = (roof < _ROWS) & (rng.uniform(0.7, 0.9) > _ROWS) & (np.abs(_COLUMNS - left) < rng.uniform(0.05, 0.1))
    image[in_tower] = tower
    return image


def render(split: str, index: int) -> np.ndarray:
    """Picture `index` of a split, of class `index` modulo the number of classes: (SIDE, SIDE, 3) uint8."""
    rng = np.random.default_rng([_VERSION, list(COUNTS).index(split), index])
    task, kind = divmod(index % len(CLASSES), 4)
    make, _ = list(TASKS.values())[task]
    return _uint8(make(rng, kind) + rng.normal(0, 12, (SIDE, SIDE, 3)))


class ProceduralImages(Images):
    """One split of the generated set."""

    def __init__(self, split: str) -> None:
        super().__init__(np.arange(COUNTS[split]) % len(CLASSES))
        self.split = split

    def picture(self, index: int) -> Image.Image:
        return Image.fromarray(render(self.split, index))

    def name(self, index: int) -> str:
        return f"{self.split} {index}"


def open_procedural() -> Source:
    """The generated set. It takes no seed: like a downloaded one it is the same for everyone."""
    return Source(
        "procedural", "procedural", lambda: str(_VERSION), CLASSES, ProceduralImages("train"), ProceduralImages("val")
    )


def _blend(rng: np.random.Generator, share: np.ndarray) -> np.ndarray:
    """(H, W, 3): `share` (H, W) of one colour, the rest of another."""
    first, second = np.array(_colour(rng)), np.array(_colour(rng))
    return np.asarray(second + share[..., None] * (first - second))


def _quarter(image: np.ndarray, number: int) -> np.ndarray:
    """A view of the quarter, (H / 2, W / 2, 3)."""
    top, left = _QUARTERS[number]
    return image[top : top + _HALF, left : left + _HALF]


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    """Any colour but dark ones."""
    red, green, blue = (int(value) for value in rng.integers(70, 256, 3))
    return red, green, blue


def _uint8(image: np.ndarray) -> np.ndarray:
    return np.asarray(np.clip(image, 0, 255), np.uint8)
