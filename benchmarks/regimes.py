"""Trains the networks of a table once more where images, classes or the recipe are others, and writes that table.

    python benchmarks/regimes.py --data PHOTOS --image-size 112 --images 24240 --epochs 4 --out FOLDER --export TABLE
    python benchmarks/regimes.py --data PHOTOS --classes 10 --image-size 112 --images 2400 --epochs 40 --out FOLDER

The networks that both seeds are trained of come first (the paper's, from which the spread between seeds is known), the
others in random order, so that a pool that was stopped is a fair sample of the whole. The same command goes on.
Latencies and proxies are those of the first table: they are the architectures' own, whatever they are trained on.

Prints Kendall's tau with the new labels, among all networks and among rivals of about equal latency: of the labels of
the first table, of its predictor (cross-validated), of the zero-cost aggregate, and of sizes.
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path

import numpy as np

from evit_nas.accuracy import evidence
from evit_nas.accuracy.aggregate import NAMES, RankAggregate
from evit_nas.accuracy.features import table as features_of
from evit_nas.accuracy.predictor import cross_validated
from evit_nas.accuracy.table import SHIPPED_TABLE, LabelTable, TrainedNetwork
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.config import ShortRecipe
from evit_nas.data.cache import load_dataset
from evit_nas.data.dataset import Dataset
from evit_nas.latency.machine import probe
from evit_nas.searching.labelling.labels import Job, Label, Labels
from evit_nas.stats import bootstrap, kendall_tau, rivals, spread


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--table", default=SHIPPED_TABLE, help="whose networks are trained")
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--images", type=int, default=24_240, help="training images, of all classes alike")
    parser.add_argument("--classes", type=int, help="only the first ones by name")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--networks", type=int, help="not more, from the beginning of the order")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--export", type=Path, help="the table to write")
    args = parser.parse_args()
    print(f"machine: {probe()}", flush=True)
    source = LabelTable.load(args.table)
    data = some_classes(args.data, args.classes, args.out) if args.classes else args.data
    dataset = load_dataset(data, args.image_size, note=print)
    recipe = ShortRecipe(image_size=args.image_size, images=args.images, cycles=(args.epochs,))
    labels = Labels(args.out, data, dataset.digest, recipe)
    jobs = ordered(source, recipe)[: args.networks]
    labels.collect(jobs, args.workers, told, print)
    table = table_of(source, labels, dataset)
    report(source, table)
    if args.export:
        table.save(args.export)


def some_classes(data: str, classes: int, out: Path) -> str:
    """A folder of links to the first `classes` classes of the folder `data`."""
    folder = (out / f"{Path(data).name}-{classes}").absolute()
    for split in ("train", "val"):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for path in sorted(Path(data, split).iterdir())[:classes]:
            link = folder / split / path.name
            if not link.exists():
                link.symlink_to(path.resolve())
    return str(folder)


def ordered(source: LabelTable, recipe: ShortRecipe) -> list[Job]:
    """Every training that is wanted, the most telling first."""
    papers = {ArchConfig.preset(name).key for name in PRESETS}
    twice = [arch for arch in source.archs if arch.key in papers]
    others = [arch for arch in source.archs if arch.key not in papers]
    archs = [*twice, *random.Random(0).sample(others, len(others))]
    pairs = [(arch, 0) for arch in twice] + [(arch, 1) for arch in twice] + [(arch, 0) for arch in archs[len(twice) :]]
    return [Job(arch, seed, recipe.last_rung) for arch, seed in pairs]


def told(job: Job, label: Label) -> None:
    score = label.score
    reached = f"{100 * score.accuracy:.2f} %, cross-entropy {score.cross_entropy:.4f}"
    print(f"{job.arch.key} seed {job.seed}: {reached}, {label.seconds:.0f} s", flush=True)


def table_of(source: LabelTable, labels: Labels, dataset: Dataset) -> LabelTable:
    """The networks of `source` that have been trained, with what that came to."""
    trainings = labels.trainings()
    networks = [
        TrainedNetwork.model_validate(network.model_dump() | {"trainings": trainings[network.arch.key]})
        for network in source.networks
        if network.arch.key in trainings
    ]
    return labels.table(dataset, source.device, networks)


def report(source: LabelTable, table: LabelTable) -> None:
    index = {arch.key: at for at, arch in enumerate(source.archs)}
    at = np.array([index[arch.key] for arch in table.archs])
    (truth, _), latency_ms = table.truth(), table.latency_ms
    print(f"{len(at)} networks, {int(rivals(len(at), latency_ms).sum()) // 2} pairs of rivals; {table.origin}")
    if len([one for one in table.networks if len(one.trainings) > 1]) > 1:
        print(f"spread: {spread(table.labels(), latency_ms)}")
    for name, scores in scores_of(source).items():

        def iso(index: np.ndarray, scores: np.ndarray = scores[at]) -> float:
            return kendall_tau(scores[index], truth[index], latency_ms[index])

        print(f"{name:28} tau {kendall_tau(scores[at], truth):5.2f}, iso tau {bootstrap(iso, len(at), seed=0)}")


def scores_of(table: LabelTable) -> dict[str, np.ndarray]:
    """(n,) what the table says of each of its networks without having seen it in another regime; higher is better."""
    truth, _ = table.truth()
    (held_out,) = cross_validated(evidence.of_table(table), evidence.published())
    proxies = [network.proxies for network in table.networks]
    aggregate = RankAggregate.fit([one for one in proxies if all(name in one for name in NAMES)])
    sizes = features_of(table.archs, ["size"])
    return {
        f"labels of {table.data} at {table.recipe.image_size} px": truth,
        "their predictor": -held_out.mean,
        "zero-cost aggregate": np.array([aggregate.score(one) for one in proxies]),
        "macs": sizes[:, 1],
        "params": sizes[:, 0],
    }


if __name__ == "__main__":
    main()
