"""A zero-cost proxy of your own, and what it is worth: judged on networks that have been trained.

    python examples/custom_proxy.py              # all 77 networks that come with the package
    python examples/custom_proxy.py --networks 24

A proxy is a function of a `Bench`, which holds a network at a random initialisation and what passes through it:
`relus`, `features` of the blocks, `loss_gradients`, `flow`. Higher must mean better. To have it in `evit-nas score` and
in searches, put the function and its line into `evit_nas/accuracy/zero_cost.py`.
"""

import argparse

import numpy as np

from evit_nas.accuracy.bench import Bench
from evit_nas.accuracy.table import LabelTable
from evit_nas.accuracy.zero_cost import PROXIES, Proxy, score_all
from evit_nas.stats import kendall_tau


def half_open(bench: Bench) -> float:
    """How near the share of open ReLUs is to one half, on average: a gate that is always open or shut says nothing."""
    shares = [float((relu > 0).float().mean()) for relu in bench.relus]
    return -sum(abs(share - 0.5) for share in shares) / len(shares)


PROXIES["half_open"] = Proxy(half_open, "how near ReLUs are to being open half of the time")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--networks", type=int, default=1000)
    networks = LabelTable.load("fashion-mnist-64").networks[: parser.parse_args().networks]
    truth = np.array([np.mean([training.score.accuracy for training in network.trainings]) for network in networks])
    latency_ms = np.array([network.latency_ms for network in networks])
    names = ("params", "macs", "naswot", "half_open")
    scores = [score_all(network.arch, names=names) for network in networks]
    print(f"Kendall's tau with trained accuracy, {len(networks)} networks:\n")
    print(f"{'score':12}{'all pairs':>11}{'equal latency':>15}")
    for name in names:
        values = np.array([each[name] for each in scores])
        overall, iso = kendall_tau(values, truth), kendall_tau(values, truth, latency_ms)
        print(f"{name:12}{overall:11.2f}{iso:15.2f}")


if __name__ == "__main__":
    main()
