"""Real images through a network and its ONNX files: do they compute the same, and how often are they right?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evit_nas.data.cache import UNREADABLE, check_image_is_to_blame
from evit_nas.data.images import ChosenImages, Images, reason
from evit_nas.data.preprocessing import Preprocessing
from evit_nas.errors import UsageError
from evit_nas.exporting import open_onnx, relative_error, run_onnx

if TYPE_CHECKING:
    from evit_nas.network.model import EfficientViT

TORCH = "torch"
BLOCK = 8  # pixels; input sides are multiples of 16
BATCH = 50  # images the torch network takes at once; ONNX files take them one by one, as they are deployed


@dataclass(frozen=True)
class Comparison:
    """What a network and its graphs made of the same images."""

    images: int
    top1s: dict[str, float]
    """Accuracy in percent, of the network as "torch" and of each graph."""
    errors: dict[str, float]
    """Of each graph: largest output difference to the torch network, relative to the largest output of its batch."""


def some(images: Images, count: int, seed: int) -> Images:
    """At most `count` of `images`, chosen at random by `seed`."""
    return ChosenImages(images, np.random.default_rng(seed).permutation(len(images))[:count])  # fewer are part of more


def inputs(
    images: Images, preprocessing: Preprocessing, skip: Callable[[str], None] = lambda name: None
) -> Iterator[tuple[np.ndarray, int]]:
    """(1, C, H, W) float32 input and label of every image that can be read; `skip` is told the others and why.

    Raises:
        UsageError: none can be read, or it is the disk or the system that fails.
    """
    transform, empty = preprocessing.transform(), True
    for index in range(len(images)):
        try:
            image, label = images[index]
        except UNREADABLE as error:
            check_image_is_to_blame(error, images.name(index))
            skip(f"{images.name(index)} ({reason(error)})")
            continue
        empty = False
        yield transform(image).numpy()[None], label
    if empty:
        raise UsageError(f"none of the {len(images)} images can be read, {images.name(0)} for example: check the data.")


def probes(preprocessing: Preprocessing) -> np.ndarray:
    """(4, C, H, W) inputs that are the same everywhere, for where the data are not at hand: blocks of random colour.

    Their values are those of images. Noise in every pixel is so unlike one that 8 bits calibrated on images compute
    something else for it.
    """
    channels, height, width = preprocessing.input_size
    colours = np.random.default_rng(0).random((4, channels, height // BLOCK, width // BLOCK))
    pixels = np.kron(colours, np.ones((BLOCK, BLOCK)))
    mean, std = (np.array(values).reshape(-1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    images: np.ndarray = ((pixels - mean) / std).astype(np.float32)
    return images


def difference(model: EfficientViT, graph: Path, images: np.ndarray) -> float:
    """The largest output difference of an ONNX file to `model` on `images`, relative to the largest output."""
    import torch

    session = open_onnx(graph)
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    return relative_error(np.concatenate([run_onnx(session, image[None]) for image in images]), expected)


def compare(
    model: EfficientViT,
    graphs: Mapping[str, Any],
    images: Images,
    preprocessing: Preprocessing,
    skip: Callable[[str], None] = lambda name: None,
    most: int | None = None,
) -> Comparison:
    """Runs `images` through `model`, in eval mode, and through each of `graphs`, which are ONNX Runtime sessions.

    `skip` is told the names of the images that cannot be read; of those that can, the first `most` are taken.

    Raises:
        UsageError: see `inputs`.
    """
    import torch

    count, right, errors = 0, dict.fromkeys([TORCH, *graphs], 0), dict.fromkeys(graphs, 0.0)
    pairs = islice(inputs(images, preprocessing, skip), most)
    while chunk := list(islice(pairs, BATCH)):
        labels = np.array([label for _, label in chunk])
        with torch.inference_mode():
            expected = model(torch.from_numpy(np.concatenate([image for image, _ in chunk]))).numpy()
        outputs = {
            name: np.concatenate([run_onnx(graph, image) for image, _ in chunk]) for name, graph in graphs.items()
        }
        count += len(chunk)
        for name, output in ({TORCH: expected} | outputs).items():
            right[name] += int((output.argmax(axis=1) == labels).sum())
        # numpy's maximum keeps a NaN, which is no small error
        errors = {
            name: float(np.maximum(errors[name], relative_error(output, expected))) for name, output in outputs.items()
        }
    return Comparison(count, {name: 100 * found / count for name, found in right.items()}, errors)
