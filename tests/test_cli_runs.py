"""Verbs about runs as a whole: listing, replaying, reporting, and settings that can be kept in a file."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from evit_nas import cli
from evit_nas.accuracy import zero_cost
from evit_nas.config import SearchSettings
from evit_nas.latency import DEVICES
from evit_nas.runs import Run
from tests.fakes import FakeDevice, fake_proxies

OPTIONS = ("--device", "fake", "--budget", "1.2ms", "--space", "efficientvit-tiny", "--trials", "12", "--pool", "5")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A folder of runs: one finished, one interrupted, one that cannot be read."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(DEVICES, "fake", FakeDevice)
        patch.setattr(zero_cost, "score_all", fake_proxies)
        patch.setattr(sys, "argv", ["evit-nas", "search", *OPTIONS, "--workers", "0", "--out", str(folder / "whole")])
        cli.main.__globals__["app"](sys.argv[1:], standalone_mode=False)
    Run.create(folder / "begun", Run.open(folder / "whole").settings, {}, "")
    (folder / "broken").mkdir()
    (folder / "broken" / "run.yaml").write_text("settings: [")
    (folder / "no run").mkdir()
    return folder


@pytest.fixture
def runs(searched, tmp_path):
    return Path(shutil.copytree(searched, tmp_path / "runs"))


def listed(call, *arguments):
    return {row["run"]: row for row in json.loads(call("runs", *arguments, "--format", "json").out)}


def test_runs_are_listed_with_their_state_and_what_cannot_be_read_says_why(call, runs):
    rows = listed(call)
    assert {name: row["state"] for name, row in rows.items()} == {
        "begun": "interrupted",
        "broken": "unreadable",
        "whole": "done",
    }
    assert (rows["whole"]["done"], rows["whole"]["total"], rows["begun"]["done"]) == (12, 12, 0)
    assert rows["whole"]["devices"] == ["fake"]
    assert rows["whole"]["budgets_ms"] == [1.2]
    assert rows["whole"]["begun"] == Run.open(runs / "whole").record["created"]
    front = json.loads(call("front", str(runs / "whole"), "--format", "json").out)
    assert rows["whole"]["best"] == pytest.approx(max(row["score"] for row in front), abs=1e-5)
    assert "run.yaml, line 1" in rows["broken"]["why"]
    assert "broken: " in call("runs").err


def test_the_search_of_what_was_made_is_listed_where_it_lies(call, runs):
    shutil.move(runs / "whole", runs / "photos" / "search")
    rows = listed(call)
    assert rows["photos/search"]["state"] == "done"
    assert "begun, broken, photos/search." in call("front", str(runs / "nowhere")).err


def test_a_run_that_is_being_written_says_by_whom(call, runs):
    with Run.open(runs / "begun").lock() as run:
        row = listed(call)["begun"]
        assert row["state"] == "running"
        assert run.owner() in row["why"]


def test_one_study_that_cannot_be_read_does_not_hide_the_other_runs(call, runs):
    (runs / "begun" / "study.db").write_text("junk" * 1000)
    rows = listed(call, str(runs))
    assert rows["begun"]["state"] == "unreadable"
    assert "not a database" in rows["begun"]["why"]
    assert rows["whole"]["state"] == "done"


def test_runs_are_a_table_of_80_columns_and_a_row_each_of_csv(call, runs):
    assert max(map(len, call("runs").out.splitlines())) <= 80
    assert len(list(csv.DictReader(call("runs", "--format", "csv").out.splitlines()))) == 3


def test_where_there_are_no_runs_the_way_to_one_is_named(call):
    result = call("runs")
    assert result.code == 2
    assert "evit-nas search" in result.err


def test_replay_compares_each_number_and_says_by_its_exit_code_whether_they_hold(call, runs, monkeypatch):
    held = call("replay", str(runs / "whole"), "3", "--format", "json")
    assert held.code == 0, held.err
    assert [(row["number"], row["holds"]) for row in json.loads(held.out)] == [("score", True), ("latency_ms", True)]
    monkeypatch.setattr(zero_cost, "score_all", lambda arch, **_: {k: 2 * v for k, v in fake_proxies(arch).items()})
    changed = call("replay", str(runs / "whole"), "3")
    assert changed.code == 1
    assert "does not come out as recorded" in changed.err
    assert max(map(len, changed.out.splitlines())) <= 80


def test_report_writes_a_page_and_on_demand_a_figure(call, runs):
    run = runs / "whole"
    result = call("report", str(run), "--plot", "front.svg")
    assert result.code == 0, result.err
    assert (run / "report.html").read_text().startswith("<!doctype html>")
    assert Path("front.svg").read_text().startswith("<?xml")
    assert str(run / "report.html") in result.err.replace("\n", "")


def test_config_prints_the_settings_of_a_run_as_yaml_that_is_read_back(call, runs):
    printed = call("config", str(runs / "whole"))
    assert printed.code == 0
    assert SearchSettings.model_validate(yaml.safe_load(printed.out)) == Run.open(runs / "whole").settings
    Path("mine.yaml").write_text(printed.out)
    assert call("config", "mine.yaml").out == printed.out


def test_config_prints_what_the_options_of_a_search_come_to(call, runs):
    printed = yaml.safe_load(call("config", *OPTIONS, "--max-params", "3M").out)
    assert printed["trials"] == 12
    assert printed["limits"]["params"] == 3_000_000
    assert printed["targets"][0] == {"conditions": printed["targets"][0]["conditions"], "budget_ms": 1.2}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["config", "nowhere.yaml"], ["nowhere.yaml", "no such file"]),
        (["config", "--budget", "5ms", "--trails", "3"], ["--trails"]),
        (["config", "--budget", "5"], ["--budget", "'5'"]),
        (["replay", "nowhere", "3"], ["not a run folder"]),
        (["replay", "runs/whole", "-1"], ["-1"]),
        (["replay", "runs/whole", "99"], ["no trial 99", "0 to"]),
        (["report", "runs/begun"], ["no trials yet", "evit-nas resume"]),
        (["report", "runs/whole", "--plot", "x.gif"], [".svg", "x.gif"]),
        (["runs", "nowhere"], ["nowhere"]),
    ],
)
def test_wrong_use_is_one_message_and_exit_2(call, runs, arguments, words):
    result = call(*arguments)
    assert result.code == 2
    assert all(word in result.err for word in words), result.err
    assert "Traceback" not in result.err
    assert result.out == ""


@pytest.mark.slow
def test_a_damaged_study_is_made_again_from_what_was_measured(call, runs):
    run = runs / "whole"
    front = call("front", str(run), "--format", "json").out
    (run / "study.db").write_text("junk" * 1000)
    refused = call("resume", str(run))
    assert refused.code == 2
    assert f"evit-nas resume {run}" in refused.err.replace("\n", "")
    (run / "study.db").rename(run / "study.damaged")
    FakeDevice.calls.clear()
    assert call("resume", str(run)).code == 0
    assert FakeDevice.calls == []
    assert call("front", str(run), "--format", "json").out == front
