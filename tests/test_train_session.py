"""What a command that trains finds out and says first, how long it takes, and what it does with the result."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from evit_nas.config import Conditions
from evit_nas.errors import EvitNasError, UsageError
from evit_nas.latency import DEVICES
from evit_nas.network import saved
from evit_nas.shipping.package import ship
from evit_nas.trained import Trained
from evit_nas.training import loop, pace, session
from evit_nas.training.batches import plain_batches
from evit_nas.training.folder import read_record
from evit_nas.training.hardware import ALONE, Hardware
from evit_nas.training.network import NetworkRun
from evit_nas.training.plan import Chosen
from evit_nas.training.recipe import RECIPES, load_recipe
from evit_nas.training.session import Asked, Outcome, carry_out, prepare
from evit_nas.training.status import Pace
from tests.fakes import latency_of
from tests.networks import tiny_arch
from tests.test_train import Watch
from tests.test_train import settings as settings_of
from tests.trainings import FILES, FileDevice, finished, write_shades


@pytest.fixture
def shades(tmp_path, monkeypatch):
    """A folder of photographs, and a network, in the folder that trainings run in."""
    monkeypatch.chdir(tmp_path)
    write_shades(Path("shades"))
    Path("tiny.yaml").write_text(tiny_arch().to_yaml())
    return "shades"


@pytest.fixture
def paced(monkeypatch):
    """Ten steps of a second in each epoch, whatever is trained; the list is changed by tests."""
    found = [Pace(steps=10, step_s=1.0, validation_s=2.0)]
    monkeypatch.setattr(pace, "pace_of", lambda *asked: found[0])
    return found


def prepared(shades, **changes):
    said = []
    return prepare(Asked(**{"what": ["tiny.yaml"], "data": shades} | changes), ALONE, said.append), said


def recipe_of(planned):
    return planned.plans[0][1].recipe


# --- what it says first ---


def test_images_recipe_steps_and_time_are_said_before_anything_is_written(shades, paced):
    _, said = prepared(shades, changes={"epochs": 30})
    assert said[0].startswith("shades: 72 training and 18 validation images; 3 classes")
    assert "72 images are few to learn from scratch" in said[1]
    assert "--init" in said[1]
    assert said[2].startswith(
        "recipe auto: about 6,000 steps from scratch, in batches of 16 for 72 images; images of 40 px"
    )
    assert said[3] == ("tiny: recipe auto, 30 epochs of 10 steps of 16 images, 300 steps; 64 px; about 6m00s here")
    assert not Path("runs").exists()


def test_the_time_of_several_is_added_up(shades, paced):
    planned, said = prepared(shades, seeds=(0, 1, 2), changes={"epochs": 10})
    assert planned.seconds == 3 * 10 * 12
    assert said[-1] == "3 trainings, about 6m00s in all"


def test_the_pace_comes_from_real_steps(shades):
    planned, _ = prepared(shades, changes={"epochs": 2})
    found = pace.pace_of(NetworkRun, planned.plans[0][1], ALONE)
    assert found.steps == 72 // 16
    assert found.step_s > 0
    assert found.validation_s > 0
    assert found.epoch_s == found.steps * found.step_s + found.validation_s


def test_memory_that_runs_out_as_it_is_timed_says_the_way_out(shades, monkeypatch):
    def full(self, *_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(loop.TrainingRun, "_mixed", full)
    with pytest.raises(EvitNasError, match="--set accumulate=2"):
        prepared(shades)


def test_of_several_networks_one_that_cannot_be_timed_does_not_cost_the_others(shades, monkeypatch):
    def pace_of(kind, settings, *_):
        raise EvitNasError("memory ran out")

    monkeypatch.setattr(pace, "pace_of", pace_of)
    planned, _ = prepared(shades, seeds=(0, 1))
    assert len(planned.plans) == 2


@pytest.mark.parametrize(("workers", "batches"), [(0, 2), (3, 6)])
def test_a_validation_is_timed_with_all_that_load_images_at_work(shades, monkeypatch, workers, batches):
    """A single batch is loaded by one of them, while the others do nothing."""
    passed_s = []  # one for each batch that is answered

    class Timed(NetworkRun):
        def __init__(self, *given):
            super().__init__(*given)
            self._validation = plain_batches(self._source.val, self._settings.preprocessing, range(18), batch=2)

        def _validated(self, networks, batches, unreadable):
            assert list(networks) == ["raw", "average"]  # both answer
            passed_s.extend(0.5 for _ in batches)

    monkeypatch.setattr(loop, "VALIDATION_BATCH", 2)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: sum(passed_s)))
    planned, _ = prepared(shades, changes={"epochs": 2})
    passed_s.clear()
    found = pace.pace_of(Timed, planned.plans[0][1], Hardware(workers))
    assert len(passed_s) == batches
    assert found.validation_s == 0.5 * 9


def test_with_trained_weights_nobody_is_told_to_begin_with_trained_weights(shades, paced):
    finished(Path("known"))
    assert not any("few to learn" in line for line in prepared(shades, init="known")[1])


# --- recipes ---


def test_the_recipe_is_auto_unless_another_is_named(shades, paced):
    assert prepared(shades)[0].plans[0][1].recipe_name == "auto"
    assert recipe_of(prepared(shades, recipe="short")[0]) == load_recipe("short", {})


def test_finetune_says_what_it_lacks(shades, paced):
    with pytest.raises(UsageError, match=r"goes on from trained weights: add --init MODEL .* or take --recipe auto"):
        prepared(shades, recipe="finetune")
    finished(Path("known"))
    assert recipe_of(prepared(shades, recipe="finetune", init="known", changes={"batch_size": 16})[0]).epochs == 30


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("epochs", [1, 2, 7])
def test_the_warm_up_shrinks_with_the_epochs(name, epochs):
    assert load_recipe(name, {"epochs": epochs}).warmup_epochs == pytest.approx(epochs / 10)
    assert load_recipe(name, {"epochs": 1000}).warmup_epochs == load_recipe(name, {}).warmup_epochs
    assert load_recipe(name, {"epochs": 10, "warmup_epochs": 4}).warmup_epochs == 4


@pytest.mark.parametrize("batch", [16, 64])
def test_the_learning_rate_that_is_asked_for_is_the_one_that_is_reached(shades, paced, batch):
    planned, _ = prepared(shades, rate=0.002, changes={"batch_size": batch})
    assert recipe_of(planned).peak_rate == pytest.approx(0.002)


# --- time ---


@pytest.mark.parametrize(("seeds", "epochs"), [((0,), 10), ((0, 1), 5), (range(10), 1)])
def test_the_time_is_shared_out_in_epochs(shades, paced, seeds, epochs):
    planned, _ = prepared(shades, seeds=seeds, time_s=125.0)
    assert {settings.recipe.epochs for _, settings in planned.plans} == {epochs}
    assert recipe_of(planned).warmup_epochs == pytest.approx(epochs / 10)


def test_more_time_than_the_recipe_needs_is_not_used(shades, paced):
    assert recipe_of(prepared(shades, time_s=1e6)[0]) == recipe_of(prepared(shades)[0])


def test_no_time_for_one_epoch_is_refused_with_ways_out(shades, paced):
    with pytest.raises(UsageError, match=r"tiny: one epoch takes about 12s here, and --time leaves 6s .* --image-size"):
        prepared(shades, seeds=(0, 1), time_s=12.0)


def test_a_training_that_was_begun_keeps_its_epochs_on_a_slower_day(shades, paced):
    planned, _ = prepared(shades, time_s=60.0)
    folder = planned.plans[0][0]
    session.begin(planned.plans, "evit-nas train", resume=False)
    (folder / "checkpoint.pt").touch()
    paced[0] = Pace(steps=10, step_s=5.0, validation_s=0.0)
    again, _ = prepared(shades, time_s=60.0)
    assert recipe_of(again).epochs == read_record(folder).settings.recipe.epochs == 5
    assert again.seconds == 0


def test_after_an_interruption_the_seeds_to_come_have_as_many_epochs_as_those_before(shades, paced):
    planned, _ = prepared(shades, seeds=(0, 1), time_s=125.0)
    session.begin(planned.plans, "evit-nas train", resume=False)
    (planned.plans[0][0] / "checkpoint.pt").touch()
    paced[0] = Pace(steps=10, step_s=0.1, validation_s=0.2)  # a quicker day
    again, _ = prepared(shades, seeds=(0, 1), time_s=125.0)
    assert [settings.recipe.epochs for _, settings in again.plans] == [5, 5]


def test_networks_that_come_later_have_the_share_of_the_time_that_those_before_had(shades, paced):
    planned, _ = prepared(shades, time_s=125.0)
    session.begin(planned.plans, "evit-nas train", resume=False)
    (planned.plans[0][0] / "checkpoint.pt").touch()
    again, _ = prepared(shades, seeds=(0, 1), time_s=125.0)
    assert [settings.recipe.epochs for _, settings in again.plans] == [10, 5]


def test_as_long_as_nothing_was_trained_other_time_gives_other_epochs(shades, paced):
    planned, _ = prepared(shades, time_s=60.0)
    session.begin(planned.plans, "evit-nas train", resume=False)
    assert recipe_of(prepared(shades, time_s=120.0)[0]).epochs == 10


def test_several_processes_have_epochs_and_no_time(shades, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"--time is for one process; say --epochs"):
        prepared(shades, time_s=60.0)


# --- names ---


def test_a_member_is_named_by_what_it_is_as_it_is_trained():
    found = tiny_arch()
    member = Chosen("evit-1.98ms-0.6M", found, Path("runs/mine"))
    smaller = found.model_copy(update={"image_size": 96})
    assert member.trained_name(found) == "evit-1.98ms-0.6M"
    assert member.trained_name(smaller) == "evit-0.2M-96px"
    assert member.origin == "runs/mine/evit-1.98ms-0.6M"
    assert Chosen("m0", found).trained_name(smaller) == "m0"


# --- networks that are worth nothing ---


def test_what_learned_nothing_is_not_shipped_unasked(shades, paced, monkeypatch):
    from evit_nas.training import network

    def in_vain(folder, watch, hardware):
        return Trained.load(finished(Path("vain"), no_good="top-1 33.0 % is no better"))

    monkeypatch.setattr(network, "train", in_vain)
    planned, watch = prepared(shades)[0], Watch()
    outcome = carry_out(planned, watch, ALONE, command="evit-nas train tiny.yaml", again="")
    assert len(outcome.trained) == 1
    assert not outcome.shipped
    assert outcome.best() is None
    assert outcome.doubts() == {"top-1 33.0 % is no better": ["tiny"]}
    assert "--anyway" in watch.notes[-1]
    assert outcome.next_command().startswith(
        f"evit-nas train runs/train/tiny-shades-auto-s0/arch.yaml --data {Path('shades').absolute()} --epochs"
    )


def test_shipping_it_has_to_be_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(DEVICES, "files", FileDevice)
    training = finished(tmp_path / "vain", no_good="top-1 33.0 % is no better")
    with pytest.raises(EvitNasError, match=r"no better; to ship it all the same add --anyway") as refused:
        ship(training, tmp_path / "out", conditions=FILES, images=20, calibration_images=5)
    assert refused.value.exit_code == 1
    assert not (tmp_path / "out").exists()
    ship(training, tmp_path / "out", conditions=FILES, images=20, calibration_images=5, anyway=True)
    assert (tmp_path / "out" / "model.onnx").is_file()


def test_the_next_command_fits_what_came_of_it(shades):
    settings = prepared(shades, changes={"epochs": 1})[0].plans[0][1]
    trained = Trained.load(finished(Path("fine")))
    outcome = Outcome(trained={settings: trained}, folders={settings: Path("fine")})
    assert outcome.next_command() == "evit-nas ship fine"
    outcome.shipped[settings] = object()
    assert outcome.next_command() == "evit-nas predict fine/shipped IMAGE"


# --- interruptions ---


@pytest.mark.slow
def test_ctrl_c_in_mid_epoch_ends_what_loads_images_without_a_traceback(shades, tmp_path):
    command = [sys.executable, "-m", "evit_nas", "train", "tiny.yaml", "--data", shades, "--recipe", "tiny"]
    command += ["--epochs", "1000", "--workers", "2", "--no-ship"]
    said = tmp_path / "said"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with said.open("w") as file, subprocess.Popen(command, stderr=file, env=environment) as training:
        while "epoch 2/" not in said.read_text():
            assert training.poll() is None, said.read_text()
            time.sleep(0.1)
        training.send_signal(signal.SIGINT)
        assert training.wait(60) == 130
    assert said.read_text().endswith("--no-ship --resume\n")
    assert "Traceback" not in said.read_text()


# --- weights that timm may fetch ---


def test_weights_are_fetched_at_the_users_word_alone(monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *what: asked.append(what))
    said = []
    for text in ("scratch", "m0.pth", "timm:efficientvit_m1@file", "timm:no_such", "timm:efficientvit_m1"):
        saved.fetch(text, said.append)
    assert asked == [("timm/efficientvit_m1.r224_in1k", "model.safetensors")]
    assert len(said) == 1


@pytest.mark.parametrize("download", [False, True])
def test_a_training_fetches_first_weights_and_teacher_if_it_is_told_to(shades, paced, monkeypatch, download):
    fetched = []
    monkeypatch.setattr(saved, "fetch", lambda text, note: fetched.append(text))
    with pytest.raises(UsageError, match="first weights"):
        prepared(shades, init="first weights", teacher="a teacher", download=download)
    assert fetched == (["first weights", "a teacher"] if download else [])


def test_weights_that_cannot_be_fetched_are_one_sentence(monkeypatch):
    def offline(*what):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", offline)
    with pytest.raises(UsageError, match=r"timm:efficientvit_m1: its weights cannot be fetched: no route to host"):
        saved.fetch("timm:efficientvit_m1", print)


# --- several networks, several processes ---


@pytest.mark.parametrize(
    ("processes", "order"),
    [(1, ["train a", "ship a", "train b", "ship b"]), (2, ["train a", "train b", "ship a", "ship b"])],
)
def test_other_processes_do_not_wait_while_the_first_one_ships(monkeypatch, processes, order):
    done = []
    monkeypatch.setattr(session, "several", lambda: processes > 1)
    monkeypatch.setattr(session, "meet", lambda: None)
    monkeypatch.setattr(session, "begin", lambda *_: None)
    monkeypatch.setattr("evit_nas.training.network.train", lambda folder, *_: done.append(f"train {folder}"))
    monkeypatch.setattr(session, "_shipped", lambda folder, *_: done.append(f"ship {folder}"))
    planned = SimpleNamespace(plans=[(Path("a"), "settings of a"), (Path("b"), "settings of b")])
    carry_out(planned, Watch(), ALONE, command="", again="")
    assert done == order


class Threads(FileDevice):
    """Takes 3 ms for whatever it is given, with whatever protocol."""

    def measure(self, subject, protocol):
        return latency_of(3.0, conditions=self.conditions), {}


@pytest.mark.parametrize(("conditions", "ms"), [(Conditions(), 7.0), (Conditions(threads=2), 3.0), (FILES, 3.0)])
def test_milliseconds_in_the_table_are_of_one_thread_of_this_processor(tmp_path, monkeypatch, conditions, ms):
    """What was shipped for another device is measured now."""
    monkeypatch.setitem(DEVICES, "cpu", Threads)
    settings = settings_of(tmp_path)
    shipped = SimpleNamespace(fp32=SimpleNamespace(latency=latency_of(7.0, conditions=conditions)))
    outcome = Outcome(trained={settings: None}, shipped={settings: shipped})
    assert outcome.latencies_ms() == {settings.arch: ms}
