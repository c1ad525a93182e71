"""From what a user writes after `--data` to a source."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from evit_nas.data.folder import open_folder
from evit_nas.data.idx import is_idx_folder, open_idx
from evit_nas.data.images import ArrayImages, Source, hold_out
from evit_nas.data.once import opened
from evit_nas.data.tasks import open_procedural
from evit_nas.data.timm_sets import PREFIXES, open_timm
from evit_nas.errors import UsageError
from evit_nas.files import located

SPLIT_SEED = 0  # of the tenth held out: all that trains, judges or ships must hold out the same images
FORMS = (
    "a folder train/CLASS/* with val/CLASS/* beside it, a folder CLASS/*, a folder with the four IDX files of MNIST or "
    "a relative, torch/NAME@FOLDER or hfds/NAME as timm knows them, digits (scikit-learn's), procedural (generated)"
)


def open_source(text: str, seed: int = SPLIT_SEED) -> Source:
    """The data set that `text` names: one of `FORMS`. A folder goes before a built-in set of its name.

    `seed` chooses the tenth that is held out for validation where the data come without a split. Within a command it is
    looked for once (see `opened_once`).

    Raises:
        UsageError: there is none, or it cannot be used; the message says why.
    """
    known, key = opened(), (located(text), seed)
    if key not in known:
        known[key] = _found(text, seed)
    return known[key]


def _found(text: str, seed: int) -> Source:
    if text in BUILT_IN and not Path(text).is_dir():
        return BUILT_IN[text](seed)
    try:
        path = Path(text).expanduser().resolve()
    except RuntimeError as error:  # a user without a home, or links in a circle
        raise UsageError(f"{text}: no such data: {error}") from None
    try:
        return _open(text, path, seed)
    except OSError as error:
        raise UsageError(f"{text}: {error.filename or 'it'} cannot be read: {error.strerror}.") from None


def _open(text: str, path: Path, seed: int) -> Source:
    if path.is_dir():
        return open_idx(path) if is_idx_folder(path) else open_folder(path, seed)
    if text.startswith(PREFIXES):
        return open_timm(text, seed)
    if path.exists():
        raise UsageError(f"{text}: data must be a folder or a name, not a file. Data can be {FORMS}.")
    raise UsageError(f"{text}: no such data.{_nearest(text, path)} Data can be {FORMS}.")


def _open_digits(seed: int) -> Source:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels, which come with the package."""
    import sklearn
    from sklearn.datasets import load_digits

    bundled = load_digits()
    classes = tuple(str(name) for name in bundled.target_names)
    pixels = (bundled.images * (255 / 16)).astype("uint8")  # 16 is white
    images = ArrayImages(pixels, bundled.target)
    train, val = hold_out(images, classes, np.random.default_rng(seed).permutation)
    return Source("digits", f"digits seed {seed}", lambda: sklearn.__version__, classes, train, val)


BUILT_IN: dict[str, Callable[[int], Source]] = {"digits": _open_digits, "procedural": lambda seed: open_procedural()}


def _nearest(text: str, path: Path) -> str:
    """A question about the most similar name: a built-in set, or a folder beside the first part that is missing."""
    if near := difflib.get_close_matches(text, BUILT_IN, n=1):
        return f" Did you mean '{near[0]}'?"
    while not path.parent.is_dir():
        path = path.parent
    folders = [found.name for found in path.parent.iterdir() if found.is_dir()]
    near = difflib.get_close_matches(path.name, folders, n=1)
    return f" Did you mean '{path.parent / near[0]}'?" if near else ""
