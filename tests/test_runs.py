"""The run folder: written once, locked by one process, its journal safe against being killed."""

import json
import os
import subprocess
import sys

import pytest

from evit_nas.config import SearchSettings, parse_budget
from evit_nas.errors import RunError, UsageError
from evit_nas.runs import Journal, Run, new_run_path, write_atomically
from evit_nas.space import SearchSpace


@pytest.fixture
def settings() -> SearchSettings:
    space = SearchSpace.load("efficientvit-tiny")
    return SearchSettings(
        space_name="efficientvit-tiny", space=space, targets=[{"budget_ms": 0.5}], trials=7, pool=5, seed=3
    )


def test_a_run_opens_with_the_settings_it_was_created_with(tmp_path, settings):
    Run.create(tmp_path / "run", settings, {"processor": "x"}, "evit-nas search").close()
    opened = Run.open(tmp_path / "run")
    assert opened.settings == settings
    assert opened.record["command"] == "evit-nas search"
    assert opened.record["space_hash"] == settings.space.hash
    assert "onnxruntime" in opened.record["versions"]


def test_a_run_is_not_created_over_another(tmp_path, settings):
    Run.create(tmp_path, settings, {}, "")
    with pytest.raises(RunError, match="evit-nas resume"):
        Run.create(tmp_path, settings, {}, "")


def test_what_is_no_run_folder_is_said_with_the_runs_beside_it(tmp_path, settings):
    Run.create(tmp_path / "mine", settings, {}, "")
    with pytest.raises(UsageError, match=r"not a run folder.*mine"):
        Run.open(tmp_path / "other")


def test_a_damaged_run_yaml_is_one_message(tmp_path, settings):
    Run.create(tmp_path, settings, {}, "")
    text = (tmp_path / "run.yaml").read_text().replace("budget_ms: 0.5", "budget_ms: -1")
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UsageError, match=r"run\.yaml: settings.targets\[0\]\.budget_ms.*greater than 0"):
        Run.open(tmp_path)


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path, settings):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="--out"):
        Run.create(tmp_path / "file" / "run", settings, {}, "")


def test_the_second_writer_is_refused_with_the_first_ones_id(tmp_path, settings):
    with Run.create(tmp_path, settings, {}, "").lock():
        code = f"from pathlib import Path; from evit_nas.runs import Run; Run.open(Path({str(tmp_path)!r})).lock()"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "RunError" in other.stderr
    assert f"process {os.getpid()} on " in other.stderr


def test_the_lock_goes_with_its_owner(tmp_path, settings):
    run = Run.create(tmp_path, settings, {}, "").lock()
    run.close()
    with Run.open(tmp_path).lock() as again:
        assert again.settings == settings


def test_new_run_path_counts_up(tmp_path):
    assert new_run_path(tmp_path, "a") == tmp_path / "a"
    (tmp_path / "a").mkdir()
    (tmp_path / "a-2").mkdir()
    assert new_run_path(tmp_path, "a") == tmp_path / "a-3"


def test_a_journal_returns_what_was_appended(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    assert list(journal.read()) == []
    journal.append({"a": 1})
    journal.append({"b": [2]})
    assert list(journal.read()) == [{"a": 1}, {"b": [2]}]


def test_a_torn_last_line_is_cut_off_with_a_backup_and_nothing_else_is_lost(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"a": 1})
    with journal.path.open("a") as file:
        file.write('{"b": 2')  # killed here
    assert list(journal.read()) == [{"a": 1}]
    journal.repair()
    journal.append({"c": 3})
    assert [json.loads(line) for line in journal.path.read_text().splitlines()] == [{"a": 1}, {"c": 3}]
    assert (tmp_path / "j.torn").read_text().endswith('{"b": 2')


def test_an_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_atomically(path, "old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize(
    ("text", "ms"),
    [("5ms", 5.0), ("750us", 0.75), ("0.02s", 20.0), (" 1.5 ms ", 1.5), (".5ms", 0.5), ("10µs", 0.01)],
)
def test_budgets_as_people_write_them(text, ms):
    assert parse_budget(text) == pytest.approx(ms)


@pytest.mark.parametrize("text", ["5", "ms", "0ms", "-1ms", "5 m", "five", "", "1e3ms", "nan ms"])
def test_a_budget_without_number_or_unit_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="5ms"):
        parse_budget(text)
