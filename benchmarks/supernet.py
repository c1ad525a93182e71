"""What a supernet is worth: the order it gives networks against their own trainings, and what a step of it costs.

    PYTHONPATH=. python benchmarks/supernet.py card SUPERNET --table TABLE     # a label table of the same images
    PYTHONPATH=. python benchmarks/supernet.py cost SPACE --macs 100M..300M --image-size 112 --batch 64

`card` judges those networks of the table that are in the supernet's space and band, and prints Kendall's tau with their
own trainings, among all and among rivals of about equal latency: of the inherited cross-entropy, of predictors that
have learned from some of the labels, and of sizes; how much of the scores is noise of so many held-out images; and how
many labels cost what the supernet's training did, by steps of both that are timed in turn.

`cost` takes steps of the largest network alone and steps of the supernet in turn, each in a process of its own, and
prints time and peak memory of the second as multiples of the first.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from evit_nas.accuracy import evidence
from evit_nas.accuracy.evidence import Evidence
from evit_nas.accuracy.features import table as features_of
from evit_nas.accuracy.predictor import AccuracyPredictor
from evit_nas.accuracy.short import as_trained
from evit_nas.accuracy.supernet import SupernetScore
from evit_nas.accuracy.table import LabelTable
from evit_nas.arch import ArchConfig
from evit_nas.data.sources import open_source
from evit_nas.errors import UsageError
from evit_nas.latency.machine import probe
from evit_nas.network.cost import cost
from evit_nas.network.elastic import Elastic
from evit_nas.network.model import build
from evit_nas.network.supernet import Supernet
from evit_nas.quantities import parse_span
from evit_nas.space import SearchSpace, resolved_space
from evit_nas.stats import bootstrap, kendall_tau, rivals
from evit_nas.training.supernet import BETWEEN, Band

LABELS = (0, 5, 10, 20, 30)  # that a predictor learns from; the others are ranked
SPLITS = 20  # random choices of these
HELD_OUT = (100, 250, 500, 1000, 2000)  # images that members might be judged on
STEPS, ROUNDS = 5, 3  # of each kind in turn
CLASSES = 101  # of the steps' labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    card = verbs.add_parser("card")
    card.add_argument("supernet", type=Path)
    card.add_argument("--table", required=True)
    price = verbs.add_parser("cost")
    price.add_argument("space")
    price.add_argument("--macs", required=True)
    price.add_argument("--image-size", type=int, default=112)
    price.add_argument("--batch", type=int, default=64)
    args = parser.parse_args()
    print(f"machine: {probe()}", flush=True)
    if args.verb == "card":
        print_card(args.supernet, LabelTable.load(args.table))
    else:
        print_cost(args.space, parse_span(args.macs, "--macs"), args.image_size, args.batch)


def print_card(folder: Path, table: LabelTable) -> None:
    supernet, score = Supernet.load(folder), SupernetScore(folder)
    (truth, _), losses, seconds = table.truth(), list[np.ndarray](), list[float]()
    at = []
    for index, arch in enumerate(table.archs):
        macs = cost(supernet.space.adapted(arch)).macs
        if not supernet.macs[0] <= macs <= supernet.macs[1]:
            continue
        try:
            supernet.fitted(arch)
        except UsageError:  # not in the space
            continue
        start = time.monotonic()
        losses.append(score.judged(arch)[0].numpy())
        seconds.append(time.monotonic() - start)
        at.append(index)
    chosen = np.array(at)
    truth, latency_ms = truth[chosen], table.latency_ms[chosen]
    sizes = features_of([table.archs[index] for index in at], ["size"])
    pairs = int(rivals(len(chosen), latency_ms).sum()) // 2
    print(f"{len(chosen)} of {len(table.archs)} networks are in the band, {pairs} pairs of rivals; {table.origin}")
    print(f"judging one takes {np.median(seconds):.1f} s (median)")
    print_noise(np.array(losses))
    scores = {"inherited cross-entropy": -np.mean(losses, axis=1), "MACs": sizes[:, 1], "parameters": sizes[:, 0]}
    for name, values in scores.items():

        def iso(index: np.ndarray, values: np.ndarray = values) -> float:
            return kendall_tau(values[index], truth[index], latency_ms[index])

        tau = kendall_tau(values, truth)
        print(f"{name:28} tau {tau:5.2f}, iso tau {bootstrap(iso, len(chosen), seed=0)}")
    for labels in LABELS:
        if len(chosen) > labels + 5:
            tau = _with_labels(table, chosen, labels)
            print(f"{f'predictor, {labels} labels':28} iso tau {tau:.2f} (mean of {SPLITS} splits)")
    print(f"the supernet's training costs as much as {_labels_for(supernet, table):.1f} labels")


def print_noise(losses: np.ndarray) -> None:
    """How much of what networks differ by is the choice of held-out images, by a two-way analysis of variance.

    Args:
        losses: (networks, images) cross-entropies. How hard an image is for all of them moves no comparison.
    """
    networks, images = losses.shape
    apart = losses - losses.mean(axis=1, keepdims=True) - losses.mean(axis=0) + losses.mean()
    per_image = (apart**2).sum() / ((networks - 1) * (images - 1))
    true = max(losses.mean(axis=1).var(ddof=1) - per_image / images, 0.0)
    shares = [f"{per_image / count / (per_image / count + true):.0%} with {count}" for count in HELD_OUT]
    print(f"of the variance of scores the choice of held-out images is {', '.join(shares)} of them")


def _with_labels(table: LabelTable, chosen: np.ndarray, labels: int) -> float:
    """Mean iso tau among the networks that a predictor has not seen."""
    known, rng, found = evidence.of_table(table), np.random.default_rng(0), []
    truth, _ = table.truth()
    shipped = evidence.shipped()
    for _ in range(SPLITS):
        order = rng.permutation(chosen)
        seen, unseen = order[:labels], order[labels:]
        fitted = AccuracyPredictor.fit(Evidence.joined([shipped[shipped.data != table.source], known[seen]]))
        asked = evidence.networks([table.archs[index] for index in unseen], table.regime, table.source)
        found.append(kendall_tau(-fitted.mean(asked), truth[unseen], table.latency_ms[unseen]))
    return float(np.mean(found))


def _labels_for(supernet: Supernet, table: LabelTable) -> float:
    """How many of the labels could have been trained in the processor time of the supernet's steps."""
    own, recipe = supernet.recipe, table.recipe
    images = len(open_source(supernet.data, seed=0).train) - supernet.held_out
    by_macs = sorted(table.archs, key=lambda arch: cost(arch).macs)
    label = as_trained(by_macs[len(by_macs) // 2], recipe, len(supernet.classes))  # of a middle one
    size = supernet.largest.image_size
    assert isinstance(size, int)
    torch.set_num_threads(1)
    of_label, of_supernet = list[float](), list[float]()  # seconds an image
    for _ in range(ROUNDS):
        seconds, _ = _steps(supernet.space, supernet.macs, recipe.image_size, recipe.batch_size, label)
        of_label.append(seconds / recipe.batch_size)
        seconds, _ = _steps(supernet.space, supernet.macs, size, own["batch_size"])
        of_supernet.append(seconds / own["batch_size"])
    label_s = np.median(of_label) * recipe.images * sum(recipe.cycles)
    return float(np.median(of_supernet) * images * own["epochs"] / label_s)


def print_cost(name: str, macs: tuple[int, int], image_size: int, batch: int) -> None:
    space = SearchSpace.load(resolved_space(name)).model_copy(update={"num_classes": CLASSES})
    ends = Band(space, macs).ends(seed=0)
    for what, arch in zip(("largest", "smallest"), ends, strict=True):
        print(f"{what}: {cost(arch).macs / 1e6:.0f}M MACs, {cost(arch).params / 1e6:.1f}M parameters")
    largest = ends[0].model_copy(update={"image_size": image_size})
    context = multiprocessing.get_context("spawn")
    times: dict[str, list[float]] = {"alone": [], "supernet": []}
    peaks: dict[str, list[float]] = {"alone": [], "supernet": []}
    for _ in range(ROUNDS):
        for kind in times:
            alone = largest if kind == "alone" else None
            with context.Pool(1) as pool:
                seconds, peak_mb = pool.apply(_steps, (space, macs, image_size, batch, alone))
            times[kind].append(seconds)
            peaks[kind].append(peak_mb)
            print(f"{kind:9} {seconds:.2f} s a step, peak {peak_mb:.0f} MB", flush=True)
    ratios = [np.median(found["supernet"]) / np.median(found["alone"]) for found in (times, peaks)]
    print(f"a step of the supernet takes {ratios[0]:.2f} times as long, and {ratios[1]:.2f} times the memory")


def _steps(
    space: SearchSpace, macs: tuple[int, int], image_size: int, batch: int, alone: ArchConfig | None = None
) -> tuple[float, float]:
    """Median seconds of a step of the supernet, or of one network alone, and this process's peak of memory in MB."""
    band, size = Band(space, macs), {"image_size": image_size}
    largest, smallest = (arch.model_copy(update=size) for arch in band.ends(seed=0))
    model = build(alone, seed=0) if alone else Elastic(space.model_copy(update=size))
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    x, labels, rng = (
        torch.randn(batch, 3, image_size, image_size),
        torch.arange(batch) % space.num_classes,
        random.Random(0),
    )
    x = x.contiguous(memory_format=torch.channels_last)  # as in a training
    seconds = []
    for _ in range(STEPS):
        start = time.monotonic()
        logits = model(x) if alone else model(largest, x)
        F.cross_entropy(logits, labels).backward()
        if not alone:
            taught = logits.detach().softmax(1)
            for arch in (smallest, *(band.member(rng).model_copy(update=size) for _ in range(BETWEEN))):
                F.cross_entropy(model(arch, x), taught).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        seconds.append(time.monotonic() - start)
    return float(np.median(seconds[1:])), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
