"""The direct ONNX graph: equal to the torch network, whatever the architecture, and fast to write."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from evit_nas import __version__
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.errors import UsageError
from evit_nas.network.deploy import deploy_weights
from evit_nas.network.model import build
from evit_nas.network.onnx_graph import build_onnx
from tests.networks import VARIANTS, lively_network, relative_error, tiny_arch

TOLERANCE = 1e-4  # relative to the largest logit

# what else an architecture can differ in
OTHERS: dict[str, dict[str, object]] = {
    "rectangle": {"image_size": (128, 192)},
    "upright rectangle": {"image_size": (192, 96)},
    "256 px": {"image_size": 256},
    "one channel": {"in_channels": 1},
    "features only": {"num_classes": 0},
    "wide stem": {"stem_ratio": 2.0},
}


def changed(arch: ArchConfig, **changes: object) -> ArchConfig:
    return ArchConfig.model_validate(arch.model_dump() | changes)


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})[0]


@torch.no_grad()
def assert_equal_to_torch(arch: ArchConfig, batches: tuple[int | None, ...] = (1, None)) -> None:
    """On a lively network: one image by a graph for one, three by a graph that leaves the batch open."""
    network = lively_network(arch)
    x = torch.randn(3, arch.in_channels, *arch.input_size, generator=torch.Generator().manual_seed(1))
    expected, weights = network(x), deploy_weights(network)
    for batch in batches:
        model = build_onnx(arch, weights, batch=batch)
        onnx.checker.check_model(model, full_check=True)
        for count in (1, 3) if batch is None else (batch,):
            actual = torch.from_numpy(run(model, x[:count].numpy()))
            assert actual.shape == expected[:count].shape
            assert relative_error(actual, expected[:count]) < TOLERANCE


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_computes_what_the_torch_network_computes(name: str) -> None:
    assert_equal_to_torch(ArchConfig.preset(name))


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("size", [64, (128, 192)], ids=["64", "128x192"])
def test_every_kind_of_block_computes_the_same(changes: dict[str, object], size: object) -> None:
    assert_equal_to_torch(changed(tiny_arch(**changes), image_size=size))


@pytest.mark.parametrize("changes", OTHERS.values(), ids=OTHERS)
def test_every_other_setting_computes_the_same(changes: dict[str, object]) -> None:
    assert_equal_to_torch(changed(tiny_arch(window=3), **changes))


@pytest.mark.parametrize("cascade", [True, False], ids=["cascade", "parallel"])
def test_windows_that_do_not_fit_are_padded_as_in_torch(cascade: bool) -> None:
    arch = changed(tiny_arch(cascade=cascade, window=7), image_size=256)
    assert arch.grids == ((16, 16), (8, 8), (4, 4))
    assert_equal_to_torch(arch, batches=(1, 3, None))


@pytest.mark.parametrize("first", [8, 16], ids=["pairs of pixels", "one by one"])
def test_both_ways_to_the_first_feature_map_compute_the_same(first: int) -> None:
    arch = tiny_arch()
    wide = [stage.model_dump() | {"width": 8 * first} for stage in arch.stages]
    arch = changed(arch, stages=wide, in_channels=4, image_size=(64, 96))
    assert arch.stem_widths[0] == first
    assert_equal_to_torch(arch)


@pytest.mark.parametrize("name", ["m0", "m5"])
def test_random_weights_keep_activations_finite_and_normal(name: str) -> None:
    model = build_onnx(ArchConfig.preset(name))
    for node in list(model.graph.node):
        if node.op_type in ("Conv", "MatMul", "Softmax"):
            model.graph.output.append(onnx.ValueInfoProto(name=node.output[0]))
    options = ort.SessionOptions()
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    for output in session.run(None, {"input": x}):
        assert np.isfinite(output).all()
        assert np.abs(output).max() < 1e4
        assert not ((output != 0) & (np.abs(output) < np.finfo(np.float32).tiny)).any()  # denormals are slow


def test_random_weights_are_a_function_of_the_seed() -> None:
    arch = tiny_arch()
    first, again, other = (build_onnx(arch, seed=seed).SerializeToString() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_file_says_which_network_it_is() -> None:
    arch = changed(tiny_arch(), image_size=(128, 64))
    model = build_onnx(arch, batch=None)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert ArchConfig.model_validate(json.loads(properties["evit_nas.arch"])) == arch
    assert properties["evit_nas.key"] == arch.key
    assert properties["evit_nas.version"] == __version__
    assert shape_of(model.graph.input[0]) == ("input", ["batch", 3, 128, 64])
    assert shape_of(model.graph.output[0]) == ("logits", ["batch", 10])


@pytest.mark.parametrize(("classes", "output"), [(10, ("logits", [4, 10])), (0, ("features", [4, 64]))])
def test_outputs_are_logits_or_features(classes: int, output: tuple[str, list[int]]) -> None:
    model = build_onnx(changed(tiny_arch(), num_classes=classes), batch=4)
    assert shape_of(model.graph.output[0]) == output


def shape_of(value: onnx.ValueInfoProto) -> tuple[str, list[int | str]]:
    dims = value.type.tensor_type.shape.dim
    return value.name, [dim.dim_param or dim.dim_value for dim in dims]


def test_only_standard_operators_of_an_opset_that_other_runtimes_know() -> None:
    model = build_onnx(tiny_arch())
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert {node.domain for node in model.graph.node} == {""}


def test_a_missing_weight_is_named() -> None:
    arch = tiny_arch()
    weights = deploy_weights(build(arch, seed=0))
    del weights["stages.1.downsample.se.reduce.bias"]
    with pytest.raises(UsageError, match=r"no tensor 'stages\.1\.downsample\.se\.reduce\.bias'"):
        build_onnx(arch, weights)


def test_a_weight_of_another_architecture_is_named_with_both_shapes() -> None:
    weights = deploy_weights(build(tiny_arch(qk_dim=4), seed=0))
    with pytest.raises(UsageError, match=r"qkv\.weight' must have shape \(32, 16, 1, 1\).*got \(24, 16, 1, 1\)"):
        build_onnx(tiny_arch(qk_dim=8), weights)


def test_m5_is_written_in_a_fraction_of_a_second() -> None:
    arch = ArchConfig.preset("m5")
    cpu_seconds = []
    for _ in range(3):
        start = time.process_time()
        build_onnx(arch).SerializeToString()
        cpu_seconds.append(time.process_time() - start)
    assert min(cpu_seconds) < 0.3


def test_writing_a_graph_does_not_import_torch() -> None:
    code = (
        "import sys; from evit_nas.arch import ArchConfig; from evit_nas.network.onnx_graph import build_onnx;"
        "build_onnx(ArchConfig.preset('m0')); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
