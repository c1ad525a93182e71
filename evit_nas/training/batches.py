"""Training batches as a function of the seed, the epoch and the number of the step, and of nothing else.

Every image is augmented from a seed of its own, so it does not matter which process does it, how many there are, or
what was drawn before. A training that was interrupted goes on with the batches it would have seen, and no random state
has to be kept. A step falls into parts (processes times accumulated parts), which are the same however they are shared
out: two processes compute what one computes in two parts.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from evit_nas.data.cache import UNREADABLE, check_image_is_to_blame
from evit_nas.data.images import Images
from evit_nas.data.preprocessing import Preprocessing, gray_first
from evit_nas.errors import EvitNasError, UsageError
from evit_nas.training.recipe import Recipe

VALIDATION_BATCH = 250
FINE = -1  # no unreadable image
TRIES = 100  # unreadable images in a row after which the data cannot be used
NONE = -1  # label where no image could be read

Transform = Callable[[Image.Image], Tensor]


class Draw(NamedTuple):
    """One image of a training epoch."""

    image: int
    seed: int  # of its augmentation


class Batch(NamedTuple):
    """Images and labels, and the indices of images that could not be read."""

    images: Tensor  # (B, C, H, W)
    labels: Tensor  # (B,) NONE where there is no image
    unreadable: Tensor  # (B,) FINE, or the index of an image that another one stands in for


class Augmented(Dataset[tuple[Tensor, int, int]]):
    """Augmented training images by `Draw`; an unreadable one is replaced by the next that can be read.

    After TRIES of them there is no label either: raised here, in a process that loads, an error would reach the user
    with torch's traceback in its message.
    """

    def __init__(self, images: Images, transform: Transform) -> None:
        self._images, self._transform = images, transform

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int, int]:
        random.seed(draw.seed)  # timm's augmentation draws from all three
        np.random.seed(draw.seed % 2**32)  # noqa: NPY002 - which takes 32 bits
        torch.manual_seed(draw.seed)
        for offset in range(TRIES):
            index = (draw.image + offset) % len(self._images)
            try:
                image, label = self._images[index]
            except UNREADABLE:
                continue
            return self._transform(image), label, draw.image if offset else FINE
        return self._transform(Image.new("RGB", (32, 32))), NONE, draw.image


class Plain(Dataset[tuple[Tensor, int, int]]):
    """Validation images by index; the label of an unreadable one is NONE."""

    def __init__(self, images: Images, preprocessing: Preprocessing) -> None:
        self._images, self._transform = images, preprocessing.transform()
        self._shape = preprocessing.input_size

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        try:
            image, label = self._images[index]
            return self._transform(image), label, FINE
        except UNREADABLE:
            return torch.zeros(self._shape), NONE, index  # something to stack: `validate` leaves it out


def check_images_are_to_blame(images: Images, unreadable: Iterable[int]) -> None:
    """Reads once more what a loader could not read, here where an error reaches the user whole.

    Raises:
        UsageError: it is the disk or the system that fails.
    """
    for index in unreadable:
        try:
            images[index]
        except UNREADABLE as error:
            check_image_is_to_blame(error, images.name(index))


def augmentation(recipe: Recipe, preprocessing: Preprocessing) -> Transform:
    """timm's training transform by the recipe, to normalised (C, H, W) images."""
    from timm.data import create_transform

    transform: Transform = create_transform(
        preprocessing.input_size,
        is_training=True,
        scale=(recipe.smallest_crop, 1.0),
        hflip=recipe.flip,
        color_jitter=recipe.colour_jitter,
        auto_augment=recipe.auto_augment,
        interpolation=recipe.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        re_prob=recipe.erasing,
        re_mode="pixel",  # noise, as in the official code
    )
    _leave_a_bit(transform)
    return gray_first(transform) if preprocessing.input_size[0] == 1 else transform


def _leave_a_bit(transform: Any) -> None:
    """timm's strongest posterisation keeps no bit of a colour, which Pillow refuses."""
    from timm.data.auto_augment import posterize

    for step in transform.transforms:
        for op in chain(getattr(step, "ops", ()), *getattr(step, "policy", ())):
            if op.aug_fn is posterize:
                op.aug_fn = _posterise_gently


def _posterise_gently(image: Image.Image, bits: int, **how: Any) -> Image.Image:
    """A function of the module: one inside another cannot be handed to a process that is not forked."""
    from timm.data.auto_augment import posterize

    posterised: Image.Image = posterize(image, max(bits, 1), **how)
    return posterised


def epoch_order(count: int, seed: int, epoch: int, repeats: int) -> np.ndarray:
    """(count,) indices of an epoch: all images in random order, or a share of them `repeats` times each."""
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return order.repeat(repeats)[:count]


class TrainingBatches:
    """What one process trains on.

    Args:
        images: of the training split.
        transform: augments one image.
        recipe: batch size, parts and repeats.
        seed: of the order and of every augmentation.
        rank: number of this process, out of `processes`.
        workers: processes that load images for this one; 0 loads them here.

    Raises:
        UsageError: fewer images than a batch, or parts that do not divide a batch.
    """

    def __init__(
        self,
        images: Images,
        transform: Transform,
        recipe: Recipe,
        seed: int,
        *,
        rank: int = 0,
        processes: int = 1,
        workers: int = 0,
    ) -> None:
        self._images, self._count, self._recipe, self._seed = images, len(images), recipe, seed
        self._rank, self._processes = rank, processes
        self.parts = processes * recipe.accumulate
        self.steps = self._count // recipe.batch_size
        if not self.steps:
            pairs = 2 * self.parts
            raise UsageError(
                f"a batch has {recipe.batch_size} images, but the training set only {self._count}: make it smaller, "
                f"for example --set batch_size={max(1, self._count // (4 * pairs)) * pairs}."  # a quarter of them
            )
        if recipe.batch_size % (2 * self.parts):  # `Recipe` knows no processes; timm mixes a part in pairs
            raise UsageError(
                f"batch_size must be a multiple of 2 times {processes} processes times accumulate "
                f"({recipe.accumulate}), got {recipe.batch_size}."
            )
        self._todo = _Todo()
        self._loader = DataLoader(
            Augmented(images, transform),
            batch_sampler=self._todo,
            num_workers=workers,
            worker_init_fn=_leave_signals,
            persistent_workers=workers > 0,  # torch refuses it where there are none
            pin_memory=torch.cuda.is_available(),
        )

    def __call__(self, epoch: int, first: int = 0) -> Iterator[tuple[int, int, Batch]]:
        """The number of the step, of the part, and the batch, from step `first` of the epoch on.

        Raises:
            UsageError: it is the disk or the system that fails.
            EvitNasError: TRIES images in a row cannot be read.
        """
        places = [
            (step, part) for step in range(first, self.steps) for part in range(self._rank, self.parts, self._processes)
        ]
        self._todo.batches = self._draws(epoch, places)
        for (step, part), batch in zip(places, self._loader, strict=True):  # in order, whichever worker is done first
            images, labels, unreadable = batch
            check_images_are_to_blame(self._images, unreadable[unreadable != FINE].tolist())
            if (labels == NONE).any():
                first_lost = self._images.name(int(unreadable[labels == NONE][0]))
                raise EvitNasError(f"{TRIES} images in a row cannot be read, from {first_lost} on: check the data.")
            yield step, part, Batch(images, labels, unreadable)

    def _draws(self, epoch: int, places: Sequence[tuple[int, int]]) -> Iterator[list[Draw]]:
        order = epoch_order(self._count, self._seed, epoch, self._recipe.repeats)
        size, base = self._recipe.batch_size, mixed_seed(self._seed, epoch)
        for step, part in places:
            positions = range(step * size + part, (step + 1) * size, self.parts)  # copies of an image fall to all parts
            yield [Draw(int(order[position]), base + position) for position in positions]

    def end(self) -> None:
        """Ends the processes that load images."""
        end_workers(self._loader)


class _Todo:
    """A batch sampler that is told its batches before each epoch, so that the loader keeps its workers."""

    batches: Iterator[list[Draw]] = iter(())

    def __iter__(self) -> Iterator[list[Draw]]:
        return self.batches


class Mix:
    """Mixup and CutMix (timm's) by the recipe: images and labels to images and (B, classes) targets."""

    def __init__(self, recipe: Recipe, classes: int, seed: int) -> None:
        from timm.data import Mixup

        self._seed = seed
        self._mixup = Mixup(
            mixup_alpha=recipe.mixup,
            cutmix_alpha=recipe.cutmix,
            prob=recipe.mix_chance,
            label_smoothing=recipe.smoothing,
            num_classes=classes,
        )

    def __call__(self, batch: Batch, epoch: int, step: int, part: int) -> tuple[Tensor, Tensor]:
        np.random.seed(mixed_seed(self._seed, epoch, step, part) % 2**32)  # noqa: NPY002 - where timm draws from
        mixed: tuple[Tensor, Tensor] = self._mixup(batch.images, batch.labels)  # timm mixes images in place
        return mixed


def plain_batches(
    images: Images,
    preprocessing: Preprocessing,
    chosen: Sequence[int],
    *,
    batch: int = VALIDATION_BATCH,
    workers: int = 0,
) -> DataLoader[Any]:
    """The `chosen` images in their order, as `Plain` has them, `batch` at a time."""
    return DataLoader(
        Plain(images, preprocessing),
        batch_size=batch,
        sampler=chosen,
        num_workers=workers,
        worker_init_fn=_leave_signals,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def end_workers(loader: DataLoader[Any]) -> None:
    """Ends the processes that load for `loader`, which torch keeps for the next epoch.

    At the exit Python would end them by a signal, which torch takes for a fault and reports with a traceback.
    """
    if loader.num_workers and loader._iterator is not None:
        loader._iterator._shutdown_workers()  # type: ignore[attr-defined] # of the kind that has workers


def _leave_signals(worker: int) -> None:
    """What a terminal sends is for the process that trains, which ends those that load for it by SIGTERM."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a forked process has inherited the command line's handler


def mixed_seed(*numbers: int) -> int:
    """One seed of several numbers; zeros at the end do not count."""
    # 62 bits: with a position added still a seed of torch
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 2)
