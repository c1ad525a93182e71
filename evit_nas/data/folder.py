"""Folders of pictures: a folder for each class, in one set or already split in two."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from evit_nas.data.images import Images, Source, hold_out, stamp_of
from evit_nas.errors import UsageError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
_VALIDATION = ("val", "validation", "test")  # the first that exists is taken


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
    """`root/train/CLASS/...` with val, validation or test beside train; or `root/CLASS/...`, a tenth of it held out.

    Raises:
        UsageError: there are fewer than two classes, a class has no picture (or one, where a tenth is held out), or
            the two splits differ in their classes.
    """
    validation = next((root / name for name in _VALIDATION if (root / name).is_dir()), None)
    if validation is None or not (root / "train").is_dir():
        files = _files_by_class(root)
        classes = tuple(files)
        train, val = hold_out(_images(root, files), classes, seed)
        location = f"{root} seed {seed}"
    else:
        files, val_files = _files_by_class(root / "train"), _files_by_class(validation)
        if different := sorted(files.keys() ^ val_files.keys()):
            raise UsageError(
                f"{root}: train and {validation.name} must have the same classes, but '{different[0]}' is in one only."
            )
        classes = tuple(files)
        train, val = _images(root, files), _images(root, val_files)
        location = str(root)
        files = {name: files[name] + val_files[name] for name in files}
    return Source(
        root.name, location, stamp_of(path for paths in files.values() for path in paths), classes, train, val
    )


def _files_by_class(folder: Path) -> dict[str, list[Path]]:
    """The picture files of every class below `folder`, however deep, sorted by name."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
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
