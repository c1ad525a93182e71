"""IDX files, the format of MNIST and its relatives: four files in a folder, gzipped or not.

A file is two zero bytes, a type (8 is uint8), the number of dimensions, each dimension as a big-endian uint32, and
then the values: as yann.lecun.com/exdb/mnist describes it.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from evit_nas.data.images import ArrayImages, Source, stamp_of
from evit_nas.errors import UsageError

_SPLITS = ("train", "t10k")
_KINDS = {"images-idx3-ubyte": 3, "labels-idx1-ubyte": 1}  # dimensions by kind of file
_UINT8 = 8


def is_idx_folder(folder: Path) -> bool:
    """Whether any of the four files is there."""
    return any(path.exists() for split in _SPLITS for kind in _KINDS for path in _forms(folder, split, kind))


def open_idx(folder: Path) -> Source:
    """The two splits in `folder`. A gzipped file is unpacked into memory (Fashion-MNIST: 55 MB), another is mapped.

    Raises:
        UsageError: a file is missing, is no IDX file of its kind or holds less or more than its header promises,
            images and labels are not equally many, or the test images have a class that the training images lack.
    """
    paths = {split: [_find(folder, split, kind) for kind in _KINDS] for split in _SPLITS}
    arrays = {split: [read_idx(*pair) for pair in zip(paths[split], _KINDS.values(), strict=True)] for split in paths}
    for split, (images, labels) in arrays.items():
        if len(images) != len(labels):
            names = " and ".join(path.name for path in paths[split])
            raise UsageError(f"{folder}: {names} must hold equally many, got {len(images)} and {len(labels)}.")
    labels_seen = np.unique(arrays["train"][1])
    if unknown := sorted(set(np.unique(arrays["t10k"][1])) - set(labels_seen)):
        raise UsageError(f"{paths['t10k'][1]}: label {unknown[0]} must be among the training labels, which lack it.")
    train, val = (
        ArrayImages(images, np.searchsorted(labels_seen, labels)) for images, labels in (arrays[s] for s in _SPLITS)
    )
    files = [path for pair in paths.values() for path in pair]
    classes = tuple(str(label) for label in labels_seen)
    return Source(folder.name, str(folder), lambda: stamp_of(files), classes, train, val)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array in an IDX file, memory-mapped unless it is gzipped.

    Raises:
        UsageError: see `open_idx`.
    """
    try:
        data = _gunzip(path) if path.suffix == ".gz" else np.memmap(path, np.uint8, "r")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UsageError(f"{path}: cannot be read ({error}). Copy it again from where it came.") from None
    magic = bytes([0, 0, _UINT8, dimensions])
    start = 4 + 4 * dimensions
    if len(data) < start or bytes(data[:4]) != magic:
        raise UsageError(
            f"{path}: must start with the bytes {magic.hex(' ')} and {dimensions} sizes of 4 bytes each, got "
            f"{bytes(data[:start]).hex(' ') or 'an empty file'}."
        )
    # Python's integers: the product of numpy's, of 32 bits, can wrap around
    shape = tuple(int(size) for size in np.frombuffer(data[4:start].tobytes(), ">u4"))
    if len(data) - start != math.prod(shape):
        raise UsageError(
            f"{path}: must hold {' x '.join(map(str, shape))} = {math.prod(shape)} bytes after its header, got "
            f"{len(data) - start}. Copy it again from where it came."
        )
    return data[start:].reshape(shape)


def _gunzip(path: Path) -> np.ndarray:
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8)


def _forms(folder: Path, split: str, kind: str) -> tuple[Path, Path]:
    return folder / f"{split}-{kind}", folder / f"{split}-{kind}.gz"


def _find(folder: Path, split: str, kind: str) -> Path:
    for path in _forms(folder, split, kind):
        if path.exists():
            return path
    raise UsageError(f"{folder}: an IDX data set must have the file {split}-{kind} (or {split}-{kind}.gz).")
