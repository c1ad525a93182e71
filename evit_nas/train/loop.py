"""The training loop: timm's augmentation, optimiser, schedule and average; accelerate's devices and processes.

A training is a folder:

    train.yaml           settings, versions, command                          written once
    metrics.jsonl        training loss every few steps, validation every epoch
    checkpoint.pt        the state to go on from, every few minutes and after every epoch
    best.safetensors     the weights that validated best so far
    model.safetensors, trained.json, arch.yaml, curve.png                     when it is finished (`trained.py`)

One that was interrupted goes on exactly: on a processor the losses equal those of an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evit_nas import __version__
from evit_nas.data import open_source
from evit_nas.data.images import Images, Source
from evit_nas.data.preprocessing import Preprocessing
from evit_nas.errors import EvitNasError, RunError, UsageError
from evit_nas.network.model import EfficientViT, build
from evit_nas.runs import Journal, installed_versions, lock, to_yaml, write_atomically
from evit_nas.train import checkpoint
from evit_nas.train.batches import Batch, Mix, TrainingBatches, augmentation, validation_batches
from evit_nas.train.curve import write_curve
from evit_nas.train.recipe import Recipe
from evit_nas.train.settings import TrainRecord, TrainSettings
from evit_nas.train.status import TrainStatus, TrainWatcher
from evit_nas.trained import WEIGHTS, Trained
from evit_nas.yamlio import read_yaml, validate

RECORD, METRICS, CHECKPOINT, BEST = "train.yaml", "metrics.jsonl", "checkpoint.pt", "best.safetensors"
CHECKPOINT_EVERY_S = 120.0
LINES_AN_EPOCH = 10  # of training loss
GRAY = (0.5,)
NAMED = 3  # unreadable images in a message


@dataclass(frozen=True)
class Hardware:
    """What a training runs on; moves no number but speed and rounding."""

    workers: int = 0
    """Processes that load images, for each training process."""
    trackers: tuple[str, ...] = ()
    """Names that accelerate knows: tensorboard, wandb, mlflow, ..."""


def preprocessing_of(settings: TrainSettings) -> Preprocessing:
    """ImageNet's normalisation, as all published weights have it, whatever the data; gray images go from -1 to 1."""
    from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    colour = settings.arch.in_channels == 3
    return Preprocessing(
        input_size=(settings.arch.in_channels, *settings.arch.input_size),
        mean=IMAGENET_DEFAULT_MEAN if colour else GRAY * settings.arch.in_channels,
        std=IMAGENET_DEFAULT_STD if colour else GRAY * settings.arch.in_channels,
        interpolation="bicubic" if settings.recipe.interpolation == "random" else settings.recipe.interpolation,
        crop_pct=settings.recipe.crop_pct,
    )


def create(folder: Path, settings: TrainSettings, command: str) -> None:
    """A new training folder.

    Raises:
        RunError: there is a training already, or the folder cannot be written.
    """
    if (folder / RECORD).exists():
        raise RunError(f"{folder} holds a training already. Add --resume to go on with it, or choose another --out.")
    record = TrainRecord(
        evit_nas=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        command=command,
        settings=settings,
        versions=installed_versions(),
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / RECORD, to_yaml(record))
    except OSError as error:
        raise RunError(f"cannot write the training folder {folder}: {error.strerror}. Choose another --out.") from None


def read_record(folder: Path) -> TrainRecord:
    """What train.yaml in `folder` holds.

    Raises:
        UsageError: there is none, or it is damaged.
    """
    if not (folder / RECORD).is_file():
        raise UsageError(f"{folder} is not a training folder (it has no {RECORD}).")
    return validate(TrainRecord, read_yaml(folder / RECORD), str(folder / RECORD))


def train(folder: Path, watch: TrainWatcher, hardware: Hardware = Hardware()) -> Trained:
    """Takes the training in `folder` from wherever it stands to its end; one that is finished costs nothing.

    Raises:
        UsageError: data, weights or teacher cannot be used.
        RunError: another process is at it, or what was trained cannot be written.
        EvitNasError: the loss is not finite any more; the last good checkpoint is kept.
    """
    record = read_record(folder)
    if (folder / WEIGHTS).exists():
        return Trained.load(folder)
    training = _Training(folder, record, watch, hardware)
    with lock(folder) if training.first else nullcontext():
        return training.run()


class _Training:
    """One process's part of a training."""

    def __init__(self, folder: Path, record: TrainRecord, watch: TrainWatcher, hardware: Hardware) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        settings = record.settings
        self._folder, self._record, self._settings, self._recipe = folder, record, settings, settings.recipe
        self._watch, self._journal = watch, Journal(folder / METRICS)
        self._source = open_source(settings.data, seed=0)
        self._preprocessing = preprocessing_of(settings)
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        self._accelerator = Accelerator(
            cpu=several and not torch.accelerator.is_available(),  # else each process would believe itself alone
            mixed_precision="no" if self._recipe.precision == "fp32" else self._recipe.precision,
            gradient_accumulation_steps=self._recipe.accumulate,
            log_with=list(hardware.trackers) or None,
            project_dir=folder,
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
            step_scheduler_with_optimizer=False,
        )
        self.first = self._accelerator.is_main_process
        place = {"rank": self._accelerator.process_index, "processes": self._accelerator.num_processes}
        self._batches = TrainingBatches(
            self._source.train,
            augmentation(self._recipe, self._preprocessing),
            self._recipe,
            settings.seed,
            workers=hardware.workers,
            **place,
        )
        self._validation = validation_batches(self._source.val, self._preprocessing, workers=hardware.workers, **place)
        self._mix = Mix(self._recipe, len(self._source.classes), settings.seed) if self._recipe.mixed else None
        if hardware.trackers:
            flat = {name: value for name, value in self._recipe.model_dump().items() if value is not None}
            self._accelerator.init_trackers("evit-nas", flat | {"architecture": settings.name, "seed": settings.seed})

    def run(self) -> Trained:
        state = checkpoint.load_state(self._folder / CHECKPOINT)
        model, init = self._network(fresh=state is None)
        self._prepare(model)
        if state is not None:
            self._restore(state)
            self._note(f"{self._settings.name}: going on after epoch {self._epoch}, step {self._step}")
        if self.first:
            self._journal.repair()
            kept = [row for _, row in zip(range(state["lines"] if state else 0), self._journal.read(), strict=False)]
            write_atomically(self._folder / METRICS, "".join(json.dumps(row) + "\n" for row in kept))
        if state is None and init:
            self._log({"kind": "init", "init": init})
        self._started = time.monotonic() - (state["seconds"] if state else 0.0)
        self._trained_s, self._trained_images = 0.0, 0
        for epoch in range(self._epoch, self._recipe.epochs):
            self._train_epoch(epoch)
            self._validate(epoch)
        trained = self._finish(init or self._first_init())
        self._accelerator.end_training()
        return trained

    def _network(self, fresh: bool) -> tuple[EfficientViT, str]:
        """The network with its initial weights, and a line about where they are from; empty if not `fresh`."""
        arch = self._settings.arch
        if arch.num_classes != len(self._source.classes):
            raise UsageError(
                f"{self._settings.data} has {len(self._source.classes)} classes, but {self._folder / RECORD} was made "
                f"for {arch.num_classes}: the data have changed."
            )
        model = build(arch, self._settings.seed)
        if not fresh:
            return model, ""
        if self._settings.init == "scratch":
            return model, "scratch"
        from evit_nas.network.transfer import start_from

        transfer = start_from(model, self._settings.init, classes=self._source.classes)
        self._note(f"{self._settings.name}: {transfer.summary()}")
        return model, transfer.summary()

    def _first_init(self) -> str:
        return next((row["init"] for row in self._journal.read() if row["kind"] == "init"), self._settings.init)

    def _prepare(self, model: EfficientViT) -> None:
        """Optimiser, schedule, average and loss; everything at the start of the first epoch."""
        from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
        from timm.optim import create_optimizer_v2
        from timm.scheduler import create_scheduler_v2
        from timm.utils import ModelEmaV3

        recipe = self._recipe
        model.to(self._accelerator.device).to(memory_format=torch.channels_last)
        fused = {"fused": True} if recipe.optimiser in ("adam", "adamw") else {}
        optimiser = create_optimizer_v2(
            model, opt=recipe.optimiser, lr=recipe.peak_rate, weight_decay=recipe.weight_decay, **fused
        )
        schedule, _ = create_scheduler_v2(
            optimiser,
            num_epochs=recipe.epochs,
            min_lr=recipe.peak_rate * recipe.final_rate,
            warmup_lr=recipe.peak_rate * 1e-3,
            warmup_epochs=recipe.warmup_epochs,
            step_on_epochs=False,
            updates_per_epoch=self._batches.steps,
        )
        assert schedule is not None
        self._schedule = schedule
        self._plain = model
        self._average = ModelEmaV3(model, decay=recipe.average, use_warmup=True) if recipe.average else None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*broadcast_buffers.*", FutureWarning)  # accelerate knows only this name
            self._model, self._optimiser = self._accelerator.prepare(model, optimiser)
        soft = self._mix is not None
        self._loss: nn.Module = SoftTargetCrossEntropy() if soft else LabelSmoothingCrossEntropy(recipe.smoothing)
        self._teacher = None
        if self._settings.teacher:
            from evit_nas.train.teacher import open_teacher

            teacher = open_teacher(self._settings.teacher, self._source.classes, self._preprocessing)
            self._teacher = teacher.to(self._accelerator.device)
        self._epoch, self._step, self._lines = 0, 0, 0
        self._loss_sum, self._loss_steps = torch.zeros((), device=self._accelerator.device), 0
        self._best: dict[str, Any] | None = None
        self._unreadable: set[int] = set()

    def _restore(self, state: checkpoint.State) -> None:
        self._plain.load_state_dict(state["model"])
        if self._average is not None and state["average"] is not None:
            self._average.module.load_state_dict(state["average"])
        self._optimiser.load_state_dict(state["optimiser"])
        if self._accelerator.scaler is not None and state["scaler"] is not None:
            self._accelerator.scaler.load_state_dict(state["scaler"])
        self._epoch, self._step, self._lines = state["epoch"], state["step"], state["lines"]
        self._best, self._unreadable = state["best"], set(state["unreadable"])

    def _train_epoch(self, epoch: int) -> None:
        recipe, steps = self._recipe, self._batches.steps
        every = max(1, steps // LINES_AN_EPOCH)
        saved = last = time.monotonic()
        self._model.train()
        for step, part, batch in self._batches(epoch, self._step):
            with self._accelerator.accumulate(self._model):
                if part < self._accelerator.num_processes:  # the first part of a step
                    self._schedule.step_update(epoch * steps + step)
                loss = self._loss_of(batch, epoch, step, part)
                self._accelerator.backward(loss)
                if self._accelerator.sync_gradients and recipe.clip is not None:
                    self._accelerator.unscale_gradients()
                    _clip(self._plain, recipe)
                self._optimiser.step()
                self._optimiser.zero_grad(set_to_none=True)
            self._loss_sum += loss.detach() / recipe.accumulate
            if not self._accelerator.sync_gradients:
                continue
            self._step, self._loss_steps = step + 1, self._loss_steps + 1
            if self._average is not None:
                self._average.update(self._plain, step=epoch * steps + step + 1)
            if self._loss_steps >= every or self._step == steps:
                now = time.monotonic()
                self._report_loss(epoch, now - last)
                last = now
            if time.monotonic() - saved > CHECKPOINT_EVERY_S and not self._loss_steps:  # the loss was finite
                self._save()
                saved = last = time.monotonic()

    def _loss_of(self, batch: Batch, epoch: int, step: int, part: int) -> Tensor:
        self._unreadable.update(batch.unreadable[batch.unreadable >= 0].tolist())
        device = self._accelerator.device
        batch = Batch(
            batch.images.to(device, non_blocking=True, memory_format=torch.channels_last),
            batch.labels.to(device, non_blocking=True),
            batch.unreadable,
        )
        images, targets = self._mix(batch, epoch, step, part) if self._mix else (batch.images, batch.labels)
        with self._accelerator.autocast():
            logits = self._model(images)
            loss: Tensor = self._loss(logits.float(), targets)
            if self._teacher is None:
                return loss
            from evit_nas.train.teacher import distillation_loss

            recipe = self._recipe
            return distillation_loss(
                logits.float(),
                self._teacher(images).float(),
                loss,
                alpha=recipe.distil_share,
                tau=recipe.temperature,
                kind=recipe.distil,
            )

    def _report_loss(self, epoch: int, seconds: float) -> None:
        """A line of metrics, and a word to the watcher, about the steps since the last one."""
        steps = self._loss_steps
        loss = float(self._accelerator.reduce(self._loss_sum / steps, "mean"))
        self._check_finite(loss, epoch)
        images = steps * self._recipe.batch_size
        self._trained_s, self._trained_images = self._trained_s + seconds, self._trained_images + images
        rate = self._optimiser.param_groups[0]["lr"]
        row = {"kind": "train", "epoch": epoch + 1, "step": self._step, "loss": loss, "rate": rate}
        self._log(row, at=epoch * self._batches.steps + self._step)
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
            raise EvitNasError(
                f"{self._settings.name}: the loss is {loss} in epoch {epoch + 1}. The last good checkpoint is kept in "
                f"{self._folder}. Start anew with a lower rate (--set learning_rate="
                f"{self._recipe.learning_rate / 3:.2g}) or stronger clipping (--set clip_mode=norm --set clip=1)"
                + (", or in fp32 (--set precision=fp32)." if self._recipe.precision == "fp16" else ".")
            )

    def _validate(self, epoch: int) -> None:
        """Validates the weights and their average, keeps the better if it is the best so far, and saves the state."""
        self._share_statistics()
        networks: dict[str, nn.Module] = {"raw": self._plain}
        if self._average is not None:
            networks["average"] = self._average.module
        found = {name: self._validated(network) for name, network in networks.items()}
        self._check_finite(found["raw"]["loss"], epoch)
        which = max(found, key=lambda name: (found[name]["top1"], -found[name]["loss"]))
        row = {"kind": "val", "epoch": epoch + 1, "weights": which, **found[which]}
        self._log(row | {f"raw_{k}": v for k, v in found["raw"].items()}, at=(epoch + 1) * self._batches.steps)
        if self._best is None or (row["top1"], -row["loss"]) > (self._best["top1"], -self._best["loss"]):
            weights = networks[which].state_dict()
            if self._keep(lambda: checkpoint.save_weights(self._folder / BEST, weights, self._origin())):
                self._best = row
        top5 = "" if row["top5"] is None else f", top-5 {row['top5']:.2f} %"
        averaged = " (average)" if which == "average" else ""
        self._note(
            f"{self._settings.name}: epoch {epoch + 1}/{self._recipe.epochs}: top-1 {row['top1']:.2f} %{top5}, "
            f"loss {row['loss']:.3f}{averaged}"
        )
        self._epoch, self._step = epoch + 1, 0
        self._save()

    @torch.no_grad()
    def _validated(self, model: nn.Module) -> dict[str, Any]:
        """Top-1 and top-5 in percent and mean cross-entropy in nats over the validation images of all processes."""
        device = self._accelerator.device
        totals = torch.zeros(4, dtype=torch.float64)  # images, right, among five, loss
        model.eval()
        for images, labels, _ in self._validation:
            known = labels >= 0
            labels = labels[known].to(device)
            with self._accelerator.autocast():
                logits = model(images[known].to(device, memory_format=torch.channels_last)).float()
            ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices == labels[:, None]  # (B, 5)
            right, five = ranked[:, 0].sum(), ranked.any(1).sum()
            loss = F.cross_entropy(logits, labels, reduction="sum")
            totals += torch.stack([torch.tensor(len(labels), device=device), right, five, loss]).double().cpu()
        model.train()
        count, right, five, loss = self._accelerator.reduce(totals.float().to(device), "sum").double().tolist()
        if not count:
            raise UsageError(f"{self._settings.data}: no validation image can be read.")
        top5 = 100 * five / count if len(self._source.classes) > 5 else None
        return {"top1": 100 * right / count, "top5": top5, "loss": loss / count, "images": int(count)}

    def _share_statistics(self) -> None:
        """Sets running statistics of BatchNorm to their mean over processes, which each see other images."""
        if self._accelerator.num_processes > 1:
            for name, buffer in self._plain.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    buffer.copy_(self._accelerator.reduce(buffer, "mean"))

    def _save(self) -> None:
        state: checkpoint.State = {
            "model": self._plain.state_dict(),
            "average": None if self._average is None else self._average.module.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "scaler": None if self._accelerator.scaler is None else self._accelerator.scaler.state_dict(),
            "epoch": self._epoch,
            "step": self._step,
            "seconds": time.monotonic() - self._started,
            "best": self._best,
            "unreadable": sorted(self._unreadable),
            "lines": self._lines,
        }
        self._keep(lambda: checkpoint.save_state(self._folder / CHECKPOINT, state))

    def _keep(self, write: Callable[[], None]) -> bool:
        """Writes a file, in the first process only, and says if that went well; a full disk costs that file only."""
        if not self.first:
            return True
        try:
            write()
        except (OSError, RuntimeError) as error:  # torch wraps what the system says
            self._note(f"{self._settings.name}: cannot save in {self._folder}: {error}; training goes on")
            return False
        return True

    def _log(self, row: dict[str, Any], at: int = 0) -> None:
        self._lines += self._keep(lambda: self._journal.append(row))
        numbers = {f"{row['kind']}/{k}": v for k, v in row.items() if isinstance(v, float)}
        self._accelerator.log(numbers, step=at)

    def _note(self, message: str) -> None:
        if self.first:
            self._watch.note(message)

    def _origin(self) -> dict[str, str]:
        return {"evit_nas.arch": self._settings.arch.model_dump_json(), "evit_nas.version": __version__}

    def _finish(self, init: str) -> Trained:
        """Hands over the best weights and says what they are.

        Raises:
            RunError: they cannot be written; training has ended, so resuming does only this.
        """
        if self._best is None:
            raise RunError(f"nothing could be written to {self._folder}. Put that right, then train again.")
        settings, best = self._settings, self._best
        trained = Trained(
            name=settings.name,
            arch=settings.arch,
            classes=self._source.classes,
            preprocessing=self._preprocessing,
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
            command=self._record.command,
            versions={"evit_nas": __version__, **installed_versions()},
        )
        if self.first:
            self._say_unreadable(self._source)
            try:
                write_curve(list(self._journal.read()), settings.name, self._folder / "curve.png")
                trained.save(self._folder)
                (self._folder / BEST).replace(self._folder / WEIGHTS)
                (self._folder / CHECKPOINT).unlink(missing_ok=True)
            except OSError as error:
                raise RunError(
                    f"cannot write {self._folder}: {error.strerror}. Put that right, then add --resume; the training "
                    "itself is done."
                ) from None
        self._accelerator.wait_for_everyone()
        return trained

    def _say_unreadable(self, source: Source) -> None:
        if self._unreadable:
            images: Images = source.train
            names = [images.name(index) for index in sorted(self._unreadable)]
            more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
            self._note(f"{len(names)} training images could not be read: {', '.join(names[:NAMED])}{more}")


def _clip(model: EfficientViT, recipe: Recipe) -> None:
    """Clips the gradients; AGC leaves the classifier's alone, as its authors advise."""
    from timm.utils import dispatch_clip_grad

    assert recipe.clip is not None
    spared = set(map(id, model.head.parameters())) if recipe.clip_mode == "agc" else set()
    parameters = [parameter for parameter in model.parameters() if id(parameter) not in spared]
    dispatch_clip_grad(parameters, recipe.clip, mode=recipe.clip_mode)
