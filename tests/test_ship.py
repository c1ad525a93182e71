"""A finished training becomes a folder that deploys, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from importlib.metadata import Distribution, PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from evit_nas.arch import ArchConfig
from evit_nas.config import Conditions
from evit_nas.data.preprocessing import Preprocessing
from evit_nas.data.sources import open_source
from evit_nas.errors import EvitNasError, MeasurementError, UsageError
from evit_nas.exporting import open_onnx, run_onnx
from evit_nas.latency import DEVICES
from evit_nas.network.model import build
from evit_nas.network.saved import open_saved
from evit_nas.shipped import Shipped
from evit_nas.shipping import package
from evit_nas.shipping.accuracy import Comparison, compare, inputs, probes, some
from evit_nas.shipping.card import card
from evit_nas.shipping.package import ship
from evit_nas.stats import binomial_error
from evit_nas.training.recipe import load_recipe
from tests.trainings import ARCH, FILES, PREPROCESSING, TRAINED, FileDevice, finished, fitted_weights

WHOLE = {
    "model.safetensors",
    "config.json",
    "arch.yaml",
    "model.onnx",
    "model-int8.onnx",
    "predict.py",
    "README.md",
    "shipped.json",
    "SHA256SUMS",
}


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> type[FileDevice]:
    monkeypatch.setitem(DEVICES, "files", FileDevice)
    return FileDevice


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder shipped from the training on digits."""
    place = tmp_path_factory.mktemp("ship")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEVICES, "files", FileDevice)
        ship(finished(place / "training"), place / "out", conditions=FILES, command="evit-nas ship it")
    return place / "out"


def val_inputs() -> tuple[np.ndarray, np.ndarray]:
    pairs = list(inputs(open_source("digits", 0).val, PREPROCESSING))
    return np.concatenate([image for image, _ in pairs]), np.array([label for _, label in pairs])


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_folder_holds_the_network_in_every_form_and_nothing_is_left_beside_it(shipped: Path) -> None:
    assert names_in(shipped) == WHOLE
    assert names_in(shipped.parent) == {"training", "out"}


def test_every_other_file_has_a_check_sum(shipped: Path) -> None:
    sums = dict(line.split("  ")[::-1] for line in (shipped / "SHA256SUMS").read_text().splitlines())
    assert sums.keys() == WHOLE - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((shipped / name).read_bytes()).hexdigest() == digest


def test_accuracies_are_those_of_the_validation_images(shipped: Path) -> None:
    images, labels = val_inputs()
    record = Shipped.load(shipped)
    assert record.images == len(labels)
    model = open_saved(str(shipped)).model
    with torch.inference_mode():
        expected = model(torch.from_numpy(images)).numpy()
    assert record.top1 == pytest.approx(100 * (expected.argmax(1) == labels).mean())
    assert record.top1 > 80
    assert record.fp32.top1 == record.top1
    session = open_onnx(shipped / "model-int8.onnx")
    outputs = np.concatenate([run_onnx(session, image[None]) for image in images])
    assert record.int8 is not None
    assert record.int8.top1 == pytest.approx(100 * (outputs.argmax(1) == labels).mean())
    assert record.int8.top1 > record.top1 - 1


def test_the_onnx_file_holds_the_trained_weights(shipped: Path) -> None:
    images = val_inputs()[0][:20]
    model = open_saved(str(shipped.parent / "training")).model
    session = open_onnx(shipped / "model.onnx")
    actual = np.concatenate([run_onnx(session, image[None]) for image in images])
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(actual), model(torch.from_numpy(images)), rtol=1e-3, atol=1e-3)


def test_both_files_are_measured_under_the_conditions_asked_for(shipped: Path) -> None:
    record = Shipped.load(shipped)
    assert record.int8 is not None
    assert (record.fp32.latency.median_ms, record.int8.latency.median_ms) == (2.0, 1.0)
    assert record.fp32.latency.conditions == FILES


def test_timm_loads_the_folder_with_its_weights_classes_and_preprocessing(shipped: Path) -> None:
    model = timm.create_model(f"local-dir:{shipped}", pretrained=True).eval()
    for name, value in model.state_dict().items():
        assert torch.equal(value, fitted_weights()[name]), name
    assert model.pretrained_cfg["label_names"] == list(TRAINED.classes)
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70), np.uint8))
    assert torch.equal(transform(image), PREPROCESSING.transform()(image))


def test_timm_adapts_the_folder_to_other_classes_channels_sizes_and_to_features(shipped: Path) -> None:
    source = f"local-dir:{shipped}"
    assert not torch.equal(timm.create_model(source).stem[0].conv.weight, fitted_weights()["stem.0.conv.weight"])
    other = timm.create_model(source, pretrained=True, num_classes=3, in_chans=3, img_size=96).eval()
    assert other(torch.zeros(1, 3, 96, 96)).shape == (1, 3)
    assert (other.in_chans, other.arch.input_size) == (3, (96, 96))
    features = timm.create_model(source, pretrained=True, features_only=True, out_indices=(1, 2)).eval()
    assert features.feature_info.reduction() == [32, 64]
    assert torch.equal(features.model.stem[0].conv.weight, fitted_weights()["stem.0.conv.weight"])


def test_the_card_opens_with_what_the_hub_reads(shipped: Path) -> None:
    _, front, text = (shipped / "README.md").read_text().split("---\n", 2)
    facts = yaml.safe_load(front)
    assert facts["library_name"] == "timm"
    assert facts["pipeline_tag"] == "image-classification"
    (result,) = facts["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == pytest.approx(Shipped.load(shipped).top1 / 100, abs=1e-4)
    for fact in ("2.00 ms", "1.00 ms", "evit-nas ship it", TRAINED.command, ARCH.key, "imaginary"):
        assert fact in text


def test_the_card_says_first_how_to_use_the_folder_with_and_without_the_package(shipped: Path) -> None:
    use = (shipped / "README.md").read_text().partition("## Use")[2]
    first = use.index("evit-nas predict . image.png")
    assert first < use.index("python predict.py image.png") < use.index("import evit_nas") < use.index("onnxruntime\n")


def test_accuracies_in_the_card_stand_beside_their_error(shipped: Path) -> None:
    record, text = Shipped.load(shipped), (shipped / "README.md").read_text()
    assert record.int8 is not None
    for top1 in (record.top1, record.fp32.top1, record.int8.top1):
        assert f"| {top1:.2f} ± {binomial_error(top1, record.images):.2f} % |" in text


def test_the_card_tells_the_learning_rate_that_was_reached_and_a_command_once(tmp_path: Path) -> None:
    recipe = {"name": "mine"} | load_recipe("tiny", {"batch_size": 64, "learning_rate": 0.016}).model_dump(mode="json")
    training = finished(tmp_path / "training", recipe=recipe, command="evit-nas train all")
    few = {"conditions": FILES, "images": 20, "calibration_images": 5}
    ship(training, tmp_path / "out", command="evit-nas train all", **few)
    text = (tmp_path / "out" / "README.md").read_text()
    assert "learning rate up to 0.002;" in text
    assert "0.016" not in text
    assert text.count("evit-nas train all") == 1


def test_the_card_says_how_an_image_comes_to_its_size(shipped: Path) -> None:
    """Of an oblong one no side alone decides: it is scaled until it covers both, as predict.py does."""
    record = Shipped.load(shipped)
    for size, words in {
        (3, 64, 64): "RGB image, shorter side resized to 73 pixels (bicubic), centre crop of 64 x 64,",
        (3, 64, 96): "RGB image, scaled until it covers 73 x 109 pixels (bicubic), centre crop of 64 x 96,",
    }.items():
        steps = Preprocessing(input_size=size, mean=(0.5,) * 3, std=(0.5,) * 3)
        trained = record.trained.model_copy(update={"preprocessing": steps})
        assert words in card(record.model_copy(update={"trained": trained}))


def test_the_code_in_the_card_runs(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in names_in(shipped):
        (tmp_path / name).symlink_to(shipped / name)
    monkeypatch.chdir(tmp_path)
    open_source("digits", 0).val.picture(0).convert("RGB").save("image.png")
    blocks = re.findall(r"```python\n(.*?)```", (shipped / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 4
    blocks = [block for block in blocks if "transformers" not in block]  # which the tests do not ask for
    found: dict[str, object] = {}
    with torch.inference_mode():
        exec("\n".join(blocks), found)
    assert found["label"] == TRAINED.classes[found["logits"].argmax()]
    assert found["saved"].preprocessing == PREPROCESSING


def test_strange_names_do_not_break_the_front_matter(tmp_path: Path) -> None:
    training = finished(tmp_path / "training", name="a: [b\n---", data_name="x'\"{}")
    ship(training, tmp_path / "out", conditions=FILES, images=20, calibration_images=5)
    front = (tmp_path / "out" / "README.md").read_text().split("\n---\n")[0]
    assert yaml.safe_load(front)["model-index"][0]["name"] == "a: [b\n---"


def test_8_bits_that_are_not_faster_are_not_shipped_and_the_card_says_why(
    tmp_path: Path, device: type[FileDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(device.ms, "model-int8.onnx", 1.99)  # within the spread of 1 % each
    record = ship(finished(tmp_path / "training"), tmp_path / "out", conditions=FILES, images=20, calibration_images=5)
    assert names_in(tmp_path / "out") == WHOLE - {"model-int8.onnx"}
    assert "not faster" in record.int8_refusal
    assert record.int8 is not None  # its figures are kept
    assert record.int8_refusal in (tmp_path / "out" / "README.md").read_text()
    assert Shipped.load(tmp_path / "out") == record


def with_an_outlier(weights: dict[str, Tensor], factor: float) -> dict[str, Tensor]:
    """The same function in fp32: a channel of the stem is `factor` times as large, and read as much smaller."""
    weights = {name: value.clone() for name, value in weights.items()}
    weights["stem.0.bn.weight"][0] *= factor
    weights["stem.0.bn.bias"][0] *= factor
    weights["stem.1.conv.weight"][:, 0] /= factor
    return weights


def test_8_bits_that_one_large_channel_ruins_are_not_shipped(tmp_path: Path) -> None:
    training = finished(tmp_path / "training")
    save_file(with_an_outlier(fitted_weights(), 1000.0), training / "model.safetensors")
    record = ship(training, tmp_path / "out", conditions=FILES, images=100, calibration_images=20)
    assert record.int8 is not None
    assert record.fp32.top1 == record.top1 > 85
    assert record.int8.top1 < record.top1 - 30
    assert record.int8_refusal.startswith(f"it loses {record.top1 - record.int8.top1:.2f} points of top-1")
    assert names_in(tmp_path / "out") == WHOLE - {"model-int8.onnx"}


def test_a_graph_that_cannot_be_quantised_ships_in_fp32_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MeasurementError("no such luck.")

    monkeypatch.setattr(package, "quantise", refuse)
    record = ship(finished(tmp_path / "training"), tmp_path / "out", conditions=FILES, images=20, calibration_images=5)
    assert record.int8 is None
    assert "There is no 8-bit file: no such luck.\n" in (tmp_path / "out" / "README.md").read_text()


def test_a_part_of_the_validation_images_can_be_enough_and_is_stated(tmp_path: Path) -> None:
    record = ship(finished(tmp_path / "training"), tmp_path / "out", conditions=FILES, images=30, calibration_images=5)
    assert (record.images, record.calibration_images) == (30, 5)
    assert "Accuracy on 30 validation images of digits" in (tmp_path / "out" / "README.md").read_text()


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists"):
        ship(finished(tmp_path / "training"), tmp_path / "out", conditions=FILES)
    assert names_in(tmp_path / "out") == set()


def test_nothing_is_written_where_latency_cannot_be_measured(
    tmp_path: Path, device: type[FileDevice], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(device.ms, "model.onnx")
    with pytest.raises(MeasurementError):
        ship(finished(tmp_path / "training"), tmp_path / "out", conditions=FILES, images=20, calibration_images=5)
    assert names_in(tmp_path) == {"training"}


def test_nothing_is_written_where_the_graph_computes_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evit_nas.network import deploy

    right = deploy._affine
    monkeypatch.setattr(deploy, "_affine", lambda norm: (right(norm)[0] * 1.01, right(norm)[1]))
    with pytest.raises(EvitNasError, match="differs from the torch network"):
        ship(finished(tmp_path / "training"), tmp_path / "out", conditions=FILES, images=20, calibration_images=5)
    assert names_in(tmp_path) == {"training"}


def comparison(error: float, top1: float = 90.0) -> Comparison:
    return Comparison(images=100, top1s={"torch": 90.0, "model.onnx": top1}, errors={"model.onnx": error})


def test_an_image_that_rounding_turns_is_no_reason_to_refuse_but_an_output_that_is_no_number_is() -> None:
    package._check_equal(comparison(error=1e-6, top1=89.0))
    with pytest.raises(EvitNasError, match="differs from the torch network by nan"):
        package._check_equal(comparison(error=float("nan")))


def test_an_output_that_is_no_number_is_no_small_error() -> None:
    class Broken:
        def get_inputs(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(name="input")]

        def run(self, outputs: None, feed: object) -> list[np.ndarray]:
            return [np.full((1, 10), np.nan, np.float32)]

    images = some(open_source("digits", 0).val, 3, 0)
    found = compare(build(ARCH).eval(), {"model.onnx": Broken()}, images, PREPROCESSING)
    assert np.isnan(found.errors["model.onnx"])


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device", str(folder / "SHA256SUMS"))

    monkeypatch.setattr(package, "write_sums", full)
    with pytest.raises(EvitNasError, match=r"SHA256SUMS: No space left on device. Nothing was written to .*out"):
        ship(finished(tmp_path / "training"), tmp_path / "out", conditions=FILES, images=20, calibration_images=5)
    assert names_in(tmp_path) == {"training"}


def test_a_device_that_quantises_by_itself_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="quantises by itself"):
        ship(tmp_path, tmp_path / "out", conditions=Conditions(device="cpu-int8", precision="int8"))


def test_data_with_other_classes_are_refused(tmp_path: Path) -> None:
    training = finished(tmp_path / "training", classes=tuple("abcdefghij"))
    with pytest.raises(UsageError, match=r"digits must have the classes .*: a, b, c, d, e, ... \(10\), got 0, 1"):
        ship(training, tmp_path / "out", conditions=FILES)


def digit_folder(folder: Path, count: int = 3) -> Path:
    """`count` pictures of each class to train on, and one to validate on."""
    for name, index in [(name, index) for name in TRAINED.classes for index in range(count + 1)]:
        place = folder / ("train" if index else "val") / name
        place.mkdir(parents=True, exist_ok=True)
        Image.new("L", (64, 64), 10 * index).save(place / f"{index}.png")
    return folder


def test_unreadable_images_are_left_out_named_and_not_counted(tmp_path: Path) -> None:
    data = digit_folder(tmp_path / "data")
    for name in ("train/3/1.png", "train/3/2.png", "val/7/0.png"):
        (data / name).write_bytes(b"no image")
    training, notes = finished(tmp_path / "training", data=str(data)), list[str]()
    record = ship(training, tmp_path / "out", conditions=FILES, note=notes.append)
    assert (record.calibration_images, record.images) == (28, 9)
    assert "calibrated on 28 training images" in (tmp_path / "out" / "README.md").read_text()
    (said,) = [note for note in notes if "unreadable" in note]
    assert said.startswith("data: skipped 3 unreadable of these images: ")
    assert all(name in said for name in ("train/3/1.png", "train/3/2.png", "val/7/0.png"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_without_a_readable_image_is_refused(split: str, tmp_path: Path) -> None:
    data = digit_folder(tmp_path / "data")
    pictures = list((data / split).rglob("*.png"))
    for path in pictures:
        path.write_bytes(b"no image")
    training = finished(tmp_path / "training", data=str(data))
    with pytest.raises(UsageError, match=rf"none of the {len(pictures)} images can be read, {split}/./..png"):
        ship(training, tmp_path / "out", conditions=FILES)


def test_a_failing_disk_costs_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = open_source(str(digit_folder(tmp_path)), 0).train

    def fails(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(UsageError, match=r"train/0/1\.png cannot be read: Input/output error\. Put that right"):
        list(inputs(images, PREPROCESSING))


def test_the_record_names_the_libraries_that_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Distribution.from_name

    def without_onnxruntime(name: str) -> Distribution:  # its module comes from the distribution onnxruntime-gpu
        if name == "onnxruntime":
            raise PackageNotFoundError(name)
        return found(name)

    monkeypatch.setattr(Distribution, "from_name", without_onnxruntime)
    record = ship(finished(tmp_path / "training"), tmp_path / "out", conditions=FILES, images=20, calibration_images=5)
    assert record.versions.keys() >= {"evit_nas", "torch", "timm", "onnx"}
    assert "onnxruntime" not in record.versions


def test_chosen_images_are_the_same_every_time_and_fewer_are_part_of_more() -> None:
    val = open_source("digits", 0).val
    few, more, again = (some(val, count, 0) for count in (5, 10, 5))
    assert [few.name(i) for i in range(5)] == [again.name(i) for i in range(5)] == [more.name(i) for i in range(5)]
    assert len(some(val, 10_000, 0)) == len(val)


def test_probes_have_the_values_of_images() -> None:
    steps = Preprocessing(input_size=(3, 64, 96), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    pixels = probes(steps) * np.array(steps.std).reshape(3, 1, 1) + np.array(steps.mean).reshape(3, 1, 1)
    assert pixels.shape == (4, 3, 64, 96)
    assert pixels.min() > -1e-6
    assert pixels.max() < 1 + 1e-6
    assert pixels.std() > 0.2


@pytest.mark.slow
def test_a_training_on_digits_ships_with_latencies_of_this_processor(tmp_path: Path) -> None:
    record = ship(finished(tmp_path / "training"), tmp_path / "out", conditions=Conditions())
    assert record.fp32.latency.rounds >= 2 * 16
    assert record.fp32.latency.input_shape == (1, 1, 64, 64)
    assert bool(record.int8_refusal) != (tmp_path / "out" / "model-int8.onnx").exists()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architecture"] == "evit_nas"
    assert ArchConfig.load(tmp_path / "out" / "arch.yaml") == ARCH
