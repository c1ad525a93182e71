"""How long the default search takes in two versions of evit-nas, and how good its front is.

    python benchmarks/search_time.py BEFORE AFTER --seeds 3 --out FOLDER

BEFORE and AFTER are checkouts. Each search starts as on a machine where nothing was ever measured but the yardstick,
which is learnt first and is the same for all; the two versions take turns. Needs an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from fronts import volumes

from evit_nas.latency.machine import probe
from evit_nas.runs import Run
from evit_nas.searching.record import load_front

BUDGET_MS = 5.0


def main() -> None:
    """Prints a row for each search, and the ratios of the two versions."""
    parser = argparse.ArgumentParser(description="Compares the default search of two checkouts.")
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True, help="a folder for runs and caches")
    arguments = parser.parse_args()
    learnt = arguments.out / "cache"
    call(arguments.after, learnt, "measure", "m0")
    for table in learnt.rglob("latency-*.jsonl"):
        table.unlink()
    seconds: dict[str, list[float]] = {"before": [], "after": []}
    runs: dict[str, list[Run]] = {"before": [], "after": []}
    for seed in range(arguments.seeds):
        for name, checkout in (("before", arguments.before), ("after", arguments.after)):
            cache, out = arguments.out / f"cache-{name}-{seed}", arguments.out / f"{name}-{seed}"
            shutil.copytree(learnt, cache)
            start = time.monotonic()
            call(checkout, cache, "search", "--budget", f"{BUDGET_MS:g}ms", "--seed", str(seed), "--out", str(out))
            seconds[name].append(time.monotonic() - start)
            runs[name].append(Run.open(out))
    print(f"machine: {probe()}\n")
    print("| seed | before s | after s | time | hypervolume of the front |")
    print("| --- | --- | --- | --- | --- |")
    ratios = []
    for seed in range(arguments.seeds):
        first, second = volumes([load_front(runs[name][seed]) for name in ("before", "after")], BUDGET_MS)
        before_s, after_s = seconds["before"][seed], seconds["after"][seed]
        ratios.append((after_s / before_s, second / first))
        print(f"| {seed} | {before_s:.0f} | {after_s:.0f} | {ratios[-1][0]:.3f} | {ratios[-1][1]:.4f} |")
    time_ratio, volume_ratio = (statistics.geometric_mean(column) for column in zip(*ratios, strict=True))
    print(f"| geometric mean | | | **{time_ratio:.3f}** | **{volume_ratio:.4f}** |")


def call(checkout: Path, cache: Path, *words: str) -> None:
    """Runs evit-nas of a checkout with its own cache."""
    environment = os.environ | {"PYTHONPATH": str(checkout.resolve()), "XDG_CACHE_HOME": str(cache.resolve())}
    cache.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "evit_nas", *words], env=environment, cwd=cache, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(done.stdout + done.stderr)


if __name__ == "__main__":
    main()
