"""How good a ranking is, and how good it could be: rank correlation at equal latency, its ceiling, its uncertainty.

Over a wide range of latencies nearly every score agrees with the truth, since it repeats size. What a search under a
budget needs is the order among networks of *about the same latency*, so every figure here comes in that form: pairs
of networks count only where their latencies differ by at most `TOLERANCE`. Pairs, not slices of a grid, because there
are no borders to choose that part close networks, no set of slices of different sizes to weigh against each other,
and no slice whose ends differ by more than the tolerance. With no latencies given, all pairs count.

Everywhere a higher score and a higher truth are better, arrays are (n,) with one element a network, and a network
appears once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

TOLERANCE = 0.1  # relative difference of latencies up to which two networks are rivals
LEVEL = 0.95  # confidence of a bootstrapped interval


@dataclass(frozen=True)
class Interval:
    """A statistic with the bounds between which it lies at the stated confidence."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Spread:
    """Standard deviations of labels among rivals, in the labels' unit."""

    arch_sd: float
    """Between the expected labels of different networks: what a score can explain."""
    seed_sd: float
    """Between trainings of one network that differ in the seed only, beyond what a seed does to all networks."""
    label_sd: float
    """The noise left in a network's mean label; equal to `seed_sd` with one training a network."""

    @property
    def ceiling(self) -> float:
        """The tau that a perfect score is expected to reach against these mean labels."""
        return noise_ceiling(self.arch_sd, self.label_sd)


def binomial_error(percent: float, images: int) -> float:
    """Standard error, in points, of an accuracy that comes from so many images alone.

    Half of Wilson's interval at one standard error: sqrt(p (1 - p) / n) but for few images and the ends of the scale,
    where that says 0 of 10 right answers out of 10.

    Args:
        percent: of right answers, 0 to 100.
        images: at least 1.
    """
    p = percent / 100
    return 100 * math.sqrt(p * (1 - p) / images + 1 / (4 * images**2)) / (1 + 1 / images)


def rivals(n: int, latency_ms: np.ndarray | None = None) -> np.ndarray:
    """(n, n) symmetric mask of the pairs of distinct networks that compete with each other.

    Args:
        n: number of networks.
        latency_ms: positive; None makes all networks rivals.
    """
    if latency_ms is None:
        return ~np.eye(n, dtype=bool)
    (latency_ms,) = _checked(n, latency_ms=latency_ms)
    if not (latency_ms > 0).all():
        raise ValueError(f"latencies must be positive, got {latency_ms.min()}.")
    slower, faster = np.maximum.outer(latency_ms, latency_ms), np.minimum.outer(latency_ms, latency_ms)
    mask: np.ndarray = slower <= (1 + TOLERANCE) * faster
    return mask & ~np.eye(n, dtype=bool)


def kendall_tau(scores: np.ndarray, truth: np.ndarray, latency_ms: np.ndarray | None = None) -> float:
    """Kendall's tau-b over rivals: (concordant - discordant) pairs over the geometric mean of untied pairs.

    With latencies this is *the* iso-latency tau; without them it is the ordinary tau-b.

    Returns:
        -1 to 1; 0 where either side is tied everywhere, since such a score orders nothing; NaN without rivals.

    Raises:
        ValueError: a value is NaN or infinite, a latency is not positive, or lengths differ.
    """
    scores, truth = _checked(len(truth), scores=scores, truth=truth)
    pairs = rivals(len(truth), latency_ms)
    if not pairs.any():
        return math.nan
    by_score = np.sign(np.subtract.outer(scores, scores))[pairs]  # each pair both ways round, which cancels below
    by_truth = np.sign(np.subtract.outer(truth, truth))[pairs]
    untied = math.sqrt(np.count_nonzero(by_score)) * math.sqrt(np.count_nonzero(by_truth))
    return float(by_score @ by_truth / untied) if untied else 0.0


def top_regret(scores: np.ndarray, truth: np.ndarray, k: int, latency_ms: np.ndarray | None = None) -> float:
    """What is lost, in units of truth, by training only the k best-scored of a network and its rivals.

    The best truth among them minus the best truth among the k, averaged over all networks with at least k rivals;
    where scores are tied, the worst are taken first. Without latencies there is one such group: all networks.

    Returns:
        At least 0; NaN where no group holds more than k networks, so that there is nothing to choose.

    Raises:
        ValueError: k is less than 1, or as for `kendall_tau`.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    scores, truth = _checked(len(truth), scores=scores, truth=truth)
    groups = rivals(len(truth), latency_ms) | np.eye(len(truth), dtype=bool)
    order = np.lexsort((truth, -scores))  # the last key counts first: by score, of equal scores the worst truth first
    losses = []
    for group in groups[:, order]:
        ranked = truth[order][group]
        if len(ranked) > k:
            losses.append(ranked.max() - ranked[:k].max())
    return float(np.mean(losses)) if losses else math.nan


def noise_ceiling(arch_sd: float, label_sd: float) -> float:
    """The tau that a perfect score is expected to reach against noisy labels, both normally distributed.

    (2 / pi) asin(rho) with rho = arch_sd / hypot(arch_sd, label_sd), the correlation of truth and labels.
    """
    total = math.hypot(arch_sd, label_sd)
    # Greiner's relation of tau and the correlation of two normal variables
    return 2 / math.pi * math.asin(arch_sd / total) if total else 0.0


Runs = Sequence[Mapping[int, float]]
"""For each network the labels of its trainings, by seed; at least one."""


def seed_effects(runs: Runs) -> tuple[dict[int, float], int]:
    """What each seed adds to every network's label, and how many of these effects were estimated.

    Trainings of one seed see the same images in the same order, and that moves all of them alike: which network is
    better must not depend on which of them were trained with the better seed. The least-squares fit of label = network
    + seed, with the seeds' mean over all trainings 0. Seeds that no network links to others cannot be told from their
    networks, and get no effect.
    """
    seeds = sorted({seed for labels in runs for seed in labels})
    of = {seed: column for column, seed in enumerate(seeds)}
    rows, off = [], []
    for labels in runs:
        has = np.isin(seeds, list(labels)).astype(float)
        mean = np.mean(list(labels.values()))
        for seed, label in labels.items():
            # less its network's mean a label is its seed's effect less the mean effect of the network's seeds:
            # the networks themselves drop out, and only seeds are fitted
            row = -has / len(labels)
            row[of[seed]] += 1
            rows.append(row)
            off.append(label - mean)
    # of fits that are equally good lstsq gives the shortest: 0 for a seed that shares no network with another
    matrix = np.array(rows)
    effects, _, rank, _ = np.linalg.lstsq(matrix, np.array(off), rcond=None)
    linked = matrix.any(0)  # the others get no effect, and take no part in the mean that is taken off
    if linked.any():
        trainings = np.array([sum(seed in labels for labels in runs) for seed in seeds])[linked]
        effects[linked] -= trainings @ effects[linked] / trainings.sum()
    return dict(zip(seeds, effects.tolist(), strict=True)), int(rank)


def without_seed_effects(runs: Runs) -> list[dict[int, float]]:
    """The labels as they would be if all seeds were equally good; see `seed_effects`."""
    effects, _ = seed_effects(runs)
    return [{seed: label - effects[seed] for seed, label in labels.items()} for labels in runs]


def seed_sd(runs: Runs) -> float:
    """Standard deviation of the labels of one network, beyond what a seed does to all networks; NaN if not known.

    Pooled over the networks: squares about their means, over the trainings less the means and the effects estimated.
    """
    _, effects = seed_effects(runs)
    freedom = sum(len(labels) - 1 for labels in runs) - effects
    if freedom < 1:
        return math.nan
    values = [np.array(list(labels.values())) for labels in without_seed_effects(runs)]
    return math.sqrt(sum(float(np.sum((labels - labels.mean()) ** 2)) for labels in values) / freedom)


def spread(runs: Runs, latency_ms: np.ndarray | None = None) -> Spread:
    """How far labels of rivals lie apart because of the architecture and because of the seed.

    Half the mean squared difference of two rivals' mean labels is the variance of both sources together; the share of
    the seeds, known from their numbers, is taken off.

    Args:
        runs: of which some have two seeds; what a seed adds to all of them is taken out first.
        latency_ms: (n,) of the networks.

    Raises:
        ValueError: a network has no label, or too few have two, or there are no rivals.
    """
    counts = np.array([len(labels) for labels in runs])
    if counts.min(initial=1) < 1 or math.isnan(noise := seed_sd(runs)):
        raise ValueError(f"every network needs a label and some need two, got {counts.tolist()} of them.")
    pairs = rivals(len(runs), latency_ms)
    if not pairs.any():
        raise ValueError(f"a spread needs networks of about equal latency, got none among {len(runs)}.")
    means = np.array([np.mean(list(labels.values())) for labels in without_seed_effects(runs)])
    _checked(len(runs), labels=means)
    label_var = noise**2 * float(np.add.outer(1 / counts, 1 / counts)[pairs].mean()) / 2  # halved as the squares below
    total_var = float((np.subtract.outer(means, means)[pairs] ** 2).mean()) / 2
    # by chance labels may differ by less than their noise
    return Spread(math.sqrt(max(0.0, total_var - label_var)), noise, math.sqrt(label_var))


def jackknife(statistic: Callable[[np.ndarray], float], n: int) -> Interval:
    """95 % interval of a smooth statistic of n networks, by leaving out one at a time (Efron and Tibshirani, 1993).

    For statistics that a network drawn twice would distort, such as a spread between networks.

    Args:
        statistic: of an array of distinct indices into the networks.
        n: number of networks.
    """
    value, every = float(statistic(np.arange(n))), np.arange(n)
    without = np.array([statistic(np.delete(every, index)) for index in every])
    half = 1.96 * math.sqrt((n - 1) / n * float(np.sum((without - without.mean()) ** 2)))
    return Interval(value, value - half, value + half)


def resampled_tau(
    scores: np.ndarray, truth: np.ndarray, latency_ms: np.ndarray | None = None
) -> Callable[[np.ndarray], float]:
    """`kendall_tau` of the networks at given indices, which may repeat: for `bootstrap`, its pairs compared only once.

    Args:
        scores: (n,) NaN where a network has none, and then counts in no pair.
        truth: (n,)
        latency_ms: (n,)
    """
    n = len(truth)
    truth, has = _checked(n, truth=truth)[0], np.isfinite(scores)
    pairs = rivals(n, latency_ms) & np.logical_and.outer(has, has)
    by_score = np.sign(np.subtract.outer(scores, scores), where=pairs, out=np.zeros((n, n)))  # 0 for NaN
    by_truth = np.where(pairs, np.sign(np.subtract.outer(truth, truth)), 0.0)
    agreement, tied_not = by_score * by_truth, (np.abs(by_score), np.abs(by_truth))

    def tau(index: np.ndarray) -> float:
        times = np.bincount(index, minlength=n).astype(float)  # (n,) a pair counts times[i] * times[j]
        if not times @ pairs @ times:
            return math.nan
        untied = math.prod(math.sqrt(times @ one @ times) for one in tied_not)
        return float(times @ agreement @ times / untied) if untied else 0.0

    return tau


def bootstrap(statistic: Callable[[np.ndarray], float], n: int, *, seed: int = 0, resamples: int = 500) -> Interval:
    """Percentile interval of a statistic of n networks, by drawing networks with replacement.

    A network drawn twice is tied with itself in score and in truth, and tau-b leaves such pairs out. Whether score
    a beats score b is the same question about their difference, in which what they share cancels out:

        bootstrap(lambda i: kendall_tau(a[i], y[i], ms[i]) - kendall_tau(b[i], y[i], ms[i]), len(y))

    Args:
        statistic: of an (n,) array of indices into the networks; a draw for which it is NaN does not count.
        n: number of networks.
        seed: the same draws for the same seed.
        resamples: number of draws.
    """
    rng = np.random.default_rng(seed)
    values = [statistic(rng.integers(n, size=n)) for _ in range(resamples)]
    low, high = np.nanquantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(statistic(np.arange(n))), float(low), float(high))


def _checked(n: int, **columns: np.ndarray) -> list[np.ndarray]:
    """The columns as floats, each with n finite values."""
    arrays = {name: np.asarray(column, dtype=float) for name, column in columns.items()}
    for name, array in arrays.items():
        if array.shape != (n,):
            raise ValueError(f"{name} must have one value for each of the {n} networks, got shape {array.shape}.")
        if not np.isfinite(array).all():
            row = int(np.argmin(np.isfinite(array)))
            raise ValueError(f"{name} must be finite, but network {row} has {array[row]}.")
    return list(arrays.values())
