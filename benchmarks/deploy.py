"""What the deploy graph is worth: timm's own export, an export of the folded module, and the direct graph.

    python benchmarks/deploy.py exports     M0-M5 at 224 px: five ways to the same network
    python benchmarks/deploy.py mixers      the direct graph with every stage's mixer changed
    python benchmarks/deploy.py openvino    the same files in OpenVINO and in ONNX Runtime
    python benchmarks/deploy.py bound       what would be left if only the convolutions took time

Batch 1, one thread, single precision. The sessions of a preset run in turn in one process, in a new random order
every round, each timed in CPU time of the thread; a ratio is the median over the rounds. How a session's
memory happens to lie moves it by a few percent for as long as it lives, so everything is repeated with new
sessions, and the ratios are averaged, with the standard error of that mean.

The bound takes the share of the convolutions from `evit_nas.latency.profile`, which takes the trace's own cost
off: a graph of the same convolutions with nothing between them cannot be faster than that.
"""

from __future__ import annotations

import argparse
import gc
import io
import math
import os
import platform
import random
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import timm
import torch

from evit_nas.arch import PRESETS, ArchConfig, StageConfig
from evit_nas.config import Conditions
from evit_nas.latency.profile import Profile, memory_bound, profile
from evit_nas.network.deploy import deploy_weights, fold
from evit_nas.network.model import EfficientViT, build
from evit_nas.network.onnx_graph import build_onnx
from evit_nas.network.weights import to_timm

TIMM = ("timm, TorchScript exporter", "timm, dynamo exporter")
FOLDED = ("folded, TorchScript exporter", "folded, dynamo exporter")
DIRECT = "direct graph"
OPENVINO = ("direct graph in OpenVINO", "timm, dynamo exporter, in OpenVINO")
MIXERS: dict[str, dict[str, object]] = {
    "cascade": {},
    "parallel": {"cascade": False},
    "linear": {"mixer": "linear"},
    "none": {"mixer": "none"},
}
WARM_UP = 3  # runs of a new session before it is timed

Runner = Callable[[np.ndarray], np.ndarray]  # (1, 3, 224, 224) to logits


def main() -> None:
    """Prints one table as Markdown."""
    parser = argparse.ArgumentParser(description="Times deploy graphs against timm's own export.")
    parser.add_argument("what", choices=("exports", "mixers", "openvino", "bound"), help="which table")
    parser.add_argument("--presets", default=",".join(PRESETS), help="which of m0,...,m5")
    parser.add_argument("--rounds", type=int, default=8, help="timed runs of each session")
    parser.add_argument("--repeats", type=int, default=20, help="times that new sessions are made")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # the tracer's
    ort.set_default_logger_severity(3)
    print_environment()
    presets = arguments.presets.split(",")
    if arguments.what == "bound":
        bound(presets)
        return
    if arguments.what == "mixers":
        make_files, title = mixers, "timm's export of the preset / direct graph with another mixer"
        pairs = {name: (TIMM[0], name) for name in MIXERS}
    elif arguments.what == "openvino":
        make_files, title = runtimes, "this / direct graph in ONNX Runtime"
        pairs = {name: (name, DIRECT) for name in (*OPENVINO, TIMM[1])}
    else:
        make_files, title = ways, "this / direct graph"
        pairs = {name: (name, DIRECT) for name in (*TIMM, *FOLDED)}
    tables = {preset: compare(make_files(preset), pairs, arguments.rounds, arguments.repeats) for preset in presets}
    report(tables, title)


def lively_pair(preset: str) -> tuple[EfficientViT, torch.nn.Module]:
    """The preset as our network and as timm's, with the same weights.

    With initial weights every residual branch would be multiplied by 0: a wrong graph would not show, and
    products with 0 run up to a tenth faster (they draw less power).
    """
    model = build(ArchConfig.preset(preset), seed=0).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("bn.weight", "bias.table")):
                parameter.uniform_(0.5, 1.5, generator=generator)
    reference = timm.create_model(f"efficientvit_{preset}").eval()
    reference.load_state_dict(to_timm(model))
    return model, reference


def ways(preset: str) -> dict[str, bytes]:
    """The same network, by the same weights, in five ONNX files; all must agree."""
    model, reference = lively_pair(preset)
    folded = fold(model)
    files = {
        TIMM[0]: export(reference, dynamo=False),
        TIMM[1]: export(reference, dynamo=True),
        FOLDED[0]: export(folded, dynamo=False),
        FOLDED[1]: export(folded, dynamo=True),
        DIRECT: build_onnx(model.arch, deploy_weights(model)).SerializeToString(),
    }
    check_equal(files)
    return files


def runtimes(preset: str) -> dict[str, bytes]:
    """The direct graph and timm's export, each for both runtimes; all must agree."""
    model, reference = lively_pair(preset)
    direct = build_onnx(model.arch, deploy_weights(model)).SerializeToString()
    exported = export(reference, dynamo=True)
    files = {DIRECT: direct, TIMM[1]: exported, OPENVINO[0]: direct, OPENVINO[1]: exported}
    check_equal(files)
    return files


def check_equal(files: dict[str, bytes]) -> None:
    """Every file computes what the first does, in the runtime that it is timed in."""
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    outputs = [runner(name, file)(image) for name, file in files.items()]
    for output in outputs:
        np.testing.assert_allclose(output, outputs[0], atol=1e-4 * np.abs(outputs[0]).max())


def mixers(preset: str) -> dict[str, bytes]:
    """timm's export of the preset, and direct graphs of it with the mixer of every stage changed."""
    model, reference = lively_pair(preset)
    files = {TIMM[0]: export(reference, dynamo=False)}
    for name, changes in MIXERS.items():
        stages = [StageConfig.model_validate(stage.model_dump() | changes) for stage in model.arch.stages]
        files[name] = build_onnx(model.arch.model_copy(update={"stages": tuple(stages)})).SerializeToString()
    return files


def export(model: torch.nn.Module, dynamo: bool) -> bytes:
    """`model` through torch.onnx.export."""
    image = torch.zeros(1, 3, 224, 224)
    if dynamo:
        program = torch.onnx.export(model, (image,), dynamo=True, verbose=False, input_names=["input"])
        return program.model_proto.SerializeToString()
    buffer = io.BytesIO()
    torch.onnx.export(model, (image,), buffer, dynamo=False, input_names=["input"])  # type: ignore[arg-type]
    return buffer.getvalue()


def runner(name: str, file: bytes) -> Runner:
    """One thread, every optimisation, no spinning, single precision."""
    if name in OPENVINO:
        return openvino_runner(file)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"input": image})[0]


def openvino_runner(file: bytes) -> Runner:
    """As `evit_nas.latency.openvino_backend` runs it."""
    import openvino

    settings = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": "1"}
    model = openvino.Core().read_model(file)
    request = openvino.compile_model(model, "CPU", settings | {"INFERENCE_PRECISION_HINT": "f32"})
    infer = request.create_infer_request()
    return lambda image: infer.infer({0: image})[0]


def compare(
    files: dict[str, bytes], pairs: dict[str, tuple[str, str]], rounds: int, repeats: int
) -> dict[str, tuple[float, float]]:
    """For each (a, b) of `pairs`: CPU time of a / CPU time of b, and the standard error of that ratio."""
    order, shuffle = list(files), random.Random(0).shuffle
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    ratios: dict[str, list[float]] = {name: [] for name in pairs}
    for _ in range(repeats):
        shuffle(order)
        runners = {name: runner(name, files[name]) for name in order}
        times: dict[str, list[int]] = {name: [] for name in files}
        for _ in range(WARM_UP + rounds):
            shuffle(order)
            for name in order:
                start = time.thread_time_ns()
                runners[name](image)
                times[name].append(time.thread_time_ns() - start)
        for name, (a, b) in pairs.items():
            timed = zip(times[a][WARM_UP:], times[b][WARM_UP:], strict=True)
            ratios[name].append(statistics.median(x / y for x, y in timed))
        del runners
        gc.collect()
    return {
        name: (statistics.mean(values), statistics.stdev(values) / math.sqrt(repeats))
        for name, values in ratios.items()
    }


def bound(presets: list[str]) -> None:
    """What share of the direct graph's time is left if all but convolutions, or all but products, were free."""
    shares = {preset: profile(ArchConfig.preset(preset), Conditions(device="cpu")) for preset in presets}
    rows: dict[str, Callable[[Profile], float]] = {
        "convolutions": lambda each: sum(op.share for op in each.ops if "Conv" in op.name),
        "convolutions and matrix products": lambda each: sum(op.share for op in each.ops if not memory_bound(op.name)),
        "of the rate of a large matrix product": lambda each: each.total.gflops / each.gemm_peak_gflops,
    }
    print("| share of the direct graph's time | " + " | ".join(presets) + " | geometric mean |")
    print("| --- " * (len(presets) + 2) + "|")
    for name, share in rows.items():
        cells = [share(each) for each in shares.values()]
        print(f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells), end="")
        print(f" | **{statistics.geometric_mean(cells):.3f}** |")


def report(tables: dict[str, dict[str, tuple[float, float]]], title: str) -> None:
    """One row a pair, one column a preset, and the geometric mean."""
    print(f"| {title} | " + " | ".join(tables) + " | geometric mean |")
    print("| --- " * (len(tables) + 2) + "|")
    for name in next(iter(tables.values())):
        cells = [table[name] for table in tables.values()]
        mean = math.exp(statistics.mean(math.log(ratio) for ratio, _ in cells))
        row = " | ".join(f"{ratio:.3f} ± {error:.3f}" for ratio, error in cells)
        print(f"| {name} | {row} | **{mean:.3f}** |", flush=True)


def print_environment() -> None:
    """Machine, load and versions."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    units = {"avx512f": ", AVX-512", "avx2": ", AVX2"}  # the widest first
    unit = next((text for flag, text in units.items() if any(flag in line.split() for line in lines)), "")
    cpu = (models or [platform.processor()])[0] + unit
    print(f"- {cpu}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {platform.platform()}")
    versions = {module.__name__: module.__version__ for module in (ort, onnx, torch, timm)}
    print("- " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    print()


if __name__ == "__main__":
    main()
