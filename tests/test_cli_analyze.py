"""analyze on the command line: what was computed is kept whatever comes after it, and what is printed as next works."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import timm
from timm.models import save_for_hf

from evit_nas.arch import ArchConfig
from evit_nas.config import Conditions
from evit_nas.latency.profile import take_apart
from evit_nas.space import SearchSpace
from evit_nas.trained import Trained
from tests.networks import tiny_arch
from tests.test_analysis import trained_a_little
from tests.test_profile import nodes_lasting, trace_of
from tests.trainings import finished

QUICK = ("--recipe", "tiny", "--set", "epochs=1", "--set", "warmup_epochs=0", "--workers", "0", "--no-ship")


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return finished(tmp_path_factory.mktemp("original") / "training")


@pytest.fixture
def training(call, original, monkeypatch):
    """A training on digits in the folder that commands run in; profiles are at once."""
    profile = take_apart(trace_of(*[nodes_lasting(52, 11, 3, 42)] * 8), 0.1, 0.5, 10.0, Conditions())
    monkeypatch.setattr("evit_nas.latency.profile.profile", lambda subject, conditions: profile)
    return str(shutil.copytree(original, Path("training")))


def analyzed(call, network, *more):
    return call("analyze", network, "--data", "digits", "--images", "32", "--format", "json", *more)


def next_command(result) -> list[str]:
    (line,) = [line for line in result.err.splitlines() if line.startswith("next:")]
    return shlex.split(line)[2:]


def test_the_page_the_figures_and_a_narrower_space_are_written(call, training):
    result = analyzed(call, training, "--suggest-space", "mine.yaml", "--space", "efficientvit-tiny")
    assert result.code == 0, result.err
    assert json.loads(result.out)[0]["network"] == "tiny"
    assert "became" in Path("analysis.html").read_text()
    SearchSpace.load(Path("mine.yaml"))
    assert next_command(result)[:3] == ["search", "--space", "mine.yaml"]


def test_what_is_right_among_training_images_is_called_so(call, training, monkeypatch):
    (row,) = json.loads(analyzed(call, training).out)
    assert row["training_top1"] > 80
    assert not {"top1", "accuracy"} & row.keys()
    monkeypatch.setenv("COLUMNS", "120")  # so that no header is broken
    shown = " ".join(call("analyze", training, "--data", "digits", "--images", "32").out.split())
    assert shown.startswith("on 32 training images of digits network training top-1 % ms")
    assert "32 training images of digits" in Path("analysis.html").read_text()


def test_the_training_that_is_printed_as_next_starts_from_what_was_cut(call, training):
    Path("small.yaml").write_text(tiny_arch(ffn_ratio=1.75).to_yaml())
    result = analyzed(call, training, "--prune-to", "small.yaml")
    assert result.code == 0, result.err
    assert call(*next_command(result), *QUICK).code == 0
    (folder,) = Path("runs/train").iterdir()
    trained = Trained.load(folder)
    assert trained.arch == ArchConfig.load(Path("tiny-to-small/arch.yaml"))
    assert trained.init.startswith("100.0% of 0.2M parameters from tiny-to-small")


def test_a_start_that_was_cut_before_is_not_written_over(call, training):
    Path("small.yaml").write_text(tiny_arch(ffn_ratio=1.75).to_yaml())
    Path("tiny-to-small").mkdir()
    Path("tiny-to-small/arch.yaml").write_text("mine")
    result = analyzed(call, training, "--prune-to", "small.yaml")
    assert next_command(result)[:4] == ["train", "tiny-to-small-2", "--init", "tiny-to-small-2"]
    assert Path("tiny-to-small/arch.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--suggest-space", "no/mine.yaml"), "cannot write no/mine.yaml: No such file or directory"),
        (("--prune-to", "m5"), "can only be cut to a part of itself"),
    ],
)
def test_what_is_refused_at_the_end_costs_neither_page_nor_figures(options, words, call, training):
    result = analyzed(call, training, *options)
    assert result.code == 2
    assert words in " ".join(result.err.split())
    assert "unexpected" not in result.err
    assert json.loads(result.out)[0]["network"] == "tiny"
    assert Path("analysis.html").is_file()


def test_a_network_that_no_space_can_be_narrowed_by_has_its_page(call, training):
    network = trained_a_little(timm.create_model("test_vit", num_classes=10))
    save_for_hf(network, Path("vit"), model_config={"label_names": list("0123456789")})
    result = analyzed(call, "vit", "--suggest-space", "mine.yaml")
    assert (result.code, "is no EfficientViT" in result.err) == (2, True)
    assert Path("analysis.html").is_file()


def test_a_page_that_cannot_be_written_costs_no_figures(call, training):
    result = analyzed(call, training, "--out", "no/page.html")
    assert (result.code, "cannot write no/page.html" in result.err) == (2, True)
    assert json.loads(result.out)[0]["network"] == "tiny"
