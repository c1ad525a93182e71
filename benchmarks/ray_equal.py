"""Do one machine and a cluster find the same? One seed, deterministic scores and latencies, both engines.

    PYTHONPATH=. python benchmarks/ray_equal.py --trials 60 --workers 2

Prints the hypervolume of what each found (score and latency, against the worst of both), their ratio, and whether the
trials are the same ones with the same values.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np

from evit_nas.accuracy import zero_cost
from evit_nas.latency import DEVICES
from evit_nas.pareto import hypervolume
from tests.fakes import FakeDevice, fake_proxies
from tests.test_resume import Outcome, new_run, search


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    wish = parser.parse_args()
    DEVICES["fake"], zero_cost.score_all = FakeDevice, fake_proxies
    for seed in wish.seed:
        found, seconds = {}, {}
        for engine in ("local", "ray"):
            with tempfile.TemporaryDirectory() as folder:
                os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
                fields = {
                    "trials": wish.trials,
                    "seed": seed,
                    "engine": engine,
                    "cluster": {"concurrent": wish.workers},
                }
                start = time.monotonic()
                found[engine] = search(new_run(Path(folder) / "run", **fields))
                seconds[engine] = time.monotonic() - start
        points = {engine: front_of(outcome) for engine, outcome in found.items()}
        worst = np.concatenate(list(points.values())).max(0) + 1e-6
        volume = {engine: hypervolume(front, worst) for engine, front in points.items()}
        print(
            f"seed {seed}: hypervolume local {volume['local']:.6g}, ray {volume['ray']:.6g}, "
            f"ratio {volume['ray'] / volume['local']:.4f}; "
            f"the same trials: {found['local'].trials == found['ray'].trials}; "
            f"{seconds['local']:.0f} s and {seconds['ray']:.0f} s"
        )


def front_of(outcome: Outcome) -> np.ndarray:
    """(n, 2) minus the score and the latency of each member; lower is better."""
    return np.array([(-member.score, member.latency.median_ms) for member in outcome.front.members])


if __name__ == "__main__":
    main()
