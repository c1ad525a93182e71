"""Are milliseconds right the first time? First uses of a machine that has never measured, quiet and beside other work.

    python benchmarks/first_use.py              # twenty, each with an empty cache of its own

In turn nothing else runs, one busy loop, one on every core, and a loop that copies memory. Each use is what a newcomer
types, `evit-nas measure m0 m2 m4`. Prints the machine, every figure, what each use said of its own uncertainty, and how
far figures are from the median of the quiet uses.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from evit_nas.latency.machine import measuring_core, probe

BUSY = "while True: sum(i * i for i in range(10_000))"
COPY = "import numpy as np; a = np.ones(2**25); b = a.copy()\nwhile True: np.copyto(b, a)"
PIN = "import os, sys; os.sched_setaffinity(0, {int(sys.argv[1])})\n"
NETWORKS = ("m0", "m2", "m4")
SETTLE_S = 2.0


def others() -> dict[str, list[tuple[str, int]]]:
    """What runs meanwhile, and on which core."""
    cores = sorted(os.sched_getaffinity(0))
    [measuring] = measuring_core()
    beside = next((core for core in cores if core != measuring), measuring)
    return {
        "quiet": [],
        "one busy loop": [(BUSY, beside)],
        "one on every core": [(BUSY, core) for core in cores],
        "memory copy": [(COPY, beside)],
    }


def first_use() -> list[dict[str, float]]:
    """The rows of `evit-nas measure` on a machine that has never measured."""
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, "-m", "evit_nas", "measure", *NETWORKS, "--format", "json"],
            capture_output=True,
            encoding="utf-8",
            check=True,
            env=os.environ | {"XDG_CACHE_HOME": cache},
        )
    rows: list[dict[str, float]] = json.loads(done.stdout)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--uses", type=int, default=20)
    args = parser.parse_args()
    conditions = others()
    names = [list(conditions)[use % len(conditions)] for use in range(args.uses)]
    columns = "".join(f"{f'{network} ms':>9}" for network in NETWORKS)
    print(f"machine: {probe()}\n\n{'beside':20}{columns}  own ±  noisy  seconds", flush=True)
    found = []
    for name in names:
        loops = [subprocess.Popen([sys.executable, "-c", PIN + code, str(core)]) for code, core in conditions[name]]
        time.sleep(SETTLE_S)
        start = time.monotonic()
        try:
            rows = first_use()
        finally:
            for loop in loops:
                loop.kill()
        seconds = time.monotonic() - start
        found.append([row["median_ms"] for row in rows])
        figures = "".join(f"{ms:9.3f}" for ms in found[-1])
        error, noisy = max(row["ms_error"] for row in rows), sum(row["noisy"] for row in rows)
        print(f"{name:20}{figures}{100 * error:6.1f}%  {noisy} of {len(rows)}  {seconds:5.1f}", flush=True)
    all_ms = np.array(found)  # (uses, networks)
    quiet = [name == "quiet" for name in names]
    print("\noff the median of the quiet uses, %  median  four in five  at most")
    off = np.abs(all_ms / np.median(all_ms[quiet], axis=0) - 1)
    for name in conditions:
        tell(name, off[[one == name for one in names]])
    ratios = all_ms[:, 1:] / all_ms[:, :1]
    tell("ratios to m0, all", np.abs(ratios / np.median(ratios[quiet], axis=0) - 1))


def tell(name: str, off: np.ndarray) -> None:
    """How far figures are off."""
    median, most = 100 * np.percentile(off, (50, 80))
    print(f"{name:34}{median:8.1f}{most:14.1f}{100 * off.max():9.1f}")


if __name__ == "__main__":
    main()
