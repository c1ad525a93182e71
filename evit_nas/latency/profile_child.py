"""The profiling process: its arguments are an ONNX file and the `Conditions` as JSON, its answer one JSON `Profile`.

As in `child.py` the process is pinned to a core where one thread is asked for, and that thread's processor time is
counted.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from onnx import TensorProto, helper

from evit_nas.config import Conditions
from evit_nas.errors import in_a_line
from evit_nas.latency.machine import die_with_parent, pin_to_one_core
from evit_nas.latency.onnx_backend import random_feed, session, session_options
from evit_nas.latency.profile import Profile, take_apart
from evit_nas.latency.protocol import Network, Stopwatch, cpu_time, wall_time
from evit_nas.network.onnx_graph import IR_VERSION, OPSET

ROUNDS = 30
MIN_ROUNDS = 5  # of a network that would take longer than this:
LIMIT_S = 20.0
GEMM_SIDE = 384  # from 256 to 512 a Zen 4 core reaches the same, beyond that less


def run(graph: bytes | str, conditions: Conditions) -> Profile:
    """The profile of `graph`, serialised or a file's path, from runs in this process."""
    count = _stopwatch(conditions)
    plain_ns: list[float] = []
    traced_ns: list[float] = []
    with TemporaryDirectory() as folder:
        plain = session(graph, conditions).run
        traced, end = _traced(graph, conditions, Path(folder))
        start = time.monotonic()
        while len(plain_ns) < MIN_ROUNDS or (len(plain_ns) < ROUNDS and time.monotonic() - start < LIMIT_S):
            for network, samples in ((plain, plain_ns), (traced, traced_ns)):
                network()  # refills the caches that the other session emptied; in the first rounds, warms up
                samples.append(count(network, 1))
        trace = json.loads(end().read_text(encoding="utf-8"))
    plain_ms, traced_ms = (float(np.median(samples)) / 1e6 for samples in (plain_ns, traced_ns))
    return take_apart(trace, plain_ms, traced_ms / plain_ms - 1, gemm_peak_gflops(conditions), conditions)


def gemm_peak_gflops(conditions: Conditions) -> float:
    """Billions of floating point operations a second of one large matrix product, the best of its runs."""
    count = _stopwatch(conditions)
    side = GEMM_SIDE
    weight = np.random.default_rng(0).standard_normal((side, side), np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "gemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, side, side))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, side, side))],
        [helper.make_tensor("weight", TensorProto.FLOAT, weight.shape, weight.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)])
    product = session(model.SerializeToString(), conditions.model_copy(update={"batch": 1})).run  # that of x
    return 2 * side**3 / min(count(product, 1) for _ in range(ROUNDS))  # a FLOP each nanosecond is a GFLOP/s


def _stopwatch(conditions: Conditions) -> Stopwatch:
    return cpu_time if conditions.threads == 1 else wall_time


def _traced(graph: bytes | str, conditions: Conditions, folder: Path) -> tuple[Network, Callable[[], Path]]:
    """One inference as in `onnx_backend.session` but traced, and what ends the trace and gives its file."""
    import onnxruntime as ort

    options = session_options(conditions)
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "trace")
    opened = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    feed = random_feed(opened, conditions.batch)
    return lambda: opened.run(None, feed), lambda: Path(opened.end_profiling())


def main() -> None:
    """Answers on standard output; what goes wrong is the last line on standard error."""
    die_with_parent()
    graph, conditions = sys.argv[1], Conditions.model_validate_json(sys.argv[2])
    if conditions.threads == 1:
        pin_to_one_core()
    try:
        print(run(graph, conditions).model_dump_json())
    except Exception as error:
        sys.exit(in_a_line(error, kind=True, most=500))


if __name__ == "__main__":
    main()
