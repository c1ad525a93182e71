"""How good is predicted latency? Fits the predictor to random networks, then measures others that it has not seen.

    python benchmarks/predictor.py              # 160 networks to fit, 40 unseen ones, measured strictly

Starts from an empty table, whatever was measured before. Prints the machine, how long the calibration takes, the errors
by number of networks in the fit, and predictions a second.
"""

from __future__ import annotations

import argparse
import random
import time

from evit_nas.arch import ArchConfig
from evit_nas.latency import STRICT, Protocol, open_device, parse_conditions
from evit_nas.latency.machine import probe
from evit_nas.latency.predictor import FOLDS, Predictor, compare, fit
from evit_nas.latency.samples import Sample
from evit_nas.space import SearchSpace


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--space", default="efficientvit-224")
    parser.add_argument("--networks", type=int, default=160)
    parser.add_argument("--unseen", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, space = random.Random(args.seed), SearchSpace.load(args.space)
    archs: dict[str, ArchConfig] = {}
    while len(archs) < args.networks + args.unseen:
        arch = space.sample(rng)
        archs[arch.key] = arch
    seen, unseen = list(archs.values())[: args.networks], list(archs.values())[args.networks :]
    print(f"machine: {probe()}", flush=True)

    with open_device(parse_conditions(args.device)) as device:
        start = time.monotonic()
        samples = []
        for arch in seen:
            latency, _ = device.measure(arch, Protocol())
            samples.append(Sample.of(arch, latency))
        fit(samples)
        print(f"calibration: {args.networks} networks in {time.monotonic() - start:.0f} s", flush=True)
        strict = [device.measure(arch, STRICT)[0] for arch in unseen]
    measured = [latency.median_ms for latency in strict]
    print(f"unseen: {len(unseen)} networks of {min(measured):.2f} to {max(measured):.2f} ms, measured strictly")

    for count in sorted({16, 24, 32, 64, 100, args.networks}):
        if count > args.networks:
            continue
        predictor = fit(samples[:count])
        if predictor is None:
            print(f"{count:4} networks: too few")
            continue
        found = compare(predictor.predict_ms(unseen), measured)
        print(
            f"{count:4} networks, {predictor.method}: {found}; at most {100 * worst(predictor, unseen, measured):.1f} %"
        )
        print(f"     said of itself ({FOLDS} folds): {predictor.check}")
    many = [space.sample(rng) for _ in range(5000)]
    start = time.perf_counter()
    predictor.predict_ms(many)
    print(f"predictions a second: {len(many) / (time.perf_counter() - start):,.0f}")


def worst(predictor: Predictor, archs: list[ArchConfig], measured: list[float]) -> float:
    return max(abs(p / m - 1) for p, m in zip(predictor.predict_ms(archs), measured, strict=True))


if __name__ == "__main__":
    main()
