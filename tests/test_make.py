"""From a folder of photographs to a model that answers: every step, its command, and going on after an interruption."""

import logging
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.main import get_command

import evit_nas
from evit_nas import making
from evit_nas.api import Result
from evit_nas.cli import app
from evit_nas.errors import EvitNasError, Infeasible, Interrupted
from evit_nas.latency import DEVICES
from evit_nas.searching import evaluate
from evit_nas.searching.study import Search
from evit_nas.shipped import Shipped
from evit_nas.shipping import answer, package
from evit_nas.training import network, pace
from evit_nas.training.recipe import RECIPES
from evit_nas.training.status import Pace
from evit_nas.words import settings_from
from tests.fakes import FakeDevice
from tests.trainings import SHADES, FileDevice, finished, write_shades

MAKE = ("make", "shades", "--budget", "1.2ms", "--device", "fake", "--space", "efficientvit-tiny", "--time", "100s")
OUT = Path("runs/shades-fake-1.2ms")


class AnyDevice(FakeDevice):
    """Measures what a search proposes and what is shipped."""

    def measure(self, subject, protocol):
        return (FileDevice if isinstance(subject, Path) else FakeDevice).measure(self, subject, protocol)

    ms = FileDevice.ms


@pytest.fixture
def photographs(call, monkeypatch):
    """Shades to make a model of; a search has a dozen networks, and an epoch is said to take ten seconds."""
    write_shades(Path("shades"))
    monkeypatch.setattr(making, "SEARCH_S", (600.0, 600.0))  # a machine's speed must not choose the front
    monkeypatch.setattr(making, "settings_from", partial(settings_from, trials=12))
    monkeypatch.setattr(evaluate, "worker_pool", lambda count, avoid: ThreadPoolExecutor(count))
    monkeypatch.setattr(evaluate, "end", lambda pool: pool.shutdown(cancel_futures=True))
    monkeypatch.setitem(DEVICES, "fake", AnyDevice)
    monkeypatch.setattr(pace, "pace_of", lambda *asked: Pace(steps=4, step_s=2.0, validation_s=2.0))


@pytest.fixture
def learned(monkeypatch):
    """Trainings that cost nothing: of three shades, known by a network that was trained before; counts them."""
    trained = []

    def known(folder, watch, hardware):
        from evit_nas.network.model import build
        from evit_nas.trained import Trained
        from evit_nas.training.checkpoint import save_weights
        from evit_nas.training.folder import read_record

        settings = read_record(folder).settings
        trained.append(folder)
        if not (folder / "model.safetensors").exists():
            save_weights(folder / "model.safetensors", build(settings.arch, 0).state_dict(), {})
            before = Trained.load(finished(folder / "known"))
            shutil.rmtree(folder / "known")
            fields = {"name": settings.name, "arch": settings.arch, "data": settings.data, "data_name": "shades"}
            fields |= {"classes": SHADES, "preprocessing": settings.preprocessing, "origin": settings.origin}
            before.model_copy(update=fields | {"validation_images": 18}).save(folder)
        return Trained.load(folder)

    monkeypatch.setattr(network, "train", known)
    return trained


def steps(err):
    """The commands that were printed as steps."""
    return [shlex.split(line.removeprefix("$ ")) for line in err.splitlines() if line.startswith("$ ")]


def test_every_step_is_a_command_that_does_it_alone(call, photographs, learned):
    result = call(*MAKE)
    assert result.code == 0, result.err
    assert result.err.startswith("shades: 72 training and 18 validation images; 3 classes")
    commands = steps(result.err)
    assert [words[:2] for words in commands] == [["evit-nas", verb] for verb in ("search", "train", "ship", "predict")]
    for words in commands:
        get_command(app).commands[words[1]].make_context("evit-nas", words[2:])
    search, train, ship, predict = (words[2:] for words in commands)
    assert search[search.index("--image-size") + 1] == "64"
    assert search[search.index("--out") + 1] == str(OUT / "search")
    assert train[0].startswith(str(OUT / "search" / "evit-"))
    assert ship[0].startswith(str(OUT / "train"))
    assert ship[1:3] == ["--device", "fake"]  # what the budget is for
    assert predict == [str(OUT / "shipped"), *(f"shades/val/{name}/0.png" for name in SHADES)]
    assert Shipped.load(OUT / "shipped").trained.classes == SHADES
    assert Result(OUT / "search").state == "done"
    assert (OUT / "search" / "report.html").is_file()
    assert f"next:    evit-nas predict {OUT / 'shipped'} IMAGE" in result.err
    assert " on fake, " in next(line for line in result.err.splitlines() if line.startswith("made:"))
    assert all(name in result.out for name in SHADES)


def test_the_photographs_are_looked_through_once(call, photographs, learned, walks):
    assert call(*MAKE).code == 0
    assert walks == ["shades"]


def test_what_is_there_is_not_made_again(call, photographs, learned, monkeypatch):
    assert call(*MAKE).code == 0
    for module, name in ((Search, "run"), (package, "ship")):
        monkeypatch.setattr(module, name, None)
    again = call(*MAKE)
    assert again.code == 0, again.err
    assert len(steps(again.err)) == 4


def test_the_same_command_goes_on_after_each_interruption(call, photographs, learned, monkeypatch):
    def interrupted(*args, **words):
        raise Interrupted

    for place, name in (
        *((Search, "run"), (making, "prepare"), (network, "train"), (package, "ship"), (answer, "answers")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, interrupted)
            result = call(*MAKE)
        assert (name, result.code) == (name, 130)
        kept = "interrupted; what is finished and the last checkpoint are kept. Go on with: "
        assert result.err.endswith(f"{kept}{shlex.join(['evit-nas', *MAKE])}\n")
    assert call(*MAKE).code == 0
    assert len(set(learned)) == 1
    assert Shipped.load(OUT / "shipped").trained.classes == SHADES


def test_a_first_picture_that_leads_nowhere_is_not_asked_for_an_answer(call, photographs, learned):
    first = min(Path("shades/val/dark").iterdir())
    first.unlink()
    first.symlink_to("nowhere")
    result = call(*MAKE)
    assert (result.code, str(first) in result.err) == (0, False)


def test_a_search_that_has_found_nothing_is_gone_on_with(call, photographs, learned, monkeypatch):
    assert call(*MAKE).code == 0

    def nothing(search):
        raise Infeasible("nothing keeps the budget")

    monkeypatch.setattr(Result, "found", SimpleNamespace(members=[], whole=False, ended=True))
    monkeypatch.setattr(Search, "run", nothing)
    result = call(*MAKE)
    assert (result.code, "nothing keeps the budget" in result.err) == (1, True)
    assert "unexpected" not in result.err


def test_a_training_that_comes_later_and_is_better_is_shipped_beside_the_other(call, photographs, learned, monkeypatch):
    monkeypatch.setattr(pace, "pace_of", lambda *asked: Pace(steps=4, step_s=0.01, validation_s=0.01))
    known = network.train

    def all_but_one(folder, watch, hardware):
        if len(learned) == 1:
            learned.append(folder)
            raise RuntimeError("the machine was too small")
        return known(folder, watch, hardware)

    with monkeypatch.context() as patch:
        patch.setattr(network, "train", all_but_one)
        first = call(*MAKE)
    assert first.code == 0, first.err
    assert "not everything could be trained" in first.err
    late = learned[1]

    def best_at_last(folder, watch, hardware):
        found = known(folder, watch, hardware)
        if folder == late:
            found = found.model_copy(update={"top1": 99.0})
            found.save(folder)
        return found

    monkeypatch.setattr(network, "train", best_at_last)
    second = call(*MAKE)
    assert second.code == 0, second.err
    assert f"made:    {OUT / 'shipped-2'}: " in second.err
    assert f"next:    evit-nas predict {OUT / 'shipped-2'} IMAGE" in second.err
    assert Shipped.load(OUT / "shipped-2").trained.top1 == 99.0
    assert len(steps(call(*MAKE).err)) == 4
    assert not (OUT / "shipped-3").exists()


def test_where_nothing_can_be_trained_no_time_is_asked_for(call, photographs, monkeypatch):
    def broken(folder, watch, hardware):
        raise EvitNasError("no image can be read")

    monkeypatch.setattr(pace, "pace_of", lambda *asked: Pace(steps=4, step_s=0.01, validation_s=0.01))
    monkeypatch.setattr(network, "train", broken)
    result = call(*MAKE)
    assert (result.code, "nothing could be trained" in result.err) == (1, True)
    assert "Give more time" not in result.err


def test_first_weights_that_there_are_not_are_refused_before_the_search(call, photographs):
    result = call(*MAKE, "--init", "m1.phx")
    assert (result.code, "m1.phx: no such network" in result.err) == (2, True)
    assert not OUT.exists()


def test_it_goes_on_from_another_folder(call, photographs, learned, monkeypatch, tmp_path):
    data, out = str(Path("shades").absolute()), str(OUT.absolute())
    words = [MAKE[0], data, *MAKE[2:], "--out"]
    with monkeypatch.context() as patch:
        patch.setattr(network, "train", lambda *args: (_ for _ in ()).throw(Interrupted))
        assert call(*words, str(OUT)).code == 130
    (tmp_path / "elsewhere").mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = call(*words, out)
    assert result.code == 0, result.err


def test_other_words_do_not_take_the_folder(call, photographs, learned):
    assert call(*MAKE, "--out", "here").code == 0
    other = list(MAKE)
    other[other.index("1.2ms")] = "1.1ms"
    result = call(*other, "--out", "here")
    assert result.code == 2
    said = " ".join(result.err.split())
    assert "here was made with another budget or device" in said
    assert "Choose another --out" in said


@pytest.mark.parametrize(("whole_s", "networks"), [(100.0, 1), (30.0, 2), (1.0, 3)])
def test_as_many_are_trained_as_there_is_time_to_train_whole(
    call, photographs, learned, monkeypatch, whole_s, networks
):
    """80 s of 100 are for trainings, of 100 epochs each."""
    recipe = RECIPES["tiny"] | {"epochs": 100}
    monkeypatch.setattr("evit_nas.training.auto.auto_fields", lambda seen, from_weights: recipe)
    monkeypatch.setattr(pace, "pace_of", lambda *asked: Pace(4, whole_s / 400, 0.0))
    result = call(*MAKE)
    assert result.code == 0, result.err
    assert len(set(learned)) == networks
    best = max(Result(OUT / "search").found.members, key=lambda member: member.score)
    assert any(best.name in folder.name for folder in learned)


def test_what_could_be_trained_for_a_small_part_of_its_steps_is_not(call, photographs, learned, monkeypatch):
    recipe = RECIPES["tiny"] | {"epochs": 100}
    monkeypatch.setattr("evit_nas.training.auto.auto_fields", lambda seen, from_weights: recipe)
    monkeypatch.setattr(pace, "pace_of", lambda *asked: Pace(4, 0.5, 0.0))  # 200 s for the best
    result = call(*MAKE)
    members = Result(OUT / "search").found.members
    best = max(members, key=lambda member: member.score)
    fits = [member for member in members if 0.5 * 200 * member.latency.median_ms / best.latency.median_ms <= 80]
    (folder,) = set(learned)
    assert max(fits, key=lambda member: member.score).name in folder.name
    assert f"{best.name} has the best score, but its training would take about 3m20s" in " ".join(result.err.split())


def test_nothing_is_shipped_that_is_worth_nothing(call, photographs, learned, monkeypatch):
    known = network.train

    def in_vain(folder, watch, hardware):
        return known(folder, watch, hardware).model_copy(update={"no_good": "it guesses"})

    monkeypatch.setattr(network, "train", in_vain)
    result = call(*MAKE)
    assert result.code == 1
    assert "nothing is shipped: it guesses. Give more time" in result.err
    assert not (OUT / "shipped").exists()


def test_data_that_are_wrong_leave_nothing(call):
    result = call("make", "nowhere", "--budget", "1ms")
    assert (result.code, "no such data" in result.err, Path("runs").exists()) == (2, True, False)


def test_several_processes_are_refused_before_anything_begins(call, photographs, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = call(*MAKE)
    assert (result.code, "make is one process" in result.err, Path("runs").exists()) == (2, True, False)


def test_python_says_how_to_go_on_after_ctrl_c(call, photographs, learned, monkeypatch, caplog):
    def interrupted(*args, **words):
        raise KeyboardInterrupt

    monkeypatch.setattr(Search, "run", interrupted)
    with caplog.at_level(logging.INFO, "evit_nas"), pytest.raises(KeyboardInterrupt):
        evit_nas.make("shades", "1.2ms", device="fake", space="efficientvit-tiny", time="100s")
    assert caplog.messages[-1].endswith(
        "Go on with: evit_nas.make('shades', '1.2ms', time='100s', device='fake', space='efficientvit-tiny')"
    )


def test_python_makes_the_same(call, photographs, learned, capsys):
    model = evit_nas.make("shades", "1.2ms", device="fake", space="efficientvit-tiny", time="100s")
    assert model.folder == OUT / "shipped"
    assert repr(model).startswith(f"{OUT / 'shipped'}: top-1 ")
    answers = model.predict("shades/val/dark", top=2)
    assert len(answers) == 6
    assert list(answers.frame.columns) == ["image", "rank", "class", "probability", "ms"]
    assert "shades/val/dark/0.png" in repr(answers)
    assert model.shipped == evit_nas.Model.load(model.folder).shipped


@pytest.mark.slow
def test_shades_are_learned_in_earnest(call, monkeypatch):
    write_shades(Path("shades"))
    monkeypatch.setitem(DEVICES, "fake", AnyDevice)
    monkeypatch.setattr(making, "SEARCH_S", (2.0, 2.0))
    result = call(*MAKE[:-1], "40s")
    assert result.code == 0, result.err
    assert Shipped.load(OUT / "shipped").top1 > 90
