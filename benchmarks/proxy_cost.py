"""What does each zero-cost proxy cost, and does it rank networks alike for another seed?

    python benchmarks/proxy_cost.py [--network m0]

One thread, in CPU time of the thread, sets of proxies in turn, the least of the rounds. A proxy's own cost is what the
whole set costs more than the set without it: passes that others need as well are free. Prints the machine, the costs,
and the mean and the smallest rank correlation of scores for any two of the seeds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from itertools import combinations

from scipy.stats import spearmanr

from evit_nas.accuracy.aggregate import NAMES
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
    print(f"machine: {probe()}", flush=True)
    costs(args.network)
    for space in SPACES:
        stability(space)


def costs(preset: str) -> None:
    """Prints the seconds of the whole set, of what a search without labels asks for, and of each proxy."""
    arch = ArchConfig.preset(preset)
    sets = {"all": list(PROXIES), "search": list(NAMES)}
    sets |= {f"without {name}": [other for other in PROXIES if other != name] for name in SEEING}
    sets |= {f"only {name}": [name] for name in SEEING}
    taken = dict.fromkeys(sets, float("inf"))
    score_all(arch)  # the first one of a process is slower
    for _ in range(ROUNDS):
        for name in random.sample(list(sets), len(sets)):
            start = time.thread_time()
            score_all(arch, names=sets[name])
            taken[name] = min(taken[name], time.thread_time() - start)
    print(f"{preset} at 224 px, one thread, {ROUNDS} rounds: all {len(PROXIES)} proxies {taken['all']:.2f} s, ", end="")
    print(f"those of a search without labels {taken['search']:.2f} s")
    for name in SEEING:
        own, alone = taken["all"] - taken[f"without {name}"], taken[f"only {name}"]
        print(f"{name:17} draws {PROXIES[name].draws}   own cost {own:6.3f} s   alone {alone:6.3f} s", flush=True)


def stability(space: str) -> None:
    """Prints how alike two seeds rank random networks of a space."""
    rng = random.Random(0)
    loaded = SearchSpace.load(space)
    archs = [loaded.sample(rng) for _ in range(NETWORKS)]
    scores = [[score_all(arch, seed=seed, names=SEEING) for arch in archs] for seed in range(SEEDS)]
    print(f"{NETWORKS} networks of {space}, {SEEDS} seeds: rank correlation across seeds, mean and least")
    for name in SEEING:
        ranks = [[score[name] for score in seed] for seed in scores]
        found = [spearmanr(first, second).statistic for first, second in combinations(ranks, 2)]
        print(f"{name:17} {statistics.mean(found):.3f} {min(found):.3f}", flush=True)


if __name__ == "__main__":
    main()
