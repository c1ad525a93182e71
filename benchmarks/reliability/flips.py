"""One byte of one file of a shipped folder is changed: does `evit-nas verify` say so?"""

from __future__ import annotations

import random
import shutil
from functools import partial
from pathlib import Path

from benchmarks.reliability.sandbox import Fork, command
from evit_nas.latency import DEVICES
from evit_nas.shipping.package import ship
from evit_nas.shipping.verify import _examined, _files
from tests.trainings import FILES, FileDevice, finished

HEAD = 64  # bytes that are the head of a file
WHOLE = 1  # flips in each file for which the whole command is run: it takes seconds, and the check sums decide
LIMIT_S = 120.0


def make(folder: Path) -> int:
    """A small network, trained on scikit-learn's digits and shipped to `folder`/shipped."""
    DEVICES["files"] = FileDevice
    ship(finished(folder / "training"), folder / "shipped", conditions=FILES, images=100, calibration_images=20)
    return 0


def run(folder: Path, count: int, seed: int) -> bool:
    """Prints how many flips are found in each file: half of them in its first bytes, half anywhere."""
    made = Fork(partial(make, folder), folder / "log").wait(LIMIT_S)
    assert made.code == 0, made.text
    rng, good = random.Random(seed), True
    whole = Fork(partial(command, "verify", str(folder / "shipped")), folder / "log").wait(LIMIT_S)
    print(f"verify of the folder as it was shipped: exit code {whole.code}\n")
    print(f"{'file':20} {'bytes':>8} {'flips':>6} {'found':>6} {'by the whole command':>22}")
    for path in sorted((folder / "shipped").iterdir()):
        content, found, by_command = path.read_bytes(), 0, 0
        for turn in range(count):
            damaged = bytearray(content)
            where = rng.randrange(min(len(content), HEAD) if turn % 2 else len(content))
            damaged[where] ^= rng.randrange(1, 256)
            path.write_bytes(damaged)
            finding = _examined("files", partial(_files, folder / "shipped"))
            found += finding.fatal
            if turn < WHOLE:
                ended = Fork(partial(command, "verify", str(folder / "shipped")), folder / "log").wait(LIMIT_S)
                by_command += ended.code == 1 and "Traceback" not in ended.text and "unexpected" not in ended.text
        path.write_bytes(content)
        print(f"{path.name:20} {len(content):8} {count:6} {found:6} {by_command:>16} of {WHOLE}", flush=True)
        good = good and found == count and by_command == WHOLE
    shutil.rmtree(folder / "shipped")
    return good and whole.code == 0
