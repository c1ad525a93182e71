"""Weights worth having? Networks that go on from a supernet's for a quarter of the epochs, against scratch with all.

    evit-nas search --supernet SUPERNET --budget 5ms --out RUN
    PYTHONPATH=. python benchmarks/inherited.py SUPERNET RUN/NAME... --data PHOTOS --epochs 4 --out FOLDER

For each network and seed: the validation accuracy with the weights as they lie in the supernet, after a quarter of the
epochs from there, and after all of them from scratch, by the recipe `short`. Prints each as it comes and means over
seeds at the end. The same command goes on where it was stopped; `--seeds 0` and `--seeds 1` may run side by side, which
two cores like better than one training after the other.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean
from typing import Any

import evit_nas
from evit_nas.latency.machine import probe
from evit_nas.network.supernet import Supernet
from evit_nas.stats import binomial_error
from evit_nas.trained import Trained

SHARE = 4  # of the epochs from scratch one in so many, from inherited weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("supernet", type=Path)
    parser.add_argument("networks", nargs="+", help="presets, YAML files, or RUN/NAME")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=4, help=f"from scratch; a multiple of {SHARE}")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3, help="highest, from scratch")
    parser.add_argument("--inherited-rate", type=float, default=1e-3, help="highest, from inherited weights")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    supernet = Supernet.load(args.supernet)
    print(f"machine: {probe()}", flush=True)
    print(
        f"supernet of {supernet.name}: {supernet.epoch} epochs; its largest {supernet.largest_top1:.1f} %", flush=True
    )
    found: dict[tuple[str, str], list[float]] = {}
    starts: dict[str, tuple[str | Path, int, float]] = {
        "quarter": (args.supernet, args.epochs // SHARE, args.inherited_rate),
        "scratch": ("scratch", args.epochs, args.rate),
    }
    for network in args.networks:
        [inherited] = evit_nas.evaluate(f"{args.supernet}#{network}", data=args.data, workers=args.workers)
        told(network, "as inherited", inherited.top1, inherited.images)
        found[network, "as inherited"] = [inherited.top1]
        for seed in args.seeds:
            for name, (init, epochs, rate) in starts.items():
                words = {"init": init, "epochs": epochs, "lr": rate, "seed": seed, "out": args.out / name}
                trained = training(network, args, **words)
                told(network, f"{name}, seed {seed}", trained.top1, trained.validation_images)
                found.setdefault((network, name), []).append(trained.top1)
    print(f"\nmeans over seeds {args.seeds}, validation accuracy in percent")
    for (network, name), values in found.items():
        print(f"{Path(network).name:24} {name:12} {fmean(values):6.2f}")


def training(network: str, args: argparse.Namespace, **words: Any) -> Trained:
    """One training to its end."""
    size = Supernet.load(args.supernet).largest.image_size
    words |= {"data": args.data, "image_size": size, "batch_size": args.batch_size, "workers": args.workers}
    [trained] = evit_nas.train(network, recipe="short", ship=False, resume=True, **words)
    return trained


def told(network: str, what: str, top1: float, images: int) -> None:
    print(f"{Path(network).name:24} {what:16} {top1:6.2f} ± {binomial_error(top1, images):.2f} %", flush=True)


if __name__ == "__main__":
    main()
