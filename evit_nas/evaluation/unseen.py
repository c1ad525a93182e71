"""Which images networks are judged on: those of the data that none of them was trained on."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from evit_nas.data.copies import copies
from evit_nas.data.images import ChosenImages, Images, Source
from evit_nas.data.sources import open_source
from evit_nas.errors import UsageError
from evit_nas.network.supernet import Supernet
from evit_nas.trained import Trained

HELD_OUT = "the tenth that its training held out"
LOST = (
    "the tenth that a training holds out, for a network was trained on data of this name that are not found here; "
    "under another name all are taken"
)


def unseen(source: Source, trainings: Iterable[Trained | Supernet]) -> tuple[Images, str]:
    """The images of `source` that networks are judged on, and in words which these are; empty if that is plain.

    Of data with a split of their own, the validation images. A folder without one is taken whole, but

    - of the folder that a network was trained on, the tenth that was held out;
    - of others no image that a network was trained on, whatever it is called here (see `copies`), unless none is left;
    - where the data of a training are not found, names decide: of a folder of the same name the tenth is taken.

    Args:
        source: what `open_source` gives: another seed would bring images of the trainings.
        trainings: those of the networks that are known.
    """
    if source.whole is None:
        return source.val, ""
    judged, which, others = source.whole, "", list[Images]()
    for training in {one.data: one for one in trainings}.values():
        data = _data_of(training)
        if data is not None and data.location != source.location:
            others.append(data.train)
        elif data is not None or training.data_name == source.name:
            judged, which = source.val, LOST if data is None else HELD_OUT
    seen = {index for images in others for index in copies(images, judged)}
    left = [index for index in range(len(judged)) if index not in seen]
    if 0 < len(left) < len(judged):
        judged, which = ChosenImages(judged, np.array(left)), "those that no network here was trained on"
    said = f"{len(judged)} of its {len(source.whole)} images are taken, {which}"
    if not which:
        said = f"all of its {len(judged)} images are taken"
    return judged, said if left else f"{said}, but a network was trained on them: top-1 says too much"


def _data_of(training: Trained | Supernet) -> Source | None:
    """What a network was trained on; None if it is not found, or other data by now."""
    try:
        source = open_source(training.data)
    except UsageError:
        return None
    return source if source.classes == training.classes else None
