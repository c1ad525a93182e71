"""Validation images that are training images as well: an accuracy on them says too much."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from evit_nas.data.images import Images, Source
from evit_nas.errors import first_few

LIMIT = 2**28  # bytes that are read at most: seconds, where the data are photographs by the ten thousand


@dataclass(frozen=True)
class _File:
    """Of an image."""

    index: int
    path: Path
    size: int
    """In bytes."""
    identity: tuple[int, int]
    """The same for every link to the file."""


def copies(train: Images, val: Images) -> dict[int, int]:
    """Images of `val` whose files are those of images of `train`, byte for byte: the index there for the index here.

    Links to one file are told without a look into it. Of other files only those of equal size are read; where they are
    more than LIMIT bytes, as in ImageNet, none is.
    """
    found: dict[int, int] = {}
    alike: list[tuple[list[_File], list[_File]]] = []
    originals = _by_size(train)
    for size, files in _by_size(val).items():
        links = {file.identity: file.index for file in originals[size]}
        found |= {file.index: links[file.identity] for file in files if file.identity in links}
        if links and (others := [file for file in files if file.identity not in links]):
            alike.append((others, originals[size]))
    if sum(file.size for group in alike for files in group for file in files) <= LIMIT:
        for ours, theirs in alike:
            digests = {_digest(file.path): file.index for file in theirs}
            found |= {file.index: digests[digest] for file in ours if (digest := _digest(file.path)) in digests}
    return dict(sorted(found.items()))


def said_copies(source: Source) -> str:
    """A sentence about validation images that are training images as well; empty if there are none."""
    if not (found := copies(source.train, source.val)):
        return ""
    pairs = (f"{source.val.name(index)} is {source.train.name(original)}" for index, original in found.items())
    return (
        f"{len(found)} of the {len(source.val)} validation images are training images too, byte for byte "
        f"({first_few(pairs, 3)}): remove one of each, or the accuracy says too much"
    )


def _by_size(images: Images) -> dict[int, list[_File]]:
    """Files of images by the size in bytes; empty ones are left out, which are no images."""
    sizes = defaultdict(list)
    for index in range(len(images)):
        path = images.file(index)
        with suppress(OSError):  # it cannot be read, which is said where it is tried
            if path is not None and (stat := path.stat()).st_size:
                sizes[stat.st_size].append(_File(index, path, stat.st_size, (stat.st_dev, stat.st_ino)))
    return sizes


def _digest(path: Path) -> bytes:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    except OSError:
        return str(path).encode(errors="surrogateescape")  # like no other
