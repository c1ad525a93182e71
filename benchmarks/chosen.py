"""Are predictions too good for networks that were chosen because of them, and does learning from some mend it?

    python benchmarks/chosen.py

The shipped table holds networks that were drawn at random and some that a search had chosen by its score. The chosen
ones are predicted twice: from the drawn ones alone, as a search does whose labels were drawn, and from those and all
other chosen ones. Prints how far the labels lie from the predictions and how many lie in the intervals that are to hold
four in five; then what the chosen ones do to the ranking of the drawn ones.
"""

from __future__ import annotations

import argparse

import numpy as np

from evit_nas.accuracy import evidence
from evit_nas.accuracy.evidence import Evidence
from evit_nas.accuracy.predictor import NORMAL_QUANTILE, AccuracyPredictor
from evit_nas.accuracy.table import SHIPPED_TABLE, LabelTable
from evit_nas.latency.machine import probe
from evit_nas.stats import kendall_tau

DRAWN = "benchmarks/pool-fashion-mnist/table.json"
FOLDS, REPEATS = 10, 3


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", default=SHIPPED_TABLE)
    parser.add_argument("--drawn", default=DRAWN, help="table of those that were drawn at random")
    args = parser.parse_args()
    print(f"machine: {probe()}", flush=True)
    table = LabelTable.load(args.table)
    drawn_keys = {arch.key for arch in LabelTable.load(args.drawn).archs}
    is_drawn = np.array([arch.key in drawn_keys for arch in table.archs])
    drawn, chosen = np.flatnonzero(is_drawn), np.flatnonzero(~is_drawn)
    (truth, _), latency_ms = table.truth(), table.latency_ms
    own, known = evidence.of_table(table), evidence.shipped()
    others = known[known.data != table.source]
    print(f"{len(drawn)} drawn, mean {truth[drawn].mean():.2f}; {len(chosen)} chosen, mean {truth[chosen].mean():.2f}")

    def predictions(train: np.ndarray, test: np.ndarray) -> np.ndarray:
        """(2, m) log errors and their standard deviations, by what never saw these networks."""
        unseen = others[~np.isin(others.keys, own.keys[test])]
        return np.array(AccuracyPredictor.fit(Evidence.joined([own[train], unseen])).predict(own[test]))

    both = np.arange(len(truth))
    by_drawn = predictions(drawn, chosen)
    by_all = np.column_stack([predictions(np.setdiff1d(both, one), np.array([one])) for one in chosen])
    for name, (mean, sd) in (("drawn ones", by_drawn), ("drawn and other chosen ones", by_all)):
        off = truth[chosen] - (100 - np.exp(mean))
        half = NORMAL_QUANTILE * np.hypot(sd, own.noise_sd[chosen])
        held = (np.abs(own.log_error[chosen] - mean) < half).mean()
        print(
            f"chosen, predicted from {name}: labels {off.mean():+.2f} beside the predictions, "
            f"{np.abs(off).mean():.2f} off on average, {held:.0%} in their intervals, "
            f"tau {kendall_tau(-mean, truth[chosen]):.2f}"
        )
    for name, more in (("drawn ones", chosen[:0]), ("drawn and chosen ones", chosen)):
        taus = []
        for seed in range(REPEATS):
            mean = np.empty(len(drawn))
            for test in np.array_split(np.random.default_rng(seed).permutation(len(drawn)), FOLDS):
                train = np.setdiff1d(np.concatenate([drawn, more]), drawn[test])
                mean[test] = predictions(train, drawn[test])[0]
            taus.append(kendall_tau(-mean, truth[drawn], latency_ms[drawn]))
        print(f"drawn, cross-validated, predicted from {name}: iso tau {np.mean(taus):.2f}")


if __name__ == "__main__":
    main()
