"""What does each zero-cost proxy cost, and does it rank networks alike for another seed?

    python benchmarks/proxy_cost.py [--network m0]

One thread, in CPU time of the thread, in turn, the least of the rounds. A proxy's own cost is what it adds to a network
on which all the others have been scored: passes that they need as well are free. Prints the machine, the costs, and the
mean and the smallest rank correlation of scores for any two of the seeds, and those with two sizes.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from itertools import combinations

import torch
from scipy.stats import spearmanr

from evit_nas.accuracy.aggregate import NAMES
from evit_nas.accuracy.bench import Bench
from evit_nas.accuracy.zero_cost import PROXIES, score_all
from evit_nas.arch import ArchConfig
from evit_nas.latency.machine import probe
from evit_nas.space import SearchSpace

ROUNDS = 5
SPACES = ("efficientvit-tiny", "efficientvit-96")
NETWORKS, SEEDS = 24, 3
SEEING = [name for name, proxy in PROXIES.items() if not proxy.is_size]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", default="m0", help="a preset, at 224 px")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"machine: {probe()}", flush=True)
    costs(args.network)
    for space in SPACES:
        stability(space)


def costs(preset: str) -> None:
    """Prints the seconds of the whole set, of what a search without labels asks for, and of each proxy."""
    arch = ArchConfig.preset(preset)
    jobs = {
        "all": lambda: seconds(lambda: score_all(arch)),
        "search": lambda: seconds(lambda: score_all(arch, names=NAMES)),
    }
    for name in SEEING:
        jobs[f"{name} alone"] = lambda name=name: seconds(lambda: score_all(arch, names=[name]))
        jobs[f"{name} added"] = lambda name=name: added_seconds(name, arch)
    score_all(arch)  # the first one of a process is slower
    rounds = [{job: jobs[job]() for job in random.sample(list(jobs), len(jobs))} for _ in range(ROUNDS)]
    least = {job: min(taken[job] for taken in rounds) for job in jobs}
    print(f"{preset} at 224 px, one thread, {ROUNDS} rounds: all {len(PROXIES)} proxies {least['all']:.2f} s, ", end="")
    print(f"those of a search without labels {least['search']:.2f} s")
    for name in SEEING:
        added, alone = least[f"{name} added"], least[f"{name} alone"]
        print(f"{name:17} draws {PROXIES[name].draws}   own cost {added:.3f} s   alone {alone:.3f} s", flush=True)


def seconds(run: Callable[[], object]) -> float:
    start = time.thread_time()
    run()
    return time.thread_time() - start


def added_seconds(name: str, arch: ArchConfig) -> float:
    total = 0.0
    for draw in range(PROXIES[name].draws):
        bench = Bench(arch, seed=draw)
        for other, proxy in PROXIES.items():
            if other != name and draw < proxy.draws:
                proxy.score(bench)
        total += seconds(lambda bench=bench: PROXIES[name].score(bench))
    return total


def stability(space: str) -> None:
    """Prints how alike two seeds rank random networks of a space, and how much of a size a proxy is."""
    rng = random.Random(0)
    loaded = SearchSpace.load(space)
    archs = [loaded.sample(rng) for _ in range(NETWORKS)]
    scores = [[score_all(arch, seed=seed) for arch in archs] for seed in range(SEEDS)]
    columns = [{name: [network[name] for network in seed] for name in PROXIES} for seed in scores]
    print(f"{NETWORKS} networks of {space}, {SEEDS} seeds: rank correlations")
    for name in SEEING:
        found = [spearmanr(first[name], second[name]).statistic for first, second in combinations(columns, 2)]
        with_size = [spearmanr(columns[0][name], columns[0][size]).statistic for size in ("macs", "depth")]
        print(f"{name:17} across seeds, mean {statistics.mean(found):.3f} least {min(found):.3f}   ", end="")
        print("with macs {:5.2f}, with depth {:5.2f}".format(*with_size), flush=True)


if __name__ == "__main__":
    main()
