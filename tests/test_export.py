"""Every exported file computes what the torch network does, or is not handed over."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from evit_nas import exporting
from evit_nas.errors import EvitNasError, UsageError
from evit_nas.exporting import TOLERANCE, WRITERS, export, open_onnx, run_onnx
from evit_nas.network import deploy
from evit_nas.network.attention import ParallelGroupAttention
from tests.networks import VARIANTS, lively_network, relative_error, tiny_arch

READERS: dict[str, Callable[[Path], Callable[[Tensor], Tensor]]] = {
    "onnx": lambda path: lambda images: torch.from_numpy(run_onnx(open_onnx(path), images.numpy())),
    "torchscript": lambda path: torch.jit.load(path),
    "pt2": lambda path: torch.export.load(path).module(),
}
IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def training(tmp_path: Path) -> Path:
    """A folder with the weights of a lively `tiny_arch`."""
    save_file(lively_network(tiny_arch()).state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def test_every_format_has_a_reader() -> None:
    assert WRITERS.keys() == READERS.keys()


@pytest.mark.parametrize("to", WRITERS)
def test_a_folders_weights_are_in_the_file(to: str, training: Path) -> None:
    path = training / f"network{WRITERS[to][1]}"
    error = export(to, tiny_arch(), path, weights=training)
    assert error < TOLERANCE
    model, run = lively_network(tiny_arch()), READERS[to](path)
    with torch.inference_mode():
        assert relative_error(run(IMAGES[:1]), model(IMAGES[:1])) < TOLERANCE


@pytest.mark.parametrize("to", WRITERS)
def test_a_dynamic_batch_takes_any_number_of_images(to: str, training: Path) -> None:
    path = training / f"network{WRITERS[to][1]}"
    export(to, tiny_arch(), path, weights=training / "model.safetensors", batch=None)
    model, run = lively_network(tiny_arch()), READERS[to](path)
    with torch.inference_mode():
        for count in (1, 3):
            assert relative_error(run(IMAGES[:count]), model(IMAGES[:count])) < TOLERANCE


@pytest.mark.parametrize("variant", VARIANTS)
def test_torchscript_holds_every_kind_of_block(variant: str, tmp_path: Path) -> None:
    assert export("torchscript", tiny_arch(**VARIANTS[variant]), tmp_path / "network.ts", batch=2) < TOLERANCE


@pytest.mark.parametrize("variant", ["linear", "padded window"])  # of those that differ most from the default
def test_an_exported_program_holds_other_mixers(variant: str, tmp_path: Path) -> None:
    assert export("pt2", tiny_arch(**VARIANTS[variant]), tmp_path / "network.pt2") < TOLERANCE


@pytest.mark.parametrize("to", WRITERS)
def test_a_file_that_computes_something_else_is_not_handed_over(
    to: str, training: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = deploy._fold_conv

    def wrong(module: torch.nn.Module) -> torch.nn.Conv2d:
        conv = right(module)
        conv.bias += 0.01
        return conv

    monkeypatch.setattr(deploy, "_fold_conv", wrong)
    path = training / f"network{WRITERS[to][1]}"
    path.write_text("before")
    with pytest.raises(EvitNasError, match="differs from the torch network"):
        export(to, tiny_arch(), path, weights=training)
    assert path.read_text() == "before"
    assert {found.name for found in training.iterdir()} == {path.name, "model.safetensors"}


@pytest.mark.parametrize("to", WRITERS)
def test_a_full_disk_is_an_error_of_the_system_in_every_format(to: str, tmp_path: Path, full_disk) -> None:
    """Torch makes one of its own of it, or ends the process."""
    path = tmp_path / f"network{WRITERS[to][1]}"
    with full_disk(), pytest.raises(OSError, match="File too large"):
        export(to, tiny_arch(), path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", WRITERS)
def test_what_cannot_be_written_is_the_same_sentence_in_every_format(to: str, call, full_disk) -> None:
    Path("file").write_text("")
    Path("tiny.yaml").write_text(tiny_arch().to_yaml())
    name = f"net{WRITERS[to][1]}"
    refused = call("export", "tiny.yaml", "--to", to, "--out", f"file/in/{name}")
    assert (refused.code, refused.out) == (2, "")
    assert refused.err == f"evit-nas: cannot write file/in/{name}: Not a directory. Give another file with --out.\n"
    with full_disk():
        full = call("export", "tiny.yaml", "--to", to, "--out", name)
    assert full.code == 2
    assert full.err == f"evit-nas: cannot write {name}: File too large. Give another file with --out.\n"


@pytest.mark.parametrize("to", WRITERS)
def test_without_weights_an_error_in_a_residual_branch_shows(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a fresh network such a branch is multiplied by a gamma of 0."""
    right = deploy._folded

    def wrong(module: torch.nn.Module) -> torch.nn.Module:
        folded = right(module)
        if isinstance(module, ParallelGroupAttention):
            folded.proj.weight[0] *= 1.1
        return folded

    monkeypatch.setattr(deploy, "_folded", wrong)
    with pytest.raises(EvitNasError, match="differs from the torch network"):
        export(to, tiny_arch(cascade=False), tmp_path / "network")


def test_weights_of_another_network_are_refused(training: Path) -> None:
    with pytest.raises(UsageError, match="does not fit this architecture"):
        export("onnx", tiny_arch(cascade=False), training / "network.onnx", weights=training)


def test_the_error_is_relative_to_the_largest_output() -> None:
    assert exporting.relative_error(np.array([1.0, -4.5]), np.array([1.0, -5.0])) == pytest.approx(0.1)
