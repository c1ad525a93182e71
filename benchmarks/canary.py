"""Which canary do ratios hold to? Five networks against canaries of three sizes: quiet, and beside other programs.

    python benchmarks/canary.py

Prints, for each canary, how far the ratio of every network moves from its first, quiet figure.
"""

from __future__ import annotations

import subprocess
import sys
import time

import numpy as np

from evit_nas.arch import ArchConfig, StageConfig
from evit_nas.latency import Protocol
from evit_nas.latency.canary import CANARY
from evit_nas.latency.machine import probe
from evit_nas.latency.protocol import measure_pairs
from evit_nas.latency.worker import inference
from evit_nas.network.cost import cost
from evit_nas.network.onnx_graph import build_onnx

SMALL = ArchConfig(stages=tuple(StageConfig(width=w, depth=1, heads=2, q_kernels=(5, 5)) for w in (32, 48, 64)))
CANARIES = {"small": SMALL, "canary": CANARY, "m0": ArchConfig.preset("m0")}
NETWORKS = ("m0", "m1", "m3", "m5")
PROTOCOL = Protocol(min_pairs=16, max_pairs=16)
VISITS = 2
LOADS = {
    "two busy loops": (2, "while True: sum(i * i for i in range(10_000))"),
    "one memory copy": (1, "import numpy as np\na, b = np.zeros((2, 30_000_000))\nwhile True: b[:] = a"),
}


def ratios() -> dict[str, np.ndarray]:
    """Name of the canary -> (networks,) median ratio over the visits."""
    canaries = {name: inference(build_onnx(arch).SerializeToString()) for name, arch in CANARIES.items()}
    visits: dict[str, list[list[float]]] = {name: [] for name in CANARIES}
    for _ in range(VISITS):
        for name, canary in canaries.items():
            networks = [inference(build_onnx(ArchConfig.preset(n)).SerializeToString()) for n in NETWORKS]
            visits[name].append([measure_pairs(network, canary, PROTOCOL).ratio for network in networks])
    return {name: np.median(found, axis=0) for name, found in visits.items()}


def main() -> None:
    print(f"machine: {probe()}")
    print("canaries: " + ", ".join(f"{n} {cost(a).params / 1e6:.2f} M parameters" for n, a in CANARIES.items()))
    print("change of the ratio against the first quiet figure, in %, for " + ", ".join(NETWORKS))
    first = ratios()
    report("quiet again", first, ratios())
    for load, (count, code) in LOADS.items():
        others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(count)]
        time.sleep(1)
        try:
            report(load, first, ratios())
        finally:
            for other in others:
                other.kill()


def report(load: str, first: dict[str, np.ndarray], now: dict[str, np.ndarray]) -> None:
    for name in CANARIES:
        change = 100 * (now[name] / first[name] - 1)
        print(f"{load:16} {name:7}" + "".join(f"{c:+7.1f}" for c in change), flush=True)


if __name__ == "__main__":
    main()
