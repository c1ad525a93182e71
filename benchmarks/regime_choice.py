"""Does the score of the regime at hand choose better than that of another, and than the paper? All trained alike.

    evit-nas search --budget 2ms --data PHOTOS --image-size 112 --out MANY
    evit-nas search --budget 2ms --data TEN_CLASSES --image-size 112 --out FEW
    PYTHONPATH=. python benchmarks/regime_choice.py --right MANY --wrong FEW --data PHOTOS --epochs 4 --out FOLDER

For each of the paper's networks: the network of the highest score of equal measured latency from the search for these
data, and from the search for other data. All are trained at their full width from scratch by the recipe `short`, seed
by seed, so that a part of it is balanced too. Prints each as it comes, and what was gained over the paper's network and
over the wrong choice. The same command goes on where it was stopped; `--seeds 0` and `--seeds 1` may run side by side.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import fmean

from held_out import NEAR

import evit_nas
from evit_nas.files import write_atomically
from evit_nas.latency.machine import probe
from evit_nas.runs import Run
from evit_nas.searching.findings import Findings, find
from evit_nas.searching.front import Candidate
from evit_nas.stats import binomial_error

CHOICES = ("paper's", "right", "wrong")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--right", type=Path, required=True, help="a search for these data")
    parser.add_argument("--wrong", type=Path, required=True, help="a search for others")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--presets", nargs="+", default=["m1", "m2"])
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rate", type=float, default=2e-3, help="highest")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    print(f"machine: {probe()}", flush=True)
    searches = {name: find(Run.open(path)) for name, path in (("right", args.right), ("wrong", args.wrong))}
    choices = {preset: chosen(preset, searches, args.out / "networks") for preset in args.presets}
    networks = {(preset, choice): choices[preset][choice] for choice in CHOICES for preset in args.presets}
    found: dict[tuple[str, str], list[float]] = {}
    for seed in args.seeds:
        for (preset, choice), network in networks.items():
            [trained] = evit_nas.train(
                network,
                data=args.data,
                image_size=size_of(searches["right"]),
                workers=args.workers,
                recipe="short",
                epochs=args.epochs,
                batch_size=args.batch_size,
                lr=args.rate,
                init="scratch",
                seed=seed,
                ship=False,
                resume=True,
                out=args.out / "scratch",
            )
            error = binomial_error(trained.top1, trained.validation_images)
            print(f"{preset}, {choice:9} seed {seed}: {trained.top1:6.2f} ± {error:.2f} %", flush=True)
            found.setdefault((preset, choice), []).append(trained.top1)
    for preset in args.presets:
        own, right, wrong = (fmean(found[preset, choice]) for choice in CHOICES)
        print(f"{preset}: {own:.2f} %; chosen for these data {right - own:+.2f}, for others {wrong - own:+.2f} points")


def size_of(findings: Findings) -> int:
    """Input side in pixels of what a search has measured."""
    size = findings.front.references[0].arch.image_size
    assert isinstance(size, int)  # `--image-size` makes squares
    return size


def chosen(preset: str, searches: dict[str, Findings], folder: Path) -> dict[str, str]:
    """Which choice -> the network as `train` takes it: the paper's, and the best of equal latency of each search."""
    networks = dict.fromkeys(CHOICES, preset)
    folder.mkdir(parents=True, exist_ok=True)
    for name, findings in searches.items():
        paper = next(one for one in findings.front.references if one.name == preset)
        best = best_beside(paper, findings)
        path = folder / f"{preset}-{name}.yaml"
        write_atomically(path, best.arch.to_yaml())
        ratio = best.latency.median_ms / paper.latency.median_ms
        print(f"{path}: score {best.score:.2f} ({preset} {paper.score:.2f}), {ratio:.2f} of its latency", flush=True)
        networks[name] = str(path)
    return networks


def best_beside(paper: Candidate, findings: Findings) -> Candidate:
    papers = {reference.arch.key for reference in findings.front.references}
    ms = paper.latency.median_ms
    near = [c for c in findings.measured if NEAR[0] <= c.latency.median_ms / ms <= NEAR[1] and c.arch.key not in papers]
    return max(near, key=lambda candidate: candidate.score)


if __name__ == "__main__":
    main()
