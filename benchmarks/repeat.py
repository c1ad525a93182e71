"""Does a latency repeat on a busy machine? Random architectures, two shuffled visits each, beside a CPU hog.

    python benchmarks/repeat.py                 # 60 architectures, one busy loop pinned to every core
    python benchmarks/repeat.py --quiet         # the same without the hog

Prints the machine, how far two visits are apart, and how long one measurement takes, from the architecture on:
building its graph, loading it and the protocol.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time

import numpy as np

from evit_nas.latency import Protocol, open_device, parse_conditions
from evit_nas.latency.machine import probe
from evit_nas.space import SearchSpace

HOG = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nwhile True: sum(i * i for i in range(10_000))"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--archs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    space = SearchSpace.load("efficientvit-224")
    archs = [space.sample(rng) for _ in range(args.archs)]
    cores = [] if args.quiet else sorted(os.sched_getaffinity(0))
    print(f"machine: {probe()}\nbusy loops: {len(cores)}", flush=True)
    found: list[list[float]] = [[] for _ in archs]
    seconds, noisy = [], 0
    with open_device(parse_conditions("cpu")) as device:
        device.measure(archs[0], Protocol())  # the process has started and knows its canaries
        hogs = [subprocess.Popen([sys.executable, "-c", HOG, str(core)]) for core in cores]
        try:
            for _ in range(2):
                for index in rng.sample(range(len(archs)), len(archs)):
                    start = time.monotonic()
                    latency, _ = device.measure(archs[index], Protocol())
                    seconds.append(time.monotonic() - start)
                    found[index].append(latency.median_ms)
                    noisy += latency.noisy
        finally:
            for hog in hogs:
                hog.kill()
    first, second = np.array(found).T
    apart = np.abs(first / second - 1)
    half, most = 100 * np.percentile(apart, (50, 90))
    print(f"latencies: {np.array(found).min():.2f} to {np.array(found).max():.2f} ms; marked noisy: {noisy}")
    print(
        f"two visits apart: median {half:.1f} %, 90 % of them at most {most:.1f} %, at most {100 * apart.max():.1f} %"
    )
    print(
        f"seconds a measurement: median {np.median(seconds):.2f}, 90 % of them at most {np.percentile(seconds, 90):.2f}"
    )


if __name__ == "__main__":
    main()
