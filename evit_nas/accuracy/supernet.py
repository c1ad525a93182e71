"""What networks are worth with weights that they inherit from a supernet: nothing is trained for one of them.

Judged on held-out training images, because validation images are for the figures that are reported in the end.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from evit_nas.arch import ArchConfig
from evit_nas.errors import MeasurementError, UsageError
from evit_nas.network.supernet import Members, batches_of


@dataclass(frozen=True)
class Inherited:
    """A network with inherited weights on the held-out images."""

    cross_entropy: float
    """In nats; lower is better."""
    error: float
    """Standard error of its difference to the largest member on the same images, in nats."""
    accuracy: float
    """Share of the images that are classified right."""


class SupernetScore:
    """Judges the members of one supernet, whose images stay in memory."""

    def __init__(self, folder: Path) -> None:
        self._members = Members(folder)

    def of(self, arch: ArchConfig) -> Inherited:
        """What a member comes to.

        Raises:
            UsageError: the images are gone.
            MeasurementError: it is not in the supernet's space, or its cross-entropy is not finite.
        """
        try:
            self._members.supernet.fitted(arch)
        except UsageError:
            raise MeasurementError("the supernet has no weights for it", "rejected") from None
        losses, right = self.judged(arch)
        cross_entropy = float(losses.mean())
        if not math.isfinite(cross_entropy):
            raise MeasurementError(f"{arch.key} has a cross-entropy of {cross_entropy} with inherited weights")
        apart = losses - self._largest  # image by image: how hard each is cancels
        deviation = float(apart.std()) / math.sqrt(len(apart))
        return Inherited(cross_entropy, deviation, float(right.double().mean()))

    @torch.no_grad()
    def judged(self, arch: ArchConfig) -> tuple[Tensor, Tensor]:
        """(N,) cross-entropy of each held-out image in nats, and whether it is classified right.

        Raises:
            UsageError: it is not in the supernet's space, or the images are gone.
        """
        images, labels = self._members.held_out
        model = self._members.take(arch)
        logits = torch.cat([model(batch) for batch in batches_of(images)]).double()
        return F.cross_entropy(logits, labels, reduction="none"), logits.argmax(dim=1) == labels

    @cached_property
    def _largest(self) -> Tensor:
        losses, _ = self.judged(self._members.supernet.largest)
        return losses


@cache
def _opened(folder: Path) -> SupernetScore:
    return SupernetScore(folder)


def inherited(folder: Path, arch: ArchConfig) -> dict[str, float]:
    """What a member of the supernet in `folder` comes to, as a record; raises what `of` does. Opened once."""
    return asdict(_opened(folder).of(arch))
