"""Every runtime of the table keeps the same contract; those that this machine lacks say what would help."""

import collections
import subprocess
import sys
import time

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from evit_nas.errors import MeasurementError, UsageError
from evit_nas.latency import TimmModel, onnx_backend, openvino_backend, parse_conditions, torch_backend
from evit_nas.latency.runtimes import RUNTIMES, list_runtimes
from evit_nas.network.deploy import deploy_weights
from evit_nas.network.onnx_graph import build_onnx
from tests.networks import VARIANTS, lively_network, tiny_arch

HERE = [name for name, runtime in RUNTIMES.items() if runtime.missing(name) is None]
ELSEWHERE = [name for name in RUNTIMES if name not in HERE]
ON_FILES = [name for name in HERE if not RUNTIMES[name].takes_timm]


def load(subject, device, **conditions):
    conditions = parse_conditions(device, **conditions)
    return RUNTIMES[conditions.family].load(subject, conditions)


def logits(loaded):
    """The output of one run as an array, whatever the runtime calls it."""
    output = loaded.run()
    if isinstance(output, torch.Tensor):
        return output.float().numpy()
    return np.asarray(output[0])


@pytest.fixture
def onnx_file(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(build_onnx(tiny_arch(), batch=None), path)
    return path


@pytest.fixture
def optimized(tmp_path):
    """Counts the operators of a graph as ONNX Runtime runs it."""

    def count(graph, conditions):
        options = onnx_backend.session_options(conditions)
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return collections.Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)

    return count


@pytest.mark.parametrize("name", HERE)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_runtime_that_is_here_runs_an_architecture_in_every_precision(name, batch):
    for precision in RUNTIMES[name].precisions:
        loaded = load(tiny_arch(), name, batch=batch, precision=precision)
        assert loaded.input_shape == (batch, 3, 64, 64)
        assert logits(loaded).shape == (batch, 10)
        assert np.isfinite(logits(loaded)).all()


@pytest.mark.parametrize("name", ON_FILES)
class TestOnnxFiles:
    def test_take_the_batch_where_it_is_open(self, name, onnx_file):
        loaded = load(onnx_file, name, batch=2)
        assert loaded.input_shape == (2, 3, 64, 64)
        assert logits(loaded).shape == (2, 10)

    def test_are_refused_where_it_is_another_one(self, name, tmp_path):
        onnx.save(build_onnx(tiny_arch(), batch=2), tmp_path / "two.onnx")
        with pytest.raises(MeasurementError, match=r"fixed to batch 2, not 1; export it with an open batch"):
            load(tmp_path / "two.onnx", name)

    def test_may_keep_their_weights_beside_them(self, name, tmp_path):
        onnx.save(build_onnx(tiny_arch()), tmp_path / "net.onnx", save_as_external_data=True)
        assert len(list(tmp_path.iterdir())) == 2
        assert logits(load(tmp_path / "net.onnx", name)).shape == (1, 10)


@pytest.mark.parametrize("name", [name for name in ON_FILES if name != "cpu" and "fp32" in RUNTIMES[name].precisions])
def test_runtimes_that_share_weights_agree(name):
    expected = logits(load(tiny_arch(), "cpu", batch=2))
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(logits(load(tiny_arch(), name, batch=2)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_runtime_that_is_not_here_says_why_and_what_would_help(name):
    reason = RUNTIMES[name].missing(name)
    assert any(way_out in reason for way_out in ("pip install", "install a build", "check that"))
    assert reason.endswith(".")


def test_the_list_has_every_runtime_with_a_version_or_a_reason():
    infos = {info.name: info for info in list_runtimes()}
    assert list(infos) == list(RUNTIMES)
    for info in infos.values():
        assert info.precisions
        assert (info.version is None) == (info.missing is not None)
    assert infos["cpu"].version == f"onnxruntime {ort.__version__}"


def test_naming_what_is_missing_on_the_processor_imports_neither_torch_nor_openvino():
    names = ["cpu", "cpu-int8", "openvino", "torch"]
    code = (
        "import sys; from evit_nas.latency.runtimes import RUNTIMES\n"
        f"for name in {names}: RUNTIMES[name].missing(name)\n"
        "assert not {'torch', 'openvino'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    for backend in (openvino_backend, torch_backend):
        monkeypatch.setattr(backend, "find_spec", lambda name: None)
    assert openvino_backend.missing("openvino") == "the package openvino is not installed; pip install openvino."
    assert torch_backend.missing("cuda") == "the package torch is not installed; pip install torch."


def test_torch_without_cuda_and_cuda_without_a_gpu_are_told_apart(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "finds no NVIDIA GPU" in torch_backend.missing("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA" in torch_backend.missing("cuda")


@pytest.mark.parametrize("variant", VARIANTS)
def test_quantised_networks_run_their_convolutions_and_products_in_8_bits(variant, optimized):
    conditions = parse_conditions("cpu-int8")
    graph = onnx_backend.graph_of(tiny_arch(**VARIANTS[variant]), 1)
    ops = optimized(onnx_backend.quantized(graph, conditions), conditions)
    assert ops["QLinearConv"] >= 20
    assert not {"Conv", "FusedConv", "MatMul", "Gemm"} & set(ops)


def test_quantised_activations_are_unsigned_and_weights_signed_per_channel():
    graph = onnx_backend.quantized(onnx_backend.graph_of(tiny_arch(), 1), parse_conditions("cpu-int8"))
    nodes = onnx.load_from_string(graph).graph
    types = {tensor.name: tensor.data_type for tensor in nodes.initializer}
    sizes = {tensor.name: tensor.dims for tensor in nodes.initializer}
    activations = [node for node in nodes.node if node.op_type == "QuantizeLinear"]
    assert {types[node.input[2]] for node in activations} == {onnx.TensorProto.UINT8}
    by_output = {node.output[0]: node for node in nodes.node if node.op_type == "DequantizeLinear"}
    for conv in (node for node in nodes.node if node.op_type == "Conv"):
        weight = by_output[conv.input[1]]
        assert types[weight.input[0]] == onnx.TensorProto.INT8
        assert sizes[weight.input[1]] == [sizes[weight.input[0]][0]]  # a scale for each output channel


def test_a_quantised_network_computes_the_network_as_the_official_calibration_has_it(tmp_path):
    arch, conditions = tiny_arch(), parse_conditions("cpu-int8", batch=8)
    onnx.save(build_onnx(arch, deploy_weights(lively_network(arch)), batch=8), tmp_path / "net.onnx")
    expected, actual = (logits(load(tmp_path / "net.onnx", name, batch=8)) for name in ("cpu", "cpu-int8"))
    assert np.corrcoef(actual.ravel(), expected.ravel())[0, 1] > 0.9  # 0.95; with wrong ranges 0.07

    class OneSample(CalibrationDataReader):
        samples = iter([onnx_backend.random_feed(ort.InferenceSession(tmp_path / "net.onnx"), 8)])

        def get_next(self):
            return next(self.samples, None)

    onnx.save(onnx_backend._simplified(str(tmp_path / "net.onnx"), conditions), tmp_path / "simplified.onnx")
    quantize_static(
        tmp_path / "simplified.onnx",
        tmp_path / "official.onnx",
        OneSample(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    official = logits(onnx_backend.session(str(tmp_path / "official.onnx"), conditions))
    np.testing.assert_array_equal(actual, official)


def test_biases_that_a_file_shares_are_quantised_too(tmp_path, optimized):
    """As the exporter writes equal tensors: once, and copies of it by Identity."""
    model = build_onnx(tiny_arch())
    for index, conv in enumerate([node for node in model.graph.node if node.op_type == "Conv"]):
        copy = onnx.helper.make_node("Identity", [conv.input[2]], [f"shared{index}"])
        conv.input[2] = copy.output[0]
        model.graph.node.insert(0, copy)
    onnx.save(model, tmp_path / "shared.onnx")
    conditions = parse_conditions("cpu-int8")
    ops = optimized(onnx_backend.quantized(str(tmp_path / "shared.onnx"), conditions), conditions)
    assert "Conv" not in ops
    assert ops["QLinearConv"] >= 20


def test_a_convolution_that_would_stay_in_fp32_is_an_error(tmp_path):
    """Its bias is computed from the input, so it is no constant."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["bias"], axes=[0, 2, 3], keepdims=0),
        helper.make_node("Conv", ["input", "weight", "bias"], ["output"]),
    ]
    weight = onnx.numpy_helper.from_array(np.ones((4, 4, 1, 1), np.float32), "weight")
    inputs, outputs = ([helper.make_tensor_value_info(name, kind, [1, 4, 8, 8])] for name in ("input", "output"))
    graph = helper.make_graph(nodes, "dynamic", inputs, outputs, [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, tmp_path / "net.onnx")
    assert load(tmp_path / "net.onnx", "cpu").input_shape == (1, 4, 8, 8)
    with pytest.raises(MeasurementError, match=r"1 of 1 convolutions cannot be quantised .*--device cpu"):
        load(tmp_path / "net.onnx", "cpu-int8")


def test_session_entries_reach_onnx_runtime_and_unknown_ones_are_ignored(monkeypatch):
    given = {}
    monkeypatch.setattr(
        ort, "InferenceSession", recording(ort.InferenceSession, lambda graph, options, **_: given.update(o=options))
    )
    load(tiny_arch(), "cpu", threads=2, entries=["session.set_denormal_as_zero=1", "no.such.entry=1"])
    assert given["o"].get_session_config_entry("session.set_denormal_as_zero") == "1"
    assert given["o"].get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert given["o"].intra_op_num_threads == 2


def recording(function, record):
    def wrapped(*args, **named):
        record(*args, **named)
        return function(*args, **named)

    return wrapped


REAL_SESSION = ort.InferenceSession


class FakeGpu:
    """Stands for ONNX Runtime's session and values on a machine with a GPU."""

    def __init__(self, works=True):
        self.works, self.calls = works, []

    def install(self, monkeypatch):
        monkeypatch.setattr(ort, "InferenceSession", self.open)
        monkeypatch.setattr(ort.OrtValue, "ortvalue_from_numpy", lambda array, *place: (array.shape, *place))
        return self

    def open(self, graph, options, providers):
        self.providers = providers
        self.session = REAL_SESSION(graph, options, providers=["CPUExecutionProvider"])
        return self

    def get_providers(self):
        names = [provider if isinstance(provider, str) else provider[0] for provider in self.providers]
        return names if self.works else ["CPUExecutionProvider"]

    def get_inputs(self):
        return self.session.get_inputs()

    def get_outputs(self):
        return self.session.get_outputs()

    def io_binding(self):
        return self

    def bind_ortvalue_input(self, name, value):
        self.calls.append((name, value))

    def bind_output(self, name, *place):
        self.calls.append((name, place))

    def run_with_iobinding(self, binding):
        assert binding is self
        self.calls.append("run")


def test_on_a_gpu_onnx_runtime_reads_and_writes_its_memory(monkeypatch):
    gpu = FakeGpu().install(monkeypatch)
    loaded = load(tiny_arch(), "cuda-onnx:1", batch=2)
    loaded.run()
    assert gpu.providers == [("CUDAExecutionProvider", {"device_id": "1"}), "CPUExecutionProvider"]
    assert gpu.calls == [("input", ((2, 3, 64, 64), "cuda", 1)), ("logits", ("cuda", 1)), "run"]


@pytest.mark.parametrize(("precision", "half"), [("fp32", "False"), ("fp16", "True")])
def test_tensorrt_gets_the_precision_and_leaves_the_rest_to_cuda(monkeypatch, precision, half):
    gpu = FakeGpu().install(monkeypatch)
    load(tiny_arch(), "tensorrt", precision=precision)
    first, second, third = gpu.providers
    assert first == ("TensorrtExecutionProvider", {"device_id": "0", "trt_fp16_enable": half})
    assert second == ("CUDAExecutionProvider", {"device_id": "0"})
    assert third == "CPUExecutionProvider"


@pytest.mark.parametrize("name", ["cuda-onnx", "tensorrt"])
def test_a_gpu_that_does_not_start_is_an_error_and_not_the_processor(monkeypatch, name):
    FakeGpu(works=False).install(monkeypatch)
    with pytest.raises(MeasurementError, match=r"could not start .*ExecutionProvider"):
        load(tiny_arch(), name)


def test_openvino_gets_the_precision_and_threads_that_were_asked_for():
    openvino = pytest.importorskip("openvino")

    conditions = parse_conditions("openvino", threads=2, entries=["ENABLE_CPU_PINNING=NO"])
    model = openvino.Core().read_model(onnx_backend.graph_of(tiny_arch(), 1))
    compiled = openvino.Core().compile_model(model, "CPU", openvino_backend._properties(conditions))
    assert str(compiled.get_property("INFERENCE_PRECISION_HINT")) == "<Type: 'float32'>"
    assert compiled.get_property("INFERENCE_NUM_THREADS") == 2
    assert compiled.get_property("ENABLE_CPU_PINNING") is False


def test_openvino_compiles_an_open_batch_as_the_one_that_is_measured(onnx_file):
    pytest.importorskip("openvino")
    request = load(onnx_file, "openvino", batch=2).run.__self__
    assert [list(entry.shape) for entry in request.get_compiled_model().inputs] == [[2, 3, 64, 64]]


@pytest.mark.parametrize("name", [name for name in HERE if RUNTIMES[name].takes_timm])
class TestTorch:
    def test_runs_a_timm_model_at_any_size(self, name):
        loaded = load(TimmModel("resnet18", 64), name, batch=2)
        assert loaded.input_shape == (2, 3, 64, 64)
        assert logits(loaded).shape == (2, 1000)

    def test_sends_onnx_files_to_a_device_that_takes_them(self, name, onnx_file):
        with pytest.raises(MeasurementError, match=r"not ONNX files; measure net.onnx with --device (cpu|cuda-onnx)"):
            load(onnx_file, name)

    def test_refuses_session_entries(self, name):
        with pytest.raises(UsageError, match=r"no session settings, got --session a"):
            parse_conditions(name, entries=["a=1"])

    def test_leaves_the_global_random_state_alone(self, name):
        before = torch.get_rng_state()
        load(tiny_arch(), name)
        assert torch.equal(before, torch.get_rng_state())


def test_no_tensor_of_a_torch_network_is_constant():
    network = torch_backend._random_network(tiny_arch())
    assert all(tensor.unique().numel() > 1 for tensor in network.state_dict().values())


def test_torch_uses_the_threads_that_were_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    load(tiny_arch(), "torch", threads=3)
    assert asked == [3]


def test_compiling_hands_the_folded_network_to_inductor(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda network, **options: seen.append((network, options)) or network)
    assert logits(load(tiny_arch(), "torch:compiled")).shape == (1, 10)
    ((network, options),) = seen
    assert options == {"dynamic": False}
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in network.modules())


def test_compiling_without_a_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(MeasurementError, match="there is no 'no-such-compiler'; install g"):
        load(tiny_arch(), "torch:compiled")


@pytest.mark.slow
def test_a_compiled_network_computes_the_eager_one(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    eager, compiled = (logits(load(tiny_arch(mixer="none"), name)) for name in ("torch", "torch:compiled"))
    np.testing.assert_allclose(compiled, eager, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in HERE if RUNTIMES[name].clock == "cpu"])
def test_with_one_thread_the_work_stays_on_the_calling_thread(name):
    """What other threads of the process did is what its processor time has beyond the thread's."""
    run = load(tiny_arch(), name).run
    for _ in range(3):
        run()
    thread, process = time.thread_time_ns(), time.process_time_ns()
    for _ in range(30):
        run()
    thread, process = time.thread_time_ns() - thread, time.process_time_ns() - process
    assert process < 1.2 * thread


def test_the_cuda_stopwatch_counts_nanoseconds_a_run_on_the_gpu_asked_for(monkeypatch):
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, end):
            assert end is not self
            return 6.0  # milliseconds

    class OnDevice:
        def __init__(self, device):
            log.append(str(device))

        def __enter__(self): ...

        def __exit__(self, *exc): ...

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", OnDevice)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    stopwatch = torch_backend.cuda_stopwatch(parse_conditions("cuda:1"))
    assert stopwatch(lambda: log.append("run"), 3) == 2e6
    assert log == ["cuda:1", "record", "run", "run", "run", "record", "wait"]


def test_a_gpu_that_does_not_exist_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(MeasurementError, match="there is no GPU 3; torch sees 1"):
        load(tiny_arch(), "cuda:3")
