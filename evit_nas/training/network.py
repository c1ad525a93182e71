"""Training of one network: what a step teaches it, and what came of it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evit_nas import __version__
from evit_nas.data.look import look
from evit_nas.errors import RunError, UsageError
from evit_nas.network.model import EfficientViT, build
from evit_nas.network.weights import load_weights
from evit_nas.runs import installed_versions
from evit_nas.trained import Trained
from evit_nas.training.batches import end_workers, plain_batches
from evit_nas.training.carry import carry_on
from evit_nas.training.folder import BEST, RECORD
from evit_nas.training.hardware import ALONE, Hardware
from evit_nas.training.loop import TrainingRun
from evit_nas.training.settings import SCRATCH
from evit_nas.training.status import TrainWatcher
from evit_nas.training.validation import validate
from evit_nas.training.verdict import judge

SEEN_IMAGES = (500, 2000)  # least and most training images that the trained network is tried on


def train(folder: Path, watch: TrainWatcher, hardware: Hardware = ALONE) -> Trained:
    """Takes the training of a network in `folder` to its end, and raises, as `carry_on` does."""
    return carry_on(NetworkRun, folder, watch, hardware)


class NetworkRun(TrainingRun[Trained]):
    """One process's part of the training of one network."""

    @staticmethod
    def finished(folder: Path) -> Trained:
        return Trained.load(folder)

    def _network(self) -> EfficientViT:
        arch = self._settings.arch
        if arch.num_classes != len(self._source.classes):
            raise UsageError(
                f"{self._settings.data} has {len(self._source.classes)} classes, but {self._folder / RECORD} was made "
                f"for {arch.num_classes}: the data have changed."
            )
        return build(arch, self._settings.seed)

    def _begin(self, model: EfficientViT) -> str:
        if self._settings.init == SCRATCH:
            return SCRATCH
        from evit_nas.network.transfer import start_from

        transfer = start_from(model, self._settings.init, classes=self._source.classes)
        self._note(transfer.summary())
        return transfer.summary()

    def _distributed(self, model: EfficientViT, optimiser: torch.optim.Optimizer) -> tuple[Any, Any]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*broadcast_buffers.*", FutureWarning)  # accelerate knows only this name
            prepared: tuple[Any, Any] = self._accelerator.prepare(model, optimiser)
        return prepared

    def _learn(self, images: Tensor, targets: Tensor, epoch: int, step: int) -> Tensor:
        with self._accelerator.autocast():
            loss = self._criterion(self._model(images).float(), targets, images)  # (B, classes), the loss in fp32
        self._accelerator.backward(loss)
        return loss

    def _train_top1(self) -> float | None:
        """Accuracy in percent of the best weights on about as many training images as there are for validation.

        None if no weights were written, or none of these images can be read.
        """
        self._accelerator.wait_for_everyone()  # the first process may still be writing
        if not (self._folder / BEST).exists():
            return None
        load_weights(self._plain, self._folder / BEST)
        images, rank, processes = self._source.train, self._accelerator.process_index, self._accelerator.num_processes
        least, most = SEEN_IMAGES
        count = min(len(images), max(least, min(len(self._source.val), most)))
        chosen = np.random.default_rng(self._settings.seed).choice(len(images), count, replace=False)
        share = chosen[rank::processes].tolist()
        batches = plain_batches(images, self._settings.preprocessing, share, workers=self._workers)
        try:
            found = validate({"best": self._plain}, batches, self._accelerator, len(self._source.classes), set())
        finally:
            end_workers(batches)
        return None if found is None else float(found["best"]["top1"])

    def _result(self, init: str) -> Trained:
        train_top1 = self._train_top1()
        if self._best is None:
            raise RunError(f"nothing could be written to {self._folder}. Put that right, then train again.")
        settings, best = self._settings, self._best
        rows = [row for row in self._records.rows() if row["kind"] == "train"]
        verdict = judge(best, train_top1, rows, look(self._source), fresh=settings.init == SCRATCH)
        return Trained(
            name=settings.name,
            origin=settings.origin,
            arch=settings.arch,
            classes=self._source.classes,
            preprocessing=settings.preprocessing,
            data=settings.data,
            data_name=self._source.name,
            recipe={"name": settings.recipe_name} | settings.recipe.model_dump(mode="json"),
            init=init,
            teacher=settings.teacher,
            seed=settings.seed,
            epoch=best["epoch"],
            averaged=best["weights"] == "average",
            top1=best["top1"],
            top5=best["top5"],
            loss=best["loss"],
            validation_images=best["images"],
            train_top1=train_top1,
            no_good=verdict.no_good,
            doubts=verdict.doubts,
            command=self._record.command,
            versions={"evit_nas": __version__, **installed_versions()},
        )
