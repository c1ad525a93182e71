"""The command line of this folder."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.reliability import abuse, flips, inputs, kills
from evit_nas import __version__
from evit_nas.files import Journal
from evit_nas.latency.machine import probe
from evit_nas.runs import installed_versions


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reliability")
    parser.add_argument("part", choices=["kills", "inputs", "requests", "flips"])
    parser.add_argument("--count", type=int, help="kills, files, requests, or flips in each file")
    parser.add_argument("--log", type=Path, help="keeps what is done of `kills` and `inputs`, to go on from there")
    parser.add_argument("--jobs", type=int, default=2, help="files at a time")
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--only", default="", help="kinds of files, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    wish = parser.parse_args()
    print(f"machine: {probe()}", flush=True)
    versions = {"evit_nas": __version__} | installed_versions()
    print(f"versions: {', '.join(f'{name} {number}' for name, number in versions.items())}\n", flush=True)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["XDG_CACHE_HOME"] = f"{scratch}/cache"
        os.environ["COLUMNS"] = "100"
        folder = Path(scratch)
        done = Journal(wish.log or folder / "done.jsonl")
        if wish.part == "kills":
            good = kills.run(folder, wish.count or 100, wish.engine, wish.seed, done)
        elif wish.part == "inputs":
            good = inputs.run(folder, wish.count or 1000, wish.seed, wish.only, wish.jobs, done)
        elif wish.part == "requests":
            good = abuse.run(folder, wish.count or 10_000, wish.seed)
        else:
            good = flips.run(folder, wish.count or 100, wish.seed)
    print(f"\n{time.monotonic() - start:.0f} s")
    sys.exit(not good)


if __name__ == "__main__":
    main()
