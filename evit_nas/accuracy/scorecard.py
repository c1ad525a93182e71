"""The score card: how well each score ranks trained networks of about the same latency, against size and the ceiling.

A score that repeats size looks good over a wide range of latencies and says nothing under a budget. So every score is
judged by Kendall's tau among rivals of at most 10 % different latency, beside the best of the sizes and beside what a
perfect score could reach against labels this noisy. A score that some networks lack is judged on the others, together
with the sizes. Predictors are only ever judged on networks they did not see, in any regime: they know the other tables
of the package and what is published, and of the table that judges them as many labels as a row says.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evit_nas.accuracy import evidence
from evit_nas.accuracy.aggregate import NAMES, RankAggregate
from evit_nas.accuracy.features import table as features_of
from evit_nas.accuracy.predictor import MIN_LABELS, NORMAL_QUANTILE, HeldOut, cross_validated, with_labels
from evit_nas.accuracy.table import LabelTable
from evit_nas.errors import UsageError
from evit_nas.stats import (
    Interval,
    Runs,
    Spread,
    bootstrap,
    jackknife,
    kendall_tau,
    resampled_tau,
    rivals,
    spread,
    top_regret,
)

MIN_NETWORKS, MIN_PAIRS = 16, 10
MIN_UNSEEN = 8  # networks that a predictor from few labels is judged on
AGGREGATE = "zero-cost aggregate"
SIZES = ("params", "macs", "depth", "latency")
TOP = 5
DRAWS = 40  # of labelled networks, for predictors from few labels
FOLDS = 10  # of cross-validation
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
    """Kendall's tau-b over rivals, with its 95 % interval over resampled networks; for predictors from few labels the
    mean over draws of the labelled ones; NaN where no rivals were left."""
    gain: Interval | None
    """`iso` less that of the best size on the same networks; None for sizes."""
    regret: float
    """Accuracy in percent that is lost by training only the five best-scored of a network and its rivals; lower is
    better, NaN where nobody has so many rivals."""

    def plain(self) -> dict[str, object]:
        """Flat values for tables, rounded; None where there is none."""
        gain = self.gain or Interval(math.nan, math.nan, math.nan)
        figures = {
            "tau": self.overall,
            "iso_latency_tau": self.iso.value,
            "low": self.iso.low,
            "high": self.iso.high,
            "gain": gain.value,
            "gain_low": gain.low,
            "gain_high": gain.high,
            "top5_regret": self.regret,
        }
        rounded = {name: round(value, 3) if math.isfinite(value) else None for name, value in figures.items()}
        return {"score": self.score, "kind": self.kind, **rounded}


@dataclass(frozen=True)
class Card:
    """The score card of one table."""

    rows: tuple[Row, ...]
    spread: Spread | None
    """Of the labels among rivals; None where too few networks were trained with two seeds."""
    ceiling: Interval | None
    """The tau among rivals that a perfect score is expected to reach, with its 95 % interval; None as for `spread`."""
    networks: int
    pairs: int
    """Of rivals."""
    origin: str
    """What was trained on what."""
    training_s: float
    """What a label cost: the median time of a training."""
    coverage: float
    """Share of the networks whose label lies in the 80 % interval that the predictor gave without having seen them."""


def score_card(
    table: LabelTable,
    labels: Sequence[int] = (0, 15, 30),
    seed: int = 0,
    only: str | None = None,
    *,
    blind: bool = False,
) -> Card:
    """Judges every score that the table allows: sizes, its proxies, their aggregate, and predictors.

    Args:
        table: trained networks.
        labels: numbers of labels that a predictor is tried with, besides cross-validation; those that leave too few
            networks to be judged on are passed over.
        seed: of every random draw.
        only: name of the one score to be judged beside the sizes.
        blind: predictors know none of the table's own labels, as those of a search that has none of its data.

    Raises:
        UsageError: too few networks, or too few pairs of about equal latency.
    """
    truth, _ = table.truth()
    latency_ms = table.latency_ms
    n, pairs = len(truth), int(rivals(len(truth), latency_ms).sum()) // 2
    if n < MIN_NETWORKS or pairs < MIN_PAIRS:
        raise UsageError(
            f"a score card needs {MIN_NETWORKS} networks and {MIN_PAIRS} pairs of about equal latency, "
            f"got {n} and {pairs}: train more, in fewer slices."
        )
    sizes = _sizes(table)
    # by hindsight, on the very labels that judge: the size that is hardest to beat
    best = max(sizes.values(), key=lambda scores: kendall_tau(scores, truth, latency_ms))

    def judged(name: str, kind: str, draws: np.ndarray) -> Row:
        """The row of a score from (d, n) draws of it, NaN for the networks on which a draw is not judged."""
        taus = [resampled_tau(scores, truth, latency_ms) for scores in draws]
        # on the networks that the score is judged on, or a gain would be one of other pairs
        beside = [resampled_tau(np.where(np.isfinite(scores), best, math.nan), truth, latency_ms) for scores in draws]
        has = [np.flatnonzero(np.isfinite(scores)) for scores in draws]

        def iso(index: np.ndarray) -> float:
            return _mean([tau(index) for tau in taus])

        def gain(index: np.ndarray) -> float:
            return _mean([tau(index) - size(index) for tau, size in zip(taus, beside, strict=True)])

        return Row(
            name,
            kind,
            _mean([kendall_tau(scores[at], truth[at]) for scores, at in zip(draws, has, strict=True)]),
            bootstrap(iso, n, seed=seed, resamples=RESAMPLES),
            None if kind == "size" else bootstrap(gain, n, seed=seed, resamples=RESAMPLES),
            _mean([top_regret(one[at], truth[at], TOP, latency_ms[at]) for one, at in zip(draws, has, strict=True)]),
        )

    rows = [judged(name, "size", scores[None]) for name, scores in sizes.items()]
    rows += [judged(name, "proxy", scores[None]) for name, scores in _proxies(table).items() if only in (None, name)]
    aggregate = _aggregate(table) if only in (None, AGGREGATE) else None
    if aggregate is not None:
        rows.append(judged(AGGREGATE, "aggregate", aggregate[None]))
    known = evidence.shipped()
    others = known[known.data != table.source]
    coverage = math.nan
    for name, inputs in INPUTS.items():
        if only not in (None, name):
            continue
        own = evidence.of_table(table, inputs)
        if blind:
            (whole,) = with_labels(0, own, others, latency_ms, repeats=1)
            rows.append(judged(f"{name}, 0 labels", "predictor", _scores([whole], n)))
        else:
            (whole,) = cross_validated(own, others, folds=FOLDS, seed=seed)
            rows.append(judged(f"{name}, {n - n // FOLDS} labels", "predictor", _scores([whole], n)))
        if inputs is None:
            coverage = _covered(whole, own)
        for count in () if blind else labels:
            if count == 0 or MIN_LABELS <= count <= n - MIN_UNSEEN:
                # without labels all draws are the same
                draws = list(with_labels(count, own, others, latency_ms, repeats=DRAWS if count else 1, seed=seed))
                rows.append(judged(f"{name}, {count} labels", "predictor", _scores(draws, n)))
    apart, ceiling = _noise(table.labels(), latency_ms)
    training_s = float(np.median([training.seconds for network in table.networks for training in network.trainings]))
    return Card(tuple(rows), apart, ceiling, n, pairs, table.origin, training_s, coverage)


def _noise(runs: Runs, latency_ms: np.ndarray) -> tuple[Spread, Interval] | tuple[None, None]:
    """How far the labels of rivals lie apart, and what that leaves for a perfect score; None if it is not known."""
    try:
        found = jackknife(lambda index: spread([runs[i] for i in index], latency_ms[index]).ceiling, len(runs))
        return spread(runs, latency_ms), Interval(found.value, max(0.0, found.low), min(1.0, found.high))
    except ValueError:  # too few networks with two seeds
        return None, None


INPUTS: dict[str, tuple[str, ...] | None] = {"predictor (size)": (), "predictor": None}
"""Row -> the features that a predictor may see besides the size."""


def _covered(held_out: HeldOut, own: evidence.Evidence) -> float:
    half = NORMAL_QUANTILE * np.hypot(held_out.sd, own.noise_sd[held_out.index])
    return float(np.mean(np.abs(own.log_error[held_out.index] - held_out.mean) <= half))


def _scores(draws: Sequence[HeldOut], n: int) -> np.ndarray:
    """(draws, n) predictions, higher is better, NaN for the networks that a draw has seen."""
    scores = np.full((len(draws), n), math.nan)
    for row, draw in zip(scores, draws, strict=True):
        row[draw.index] = -draw.mean
    return scores


def _mean(values: Sequence[float]) -> float:
    """Of the draws that have a value; NaN where none has."""
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def _sizes(table: LabelTable) -> dict[str, np.ndarray]:
    columns = features_of(table.archs, ["size"])
    return {"params": columns[:, 0], "macs": columns[:, 1], "depth": columns[:, 2], "latency": table.latency_ms}


def _proxies(table: LabelTable) -> dict[str, np.ndarray]:
    """(n,) values of the proxies that enough networks have, without the sizes; NaN where one has none."""
    names = {name: None for network in table.networks for name in network.proxies if name not in SIZES}
    columns = {name: np.array([net.proxies.get(name, math.nan) for net in table.networks]) for name in names}
    return {name: column for name, column in columns.items() if np.isfinite(column).sum() >= MIN_NETWORKS}


def _aggregate(table: LabelTable) -> np.ndarray | None:
    """(n,) zero-cost scores, NaN where a proxy is missing; None if too few networks have them all."""
    complete = [all(name in network.proxies for name in NAMES) for network in table.networks]
    pool = [network.proxies for network, whole in zip(table.networks, complete, strict=True) if whole]
    if len(pool) < MIN_NETWORKS:
        return None
    aggregate, scores = RankAggregate.fit(pool), np.full(len(complete), math.nan)
    scores[complete] = [aggregate.score(proxies) for proxies in pool]
    return scores
