"""Are latencies that are measured while a cluster is fully loaded those of the quiet machine?

    python benchmarks/ray_latency.py --networks 10

Ray on this machine scores networks in as many processes as there are cores beside the one that measures, without a
pause, while `--networks` architectures are measured as a search does at first; then all trials end and the same
architectures are measured again. Prints both figures and the paired ratios. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from functools import partial
from pathlib import Path

import numpy as np

from evit_nas.accuracy.zero_cost import score_all
from evit_nas.config import SearchSettings
from evit_nas.latency import Protocol
from evit_nas.latency.machine import probe
from evit_nas.searching.parallel import Cluster
from evit_nas.space import SearchSpace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=10)
    parser.add_argument("--space", default="efficientvit-224")
    wish = parser.parse_args()
    print(f"machine: {probe()}")
    space, rng = SearchSpace.load(wish.space), random.Random(0)
    archs = [space.sample(rng) for _ in range(wish.networks)]
    settings = SearchSettings.model_validate({"space_name": wish.space, "space": space, "targets": [{"budget_ms": 5}]})
    with tempfile.TemporaryDirectory() as folder, Cluster(settings, Path(folder), print) as cluster:
        device = cluster.devices[0]
        device.measure(archs[0], Protocol())  # opens it
        first = [cluster.submit(partial(score_all, seed=0), space.sample(rng)) for _ in range(2 * cluster.concurrent)]
        waiting = [cluster.submit(partial(score_all, seed=0), space.sample(rng)) for _ in range(1000)]
        first[0].result()  # every worker is at it
        loaded = [device.measure(arch, Protocol())[0] for arch in archs]
        busy = not waiting[-1].done()
        cluster.rest()
        quiet = [device.measure(arch, Protocol())[0] for arch in archs]
    print(f"{cluster.concurrent} workers, busy until the end: {busy}")
    print(f"\n{'loaded ms':>10}{'quiet ms':>10}{'ratio':>8}  noise")
    for there, here in zip(loaded, quiet, strict=True):
        ratio = there.median_ms / here.median_ms
        print(f"{there.median_ms:10.3f}{here.median_ms:10.3f}{ratio:8.3f}  {there.noise or 'quiet'}")
    ratios = np.array([there.median_ms / here.median_ms for there, here in zip(loaded, quiet, strict=True)])
    print(f"\npaired ratio: median {np.median(ratios):.3f}, from {ratios.min():.3f} to {ratios.max():.3f}")


if __name__ == "__main__":
    main()
