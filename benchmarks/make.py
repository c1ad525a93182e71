"""`make` on a folder of photographs, against m0 and m1 trained for the same time on the same ones.

    python benchmarks/make.py --data PHOTOS --budget 5ms --minutes 60 --out FOLDER
    python benchmarks/make.py --data PHOTOS --found benchmarks/made/ten-60m.yaml --epochs 87 --out FOLDER

The second trains the rivals only. Photographs that no table of labels was trained on make it a fair trial. The same
time means as many epochs as fit: steps of the networks are timed in turn, and the ratio decides, so that a shared
machine's moods favour nobody. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import evit_nas
from evit_nas import ArchConfig
from evit_nas.data.look import look
from evit_nas.data.sources import open_source
from evit_nas.latency.machine import probe
from evit_nas.training.hardware import Hardware, loaders
from evit_nas.training.network import NetworkRun
from evit_nas.training.pace import pace_of
from evit_nas.training.session import Asked, prepare

RIVALS = ("m0", "m1")
TURNS, WATCHED_S = 5, 3000.0  # each network's pace is watched so often, as for a training of so long


def epochs_of(data: str, found: Path, epochs: int, size: int, scratch: Path) -> dict[str, int]:
    """The epochs of each rival in the time that the found network's take."""
    hardware = Hardware(workers=loaders(None))
    asked = Asked(what=[found, *RIVALS], data=data, image_size=size, out=scratch)
    plans = [settings for _, settings in prepare(replace(asked, changes={"epochs": 1}), hardware, print).plans]
    turns = [[pace_of(NetworkRun, settings, hardware, WATCHED_S).epoch_s for settings in plans] for _ in range(TURNS)]
    ratios = [median(own / rival for own, rival in zip(column, other, strict=True)) for column, other in _beside(turns)]
    for name, ratio in zip(RIVALS, ratios, strict=True):
        print(f"an epoch of the found network takes {ratio:.2f} times as long as one of {name}", flush=True)
    return {name: round(epochs * ratio) for name, ratio in zip(RIVALS, ratios, strict=True)}


def _beside(turns: list[list[float]]) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    first, *others = zip(*turns, strict=True)
    return [(first, other) for other in others]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--budget", default="5ms")
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--found", type=Path, help="made before; with --epochs")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    print(f"machine: {probe()}\n{look(open_source(args.data, seed=0))}", flush=True)
    if args.found is None:
        start = time.monotonic()
        model = evit_nas.make(args.data, args.budget, time=f"{args.minutes}m", out=args.out / "made")
        print(f"made in {(time.monotonic() - start) / 60:.0f} min: {model}", flush=True)
        trained = model.shipped.trained
        args.found, args.epochs = args.out / "found.yaml", trained.recipe["epochs"]
        args.found.write_text(trained.arch.to_yaml())
    size = ArchConfig.load(args.found).input_size[0]
    for name, epochs in epochs_of(args.data, args.found, args.epochs, size, args.out / "paces").items():
        out = args.out / "rivals"
        print(evit_nas.train(name, data=args.data, image_size=size, epochs=epochs, out=out, ship=False, resume=True))


if __name__ == "__main__":
    main()
