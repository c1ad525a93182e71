"""train, ship, verify, eval on the command line: what they take, print and leave."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_digits

from evit_nas.errors import Interrupted
from evit_nas.latency import DEVICES
from evit_nas.network.saved import open_saved
from evit_nas.shipping.package import ship
from evit_nas.trained import Trained
from evit_nas.training.recipe import RECIPES
from tests.fakes import FakeDevice
from tests.networks import tiny_arch
from tests.trainings import FILES, FileDevice, finished, write_shades

CPU = DEVICES["cpu"]
QUICK = ("--data", "shades", "--recipe", "tiny", "--set", "epochs=1", "--set", "warmup_epochs=0", "--workers", "0")


@pytest.fixture
def tiny(call, monkeypatch):
    """A YAML file in the folder that commands run in, beside images for QUICK trainings; what they made is measured at
    once.
    """
    monkeypatch.setitem(DEVICES, "cpu", FakeDevice)
    write_shades(Path("shades"))
    Path("tiny.yaml").write_text(tiny_arch().to_yaml())
    return "tiny.yaml"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A training that was shipped on a device that knows its latencies."""
    training = finished(tmp_path_factory.mktemp("original") / "training")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEVICES, "files", FileDevice)
        ship(training, training / "shipped", conditions=FILES, images=100, calibration_images=20)
    return training


@pytest.fixture
def shipped(call, original):
    """A copy of it in the folder that commands run in."""
    return shutil.copytree(original, Path("training")) / "shipped"


def test_the_help_names_every_recipe(call):
    shown = " ".join(call("train", "--help").out.split())
    assert all(name in shown for name in RECIPES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "m0"], ["--data"]),
        (["train", "m0", "--data", "nowhere"], ["nowhere", "no such data"]),
        (["train", "m9", "--data", "digits"], ["'m9'", "m0, m1"]),
        (["train", "m0", "--data", "digits", "--recipe", "papr"], ["Did you mean 'paper'"]),
        (["train", "m0", "--data", "digits", "--set", "epochs"], ["FIELD=VALUE"]),
        (["train", "m0", "--data", "digits", "--set", "epochs=[1"], ["not a YAML value"]),
        (["train", "m0", "--data", "digits", "--set", "epoch=1"], ["Did you mean 'epochs'"]),
        (["train", "m0", "--data", "digits", "--baseline", "m7"], ["no baseline is called 'm7'"]),
        (["train", "m0", "--data", "digits", "--baseline", "nearest"], ["needs a member of a run's front"]),
        (["train", "m0", "--data", "digits", "--image-size", "70"], ["image_size", "70"]),
        (["train", "m0", "--data", "digits", "--set", "optimiser=adanwx"], ["no optimiser 'adanwx'", "'adanw'"]),
        (["train", "m0", "--data", "digits", "--set", "auto_augment=foo"], ["auto_augment 'foo'", "rand-m9"]),
        (["train", "m0", "--data", "digits", "--track", "tensorbord"], ["Did you mean 'tensorboard'"]),
        (["train", "m0", "--data", "digits", "--track", "dvclive"], ["not installed", "pip install dvclive"]),
        (["train", "m0", "--data", "digits", "--set", "batch_size=4096"], ["only 1621", "--set batch_size=404"]),
        (["ship", "nowhere"], ["nowhere", "no finished training"]),
        (["verify", "nowhere"], ["nowhere"]),
        (["eval", "nowhere", "--data", "digits"], ["nowhere"]),
    ],
)
def test_wrong_use_says_the_rule_and_exits_with_2(call, arguments, words):
    result = call(*arguments)
    assert result.code == 2
    assert all(word in " ".join(result.err.split()) for word in words), result.err
    assert "Traceback" not in result.err
    assert not result.out


def test_a_training_leaves_a_folder_and_prints_its_accuracy(call, tiny, monkeypatch):
    monkeypatch.setitem(DEVICES, "cpu", CPU)  # once in earnest
    result = call("train", tiny, *QUICK, "--no-ship", "--format", "json")
    assert result.code == 0, result.err
    (row,) = json.loads(result.out)
    trained = Trained.load(Path("runs/train/tiny-shades-tiny-s0"))
    assert (row["name"], row["top1"]) == ("tiny", trained.top1)
    assert row["latency_ms"] > 0
    assert trained.command.startswith("evit-nas train tiny.yaml --data shades")
    assert trained.data == str(Path("shades").absolute())  # to be found from other folders


def test_images_are_looked_through_once_for_all_that_a_training_does_with_them(call, tiny, walks):
    """ImageNet is 1.28 million files, which a network drive takes minutes to list."""
    result = call("train", tiny, *QUICK, "--seeds", "2", "--no-ship")
    assert result.code == 0, result.err
    assert walks == ["shades"]


def test_resume_goes_on_and_a_changed_setting_is_refused(call, tiny):
    assert call("train", tiny, *QUICK, "--no-ship").code == 0
    assert "epoch 1/1" not in call("train", tiny, *QUICK, "--no-ship").err  # it is finished
    folder = Path("runs/train/tiny-shades-tiny-s0")
    shutil.move(folder / "model.safetensors", folder / "best.safetensors")
    unfinished = call("train", tiny, *QUICK, "--no-ship")
    assert (unfinished.code, "--resume" in unfinished.err) == (2, True)
    assert call("train", tiny, *QUICK, "--no-ship", "--resume").code == 0
    other = call("train", tiny, *QUICK, "--set", "flip=1", "--no-ship", "--resume")
    assert (other.code, "another recipe" in other.err) == (2, True)


def test_seeds_and_a_baseline_are_compared(call, tiny, monkeypatch):
    from evit_nas.training import folder as folders
    from evit_nas.training import network

    asked = []

    def recorded(folder, view, hardware):
        settings = folders.read_record(folder).settings
        asked.append((settings.name, settings.seed))
        top1 = {"tiny": 90.0, "m0": 80.0}[settings.name] + settings.seed
        base = Trained.load(finished(Path(f"base-{len(asked)}")))
        return base.model_copy(update={"name": settings.name, "seed": settings.seed, "top1": top1})

    monkeypatch.setattr(network, "train", recorded)
    result = call("train", tiny, *QUICK, "--no-ship", "--seeds", "2", "--baseline", "m0", "--format", "json")
    assert sorted(asked) == [("m0", 0), ("m0", 1), ("tiny", 0), ("tiny", 1)]
    own, baseline = json.loads(result.out)
    assert (own["top1"], own["gain"], own["gain_error"]) == (90.5, 10.0, pytest.approx(0.5**0.5))
    assert (own["baseline"], baseline["baseline"], baseline["gain"]) == ("m0", None, None)
    assert own["top1_sd"] == pytest.approx(0.5**0.5)
    shown = call("train", tiny, *QUICK, "--no-ship", "--seeds", "2")
    assert "90.50 ± 0.50" in shown.out  # of the mean of both, as the gain's
    assert "top-1: ± its standard error on so many images, and of its mean over seeds" in shown.err


@pytest.fixture
def asked(call, tiny, monkeypatch):
    """The folders that are trained, in their order; the first one fails."""
    from evit_nas.training import network

    found = []

    def recorded(folder, view, hardware):
        assert (folder / "train.yaml").is_file()
        found.append(folder.name)
        if len(found) == 1:
            raise RuntimeError("no kernel for this")
        return Trained.load(finished(Path(f"base-{len(found)}")))

    monkeypatch.setattr(network, "train", recorded)
    Path("other.yaml").write_text(tiny_arch().to_yaml())
    return found


def test_trainings_that_are_told_apart_by_more_than_their_names_are_shown_so(call, tiny):
    for recipe in ("tiny", "short"):
        name = ("--recipe", recipe, "--set", "batch_size=18")
        assert call("train", tiny, *QUICK, *name, "--no-ship").code == 0
    alike = call("train", "runs/train/tiny-shades-tiny-s0", "--no-ship").out
    several = call("train", *(f"runs/train/tiny-shades-{name}-s0" for name in ("tiny", "short")), "--no-ship").out
    assert "recipe" not in alike
    assert [line.split()[:2] for line in several.splitlines()[-3:-1]] == [["tiny", "tiny"], ["tiny", "short"]]


def test_an_error_that_nobody_expected_does_not_cost_the_others(call, asked):
    result = call("train", "tiny.yaml", "other.yaml", *QUICK, "--no-ship")
    assert (result.code, len(asked)) == (1, 2)
    assert "tiny-shades-tiny-s0: unexpected RuntimeError: no kernel for this" in result.err
    assert "--resume does the rest" in result.err


def test_one_of_several_processes_does_not_go_on_alone(call, asked, monkeypatch):

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("evit_nas.training.session.meet", lambda: None)
    assert call("train", "tiny.yaml", "other.yaml", *QUICK, "--no-ship").code == 1
    assert len(asked) == 1


def test_a_network_that_cannot_be_shipped_does_not_cost_the_others_on_several_processes_either(
    call, asked, monkeypatch
):
    from evit_nas.training import session

    asked.append("")  # so that no training fails
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("evit_nas.training.session.meet", lambda: None)
    monkeypatch.setattr(session, "_shipped", lambda *args: 1 / 0)
    result = call("train", "tiny.yaml", "other.yaml", *QUICK)
    assert (result.code, len(asked)) == (1, 3)
    assert result.err.count("unexpected ZeroDivisionError") == 2


def test_the_other_processes_wait_for_the_folders_that_the_first_one_makes(call, asked, monkeypatch):
    from evit_nas.training import folder, session

    def first_is_here():
        for name in ("tiny", "other"):
            shutil.copytree("made", f"runs/train/{name}-shades-tiny-s0")

    assert call("train", "tiny.yaml", *QUICK, "--no-ship").code == 1
    shutil.move("runs/train/tiny-shades-tiny-s0", "made")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(session, "meet", first_is_here)
    monkeypatch.setattr(folder, "create", None)
    assert call("train", "tiny.yaml", "other.yaml", *QUICK, "--no-ship").code == 0
    assert asked[1:] == ["tiny-shades-tiny-s0", "other-shades-tiny-s0"]


def test_an_interruption_says_how_to_go_on(call, tiny, monkeypatch):
    from evit_nas.training import network

    def interrupted(folder, view, hardware):
        raise Interrupted

    monkeypatch.setattr(network, "train", interrupted)
    result = call("train", tiny, *QUICK, "--no-ship")
    assert (result.code, "before anything was saved" in result.err, "checkpoint" in result.err) == (130, True, False)
    Path("runs/train/tiny-shades-tiny-s0/checkpoint.pt").touch()
    result = call("train", tiny, *QUICK, "--no-ship", "--resume")
    assert result.code == 130
    assert result.err.endswith(f"with: {shlex.join(['evit-nas', 'train', tiny, *QUICK, '--no-ship'])} --resume\n")


def test_advice_on_a_training_that_could_not_begin_can_be_followed(call, tiny):
    refused = call("train", tiny, *QUICK, "--set", "batch_size=512", "--no-ship")
    assert (refused.code, "--set batch_size=18" in refused.err) == (2, True)
    assert call("train", tiny, *QUICK, "--set", "batch_size=18", "--no-ship").code == 0


@pytest.mark.parametrize(
    "options", [["--data", "other"], ["--resume", "--set", "epochs=400"], ["--image-size", "96", "--seed", "0"]]
)
def test_a_training_that_was_begun_takes_no_other_settings(call, asked, options):
    call("train", "tiny.yaml", *QUICK, "--no-ship")
    result = call("train", "runs/train/tiny-shades-tiny-s0", "--no-ship", *options)
    assert result.code == 2
    assert all(option in result.err for option in options if option.startswith("--") and option != "--resume")
    assert "as its train.yaml says" in result.err
    assert len(asked) == 1


def test_a_training_that_was_begun_goes_on_without_a_word_about_its_settings(call, asked):
    call("train", "tiny.yaml", *QUICK, "--no-ship")
    assert call("train", "runs/train/tiny-shades-tiny-s0", "--resume", "--no-ship", "--workers", "0").code == 0


def test_a_run_is_trained_only_if_its_front_is_meant(call):
    Path("run").mkdir()
    Path("run/run.yaml").write_text("{}")
    result = call("train", "run", "--data", "digits")
    assert (result.code, "--top 1" in result.err) == (2, True)


def test_what_is_shipped_verifies_and_what_is_damaged_does_not(call, monkeypatch, original):
    monkeypatch.setitem(DEVICES, "files", FileDevice)
    few = ("--images", "20", "--calibration", "5")
    result = call("ship", str(original), "--out", "shipped", "--device", "files", *few)
    assert (result.code, "written: shipped" in result.err) == (0, True)
    shipped = Path("shipped")
    assert call("verify", str(shipped)).code == 0
    (shipped / "model.onnx").write_bytes((shipped / "model.onnx").read_bytes()[:-1] + b"x")
    result = call("verify", str(shipped))
    assert result.code == 1
    assert "model.onnx" in result.out
    assert "not as it was shipped" in result.err


def test_eval_puts_all_forms_side_by_side(call, shipped):
    rows = json.loads(call("eval", str(shipped), "--data", "digits", "--workers", "0", "--format", "json").out)
    assert [row["form"] for row in rows] == ["torch", "onnx", "int8"]
    assert rows[0]["top1"] == rows[1]["top1"]


def test_eval_fits_80_columns(call, shipped):
    out = call("eval", str(shipped), "--data", "digits", "--workers", "0", "--per-class").out
    assert max(map(len, out.splitlines())) <= 80
    assert "taken for" in out


@pytest.mark.parametrize("columns", ["80", ""])
def test_eval_breaks_no_name(columns, call, shipped, monkeypatch):
    digits, names = load_digits(), [f"great white shark of the southern seas {digit}" for digit in range(10)]
    record = json.loads(Path("training/trained.json").read_text()) | {"classes": names, "name": "evit 4.31ms of mine"}
    Path("training/trained.json").write_text(json.dumps(record))
    for name, pixels in zip(names, digits.images, strict=False):  # the first ten are 0 to 9
        for copy in range(2):
            Path("seas", name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.rot90(pixels * 15).astype(np.uint8)).save(Path("seas", name, f"{copy}.png"))
    monkeypatch.setenv("COLUMNS", columns) if columns else monkeypatch.delenv("COLUMNS")
    result = call("eval", "training", "--data", "seas", "--workers", "0")
    assert "seas has no split of its own: all of its 20 images are taken" in result.err
    whole = re.findall(r"great white shark of the southern seas \d", result.out)
    assert len(whole) == result.out.count("great") > 0
    assert result.out.count("evit 4.31ms of mine") == result.out.count("evit") == 2


def test_a_training_folder_is_an_architecture_with_its_weights(call, shipped):
    result = call("export", "training", "--to", "onnx")
    assert (result.code, "weights of training/model.safetensors" in result.err) == (0, True)
    assert Path("training.onnx").is_file()


def test_a_training_that_fails_does_not_cost_the_others(call, tiny):
    Path("other.yaml").write_text(tiny_arch().to_yaml())
    wild = ("--set", "learning_rate=1e30", "--set", "clip=null")
    assert call("train", tiny, *QUICK, "--no-ship").code == 0
    result = call("train", "runs/train/tiny-shades-tiny-s0", "other.yaml", *QUICK, *wild, "--no-ship", "--resume")
    assert result.code == 1
    assert "the loss is nan in epoch 1" in result.err
    assert "tiny" in result.out


@pytest.mark.slow
def test_digits_from_a_yaml_file_to_a_network_in_timm(call, tiny, monkeypatch):
    monkeypatch.setitem(DEVICES, "cpu", FileDevice)  # tests/test_ship.py measures in earnest
    Path(tiny).write_text(tiny_arch().model_copy(update={"stem_ratio": 0.5}).to_yaml())
    result = call("train", tiny, "--data", "digits", "--recipe", "tiny", "--set", "epochs=5", "--workers", "0")
    assert result.code == 0, result.err
    folder = Path("runs/train/tiny-digits-tiny-s0")
    assert Trained.load(folder).top1 > 95
    assert call("verify", str(folder / "shipped"), "--data", "digits").code == 0
    images = torch.randn(2, 3, 64, 64)
    loaded = timm.create_model(f"local-dir:{folder / 'shipped'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.allclose(loaded(images), open_saved(str(folder)).model(images), atol=1e-5)
