"""Which augmentation, rate and batch a small set of photographs wants: the grounds of `--recipe auto`.

    python benchmarks/recipes.py --data PHOTOS --out FOLDER [--images 2400] [--epochs 60] [--networks m0 m1]

Trains each network by each variant, for as many epochs, and prints validation accuracies as they come, with the
difference to the first variant. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from evit_nas.arch import ArchConfig
from evit_nas.data.sources import open_source
from evit_nas.latency.machine import probe
from evit_nas.stats import binomial_error
from evit_nas.training.hardware import Hardware
from evit_nas.training.network import train
from evit_nas.training.plan import Chosen, How, begin, plan
from evit_nas.training.recipe import RATE_BATCH, RECIPES, Recipe
from evit_nas.training.status import Silence

LIGHT: dict[str, Any] = {}
MEDIUM: dict[str, Any] = {"smallest_crop": 0.35, "auto_augment": "rand-m7-mstd0.5-inc1"}
MIXED = MEDIUM | {"mixup": 0.8, "cutmix": 1.0, "mix_chance": 0.5}
STRONG = {name: getattr(Recipe(), name) for name in ("smallest_crop", "auto_augment", "erasing", "mixup", "cutmix")}
VARIANTS: dict[str, tuple[dict[str, Any], int, float]] = {  # augmentation, batch, highest rate at that batch
    "medium": (MEDIUM, 64, 1.5e-3),
    "light": (LIGHT, 64, 1.5e-3),
    "mixed": (MIXED, 64, 1.5e-3),
    "strong": (STRONG, 64, 1.5e-3),
    "rate x 2": (MEDIUM, 64, 3e-3),
    "rate / 2": (MEDIUM, 64, 0.75e-3),
    "batch / 2": (MEDIUM, 32, 1e-3),
    "batch x 2": (MEDIUM, 128, 2e-3),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=["m0"])
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--workers", type=int, default=1, help="processes that load images")
    args = parser.parse_args()
    source = open_source(args.data, seed=0)
    print(f"machine: {probe()}\n{args.data}: {len(source.train)} + {len(source.val)} images", flush=True)
    for network in args.networks:
        first = None
        for variant in args.variants:
            top1 = trained_top1(network, variant, args)
            first = top1 if first is None else first
            error = binomial_error(top1, len(source.val))
            print(f"{network:4} {variant:10} {top1:6.2f} % ± {error:.2f} {top1 - first:+6.2f}", flush=True)


def trained_top1(network: str, variant: str, args: argparse.Namespace) -> float:
    """Validation accuracy in percent after training by a variant."""
    augmentation, batch, rate = VARIANTS[variant]
    fields = RECIPES["short"] | augmentation
    fields |= {"epochs": args.epochs, "warmup_epochs": min(5, args.epochs / 5), "batch_size": batch}
    fields["learning_rate"] = rate * RATE_BATCH / batch
    how = How(
        data=args.data,
        recipe_name=variant.replace(" ", "").replace("/", "by"),
        recipe=Recipe(**fields),
        image_size=args.image_size,
        out=args.out,
    )
    plans = plan([Chosen(network, ArchConfig.preset(network))], how)
    begin(plans, "benchmarks/recipes.py", resume=True)
    return train(plans[0][0], Silence(), Hardware(workers=args.workers)).top1


if __name__ == "__main__":
    main()
