"""Folders of pictures: a folder for each class, in one set or already split in two."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from evit_nas.data.images import Images, Source, hold_out, stamp_of
from evit_nas.errors import UsageError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_TRAINING = ("train", "training")  # in any case, as those of validation
_VALIDATION = ("val", "valid", "validation", "test", "testing")  # the first that exists is taken
NAMED = 5  # folders in a message
_VERSION = 2  # of how a tenth is held out; a new one makes cached images void


class FolderImages(Images):
    """Picture files below one folder."""

    def __init__(self, root: Path, paths: list[Path], labels: np.ndarray) -> None:
        super().__init__(labels)
        self.root, self.paths = root, paths

    def picture(self, index: int) -> Image.Image:
        path = self.paths[index]
        if path.is_symlink() and not path.exists():
            raise ValueError("a link that leads nowhere")
        return Image.open(path)

    def name(self, index: int) -> str:
        return os.fsencode(self.paths[index].relative_to(self.root)).decode(errors="replace")


def open_folder(root: Path, seed: int) -> Source:
    """`root/train/CLASS/...` with val, valid, validation or test beside train; or `root/CLASS/...`, a tenth held out.

    Raises:
        UsageError: there are fewer than two classes, a class has no picture (or one, where a tenth is held out), the
            two splits differ in their classes, or the folders are parts of a data set rather than classes.
    """
    folders = {path.name.lower(): path for path in _folders(root)}
    training, validation = (
        next((folders[name] for name in names if name in folders), None) for names in (_TRAINING, _VALIDATION)
    )
    if training is None or validation is None:
        return _open_whole(root, seed)
    return _open_split(root, training, validation)


def _open_whole(root: Path, seed: int) -> Source:
    files = _files_by_class(root)
    _check_classes(root, files)
    images, classes = _images(root, files), tuple(files)

    def place(index: int) -> bytes:
        return hashlib.blake2b(f"{seed} {images.name(index)}".encode(), digest_size=8).digest()

    # by their names: of images that a network was trained on, few are held out when others come or go
    train, val = hold_out(images, classes, lambda members: np.array(sorted(members.tolist(), key=place)))
    stamp = f"{_VERSION} {stamp_of(images.paths)}"
    return Source(root.name, f"{root} seed {seed}", stamp, classes, train, val)


def _open_split(root: Path, training: Path, validation: Path) -> Source:
    files, val_files = _files_by_class(training), _files_by_class(validation)
    if different := sorted(files.keys() ^ val_files.keys()):
        raise UsageError(
            f"{root}: {training.name} and {validation.name} must have the same classes, but '{different[0]}' is in one "
            "only."
        )
    train, val = _images(root, files), _images(root, val_files)
    return Source(root.name, str(root), stamp_of(train.paths + val.paths), tuple(files), train, val)


def _check_classes(root: Path, files: Mapping[str, Sequence[Path]]) -> None:
    """Refuses parts of a data set under unknown names: they would be taken for classes."""
    inner = []
    for name, paths in files.items():
        if any(path.parent == root / name for path in paths):
            return
        inner.append({path.relative_to(root / name).parts[0] for path in paths})
    if len(inner[0]) > 1 and all(names == inner[0] for names in inner):
        raise UsageError(
            f"{root}: must hold classes, or train and val; its {', '.join(files)} look like parts of a data set: each "
            f"has the folders {', '.join(sorted(inner[0])[:NAMED])} and no pictures beside them. Call two of them "
            "train and val, or name one of them."
        )


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files_by_class(folder: Path) -> dict[str, list[Path]]:
    """The picture files of every class below `folder`, however deep, sorted by name."""
    classes = _folders(folder)
    if len(classes) < 2:
        found = classes[0].name if classes else "none"
        raise UsageError(
            f"{folder}: must hold a folder of pictures for each of at least two classes, found {found}. Other forms: "
            "train/CLASS/ with val/CLASS/ beside it, or the four files of an IDX data set."
        )
    files = {}
    for path in classes:
        files[path.name] = sorted(
            Path(place, name)
            for place, _, names in os.walk(path, onerror=_refuse)
            for name in names
            if name.lower().endswith(SUFFIXES) and not name.startswith(".")
        )
        if not files[path.name]:
            raise UsageError(f"{path}: a class must have pictures ({' '.join(SUFFIXES)}), found none.")
    return files


def _refuse(error: OSError) -> None:
    raise error


def _images(root: Path, files: dict[str, list[Path]]) -> FolderImages:
    labels = np.repeat(np.arange(len(files)), [len(paths) for paths in files.values()])
    return FolderImages(root, [path for paths in files.values() for path in paths], labels)
