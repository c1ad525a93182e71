"""Evaluation: figures against hand-computed cases, and torch and ONNX side by side on images."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import save_for_hf

from evit_nas.data.sources import open_source
from evit_nas.errors import MeasurementError, UsageError
from evit_nas.evaluation import class_cells, confusion_cells, evaluate, rows, summary_cells
from evit_nas.evaluation.classifiers import open_classifiers
from evit_nas.evaluation.figures import Answers, calibration_error, figures
from evit_nas.network.deploy import deploy_weights
from evit_nas.network.model import EfficientViT
from evit_nas.network.onnx_graph import build_onnx
from evit_nas.shipped import Shipped, ShippedGraph
from evit_nas.stats import binomial_error
from evit_nas.trained import Trained
from tests.fakes import latency_of
from tests.networks import lively_network, tiny_arch
from tests.test_transfer import training

DIGITS = tuple("0123456789")

# Figures


def answers(logits: list[list[float]], labels: list[int]) -> Answers:
    return Answers.of(np.array(logits, np.float32), np.array(labels))


def test_answers_are_those_of_a_softmax() -> None:
    found = answers([[math.log(3), 0.0], [math.log(3), 0.0]], [0, 1])

    assert found.predicted.tolist() == [0, 0]
    assert found.rank.tolist() == [0, 1]
    assert found.confidence == pytest.approx([0.75, 0.75])
    assert found.surprise == pytest.approx([-math.log(0.75), -math.log(0.25)])


def test_of_equal_logits_the_first_comes_first() -> None:
    found = answers([[1.0, 1.0, 1.0]] * 3, [0, 1, 2])

    assert found.predicted.tolist() == [0, 0, 0]
    assert found.rank.tolist() == [0, 1, 2]


def test_large_logits_do_not_overflow() -> None:
    found = answers([[1e4, 0.0]], [1])

    assert found.surprise == pytest.approx([1e4])


def test_figures_by_hand() -> None:
    logits = np.zeros((4, 7), np.float32)
    logits[range(4), [2, 2, 2, 0]] = 10  # predicted
    labels = np.array([2, 2, 0, 6])

    found = figures(Answers.of(logits, labels), labels, 7)

    assert found["images"] == 4
    assert found["top1"] == 50
    assert found["top1_error"] == binomial_error(50, 4)
    assert found["top5"] == 75  # class 6 comes last in the last image
    assert found["per_class"] == [0, None, 100, None, None, None, 0]
    assert found["confusion"][0] == [0, 0, 1, 0, 0, 0, 0]
    assert found["confusion"][2] == [0, 0, 2, 0, 0, 0, 0]
    assert found["confusion"][6] == [1, 0, 0, 0, 0, 0, 0]
    assert found["cross_entropy"] == pytest.approx(5 + math.log1p(6 * math.exp(-10)))


def test_there_is_no_top5_of_five_classes() -> None:
    assert figures(answers([[1.0, 0, 0, 0, 0]], [0]), np.array([0]), 5)["top5"] is None


@pytest.mark.parametrize(
    ("confidence", "right", "error"),
    [
        ([0.95, 0.95, 0.95, 0.95], [1, 1, 1, 1], 0.05),
        ([0.95, 0.95, 0.55, 0.55], [1, 0, 1, 0], (2 * 0.45 + 2 * 0.05) / 4),
        ([0.91, 0.99], [0, 1], 0.45),  # one part of ten: mean confidence 0.95, half right
        ([0.9, 0.91], [0, 1], (0.9 + 0.09) / 2),  # two parts: an edge belongs to the lower one
        ([1.0], [0], 1.0),
    ],
)
def test_calibration_error_by_hand(confidence: list[float], right: list[int], error: float) -> None:
    assert calibration_error(np.array(confidence), np.array(right, bool), bins=10) == pytest.approx(error)


# Networks and images


def export(model: EfficientViT, path: Path, batch: int | None = None) -> Path:
    path.write_bytes(build_onnx(model.arch, deploy_weights(model), batch=batch).SerializeToString())
    return path


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A training folder with ONNX files, as it is shipped; the network is lively, not good."""
    model = lively_network(tiny_arch())
    folder = training(tmp_path_factory.mktemp("runs") / "run", model, DIGITS)
    export(model, folder / "model.onnx", batch=1)
    export(lively_network(tiny_arch(), seed=5), folder / "model-int8.onnx", batch=4)  # another network: it must show
    return folder


def test_torch_and_onnx_are_evaluated_side_by_side(trained: Path) -> None:
    torch_, onnx, other = evaluate([str(trained)], "digits", batch=50, workers=0)

    assert [(e.network, e.form) for e in (torch_, onnx, other)] == [
        ("evit-1ms", "torch"),
        ("evit-1ms", "onnx"),
        ("evit-1ms", "int8"),
    ]
    assert (torch_.batch, onnx.batch, other.batch) == (50, 1, 4)
    assert torch_.images == onnx.images == len(open_source("digits", 0).val)
    assert torch_.confusion == onnx.confusion != other.confusion
    assert onnx.cross_entropy == pytest.approx(torch_.cross_entropy, rel=1e-3)
    assert min(torch_.images_per_s, onnx.images_per_s, other.images_per_s) > 0


def test_the_figures_are_those_of_the_network_on_each_image(trained: Path) -> None:
    found = evaluate([str(trained)], "digits", batch=64, workers=2)[0]

    model, images = lively_network(tiny_arch()), open_source("digits", 0).val
    transform = Trained.load(trained).preprocessing.transform()
    confusion = np.zeros((10, 10), int)
    with torch.no_grad():
        for index in range(len(images)):
            image, label = images[index]
            confusion[label, int(model(transform(image)[None]).argmax())] += 1
    assert found.confusion == tuple(map(tuple, confusion.tolist()))
    assert found.top1 == pytest.approx(100 * np.trace(confusion) / len(images))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three images of each of ten classes, in folders called 0 to 9, and one file that is no image."""
    for split in ("train", "val"):
        for label in DIGITS:
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for number in range(3):
                rng = np.random.default_rng(10 * int(label) + number)
                Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(folder / f"{number}.png")
    (tmp_path / "pictures/val/3/1.png").write_bytes(b"not a picture")
    return tmp_path / "pictures"


def test_unreadable_images_are_skipped_and_named(trained: Path, pictures: Path) -> None:
    notes: list[str] = []

    found = evaluate([str(trained)], str(pictures), workers=0, note=notes.append)

    assert {(e.images, e.skipped) for e in found} == {(29, ("val/3/1.png",))}
    assert sum(found[0].confusion[3]) == 2
    (said,) = notes
    assert said.startswith("pictures: skipped 1 unreadable images: val/3/1.png (empty, damaged")


@pytest.fixture
def whole(pictures: Path) -> Path:
    """A folder of 30 images without a split of its own."""
    (pictures / "val/3/1.png").write_bytes((pictures / "val/3/0.png").read_bytes())
    return pictures / "val"


def test_a_folder_without_a_split_of_its_own_is_taken_whole(trained: Path, whole: Path) -> None:
    notes: list[str] = []

    found = evaluate([str(trained)], str(whole), workers=0, note=notes.append)

    assert {(e.images, e.data) for e in found} == {(30, "val")}
    assert notes == ["val has no split of its own: all of its 30 images are taken"]


@pytest.mark.parametrize("form", ["training folder", "shipped folder", "ONNX file beside it", "ONNX file like it"])
def test_of_the_very_folder_that_a_network_was_trained_on_the_tenth_is_taken_that_was_held_out(
    form: str, trained: Path, whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(trained, folder)
    record = Trained.load(folder).model_copy(update={"data_name": "val", "data": str(whole)})
    record.save(folder)
    network, like = str(folder), None
    if form == "shipped folder":
        config = {"architecture": "evit_nas", "num_classes": 10, "label_names": list(DIGITS)}
        config |= {"pretrained_cfg": record.preprocessing.timm_config()}
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "shipped.json").write_text(shipped_record(record))
        (folder / "trained.json").unlink()
    elif form == "ONNX file beside it":
        network = str(folder / "model.onnx")
    elif form == "ONNX file like it":
        network, like = str(shutil.move(folder / "model.onnx", tmp_path / "lone.onnx")), str(folder)
    notes: list[str] = []

    both = evaluate([str(trained), network], str(whole), workers=0, like=like, note=notes.append)

    assert {(e.images, e.data, e.network) for e in both} == {(10, "val val", "evit-1ms")}
    assert notes[0].endswith("10 of its 30 images are taken, the tenth that its training held out")
    (left, *_) = evaluate([network], str(whole), split="train", workers=0, like=like, note=notes.append)
    assert (left.images, left.data) == (20, "val train")
    assert notes[1].endswith("20 of its 30 images are taken, what is left when a tenth is held out")


def shipped_record(trained: Trained) -> str:
    """shipped.json of a network, with figures that do not matter here."""
    graph = ShippedGraph(top1=50, latency=latency_of(1.0), error=0.0, megabytes=1.0)
    figures = {"params": 1, "macs": 1, "images": 1, "top1": 50, "calibration_images": 1, "tolerance": 1.0}
    return Shipped(
        trained=trained, fp32=graph, int8=graph, int8_refusal="", command="", versions={}, **figures
    ).model_dump_json()


def test_a_class_without_readable_images_is_said(trained: Path, pictures: Path) -> None:
    for path in (pictures / "val" / "7").iterdir():
        path.write_bytes(b"")
    notes: list[str] = []

    found = evaluate([str(trained)], str(pictures), workers=0, note=notes.append)

    assert found[0].empty_classes == ("7",)
    assert found[0].per_class[7] is None
    assert notes[1] == "pictures has no val images of: 7"
    assert class_cells(found)[1][7] == ["7", "0", "-", "-", "-"]


def test_every_accuracy_stands_beside_its_error(trained: Path) -> None:
    found = evaluate([str(trained)], "digits", workers=0)[:1]

    (summary,), (first, *_) = summary_cells(found)[1], class_cells(found)[1]
    assert summary[2:4] == [f"{found[0].top1:.2f}", f"{binomial_error(found[0].top1, found[0].images):.2f}"]
    percent, count = found[0].per_class[0], sum(found[0].confusion[0])
    assert first[2] == f"{percent:.1f} ± {binomial_error(percent, count):.1f}"


def test_the_same_classes_in_another_order_are_matched(trained: Path, tmp_path: Path) -> None:
    model = lively_network(tiny_arch())
    with torch.no_grad():
        model.head.linear.weight.copy_(model.head.linear.weight.flip(0))
        model.head.linear.bias.copy_(model.head.linear.bias.flip(0))
    turned = training(tmp_path / "turned", model, DIGITS[::-1])

    found = evaluate([str(trained), str(turned)], "digits", workers=0)

    assert found[0].confusion == found[-1].confusion


def hub_folder(folder: Path, model: torch.nn.Module) -> Path:
    """A folder in the layout of timm and the Hugging Face hub."""
    save_for_hf(model, folder, model_config={"label_names": list(DIGITS)}, safe_serialization=True)
    return folder


def test_a_folder_in_the_layout_of_the_hub_is_evaluated(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path / "hub", timm.create_model("test_resnet", num_classes=10))

    (found,) = evaluate([str(folder)], "digits", workers=0)

    assert (found.network, found.form) == ("hub", "torch")
    assert found.images == len(open_source("digits", 0).val)


def test_a_shipped_folder_tells_its_classes_and_preprocessing(trained: Path, tmp_path: Path) -> None:
    shipped = tmp_path / "shipped"
    shutil.copytree(trained, shipped)
    before = Trained.load(shipped)
    (shipped / "trained.json").unlink()
    config = {"architecture": "evit_nas", "num_classes": 10, "label_names": list(DIGITS)}
    config |= {"pretrained_cfg": before.preprocessing.timm_config()}
    (shipped / "config.json").write_text(json.dumps(config))

    found = evaluate([str(shipped)], "digits", workers=0)

    expected = evaluate([str(trained)], "digits", workers=0)
    assert [(e.network, e.form) for e in found] == [("shipped", form) for form in ("torch", "onnx", "int8")]
    assert [e.confusion for e in found] == [e.confusion for e in expected]


def test_missing_and_unknown_classes_are_named(tmp_path: Path) -> None:
    folder = training(tmp_path / "run", lively_network(tiny_arch()), ("ten", *DIGITS[1:]))

    with pytest.raises(
        UsageError, match=r"must have the classes of the data \(10\), got 10; missing: 0; unknown here: ten"
    ):
        evaluate([str(folder)], "digits", workers=0)


def test_of_many_missing_classes_the_first_few_are_named(tmp_path: Path) -> None:
    folder = training(tmp_path / "run", lively_network(tiny_arch()), tuple("abcdefghij"))
    with pytest.raises(UsageError, match=r"missing: 0, 1, 2, 3, 4, \.\.\.; unknown here: a, b, c, d, e, \.\.\.\.$"):
        evaluate([str(folder)], "digits", workers=0)


@pytest.mark.parametrize(("network", "like"), [("~nobody-at-all#m0", None), ("some.onnx", "~nobody-at-all")])
def test_the_home_folder_of_nobody_is_no_network(
    network: str, like: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("some.onnx").touch()
    with pytest.raises(UsageError, match=r"~nobody-at-all.*: no such network"):
        open_classifiers(network, like)


def test_an_onnx_file_elsewhere_needs_a_folder_that_it_is_like(trained: Path, tmp_path: Path) -> None:
    alone = export(lively_network(tiny_arch()), tmp_path / "alone.onnx")

    with pytest.raises(UsageError, match=r"--like FOLDER.* holds no trained network"):
        evaluate([str(alone)], "digits", workers=0)
    (found,) = evaluate([str(alone)], "digits", like=str(trained), batch=32, workers=0)

    assert found.confusion == evaluate([str(trained)], "digits", workers=0)[0].confusion
    assert (found.form, found.batch) == ("onnx", 32)


def test_an_onnx_file_for_another_size_is_refused(trained: Path, tmp_path: Path) -> None:
    larger = lively_network(tiny_arch().model_copy(update={"image_size": 96}))

    with pytest.raises(UsageError, match=r"takes images of \[3, 96, 96\], but evit-1ms wants \[3, 64, 64\]"):
        evaluate([str(export(larger, tmp_path / "larger.onnx"))], "digits", like=str(trained), workers=0)


def test_outputs_that_are_not_finite_are_no_accuracy(tmp_path: Path) -> None:
    model = lively_network(tiny_arch())
    model.head.linear.bias.data[3] = math.nan
    folder = training(tmp_path / "run", model, DIGITS)

    with pytest.raises(MeasurementError, match="outputs are not finite"):
        evaluate([str(folder)], "digits", workers=0)


def test_progress_counts_every_batch(trained: Path) -> None:
    steps: list[tuple[int, int]] = []

    evaluate([str(trained)], "digits", batch=100, workers=0, step=lambda *now: steps.append(now))

    assert steps == [(1, 2), (2, 2)]


# What is printed


def test_rows_are_plain_and_tables_have_a_cell_for_each_column(trained: Path) -> None:
    found = evaluate([str(trained)], "digits", workers=0)

    assert json.loads(json.dumps(rows(found)))[0]["top1"] == found[0].top1
    for columns, cells in (summary_cells(found), class_cells(found), confusion_cells(found[0])):
        assert {len(row) for row in cells} == {len(columns)}


def test_the_worst_pairs_are_the_largest_numbers_beside_the_diagonal(trained: Path) -> None:
    found = evaluate([str(trained)], "digits", workers=0)[0]
    confusion = [[9, 0, 1], [4, 0, 0], [0, 2, 5]]

    pairs = found.model_copy(update={"classes": ("a", "b", "c"), "confusion": confusion}).worst_pairs(2)

    assert pairs == [("b", "a", 4, 1.0), ("c", "b", 2, pytest.approx(2 / 7))]
