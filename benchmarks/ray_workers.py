"""How many more candidates a minute two workers train than one, each with a core of its own.

    python benchmarks/ray_workers.py --data FOLDER --space efficientvit-96 --networks 12

A cluster of a head that only measures and of one node with one core for each worker, all on this machine. Prints the
candidates a minute with one worker and with two, and their ratio. Starting up is not counted: each worker trains one
network before the clock runs.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

from ray.cluster_utils import Cluster as Nodes

from evit_nas.config import SearchSettings, ShortRecipe
from evit_nas.data.cache import load_dataset
from evit_nas.latency.machine import probe
from evit_nas.searching.labelling.labels import Job, Labels
from evit_nas.searching.parallel import Cluster
from evit_nas.space import SearchSpace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--space", default="efficientvit-tiny")
    parser.add_argument("--networks", type=int, default=12)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=2)
    wish = parser.parse_args()
    print(f"machine: {probe()}")
    recipe = ShortRecipe(images=wish.images, cycles=(wish.epochs,))
    pace = {workers: candidates_a_minute(workers, recipe, wish) for workers in (1, 2)}
    for workers, found in pace.items():
        print(f"{workers} worker{'s' if workers > 1 else ''}: {found:.1f} candidates a minute")
    print(f"two workers are {pace[2] / pace[1]:.2f} times as fast as one")


def candidates_a_minute(workers: int, recipe: ShortRecipe, wish: argparse.Namespace) -> float:
    space, rng = SearchSpace.load(wish.space), random.Random(0)
    warm, *jobs = [
        [Job(space.sample(rng), 0, 0) for _ in range(count)]
        for count in (workers, *[wish.networks // workers] * workers)
    ]
    os.environ.update(RAY_worker_niceness="0")  # as evit-nas starts Ray
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "resources": {"evit_device:cpu": 1}})
    for _ in range(workers):
        nodes.add_node(num_cpus=1)
    cluster_settings = {"address": nodes.address}  # as many trials at a time as there are cores for
    settings = SearchSettings.model_validate(
        {"space_name": wish.space, "space": space, "targets": [{"budget_ms": 1}], "cluster": cluster_settings}
    )
    digest = load_dataset(wish.data, recipe.image_size).digest
    with tempfile.TemporaryDirectory() as folder, Cluster(settings, Path(folder), print) as cluster:
        labels = Labels(Path(folder) / "labels", wish.data, digest, recipe, cluster.checkpoints)
        labels.collect(warm, workers, lambda *_: None, print, cluster)
        start = time.monotonic()
        labels.collect([job for part in jobs for job in part], workers, lambda *_: None, print, cluster)
        seconds = time.monotonic() - start
        done = len(labels.known()) - workers
    nodes.shutdown()
    return 60 * done / seconds


if __name__ == "__main__":
    main()
