"""A shipped folder is whole and does what its record says, or the finding names what does not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

from evit_nas.arch import ArchConfig
from evit_nas.doctor import Finding
from evit_nas.errors import UsageError
from evit_nas.exporting import export
from evit_nas.latency import DEVICES
from evit_nas.network.model import build
from evit_nas.shipped import write_sums
from evit_nas.shipping.package import ship
from evit_nas.shipping.verify import _examined, _files, verify
from tests.networks import tiny_arch
from tests.trainings import ARCH, FILES, FileDevice, finished

NAMES = (
    "README.md",
    "SHA256SUMS",
    "arch.yaml",
    "config.json",
    "model-int8.onnx",
    "model.onnx",
    "model.safetensors",
    "predict.py",
    "shipped.json",
)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("verify")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEVICES, "files", FileDevice)
        ship(finished(place / "training"), place / "out", conditions=FILES, images=100, calibration_images=20)
    return place / "out"


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(original, tmp_path / "out"))


def failed(folder: Path, data: str | None = None) -> dict[str, str]:
    """What each failed check says; every one of them is fatal and says a way out."""
    findings = verify(folder, data)
    for finding in findings:
        assert finding.ok is not finding.fatal
        assert finding.ok or "ship the training again" in finding.result
    return {finding.check: finding.result for finding in findings if not finding.ok}


def files_of(folder: Path) -> Finding:
    """The finding about the files alone."""
    return _examined("files", lambda: _files(folder))


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_a_folder_as_it_was_shipped_passes_every_check(folder: Path) -> None:
    assert failed(folder, data="digits") == {}
    assert [finding.check for finding in verify(folder)] == [
        "files",
        "record",
        "architecture",
        "weights",
        "timm",
        "ONNX, fp32",
        "ONNX, 8 bits",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_one_damaged_bit_in_any_file_is_found(name: str, original: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for turn in range(20):
        folder = Path(shutil.copytree(original, tmp_path / str(turn), copy_function=shutil.copyfile))
        content = bytearray((folder / name).read_bytes())
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        (folder / name).write_bytes(content)
        assert files_of(folder).fatal, f"turn {turn}"
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_missing_or_cut_off_is_found_and_named(name: str, folder: Path) -> None:
    assert files_of(folder).ok
    (folder / name).write_bytes((folder / name).read_bytes()[:-2])
    assert files_of(folder).fatal
    (folder / name).unlink()
    assert name in files_of(folder).result
    assert files_of(folder).fatal


def test_a_file_that_the_list_of_check_sums_leaves_out_is_found_and_named(folder: Path) -> None:
    lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    (folder / "SHA256SUMS").write_text("".join(line for line in lines if "model.onnx" not in line))
    assert "model.onnx is not in SHA256SUMS" in failed(folder)["files"]


def other_weights(folder: Path) -> None:
    save_file(build(ARCH, seed=1).state_dict(), folder / "model.safetensors")


def weights_of_another_network(folder: Path) -> None:
    save_file(build(tiny_arch()).state_dict(), folder / "model.safetensors")


def other_graph(name: str) -> Callable[[Path], None]:
    return lambda folder: export("onnx", ARCH, folder / name, seed=1)


def other_architecture(folder: Path) -> None:
    changed = ArchConfig.model_validate(ARCH.model_dump() | {"num_classes": 11})
    (folder / "arch.yaml").write_text(changed.to_yaml())


# each would pass the check sums, which are written anew
@pytest.mark.parametrize(
    ("change", "check"),
    [
        (other_weights, "ONNX, fp32"),
        (weights_of_another_network, "weights"),
        (weights_of_another_network, "timm"),
        (other_graph("model.onnx"), "ONNX, fp32"),
        (other_graph("model-int8.onnx"), "ONNX, 8 bits"),
        (other_architecture, "architecture"),
        (lambda folder: rewrite(folder / "config.json", '"0"', '"zero"'), "architecture"),
        (lambda folder: rewrite(folder / "config.json", '"evit_nas"', '"resnet18"'), "timm"),
        (lambda folder: (folder / "model-int8.onnx").unlink(), "record"),
        (lambda folder: rewrite(folder / "shipped.json", '"images"', '"pictures"'), "record"),
    ],
)
def test_files_that_do_not_belong_together_are_found(
    change: Callable[[Path], object], check: str, folder: Path
) -> None:
    change(folder)
    (folder / "SHA256SUMS").unlink()
    write_sums(folder)
    assert check in failed(folder)


def test_a_folder_without_8_bits_passes_with_the_reason(folder: Path) -> None:
    record = json.loads((folder / "shipped.json").read_text())
    (folder / "shipped.json").write_text(json.dumps(record | {"int8_refusal": "it is slower"}))
    (folder / "model-int8.onnx").unlink()
    (folder / "SHA256SUMS").unlink()
    write_sums(folder)
    assert failed(folder) == {}
    assert verify(folder)[-1].result == "not shipped: it is slower"


def test_a_folder_of_before_there_was_a_script_passes(folder: Path) -> None:
    (folder / "predict.py").unlink()
    (folder / "SHA256SUMS").unlink()
    write_sums(folder)
    assert failed(folder) == {}


@pytest.mark.parametrize("name", ["predict.py", "model-int8.onnx"])
def test_a_file_that_only_some_folders_have_needs_a_check_sum_where_it_is(name: str, folder: Path) -> None:
    lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
    (folder / "SHA256SUMS").write_text("".join(line for line in lines if name not in line))
    assert files_of(folder).result.startswith(f"{name} is not in SHA256SUMS")


def test_an_accuracy_that_is_not_reached_is_found_with_both_figures(folder: Path) -> None:
    record = json.loads((folder / "shipped.json").read_text())
    (folder / "shipped.json").write_text(json.dumps(record | {"top1": 99.99}))
    assert "(stated: 99.99 %)" in failed(folder, data="digits")["accuracy"]


def test_the_accuracy_is_taken_on_the_images_that_could_be_read_when_it_was_shipped(tmp_path, monkeypatch):
    monkeypatch.setitem(DEVICES, "files", FileDevice)
    images = load_digits()
    for index, (pixels, label) in enumerate(zip(images.images, images.target, strict=True)):
        place = tmp_path / "data" / ("val" if index % 3 == 0 else "train") / str(label)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15).astype("uint8")).resize((64, 64)).save(place / f"{index}.png")
        if index % 6 == 0:
            (place / f"{index}.png").write_bytes(b"no image")
    training, data = finished(tmp_path / "training"), str(tmp_path / "data")
    record = json.loads((training / "trained.json").read_text())
    (training / "trained.json").write_text(json.dumps(record | {"data": data}))
    shipped = ship(training, tmp_path / "out", conditions=FILES, images=200, calibration_images=5)
    (found,) = [finding.result for finding in verify(tmp_path / "out", data) if finding.check == "accuracy"]
    assert found.startswith(f"on {shipped.images} images: ")
    assert f"torch {shipped.top1:.2f} % (stated: {shipped.top1:.2f} %)" in found


def test_a_folder_without_a_split_is_taken_whole(folder: Path, tmp_path: Path) -> None:
    digits = load_digits()
    for label in range(10):
        (tmp_path / "mine" / str(label)).mkdir(parents=True)
        for index in np.flatnonzero(digits.target == label)[:3]:
            pixels = (digits.images[index] * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "mine" / str(label) / f"{index}.png")
    (found,) = [finding.result for finding in verify(folder, str(tmp_path / "mine")) if finding.check == "accuracy"]
    assert found.startswith("on 30 images: ") or "; on 30 images: " in found


def test_data_with_other_classes_are_no_recheck(folder: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(2):
            Image.new("L", (64, 64)).save(tmp_path / "pets" / name / f"{index}.png")
    with pytest.raises(UsageError, match="must have the classes"):
        verify(folder, str(tmp_path / "pets"))


def test_data_that_are_none_are_wrong_use_even_beside_a_damaged_folder(folder: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'digits'"):
        verify(folder, "digit")
    (folder / "shipped.json").write_text("{")
    with pytest.raises(UsageError, match="Did you mean 'digits'"):
        verify(folder, "digit")
    assert failed(folder, "digits").keys() >= {"record", "accuracy"}


def test_outputs_that_are_no_numbers_are_found(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["head.linear.bias"][0] = float("nan")
    save_file(weights, folder / "model.safetensors")
    assert failed(folder).keys() >= {"timm", "ONNX, fp32"}


def test_a_folder_that_is_none_is_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        verify(tmp_path / "gone")
