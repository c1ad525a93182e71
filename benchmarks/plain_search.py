"""A plain script against this package: Optuna, timm's class, torch.onnx.export and a loop of session.run.

    python benchmarks/plain_search.py                   # both for 4 minutes each, then both fronts re-measured

The plain side is what one writes in an afternoon from well-known parts: Optuna's TPE with a constraint, timm's
`EfficientVitMsra`, its TorchScript export, the median wall time of 30 runs after 5. Both sides use the same score and
the dimensions that timm's class has (widths, depths, heads, key dimensions); ours runs as `evit-nas search` does.
Prints the machine, candidates a minute, the hypervolume of what was found at equal wall clock, and how many of each
side's "within budget" claims hold when measured again, strictly, by the same protocol.
"""

from __future__ import annotations

import argparse
import io
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnxruntime
import optuna
import torch
from timm.models.efficientvit_msra import EfficientVitMsra

from evit_nas.accuracy.learned import LearnedAccuracy
from evit_nas.accuracy.table import SHIPPED_TABLE, LabelTable
from evit_nas.arch import ArchConfig
from evit_nas.config import SearchSettings
from evit_nas.latency import STRICT, open_device, parse_conditions
from evit_nas.latency.machine import probe
from evit_nas.pareto import hypervolume
from evit_nas.runs import Run
from evit_nas.searching.judges import Learned
from evit_nas.searching.record import load_front
from evit_nas.searching.storage import open_study
from evit_nas.searching.study import Search
from evit_nas.space import SearchSpace

HEADS, KEY_DIMS = [1, 2, 3, 4], [8, 16, 24]
WIDTHS, DEPTHS = [(32, 224), (64, 320), (96, 448)], [3, 4, 5]
# A hypervolume's reference: the budget, and an accuracy below that of every network worth training.
WORST_PERCENT = 80.0


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--budget", type=float, default=5.0, help="milliseconds")
    parser.add_argument("--table", default=SHIPPED_TABLE)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    score = LearnedAccuracy.of_table(LabelTable.load(args.table))
    print(f"machine: {probe()}; {args.minutes:g} minutes each, budget {args.budget:g} ms", flush=True)

    plain = plain_search(score, args.budget, args.minutes * 60, args.seed)
    with TemporaryDirectory() as folder:
        ours, looked_at = our_search(Path(folder) / "run", args.table, args.budget, args.minutes * 60, args.seed)
    with open_device(parse_conditions("cpu")) as device:
        for name, found, seconds in (("plain", plain, args.minutes * 60), ("evit-nas", ours, args.minutes * 60)):
            claimed = [(arch, ms) for arch, ms in found if ms <= args.budget]
            front = best(claimed, score)
            strict = [(arch, device.measure(arch, STRICT)[0].median_ms) for arch, _ in front]
            held = [(arch, ms) for arch, ms in strict if ms <= args.budget]
            print(
                f"{name}: {len(found)} measured, {60 * len(found) / seconds:.1f} a minute; front of {len(front)}, "
                f"of which {len(held)} keep the budget when measured again; "
                f"hypervolume {volume(held, score, args.budget):.2f}"
            )
    print(f"evit-nas looked at {looked_at} candidates by prediction")


Found = list[tuple[ArchConfig, float]]  # with milliseconds as its side measured them


def plain_search(score: LearnedAccuracy, budget_ms: float, seconds: float, seed: int) -> Found:
    """What the plain script measured until the time was over."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    found: Found = []

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        stages = []
        for index, ((low, high), deepest) in enumerate(zip(WIDTHS, DEPTHS, strict=True)):
            heads = trial.suggest_categorical(f"heads{index}", HEADS)
            step = 48 if heads == 3 else 16
            width = step * round(trial.suggest_int(f"width{index}", low, high, step=16) / step) or step
            key_dim = trial.suggest_categorical(f"key_dim{index}", KEY_DIMS)
            stages.append((width, trial.suggest_int(f"depth{index}", 1, deepest), heads, key_dim))
        arch = ArchConfig.model_validate(
            {"stages": [{"width": w, "depth": d, "heads": h, "qk_dim": k} for w, d, h, k in stages]}
        )
        ms = exported_ms(stages)
        found.append((arch, ms))
        trial.set_constraint("latency", ms / budget_ms - 1)
        return float(score.values([arch])[0]), ms

    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=optuna.samplers.TPESampler(seed=seed, multivariate=True)
    )
    study.optimize(objective, timeout=seconds, catch=(RuntimeError, ValueError))
    return found


def exported_ms(stages: list[tuple[int, int, int, int]]) -> float:
    """Median wall time of the exported network."""
    widths, depths, heads, key_dims = zip(*stages, strict=True)
    model = EfficientVitMsra(
        embed_dim=widths, depth=depths, num_heads=heads, key_dim=key_dims, window_size=(7, 7, 7), kernels=(5, 5, 5, 5)
    ).eval()
    image, file = torch.randn(1, 3, 224, 224), io.BytesIO()
    torch.onnx.export(model, (image,), file, dynamo=False)  # type: ignore[arg-type]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image.numpy()}
    times = []
    for _ in range(35):
        start = time.perf_counter()
        session.run(None, feed)
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[5:]))


class Quiet:
    def note(self, message: str) -> None: ...
    def step(self, what: str, done: int, total: int) -> None: ...
    def update(self, status: object) -> None: ...


def our_search(path: Path, table: str, budget_ms: float, seconds: float, seed: int) -> tuple[Found, int]:
    """What a search of this package measured in that time, and how many candidates it predicted besides."""
    looked_at = 0
    values = Learned.values

    def counted(judge: Learned, archs: Sequence[ArchConfig]) -> np.ndarray:
        nonlocal looked_at
        looked_at += len(archs)
        return values(judge, archs)

    Learned.values = counted
    # the same dimensions as timm's class
    stages = [
        {"width": {"from": low, "to": high, "step": 16}, "depth": {"from": 1, "to": deepest}, "heads": HEADS}
        | {"qk_dim": KEY_DIMS, "q_kernels": [5]}
        for (low, high), deepest in zip(WIDTHS, DEPTHS, strict=True)
    ]
    settings = SearchSettings.model_validate(
        {
            "space_name": "plain",
            "space": SearchSpace.model_validate({"image_size": 224, "num_classes": 1000, "stages": stages}),
            "targets": [{"budget_ms": budget_ms}],
            "accuracy": {"method": "table", "table": table},
            "trials": 100_000,
            "time_s": seconds,
            "seed": seed,
        }
    )
    with Run.create(path, settings, probe().model_dump(), "benchmark").lock() as run:
        Search(run, Quiet()).run()
        load_front(run)
        with open_study(run) as study:
            measured = [
                (ArchConfig.model_validate(t.user_attrs["arch"]), t.user_attrs["latencies"][0]["median_ms"])
                for t in study.get_trials(deepcopy=False)
                if t.user_attrs.get("latencies")
            ]
    return measured, looked_at


def best(found: Found, score: LearnedAccuracy) -> Found:
    """The front of score against latency."""
    kept: Found = []
    value = dict(zip([arch.key for arch, _ in found], score.values([arch for arch, _ in found]), strict=True))
    for arch, ms in sorted(found, key=lambda pair: pair[1]):
        if not kept or value[arch.key] > value[kept[-1][0].key]:
            kept.append((arch, ms))
    return kept


def volume(found: Found, score: LearnedAccuracy, budget_ms: float) -> float:
    """Of accuracy above WORST_PERCENT and time below the budget, in percent times milliseconds."""
    if not found:
        return 0.0
    accuracy = score.values([arch for arch, _ in found])
    points = np.column_stack([-accuracy, [ms for _, ms in found]])
    return hypervolume(points, (-WORST_PERCENT, budget_ms))


if __name__ == "__main__":
    main()
