"""The measuring process: reads one JSON request a line, answers one JSON line, until its input ends.

A request is {"arch": ..., "protocol": ...} or {"onnx": path, "protocol": ...}; an answer is {"latency": ...,
"samples": ...} or {"error": text}. Needs onnxruntime, onnx and numpy; torch is never imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from evit_nas.arch import ArchConfig
from evit_nas.latency import Latency, Protocol
from evit_nas.latency.canary import CANARY, LEARNING_S, is_noisy, quiet_ms
from evit_nas.latency.machine import processor
from evit_nas.latency.protocol import measure_pairs, pool
from evit_nas.network.onnx_graph import build_onnx


class Worker:
    """Holds the canary's session, and its quiet time as known when the process started, between requests."""

    def __init__(self) -> None:
        graph = build_onnx(CANARY).SerializeToString()
        self._canary = inference(graph)
        self._machine, self._runtime = processor(), f"onnxruntime {ort.__version__}"
        identity = f"{self._machine}; {self._runtime}; {hashlib.sha256(graph).hexdigest()}"
        self._canary_ms = quiet_ms(_canary_samples(self._canary), identity)

    def measure(self, graph: bytes, protocol: Protocol) -> tuple[Latency, dict[str, Any]]:
        """The paired protocol on one serialised ONNX graph."""
        pairs = pool([measure_pairs(inference(graph), self._canary, protocol) for _ in range(protocol.visits)])
        latency = Latency(
            median_ms=pairs.ratio * self._canary_ms,
            p90_ms=pairs.p90_ratio * self._canary_ms,
            rel_error=pairs.rel_error,
            ratio=pairs.ratio,
            canary_ms=self._canary_ms,
            pairs=len(pairs.ratios),
            device="cpu",
            threads=1,
            batch=1,
            precision="fp32",
            runtime=self._runtime,
            machine=self._machine,
            noisy=is_noisy(pairs.canary_ns, self._canary_ms),
        )
        samples = {"candidate_ns": pairs.candidate_ns.tolist(), "canary_ns": pairs.canary_ns.tolist()}
        return latency, samples


def _canary_samples(canary: Callable[[], object]) -> np.ndarray:
    """CPU nanoseconds of canary runs over `LEARNING_S`."""
    samples: list[int] = []
    for _ in range(100):
        canary()
    end = time.monotonic() + LEARNING_S
    while time.monotonic() < end or len(samples) < 30:
        start = time.thread_time_ns()
        canary()
        samples.append(time.thread_time_ns() - start)
    return np.array(samples)


def inference(graph: bytes) -> Callable[[], object]:
    """A callable that runs `graph` once on the calling thread, on random input."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    feed = {}
    for entry in session.get_inputs():
        shape = [side if isinstance(side, int) else 1 for side in entry.shape]
        feed[entry.name] = rng.standard_normal(shape, dtype=np.float32)
    return lambda: session.run(None, feed)


def answer(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    """The reply to one request; whatever goes wrong becomes {"error": text}."""
    try:
        protocol = Protocol.model_validate(request["protocol"])
        if "onnx" in request:
            graph = Path(request["onnx"]).read_bytes()
        else:
            graph = build_onnx(ArchConfig.model_validate(request["arch"])).SerializeToString()
        latency, samples = worker.measure(graph, protocol)
        return {"latency": latency.model_dump(), "samples": samples}
    except Exception as error:
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:500]}


def main() -> None:
    """Serves standard input until it ends."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[-1]})  # core 0 serves most interrupts
    # The runtime may print; only answers may reach the real standard output.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    worker = Worker()
    for line in sys.stdin:
        out.write(json.dumps(answer(worker, json.loads(line))) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
