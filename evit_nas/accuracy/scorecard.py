"""The score card: how well each score ranks trained networks of about the same latency, against size and the ceiling.

A score that repeats size looks good over a wide range of latencies and says nothing under a budget. So every score is
judged by Kendall's tau among rivals of at most 10 % different latency, beside the best of the sizes and beside what a
perfect score could reach against labels this noisy. Predictors are only ever judged on networks they did not see.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evit_nas.accuracy.aggregate import NAMES, RankAggregate
from evit_nas.accuracy.features import table as features_of
from evit_nas.accuracy.predictor import HeldOut, cross_validated, with_labels
from evit_nas.accuracy.table import LabelTable
from evit_nas.errors import UsageError
from evit_nas.stats import Interval, Spread, bootstrap, kendall_tau, spread, top_regret

SIZES = ("params", "macs", "depth", "latency")
TOP = 5
DRAWS = 20  # of labelled networks, for predictors from few labels
FOLDS, REPEATS = 10, 5  # of cross-validation
RESAMPLES = 500


@dataclass(frozen=True)
class Row:
    """How one score ranks the networks of a table; higher is better but for `regret`."""

    score: str
    kind: str
    """"size", "proxy", "aggregate" or "predictor"."""
    overall: float
    """Kendall's tau-b over all pairs."""
    iso: Interval
    """Kendall's tau-b over rivals, with its 95 % interval over resampled networks."""
    gain: Interval | None
    """`iso` less that of the best size; None for sizes."""
    regret: float
    """Accuracy in percent that is lost by training only the five best-scored of a network and its rivals."""

    def plain(self) -> dict[str, object]:
        """Flat values for tables."""
        row: dict[str, object] = {
            "score": self.score,
            "kind": self.kind,
            "tau": round(self.overall, 3),
            "iso_latency_tau": round(self.iso.value, 3),
            "low": round(self.iso.low, 3),
            "high": round(self.iso.high, 3),
        }
        gain = self.gain
        row |= (
            {"gain": round(gain.value, 3), "gain_low": round(gain.low, 3)} if gain else {"gain": None, "gain_low": None}
        )
        return row | {"top5_regret": round(self.regret, 3)}


@dataclass(frozen=True)
class Card:
    """The score card of one table."""

    rows: tuple[Row, ...]
    spread: Spread | None
    """Of the labels among rivals; None where no network was trained with two seeds."""
    networks: int
    pairs: int
    """Of rivals."""
    origin: str
    """What was trained on what."""

    @property
    def best_size(self) -> Row:
        """The size that ranks rivals best."""
        return max((row for row in self.rows if row.kind == "size"), key=lambda row: row.iso.value)


def score_card(table: LabelTable, labels: Sequence[int] = (15, 30), seed: int = 0) -> Card:
    """Judges every score that the table allows: sizes, its proxies, their aggregate, and predictors.

    Args:
        table: trained networks.
        labels: numbers of labels that a predictor is tried with, besides cross-validation.
        seed: of every random draw.

    Raises:
        UsageError: fewer than 16 networks, or none of about equal latency.
    """
    truth, noise = table.truth()
    latency = table.latency_ms
    n = len(truth)
    rivals = np.maximum.outer(latency, latency) <= 1.1 * np.minimum.outer(latency, latency)
    pairs = (int(rivals.sum()) - n) // 2
    if n < 16 or pairs < 10:
        raise UsageError(f"a score card needs 16 networks and 10 pairs of about equal latency, got {n} and {pairs}.")
    runs = table.labels()
    seeds = max(map(len, runs)) > 1
    sizes = _sizes(table)
    best = max(sizes, key=lambda name: kendall_tau(sizes[name], truth, latency))

    def judged(name: str, kind: str, scores: np.ndarray) -> Row:
        def iso(index: np.ndarray) -> float:
            return kendall_tau(scores[index], truth[index], latency[index])

        def gain(index: np.ndarray) -> float:
            return iso(index) - kendall_tau(sizes[best][index], truth[index], latency[index])

        return Row(
            name,
            kind,
            kendall_tau(scores, truth),
            bootstrap(iso, n, seed=seed, resamples=RESAMPLES),
            None if kind == "size" else bootstrap(gain, n, seed=seed, resamples=RESAMPLES),
            top_regret(scores, truth, TOP, latency),
        )

    rows = [judged(name, "size", scores) for name, scores in sizes.items()]
    rows += [judged(name, "proxy", scores) for name, scores in _proxies(table).items()]
    if all(name in network.proxies for network in table.networks for name in NAMES):
        aggregate = RankAggregate.fit([network.proxies for network in table.networks])
        scores = np.array([aggregate.score(network.proxies) for network in table.networks])
        rows.append(judged("zero-cost aggregate", "aggregate", scores))
    for name, features in inputs_of(table).items():
        held_out = list(cross_validated(features, truth, noise, folds=FOLDS, repeats=REPEATS, seed=seed))
        mean = np.mean([found.mean for found in held_out], axis=0)
        rows.append(judged(f"{name}, {n - n // FOLDS} labels", "predictor", mean))
        for count in labels:
            if count <= n - 8:
                draws = with_labels(count, features, truth, latency, noise, repeats=DRAWS, seed=seed)
                rows.append(_few(f"{name}, {count} labels", list(draws), truth, latency, sizes[best]))
    return Card(tuple(rows), spread(runs, latency) if seeds else None, n, pairs, table.origin)


def inputs_of(table: LabelTable) -> dict[str, np.ndarray]:
    """What a predictor may see: name -> (n, d) features."""
    found = {"predictor (size)": features_of(table.archs, ["size"]), "predictor": features_of(table.archs)}
    proxies = _proxies(table)
    if proxies:
        found["predictor + proxies"] = np.column_stack([found["predictor"], *proxies.values()])
    return found


def _few(name: str, draws: Sequence[HeldOut], truth: np.ndarray, latency: np.ndarray, baseline: np.ndarray) -> Row:
    """A predictor from few labels: means over the draws, each on the networks it did not see.

    Its interval covers the draws of the labelled networks, from the 2.5th to the 97.5th percentile.
    """
    iso = np.array([kendall_tau(d.mean, truth[d.index], latency[d.index]) for d in draws])
    size = np.array([kendall_tau(baseline[d.index], truth[d.index], latency[d.index]) for d in draws])
    return Row(
        name,
        "predictor",
        float(np.nanmean([kendall_tau(d.mean, truth[d.index]) for d in draws])),
        _interval(iso),
        _interval(iso - size),
        float(np.nanmean([top_regret(d.mean, truth[d.index], TOP, latency[d.index]) for d in draws])),
    )


def _interval(values: np.ndarray) -> Interval:
    low, high = np.nanquantile(values, [0.025, 0.975])
    return Interval(float(np.nanmean(values)), float(low), float(high))


def _sizes(table: LabelTable) -> dict[str, np.ndarray]:
    columns = features_of(table.archs, ["size"])
    return {"params": columns[:, 0], "macs": columns[:, 1], "depth": columns[:, 2], "latency": table.latency_ms}


def _proxies(table: LabelTable) -> dict[str, np.ndarray]:
    """The proxies that every network of the table has, without the sizes."""
    names = [
        name
        for name in table.networks[0].proxies
        if name not in SIZES and all(math.isfinite(network.proxies.get(name, math.nan)) for network in table.networks)
    ]
    return {name: np.array([network.proxies[name] for network in table.networks]) for name in names}
