"""OpenVINO on the processor as a backend of the runtimes table.

Its own default precision is bf16 where the processor has it, so the precision is always set here. With one thread all
work stays on the calling one. Session entries are OpenVINO properties; it refuses those that it does not know.
"""

from __future__ import annotations

from importlib.metadata import version as package_version
from importlib.util import find_spec
from typing import Any

import numpy as np

from evit_nas.config import Conditions
from evit_nas.errors import MeasurementError
from evit_nas.latency.onnx_backend import fixed_shape, graph_of
from evit_nas.latency.runtimes import Loaded
from evit_nas.latency.values import Measurable


def missing(family: str) -> str | None:
    """See runtimes.py."""
    return None if find_spec("openvino") else "the package openvino is not installed; pip install openvino."


def version(family: str) -> str:
    """See runtimes.py."""
    return f"openvino {package_version('openvino')}"


def load(network: Measurable, conditions: Conditions) -> Loaded:
    """See runtimes.py."""
    import openvino

    core = openvino.Core()
    model = core.read_model(graph_of(network, conditions.batch))
    shapes = {entry.any_name: _shape(entry, conditions.batch) for entry in model.inputs}
    if not shapes:
        raise MeasurementError("the graph has no input")
    model.reshape(shapes)  # else a batch that is open would be compiled as open
    request = core.compile_model(model, "CPU", _properties(conditions)).create_infer_request()
    rng = np.random.default_rng(0)  # as in onnx_backend.random_feed: tests compare the outputs
    for name, shape in shapes.items():
        dtype = request.get_tensor(name).data.dtype
        request.set_tensor(name, openvino.Tensor(rng.standard_normal(shape).astype(dtype)))
    return Loaded(request.infer, next(iter(shapes.values())))


def _properties(conditions: Conditions) -> dict[str, str]:
    precision = {"fp32": "f32", "bf16": "bf16"}[conditions.precision]
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(conditions.threads),
        "INFERENCE_PRECISION_HINT": precision,
        **conditions.entries,
    }


def _shape(entry: Any, batch: int) -> tuple[int, ...]:
    sides = [None if side.is_dynamic else side.get_length() for side in entry.partial_shape]
    return fixed_shape(entry.any_name, sides, batch)
