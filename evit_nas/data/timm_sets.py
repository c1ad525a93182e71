"""Data sets by the names that timm's factory knows: torchvision's (`torch/`) and Hugging Face's (`hfds/`).

Only what is on this machine already: nothing is downloaded. timm's streaming readers (tfds, wds, hfids) have no random
access and are left out. Where torchvision unpickles (CIFAR), it has compared the file with a published checksum before.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evit_nas.data.images import Images, Source, hold_out, stamp_of
from evit_nas.errors import UsageError, in_a_line

PREFIXES = ("torch/", "hfds/")
_ROOT = "data"  # torchvision's habit
_FOLDERS = ("torch/folder", "torch/image_folder")  # where timm finds no validation images it takes the training images
_MISSING = (RuntimeError, OSError, ValueError, AssertionError, ImportError)  # what timm and those below it raise


class TorchImages(Images):
    """A torchvision data set, which opens its images by itself."""

    def __init__(self, dataset: Any) -> None:
        super().__init__(np.asarray(dataset.targets))
        self.dataset = dataset

    def picture(self, index: int) -> Image.Image:
        image: Image.Image = self.dataset[index][0]
        return image

    def name(self, index: int) -> str:
        return f"image {index}"


class HuggingFaceImages(Images):
    """The reader below a timm data set: the data set itself would put another image in an unreadable one's place."""

    def __init__(self, reader: Any) -> None:
        super().__init__(np.asarray(list(reader.iter_targets())))
        self.reader = reader

    def picture(self, index: int) -> Image.Image:
        return Image.open(self.reader[index][0])

    def name(self, index: int) -> str:
        return f"{self.reader.split} {index}"


def open_timm(text: str, seed: int) -> Source:
    """`NAME` or `NAME@FOLDER`, for example `torch/cifar10@/data`; `seed` splits a set that has training images only.

    Raises:
        UsageError: timm does not know the name, the data are not on this machine, or they have no plain labels.
    """
    name, _, folder = text.partition("@")
    if name in _FOLDERS:
        raise UsageError(f"{text}: give the folder itself, {folder or _ROOT}: timm would validate on training images.")
    if name.startswith("torch/"):
        return _open_torch(name, Path(folder or _ROOT).resolve())
    return _open_hugging_face(name, folder or None, seed)


def _open_torch(name: str, root: Path) -> Source:
    sets = [_create(name, str(root), split) for split in ("train", "validation")]
    if not all(np.ndim(getattr(dataset, "targets", 0)) == 1 for dataset in sets):
        raise UsageError(f"{name}: the data set must list one label for each image. Make it a folder CLASS/* instead.")
    # torchvision's ImageNet has a tuple of synonyms for each class
    classes = tuple(label if isinstance(label, str) else label[0] for label in sets[0].classes)
    train, val = map(TorchImages, sets)
    own = _folder_of(sets[0], root)

    def stamp() -> str:
        return stamp_of(path for path in own.rglob("*") if path.is_file())

    return Source(name.replace("/", "-"), f"{name} in {root}", stamp, classes, train, val)


def _folder_of(dataset: Any, root: Path) -> Path:
    """The set's own folder, where torchvision gives it one: other sets lie beside it in `root`."""
    if hasattr(dataset, "raw_folder"):
        return Path(dataset.raw_folder).parent  # what was unpickled by torchvision's old versions is beside it
    return root / getattr(dataset, "base_folder", "")


def _open_hugging_face(name: str, root: str | None, seed: int) -> Source:
    os.environ["HF_DATASETS_OFFLINE"] = os.environ["HF_HUB_OFFLINE"] = "1"  # read when `datasets` is imported
    reader = _create(name, root, "train").reader
    classes = tuple(sorted(reader.class_to_idx, key=reader.class_to_idx.get))
    if not classes:
        raise UsageError(f"{name}: its column 'label' must be a ClassLabel, which says what the labels are called.")
    splits = reader.dataset.info.splits or {}
    validation = next((split for split in ("validation", "test") if split in splits), None)
    train: Images = HuggingFaceImages(reader)
    val: Images
    if validation is None:
        train, val = hold_out(train, classes, np.random.default_rng(seed).permutation)
    else:
        val = HuggingFaceImages(_create(name, root, validation).reader)
    files = [Path(file["filename"]) for file in reader.dataset.cache_files]
    return Source(name.replace("/", "-"), f"{name} in {root} seed {seed}", lambda: stamp_of(files), classes, train, val)


def _create(name: str, root: str | None, split: str) -> Any:
    from timm.data.dataset_factory import create_dataset

    where = root or "the Hugging Face cache"
    try:
        return create_dataset(name, root=root, split=split, download=False)
    except _MISSING as error:
        reason = in_a_line(error)
        raise UsageError(
            f"{name}: must be on this machine already, but timm cannot open it in {where} ({reason}). "
            f"Say where it lies with {name}@FOLDER, or get it with: {_how_to_get(name, root)}"
        ) from None


def _how_to_get(name: str, root: str | None) -> str:
    if name.startswith("torch/"):
        splits = f"[d({name!r}, root={root!r}, split=split, download=True) for split in ('train', 'validation')]"
        return f'python -c "from timm.data import create_dataset as d; {splits}"'
    where = f", cache_dir={root!r}" if root else ""
    return f'pip install datasets && python -c "import datasets; datasets.load_dataset({name[5:]!r}{where})"'
