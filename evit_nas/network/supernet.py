"""A trained supernet on disk: one folder from which any network of its space is taken with weights.

model.safetensors    the shared weights that validated best
supernet.json        everything needed to use them, and how they came to be: this file's `Supernet`
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from evit_nas.arch import ArchConfig
from evit_nas.choices import describe_choices
from evit_nas.commands import command_line
from evit_nas.data.cache import UNREADABLE
from evit_nas.data.images import ChosenImages, Images
from evit_nas.data.preprocessing import Preprocessing
from evit_nas.data.sources import open_source
from evit_nas.errors import UsageError, in_a_line
from evit_nas.files import write_atomically
from evit_nas.network.elastic import Elastic
from evit_nas.network.model import EfficientViT
from evit_nas.network.weights import read_weights
from evit_nas.space import SearchSpace
from evit_nas.trained import SUPERNET_RECORD, WEIGHTS
from evit_nas.yamlio import read_json, validate

if TYPE_CHECKING:
    from evit_nas.data.images import Source

HELD_OUT_SHARE = 10  # one training image in so many is held out to judge members
MOST_HELD_OUT = 500  # whose choice is 4 % of the variance of scores then: docs/results/supernet.md
CALIBRATION_IMAGES = 500  # that the statistics of a member are taken from
BATCH = 100


class Supernet(BaseModel):
    """A trained supernet, without its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """What it is, for example efficientvit-96."""
    space: SearchSpace
    """Whose networks it holds, with the classes of the data; they are trained at the image size of `largest`."""
    macs: tuple[int, int]
    """Least and most multiply-accumulates, at the space's own image size, of the members that it was trained for."""
    largest: ArchConfig
    """The member that the others learned from."""
    smallest: ArchConfig
    """The least of them."""
    classes: tuple[str, ...]
    """Names of the outputs, in their order."""
    preprocessing: Preprocessing
    """From an image to an input."""
    data: str
    """What was given as --data."""
    data_name: str
    """For people, for example fashion-mnist."""
    held_out: int
    """Training images that it has not learned from, on which members are judged."""
    images: int | None = None
    """Training images in all; None in records of earlier versions."""
    recipe: dict[str, Any]
    """The resolved recipe."""
    seed: int
    """Of weights, batches, members and held-out images."""
    epoch: int
    """After how many epochs these weights were taken."""
    averaged: bool
    """Whether they are the moving average."""
    largest_top1: float
    """Accuracy of the largest member on the held-out images, in percent."""
    smallest_top1: float
    """Accuracy of the smallest one."""
    command: str
    """What was typed."""
    versions: dict[str, str]
    """Of evit_nas and the libraries."""

    @classmethod
    def load(cls, folder: Path) -> Supernet:
        """What the training in `folder` left.

        Raises:
            UsageError: it is not such a folder, its training is not finished, or the record is damaged.
        """
        path = folder / SUPERNET_RECORD
        if not path.is_file() or not (folder / WEIGHTS).is_file():
            resume = command_line("supernet", "train", folder, "--resume")
            raise UsageError(
                f"{folder} holds no finished supernet (no {SUPERNET_RECORD} with {WEIGHTS}). Make one with evit-nas "
                f"supernet train, or continue an interrupted one with: {resume}"
            )
        return validate(cls, read_json(path), str(path))

    def save(self, folder: Path) -> None:
        """Writes the record beside the weights."""
        write_atomically(folder / SUPERNET_RECORD, self.model_dump_json(indent=1) + "\n")

    def check_covers(self, space: SearchSpace) -> None:
        """
        Raises:
            UsageError: a search of `space` may propose networks that the supernet has no weights for.
        """
        # image size and classes may differ: `fitted` gives a member those of the supernet
        if space.in_channels != self.space.in_channels:
            raise UsageError(
                f"the supernet takes images of {self.space.in_channels} channels, the space {space.in_channels}."
            )
        pairs = [("stem_ratio", space.stem_ratio, self.space.stem_ratio)]
        for index, (asked, own) in enumerate(zip(space.stages, self.space.stages, strict=True), start=1):
            pairs += [(f"stage{index}.{name}", choices, getattr(own, name)) for name, choices in asked]
        for name, asked_choices, own_choices in pairs:
            if missing := [choice for choice in asked_choices if choice not in own_choices]:
                raise UsageError(
                    f"the supernet of {self.name} has no weights for {name} = {describe_choices(missing)}: search the "
                    "space that it was trained for, or a part of it."
                )

    def fitted(self, arch: ArchConfig) -> ArchConfig:
        """The member that `arch` is, with the image size and the classes that the supernet was trained for.

        Raises:
            UsageError: the space has no such network.
        """
        member = self.space.adapted(arch)
        self.space.params(member)
        return member.model_copy(update={"image_size": self.largest.image_size})


class Members:
    """The networks of a trained supernet, each with its weights and with statistics of its own."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            UsageError: there is no finished supernet, or it is damaged.
        """
        self.supernet = Supernet.load(folder)
        # the maps of that size decide how large windows, and attention biases, are
        trained = {"image_size": self.supernet.largest.image_size}
        self._elastic = Elastic(self.supernet.space.model_copy(update=trained), seed=None)
        weights = read_weights(folder / WEIGHTS)
        try:
            self._elastic.load_state_dict(weights)
        except RuntimeError as error:
            reason = in_a_line(error, most=300)
            raise UsageError(f"{folder / WEIGHTS} does not hold what {SUPERNET_RECORD} says: {reason}.") from None

    def take(self, arch: ArchConfig) -> EfficientViT:
        """A member in eval mode, on the processor.

        Raises:
            UsageError: it is not in the supernet's space, or the images are not there that its statistics come from.
        """
        model = self._elastic.extract(self.supernet.fitted(arch))
        images, _ = self._calibration
        recalibrate(model, batches_of(images))
        return model

    @cached_property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """(N, C, H, W) inputs and (N,) labels of the images that members are judged on."""
        _, held = self._split
        return inputs(held, self.supernet.preprocessing)

    @cached_property
    def _calibration(self) -> tuple[Tensor, Tensor]:
        rest, _ = self._split
        return inputs(calibration(rest, self.supernet.seed), self.supernet.preprocessing)

    @cached_property
    def _split(self) -> tuple[Images, Images]:
        source = open_source(self.supernet.data)
        if source.classes != self.supernet.classes:
            raise UsageError(f"{self.supernet.data} has other classes now than the supernet was trained for.")
        before, now = self.supernet.images, len(source.train)
        if before not in (None, now):  # it would be judged on what it has learned from
            raise UsageError(
                f"{self.supernet.data} has {now} training images now, and had {before} when the supernet was trained. "
                "Bring them back, or train another one."
            )
        return split(source, self.supernet.held_out, self.supernet.seed)


def held_out_of(source: Source) -> int:
    """How many training images are held out to judge members on."""
    return min(len(source.train) // HELD_OUT_SHARE, MOST_HELD_OUT)


def split(source: Source, held_out: int, seed: int) -> tuple[Images, Images]:
    """The training images without those that are held out, and these."""
    order = np.random.default_rng(seed).permutation(len(source.train))
    return (
        ChosenImages(source.train, np.sort(order[held_out:])),
        ChosenImages(source.train, np.sort(order[:held_out])),
    )


def calibration(images: Images, seed: int) -> Images:
    """Those of the training images that statistics are taken from."""
    order = np.random.default_rng(seed).permutation(len(images))
    return ChosenImages(images, order[:CALIBRATION_IMAGES])


def inputs(images: Images, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """(N, C, H, W) inputs and (N,) labels of those that can be read.

    Raises:
        UsageError: none can.
    """
    transform = preprocessing.transform()
    found, labels = [], []
    for index in range(len(images)):
        try:
            image, label = images[index]
        except UNREADABLE:
            continue
        found.append(transform(image))
        labels.append(label)
    if not found:
        raise UsageError("none of the images that members are judged by can be read.")
    return torch.stack(found), torch.tensor(labels)


def batches_of(images: Tensor, device: torch.device | None = None) -> Iterator[Tensor]:
    """BATCH of the (N, C, H, W) images at a time; a last one alone, which has no deviation, goes with those before."""
    count = len(images)
    ends = [end for end in range(BATCH, count, BATCH) if count - end > 1]
    for start, end in pairwise([0, *ends, count]):
        yield images[start:end].to(device)


@torch.no_grad()
def recalibrate(model: EfficientViT, batches: Iterable[Tensor]) -> None:
    """Forgets the running statistics and takes the mean of those of the batches instead; leaves it in eval mode.

    Under shared weights every member has statistics of its own, and those gathered in training are of all of them
    (BigNAS, arXiv 2003.11142, section 3.4).
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over all batches
    model.train()
    for images in batches:
        model(images)
    for norm, momentum in zip(norms, before, strict=True):
        norm.momentum = momentum
    model.eval()
