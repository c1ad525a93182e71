"""From a shipped folder to an answer, by the verb and by the folder's own script, on pictures of every kind."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from evit_nas.data.folder import FolderImages
from evit_nas.data.preprocessing import Preprocessing
from evit_nas.data.sources import open_source
from evit_nas.errors import MeasurementError, UsageError
from evit_nas.latency import DEVICES
from evit_nas.network.deploy import deploy_weights
from evit_nas.network.model import build
from evit_nas.network.onnx_graph import build_onnx
from evit_nas.network.saved import open_saved
from evit_nas.shipping import predict
from evit_nas.shipping.answer import Pictures, answers, find_pictures
from evit_nas.shipping.package import ship
from evit_nas.training.batches import plain_batches
from tests.trainings import ARCH, FILES, TRAINED, FileDevice, finished

TURNED_LEFT = 6  # in EXIF: the camera's top is the picture's right
NEVER = "torch torchvision timm onnx scipy pandas sklearn optuna ray safetensors"
WITHOUT = """
import runpy, sys
missing, what = sys.argv[1].split(), sys.argv[2]
class Without:
    @staticmethod
    def find_spec(name, *_):
        if name.partition(".")[0] in missing:
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Without)
sys.argv = sys.argv[2:]
(runpy.run_path if what.endswith(".py") else runpy.run_module)(what, run_name="__main__")
"""


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder shipped from the training on digits, in grey, with a file in 8 bits."""
    place = tmp_path_factory.mktemp("predict")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEVICES, "files", FileDevice)
        ship(
            finished(place / "training"),
            place / "training" / "shipped",
            conditions=FILES,
            images=50,
            calibration_images=20,
        )
    return place / "training" / "shipped"


@pytest.fixture
def shipped(original: Path, tmp_path: Path) -> Path:
    """A copy that may be changed, in the folder that commands run in."""
    return Path(shutil.copytree(original, tmp_path / "shipped"))


@pytest.fixture
def digits(tmp_path: Path) -> list[str]:
    """Files with the first twenty validation images."""
    val, files = open_source("digits", 0).val, []
    for index in range(20):
        files.append(str(tmp_path / f"digit-{index}.png"))
        val.picture(index).save(files[-1])
    return files


def run_without(missing: str, *command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Python runs `command`, a file or a module and its arguments, where `missing` modules are not installed."""
    line = [sys.executable, "-c", WITHOUT, missing, *command]
    return subprocess.run(line, capture_output=True, encoding="utf-8", check=False, **options)


# From a picture to an input


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def colour(width: int, height: int) -> Image.Image:
    return Image.fromarray(noise(height, width, 3)).resize((width, height))


def rotated(file: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = TURNED_LEFT
    colour(90, 50).save(file, exif=exif, quality=95)


ODD = {
    "colour.png": lambda file: colour(150, 117).save(file),
    "grey.png": lambda file: Image.fromarray(noise(81, 120)).save(file),
    "alpha.png": lambda file: Image.fromarray(noise(70, 133, 4)).save(file),
    "grey-alpha.png": lambda file: Image.fromarray(noise(70, 133, 2)).save(file),
    "palette.png": lambda file: colour(131, 99).quantize(50).save(file),
    "palette-alpha.png": lambda file: colour(131, 99).quantize(50).save(file, transparency=3),
    "two-tone.png": lambda file: Image.fromarray(noise(90, 90)).convert("1").save(file),
    "16-bit.png": lambda file: Image.fromarray(noise(80, 70).astype(np.uint16) * 257).save(file),
    "whole-numbers.tiff": lambda file: Image.fromarray(noise(80, 70).astype(np.int32) * 200).save(file),
    "four-inks.jpg": lambda file: colour(100, 70).convert("CMYK").save(file),
    "rotated.jpg": rotated,
    "animation.gif": lambda file: colour(70, 90).save(file, save_all=True, append_images=[colour(70, 90)]),
    "strip.png": lambda file: colour(1501, 7).save(file),
    "tall-strip.png": lambda file: colour(3, 400).save(file),
    "small.png": lambda file: colour(5, 9).save(file),
    "one-pixel.png": lambda file: colour(1, 1).save(file),
    "as-large.png": lambda file: colour(64, 64).save(file),
    "resized-to-half-a-pixel.png": lambda file: colour(101, 73).save(file),
}


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("odd")
    for name, save in ODD.items():
        save(folder / name)
    return [folder / name for name in ODD]


@pytest.mark.parametrize(
    "steps",
    [
        Preprocessing(input_size=(3, 64, 64), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        Preprocessing(input_size=(3, 64, 64), mean=(0.5,) * 3, std=(0.2,) * 3, interpolation="bilinear", crop_pct=0.77),
        Preprocessing(input_size=(1, 64, 64), mean=(0.5,), std=(0.5,), crop_pct=1.0),
        Preprocessing(input_size=(3, 64, 112), mean=(0.5,) * 3, std=(0.5,) * 3, crop_pct=0.9),
        Preprocessing(input_size=(1, 96, 64), mean=(0.4,), std=(0.3,), interpolation="bilinear"),
    ],
    ids=["colour", "bilinear", "grey", "wide", "tall in grey"],
)
def test_a_network_is_given_what_it_is_evaluated_on(steps: Preprocessing, odd: list[Path]) -> None:
    images = FolderImages(odd[0].parent, odd, np.zeros(len(odd)))
    (batch, labels, _) = next(iter(plain_batches(images, steps, range(len(odd)))))
    assert (labels == 0).all()  # all of them can be read
    named = Pictures([str(path) for path in odd])
    for index, path in enumerate(odd):
        by_verb = predict.prepared(named[index][0], **steps.model_dump())
        with Image.open(path) as image:
            by_script = predict.prepared(predict.plain(image), **json.loads(steps.model_dump_json()))
        assert by_verb.dtype == by_script.dtype == np.float32
        for pixels in (by_verb, by_script):
            np.testing.assert_allclose(pixels[0], batch[index].numpy(), atol=1e-5, err_msg=path.name)


def test_floating_point_pixels_are_no_picture_to_either(shipped: Path, tmp_path: Path) -> None:
    file, skipped = tmp_path / "float.tiff", list[str]()
    Image.fromarray(np.ones((9, 9), np.float32)).save(file)
    assert answers(shipped, find_pictures([str(file)]), skip=skipped.append) == []
    assert "floating-point pixels" in skipped[0]
    with pytest.raises(ValueError, match="floating-point pixels"):
        predict.plain(Image.open(file))


# From an input to an answer


def test_answers_are_the_likeliest_classes_of_the_trained_network(shipped: Path, digits: list[str]) -> None:
    found = answers(shipped, find_pictures(digits), top=3)
    transform, images = TRAINED.preprocessing.transform(), open_source("digits", 0).val
    with torch.inference_mode():
        inputs = torch.stack([transform(images[index][0]) for index in range(20)])
        likeliest = open_saved(str(shipped)).model(inputs).softmax(1).topk(3)
    assert [one.image for one in found] == digits
    for one, odds, places in zip(found, likeliest.values, likeliest.indices, strict=True):
        assert one.probabilities == pytest.approx(odds.tolist(), abs=1e-4)
        assert one.classes == tuple(TRAINED.classes[place] for place in places)
        assert one.ms > 0


def test_the_file_in_8_bits_answers_if_it_is_asked_and_is_there(shipped: Path, digits: list[str]) -> None:
    pictures = find_pictures(digits)
    fp32, int8 = (answers(shipped, pictures, int8=int8) for int8 in (False, True))
    assert [one.classes for one in fp32] == [one.classes for one in int8]
    assert [one.probabilities for one in fp32] != [one.probabilities for one in int8]
    record = json.loads((shipped / "shipped.json").read_text()) | {"int8_refusal": "it is slower."}
    (shipped / "shipped.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=r"has no model-int8.onnx: it is slower\.$"):
        answers(shipped, pictures, int8=True)


def test_more_classes_than_there_are_are_all_of_them(shipped: Path, digits: list[str]) -> None:
    (one,) = answers(shipped, find_pictures(digits[:1]), top=99)
    assert sorted(one.classes) == sorted(TRAINED.classes)
    assert sum(one.probabilities) == pytest.approx(1, abs=1e-5)


def test_a_network_that_says_no_number_gives_no_answer(shipped: Path, digits: list[str]) -> None:
    model = build(ARCH, seed=0).eval()
    model.head.linear.bias.data[3] = np.nan
    (shipped / "model.onnx").write_bytes(build_onnx(ARCH, deploy_weights(model)).SerializeToString())
    with pytest.raises(MeasurementError, match="no number"):
        answers(shipped, find_pictures(digits[:1]))


@pytest.mark.parametrize("damage", ["cut off", "gone"])
def test_a_damaged_file_is_named(damage: str, shipped: Path, digits: list[str]) -> None:
    if damage == "gone":
        (shipped / "model.onnx").unlink()
    else:
        (shipped / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(UsageError, match=r"model\.onnx: ONNX Runtime cannot open it"):
        answers(shipped, find_pictures(digits[:1]))


def test_what_is_near_a_shipped_folder_is_told_from_it(original: Path, tmp_path: Path) -> None:
    for near in (original.parent, original / "model.onnx"):
        with pytest.raises(UsageError, match=r"is not a shipped folder .* Did you mean .*training/shipped\?"):
            answers(near, find_pictures([]))
    with pytest.raises(UsageError, match="Make one with evit-nas ship"):
        answers(tmp_path, find_pictures([]))


# Which pictures


def test_folders_are_searched_however_deep_and_what_is_hidden_or_no_picture_is_left(tmp_path: Path) -> None:
    for name in ("b.png", "a/deep/er.JPG", "a/.hidden.png", ".cache/c.png", "a/notes.txt", "__MACOSX/d.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "a" / "again").symlink_to(tmp_path / "in")
    (tmp_path / "odd.name").touch()
    found = find_pictures([str(tmp_path / "odd.name"), str(tmp_path / "in"), "-"])
    names = [found.name(index).removeprefix(f"{tmp_path}/") for index in range(len(found))]
    assert names == ["odd.name", "in/a/deep/er.JPG", "in/b.png", "-"]


def test_what_is_not_there_and_folders_without_pictures_are_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no picture or folder nothing"):
        find_pictures(["nothing.png"])
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"must have pictures \(.*\.png.*\), found none"):
        find_pictures([str(tmp_path)])


def test_a_name_that_begins_like_a_home_folder_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("~nobody-at-all.png", "mine.png"):
        Path(name).touch()
    found = find_pictures(["~nobody-at-all.png", "~/mine.png"])
    assert [found.name(index) for index in range(2)] == ["~nobody-at-all.png", f"{tmp_path}/mine.png"]


def test_what_the_system_has_against_a_name_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"^x+\.png cannot be read: File name too long\.$"):
        find_pictures([f"{'x' * 300}.png"])

    def closed(path: Path, **how: bool) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "stat", closed)  # root may search every folder
    with pytest.raises(UsageError, match=r"^locked/cat\.png cannot be read: Permission denied\.$"):
        find_pictures(["locked/cat.png"])


# On the command line


def test_the_verb_prints_a_row_for_each_answer(call, shipped: Path, digits: list[str]) -> None:
    expected = answers(shipped, find_pictures(digits), top=2)
    rows = json.loads(call("predict", "shipped", *digits, "--top", "2", "--format", "json").out)
    assert [row["image"] for row in rows] == [digit for digit in digits for _ in range(2)]
    assert [row["rank"] for row in rows] == [1, 2] * 20
    assert [row["class"] for row in rows] == [name for one in expected for name in one.classes]
    assert [row["probability"] for row in rows] == [odds for one in expected for odds in one.probabilities]
    text = call("predict", "shipped", *digits, "--format", "csv").out
    assert [row["class"] for row in csv.DictReader(io.StringIO(text))] == [one.classes[0] for one in expected]
    shown = call("predict", "shipped", Path(digits[0]).name).out.splitlines()[-2].split()
    assert shown[:3] == ["digit-0.png", expected[0].classes[0], f"{100 * expected[0].probabilities[0]:.1f}"]


def test_a_picture_comes_on_standard_input(call, shipped: Path, digits: list[str], monkeypatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(Path(digits[3]).read_bytes())))
    (row,) = json.loads(call("predict", "shipped", "-", "--format", "json").out)
    (named,) = json.loads(call("predict", "shipped", digits[3], "--format", "json").out)
    assert row | {"ms": 0} == named | {"ms": 0, "image": "-"}


def test_pictures_that_cannot_be_read_are_named_and_the_others_answered(call, shipped: Path, digits: list[str]) -> None:
    Path("bad.png").write_bytes(b"no picture")
    whole = Path(digits[1]).read_bytes()
    Path("half.png").write_bytes(whole[: len(whole) // 2])
    result = call("predict", "shipped", "bad.png", digits[0], "half.png", "--format", "json")
    assert result.code == 1
    assert [row["image"] for row in json.loads(result.out)] == [digits[0]]
    assert "skipped bad.png (empty, damaged" in result.err
    assert "skipped half.png (" in result.err
    assert result.err.endswith("2 of 3 pictures could not be read, see above.\n")
    assert json.loads(call("predict", "shipped", "bad.png", "--format", "json").out) == []
    assert call("predict", "shipped", "bad.png").out == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere", "x.png"], "there is no picture or folder x.png"),
        (["nowhere", "."], "nowhere is not a shipped folder"),
        (["shipped"], "Missing argument 'IMAGE...'"),
    ],
)
def test_wrong_use_exits_with_2(call, shipped: Path, digits: list[str], arguments: list[str], words: str) -> None:
    result = call("predict", *arguments)
    assert (result.code, result.out, words in result.err) == (2, "", True), result.err


@pytest.mark.parametrize("columns", ["80", "40", ""])
def test_no_name_is_broken_at_any_width(
    columns: str, call, shipped: Path, digits: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class_name, picture = "great white shark of the southern seas", "a/picture with spaces and a long name.png"
    record = json.loads((shipped / "shipped.json").read_text())
    record["trained"]["classes"] = [f"{class_name} {index}" for index in range(10)]
    (shipped / "shipped.json").write_text(json.dumps(record))
    Path("a").mkdir()
    shutil.copy(digits[0], picture)
    monkeypatch.setenv("COLUMNS", columns) if columns else monkeypatch.delenv("COLUMNS")
    out = call("predict", "shipped", "a", "--top", "2").out
    assert sum(picture in line for line in out.splitlines()) == 2
    assert sum(class_name in line for line in out.splitlines()) == 2


# Where less is installed


def test_the_verb_needs_no_torch(original: Path, digits: list[str]) -> None:
    command = ("evit_nas", "predict", str(original), *digits, "--format", "json")
    result = run_without(NEVER, *command, cwd=Path(__file__).parent.parent)
    assert (result.returncode, result.stderr) == (0, "")
    assert [row["image"] for row in json.loads(result.stdout)] == digits


def test_the_script_answers_as_the_verb_does_where_the_package_is_not_installed(
    original: Path, digits: list[str], tmp_path: Path
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    result = run_without(
        f"evit_nas pydantic yaml {NEVER}", str(original / "predict.py"), *digits, cwd=tmp_path, env=environment
    )
    assert (result.returncode, result.stderr) == (0, "")
    lines = [line.split("\t") for line in result.stdout.splitlines()]
    by_verb = answers(original, find_pictures(digits))
    expected = [[one.image, one.classes[0], f"{one.probabilities[0]:.4f}"] for one in by_verb]
    assert [line[:3] for line in lines] == expected
    assert all(line[3].endswith(" ms") for line in lines)


def test_the_script_names_what_it_cannot_read_and_answers_the_rest(original: Path, digits: list[str]) -> None:
    result = run_without("evit_nas", str(original / "predict.py"), "nothing.png", digits[0])
    assert (result.returncode, len(result.stdout.splitlines())) == (1, 1)
    assert result.stderr.startswith("nothing.png: cannot be read: ")
    alone = run_without("evit_nas", str(original / "predict.py"))
    assert (alone.returncode, "python predict.py IMAGE..." in alone.stderr) == (2, True)


def test_a_program_that_imports_the_script_answers_as_the_verb_does(
    original: Path, digits: list[str], tmp_path: Path
) -> None:
    page = (Path(__file__).parent.parent / "docs" / "shipping.md").read_text(encoding="utf-8")
    (example,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if "SHIPPED" in block)
    program = tmp_path / "program.py"
    program.write_text(example.replace("SHIPPED", str(original)).replace("photo.jpg", digits[0]), encoding="utf-8")
    result = run_without(f"evit_nas pydantic yaml {NEVER}", str(program), cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    (by_verb,) = answers(original, find_pictures(digits[:1]))
    name, probability, _ = result.stdout.split()
    assert (name, float(probability)) == (by_verb.classes[0], pytest.approx(by_verb.probabilities[0], abs=1e-4))


def test_the_script_that_is_shipped_is_the_one_that_the_verb_uses(original: Path) -> None:
    assert (original / "predict.py").read_bytes() == Path(predict.__file__).read_bytes()
