"""ONNX Runtime as a backend of the runtimes table: on the processor, in fp32 or int8, on a GPU, or through TensorRT.

Session entries are handed to ONNX Runtime as they are. It ignores names that it does not know, without a word, and
refuses some wrong values when the session opens.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evit_nas.arch import ArchConfig
from evit_nas.config import Conditions
from evit_nas.errors import MeasurementError
from evit_nas.latency.runtimes import Loaded
from evit_nas.latency.values import Measurable
from evit_nas.network.onnx_graph import build_onnx

if TYPE_CHECKING:
    import onnx
    from onnxruntime.quantization import TensorsData

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cpu-int8": "CPUExecutionProvider",
    "cuda-onnx": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
KEPT_GRAPHS = 4  # in 8 bits: the canaries and the network at hand
_in_8_bits: dict[tuple[bytes, str], bytes] = {}
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


def missing(family: str) -> str | None:
    """See runtimes.py."""
    import onnxruntime as ort

    if PROVIDERS[family] in ort.get_available_providers():
        return None
    return f"{version(family)} has no {PROVIDERS[family]}; pip install onnxruntime-gpu in place of onnxruntime."


def version(family: str) -> str:
    """See runtimes.py."""
    import onnxruntime as ort  # the package's name differs between builds, the module's does not

    return f"onnxruntime {ort.__version__}"


def load(network: Measurable, conditions: Conditions) -> Loaded:
    """See runtimes.py."""
    graph = graph_of(network, conditions.batch)
    return session(_quantized(graph, conditions) if conditions.precision == "int8" else graph, conditions)


def _quantized(graph: bytes | str, conditions: Conditions) -> bytes:
    """`quantized`, once for each graph: a network is loaded in several sessions, and quantising takes seconds."""
    key = graph if isinstance(graph, bytes) else Path(graph).read_bytes(), conditions.model_dump_json()
    if key not in _in_8_bits:
        if len(_in_8_bits) == KEPT_GRAPHS:
            _in_8_bits.pop(next(iter(_in_8_bits)))
        _in_8_bits[key] = quantized(graph, conditions)
    return _in_8_bits[key]


def graph_of(network: Measurable, batch: int) -> bytes | str:
    """The ONNX graph of an architecture, serialised, or the path of a file, which may keep its weights beside it."""
    if isinstance(network, ArchConfig):
        return bytes(build_onnx(network, batch=batch).SerializeToString())
    assert isinstance(network, Path)  # of a timm network, the device hands over the file
    return str(network)


def session(graph: bytes | str, conditions: Conditions) -> Loaded:
    """`graph` in an ONNX Runtime session on random input; an open first dimension takes the batch.

    On a GPU, input and output stay in its memory: copies belong to the application.

    Raises:
        MeasurementError: the graph is fixed to another batch size or leaves more open, or the GPU cannot be used.
    """
    import onnxruntime as ort

    provider = PROVIDERS[conditions.family]
    opened = ort.InferenceSession(graph, session_options(conditions), providers=_providers(conditions))
    if provider not in opened.get_providers():  # it falls back to the processor by itself
        raise MeasurementError(
            f"ONNX Runtime could not start {provider}; see that driver, CUDA and cuDNN fit its version"
        )
    feed = random_feed(opened, conditions.batch)
    shape = next(iter(feed.values())).shape
    if provider == "CPUExecutionProvider":
        return Loaded(lambda: opened.run(None, feed), shape)
    index = int(conditions.argument or 0)
    binding = opened.io_binding()
    for name, array in feed.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, "cuda", index))
    for output in opened.get_outputs():
        binding.bind_output(output.name, "cuda", index)
    return Loaded(lambda: opened.run_with_iobinding(binding), shape)


EXACT_8_BITS = ("session.x64quantprecision", "1")
"""Without VNNI, sums of two products saturate and logits in 8 bits correlate 0.4 to 0.8 with those of fp32; with this
entry, 0.93 and more (tests/test_quantise.py). It does nothing to fp32, nor where the processor has VNNI."""


def session_options(conditions: Conditions) -> Any:
    """ONNX Runtime's settings for a session: every optimisation, the asked threads, no spinning, the user's entries."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = conditions.threads
    options.inter_op_num_threads = 1
    # up to ORT_ENABLE_EXTENDED channels are not laid out in blocks (NCHWc): m0 takes 1.8 times as long, m5 1.6 times
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # a thread that waits by spinning takes the processor from the next network that is measured
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry(*EXACT_8_BITS)
    for name, value in conditions.entries.items():  # last: what comes later overwrites
        options.add_session_config_entry(name, value)
    options.log_severity_level = 3  # errors; 2 would be warnings
    return options


def _providers(conditions: Conditions) -> list[Any]:
    """What runs the graph, and after it what runs the rest."""
    gpu = {"device_id": conditions.argument or "0"}
    cuda = ("CUDAExecutionProvider", gpu)
    if conditions.family == "tensorrt":
        half = {"trt_fp16_enable": str(conditions.precision == "fp16")}
        return [("TensorrtExecutionProvider", gpu | half), cuda, "CPUExecutionProvider"]
    return [cuda, "CPUExecutionProvider"] if conditions.family == "cuda-onnx" else ["CPUExecutionProvider"]


def random_feed(opened: Any, batch: int) -> dict[str, np.ndarray]:
    """Random values for every input of a session."""
    rng = np.random.default_rng(0)
    feed = {}
    for entry in opened.get_inputs():
        if entry.type not in FLOATS:
            raise MeasurementError(f"the graph's input '{entry.name}' is {entry.type}; only float inputs can be fed")
        shape = fixed_shape(entry.name, entry.shape, batch)
        feed[entry.name] = rng.standard_normal(shape).astype(FLOATS[entry.type])
    if not feed:
        raise MeasurementError("the graph has no input")
    return feed


def fixed_shape(name: str, sides: Sequence[object], batch: int) -> tuple[int, ...]:
    """The shape of input `name`; of its sides, one that is no number is open: the first may be, and is the batch.

    Raises:
        MeasurementError: the first is fixed to another number, or others are open: nobody knows how large they are.
    """
    first, *others = sides or [batch]
    fixed = [side for side in others if isinstance(side, int)]
    if len(fixed) < len(others):
        raise MeasurementError(
            f"the graph's input '{name}' leaves open how large an image is ({_sides(sides)}): say it with "
            "--image-size, or export it with a fixed size"
        )
    if isinstance(first, int) and first != batch:
        raise MeasurementError(
            f"the graph's input '{name}' is fixed to batch {first}, not {batch}; export it with an open batch dimension"
        )
    return (batch, *fixed) if sides else ()


def _sides(sides: Sequence[object]) -> str:
    """A shape as people write it, for example batch x 3 x height x ?."""
    return " x ".join("?" if side is None else str(side) for side in sides)


def quantized(graph: bytes | str, conditions: Conditions, images: Iterable[np.ndarray] | None = None) -> bytes:
    """`graph` in 8 bits: static QDQ, unsigned activations, signed weights per channel, every operator that can be.

    Signed activations would be slower than fp32.

    Args:
        images: inputs as the graph takes them, from which the ranges of activations come. None takes one random input,
            for a candidate with random weights: that computes the network, but no accuracy can be read from it.

    Raises:
        MeasurementError: a convolution would stay in fp32.
    """
    from onnxruntime.quantization import QDQQuantizer, QuantType
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    model = _simplified(graph, conditions)
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,  # weights of 7 bits are the other way out of saturation: see EXACT_8_BITS
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QUInt8,
        tensors_range=_ranges(model, conditions, images),
        nodes_to_quantize=[],  # empty means all
        nodes_to_exclude=_divisors(model),
        op_types_to_quantize=[*QLinearOpsRegistry, *QDQRegistry],  # as quantize_static takes them
        extra_options={},
    )
    nodes = quantizer.quantize_model().graph.node
    in_8_bits = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    convs = [node for node in nodes if node.op_type == "Conv"]
    floats = [node for node in convs if not in_8_bits.issuperset(filter(None, node.input))]
    if floats:
        raise MeasurementError(
            f"{len(floats)} of {len(convs)} convolutions cannot be quantised (the one to '{floats[0].output[0]}'): "
            "float32 input and constant weights are needed; measure the graph with --device cpu"
        )
    quantizer.model.topological_sort()  # which ONNX asks for, and the quantiser leaves to whoever saves the file
    return bytes(quantizer.model.model.SerializeToString())


def _divisors(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that compute a divisor, as in linear attention: 8 bits leave nothing of the small ones.

    Logits of such networks correlate 0.5 to 0.7 with those of fp32 if they are quantised, 0.95 if not.
    """
    divisors = {node.input[1] for node in model.graph.node if node.op_type == "Div"}
    # the quantiser excludes by name only: a divisor without one is quantised
    return [node.name for node in model.graph.node if node.name and not divisors.isdisjoint(node.output)]


def _simplified(graph: bytes | str, conditions: Conditions) -> onnx.ModelProto:
    """`graph` with constants folded and the types of all values known.

    An exporter writes equal tensors once, and the quantiser leaves a convolution alone whose bias is such a copy.
    """
    import onnx
    import onnxruntime as ort

    if isinstance(graph, str):
        graph = onnx.load(graph).SerializeToString()  # with the weights that may lie beside it
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/simplified.onnx"
        options = session_options(conditions)
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC  # standard operators only
        options.optimized_model_filepath = path
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return onnx.shape_inference.infer_shapes(onnx.load(path))


def _ranges(model: onnx.ModelProto, conditions: Conditions, images: Iterable[np.ndarray] | None) -> TensorsData:
    """Smallest and largest value of every float activation on `images`, or on one random input.

    The quantiser's own calibration takes a second longer, inserting two nodes for each tensor.
    """
    import onnx
    import onnxruntime as ort
    from onnx import TensorProto, helper
    from onnxruntime.quantization import CalibrationMethod, TensorData
    from onnxruntime.quantization.calibrate import TensorsData

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    values = [*probe.graph.input, *probe.graph.value_info, *probe.graph.output]
    names = [value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT]
    del probe.graph.output[:]
    for name in names:
        for op in ("ReduceMin", "ReduceMax"):
            probe.graph.node.append(helper.make_node(op, [name], [f"{op} {name}"], keepdims=0))
            probe.graph.output.append(helper.make_tensor_value_info(f"{op} {name}", TensorProto.FLOAT, []))
    options = session_options(conditions)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # else values disappear
    opened = ort.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    random = random_feed(opened, conditions.batch)
    feeds = [random] if images is None else (dict.fromkeys(random, image) for image in images)
    found = np.array([opened.run(None, feed) for feed in feeds])  # (inputs, 2 * values)
    ranges = zip(names, found[:, ::2].min(axis=0), found[:, 1::2].max(axis=0), strict=True)
    return TensorsData(
        CalibrationMethod.MinMax, {name: TensorData(lowest=low, highest=high) for name, low, high in ranges}
    )
