"""The training loop: timm's augmentation, optimiser, schedule and average; accelerate's devices and processes.

A training is a folder (`folder.py`). One that was interrupted goes on exactly: on a processor the losses equal those of
an uninterrupted one. What is trained and what a step teaches it stands in `network.py` and `supernet.py`.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from evit_nas.data.cache import why_unreadable
from evit_nas.data.copies import said_copies
from evit_nas.data.images import Images, Source
from evit_nas.data.sources import open_source
from evit_nas.errors import EvitNasError, UsageError
from evit_nas.trained import WEIGHTS
from evit_nas.training.advice import diverged
from evit_nas.training.batches import (
    VALIDATION_BATCH,
    Batch,
    Mix,
    TrainingBatches,
    augmentation,
    check_images_are_to_blame,
    end_workers,
    plain_batches,
)
from evit_nas.training.checkpoint import State, check_data
from evit_nas.training.hardware import Hardware, on_processors
from evit_nas.training.optimisation import Criterion, clip, create_optimiser, create_schedule
from evit_nas.training.records import Finished, Records, steps_a_line
from evit_nas.training.settings import TrainRecord
from evit_nas.training.status import Pace, TrainStatus, TrainWatcher
from evit_nas.training.teacher import open_teacher
from evit_nas.training.validation import merit, share_statistics, validate

CHECKPOINT_EVERY_S = 120.0
LOOK_STEPS = 20  # at most, until the loss is looked at: by steps, which all processes take together, not by time
TIMED_STEPS = 3  # at least, beyond the first one, where only the pace is asked for

Result = TypeVar("Result", bound=Finished)


class TrainingRun(ABC, Generic[Result]):
    """One process's part of a training."""

    def __init__(self, folder: Path, record: TrainRecord, watch: TrainWatcher, hardware: Hardware) -> None:
        """
        Raises:
            UsageError: the data or the precision cannot be used, or there are fewer images than a batch.
        """
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DistributedDataParallelKwargs

        settings = record.settings
        self._folder, self._record, self._settings, self._recipe = folder, record, settings, settings.recipe
        self._watch, self._workers = watch, hardware.workers
        self._source = self._opened()
        AcceleratorState._reset_state()  # else this one would have the precision of the last training in this process
        self._accelerator = Accelerator(
            cpu=on_processors(),
            mixed_precision="no" if self._recipe.precision == "fp32" else self._recipe.precision,
            gradient_accumulation_steps=self._recipe.accumulate,  # `backward` divides each loss by it
            log_with=list(hardware.trackers) or None,
            project_dir=folder,
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],  # `share_statistics` averages
            step_scheduler_with_optimizer=False,
        )
        if self._recipe.precision == "fp16" and self._accelerator.device.type == "cpu":  # accelerate leaves it fp32
            raise UsageError("fp16 is trained on a GPU, and there is none here: --set precision=fp32, or bf16.")
        self.first = self._accelerator.is_main_process
        self._records = Records(folder, settings, self._accelerator, watch)
        place = {"rank": self._accelerator.process_index, "processes": self._accelerator.num_processes}
        self._batches = TrainingBatches(
            self._source.train,
            augmentation(self._recipe, settings.preprocessing),
            self._recipe,
            settings.seed,
            workers=hardware.workers,
            **place,
        )
        val = self._source.val
        share = range(place["rank"], len(val), place["processes"])
        self._validation = plain_batches(val, settings.preprocessing, share, workers=hardware.workers)
        self._mix = Mix(self._recipe, len(self._source.classes), settings.seed) if self._recipe.mixed else None
        if hardware.trackers:
            flat = {name: value for name, value in self._recipe.model_dump().items() if value is not None}
            self._accelerator.init_trackers("evit-nas", flat | {"architecture": settings.name, "seed": settings.seed})

    def end(self) -> None:
        """Ends the processes that load images."""
        self._batches.end()
        end_workers(self._validation)

    @staticmethod
    @abstractmethod
    def finished(folder: Path) -> Result:
        """What a training in `folder` came to."""

    def _opened(self) -> Source:
        """The images that are trained and validated on."""
        return open_source(self._settings.data)

    @abstractmethod
    def _network(self) -> nn.Module:
        """What is trained, with fresh weights."""

    def _begin(self, model: Any) -> str:
        """Gives it the weights that it starts from; returns a line about where they are from."""
        return self._settings.init

    @abstractmethod
    def _distributed(self, model: Any, optimiser: torch.optim.Optimizer) -> tuple[Any, Any]:
        """Both as accelerate runs them."""

    @abstractmethod
    def _learn(self, images: Tensor, targets: Tensor, epoch: int, step: int) -> Tensor:
        """The loss of one part of a step, whose gradients are there afterwards."""

    def _share_gradients(self) -> None:
        """Sets gradients to their mean over processes, where accelerate does not."""

    def _validated(
        self, networks: Mapping[str, Any], batches: Iterable[Any], unreadable: set[int]
    ) -> dict[str, dict[str, Any]] | None:
        """What `validate` says of them."""
        return validate(networks, batches, self._accelerator, len(self._source.classes), unreadable)

    @abstractmethod
    def _result(self, init: str) -> Result:
        """What the best weights are.

        Raises:
            RunError: none could be written.
        """

    def run(self) -> Result:
        """Trains to the end."""
        self._accelerator.wait_for_everyone()  # from here on the first holds the lock, and all see the same files
        if (self._folder / WEIGHTS).exists():  # by now: another command was just finishing it
            return self.finished(self._folder)
        state = self._records.state()
        model = self._network()
        init = self._begin(model) if state is None else ""
        self._prepare(model)
        if state is not None:
            self._restore(state)
            self._note(f"going on after epoch {self._epoch}, step {self._step}")
        self._records.cut(state["lines"] if state else 0)
        if state is None and init:
            self._records.log({"kind": "init", "init": init})
        if state is None and self.first and (remark := said_copies(self._source)):
            self._watch.note(f"{self._source.name}: {remark}")
        self._started = time.monotonic() - (state["seconds"] if state else 0.0)
        self._trained_s, self._trained_images = 0.0, 0
        for epoch in range(self._epoch, self._recipe.epochs):
            self._train_epoch(epoch)
            self._validate(epoch)
        result = self._result(init or self._first_init())  # resumed: as the first start said
        unreadable = (
            *self._named("training", self._source.train, self._unreadable),
            *self._named("validation", self._source.val, self._not_validated),
        )
        self._records.finish(result, unreadable)
        for tracker in self._accelerator.trackers:  # `end_training` would part the processes: the next one needs them
            tracker.finish()
        return result

    def _named(self, split: str, images: Images, indices: set[int]) -> Iterator[str]:
        """A sentence about the images that any of the processes could not read, if there are any."""
        from accelerate.utils import gather_object

        if every := sorted(set(gather_object(sorted(indices)))):
            yield f"{len(every)} {split} images could not be read: {why_unreadable(images, every)}"

    def _first_init(self) -> str:
        return next((row["init"] for row in self._records.rows() if row["kind"] == "init"), self._settings.init)

    def _prepare(self, model: nn.Module) -> None:
        """Optimiser, schedule, average and loss; everything at the start of the first epoch."""
        from timm.utils import ModelEmaV3

        recipe, device = self._recipe, self._accelerator.device
        # with a fused AdamW 1.18 times the images a second of a plain loop: docs/results/train_throughput.md
        model.to(device).to(memory_format=torch.channels_last)
        optimiser = create_optimiser(model, recipe)
        self._schedule = create_schedule(optimiser, recipe, self._batches.steps)
        self._plain: Any = model  # without DDP around it: the names in its state are the network's
        # warmed up: the paper's average is over 1 / (1 - 0.99996) = 25,000 steps, which would begin with fresh weights
        self._average = ModelEmaV3(model, decay=recipe.average, use_warmup=True) if recipe.average else None
        self._model, self._optimiser = self._distributed(model, optimiser)
        teacher = None
        if self._settings.teacher:
            teacher = open_teacher(self._settings.teacher, self._source.classes, self._settings.preprocessing)
            teacher.to(device)
        self._criterion = Criterion(recipe, teacher)
        self._epoch, self._step = 0, 0
        # on the device: reading each loss would wait for the GPU
        self._loss_sum, self._loss_steps = torch.zeros((), device=device), 0
        self._best: dict[str, Any] | None = None
        self._unreadable: set[int] = set()  # training images
        self._not_validated: set[int] = set()  # validation images that cannot be read

    def _restore(self, state: State) -> None:
        """
        Raises:
            UsageError: the data have other classes, or more or fewer images, than when it was saved.
        """
        check_data(state, self._source, self._settings.data)
        self._plain.load_state_dict(state["model"])
        if self._average is not None and state["average"] is not None:
            self._average.module.load_state_dict(state["average"])
        self._optimiser.load_state_dict(state["optimiser"])
        if self._accelerator.scaler is not None and state["scaler"] is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self._epoch, self._step = state["epoch"], state["step"]
        self._loss_sum.fill_(state.get("loss_sum", 0.0))
        self._loss_steps = state.get("loss_steps", 0)
        self._best, self._unreadable = state["best"], set(state["unreadable"])

    def _train_epoch(self, epoch: int) -> None:
        recipe, steps = self._recipe, self._batches.steps
        every = steps_a_line(steps)
        saved = last = time.monotonic()
        seen = self._step
        self._model.train()
        for step, part, batch in self._batches(epoch, self._step):
            loss = self._take_step(batch, epoch, step, part)
            self._loss_sum += loss.detach() / recipe.accumulate
            if not self._accelerator.sync_gradients:
                continue
            self._step, self._loss_steps = step + 1, self._loss_steps + 1
            if self._average is not None:
                self._average.update(self._plain, step=epoch * steps + step + 1)  # by which its warm-up goes
            line = self._step % every == 0 or self._step == steps
            if not line and self._step % LOOK_STEPS:
                continue
            now = time.monotonic()
            self._look(epoch, self._step - seen, now - last, line)
            last, seen = now, self._step
            if self._agreed(now - saved > CHECKPOINT_EVERY_S):  # the loss was finite
                for network in self._networks().values():  # as validations do; means of means are the same
                    share_statistics(network, self._accelerator)
                self._save()
                saved = last = time.monotonic()  # time that is spent saving is not the training's

    def _agreed(self, wish: bool) -> bool:
        """Whether one of the processes wishes it: their clocks differ, and all have to do it."""
        return bool(self._accelerator.reduce(torch.tensor(float(wish), device=self._accelerator.device)) > 0)

    def _take_step(self, batch: Batch, epoch: int, step: int, part: int) -> Tensor:
        """The loss of one part of a step; with the last one the weights move."""
        with self._accelerator.accumulate(self._model):
            if part < self._accelerator.num_processes:  # the first part of a step
                self._schedule.step_update(epoch * self._batches.steps + step)  # by number: it has no state to be saved
            loss = self._learn(*self._mixed(batch, epoch, step, part), epoch, step)
            if self._accelerator.sync_gradients:
                self._share_gradients()
                if self._recipe.clip is not None:
                    self._accelerator.unscale_gradients()
                    clip(self._plain, self._recipe)
            self._optimiser.step()  # accelerate's moves nothing before the last part of a step; nor does its zero_grad
            self._optimiser.zero_grad(set_to_none=True)
        return loss

    def pace(self, watched_s: float) -> Pace:
        """How long a step and a validation take, from `watched_s` of steps; the weights are spoilt afterwards."""
        self._prepare(self._network())
        self._model.train()
        seconds, start = list[float](), time.monotonic()
        for step, part, batch in self._batches(0):
            self._take_step(batch, 0, step, part)
            if self._accelerator.sync_gradients:
                now = time.monotonic()
                seconds.append(now - start)
                start = now
            if sum(seconds[1:]) > watched_s and len(seconds) > TIMED_STEPS:
                break
        start = time.monotonic()
        batches = 2 * max(self._workers, 1)  # or one loads while the others wait
        self._validated(self._networks(), islice(self._validation, batches), set())
        share = min(batches * VALIDATION_BATCH / len(self._source.val), 1.0)
        return Pace(
            steps=self._batches.steps,
            step_s=fmean(seconds[1:] or seconds),  # the first one waits for what loads images
            validation_s=(time.monotonic() - start) / share,
        )

    def _mixed(self, batch: Batch, epoch: int, step: int, part: int) -> tuple[Tensor, Tensor]:
        """Images and targets on the device, mixed by the recipe."""
        self._unreadable.update(batch.unreadable[batch.unreadable >= 0].tolist())
        device = self._accelerator.device
        batch = Batch(
            batch.images.to(device, non_blocking=True, memory_format=torch.channels_last),
            batch.labels.to(device, non_blocking=True),
            batch.unreadable,
        )
        return self._mix(batch, epoch, step, part) if self._mix else (batch.images, batch.labels)

    def _look(self, epoch: int, steps: int, seconds: float, line: bool) -> None:
        """A word to the watcher about the last `steps`, and at the end of a line of metrics the line."""
        self._loss_sum = self._accelerator.reduce(self._loss_sum, "mean")  # from here on the same in every process
        loss = float(self._loss_sum / self._loss_steps)
        self._check_finite(loss, epoch)
        images = steps * self._recipe.batch_size
        self._trained_s, self._trained_images = self._trained_s + seconds, self._trained_images + images
        if line:
            rate = self._optimiser.param_groups[0]["lr"]
            row = {"kind": "train", "epoch": epoch + 1, "step": self._step, "loss": loss, "rate": rate}
            self._records.log(row, at=epoch * self._batches.steps + self._step)
            self._loss_sum.zero_()
            self._loss_steps = 0
        to_go = (self._recipe.epochs - epoch) * self._batches.steps - self._step
        self._watch.trained(
            TrainStatus(
                name=self._settings.name,
                epoch=epoch,
                epochs=self._recipe.epochs,
                step=self._step,
                steps=self._batches.steps,
                loss=loss,
                images_per_s=images / max(seconds, 1e-9),
                eta_s=to_go * self._recipe.batch_size * self._trained_s / self._trained_images,
                best_top1=self._best["top1"] if self._best else None,
            )
        )

    def _check_finite(self, loss: float, epoch: int) -> None:
        """
        Raises:
            EvitNasError: it is not; says what helps. Nothing has been saved since it was.
        """
        if not math.isfinite(loss):
            told = diverged(loss, epoch, self._recipe, self._folder)
            raise EvitNasError(f"{self._settings.name}: {told}")

    def _validate(self, epoch: int) -> None:
        """Validates the weights and their average, keeps the better if it is the best so far, and saves the state."""
        networks = self._networks()
        for network in networks.values():
            share_statistics(network, self._accelerator)
        found = self._validated(networks, self._validation, self._not_validated)
        check_images_are_to_blame(self._source.val, self._not_validated)
        if found is None:
            raise UsageError(f"{self._settings.data}: no validation image can be read.")
        self._check_finite(found["raw"]["loss"], epoch)  # before the best weights and the state are written
        finite = [name for name in found if math.isfinite(found[name]["loss"])]  # an average never loses a NaN again
        which = max(finite, key=lambda name: merit(found[name]))
        row = {"kind": "val", "epoch": epoch + 1, "weights": which, **found[which]}
        self._records.log(row | {f"raw_{k}": v for k, v in found["raw"].items()}, at=(epoch + 1) * self._batches.steps)
        better = self._best is None or merit(row) > merit(self._best)
        if better and self._records.save_best(networks[which].state_dict()):  # what a full disk refused is not the best
            self._best = row
        top5 = "" if row["top5"] is None else f", top-5 {row['top5']:.2f} %"
        averaged = " (average)" if which == "average" else ""
        accuracy = f"top-1 {row['top1']:.2f} %{top5}"
        self._note(f"epoch {epoch + 1}/{self._recipe.epochs}: {accuracy}, loss {row['loss']:.3f}{averaged}")
        self._epoch, self._step = epoch + 1, 0
        self._save()

    def _networks(self) -> dict[str, nn.Module]:
        """The weights and, if there is one, their average."""
        average = {} if self._average is None else {"average": self._average.module}
        return {"raw": self._plain} | average

    def _save(self) -> None:
        self._records.save_state(
            {
                "model": self._plain.state_dict(),
                "average": None if self._average is None else self._average.module.state_dict(),
                "optimiser": self._optimiser.state_dict(),
                "scaler": None if self._accelerator.scaler is None else self._accelerator.scaler.state_dict(),
                "epoch": self._epoch,
                "step": self._step,
                "loss_sum": float(self._loss_sum),
                "loss_steps": self._loss_steps,
                "classes": list(self._source.classes),
                "images": (len(self._source.train), len(self._source.val)),
                "seconds": time.monotonic() - self._started,
                "best": self._best,
                "unreadable": sorted(self._unreadable),
                "lines": self._records.lines,
            }
        )

    def _note(self, message: str) -> None:
        self._records.note(f"{self._settings.name}: {message}")
