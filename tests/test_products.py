"""Training, evaluation, shipping and answers from Python: words, tables, and messages in the names of arguments."""

import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import evit_nas
from evit_nas.calls import Listing
from evit_nas.commands import in_python
from evit_nas.errors import EvitNasError, RunError, UsageError
from evit_nas.latency import DEVICES
from evit_nas.training import network, pace
from evit_nas.training.folder import read_record
from evit_nas.training.hardware import Hardware
from evit_nas.training.status import Pace
from tests.fakes import FakeDevice
from tests.networks import tiny_arch
from tests.trainings import FILES, FileDevice, finished, write_shades


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The folder that everything runs in, with photographs and a network; trainings take no time to plan."""
    monkeypatch.chdir(tmp_path)
    write_shades(Path("shades"))
    Path("tiny.yaml").write_text(tiny_arch().to_yaml())
    monkeypatch.setattr(pace, "pace_of", lambda *asked: Pace(steps=4, step_s=1.0, validation_s=1.0))
    monkeypatch.setitem(DEVICES, "cpu", FileDevice)


# --- messages ---


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("add --budget 5ms.", "add budget='5ms'."),
        ("add --data PATH, for example a folder", "add data=PATH, for example a folder"),
        ("choose another --out.", "choose another out."),
        ("goes on: --resume --workers 0", "goes on: resume=True workers=0"),
        ("for a cluster: add --engine ray.", "for a cluster: add engine='ray'."),
        (
            "--accuracy table scores for it; --accuracy zero-cost does not",
            "accuracy='table' scores for it; accuracy='zero-cost' does not",
        ),
        (
            "(--set learning_rate=3.3e-05) or (--set clip_mode=norm --set clip=1)",
            "(changes={'learning_rate': 3.3e-05}) or (changes={'clip_mode': 'norm', 'clip': 1})",
        ),
        ("take fp32: --set precision=fp32, or bf16.", "take fp32: changes={'precision': 'fp32'}, or bf16."),
        ("--set changes the recipe", "set changes the recipe"),
        ("ship it with --anyway.", "ship it with anyway=True."),
        ("a smaller --image-size", "a smaller image_size"),
        (
            "Continue it with: evit-nas resume 'a run' --workers 3",
            "Continue it with: evit-nas resume 'a run' --workers 3",
        ),
        ("run evit-nas eval x --data y. Or give --data", "run evit-nas eval x --data y. Or give data"),
        ("a well-known name -- as it is", "a well-known name -- as it is"),
        ("photos--final/a.jpg: choose another --out", "photos--final/a.jpg: choose another out"),
    ],
)
def test_options_are_said_as_arguments_and_commands_as_they_are(message, said):
    assert in_python(message) == said


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: evit_nas.train("m0"), "add data=PATH"),
        (lambda: evit_nas.train("m0", data="digits", recipe="finetune"), "add init=MODEL"),
        (lambda: evit_nas.search(device="cpu"), "add budget='5ms'"),
        (lambda: evit_nas.evaluate("nowhere", data="digits"), "nowhere: no such network"),
        (lambda: evit_nas.evaluate("nowhere", data="digits", split="test"), "split must be 'val' or 'train'"),
        (lambda: evit_nas.ship("nowhere"), "holds no finished training"),
        (lambda: evit_nas.predict("nowhere", "a.png"), "a.png"),
        (lambda: evit_nas.make("nowhere", "5ms"), "nowhere: no such data"),
        (lambda: evit_nas.make("shades", "5ms", time="soon"), "time must be a positive length of time"),
        (lambda: evit_nas.train("m0", data="digits", seeds=0), "seeds must be at least 1, got 0"),
        (lambda: evit_nas.train("m0", data="digits", top=-1), "top must be at least 1, got -1"),
        (lambda: evit_nas.train("m0", data="digits", workers=-1), "workers must be at least 0, got -1"),
        (lambda: evit_nas.evaluate("m0", data="digits", batch=0), "batch must be at least 1, got 0"),
        (lambda: evit_nas.predict("nowhere", "a.png", top=0), "top must be at least 1, got 0"),
        (lambda: evit_nas.export("m0", batch=-1), "batch must be at least 0, got -1"),
    ],
)
def test_what_is_wrong_names_the_argument(here, act, words):
    with pytest.raises(UsageError) as error:
        act()
    assert words in str(error.value)
    assert " --" not in str(error.value).partition("evit-nas")[0]


# --- trainings ---


def test_training_returns_what_was_trained_and_prints_as_a_table(here, monkeypatch, caplog):
    trained = []

    def known(folder, watch, hardware):
        from evit_nas.trained import Trained

        settings = read_record(folder).settings
        trained.append(settings)
        before = Trained.load(finished(Path(f"known-{len(trained)}")))
        return before.model_copy(update={"name": settings.name, "seed": settings.seed, "top1": 90.0 + settings.seed})

    monkeypatch.setattr(network, "train", known)
    monkeypatch.setitem(DEVICES, "cpu", FakeDevice)
    with caplog.at_level(logging.INFO, "evit_nas"):
        found = evit_nas.train(
            "tiny.yaml", data="shades", time="100s", seeds=2, lr=0.01, changes={"flip": 0.1}, ship=False
        )
    assert [one.top1 for one in found] == [90.0, 91.0]
    (row,) = found.frame.to_dict("records")
    assert (row["name"], row["seeds"], row["top1"]) == ("tiny", 2, 90.5)
    assert row["folders"] == ["runs/train/tiny-shades-auto-s0", "runs/train/tiny-shades-auto-s1"]
    assert "90.5" in repr(found)
    recipe = trained[0].recipe
    assert (recipe.flip, recipe.epochs, recipe.peak_rate) == (0.1, 10, pytest.approx(0.01))
    assert read_record(Path("runs/train/tiny-shades-auto-s0")).command.startswith(
        "evit_nas.train('tiny.yaml', data='shades', time='100s', lr=0.01, changes={'flip': 0.1}, seeds=2, ship=False)"
    )
    assert any("shades: 72 training" in message for message in caplog.messages)
    assert any("(init with a training" in message for message in caplog.messages)


def test_each_call_looks_through_the_images_once_and_sees_new_ones(here, walks, monkeypatch):
    """A notebook lives for days."""
    monkeypatch.setitem(DEVICES, "cpu", FakeDevice)
    quick = {"data": "shades", "recipe": "tiny", "epochs": 1, "workers": 0, "ship": False}
    (before,) = evit_nas.train("tiny.yaml", **quick)
    shutil.copy("shades/val/dark/0.png", "shades/val/dark/new.png")
    (after,) = evit_nas.train("tiny.yaml", **quick, out="again")
    assert after.validation_images == before.validation_images + 1
    assert walks == ["shades", "shades"]


def test_an_unfinished_training_wants_the_word_resume(here):
    Path("runs/train/tiny-shades-auto-s0").mkdir(parents=True)
    planned_once = {"data": "shades", "epochs": 1, "ship": False}
    from evit_nas.training.session import Asked, begin, prepare

    planned = prepare(Asked(what=["tiny.yaml"], data="shades", changes={"epochs": 1}), Hardware(), print)
    begin(planned.plans, "", resume=False)
    (planned.plans[0][0] / "checkpoint.pt").touch()
    with pytest.raises(RunError, match=r"Add resume=True to go on with it, or choose another out\."):
        evit_nas.train("tiny.yaml", **planned_once)


def test_ctrl_c_says_the_call_that_goes_on(here, monkeypatch, caplog):
    def interrupted(folder, watch, hardware):
        (folder / "checkpoint.pt").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(network, "train", interrupted)
    with caplog.at_level(logging.INFO, "evit_nas"), pytest.raises(KeyboardInterrupt):
        evit_nas.train("tiny.yaml", data="shades", epochs=1, ship=False)
    assert caplog.messages[-1] == (
        "interrupted; go on from the last checkpoint with: "
        "evit_nas.train('tiny.yaml', data='shades', epochs=1, ship=False, resume=True)"
    )
    assert "resume" not in read_record(Path("runs/train/tiny-shades-auto-s0")).command


def test_a_failure_among_several_is_raised_in_the_end(here, monkeypatch):
    def broken(folder, watch, hardware):
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(network, "train", broken)
    with pytest.raises(EvitNasError, match="resume=True does the rest"):
        evit_nas.train("tiny.yaml", data="shades", seeds=2, ship=False)


# --- evaluation, shipping, answers ---


def test_evaluation_prints_as_a_table(here):
    found = evit_nas.evaluate(finished(Path("known")), data="digits", workers=0)
    assert found[0].top1 == found.rows[0]["top1"] > 80
    assert "torch" in repr(found)
    assert max(map(len, repr(found).splitlines())) < 160  # no matrices, no lists of classes
    assert "<table" in found._repr_html_()


def test_a_model_is_shipped_and_opened_again(here):
    model = evit_nas.ship(finished(Path("known")), conditions=FILES.model_copy(update={"device": "cpu"}), images=20)
    assert model.folder == Path("known/shipped")
    assert evit_nas.Model.load("known/shipped") == model
    assert "± " in repr(model)


def test_pictures_that_cannot_be_read_are_warned_of(here):
    model = evit_nas.ship(finished(Path("known")), conditions=FILES.model_copy(update={"device": "cpu"}), images=20)
    Path("broken.png").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="1 of 2 pictures could not be read: broken.png"):
        found = model.predict("shades/val/dark/0.png", "broken.png")
    assert [answer.image for answer in found] == ["shades/val/dark/0.png"]


def test_a_listing_is_a_list():
    found = Listing([1, 2], [{"n": 1}, {"n": 2}])
    assert found == [1, 2]
    assert repr(found).split() == ["n", "1", "2"]


def test_a_script_without_a_guard_works(tmp_path):
    """Data loaders and label workers begin processes, none of which runs the script again."""
    write_shades(tmp_path / "shades")
    (tmp_path / "tiny.yaml").write_text(tiny_arch().to_yaml())
    script = tmp_path / "script.py"
    script.write_text(
        "print('begun')\n"
        "import evit_nas\n"
        "found = evit_nas.train('tiny.yaml', data='shades', recipe='tiny', epochs=1, workers=2, ship=False)\n"
        "print(len(found))\n"
    )
    result = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.stdout.splitlines() == ["begun", "1"], result.stderr
