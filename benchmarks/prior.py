"""How strong the parts of the accuracy predictor's prior are, fitted to all networks that come with the package.

    python benchmarks/prior.py

Maximises the likelihood of the labels, times a wide belief around the values that are in the package (a factor of two).
Prints each value beside the one in the package: what is written into
`evit_nas.accuracy.predictor.Prior` should be within these, and not chase the last digit.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from evit_nas.accuracy import evidence
from evit_nas.accuracy.predictor import PRIOR, AccuracyPredictor, Prior
from evit_nas.latency.machine import probe

FITTED = (
    *("macs_shared", "macs_near", "macs_own", "params_shared", "params_near", "params_own"),
    *("linear", "smooth", "length", "rest"),
)
BELIEF = math.log(2)


def main() -> None:
    from scipy.optimize import minimize

    print(f"machine: {probe()}", flush=True)
    known = evidence.shipped()
    start = np.log([getattr(PRIOR, name) for name in FITTED])

    def loss(logs: np.ndarray) -> float:
        likelihood = AccuracyPredictor.fit(known, changed(logs)).evidence_log_likelihood
        return -likelihood + float((((logs - start) / BELIEF) ** 2).sum()) / 2

    found = minimize(loss, start, method="L-BFGS-B", options={"maxiter": 40})
    print(f"{len(known)} trained networks; log likelihood {-loss(start):.1f} before, {-found.fun:.1f} after")
    for name, log in zip(FITTED, found.x, strict=True):
        print(f"{name:16} {getattr(PRIOR, name):.3f} in the package, {math.exp(log):.3f} here")


def changed(logs: np.ndarray) -> Prior:
    values = {name: math.exp(log) for name, log in zip(FITTED, logs, strict=True)}
    return dataclasses.replace(PRIOR, **values)


if __name__ == "__main__":
    main()
