"""ONNX files that leave height and width open: a latency has a size, which is asked for and never guessed."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from evit_nas.config import Conditions
from evit_nas.errors import MeasurementError, UsageError
from evit_nas.latency import onnx_backend, parse_conditions
from evit_nas.latency.measurable import sized
from evit_nas.latency.memory import peak_memory_mb
from evit_nas.latency.runtimes import RUNTIMES

CHANNELS, OUT, KERNEL = 3, 16, 3  # as many as ONNX Runtime computes side by side, or it would add some


def network(path: Path, shape: list, last: bool = False, external: bool = False) -> Path:
    """A convolution and a mean over the map, for images of `shape`; with `last`, channels come last."""
    weight = np.random.default_rng(0).standard_normal((OUT, CHANNELS, KERNEL, KERNEL)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["turned" if last else "input", "weight"], ["map"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["map"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["logits"]),
    ]
    if last:
        nodes.insert(0, helper.make_node("Transpose", ["input"], ["turned"], perm=[0, 3, 1, 2]))
    graph = helper.make_graph(
        nodes,
        "network",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [shape[0], OUT])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, save_as_external_data=external, location="weights.bin", size_threshold=0)
    return path


def shape_of(path: Path) -> list:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0].shape


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"input": images})[0]


@pytest.mark.parametrize(
    ("shape", "last", "expected"),
    [
        (["batch", 3, "height", "width"], False, ["batch", 3, 48, 48]),
        (["batch", 3, "side", "side"], False, ["batch", 3, 48, 48]),
        ([1, 3, None, None], False, [1, 3, 48, 48]),
        ([None, "height", "width", 3], True, [None, 48, 48, 3]),
    ],
)
@pytest.mark.parametrize("external", [False, True], ids=["whole", "weights beside it"])
def test_open_sides_are_fixed_and_nothing_else(tmp_path, shape, last, expected, external):
    path = network(tmp_path / "net.onnx", shape, last, external)
    fixed = sized(path, 48)
    assert shape_of(fixed) == expected
    assert shape_of(path) == shape
    images = np.random.default_rng(1).standard_normal((1, 48, 48, 3) if last else (1, 3, 48, 48)).astype(np.float32)
    assert np.array_equal(logits(fixed, images), logits(path, images))
    assert sized(path, 48) == fixed
    assert sized(path, 64) != fixed


def test_they_are_asked_for_with_the_shape(tmp_path):
    path = network(tmp_path / "net.onnx", ["batch", 3, "height", None])
    with pytest.raises(
        UsageError, match=r"net\.onnx: the input 'input' is batch x 3 x height x \?; .* --image-size 224"
    ):
        sized(path, None)


@pytest.mark.parametrize("size", [None, 48])
def test_a_file_that_has_a_size_is_taken_as_it_is(tmp_path, size):
    path = network(tmp_path / "net.onnx", ["batch", 3, 48, 48])
    assert sized(path, size) == path


def test_another_size_than_it_has_is_refused(tmp_path):
    path = network(tmp_path / "net.onnx", [1, 3, 48, 32])
    with pytest.raises(UsageError, match="is fixed to 3 x 48 x 32; export it again"):
        sized(path, 48)


@pytest.mark.parametrize("shape", [["b", "c", "h", "w"], ["b", 3, "h", 48], [1, "c", 48, 48]], ids=str)
def test_what_is_open_besides_is_refused(tmp_path, shape):
    path = tmp_path / "net.onnx"
    network(path, shape)
    with pytest.raises(UsageError, match="only the batch, and height with width, may be open"):
        sized(path, 48)


def test_what_is_no_graph_is_left_to_the_runtime(tmp_path):
    (tmp_path / "net.onnx").write_bytes(b"not a graph")
    assert sized(tmp_path / "net.onnx", 48) == tmp_path / "net.onnx"


@pytest.mark.parametrize("family", ["cpu", "cpu-int8", "openvino"])
def test_no_runtime_guesses_a_size(tmp_path, family):
    if RUNTIMES[family].missing(family):
        pytest.skip(f"{family} cannot run here")
    path, conditions = (
        network(tmp_path / "net.onnx", ["batch", 3, "height", "width"]),
        parse_conditions(family, batch=2),
    )
    with pytest.raises(MeasurementError, match=r"how large an image is.*--image-size"):
        RUNTIMES[family].load(path, conditions)
    assert RUNTIMES[family].load(sized(path, 48), conditions).input_shape == (2, 3, 48, 48)


def test_nor_does_the_measurement_of_memory(tmp_path):
    path = network(tmp_path / "net.onnx", ["batch", 3, "height", "width"])
    with pytest.raises(MeasurementError, match="how large an image is"):
        peak_memory_mb(path, Conditions())
    small, large = (peak_memory_mb(sized(path, size), Conditions()) for size in (32, 1024))
    assert large > small + 1024**2 * 4 * CHANNELS / 1e6  # the input alone


def test_shapes_are_those_of_the_session_under_a_batch():
    assert onnx_backend.fixed_shape("x", ["b", 3, 5, 7], 4) == (4, 3, 5, 7)
    assert onnx_backend.fixed_shape("x", [4, 3], 4) == (4, 3)
    assert onnx_backend.fixed_shape("x", [], 1) == ()


@pytest.mark.parametrize("verb", ["measure", "profile"])
def test_the_command_line_asks_and_takes_the_answer(call, verb):
    path = str(network(Path("net.onnx"), ["batch", 3, "height", "width"]))
    asked = call(verb, path)
    assert (asked.code, asked.out) == (2, "")
    assert "--image-size" in asked.err
    if verb == "profile":
        rows = json.loads(call(verb, path, "--image-size", "64", "--format", "json").out)
        macs = {row["name"]: row["macs"] for row in rows}
        assert macs["Conv"] == 64 * 64 * OUT * CHANNELS * KERNEL**2
