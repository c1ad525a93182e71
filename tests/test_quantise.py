"""Eight bits are calibrated on real images, and shipped only where they pay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from evit_nas.config import Conditions
from evit_nas.data.sources import open_source
from evit_nas.exporting import open_onnx, run_onnx
from evit_nas.latency import onnx_backend
from evit_nas.network.deploy import deploy_weights
from evit_nas.network.model import build
from evit_nas.network.onnx_graph import build_onnx
from evit_nas.shipped import ShippedGraph
from evit_nas.shipping.accuracy import inputs, some
from evit_nas.shipping.quantise import quantise, refusal
from tests.fakes import latency_of
from tests.networks import VARIANTS, lively_network, tiny_arch
from tests.trainings import ARCH, PREPROCESSING, fitted_weights


@pytest.fixture(scope="module")
def digits() -> list[np.ndarray]:
    return [image for image, _ in inputs(some(open_source("digits", 0).train, 40, 0), PREPROCESSING)]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The deploy graph of a network that knows the digits."""
    model = build(ARCH)
    model.load_state_dict(fitted_weights())
    path = tmp_path_factory.mktemp("graph") / "model.onnx"
    onnx.save(build_onnx(ARCH, deploy_weights(model.eval())), path)
    return path


def logits(path: Path, images: list[np.ndarray]) -> np.ndarray:
    session = open_onnx(path)
    return np.concatenate([run_onnx(session, image) for image in images])


def test_calibrated_8_bits_decide_as_fp32_does(graph: Path, digits: list[np.ndarray], tmp_path: Path) -> None:
    quantise(graph, digits[:20], tmp_path / "int8.onnx")
    expected, actual = logits(graph, digits[20:]), logits(tmp_path / "int8.onnx", digits[20:])
    assert (actual.argmax(1) == expected.argmax(1)).mean() >= 0.9
    assert np.corrcoef(actual.ravel(), expected.ravel())[0, 1] > 0.98


def test_ranges_are_those_of_all_images_as_the_official_calibration_has_it(
    graph: Path, digits: list[np.ndarray], tmp_path: Path
) -> None:
    quantise(graph, digits[:5], tmp_path / "int8.onnx")

    class Samples(CalibrationDataReader):
        samples = iter(digits[:5])

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.samples, None)
            return None if image is None else {"input": image}

    onnx.save(onnx_backend._simplified(str(graph), Conditions()), tmp_path / "simplified.onnx")
    quantize_static(
        tmp_path / "simplified.onnx",
        tmp_path / "official.onnx",
        Samples(),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    np.testing.assert_array_equal(
        logits(tmp_path / "int8.onnx", digits[20:]), logits(tmp_path / "official.onnx", digits[20:])
    )


def test_what_is_written_is_valid_onnx(graph: Path, digits: list[np.ndarray], tmp_path: Path) -> None:
    """ONNX Runtime opens files that other readers refuse: their nodes must come in the order in which they run."""
    quantise(graph, digits[:5], tmp_path / "int8.onnx")
    onnx.checker.check_model(tmp_path / "int8.onnx", full_check=True)
    net = onnx.load(tmp_path / "int8.onnx").graph
    known = {one.name for one in [*net.input, *net.initializer]}
    for node in net.node:
        assert known.issuperset(filter(None, node.input)), node.name
        known.update(node.output)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_kind_of_block_is_about_the_same_in_8_bits(variant: str, tmp_path: Path) -> None:
    arch = tiny_arch(**VARIANTS[variant])
    onnx.save(build_onnx(arch, deploy_weights(lively_network(arch))), tmp_path / "model.onnx")
    images = [np.random.default_rng(seed).standard_normal((1, 3, 64, 64), np.float32) for seed in range(8)]
    quantise(tmp_path / "model.onnx", images, tmp_path / "int8.onnx")
    expected, actual = logits(tmp_path / "model.onnx", images), logits(tmp_path / "int8.onnx", images)
    assert np.corrcoef(actual.ravel(), expected.ravel())[0, 1] > 0.9


def graph_of(top1: float, ms: float, rel_error: float = 0.01) -> ShippedGraph:
    return ShippedGraph(top1=top1, latency=latency_of(ms, rel_error=rel_error), error=0.0, megabytes=1.0)


def test_8_bits_that_are_faster_and_as_accurate_are_taken() -> None:
    assert refusal(graph_of(90, 2), graph_of(89, 1.9), tolerance=1) == ""


def test_8_bits_that_lose_more_than_the_tolerance_are_refused_with_both_accuracies() -> None:
    reason = refusal(graph_of(90, 2), graph_of(88.75, 1), tolerance=1)
    assert reason == "it loses 1.25 points of top-1 (90.00 to 88.75 %); 1 are allowed"
    assert refusal(graph_of(90, 2), graph_of(88.75, 1), tolerance=1.5) == ""


@pytest.mark.parametrize(("ms", "rel_error"), [(2.5, 0.01), (2.0, 0.01), (1.97, 0.01), (1.7, 0.1)])
def test_8_bits_whose_gain_is_within_the_spread_are_refused_with_both_latencies(ms: float, rel_error: float) -> None:
    reason = refusal(graph_of(90, 2, rel_error), graph_of(90, ms, rel_error), tolerance=1)
    assert reason.startswith("it is not faster")
    assert f"{ms:.2f} ms" in reason
    assert "2.00 ms" in reason
