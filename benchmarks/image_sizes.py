"""Do the trained networks of a table tell which ones are better at another image size?

    python benchmarks/image_sizes.py --data /usr/share/datasets/fashion-mnist --image-size 96 --networks 24

Trains some networks of the table once more by its recipe, with larger images, and prints Kendall's tau with that among
all of them and among rivals of about equal latency: of their own labels at the table's size, of the predictor that was
fitted to the others (cross-validated), of the zero-cost aggregate, and of sizes. It goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from evit_nas.accuracy.aggregate import NAMES, RankAggregate
from evit_nas.accuracy.features import table as features_of
from evit_nas.accuracy.labels import Job, Label, Labels
from evit_nas.accuracy.predictor import cross_validated
from evit_nas.accuracy.table import LabelTable
from evit_nas.config import SHIPPED
from evit_nas.data import load_dataset
from evit_nas.latency.machine import probe
from evit_nas.stats import bootstrap, kendall_tau, rivals


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--table", default=SHIPPED)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--networks", type=int, default=24, help="of the table, from its beginning")
    parser.add_argument("--out", type=Path, default=Path("runs/image-sizes"))
    args = parser.parse_args()
    print(f"machine: {probe()}", flush=True)
    table = LabelTable.load(args.table)
    recipe = table.recipe.model_copy(update={"image_size": args.image_size})
    labels = Labels(args.out, args.data, load_dataset(args.data, args.image_size, note=print).digest, recipe)
    jobs = [Job(arch, 0, recipe.last_rung) for arch in table.archs[: args.networks]]
    labels.collect(jobs, os.cpu_count() or 1, told, print)

    losses = {key: label.score.cross_entropy for (key, _), label in labels.known().items()}
    at = np.array([index for index, arch in enumerate(table.archs) if arch.key in losses])
    truth = -np.array([losses[table.archs[index].key] for index in at])  # higher is better
    latency_ms = table.latency_ms[at]
    print(f"{len(at)} networks, {int(rivals(len(at), latency_ms).sum()) // 2} pairs of rivals at {args.image_size} px")
    for name, scores in scores_of(table).items():

        def iso(index: np.ndarray, scores: np.ndarray = scores[at]) -> float:
            return kendall_tau(scores[index], truth[index], latency_ms[index])

        print(f"{name:28} tau {kendall_tau(scores[at], truth):5.2f}, iso tau {bootstrap(iso, len(at), seed=0)}")


def told(job: Job, label: Label) -> None:
    print(f"{job.arch.key}: {100 * label.score.accuracy:.2f} %, {label.seconds:.0f} s", flush=True)


def scores_of(table: LabelTable) -> dict[str, np.ndarray]:
    """(n,) what the table says of each of its networks without having seen it at another size; higher is better."""
    truth, noise = table.truth()
    (held_out,) = cross_validated(features_of(table.archs), truth, noise)
    proxies = [network.proxies for network in table.networks]
    aggregate = RankAggregate.fit([one for one in proxies if all(name in one for name in NAMES)])
    sizes = features_of(table.archs, ["size"])
    return {
        f"own labels at {table.recipe.image_size} px": truth,
        "predictor, cross-validated": held_out.mean,
        "zero-cost aggregate": np.array([aggregate.score(one) for one in proxies]),
        "macs": sizes[:, 1],
        "params": sizes[:, 0],
    }


if __name__ == "__main__":
    main()
