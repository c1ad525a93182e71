"""Are two searches equally good? Compares the fronts of finished runs with one budget on one kind of device.

    python benchmarks/fronts.py runs/direct runs/through-a-worker

For each run: the hypervolume of its front (predicted accuracy or score, against the logarithm of latency, up to the
budget, above the lowest score that the fastest member of any front has), and the latencies of the paper's networks and
of the architectures that both fronts hold, relative to the first run.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import numpy as np

from evit_nas.pareto import hypervolume
from evit_nas.runs import Run
from evit_nas.searching.record import Front, load_front


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", nargs="+", type=Path)
    args = parser.parse_args()
    runs = [Run.open(path) for path in args.runs]
    fronts = [load_front(run) for run in runs]
    worst = min(member.score for front in fronts for member in front.members)
    budget = math.log(runs[0].settings.targets[0].budget_ms)
    volumes = []
    for front in fronts:
        points = np.array([[math.log(m.latency.median_ms), -m.score] for m in front.members])
        volumes.append(hypervolume(points, (budget, -worst)))
    first = latencies(fronts[0])
    for run, front, volume in zip(runs, fronts, volumes, strict=True):
        here = latencies(front)
        ratios = [here[key] / first[key] for key in here.keys() & first.keys()]
        off = statistics.median(abs(ratio - 1) for ratio in ratios)
        best = max(member.score for member in front.members)
        print(
            f"{run.path}: {len(front.members)} members, best {best:.3f}, hypervolume {volume / volumes[0]:.4f} of the "
            f"first; {len(ratios)} networks in common, latency {statistics.median(ratios):.3f} of the first's "
            f"(median), off by {100 * off:.1f} % (median)"
        )


def latencies(front: Front) -> dict[str, float]:
    return {each.arch.key: each.latency.median_ms for each in [*front.members, *front.references]}


if __name__ == "__main__":
    main()
