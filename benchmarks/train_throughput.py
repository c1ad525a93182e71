"""Images a second in training: this package's loop beside a plain one made of timm's parts, on the same network.

    python benchmarks/train_throughput.py --data /usr/share/datasets/fashion-mnist --arch m1 --image-size 64

Both read the same folder of images and train the same network with the same augmentation, optimiser, clipping and
batch, in turns; what is compared is the ratio within a turn, so other load on the machine falls out. The plain loop is
timm's `create_loader`, `create_optimizer_v2`, and forward, backward, clip, step. Ours does all of its own work besides:
metrics, average of the weights, checkpoints. The first tenth of each epoch, while workers start, is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from timm.data import create_dataset, create_loader
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import dispatch_clip_grad

from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.data.sources import open_source
from evit_nas.latency.machine import probe
from evit_nas.network.model import build
from evit_nas.training.folder import create
from evit_nas.training.hardware import Hardware
from evit_nas.training.network import train
from evit_nas.training.recipe import load_recipe
from evit_nas.training.records import steps_a_line
from evit_nas.training.settings import TrainSettings


class Speed:
    """Collects how fast the steps between two looks at the loss were."""

    def __init__(self) -> None:
        self.statuses: list = []

    def note(self, message: str) -> None: ...

    def trained(self, status) -> None:
        self.statuses.append(status)

    @property
    def images_per_s(self) -> float:
        counted = [
            (status.images_per_s, status.step - before.step)
            for before, status in pairwise(self.statuses)
            if before.step >= steps_a_line(status.steps)
        ]
        return statistics.harmonic_mean(*zip(*counted, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--arch", default="m1", help="m0..m5 or a YAML file")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--images", type=int, default=6400, help="of an epoch")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    arch = ArchConfig.preset(args.arch) if args.arch in PRESETS else ArchConfig.load(args.arch)
    print(f"machine: {probe()}\ntorch {torch.__version__}, {torch.get_num_threads()} threads, {args.workers} loaders")
    with TemporaryDirectory() as folder:
        classes = write_images(Path(folder) / "images", args.data, args.images)
        arch = arch.model_copy(update={"image_size": args.image_size, "num_classes": classes})
        settings = TrainSettings(
            name=args.arch,
            arch=arch,
            data=f"{folder}/images",
            recipe_name="short",
            recipe=load_recipe("short", {"epochs": 1, "warmup_epochs": 0}),
        )
        print(f"{args.arch} at {args.image_size} px, batches of {settings.recipe.batch_size}", flush=True)
        ratios = []
        for turn in range(1, args.turns + 1):
            theirs = plain_images_per_s(settings, args.workers)
            ours = own_images_per_s(Path(folder) / f"turn{turn}", settings, args.workers)
            ratios.append(ours / theirs)
            print(f"turn {turn}: plain {theirs:.0f} images/s, evit-nas {ours:.0f}, ratio {ratios[-1]:.2f}", flush=True)
    print(f"median ratio: {statistics.median(ratios):.2f}")


def write_images(root: Path, data: str, count: int) -> int:
    """The first images of the data as PNG files, ten of each class for validation; the number of classes."""
    source = open_source(data, seed=0)
    written = dict.fromkeys(source.classes, 0)
    for index in range(count + 10 * len(written)):
        image, label = source.train[index]
        name = source.classes[label]
        written[name] += 1
        folder = root / ("val" if written[name] <= 10 else "train") / name
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{index}.png")
    return len(written)


def own_images_per_s(folder: Path, settings: TrainSettings, workers: int) -> float:
    speed = Speed()
    create(folder, settings, "benchmark")
    train(folder, speed, Hardware(workers=workers))
    return speed.images_per_s


def plain_images_per_s(settings: TrainSettings, workers: int) -> float:
    recipe, preprocessing = settings.recipe, settings.preprocessing
    loader = create_loader(
        create_dataset("", root=f"{settings.data}/train"),
        input_size=preprocessing.input_size,
        batch_size=recipe.batch_size,
        is_training=True,
        scale=(recipe.smallest_crop, 1.0),
        hflip=recipe.flip,
        color_jitter=recipe.colour_jitter,
        auto_augment=recipe.auto_augment,
        re_prob=recipe.erasing,
        re_mode="pixel",
        interpolation=recipe.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        num_workers=workers,
        device=torch.device("cpu"),
        use_prefetcher=False,
    )
    model = build(settings.arch, settings.seed).train()
    optimiser = create_optimizer_v2(model, opt="adamw", lr=recipe.peak_rate, weight_decay=recipe.weight_decay)
    loss_of = LabelSmoothingCrossEntropy(recipe.smoothing)
    uncounted = steps_a_line(len(loader))
    for step, (images, labels) in enumerate(loader):
        if step == uncounted:
            start = time.perf_counter()
        loss = loss_of(model(images), labels)
        optimiser.zero_grad()
        loss.backward()
        dispatch_clip_grad(model.parameters(), recipe.clip, mode=recipe.clip_mode)
        optimiser.step()
    return (len(loader) - uncounted) * recipe.batch_size / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
