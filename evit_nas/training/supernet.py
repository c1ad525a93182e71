"""Training of a supernet: in every step the largest network, the smallest and some between, on the same images.

The sandwich rule with distillation in place (BigNAS, arXiv 2003.11142): the largest learns from the labels, the others
from what the largest says of the same images. Their gradients add up, one network after the other, so that a step needs
the memory of its largest network and not of all.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from evit_nas import __version__
from evit_nas.arch import ArchConfig
from evit_nas.console import millions
from evit_nas.data.images import Source
from evit_nas.errors import RunError, UsageError
from evit_nas.network.cost import cost
from evit_nas.network.elastic import Elastic
from evit_nas.network.supernet import Supernet, batches_of, calibration, inputs, recalibrate, split
from evit_nas.runs import installed_versions
from evit_nas.space import SearchSpace
from evit_nas.training.loop import TrainingRun
from evit_nas.training.settings import SupernetSettings
from evit_nas.training.validation import validate

# four networks a step as in AlphaNet (arXiv 2102.07954): 3.2 times as long as the largest alone, docs/supernet.md
BETWEEN = 2  # random networks in a step, beside the largest and the smallest
WIDEST = 3.0  # times the least MACs, that networks of one set of weights may have; nobody has shown that they rank more
DRAWN = 1000  # networks among which the largest and the smallest are looked for
TRIES = 10_000  # draws, until a network of the band must have come


@dataclass(frozen=True)
class Band:
    """Networks of a space that share weights: those within a range of MACs."""

    space: SearchSpace
    macs: tuple[int, int]

    def __post_init__(self) -> None:
        """
        Raises:
            UsageError: the range is too wide, or upside down.
        """
        least, most = self.macs
        if not 0 < least < most or most > WIDEST * least:
            raise UsageError(
                f"one set of weights serves networks of at most {WIDEST:g} times the least MACs, got "
                f"{millions(least)} to {millions(most)}. Choose the part of the space that you will search, for "
                f"example --macs {millions(most / WIDEST)}..{millions(most)}, or --budget 5ms."
            )

    def member(self, rng: random.Random) -> ArchConfig:
        """A random one.

        Raises:
            UsageError: there is hardly any.
        """
        least, most = self.macs
        for _ in range(TRIES):
            arch = self.space.sample(rng)
            if least <= cost(arch).macs <= most:
                return arch
        span = f"{millions(least)} to {millions(most)} MACs"
        raise UsageError(f"of {TRIES:,} random networks of the space none has {span}.")

    def ends(self, seed: int) -> tuple[ArchConfig, ArchConfig]:
        """The largest and the smallest of many, in MACs and parameters together."""
        rng = random.Random(f"{seed} ends")
        drawn = sorted((self.member(rng) for _ in range(DRAWN)), key=_size)
        return drawn[-1], drawn[0]


def _size(arch: ArchConfig) -> int:
    known = cost(arch)
    return known.macs * known.params


def _means(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Of the figures of several members, and the accuracy of each."""
    first, *_ = found.values()
    means = {
        name: None if first[name] is None else fmean(figures[name] for figures in found.values())
        for name in ("top1", "top5", "loss")
    }
    return means | {"images": first["images"]} | {f"{end}_top1": figures["top1"] for end, figures in found.items()}


class SupernetRun(TrainingRun[Supernet]):
    """One process's part of the training of a supernet."""

    @staticmethod
    def finished(folder: Path) -> Supernet:
        return Supernet.load(folder)

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        wish = self._settings
        assert isinstance(wish, SupernetSettings)
        self._wish, self._band = wish, Band(wish.space, wish.macs)

    def _opened(self) -> Source:
        source = super()._opened()
        assert isinstance(self._settings, SupernetSettings)
        rest, held = split(source, self._settings.held_out, self._settings.seed)
        return replace(source, train=rest, val=held, whole=None)  # validation images are left to `train` and `eval`

    def _network(self) -> Elastic:
        if self._wish.space.num_classes != len(self._source.classes):
            raise UsageError(
                f"{self._settings.data} has {len(self._source.classes)} classes, but {self._folder} was made for "
                f"{self._wish.space.num_classes}: the data have changed."
            )
        space = self._wish.space.model_copy(update={"image_size": self._settings.arch.image_size})
        return Elastic(space, self._settings.seed)

    def _distributed(self, model: Elastic, optimiser: torch.optim.Optimizer) -> tuple[Elastic, Any]:
        return model, self._accelerator.prepare(optimiser)  # its gradients are of several passes: `_share_gradients`

    def _learn(self, images: Tensor, targets: Tensor, epoch: int, step: int) -> Tensor:
        with self._accelerator.autocast():
            logits = self._model(self._settings.arch, images).float()
            loss = self._criterion(logits, targets, images)
        self._accelerator.backward(loss)
        taught = logits.detach().softmax(dim=1)  # (B, classes)
        for arch in (self._wish.smallest, *self._between(epoch, step)):
            with self._accelerator.autocast():
                own = self._model(arch, images).float()
            # the KL divergence up to a constant; a mean over classes would be a thousand times weaker on ImageNet
            self._accelerator.backward(-(taught * own.log_softmax(dim=1)).sum(dim=1).mean())
        return loss

    def _between(self, epoch: int, step: int) -> Iterable[ArchConfig]:
        """The random members of a step: the same in all its parts and processes, and after an interruption."""
        rng = random.Random(f"{self._settings.seed} {epoch} {step}")
        trained = {"image_size": self._settings.arch.image_size}  # the band's MACs are at the space's own
        return [self._band.member(rng).model_copy(update=trained) for _ in range(BETWEEN)]

    def _share_gradients(self) -> None:
        if self._accelerator.num_processes == 1:
            return
        # the same tensors in every process, as their networks are the same; one message for all of them
        gradients = [parameter.grad for parameter in self._plain.parameters() if parameter.grad is not None]
        shared = self._accelerator.reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
        start = 0
        for gradient in gradients:
            gradient.copy_(shared[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def _validated(
        self, networks: Mapping[str, Elastic], batches: Iterable[Any], unreadable: set[int]
    ) -> dict[str, dict[str, Any]] | None:
        """Means of the largest and the smallest member of each, with statistics of their own, and both accuracies."""
        ends, device = {"largest": self._settings.arch, "smallest": self._wish.smallest}, self._accelerator.device
        members = {}
        for name, network in networks.items():
            for end, arch in ends.items():
                members[name, end] = network.extract(arch).to(device)
                recalibrate(members[name, end], batches_of(self._calibration, device))
        figures = validate(members, batches, self._accelerator, len(self._source.classes), unreadable)
        if figures is None:
            return None
        return {name: _means({end: figures[name, end] for end in ends}) for name in networks}

    @cached_property
    def _calibration(self) -> Tensor:
        images, _ = inputs(calibration(self._source.train, self._settings.seed), self._settings.preprocessing)
        return images

    def _result(self, init: str) -> Supernet:
        if self._best is None:
            raise RunError(f"nothing could be written to {self._folder}. Put that right, then train again.")
        wish, best = self._wish, self._best
        return Supernet(
            name=wish.name,
            space=wish.space,
            macs=wish.macs,
            largest=wish.arch,
            smallest=wish.smallest,
            classes=self._source.classes,
            preprocessing=wish.preprocessing,
            data=wish.data,
            data_name=self._source.name,
            held_out=wish.held_out,
            images=len(self._source.train) + wish.held_out,
            recipe={"name": wish.recipe_name} | wish.recipe.model_dump(mode="json"),
            seed=wish.seed,
            epoch=best["epoch"],
            averaged=best["weights"] == "average",
            largest_top1=best["largest_top1"],
            smallest_top1=best["smallest_top1"],
            command=self._record.command,
            versions={"evit_nas": __version__, **installed_versions()},
        )
