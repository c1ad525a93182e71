"""Validation images that are training images as well: an accuracy on them says too much."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from evit_nas.data.images import Images, Source

LIMIT = 2**28  # bytes that are read at most: seconds, where the data are photographs by the ten thousand
NAMED = 3  # pairs in a message


def copies(source: Source) -> dict[str, str]:
    """Validation images whose files are those of training images, byte for byte, by name, and what these are called.

    Only files of equal size are read. Where those are more than LIMIT bytes, as in ImageNet, none is looked at.
    """
    train, val = _by_size(source.train), _by_size(source.val)
    alike = train.keys() & val.keys()
    if sum(size * (len(train[size]) + len(val[size])) for size in alike) > LIMIT:
        return {}
    found = {}
    for size in alike:
        originals = {_digest(path): name for name, path in train[size]}
        for name, path in val[size]:
            if original := originals.get(_digest(path)):
                found[name] = original
    return dict(sorted(found.items()))


def said_copies(source: Source) -> str:
    """A sentence about them; empty if there are none."""
    if not (found := copies(source)):
        return ""
    pairs = [f"{name} is {original}" for name, original in found.items()]
    more = ", ..." if len(pairs) > NAMED else ""
    return (
        f"{len(found)} of the {len(source.val)} validation images are training images too, byte for byte "
        f"({', '.join(pairs[:NAMED])}{more}): remove one of each, or the accuracy says too much"
    )


def _by_size(images: Images) -> dict[int, list[tuple[str, Path]]]:
    """Names and files of images by the size in bytes; empty ones are left out, which are no images."""
    sizes = defaultdict(list)
    for index in range(len(images)):
        path = images.file(index)
        with suppress(OSError):  # it cannot be read, which is said where it is tried
            if path is not None and (size := path.stat().st_size):
                sizes[size].append((images.name(index), path))
    return sizes


def _digest(path: Path) -> bytes:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    except OSError:
        return str(path).encode(errors="surrogateescape")  # like no other
