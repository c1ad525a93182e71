"""Searches from Python: the words and defaults of the command line, and results as tables."""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import evit_nas
from evit_nas import __version__
from evit_nas.accuracy import zero_cost
from evit_nas.accuracy.table import shipped_tables
from evit_nas.api import Result
from evit_nas.cli import app
from evit_nas.config import Limits
from evit_nas.errors import Infeasible, RunError, UsageError
from evit_nas.latency import DEVICES
from evit_nas.latency.machine import usable_cores
from evit_nas.regime import IMAGENET, Regime
from evit_nas.runs import Run
from evit_nas.searching.record import load_aggregate
from evit_nas.words import Words, elsewhere, load_settings, settings_from
from evit_nas.yamlio import to_yaml
from tests.fakes import FakeDevice, fake_proxies

SEARCH = {"device": "fake", "budget": "1.2ms", "space": "efficientvit-tiny", "trials": 12, "pool": 5, "workers": 0}


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    monkeypatch.setitem(DEVICES, "fake", FakeDevice)
    monkeypatch.setattr(zero_cost, "score_all", fake_proxies)


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(DEVICES, "fake", FakeDevice)
        patch.setattr(zero_cost, "score_all", fake_proxies)
        return evit_nas.search(**SEARCH, out=tmp_path_factory.mktemp("runs") / "run")


def options():
    """The options of `evit-nas search` by name, as click knows them."""
    return {option.name: option for option in get_command(app).commands["search"].params}


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import evit_nas", ("torch", "optuna", "pydantic", "numpy", "pandas")),
        ("from evit_nas import ArchConfig, SearchSpace, search", ("torch", "optuna", "pandas")),
    ],
)
def test_importing_the_package_imports_nothing_heavy(statement, heavy):
    code = f"import sys; {statement}\nprint([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_everything_that_the_package_offers_is_there():
    assert all(callable(getattr(evit_nas, name)) for name in evit_nas.__all__)
    assert set(evit_nas.__all__) <= set(dir(evit_nas))
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = evit_nas.serach


def test_the_words_are_the_options_of_the_command_line():
    only_on_the_command_line = {"out", "dry_run"}
    assert (options().keys() - only_on_the_command_line) | {"config"} == Words.__annotations__.keys()


def test_the_defaults_are_those_of_the_command_line():
    """Whatever the command line would take by itself, given as a word, changes nothing."""
    default = settings_from(budget="5ms")
    shown = {name: option.default for name, option in options().items() if name in Words.__annotations__}
    shown = {name: value for name, value in shown.items() if value not in (None, (), [])}
    assert shown.keys() >= {"space", "trials", "pool", "seed", "sampler", "front_size", "labels", "batch"}
    assert settings_from(**{**shown, "budget": "5ms"}) == default
    assert default.targets[0].device == "cpu"
    assert default.workers == usable_cores() - 1


def test_words_become_settings():
    plain = {"sampler": "gp", "workers": 3, "trials": 99, "front_size": 5, "pool": 9, "seed": 7}
    settings = settings_from(
        device=["cpu:2", "fake"],
        budget="cpu:2=3ms,fake=0.02s",
        budget_stat="p90",
        max_params="10M",
        max_memory="64MB",
        image_size=96,
        batch=4,
        time="10m",
        accuracy="predictor",
        data="digits",
        labels_from=[Path("runs/a")],
        **plain,
    )
    assert [(t.device, t.conditions.threads, t.conditions.batch, t.budget_ms) for t in settings.targets] == [
        ("cpu:2", 2, 4, 3.0),
        ("fake", 1, 4, 20.0),
    ]
    assert (settings.budget_stat, settings.time_s) == ("p90", 600.0)
    assert settings.model_dump(include=set(plain)) == plain
    assert settings.limits == Limits(params=10_000_000, memory_mb=64.0)
    assert settings_from(budget="5ms", max_params=10_000_000).limits == Limits(params=10_000_000)
    assert settings.space.image_size == 96
    assert settings.accuracy.method == "predictor"
    assert settings.accuracy.labels_from == ("runs/a",)


@pytest.mark.parametrize(
    ("words", "regime"),
    [
        ({}, IMAGENET),
        ({"images": "5k", "classes": 10}, Regime(images=5000, classes=10)),
        ({"images": 5000, "classes": 10}, Regime(images=5000, classes=10)),
        ({"classes": 20}, Regime(images=20_000, classes=20)),
        ({"images": "2M"}, Regime(images=2_000_000, classes=1000)),
        ({"data": "digits"}, Regime(images=1621, classes=10)),  # a tenth of 1,797 is held out
        ({"data": "digits", "images": "5k", "classes": 10}, Regime(images=5000, classes=10)),
        ({"table": "fashion-mnist-64"}, None),
        ({"images": "5k", "classes": 10, "image_size": 112}, Regime(images=5000, classes=10)),
        ({"data": "digits", "image_size": 64}, Regime(images=1621, classes=10)),
    ],
)
def test_the_score_is_for_the_images_that_the_words_name(words, regime):
    settings = settings_from(budget="5ms", **words)
    assert settings.accuracy.method == "table"
    assert settings.accuracy.regime == regime


def test_the_regime_of_a_run_holds_where_no_word_says_otherwise(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(settings_from(budget="5ms", images="5k", classes=10)), encoding="utf-8")
    assert settings_from(config=path, seed=1).accuracy.regime == Regime(images=5000, classes=10)
    assert settings_from(config=path, classes=5).accuracy.regime == Regime(images=5000, classes=5)


@pytest.mark.parametrize("words", [{"accuracy": "zero-cost"}, {"table": "fashion-mnist-64"}])
def test_a_score_that_has_images_of_its_own_keeps_no_regime_of_the_settings_before(tmp_path, words):
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(settings_from(budget="5ms", images="5k", classes=10)), encoding="utf-8")
    assert settings_from(config=path, **words).accuracy.regime is None


def test_short_names_are_recorded_in_full(tmp_path):
    settings = settings_from(device=["gpu", "int8"], budget="gpu=2ms,int8=9ms", space="tiny")
    assert settings.space_name == "efficientvit-tiny"
    assert [(target.device, target.budget_ms) for target in settings.targets] == [("cuda", 2), ("cpu-int8", 9)]
    (tmp_path / "mine.yaml").write_text(to_yaml(settings))
    assert settings_from(config=tmp_path / "mine.yaml", device="gpu").targets == settings.targets[:1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"budget": "5ms", "images": 500}, "got 500 images of 1,000 classes"),
        ({"budget": "5ms", "images": "many"}, "--images must be a positive number"),
        ({"budget": "5ms", "images": "5k", "accuracy": "zero-cost"}, "what --accuracy table scores for"),
        ({"budget": "5ms", "images": "5k", "table": "fashion-mnist-64"}, "where no --table is named"),
        ({"budget": "5ms", "data": "nowhere"}, "nowhere: no such data"),
        ({"budget": "5ms", "trails": 3}, "no option 'trails'. Did you mean 'trials'"),
        ({}, "--budget 5ms"),
        ({"budget": "5"}, "'5'"),
        ({"budget": 5}, "got '5'; try 5ms"),
        ({"budget": "5ms", "time": 600}, "got '600'; try 10m"),
        ({"budget": "5ms", "labels": 60}, "--labels is for --accuracy predictor, and this search has table"),
        ({"budget": "5ms", "labels_from": ["runs/a"]}, "--labels-from is for --accuracy predictor"),
        ({"budget": "5ms", "scheduler": "asha"}, "--scheduler is for --accuracy short"),
        ({"budget": "5ms", "table": "fashion-mnist-64", "accuracy": "zero-cost"}, "--table is for --accuracy table"),
        ({"budget": "5ms", "supernet": "x", "table": "fashion-mnist-64"}, "--supernet is for --accuracy supernet"),
        ({"budget": "5ms", "concurrent": 8}, "--concurrent is for a cluster"),
        ({"budget": "5ms", "trials": 0}, "trials"),
        ({"budget": "5ms", "trials": "many"}, "trials: input should be a valid integer"),
        ({"budget": "5ms", "device": "gpu9"}, "'gpu9'"),
        ({"budget": "5ms", "sampler": "tpee"}, "'tpee'"),
        ({"budget": "5ms", "space": "nowhere"}, "'nowhere'"),
        ({"budget": "5ms", "accuracy": "predictor"}, "needs data"),
        ({"budget": "5ms", "accuracy": "guess"}, "accuracy.method"),
    ],
)
def test_a_wrong_word_is_named_with_the_way_out(words, message):
    with pytest.raises(UsageError) as error:
        settings_from(**words)
    assert message in str(error.value)


def test_what_a_run_needs_is_found_from_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "run"):
        Path(folder).mkdir()
    Path("mine.json").write_bytes(shipped_tables()["fashion-mnist-64"].read_bytes())
    accuracy = settings_from(budget="5ms", accuracy="predictor", data="photos", labels_from="run").accuracy
    assert (accuracy.data, accuracy.labels_from) == (str(tmp_path / "photos"), (str(tmp_path / "run"),))
    assert settings_from(budget="5ms", table="mine.json").accuracy.table == str(tmp_path / "mine.json")
    assert settings_from(budget="5ms", table="fashion-mnist-64").accuracy.table == "fashion-mnist-64"


def test_a_cluster_is_refused_by_a_run_that_goes_on_without(result):
    run = Run.open(result.path)
    with pytest.raises(UsageError, match="--address is for a cluster"):
        elsewhere(run, address="auto")
    elsewhere(run, engine="ray", address="auto")
    assert run.settings.cluster.address == "auto"


def test_settings_kept_in_a_file_hold_where_no_word_says_otherwise(tmp_path):
    before = settings_from(
        device=["cpu:2", "fake"], budget="cpu:2=3ms,fake=9ms", max_params="3M", batch=4, time="10m", seed=3
    )
    path = tmp_path / "mine.yaml"
    path.write_text(to_yaml(before))
    assert load_settings(path) == settings_from(config=path) == before
    changed = settings_from(config=path, seed=4, max_macs="99M", batch=2)
    assert changed.model_dump(exclude={"seed", "limits", "targets"}) == before.model_dump(
        exclude={"seed", "limits", "targets"}
    )
    assert changed.limits == Limits(params=3_000_000, macs=99_000_000)
    assert [(t.device, t.conditions.batch, t.budget_ms) for t in changed.targets] == [("cpu:2", 2, 3), ("fake", 2, 9)]
    assert settings_from(config=path, space="efficientvit-tiny").space_name == "efficientvit-tiny"
    assert settings_from(config=path, device="fake").targets[0].budget_ms == 9
    with pytest.raises(UsageError, match=r"no latency budget for the device 'fake:2'; add --budget"):
        settings_from(config=path, device="fake:2")


def test_the_settings_of_a_run_make_another_one_with_another_seed(result):
    again = settings_from(config=result.path, seed=5)
    assert again == result.run.settings.model_copy(update={"seed": 5})


def test_a_search_ends_in_tables(result):
    assert list(result.front.index) == [member.name for member in result.found.members]
    assert result.front["latency_ms"].is_monotonic_increasing
    assert (result.front["latency_ms"] <= 1.2).all()
    assert len(result.trials) == result.trials["key"].nunique() == 12
    assert {"score", "latency_ms", "measured", "within_limits", "stage1.width"} <= set(result.trials.columns)
    assert set(result.front["key"]) <= set(result.trials["key"][result.trials["within_limits"]])
    assert result.state == "done"
    assert result.best.score == pytest.approx(result.front["score"].max(), abs=1e-5)
    assert result.knee.name in result.front.index
    assert result.run.record["command"].startswith("evit_nas.search(device='fake', budget='1.2ms'")


def test_a_result_is_opened_again_and_resumed_to_the_same(result):
    from evit_nas.api import resume

    assert Result(str(result.path)).front.equals(result.front)
    assert resume(result.path).front.equals(result.front)


def test_a_run_without_trials_is_an_empty_result(result, tmp_path):
    Run.create(tmp_path / "new", result.run.settings, {}, "")
    new = Result(tmp_path / "new")
    assert new.front.empty
    assert new.trials.empty
    assert new.state == "interrupted"
    with pytest.raises(UsageError, match="has not scored its pool yet"):
        load_aggregate(new.run)
    assert {path.name for path in new.path.iterdir()} == {".lock", "run.yaml"}  # reading makes no study
    with pytest.raises(Infeasible):
        _ = new.best


def test_a_run_is_named_after_what_it_searches(monkeypatch, tmp_path):
    from evit_nas.api import new_run

    monkeypatch.chdir(tmp_path)
    settings = settings_from(device=["fake", "fake:3"], budget="fake=9ms,fake:3=3ms", space="efficientvit-tiny")
    for name in ("efficientvit-tiny-fake-9ms-fake-3-3ms", "efficientvit-tiny-fake-9ms-fake-3-3ms-2"):
        with new_run(settings, None, "") as run:
            assert run.path == Path("runs") / name
    with pytest.raises(RunError, match=r"choose another folder with --out. Continue it with: evit-nas resume"):
        new_run(settings, run.path, "").__enter__()


def test_a_record_of_another_version_is_said_so(result, tmp_path):
    old = shutil.copytree(result.path, tmp_path / "old")
    with sqlite3.connect(old / "study.db") as database:
        database.execute("update trial_user_attributes set key = 'score' where key = 'estimate'")
    (old / "run.yaml").write_text((old / "run.yaml").read_text().replace(f"evit_nas: {__version__}", "evit_nas: 0.2.0"))
    with pytest.raises(RunError, match=r"not as evit-nas .* writes it.*Read it with that version"):
        _ = Result(old).found


def test_asha_has_three_rungs_of_thrice_the_training():
    settings = settings_from(budget="5ms", accuracy="short", scheduler="asha", data="digits")
    recipe = settings.accuracy.recipe
    assert [recipe.end_of(rung) for rung in range(3)] == [1, 3, 9]


def test_words_of_a_cluster_are_settings():
    settings = settings_from(budget="5ms", engine="ray", address="auto", concurrent=8, together=8)
    assert (settings.engine, settings.together) == ("ray", 8)
    assert (settings.cluster.address, settings.cluster.concurrent) == ("auto", 8)
