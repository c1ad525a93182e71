"""The images of an analysis: some of the training images, not augmented, as the network wants them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evit_nas.data.images import Images, Source
from evit_nas.data.preprocessing import Preprocessing
from evit_nas.errors import UsageError
from evit_nas.network.saved import Saved, class_order
from evit_nas.training.batches import plain_batches


@dataclass(frozen=True, eq=False)
class ImageSample:
    """Batches of images, the same in every pass."""

    images: Images
    chosen: Sequence[int]
    preprocessing: Preprocessing
    outputs: Tensor | None
    """(classes,) the network's output for each class of the data; None if it does not know them."""
    batch: int

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(B, C, H, W) images and (B,) labels in the order of the network's outputs; what cannot be read is left out.

        Raises:
            UsageError: none can be read.
        """
        empty = True
        for images, labels, _ in plain_batches(self.images, self.preprocessing, self.chosen, batch=self.batch):
            known = labels >= 0  # NONE, -1, where an image cannot be read
            if known.any():
                empty = False
                images, labels = images[known], labels[known]
                yield images, labels if self.outputs is None else self.outputs[labels]
        if empty:
            raise UsageError("none of the chosen images can be read.")


def sample(
    saved: Saved, preprocessing: Preprocessing, source: Source, outputs: int, images: int, batch: int, seed: int
) -> ImageSample:
    """A random choice of `images` training images; all if there are no more.

    Args:
        outputs: how many the network has.

    Raises:
        UsageError: the network names other classes than the data.
    """
    chosen = np.sort(np.random.default_rng(seed).permutation(len(source.train))[:images])
    order: Tensor | None = None
    if saved.classes is not None:
        order = torch.tensor(class_order(source.classes, saved.classes, saved.name))
    elif outputs == len(source.classes):
        order = torch.arange(outputs)
    return ImageSample(source.train, chosen.tolist(), preprocessing, order, batch)
