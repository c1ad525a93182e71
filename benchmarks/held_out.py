"""Does the score choose well? Its best networks against the paper's of equal latency, all trained by one recipe.

    evit-nas search --device cpu --budget 5ms --out runs/five
    python benchmarks/held_out.py runs/five --data /usr/share/datasets/fashion-mnist --seeds 2

For each of the paper's networks within the budget: the networks with the highest scores among those that the search
measured at about its latency or a little less, none of which is in the table that the score was learned from. All are
trained to the end by the recipe of the table, with the same seeds. Prints top-1 and cross-entropy of each, and what
choosing by the score gains; it goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from evit_nas.accuracy.table import SHIPPED_TABLE, LabelTable
from evit_nas.data.cache import load_dataset
from evit_nas.latency.machine import probe
from evit_nas.runs import Run
from evit_nas.searching.findings import find
from evit_nas.searching.front import Candidate
from evit_nas.searching.labelling.labels import Job, Label, Labels

NEAR = (0.85, 1.02)  # of the latency of the paper's network: what a rival may take


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--table", default=SHIPPED_TABLE, help="that the run's score was learned from")
    parser.add_argument("--top", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/held-out"))
    args = parser.parse_args()
    print(f"machine: {probe()}", flush=True)
    table, run = LabelTable.load(args.table), Run.open(args.run)
    rivals = chosen(run, table, args.top)
    networks = {c.arch.key: c.arch for best in rivals.values() for c in best}
    found = find(run).front.references
    networks |= {reference.arch.key: reference.arch for reference in found if reference.name in rivals}
    labels = Labels(
        args.out, args.data, load_dataset(args.data, table.recipe.image_size, note=print).digest, table.recipe
    )
    # seed by seed, so that a part of it is balanced too
    jobs = [Job(arch, seed, table.recipe.last_rung) for seed in range(args.seeds) for arch in networks.values()]
    print(f"{len(jobs)} trainings of {len(networks)} networks", flush=True)
    labels.collect(jobs, os.cpu_count() or 1, told, print)
    known = labels.known()
    for reference in found:
        if reference.name in rivals:
            report(reference, rivals[reference.name], known)


def told(job: Job, label: Label) -> None:
    print(f"{job.arch.key} seed {job.seed}: {100 * label.score.accuracy:.2f} %", flush=True)


def chosen(run: Run, table: LabelTable, top: int) -> dict[str, list[Candidate]]:
    """Name of a network of the paper -> the best-scored measured networks of its latency, best first."""
    findings = find(run)
    unseen = [c for c in findings.measured if c.arch.key not in {arch.key for arch in table.archs}]
    papers = {reference.arch.key for reference in findings.front.references}
    best = {}
    for reference in findings.front.references:
        ms = reference.latency.median_ms
        if ms <= run.settings.targets[0].budget_ms:
            near = [c for c in unseen if NEAR[0] <= c.latency.median_ms / ms <= NEAR[1] and c.arch.key not in papers]
            best[reference.name] = sorted(near, key=lambda c: -c.score)[:top]
    return best


def report(reference: Candidate, best: list[Candidate], known: dict[tuple[str, int], Label]) -> None:
    own = scores(reference, known)
    print(f"\n{reference.name}: {reference.latency.median_ms:.2f} ms, {line(own)}")
    gains = []
    for candidate in best:
        theirs = scores(candidate, known)
        gains.append(theirs[:, 0].mean() - own[:, 0].mean())
        print(f"  score {candidate.score:.2f}, {candidate.latency.median_ms:.2f} ms, {line(theirs)}: {gains[-1]:+.2f}")
    print(f"  the {len(best)} best by the score gain {np.mean(gains):+.2f} points on average")


def scores(candidate: Candidate, known: dict[tuple[str, int], Label]) -> np.ndarray:
    """(seeds, 2) top-1 in percent and cross-entropy."""
    found = [label.score for (key, _), label in sorted(known.items()) if key == candidate.arch.key]
    return np.array([(100 * score.accuracy, score.cross_entropy) for score in found])


def line(found: np.ndarray) -> str:
    each = " ".join(f"{accuracy:.2f}" for accuracy in found[:, 0])
    return f"top-1 {each} %, mean {found[:, 0].mean():.2f}, cross-entropy {found[:, 1].mean():.4f}"


if __name__ == "__main__":
    main()
