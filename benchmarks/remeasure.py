"""Does a front hold? Measures every member of a run again, in a new process, against the budget.

    python benchmarks/remeasure.py runs/efficientvit-224-cpu-5ms

Prints the machine, both figures of every member, and how far they are apart.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from evit_nas.latency import STRICT, open_device
from evit_nas.latency.machine import probe
from evit_nas.runs import Run
from evit_nas.searching.record import load_front


def main() -> None:
    run = Run.open(Path(sys.argv[1]))
    front, target = load_front(run), run.settings.targets[0]
    budget = target.budget_ms
    print(f"machine: {probe()}")
    print(f"budget: {budget:g} ms\n\n{'member':24}{'found ms':>10}{'again ms':>10}{'change':>9}  within")
    changes, within = [], 0
    with open_device(target.conditions) as device:
        for member in front.members:
            latency, _ = device.measure(member.arch, STRICT)
            change = latency.median_ms / member.latency.median_ms - 1
            changes.append(abs(change))
            within += latency.median_ms <= budget
            print(
                f"{member.name:24}{member.latency.median_ms:10.3f}{latency.median_ms:10.3f}{100 * change:+8.1f}%"
                f"  {'yes' if latency.median_ms <= budget else 'NO'}"
            )
    print(f"\nwithin the budget: {within} of {len(changes)}")
    half, most = 100 * np.percentile(changes, (50, 90))
    print(f"change: median {half:.1f} %, 90 % of them at most {most:.1f} %")


if __name__ == "__main__":
    main()
