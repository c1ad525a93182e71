"""Decodes a source once and keeps the result on disk, from where trainings map it into memory.

An entry is a folder that appears under its name only when it is whole, so a killed decode leaves nothing that is
believed. One process decodes while others that want the same entry wait; the lock is the operating system's.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import struct
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from evit_nas.caches import cache_folder
from evit_nas.data.copies import said_copies
from evit_nas.data.dataset import Dataset, Split, check_channels
from evit_nas.data.images import GRAY_MODES, WARNED, Images, Source, in_mode, plain, reason, warn_once
from evit_nas.data.sources import open_source
from evit_nas.errors import EvitNasError, UsageError, first_few
from evit_nas.workers import end, worker_pool

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)  # from Pillow
_BROKEN = (None, errno.EINVAL)  # numbers of an OSError about one image: Pillow's own, and a seek to before its start
_VERSION = 1  # of what is done to an image; a new one makes old entries void
_FEW = 2000  # images that one process decodes: others take seconds to begin
_PART = 64  # images that a process decodes at a time
_taken: Callable[[range], list[bytes | str]]  # of a process that decodes for another one


def load_dataset(
    source: str,
    image_size: int,
    *,
    channels: int | None = None,
    note: Callable[[str], None] = lambda message: None,
    step: Callable[[str, int, int], None] = lambda what, done, total: None,
    workers: int = 0,
) -> Dataset:
    """The data set that `source` names (see `open_source`), with square images of `image_size` pixels.

    The shorter side is resized to `image_size`, and the centre is kept. The first call decodes every image into the
    user's cache folder (C · image_size² bytes each), the next ones map it, unless a file of the source has changed
    since. `channels` is what the networks take, if that is known. `note` is told about decoding, skipped images and
    whatever else is odd, `step` how many images are decoded. Where they are many, `workers` processes decode them, to
    the same bytes.

    Raises:
        UsageError: the source cannot be used, no image of some class can be read, the system fails to read one, or
            `channels` do not fit.
        EvitNasError: a process that decodes died.
    """
    if image_size < 1:
        raise UsageError(f"image_size must be at least 1 pixel, got {image_size}.")
    opened = open_source(source)
    stamp = f"{_VERSION} {opened.stamp()}"
    entry = _entry(opened, image_size)
    try:
        with _locked(entry, lambda: note(f"waiting for another process that decodes {opened.name}")):
            dataset = _read(entry, opened, image_size, stamp)
            if dataset is None:
                total = len(opened.train) + len(opened.val)
                note(f"decoding {opened.name} to {image_size} px: {total} images, this once")
                if repeated := said_copies(opened):
                    note(f"{opened.name}: {repeated}")
                _write(entry, opened, image_size, stamp, channels, partial(step, f"decoding {opened.name}"), workers)
                dataset = _read(entry, opened, image_size, stamp)
    except OSError as error:
        raise UsageError(
            f"cannot keep decoded images in {entry.parent}: {error.strerror}. Choose another place with XDG_CACHE_HOME."
        ) from None
    if dataset is None:
        raise UsageError(f"{entry} does not keep what is written to it. Choose another place with XDG_CACHE_HOME.")
    if channels is not None:
        check_channels(dataset.train.images.shape[3], channels)
    for remark in opened.remarks:
        note(f"{opened.name}: {remark}")
    if dataset.skipped:
        listed = first_few(f"{name} ({why})" for name, why in dataset.skipped.items())
        note(f"{opened.name}: skipped {len(dataset.skipped)} unreadable of its images: {listed}")
    return dataset


def kept_dataset(digest: str, image_size: int) -> Dataset | None:
    """The data set of this digest and size, mapped, if its images lie decoded in the user's cache folder; else None.

    Where they came from is not looked at, which takes minutes for millions of files: it is for the workers of a command
    that has just done it.
    """
    for path in sorted((cache_folder() / "data").glob(f"*-{image_size}-*/meta.json")):
        with suppress(Exception):  # damaged, or of an earlier version, which wrote no names
            meta = json.loads(path.read_text(encoding="utf-8"))
            if meta["digest"] != digest:
                continue
            dataset = _mapped(path.parent, image_size, meta, meta["name"], tuple(meta["classes"]))
            if json.loads(path.read_text(encoding="utf-8")) == meta:  # no other process has replaced it meanwhile
                return dataset
    return None


def _entry(source: Source, image_size: int) -> Path:
    location = hashlib.blake2b(os.fsencode(source.location), digest_size=6).hexdigest()
    return cache_folder() / "data" / f"{source.name[:64]}-{image_size}-{location}"


@contextmanager
def _locked(entry: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    entry.parent.mkdir(parents=True, exist_ok=True)
    with entry.with_name(f"{entry.name}.lock").open("w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _read(entry: Path, source: Source, image_size: int, stamp: str) -> Dataset | None:
    """What `_write` left; None if there is nothing, something of an older state of the source, or something damaged.

    Only shapes and labels are looked at: reading every pixel would take as long as training on them.
    """
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        if meta["stamp"] != stamp:
            return None
        return _mapped(entry, image_size, meta, source.name, source.classes)
    except FileNotFoundError:
        return None
    except OSError:
        raise  # of the system, not of what is in the files: `load_dataset` says it
    except Exception:  # whatever json and numpy raise on a damaged file
        return None


def _mapped(entry: Path, image_size: int, meta: dict[str, Any], name: str, classes: tuple[str, ...]) -> Dataset:
    train, val = (_map(entry, split, image_size, len(classes)) for split in ("train", "val"))
    return Dataset(name, classes, train, val, dict(meta["skipped"]), str(meta["digest"]))


def _map(entry: Path, split: str, image_size: int, classes: int) -> Split:
    """
    Raises:
        ValueError: the files do not hold what `_write` puts there.
    """
    images, labels = np.load(entry / f"{split}-images.npy", mmap_mode="r"), np.load(entry / f"{split}-labels.npy")
    square = images.ndim == 4 and images.shape[1:3] == (image_size, image_size) and images.shape[3] in (1, 3)
    if not square or images.dtype != np.uint8 or labels.dtype != np.int64 or labels.shape != images.shape[:1]:
        raise ValueError
    if not np.array_equal(np.unique(labels), np.arange(classes)):
        raise ValueError
    return Split(images, labels)


def _write(
    entry: Path,
    source: Source,
    image_size: int,
    stamp: str,
    channels: int | None,
    step: Callable[[int, int], None],
    workers: int,
) -> None:
    """Decodes `source` into `entry`, if it fits networks of so many `channels`."""
    mode = _mode(source)
    if channels is not None:
        check_channels(len(mode), channels)
    scratch = entry.with_name(f"{entry.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed: the lock is ours
    scratch.mkdir()
    digest = hashlib.blake2b(os.fsencode("\0".join(source.classes)), digest_size=6)
    skipped: dict[str, str] = {}
    done, total = 0, len(source.train) + len(source.val)
    for split, images in (("train", source.train), ("val", source.val)):
        read = []
        decode = partial(_decode, images, source.name, image_size, mode)
        with (scratch / f"{split}-images.npy").open("wb") as file, closing(_in_order(decode, images, workers)) as found:
            _write_header(file, (0, image_size, image_size, len(mode)))
            for index, pixels in enumerate(found):
                step(done := done + 1, total)
                if isinstance(pixels, str):
                    skipped[images.name(index)] = pixels
                    continue
                file.write(pixels)
                digest.update(pixels)
                read.append(index)
            file.seek(0)
            _write_header(file, (len(read), image_size, image_size, len(mode)))  # how many is known only now
        labels = images.labels[read]
        _check_every_class(source, split, labels)
        np.save(scratch / f"{split}-labels.npy", labels)
        digest.update(labels.tobytes())
    names = {"name": source.name, "classes": source.classes}
    meta = names | {"stamp": stamp, "skipped": skipped, "digest": digest.hexdigest()}
    (scratch / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    for path in scratch.iterdir():
        _sync(path)  # before the rename: a power cut must not leave a named entry of empty files
    (entry / "meta.json").unlink(missing_ok=True)  # before the rest, which is not believed without it
    shutil.rmtree(entry, ignore_errors=True)  # whoever has mapped the old images keeps them
    scratch.rename(entry)


def _decode(images: Images, name: str, side: int, mode: str, indices: range) -> list[bytes | str]:
    """The pixels of some images, or why one cannot be read."""
    found: list[bytes | str] = []
    for index in indices:
        try:
            with images.opened(index) as image:
                found.append(to_square(image, side, mode).tobytes())
        except UNREADABLE as error:
            check_image_is_to_blame(error, f"{name}: {images.name(index)}")
            found.append(reason(error))
    return found


def _in_order(decode: Callable[[range], list[bytes | str]], images: Images, workers: int) -> Generator[bytes | str]:
    """What `decode` makes of each of the images, here or by processes that end when this is closed."""
    parts = [range(start, min(start + _PART, len(images))) for start in range(0, len(images), _PART)]
    if workers < 2 or len(images) <= _FEW:
        yield from chain.from_iterable(map(decode, parts))
        return
    pool = worker_pool(workers, ready=partial(_take, decode))
    try:
        for found, warned in pool.map(_decode_taken, parts):
            for text, (name, category) in warned:
                warn_once(name, text, category)
            yield from found
    except BrokenProcessPool:
        raise EvitNasError(
            "a process that decodes images died, perhaps for want of memory. Run the same command again, with fewer "
            "--workers if it dies again."
        ) from None
    finally:
        end(pool)


def _take(decode: Callable[[range], list[bytes | str]]) -> None:
    """What this process is for: sent once, for it knows the names of all images."""
    global _taken
    _taken = decode
    warnings.simplefilter("ignore")  # the process that asks says them: each of these would


def _decode_taken(indices: range) -> tuple[list[bytes | str], list[tuple[str, tuple[str, type[Warning]]]]]:
    """And what was warned of for the first time."""
    before = len(WARNED)
    return _taken(indices), list(WARNED.items())[before:]


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> None:
    """The header of a .npy file; numpy leaves room for any first dimension, so that it can be written over."""
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def to_square(image: Image.Image, side: int, mode: str) -> np.ndarray:
    """The centre of `image`, resized and antialiased: (side, side, C) uint8 with C = 1 for mode L, 3 for RGB."""
    image.draft(None, (2 * side, 2 * side))  # a JPEG is decoded no finer than that; no effect on others
    image = in_mode(plain(image), mode)
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    square = image.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + short, top + short))
    return np.asarray(square).reshape(side, side, len(mode))


def _mode(source: Source) -> str:
    """ "L" if every readable image is gray, else "RGB"; only headers are read, and none after the first in colour."""
    for images in (source.train, source.val):
        for index in range(len(images)):
            try:
                with images.opened(index) as image:
                    if image.mode not in GRAY_MODES:
                        return "RGB"
            except UNREADABLE as error:
                check_image_is_to_blame(error, f"{source.name}: {images.name(index)}")
    return "L"


def why_unreadable(images: Images, indices: Iterable[int]) -> str:
    """The first few images that a loader could not read, by name, and why: they are read once more."""
    return first_few(f"{images.name(index)} ({_why(images, index)})" for index in indices)


def _why(images: Images, index: int) -> str:
    try:
        images[index]
    except UNREADABLE as error:
        return reason(error)
    return "it can be read again"


def check_image_is_to_blame(error: Exception, name: str) -> None:
    """An image is left out for good; a disk or a system that fails would have all that follow left out too.

    Args:
        error: one of `UNREADABLE`, as it came from reading the image.
        name: of the image, for people.

    Raises:
        UsageError: it is the disk or the system that fails.
    """
    if isinstance(error, OSError) and error.errno not in _BROKEN:
        raise UsageError(f"{name} cannot be read: {error.strerror}. Put that right, and try again.")


def _check_every_class(source: Source, split: str, labels: np.ndarray) -> None:
    missing = np.setdiff1d(np.arange(len(source.classes)), labels)
    if len(missing):
        raise UsageError(
            f"{source.name}: every class must have a readable {split} image, '{source.classes[missing[0]]}' has none."
        )


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
