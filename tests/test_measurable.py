"""What is measured travels to another process as plain values, and arrives as what it was."""

import json
from pathlib import Path

import pytest

from evit_nas.latency import TimmModel
from evit_nas.latency.measurable import decoded, encoded, resolved
from evit_nas.latency.runtimes import RUNTIMES
from tests.networks import VARIANTS, tiny_arch


@pytest.mark.parametrize(
    "network",
    [
        *(tiny_arch(**changes) for changes in VARIANTS.values()),
        Path("/somewhere/net.onnx"),
        TimmModel("resnet18"),
        TimmModel("resnet18", 64),
    ],
    ids=str,
)
def test_a_network_survives_the_journey(network):
    assert decoded(json.loads(json.dumps(encoded(network)))) == network


def test_a_file_is_found_from_another_folder_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert decoded(encoded(Path("net.onnx"))) == tmp_path / "net.onnx"


def test_what_is_no_network_is_an_error():
    with pytest.raises(KeyError, match="arch"):
        decoded({})
    with pytest.raises(ValueError, match="exactly 3 stages"):
        decoded({"arch": {"stages": []}})


@pytest.fixture
def exported(monkeypatch):
    """The export of timm models, recorded and not done."""
    calls = []

    def timm_onnx(name, image_size):
        calls.append((name, image_size))
        return Path(f"{name}.onnx")

    monkeypatch.setattr("evit_nas.network.timm_models.timm_onnx", timm_onnx)
    return calls


@pytest.mark.parametrize("family", [*RUNTIMES, "remote"])
def test_a_timm_model_becomes_a_file_for_all_that_cannot_build_it(family, exported):
    model = TimmModel("resnet18", 64)
    builds = family in RUNTIMES and RUNTIMES[family].takes_timm
    assert resolved(model, family) == (model if builds else Path("resnet18.onnx"))
    assert exported == ([] if builds else [("resnet18", 64)])


@pytest.mark.parametrize("network", [tiny_arch(), Path("net.onnx")], ids=["architecture", "file"])
def test_everything_else_stays_as_it_is(network, exported):
    assert resolved(network, "cpu") is network
    assert exported == []
