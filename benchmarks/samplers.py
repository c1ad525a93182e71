"""Which sampler finds the better front, by evaluations and by time? A stand-in for searches that costs milliseconds.

    evit-nas latency fit && evit-nas latency show --export latencies.json
    OMP_NUM_THREADS=1 python benchmarks/samplers.py --latencies latencies.json

Latencies are those of the predictor, fitted to the given networks; scores are those of `score_of`. Every search starts
from a random pool, as `evit-nas search` does, and all samplers share the pool of a seed. What counts is the hypervolume
of the front within the budget. Prints the machine, how good the predictor is, and the table.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
import optuna

from evit_nas.accuracy.aggregate import RankAggregate
from evit_nas.arch import ArchConfig
from evit_nas.latency.machine import probe
from evit_nas.latency.predictor import Predictor, fit
from evit_nas.latency.samples import read_samples
from evit_nas.network.cost import cost
from evit_nas.pareto import hypervolume
from evit_nas.searching.samplers import SAMPLERS, make
from evit_nas.space import SearchSpace

WORST_SCORE = -3.0  # about that of the fastest networks on a front: where hypervolume starts to count
REFERENCES = 400  # random networks that the stand-in score ranks against


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--latencies", type=Path, required=True, help="written by: evit-nas latency show --export FILE")
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    parser.add_argument("--space", default="efficientvit-224")
    parser.add_argument("--budget-ms", type=float, default=5.0)
    parser.add_argument("--evaluations", type=int, default=200, help="of each search, the pool included")
    parser.add_argument("--pool", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--cost-s", type=float, default=2.4, help="of one evaluation in a real search, in seconds")
    parser.add_argument("--jobs", type=int, default=2, help="searches at the same time")
    args = parser.parse_args()
    predictor = fitted(args.latencies)
    print(f"machine: {probe()}\npredictor ({predictor.samples} networks): {predictor.check}", flush=True)

    lengths = dict.fromkeys(args.samplers, args.evaluations) | {"random": 3 * args.evaluations}
    tasks = [(sampler, seed) for sampler in lengths for seed in range(args.seeds)]
    with ProcessPoolExecutor(args.jobs) as workers:
        runs = [workers.submit(search, args, sampler, seed, lengths[sampler]) for sampler, seed in tasks]
        found = {task: run.result() for task, run in zip(tasks, runs, strict=True)}
    print(table(found, args))


@cache
def fitted(path: Path) -> Predictor:
    """The latency predictor of an exported table."""
    predictor = fit(read_samples(json.loads(path.read_text(encoding="utf-8"))))
    if predictor is None:
        raise SystemExit(f"{path} holds too few networks for a fit; measure more with: evit-nas latency fit")
    return predictor


@cache
def score_of(space_name: str) -> Callable[[ArchConfig], float]:
    """The stand-in for an accuracy score, no accuracy itself: the mean log rank of three sizes; higher is better.

    Of the same form as the score of a search, without the proxies that take torch: size helps, ever less.
    """

    def sizes(arch: ArchConfig) -> dict[str, float]:
        size = cost(arch)
        return {"params": size.params, "macs": size.macs, "depth": size.depth}

    space, rng = SearchSpace.load(space_name), random.Random(0)
    pool = [sizes(space.sample(rng)) for _ in range(REFERENCES)]
    aggregate = RankAggregate.fit(pool, tuple(pool[0]))
    return lambda arch: aggregate.score(sizes(arch))


def search(args: argparse.Namespace, sampler: str, seed: int, evaluations: int) -> np.ndarray:
    """One search as `evit_nas/searching/study.py` runs it.

    Returns:
        (evaluations, 3): the score, the latency in milliseconds, and the seconds of CPU time that the proposal took.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space, predictor = SearchSpace.load(args.space), fitted(args.latencies)
    score = score_of(args.space)
    study = optuna.create_study(directions=["maximize", "minimize"])
    rows = []
    for told in range(evaluations):
        start = time.process_time()
        study.sampler = make("random" if told < args.pool else sampler, seed=seed, told=told, space=space)
        trial = study.ask()
        arch = space.suggest(trial)
        seconds = time.process_time() - start
        latency_ms = float(predictor.predict_ms([arch])[0])
        trial.set_user_attr("key", arch.key)
        trial.set_constraint("latency_ms", latency_ms / args.budget_ms - 1)
        rows.append((score(arch), latency_ms, seconds))
        study.tell(trial, rows[-1][:2])
    return np.array(rows)


def table(found: dict[tuple[str, int], np.ndarray], args: argparse.Namespace) -> str:
    """Each sampler's hypervolume against random search from the same pool: the mean over the seeds, its standard error.

    Args:
        found: sampler and seed -> what `search` returned; random search was three times as long.
        args: of the command line.
    """
    whole, seeds = args.evaluations, range(args.seeds)
    time_s = whole * args.cost_s

    def volumes(sampler: str, evaluations: list[int]) -> np.ndarray:
        runs = [found[sampler, seed][:n, :2] for seed, n in zip(seeds, evaluations, strict=True)]
        return np.array([hypervolume(run * (-1, 1), (-WORST_SCORE, args.budget_ms)) for run in runs])

    def gain(sampler: str, own: list[int], random: int) -> str:
        percent = 100 * (volumes(sampler, own) / volumes("random", [random] * args.seeds) - 1)
        error = percent.std(ddof=1) / np.sqrt(len(percent)) if len(percent) > 1 else np.nan
        return f"{percent.mean():+.1f} ± {error:.1f} %"

    lines = [
        [
            "sampler",
            *(f"after {n} to {n} random" for n in (whole // 2, whole)),
            f"after {whole} to {3 * whole} random",
            f"in {time_s:.0f} s",
            "within budget",
            "ms a proposal",
        ]
    ]
    lines.append(["---"] * len(lines[0]))
    for sampler in args.samplers:
        runs = [found[sampler, seed][:whole] for seed in seeds]
        in_time = [int(((run[:, 2] + args.cost_s).cumsum() <= time_s).sum()) for run in runs]
        proposed = np.concatenate([run[args.pool :] for run in runs])
        lines.append(
            [
                sampler,
                *(gain(sampler, [n] * args.seeds, n) for n in (whole // 2, whole)),
                gain(sampler, [whole] * args.seeds, 3 * whole),
                gain(sampler, in_time, whole),
                f"{100 * (proposed[:, 1] <= args.budget_ms).mean():.0f} %",
                f"{1000 * proposed[:, 2].mean():.0f}",
            ]
        )
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    main()
