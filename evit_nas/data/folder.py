"""Folders of pictures: a folder for each class, in one set or already split in two."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image

from evit_nas.data.images import Images, Source, hold_out, stamp_of
from evit_nas.errors import UsageError, first_few

SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo", ".pbm", ".pgm", ".png", ".pnm"),
    *(".ppm", ".tif", ".tiff", ".webp"),
)
_TRAINING = ("train", "training")  # in any case, as those of validation
_VALIDATION = ("val", "valid", "validation", "test", "testing")  # the first that has classes is taken
_SYSTEM = (  # what macOS, Windows and network drives leave in a folder, in any case, thumbnails of its pictures too
    *("__macosx", "@eadir", "#recycle", "@recycle", "$recycle.bin", "system volume information", "lost+found"),
    *("thumbs.db", "desktop.ini"),
)
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".xml", ".parquet")  # where labels may be, which are not read
_VERSION = 2  # of how a tenth is held out; a new one makes cached images void


class FolderImages(Images):
    """Picture files below one folder, with whose path theirs begin."""

    def __init__(self, root: Path, paths: list[Path], labels: np.ndarray) -> None:
        super().__init__(labels)
        self.root = root
        start = len(os.path.join(os.fsencode(root), b""))
        # one array: 1.28 million Path objects are 0.6 GB, in every process that loads images
        self._names = np.array([os.fsencode(path)[start:] for path in paths], np.bytes_)

    def picture(self, index: int) -> Image.Image:
        path = self.file(index)
        if path.is_symlink() and not path.exists():
            # the OSError of opening it would be taken for a failing disk, which ends everything
            raise ValueError("a link that leads nowhere")
        return Image.open(path)

    def file(self, index: int) -> Path:
        return self.root / os.fsdecode(self._names[index])

    def files(self) -> Iterator[Path]:
        """All of them."""
        return map(self.file, range(len(self)))

    def name(self, index: int) -> str:
        return bytes(self._names[index]).decode(errors="replace")  # it need not be UTF-8


@dataclass
class _Class:
    """The files of one class."""

    pictures: list[Path] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    """Files that are no pictures, by suffix."""


def open_folder(root: Path, seed: int) -> Source:
    """`root/train/CLASS/...` with val, valid, validation or test beside train; or `root/CLASS/...`, a tenth held out.

    A tenth is held out of `root/train/CLASS/...`, too, where nothing beside it has classes. What is hidden, by its name
    or as systems hide it, is no data. Links are followed, but no class has the same folder twice.

    Raises:
        UsageError: there are fewer than two classes, a class has no picture (or one, where a tenth is held out), the
            two splits differ in their classes, or the folders are parts of a data set rather than classes.
    """
    folders = {path.name.lower(): path for path in _folders(root)}
    training = next((folders[name] for name in _TRAINING if name in folders), None)
    candidates = [folders[name] for name in _VALIDATION if name in folders]
    validation = next((path for path in candidates if _folders(path)), None)
    if training is None or not (candidates or _holds_classes(training)):
        return _open_whole(root, root, seed)
    if validation is not None:
        return _open_split(root, training, validation)
    others = [path for path in folders.values() if path not in (training, *candidates)]
    strange = [path.name for path in others if _pictures(path) or _folders(path)]
    if strange:
        raise UsageError(
            f"{root}: {training.name} holds folders as a training set does, but what {first_few(strange)} beside it "
            f"are for is not known. Name {training} instead, or call the folder with the validation images val."
        )
    left_out = [f"{path} has no folder for each class and is left out" for path in candidates]
    return _open_whole(root, training, seed, left_out)


def pictures_below(folder: Path) -> list[Path]:
    """The pictures in `folder`, however deep, sorted: files with one of `SUFFIXES` that are not hidden.

    Raises:
        OSError: a folder cannot be read.
    """
    found = _Class()
    _collect(folder, found)
    return found.pictures


def _open_whole(root: Path, folder: Path, seed: int, remarks: Sequence[str] = ()) -> Source:
    """The classes in `folder`, which is `root` or the training set in it."""
    files = _files_by_class(folder)
    _check_classes(folder, files)
    images, classes = _images(folder, files), tuple(files)

    def place(index: int) -> bytes:
        return hashlib.blake2b(f"{seed} {images.name(index)}".encode(), digest_size=8).digest()

    # by their names: of images that a network was trained on, few are held out when others come or go
    train, val = hold_out(images, classes, lambda members: np.array(sorted(members.tolist(), key=place)))
    remarks = (*remarks, *_left_out(files.values()))

    def stamp() -> str:
        return f"{_VERSION} {stamp_of(images.files())}"

    return Source(root.name, f"{folder} seed {seed}", stamp, classes, train, val, whole=images, remarks=remarks)


def _open_split(root: Path, training: Path, validation: Path) -> Source:
    files, val_files = _files_by_class(training), _files_by_class(validation)
    if different := sorted(files.keys() ^ val_files.keys()):
        raise UsageError(
            f"{root}: {training.name} and {validation.name} must have the same classes, but '{different[0]}' is in one "
            "only."
        )
    train, val = _images(root, files), _images(root, val_files)
    remarks = tuple(_left_out([*files.values(), *val_files.values()]))

    def stamp() -> str:
        return stamp_of(chain(train.files(), val.files()))

    return Source(root.name, str(root), stamp, tuple(files), train, val, remarks=remarks)


def _check_classes(root: Path, files: Mapping[str, _Class]) -> None:
    """Refuses parts of a data set under unknown names, and a copy of all in itself: they would be taken for classes."""
    inner = {}  # folders of the classes that have no picture of their own
    for name, found in files.items():
        below = (path.relative_to(root).parts[1:] for path in found.pictures)
        if all(len(parts) > 1 for parts in below):
            inner[name] = {path.relative_to(root).parts[1] for path in found.pictures}
    for name, folders in inner.items():
        if len(folders) > 1 and folders <= files.keys():
            raise UsageError(
                f"{root / name}: a class must hold pictures, this one holds {first_few(sorted(folders))}, which are "
                f"classes beside it: a copy of the data in itself? Remove it, or name {root / name} instead."
            )
    if len(inner) < len(files):
        return
    first = next(iter(inner.values()))
    if len(first) > 1 and all(folders == first for folders in inner.values()):
        raise UsageError(
            f"{root}: must hold classes, or train and val; its {', '.join(files)} look like parts of a data set: each "
            f"has the folders {first_few(sorted(first))} and no pictures beside them. Call two of them train and val, "
            "or name one of them."
        )


def _folders(folder: Path) -> list[Path]:
    """The folders in `folder` that may be data, sorted; no link that leads back to where `folder` is."""
    real = folder.resolve()
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_dir()
        and not _is_hidden(path.name)
        and not (path.is_symlink() and real.is_relative_to(path.resolve()))
    )


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in _SYSTEM


def _is_picture(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def _pictures(folder: Path) -> list[str]:
    """Names of the pictures that lie in `folder` itself."""
    return [path.name for path in folder.iterdir() if _is_picture(path.name) and not _is_hidden(path.name)]


def _holds_classes(folder: Path) -> bool:
    """Whether it has folders and no picture beside them, which a class of its own name has."""
    return bool(_folders(folder)) and not _pictures(folder)


def _files_by_class(folder: Path) -> dict[str, _Class]:
    """The files of every class below `folder`, however deep, sorted by name.

    Class names are in Unicode's composed form: file systems differ in which of two forms of one name they keep.
    """
    folders = _folders(folder)
    files: dict[str, _Class] = {}
    for path in folders:
        _collect(path, files.setdefault(unicodedata.normalize("NFC", path.name), _Class()))
    if len(files) < 2:
        raise UsageError(f"{folder}: {_too_few(folder, folders)}")
    for path in folders:
        found = files[unicodedata.normalize("NFC", path.name)]
        if not found.pictures:
            raise UsageError(
                f"{path}: a class must have pictures ({' '.join(SUFFIXES)}), found {_counted(found.others) or 'none'}. "
                "Convert them to one of these, or remove the folder."
            )
    return files


def _collect(folder: Path, found: _Class) -> None:
    """Adds the files below `folder` to `found`. Links are followed, but into no folder twice, nor back to a parent."""
    seen = {_identity(path) for path in folder.resolve().parents}
    for place, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        if (identity := _identity(place)) in seen:
            folders.clear()
            continue
        seen.add(identity)
        folders[:] = sorted(name for name in folders if not _is_hidden(name))  # of two ways to one folder the first
        for name in names:
            if _is_hidden(name):
                continue
            if _is_picture(name):
                found.pictures.append(Path(place, name))
            else:
                found.others[Path(name).suffix.lower() or name] += 1
    found.pictures.sort()


def _identity(path: str | Path) -> tuple[int, int]:
    stat = os.stat(path)
    return stat.st_dev, stat.st_ino


def _too_few(folder: Path, classes: Sequence[Path]) -> str:
    """What is wrong with a folder that does not have two classes, and what its user may have meant."""
    found = classes[0].name if classes else "none"
    hint = ""
    if tables := sorted(path.name for path in folder.iterdir() if path.suffix.lower() in _TABLES):
        hint = f" Labels are not read from files such as {tables[0]}: sort the pictures into a folder for each class."
    if classes and len(_folders(classes[0])) > 1:
        hint = f" Did you mean {classes[0]}?"
    return (
        f"must hold a folder of pictures for each of at least two classes, found {found}.{hint} Other forms: "
        "train/CLASS/ with val/CLASS/ beside it, or the four files of an IDX data set."
    )


def _left_out(classes: Iterable[_Class]) -> list[str]:
    others = sum((found.others for found in classes), Counter[str]())
    return [f"left out what is no picture: {_counted(others)}"] if others else []


def _counted(others: Counter[str]) -> str:
    return first_few([f"{count} {suffix}" for suffix, count in others.most_common()])


def _refuse(error: OSError) -> None:  # os.walk by itself passes over folders that it cannot read
    raise error


def _images(root: Path, files: Mapping[str, _Class]) -> FolderImages:
    labels = np.repeat(np.arange(len(files)), [len(found.pictures) for found in files.values()])
    return FolderImages(root, [path for found in files.values() for path in found.pictures], labels)
