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
from collections.abc import Sequence
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
    found = volumes(fronts, runs[0].settings.targets[0].budget_ms)
    first = latencies(fronts[0])
    for run, front, volume in zip(runs, fronts, found, strict=True):
        here = latencies(front)
        ratios = [here[key] / first[key] for key in here.keys() & first.keys()]
        off = statistics.median(abs(ratio - 1) for ratio in ratios)
        best = max(member.score for member in front.members)
        print(
            f"{run.path}: {len(front.members)} members, best {best:.3f}, hypervolume {volume / found[0]:.4f} of the "
            f"first; {len(ratios)} networks in common, latency {statistics.median(ratios):.3f} of the first's "
            f"(median), off by {100 * off:.1f} % (median)"
        )


def volumes(fronts: Sequence[Front], budget_ms: float) -> list[float]:
    """The hypervolume of each front by the milliseconds of the first: the paper's networks say how these compare."""
    worst = min(member.score for front in fronts for member in front.members)
    first = {each.arch.key: each.latency.median_ms for each in fronts[0].references}
    found = []
    for front in fronts:
        scale = statistics.median(each.latency.median_ms / first[each.arch.key] for each in front.references)
        points = np.array([[math.log(m.latency.median_ms / scale), -m.score] for m in front.members])
        found.append(hypervolume(points, (math.log(budget_ms), -worst)))
    return found


def latencies(front: Front) -> dict[str, float]:
    return {each.arch.key: each.latency.median_ms for each in [*front.members, *front.references]}


if __name__ == "__main__":
    main()
