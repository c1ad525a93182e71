"""Brings networks that were trained elsewhere by a table's recipe into it: nothing that was trained is thrown away.

    python benchmarks/extend_table.py benchmarks/labels/fashion-mnist-64.json benchmarks/held-out-fashion-mnist \\
        --data /usr/share/datasets/fashion-mnist

Takes the labels of the table's own data and recipe from each folder. Latencies of two machines do not compare, so all
networks, the old ones too, are measured once more on this one, where nothing else should run: strictly, in random
order. The table is written when everything is known.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evit_nas.accuracy.table import LabelTable, TrainedNetwork
from evit_nas.accuracy.zero_cost import score_all
from evit_nas.arch import ArchConfig
from evit_nas.data.cache import load_dataset
from evit_nas.latency import STRICT, open_device, parse_conditions
from evit_nas.latency.machine import probe
from evit_nas.searching.labelling.labels import Label, Labels

DEVICE = "cpu"  # of the shipped tables


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("table", type=Path)
    parser.add_argument("folders", type=Path, nargs="*", help="that hold labels.jsonl")
    parser.add_argument("--data", required=True)
    parser.add_argument("--seed", type=int, default=0, help="of the proxies")
    args = parser.parse_args()
    print(f"machine: {probe()}", flush=True)
    table = LabelTable.load(args.table)
    known = {network.arch.key: network for network in table.networks}
    digest = load_dataset(args.data, table.recipe.image_size, note=print).digest
    for folder in args.folders:
        for label in Labels(folder, args.data, digest, table.recipe).known().values():
            known[label.arch.key] = extended(known.get(label.arch.key), label)
    networks = list(known.values())
    latency_ms = measured([network.arch for network in networks])
    ratios = [latency_ms[network.arch.key] / network.latency_ms for network in table.networks]
    print(f"latencies of the {len(ratios)} old networks: {np.median(ratios):.2f} times those before (median)")
    complete = tuple(
        network.model_copy(
            update={
                "latency_ms": latency_ms[network.arch.key],
                "proxies": network.proxies or score_all(network.arch, seed=args.seed),
            }
        )
        for network in networks
    )
    table.model_copy(update={"networks": complete}).save(args.table)
    print(f"{args.table}: {len(complete)} networks, {sum(len(one.trainings) for one in complete)} trainings")


def extended(network: TrainedNetwork | None, label: Label) -> TrainedNetwork:
    """With one more training, unless that seed is known; a new network has no latency yet that counts."""
    training = label.training
    if network is None:
        return TrainedNetwork(arch=label.arch, latency_ms=1, trainings=(training,))
    if label.seed in {known.seed for known in network.trainings}:
        return network
    return network.model_copy(update={"trainings": (*network.trainings, training)})


def measured(archs: Sequence[ArchConfig]) -> dict[str, float]:
    """Medians in milliseconds by key."""
    with open_device(parse_conditions(DEVICE)) as device:
        return {
            arch.key: device.measure(arch, STRICT)[0].median_ms for arch in random.Random(0).sample(archs, len(archs))
        }


if __name__ == "__main__":
    main()
