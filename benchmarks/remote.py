"""Does a board say the same as the machine itself? Networks measured directly and through a worker on loopback.

    python benchmarks/remote.py                                  # twelve random networks of efficientvit-224
    python benchmarks/remote.py runs/efficientvit-224-cpu-5ms    # the front of a run

Prints the machine, both figures of every network, how far they are apart, and what the way through the worker costs.
"""

from __future__ import annotations

import random
import sys
import threading
import time
from pathlib import Path

import numpy as np

from evit_nas.arch import ArchConfig
from evit_nas.latency import STRICT, Device, open_device, parse_conditions
from evit_nas.latency.machine import probe
from evit_nas.latency.remote import RemoteDevice
from evit_nas.latency.worker import WorkerServer
from evit_nas.space import SearchSpace

SAMPLES, SEED = 12, 0


def networks(argv: list[str]) -> dict[str, ArchConfig]:
    """By name: the front of the run that `argv` names, or a random sample."""
    if argv:
        from evit_nas.runs import Run
        from evit_nas.searching.record import load_front

        return {member.name: member.arch for member in load_front(Run.open(Path(argv[0]))).members}
    space, rng = SearchSpace.load("efficientvit-224"), random.Random(SEED)
    archs = [space.sample(rng) for _ in range(SAMPLES)]
    return {arch.key: arch for arch in archs}


def timed(device: Device, arch: ArchConfig) -> tuple[float, float]:
    """Strictly measured milliseconds of `arch`, and the seconds that took."""
    begin = time.monotonic()
    latency, _ = device.measure(arch, STRICT)
    return latency.median_ms, time.monotonic() - begin


def main() -> None:
    print(
        f"machine: {probe()}\n\n{'network':24}{'direct ms':>10}{'remote ms':>10}{'remote / direct':>17}{'extra s':>9}"
    )
    conditions = parse_conditions("cpu")
    ratios, extras = [], []
    with WorkerServer(port=0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host, port = server.address
        remote = conditions.model_copy(update={"device": f"remote:{host}:{port}"})
        with open_device(conditions) as here, RemoteDevice(remote) as there:
            for device in (here, there):
                timed(device, ArchConfig.preset("m0"))  # starts the measuring process
            for name, arch in networks(sys.argv[1:]).items():
                (direct, direct_s), (through, through_s) = timed(here, arch), timed(there, arch)
                ratios.append(through / direct)
                extras.append(through_s - direct_s)
                print(f"{name:24}{direct:10.3f}{through:10.3f}{ratios[-1]:17.3f}{extras[-1]:9.2f}")
        server.shutdown()
    half, most = 100 * np.percentile(np.abs(np.array(ratios) - 1), (50, 90))
    print(f"\nremote / direct: median {np.median(ratios):.3f}, off by {half:.1f} % (median) and {most:.1f} % (90 %)")
    print(f"the way through the worker: {np.median(extras):+.2f} s a measurement (median)")


if __name__ == "__main__":
    main()
