"""Peak resident memory of a fresh process that loads a network and runs it: what a deployment has to have.

With ONNX Runtime on the processor that process is this very file, run as a script with nothing but numpy and the
runtime: evit_nas would add 28 MB to a figure that is 89 MB for m0. Other runtimes load the network through evit_nas,
and PyTorch's figure includes torch. It is the memory of the host, not of a GPU.

The peak is VmHWM, which starts anew when a program starts. getrusage's ru_maxrss does not: a child inherits the peak
of the process that started it.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evit_nas.config import Conditions
    from evit_nas.latency.values import Measurable

RUNS = 3  # the first one fills the runtime's arena, the others show whether it grows on


def peak_memory_mb(network: Measurable, conditions: Conditions, timeout_s: float | None = None) -> float | None:
    """Peak resident memory in megabytes (1e6 bytes), the interpreter and the runtime included.

    None means not available: the system does not show it (no /proc), or the device is a remote one.

    Raises:
        UsageError: timm has no such network.
        MeasurementError: the runtime rejected the network, died or ran out of time or memory.
    """
    from evit_nas.latency.local import python
    from evit_nas.latency.runtimes import RUNTIMES

    if resident_peak_mb() is None or conditions.family not in RUNTIMES:
        return None
    with tempfile.TemporaryDirectory() as folder:
        command = python(*_network(network, conditions, Path(folder)), conditions.model_dump_json())
        return _peak_of(command, conditions.threads, timeout_s or RUNTIMES[conditions.family].timeout_s)


def _network(network: Measurable, conditions: Conditions, folder: Path) -> list[str]:
    """How to start this file, and the first argument of `main`: a graph in `folder`, or a request."""
    from evit_nas.latency.measurable import encoded, resolved
    from evit_nas.latency.onnx_backend import PROVIDERS, graph_of, quantized

    network = resolved(network, conditions.family)
    if PROVIDERS.get(conditions.family) != "CPUExecutionProvider":
        return ["-m", "evit_nas.latency.memory", json.dumps(encoded(network))]
    graph = graph_of(network, conditions.batch)
    if conditions.precision == "int8":
        graph = quantized(graph, conditions)  # in this process: its tools would be most of the figure
    if isinstance(graph, bytes):
        path = folder / "network.onnx"
        path.write_bytes(graph)
        graph = str(path)
    return [__file__, graph]  # not by -m, which imports the package first


def resident_peak_mb() -> float | None:
    """This process's own peak in megabytes; None where the system does not show it."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]  # in units of 1024 bytes
    return int(peaks[0]) * 1024 / 1e6 if peaks else None


def _peak_of(command: list[str], threads: int, timeout_s: float) -> float:
    """The peak in megabytes that the process prints last."""
    from evit_nas.errors import MeasurementError, out_of_memory
    from evit_nas.latency.local import last_line, run_alone

    ended = run_alone(command, threads, timeout_s, "measuring memory")
    if ended.returncode == 0:
        return float(ended.stdout.split()[-1])  # the runtime may have printed before
    exhausted = ended.returncode == -signal.SIGKILL or out_of_memory(ended.stderr)
    kind = "out of memory" if exhausted else "crashed" if ended.returncode < 0 else "rejected"
    raise MeasurementError(f"the network could not be run to measure its memory: {last_line(ended.stderr)}", kind)


def _run_graph(path: str, conditions: dict[str, Any]) -> None:
    """Loads and runs an ONNX file as a deployment does; the settings are those of `onnx_backend.session`."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = conditions["threads"]
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.x64quantprecision", "1")  # EXACT_8_BITS, whose import would count
    options.log_severity_level = 3
    for name, value in conditions["entries"].items():
        options.add_session_config_entry(name, value)
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
    feed = {}
    for entry in session.get_inputs():
        if not all(isinstance(side, int) for side in entry.shape[1:]):
            raise ValueError(f"the graph's input '{entry.name}' leaves open how large an image is: {entry.shape}")
        feed[entry.name] = np.zeros([conditions["batch"], *entry.shape[1:]], kinds[entry.type])
    for _ in range(RUNS):
        session.run(None, feed)


def _run_request(request: str, conditions_json: str) -> None:
    """Loads and runs a network in a runtime that needs evit_nas for it."""
    from evit_nas.config import Conditions
    from evit_nas.latency.measurable import decoded
    from evit_nas.latency.runtimes import RUNTIMES

    conditions = Conditions.model_validate_json(conditions_json)
    loaded = RUNTIMES[conditions.family].load(decoded(json.loads(request)), conditions)
    for _ in range(RUNS):
        loaded.run()


def main() -> None:
    """Runs the first argument (the path of a graph, or a request) under the second (conditions); prints the peak."""
    network, conditions = sys.argv[1:]
    try:
        if network.startswith("{"):
            _run_request(network, conditions)
        else:
            _run_graph(network, json.loads(conditions))
    except Exception as error:
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split())[:500])
    print(resident_peak_mb())


if __name__ == "__main__":
    main()
