"""Which images networks are judged on: those of the data that none of them was trained on."""

from __future__ import annotations

import os
from collections.abc import Iterable

import numpy as np

from evit_nas.data.images import ChosenImages, Images, Source
from evit_nas.data.sources import open_source
from evit_nas.errors import UsageError
from evit_nas.trained import Trained

SPLIT_SEED = 0  # of the tenth that trainings hold out: another one would bring their training images


def unseen(source: Source, trainings: Iterable[Trained]) -> tuple[Images, str]:
    """The images of `source` that networks are judged on, and in words which these are, if that is not plain.

    Of data with a split of their own, the validation images. A folder without one is taken whole, but for the very
    files that a network was trained on: of the folder that a training held a tenth of out, that tenth is left. If
    nothing is left, it is taken whole all the same. Where the data of a training are no longer found, names decide:
    of a folder of the same name the tenth is taken that a training would have held out, whatever folder it is.

    Args:
        source: opened with SPLIT_SEED.
        trainings: those of the networks that are known.
    """
    if source.whole is None:
        return source.val, ""
    whole, seen = source.whole, set[tuple[int, int]]()
    for training in {one.data: one for one in trainings}.values():
        files = _trained_on(training)
        if files is not None:
            seen |= files
        elif training.data_name == source.name:
            return source.val, (
                f"{len(source.val)} of its {len(whole)} images are taken, the tenth that a training holds out, for a "
                "network was trained on data of this name that are not found here; under another name all are taken"
            )
    left = [index for index, file in enumerate(_files(whole)) if file not in seen]
    if 0 < len(left) < len(whole):
        taken = f"{len(left)} of its {len(whole)} images are taken, those that no network here was trained on"
        return ChosenImages(whole, np.array(left)), taken
    doubt = "" if left else ", but a network was trained on them: top-1 says too much"
    return whole, f"all of its {len(whole)} images are taken{doubt}"


def _trained_on(training: Trained) -> set[tuple[int, int]] | None:
    """The files of its training images, if they are files; None if the data are not found, or are others by now."""
    try:
        source = open_source(training.data, SPLIT_SEED)
    except UsageError:
        return None
    if source.classes != training.classes:
        return None
    return {file for file in _files(source.train) if file is not None}


def _files(images: Images) -> Iterable[tuple[int, int] | None]:
    """What tells one file from another, whatever it is called; None where there is none."""
    for index in range(len(images)):
        path = images.file(index)
        try:
            stat = None if path is None else os.stat(path)
        except OSError:  # it cannot be read, which is said where it is tried
            stat = None
        yield None if stat is None else (stat.st_dev, stat.st_ino)
