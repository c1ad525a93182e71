"""Where predictions start: fits the costs of operators that come with the package, and says what they are worth.

    python benchmarks/operator_costs.py                # compares
    python benchmarks/operator_costs.py --write        # writes evit_nas/latency/operator_costs.json as well

Measures nothing. The costs are fitted to the networks of the shipped table, whose latencies are a Xeon's. What they are
worth shows on other processors: how well they rank the networks in `benchmarks/latencies/` as they are; how far off
predictions are that were fitted to a few of these with and without them, on all the others; and by how many searches
such predictions are used by then (`used by`). And the other way round: costs fitted to an EPYC, networks of the Xeon.
Averages over random orders of the networks.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from evit_nas.accuracy.table import LabelTable
from evit_nas.arch import ArchConfig
from evit_nas.latency.operator_costs import FILE
from evit_nas.latency.operators import operators
from evit_nas.latency.predictor import (
    MIN_SAMPLES,
    MIN_SAMPLES_WITH_PRIOR,
    Check,
    checked,
    compare,
    fit_operators,
    fitted_costs,
)
from evit_nas.latency.samples import Sample, read_samples
from evit_nas.searching.forecast import REFIT_EVERY

TABLE = "fashion-mnist-64"
XEON = "Intel(R) Xeon(R) Processor (family 6, model 167), onnxruntime 1.32.0, cpu, 1 thread, batch 1, fp32"
MEASURED = Path(__file__).parent / "latencies"
ORDERS = 50
FEWEST = 16  # networks in a fit; a search begins with a few more
UNSEEN = 8  # networks at least that a fit is compared with


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="the costs into the package")
    args = parser.parse_args()
    xeon = [Sample(one.arch, one.latency_ms, rel_error=0.01) for one in LabelTable.load(TABLE).networks]
    costs = relative_costs(xeon)
    print(f"costs of {len(costs)} operators, fitted to {len(xeon)} networks: {XEON}")
    if args.write:
        content = {"measured_on": XEON, "networks": len(xeon), "image_size": xeon[0].arch.image_size, "costs": costs}
        FILE.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for path in sorted(MEASURED.glob("*.json")):
        exported = json.loads(path.read_text(encoding="utf-8"))
        samples, machine = read_samples(exported), "{processor}, {runtime}, {conditions}".format(**exported["context"])
        report(f"costs of the Xeon, {len(samples)} networks of: {machine}", samples, costs)
        if len(samples) >= MIN_SAMPLES:
            report(f"costs of these, {len(xeon)} networks of: {XEON}", xeon, relative_costs(samples))


def relative_costs(samples: Sequence[Sample]) -> dict[str, float]:
    """Kind of operator -> its cost by the samples alone, in units of what m0 takes; four digits."""
    costs = fitted_costs(samples, {})
    m0 = total(costs, ArchConfig.preset("m0"))
    return {name: float(f"{cost / m0:.4g}") for name, cost in costs.items()}


def total(costs: Mapping[str, float], arch: ArchConfig) -> float:
    return sum(costs.get(name, 0.0) * amount for name, amount in operators(arch).items())


def report(title: str, samples: Sequence[Sample], prior: Mapping[str, float]) -> None:
    """Prints what the prior is worth on networks that another processor measured."""
    measured_ms = np.array([sample.ms for sample in samples])
    as_it_is = np.array([total(prior, sample.arch) for sample in samples])
    factor = np.median(measured_ms / as_it_is)
    print(f"\n{title}\nwith one factor for all: {compare(factor * as_it_is, measured_ms)}")
    counts = range(FEWEST, len(samples) - UNSEEN + 1, REFIT_EVERY)
    if not counts:
        return
    rng = np.random.default_rng(0)
    orders = [[samples[index] for index in rng.permutation(len(samples))] for _ in range(ORDERS)]
    print(f"measured  {'without':33}  {'with':33}")
    print(" " * 8 + 2 * f"  {'off':>6} {'within 10 %':>12} {'rank':>5} {'used by':>8}")
    both = {MIN_SAMPLES: fit_operators, MIN_SAMPLES_WITH_PRIOR: partial(fit_operators, prior=prior)}
    used = {enough: np.zeros(ORDERS, dtype=bool) for enough in both}
    for count in counts:
        line = f"{count:8}"
        for enough, fit_model in both.items():
            of_itself, of_others = zip(*(judged(fit_model, order, count) for order in orders), strict=True)
            if count >= enough:
                used[enough] |= [check.trusted for check in of_itself]
            line += f"  {mean(of_others, 'mape'):6.1%} {mean(of_others, 'within_10'):12.0%}"
            line += f" {mean(of_others, 'spearman'):5.3f} {used[enough].mean():8.0%}"
        print(line, flush=True)


def judged(fit_model, order: Sequence[Sample], count: int) -> tuple[Check, Check]:
    """What a fit to the first `count` says of itself, and how it does on the others."""
    predictor = checked("", fit_model, order[:count])
    others = order[count:]
    predicted = predictor.predict_ms([sample.arch for sample in others])
    return predictor.check, compare(predicted, [sample.ms for sample in others])


def mean(checks: Sequence[Check], figure: str) -> float:
    return float(np.mean([getattr(check, figure) for check in checks]))


if __name__ == "__main__":
    main()
