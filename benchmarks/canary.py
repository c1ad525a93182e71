"""Why canaries of several sizes? Two visits of random architectures beside busy programs, against each kind of canary.

    python benchmarks/canary.py

In each round the candidate and all canaries are sampled; the slow-down is then taken from one of them alone or
interpolated between the two that enclose the candidate. Prints the machine and how far two visits are apart.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from repeat import HOG

from evit_nas.config import Conditions
from evit_nas.latency.machine import pin_to_one_core, probe
from evit_nas.latency.protocol import TIMED_RUNS, Canary, cpu_time, enclosing, sample
from evit_nas.latency.runtimes import RUNTIMES
from evit_nas.latency.yardstick import CANARIES
from evit_nas.space import SearchSpace

ARCHS, ROUNDS = 24, 16
NAMES = ("small", "m1", "m4")
COPY = "import numpy as np\na, b = np.zeros((2, 30_000_000))\nwhile True: b[:] = a"
LOADS = {
    "quiet": [],
    "a busy loop on each core": [[HOG, str(core)] for core in sorted(os.sched_getaffinity(0))],
    "one memory copy": [[COPY]],
}


def main() -> None:
    print(f"machine: {probe()}\n{ARCHS} architectures, two shuffled visits of {ROUNDS} rounds", flush=True)
    pin_to_one_core()
    runtime, conditions = RUNTIMES["cpu"], Conditions()
    rng = random.Random(0)
    space = SearchSpace.load("efficientvit-224")
    archs = [space.sample(rng) for _ in range(ARCHS)]
    runs = [runtime.load(arch, conditions).run for arch in CANARIES]
    canaries = []
    for run in runs:
        cpu_time(run, 30)
        canaries.append(Canary([run], float(np.median([sample(run, 1e6, cpu_time) for _ in range(30)]))))
    print("canaries, ms: " + ", ".join(f"{n} {c.quiet_ns / 1e6:.2f}" for n, c in zip(NAMES, canaries, strict=True)))
    for load, commands in LOADS.items():
        others = [subprocess.Popen([sys.executable, "-c", *command]) for command in commands]
        time.sleep(1)
        found: dict[str, list[list[float]]] = {name: [[] for _ in archs] for name in ("no canary", *NAMES, "enclosing")}
        try:
            for _ in range(2):
                for index in rng.sample(range(ARCHS), ARCHS):
                    for name, ns in visit(runtime.load(archs[index], conditions).run, canaries).items():
                        found[name][index].append(ns)
        finally:
            for other in others:
                other.kill()
        for name, visits in found.items():
            first, second = np.array(visits).T
            half, most = 100 * np.percentile(np.abs(first / second - 1), (50, 90))
            print(f"{load:26} {name:10} median {half:5.1f} %, 90 % at most {most:5.1f} %", flush=True)


def visit(candidate: Callable[[], object], canaries: list[Canary]) -> dict[str, float]:
    """Kind of canary -> the candidate's nanoseconds on the quiet machine, as it says."""
    cpu_time(candidate, 5)
    candidate_ns = min(cpu_time(candidate, 1) for _ in range(5))
    rounds = []
    for _ in range(ROUNDS):
        taken: dict[int, float] = {}
        for index in range(-1, len(canaries)):
            run, ns = (
                (candidate, candidate_ns) if index < 0 else (canaries[index].sessions[0], canaries[index].quiet_ns)
            )
            taken[index] = sample(run, ns, cpu_time, TIMED_RUNS if index < 0 else 1)
        slow = [taken[i] / canary.quiet_ns for i, canary in enumerate(canaries)]
        share = {id(canary): weight for canary, weight in enclosing(canaries, candidate_ns)}
        weights = [share.get(id(canary), 0.0) for canary in canaries]
        between = float(np.prod(np.power(slow, weights)))
        rounds.append([taken[-1], *(taken[-1] / s for s in slow), taken[-1] / between])
    return dict(zip(("no canary", *NAMES, "enclosing"), np.median(rounds, axis=0), strict=True))


if __name__ == "__main__":
    main()
