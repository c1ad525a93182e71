"""Does the space that an analysis suggests hold the better networks? Checked on networks that were trained.

    evit-nas train m0 --data fashion-mnist --recipe short --image-size 64
    OMP_NUM_THREADS=1 python benchmarks/suggested_space.py --network runs/train/m0-... --data fashion-mnist

The trained networks are random ones of a table. The better half is that of each latency slice, because a larger network
is better anyway. Prints the narrowings with how much of the better and of the worse half they hold, then, for spaces of
the one, two, three ... clearest narrowings, the networks inside and how likely chance alone has so many of the better
half among them (hypergeometric), and last the rank correlation of accuracy within the slices with the number of
narrowings that a network keeps to.
"""

from __future__ import annotations

import argparse

import numpy as np
from scipy.stats import hypergeom, kendalltau

from evit_nas.accuracy.table import LabelTable
from evit_nas.analysis import analyze
from evit_nas.analysis.suggest import CUT, Narrowing, suggest_space
from evit_nas.arch import ArchConfig
from evit_nas.latency.machine import probe
from evit_nas.space import SearchSpace

ALL = 99


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", required=True, help="a trained network")
    parser.add_argument("--data", required=True, help="the images to look at")
    parser.add_argument("--like", help="a folder that tells the preprocessing of a file of weights")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--cut", type=float, default=CUT)
    parser.add_argument("--space", default="efficientvit-224")
    parser.add_argument("--table", default="fashion-mnist-64")
    parser.add_argument("--slices-ms", type=float, nargs="+", default=[2.0, 3.5, 5.0], help="middles")
    args = parser.parse_args()
    found = analyze(args.network, args.data, images=args.images, like=args.like, note=print)
    if found.arch is None:
        raise SystemExit(f"{args.network} is no EfficientViT.")
    table, space = LabelTable.load(args.table), SearchSpace.load(args.space)
    better, gain = ranked(table, args.slices_ms)
    print(f"machine: {probe()}")
    print(
        f"{found.network}, right on {found.training_top1:.1f} % of {found.images} training images; {better.sum()} of "
        f"{len(better)} better"
    )

    every = suggest_space(found.network, found.arch, found.channels, space, args.cut, ALL).narrowings
    print("narrowing | better half | worse half")
    for one in every:
        keeps = np.array([within(arch, [one]) for arch in table.archs])
        what = f"stage {one.stage + 1} {one.field} {one.after[0]}..{one.after[-1]}"
        print(f"{what} | {keeps[better].mean():.0%} | {keeps[~better].mean():.0%}")
    print("narrowings | networks inside | of the better half | chance of so many")
    for most in range(1, len(every) + 1):
        suggestion = suggest_space(found.network, found.arch, found.channels, space, args.cut, most)
        inside = np.array([within(arch, suggestion.narrowings) for arch in table.archs])
        hits = int((inside & better).sum())
        chance = hypergeom.sf(hits - 1, len(better), better.sum(), inside.sum())
        print(f"{most} | {inside.sum()} | {hits} | {chance:.3f}")
    kept_to = [sum(within(arch, [one]) for one in every) for arch in table.archs]
    tau = kendalltau(kept_to, gain)
    print(f"accuracy within slices against narrowings kept to: tau {tau.statistic:.2f} (p = {tau.pvalue:.4f})")


def ranked(table: LabelTable, slices_ms: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """(n,) whether each network is above the median of its slice, and (n,) points above the slice's mean."""
    accuracy, _ = table.truth()
    middles = np.array(slices_ms)
    slices = np.abs(table.latency_ms[:, None] / middles - 1).argmin(axis=1)
    better, gain = np.zeros(len(accuracy), bool), np.zeros(len(accuracy))
    for index in range(len(middles)):
        own = slices == index
        better[own] = accuracy[own] > np.median(accuracy[own])
        gain[own] = accuracy[own] - accuracy[own].mean()
    return better, gain


def within(arch: ArchConfig, narrowings: list[Narrowing] | tuple[Narrowing, ...]) -> bool:
    """Whether a network keeps to all of them."""
    return all(getattr(arch.stages[one.stage], one.field) in one.after for one in narrowings)


if __name__ == "__main__":
    main()
