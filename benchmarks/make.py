"""`make` on a folder of photographs, against m0 and m1 trained for the same time on the same ones.

    python benchmarks/make.py --data PHOTOS --budget 5ms --minutes 20 --out FOLDER

Photographs that no table of labels was trained on make it a fair trial. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import evit_nas
from evit_nas.data.look import look
from evit_nas.data.sources import open_source
from evit_nas.latency.machine import probe
from evit_nas.making import TRAIN_SHARE


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", required=True)
    parser.add_argument("--budget", default="5ms")
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    print(f"machine: {probe()}\n{look(open_source(args.data, seed=0))}", flush=True)
    start = time.monotonic()
    model = evit_nas.make(args.data, args.budget, time=f"{args.minutes}m", out=args.out / "made")
    print(f"made in {(time.monotonic() - start) / 60:.0f} min: {model}", flush=True)
    rivals = evit_nas.train(
        "m0",
        "m1",
        data=args.data,
        image_size=model.shipped.trained.arch.input_size[0],
        time=f"{2 * TRAIN_SHARE * args.minutes * 60:.0f}s",
        out=args.out / "rivals",
        ship=False,
        resume=True,
    )
    print(rivals)


if __name__ == "__main__":
    main()
