"""The run folder: written once, locked by one process, its journal safe against being killed."""

import errno
import fcntl
import itertools
import os
import shutil
import socket
import sqlite3
import subprocess
import sys

import pytest

from evit_nas import runs
from evit_nas.config import SearchSettings
from evit_nas.errors import RunError, UsageError
from evit_nas.files import Journal, lock, write_atomically
from evit_nas.quantities import parse_latency
from evit_nas.runs import Run, new_run_path
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


def test_of_two_searches_that_begin_in_one_folder_at_once_the_second_is_refused(tmp_path, settings, monkeypatch):
    def late(path):
        monkeypatch.undo()
        Run.create(path, settings, {}, "the first")
        return lock(path)

    monkeypatch.setattr(runs, "lock", late)
    with pytest.raises(RunError, match="holds a run already"):
        Run.create(tmp_path, settings, {}, "the second")
    assert Run.open(tmp_path).record["command"] == "the first"


def test_searches_that_begin_at_once_make_a_folder_each(tmp_path, settings, monkeypatch):
    def late(parent, name):
        monkeypatch.undo()
        found = new_run_path(parent, name)
        found.mkdir(parents=True)  # by another search, which has just looked too
        return found

    monkeypatch.setattr(runs, "new_run_path", late)
    run = Run.create_in(tmp_path / "runs", "a", settings, {}, "")
    assert run.path == tmp_path / "runs" / "a-2"
    run.discard()
    assert os.listdir(tmp_path / "runs") == ["a"]


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


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        ("settings: {", "line 1, column 12: not valid YAML"),
        ("evit_nas: 0.1.0", "settings is missing"),
        ("settings: 3", "settings must be a mapping of fields, got 3"),
        ("\0\0", "not valid YAML"),
    ],
)
def test_what_is_no_run_yaml_at_all_is_one_message(tmp_path, text, words):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(UsageError) as error:
        Run.open(tmp_path)
    assert "run.yaml" in str(error.value)
    assert words in str(error.value)


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


def test_a_lock_on_a_full_disk_is_an_error_that_names_its_file(tmp_path, full_disk):
    with full_disk(holds=0), pytest.raises(OSError, match="File too large") as caught:
        lock(tmp_path)
    assert caught.value.filename == str(tmp_path / ".lock")


def test_a_lock_file_that_a_dead_process_left_does_not_block(tmp_path, settings):
    run = Run.create(tmp_path, settings, {}, "")
    code = (
        f"import os; from pathlib import Path; from evit_nas.runs import Run\n"
        f"run = Run.open(Path({str(tmp_path)!r})).lock(); os.kill(os.getpid(), 9)"
    )
    dead = subprocess.run([sys.executable, "-c", code])
    assert dead.returncode == -9
    assert "process" in (tmp_path / ".lock").read_text()
    assert run.owner() is None
    with run.lock():
        assert run.owner() == f"process {os.getpid()} on {socket.gethostname()}"
    assert run.owner() is None


def test_a_run_that_was_never_locked_has_no_owner_and_asking_makes_no_file(tmp_path, settings):
    run = Run.create(tmp_path, settings, {}, "")
    (tmp_path / ".lock").unlink()  # as of a folder that was copied without it
    assert run.owner() is None
    assert os.listdir(tmp_path) == ["run.yaml"]


def test_a_folder_in_which_nothing_can_be_made_cannot_be_locked(tmp_path, settings):
    run = Run.create(tmp_path, settings, {}, "")
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").mkdir()  # root may write anywhere, but not to a folder
    with pytest.raises(RunError, match=r"\.lock: Is a directory\. Put that right"):
        run.lock()


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
    assert list(journal.read()) == [{"a": 1}, {"c": 3}]
    assert (tmp_path / "j.torn").read_text().endswith('{"b": 2')


def test_an_atomic_write_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "f"
    write_atomically(path, "old")
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_damaged_line_of_a_journal_is_left_out_as_if_it_had_not_been_computed(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    journal.append({"a": 1})
    with journal.path.open("ab") as file:
        file.write(b'{"b": 2{"c": 3}\n\xff\xfe\n\n')
    journal.append({"d": 4})
    assert list(journal.read()) == [{"a": 1}, {"d": 4}]


def test_no_changed_bit_of_a_journal_passes_for_what_was_written(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    records = [{"id": "a", "ms": 1.25}, {"id": "é", "ms": [2, None]}]
    for record in records:
        journal.append(record)
    whole = journal.path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        journal.path.write_bytes(damaged)
        untouched = records[bit // 8 <= whole.index(b"\n")]
        read = list(journal.read())
        assert untouched in read or damaged.count(b"\n") != 2, bit  # lines that run into each other are both lost
        assert all(found in records or found.keys() - {"id", "ms"} for found in read), (bit, read)


def test_lines_without_a_check_sum_are_of_an_older_version_and_taken_before_the_first_that_has_one(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    journal.path.write_text('{"old": 1}\n')
    assert list(journal.read()) == [{"old": 1}]
    journal.append({"new": 2})
    with journal.path.open("a") as file:
        file.write('{"forged": 3}\n')
    assert list(journal.read()) == [{"old": 1}, {"new": 2}]


def test_a_journal_is_cut_to_its_first_lines_and_repaired_whatever_bytes_are_in_it(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    for number in range(4):
        journal.append({"a": number})
    journal.cut(3)
    assert list(journal.read()) == [{"a": 0}, {"a": 1}, {"a": 2}]
    journal.path.write_bytes(b"\xff\n" + journal.path.read_bytes() + b'{"a": \xff')
    journal.repair()
    assert list(journal.read()) == [{"a": 0}, {"a": 1}, {"a": 2}]


def test_who_locks_a_run_clears_away_what_killed_processes_had_begun_to_write(tmp_path, settings):
    run = Run.create(tmp_path / "run", settings, {}, "")
    (run.path / "front").mkdir()
    with subprocess.Popen(["true"]) as dead:
        pass
    left = [run.path / f".front.csv.{dead.pid}", run.path / "front" / f".evit.yaml.{dead.pid}"]
    other = [run.path / f".report.html.{os.getpid()}", run.path / ".mine", run.path / ".notes.txt"]
    for path in left + other:
        path.write_text("half")
    with run.lock():
        assert [path.exists() for path in left + other] == [False, False, True, True, True]


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_ends_a_search_with_the_file_and_the_way_out_and_what_was_written_stays(
    tmp_path, settings, monkeypatch
):
    run = Run.create(tmp_path / "run", settings, {}, "")
    journal = Journal(run.path / "measurements.jsonl")
    journal.append({"a": 1})
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError) as error, run.lock():
        journal.append({"b": 2})
    assert f"{journal.path}: No space left on device" in str(error.value)
    assert f"evit-nas resume {run.path}" in str(error.value)
    monkeypatch.undo()
    assert next(journal.read()) == {"a": 1}
    with Run.open(run.path).lock():  # the lock was given back
        pass


def test_a_full_disk_before_the_search_leaves_nothing_that_looks_like_a_run(tmp_path, settings, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"No space left on device\. Choose another with --out"):
        Run.create(tmp_path / "run", settings, {}, "")
    assert os.listdir(tmp_path / "run") == [".lock"]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="mounting takes root")
def test_a_disk_that_is_really_full_loses_nothing(tmp_path, settings):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        run = Run.create(tmp_path / "run", settings, {}, "")
        journal, written = Journal(run.path / "measurements.jsonl"), []

        def write(number):
            journal.append({"number": number, "samples": ["x" * 1000]})
            written.append(number)

        with pytest.raises(RunError, match="No space left on device"), run.lock():
            all(write(number) is None for number in itertools.count())
        assert len(written) > 10
        assert [line["number"] for line in journal.read()] == written
        with pytest.raises(OSError, match="No space"):
            write_atomically(run.path / "run.yaml", "x" * 100_000)
        assert Run.open(run.path).settings == settings
        assert sorted(os.listdir(run.path)) == [".lock", "measurements.jsonl", "run.yaml"]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_run_folder_that_goes_away_in_mid_run_is_said_so(tmp_path, settings):
    run = Run.create(tmp_path / "run", settings, {}, "")
    journal = Journal(run.path / "measurements.jsonl")
    with pytest.raises(RunError, match=r"measurements\.jsonl: No such file.*removed while it was in use"), run.lock():
        (shutil.rmtree(run.path), journal.append({"a": 1}))


def optuna_of_the_future(path):
    with sqlite3.connect(path) as database:
        database.execute("update version_info set schema_version = 99, library_version = '99.0.0'")
        database.execute("update alembic_version set version_num = 'v99.0.0.a'")
    database.close()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.write_text("junk" * 1000), ["file is not a database", "Move it away", "evit-nas resume"]),
        (lambda path: path.write_bytes(path.read_bytes()[:9000]), ["malformed", "Move it away"]),
        (lambda path: (path.unlink(), path.mkdir()), ["unable to open database file", "Put that right"]),
        (optuna_of_the_future, ["set up by optuna 99.0.0", "stays readable"]),
    ],
    ids=["not a database", "cut off", "a folder", "a later Optuna"],
)
def test_a_study_that_cannot_be_read_is_one_message_with_the_way_out(tmp_path, settings, damage, words):
    from evit_nas.searching.storage import open_study

    run = Run.create(tmp_path / "run", settings, {}, "")
    with open_study(run):
        pass
    damage(run.path / "study.db")
    with pytest.raises(RunError) as error, run.lock(), open_study(run):
        pass
    assert str(error.value).startswith(f"{run.path / 'study.db'}: ")
    assert all(word in str(error.value) for word in words), error.value


def test_what_is_not_about_the_run_folder_passes_unchanged(tmp_path, settings):
    run = Run.create(tmp_path / "run", settings, {}, "")
    for error in (KeyError("x"), FileNotFoundError(2, "No such file", "/images"), ConnectionResetError(104, "reset")):
        with pytest.raises(type(error)) as raised, run.lock():
            raise error
        assert raised.value is error


@pytest.mark.parametrize(
    ("text", "ms"),
    [("5ms", 5.0), ("750us", 0.75), ("0.02s", 20.0), (" 1.5 ms ", 1.5), (".5ms", 0.5), ("10µs", 0.01)],
)
def test_budgets_as_people_write_them(text, ms):
    assert parse_latency(text) == pytest.approx(ms)


@pytest.mark.parametrize("text", ["5", "ms", "0ms", "-1ms", "5 m", "five", "", "1e3ms", "nan ms"])
def test_a_budget_without_number_or_unit_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="5ms"):
        parse_latency(text)


def test_a_file_system_without_locks_is_named_with_the_way_out(tmp_path, settings, monkeypatch):
    run = Run.create(tmp_path / "run", settings, {}, "")

    def refused(handle, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(RunError, match=r"run lies on a file system without locks \(No locks available\).*--out"):
        run.lock()
    assert run.owner() is None
