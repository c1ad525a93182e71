"""Of a search that is refused, or interrupted before it has evaluated anything, nothing is left."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest
from PIL import Image

import evit_nas
from evit_nas.accuracy import zero_cost
from evit_nas.api import leaves_nothing, new_run
from evit_nas.errors import EvitNasError, Infeasible, RunError
from evit_nas.latency.runtimes import Runtime
from evit_nas.runs import Run
from evit_nas.space import SearchSpace
from evit_nas.words import settings_from
from tests.fakes import FakeDevice, fake_proxies

WORDS = {"device": "fake", "budget": "1.2ms", "space": "efficientvit-tiny", "trials": "8", "pool": "5", "workers": "0"}
NAME = "efficientvit-tiny-fake-1.2ms"


def search(call, **changes):
    words = {name.replace("_", "-"): value for name, value in (WORDS | changes).items()}
    return call("search", *(part for name, value in words.items() for part in (f"--{name}", value)))


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def odd(tmp_path):
    """Data and a space that do not fit, under short names."""
    for name in ("train/cat", "train/dog", "val/cat", "val/cow"):
        folder = tmp_path / "split" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "1.png")
    for name in ("cat", "dog"):
        (tmp_path / "texts" / name).mkdir(parents=True)
        (tmp_path / "texts" / name / "1.txt").write_text("a cat")
        (tmp_path / "colours" / name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (8, 8), (200, 10, number)).save(tmp_path / "colours" / name / f"{number}.png")
    grey = SearchSpace.load("efficientvit-tiny").model_copy(update={"in_channels": 1})
    (tmp_path / "grey.yaml").write_text(grey.model_dump_json())
    return tmp_path


SHORT = {"accuracy": "short"}
REFUSED = [
    (SHORT | {"data": "nowhere"}, "nowhere: no such data"),
    (SHORT | {"data": "texts"}, "a class must have pictures"),
    (SHORT | {"data": "split"}, "must have the same classes"),
    (SHORT | {"data": "colours", "space": "grey.yaml"}, "the images have 3 channels, but the networks take 1"),
    ({"accuracy": "predictor", "data": "digits", "labels-from": "nowhere"}, "nowhere has no trained networks"),
    ({"table": "nowhere.json"}, "cannot read the table nowhere.json"),
    ({"device": "cuda"}, "device 'cuda' cannot run here: there is none"),
    ({"device": "openvino"}, "device 'openvino' cannot run here: there is none"),
    ({"device": "cpu:99"}, "'cpu:99'"),
    ({"device": "remote:127.0.0.1:1"}, "127.0.0.1"),
    ({"max_params": "1k"}, "nothing keeps --max-params"),
    ({"max_macs": "1k"}, "nothing keeps --max-macs"),
    ({"storage": "nosuch://host/db"}, "give another --storage"),
]
MEASURED = [
    ({"budget": "0.001ms"}, "nothing keeps the budget of 0.001 ms"),
    ({"max_energy": "1mJ"}, "energy cannot be had on 'fake'"),
]


@pytest.fixture(autouse=True)
def _absent(monkeypatch):
    missing = Runtime.missing
    without = ("cuda", "openvino")
    monkeypatch.setattr(
        Runtime, "missing", lambda runtime, name: "there is none" if name in without else missing(runtime, name)
    )


@pytest.mark.parametrize(("changes", "words"), [*REFUSED, *MEASURED])
def test_no_folder_is_left_and_the_next_search_has_the_name(call, odd, changes, words):
    before = tree(odd)
    refused = search(call, **changes)
    assert refused.code in (1, 2)
    assert words in refused.err
    assert "evit-nas resume" not in refused.err
    assert "run folder" not in refused.err
    assert tree(odd) == before


@pytest.mark.parametrize(("changes", "words"), REFUSED)
def test_what_needs_no_measurement_is_refused_before_any(call, odd, changes, words):
    search(call, **changes)
    assert FakeDevice.calls == []


@pytest.mark.parametrize(("changes", "words"), [REFUSED[0], MEASURED[0]])
def test_from_python_as_well(odd, fakes, monkeypatch, changes, words):
    monkeypatch.chdir(odd)
    before = tree(odd)
    with pytest.raises(EvitNasError, match=words):
        evit_nas.search(**(WORDS | {"trials": 8, "pool": 5, "workers": 0} | changes))
    assert tree(odd) == before


LONG_WORK = {
    "pool": ("proxies", "bench", "--slices", "1ms", "--space", "efficientvit-tiny", "--out", "new/pool"),
    "study": ("proportion", "m0", "--out", "new/study"),
    "training": ("train", "m0", "--out", "new/trainings"),
}


@pytest.mark.parametrize("work", LONG_WORK)
@pytest.mark.parametrize("data", ["nowhere", "texts", "split"])
def test_other_long_work_leaves_no_folder_either_where_its_data_are_refused(call, odd, work, data):
    before = tree(odd)
    assert call(*LONG_WORK[work], "--data", data).code == 2
    assert tree(odd) == before


@pytest.mark.parametrize("work", ["pool", "study"])
def test_nor_where_there_is_no_such_device(call, odd, work):
    before = tree(odd)
    assert call(*LONG_WORK[work], "--data", "digits", "--device", "cuda").code == 2
    assert tree(odd) == before


def test_wrong_data_is_refused_by_a_dry_run_too(call, odd):
    assert "nowhere: no such data" in search(call, **SHORT, data="nowhere", budget="1.2ms").err
    refused = call(
        "search", "--device", "fake", "--budget", "1ms", "--accuracy", "short", "--data", "texts", "--dry-run"
    )
    assert (refused.code, FakeDevice.calls) == (2, [])


def test_channels_are_refused_before_a_picture_is_decoded(call, odd, monkeypatch):
    monkeypatch.setattr("evit_nas.data.cache.to_square", lambda *_: pytest.fail("decoded"))
    assert "3 channels" in search(call, **SHORT, data="colours", space="grey.yaml").err


def test_the_next_search_is_not_the_second(call, tmp_path):
    assert search(call, budget="0.001ms").code == 1
    assert search(call).code == 0
    assert os.listdir(tmp_path / "runs") == [NAME]


def test_a_folder_that_was_there_is_there_afterwards_with_what_was_in_it(call, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine" / "notes").mkdir(parents=True)
    (tmp_path / "mine" / "notes" / "1.txt").write_text("mine")
    before = tree(tmp_path)
    for out in ("empty", "mine", "new/folder"):
        assert search(call, out=out, budget="0.001ms").code == 1
    assert tree(tmp_path) == before


def interrupt(*_, **__):
    os.kill(os.getpid(), signal.SIGINT)


def test_interrupted_while_the_extremes_of_the_space_are_measured_it_leaves_nothing(call, tmp_path, monkeypatch):
    monkeypatch.setattr(FakeDevice, "measure", interrupt)
    ended = search(call)
    assert (ended.code, "evit-nas resume" in ended.err, tree(tmp_path)) == (130, False, set())
    assert "interrupted before anything was evaluated" in ended.err


def test_interrupted_before_the_first_network_is_scored_it_leaves_nothing(call, tmp_path, monkeypatch):
    monkeypatch.setattr(zero_cost, "score_all", interrupt)
    ended = search(call)
    assert (ended.code, "evit-nas resume" in ended.err, tree(tmp_path)) == (130, False, set())


def test_interrupted_before_the_first_trial_of_an_immediate_score_it_leaves_nothing(call, tmp_path, monkeypatch):
    monkeypatch.setattr("evit_nas.searching.study.Trials", interrupt)
    ended = search(call, space="efficientvit-224", budget="500ms")
    assert (ended.code, tree(tmp_path)) == (130, set())


def test_one_score_is_something_to_go_on_with(call, monkeypatch):
    scored = []

    def score(arch, *, seed=0, names=None):
        if scored:
            interrupt()
        scored.append(arch)
        return fake_proxies(arch)

    with monkeypatch.context() as patch:
        patch.setattr(zero_cost, "score_all", score)
        ended = search(call)
    assert (ended.code, f"evit-nas resume runs/{NAME}" in ended.err) == (130, True)
    again = []
    monkeypatch.setattr(zero_cost, "score_all", lambda arch, **_: again.append(arch) or fake_proxies(arch))
    assert call("resume", f"runs/{NAME}").code == 0
    assert scored[0] not in again


@pytest.mark.parametrize("file", ["labels/labels.jsonl", "labels/checkpoints/a.pt", "ray/checkpoints/a.pt"])
def test_a_training_is_something_to_go_on_with(tmp_path, fakes, file):
    def search():
        with new_run(settings_from(**_settings()), tmp_path / "run", "") as run:
            assert leaves_nothing(run)
            (run.path / file).parent.mkdir(parents=True)
            (run.path / file).touch()
            assert not leaves_nothing(run)
            raise Infeasible("only three networks could be trained")

    with pytest.raises(Infeasible):
        search()
    assert (tmp_path / "run" / file).exists()


def test_a_run_that_was_there_stays_however_it_ends(tmp_path, fakes):
    with new_run(settings_from(**_settings()), tmp_path / "run", ""):
        pass
    with Run.open(tmp_path / "run").lock() as run:
        assert not leaves_nothing(run)


def test_what_the_system_has_against_the_folder_leaves_it_to_be_resumed(tmp_path, fakes):
    """Its message names the command."""

    def search():
        with new_run(settings_from(**_settings()), tmp_path / "run", "") as run:
            raise OSError(errno.ENOSPC, "No space left on device", str(run.path / "study.db"))

    with pytest.raises(RunError, match="evit-nas resume"):
        search()
    assert (tmp_path / "run" / "run.yaml").exists()


def test_a_folder_that_somebody_else_took_is_not_touched(tmp_path, fakes, monkeypatch):
    """Between the look whether it is free and the lock."""
    settings = settings_from(**_settings())
    with new_run(settings, tmp_path / "run", "first") as first, monkeypatch.context() as patch:
        patch.setattr(Path, "exists", lambda path: False)
        with pytest.raises(RunError, match="is being written by"):
            new_run(settings, first.path, "second").__enter__()
        assert first.path.is_dir()


def test_an_empty_study_does_not_stay_in_a_database_of_many(call, tmp_path):
    import optuna

    assert search(call, budget="0.001ms", storage=f"sqlite:///{tmp_path / 'many.db'}").code == 1
    assert optuna.get_all_study_names(f"sqlite:///{tmp_path / 'many.db'}") == []


def _settings():
    return WORDS | {"trials": 8, "pool": 5, "workers": 0}


def test_what_is_found_at_the_end_stays(call, tmp_path):
    """That nothing keeps a score is known only then."""
    assert search(call, min_score="1000000").code == 1
    assert json.loads(call("runs", "--format", "json").out)[0]["done"] == 8
