"""Do the accounts balance when nodes and drivers are killed at random moments?

    PYTHONPATH=. python benchmarks/ray_failures.py --kills 5

A search with deterministic scores and latencies on a head and two nodes, all on this machine: first a node is killed
(and another one joins) `kills` times, then, in another run, the driver is killed (and the run resumed) `kills` times.
Either must leave exactly the trials, values, measurements and front of a search on one machine that nobody disturbed.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path

from ray.cluster_utils import Cluster as Nodes

from evit_nas.accuracy import zero_cost
from evit_nas.arch import ArchConfig
from evit_nas.latency import DEVICES
from evit_nas.runs import Run
from tests.fakes import FakeDevice, fake_proxies
from tests.test_resume import Outcome, new_run, outcome, search

SCORE_S = 0.5  # what a score takes, so that trials are killed while they are at it


def slow_proxies(arch: ArchConfig, *, seed: int = 0, names: object = None) -> dict[str, float]:
    time.sleep(SCORE_S)
    return fake_proxies(arch)


def fake(score: object) -> None:
    DEVICES["fake"], zero_cost.score_all = FakeDevice, score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--run", type=Path, help="search in this run folder: what this script calls itself with")
    wish = parser.parse_args()
    if wish.run:
        fake(import_module("benchmarks.ray_failures").slow_proxies)  # workers import the function by this name
        search(Run.open(wish.run))
        return
    with tempfile.TemporaryDirectory() as scratch:
        fake(fake_proxies)
        os.environ["XDG_CACHE_HOME"] = f"{scratch}/cache"
        whole = search(new_run(Path(scratch) / "whole", trials=60))
        nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "resources": {"evit_device:fake": 1}})
        workers = [nodes.add_node(num_cpus=1) for _ in range(2)]
        rng = random.Random(0)

        def kill_node() -> None:
            nodes.remove_node(workers.pop(0), allow_graceful=False)
            workers.append(nodes.add_node(num_cpus=1))

        for what in ("node", "driver"):
            cluster = {"address": nodes.address}
            os.environ["XDG_CACHE_HOME"] = f"{scratch}/cache-{what}"
            run = new_run(Path(scratch) / what, trials=60, engine="ray", cluster=cluster)
            driver, killed, start = begun(run), 0, time.monotonic()
            while driver.poll() is None:
                before = progress(run)
                while killed < wish.kills and driver.poll() is None and progress(run) < before + rng.randint(4, 12):
                    time.sleep(0.05)
                time.sleep(rng.uniform(0, SCORE_S))
                if killed < wish.kills and driver.poll() is None:
                    killed += 1
                    if what == "node":
                        kill_node()
                    else:
                        driver.kill()
                        driver.wait()
                        driver = begun(run)
            print(
                f"{what} killed {killed} times: exit code {driver.returncode}, {time.monotonic() - start:.0f} s, "
                f"{balance(outcome(run), whole)}"
            )
        nodes.shutdown()


def begun(run: Run) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, __file__, "--run", str(run.path)])


def progress(run: Run) -> int:
    path = run.path / "measurements.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def balance(found: Outcome, whole: Outcome) -> str:
    states = [state.name for _, state, *_ in found.trials]
    reasons = "".join(f"\n  {attributes['reason']}" for *_, attributes in found.trials if "reason" in attributes)
    repeated = len(found.measured) - len(set(found.measured))
    return (
        f"{len(found.trials)} of {len(whole.trials)} trials ({', '.join(sorted(set(states)))}), "
        f"{repeated} numbers twice, "
        f"trials {'equal' if found.trials == whole.trials else 'DIFFER'}, "
        f"front {'equal' if found.front == whole.front else 'DIFFERS'}{reasons}"
    )


if __name__ == "__main__":
    main()
