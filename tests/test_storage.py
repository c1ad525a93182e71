"""A run's study in Optuna's storages: in its folder, in a database that runs share, in a journal."""

import errno
import os
import re
import sqlite3
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from evit_nas.config import storage_url
from evit_nas.errors import RunError, UsageError
from evit_nas.runs import Run
from evit_nas.searching.record import load_front
from evit_nas.searching.storage import SEAL, begun, for_samplers, open_study
from evit_nas.searching.study import Search
from evit_nas.words import settings_from
from tests.searches import Died, Silent, keys, trials
from tests.test_selection import settings_of


@pytest.fixture(params=["database", "journal"])
def storage(request, tmp_path):
    return f"sqlite:///{tmp_path / 'shared.db'}" if request.param == "database" else str(tmp_path / "shared.log")


def test_a_search_is_the_same_wherever_its_study_lies(new_run, finished_run, storage):
    here, there = finished_run(), new_run(storage=storage)
    front = Search(there, Silent()).run()
    assert keys(here) == keys(there)
    assert [m.arch.key for m in load_front(here).members] == [m.arch.key for m in front.members]
    assert [set(trial.constraints) for trial in trials(there)] == [{"latency_ms"}] * len(trials(here))
    assert not there.database.exists()


@pytest.mark.parametrize("name", ["a?b#c", "50% off", "{SCHEMA_VERSION}", 'it\'s "ü" & co', "two\nlines", ":memory:"])
def test_the_study_lies_in_the_run_folder_whatever_that_is_called(new_run, tmp_path, monkeypatch, name):
    """A path is no URL: what means something in one would put the database elsewhere, where runs mix."""
    run = new_run(trials=4)
    run.path = run.path.rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    relative = Run.open(Path(name))
    Search(relative, Silent()).run()
    assert run.database.is_file()
    assert len(keys(run)) == 4
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == []


def test_runs_share_a_storage_without_mixing(new_run, storage):
    runs = [new_run(storage=storage, seed=seed, trials=10) for seed in (0, 1)]
    for run in runs:
        assert not begun(run)
        Search(run, Silent()).run()
    assert [len(trials(run)) for run in runs] == [10, 10]
    assert keys(runs[0]) != keys(runs[1])
    assert len({run.study for run in runs}) == 2


def test_a_killed_search_goes_on_from_the_storage_it_names(new_run, finished_run, storage):
    whole, cut, left = finished_run(), new_run(storage=storage), [9]

    class Dying(Silent):
        def update(self, status):
            left[0] -= 1
            if not left[0]:
                raise Died

    with pytest.raises(Died):
        Search(cut, Dying()).run()
    assert len(keys(cut)) == 9
    Search(cut, Silent()).run()
    assert keys(cut) == keys(whole)


def test_a_torn_journal_is_repaired_by_its_writer_and_left_alone_by_readers(new_run, tmp_path):
    journal = tmp_path / "shared.log"
    run = new_run(storage=str(journal), trials=8)
    Search(run, Silent()).run()
    torn = journal.read_bytes()[:-20]
    journal.write_bytes(torn)
    load_front(run)
    assert journal.read_bytes() == torn
    with run.lock():
        Search(run, Silent()).run()
    assert len(keys(run)) == 8
    assert journal.with_suffix(".torn").read_bytes() == torn
    optuna.storages.JournalStorage(JournalFileBackend(str(journal))).get_all_studies()  # every line is whole


def test_a_front_is_not_looked_for_where_nothing_has_begun(new_run, storage):
    run = new_run(storage=storage)
    with pytest.raises(UsageError, match="has no trials yet"):
        load_front(run)
    assert not begun(run)  # asking made nothing


@pytest.mark.parametrize(
    "storage",
    ["sqlite:////nowhere/at/all.db", "nosuch://host/db", "postgresql://nobody@127.0.0.1:1/none", "redis://127.0.0.1:1"],
)
def test_a_storage_that_does_not_serve_is_one_message_with_the_way_out(new_run, storage):
    run = new_run(storage=storage)
    with pytest.raises(UsageError, match=rf"the storage {storage} does not serve: .+another --storage"):
        Search(run, Silent()).run()
    with pytest.raises(RunError, match=rf"the storage {storage} does not serve: .+evit-nas resume {run.path}"):
        Search(Run.open(run.path), Silent()).run()


def test_a_database_of_another_optuna_is_named_with_the_way_out(new_run, tmp_path):
    file = tmp_path / "shared.db"
    optuna.create_study(storage=f"sqlite:///{file}")
    with sqlite3.connect(file) as database:
        database.execute("UPDATE alembic_version SET version_num = 'v2.4.0.a'")
        database.execute("UPDATE version_info SET library_version = '2.10.1'")
    run = new_run(storage=f"sqlite:///{file}")
    with (
        pytest.raises(UsageError, match=rf"the storage sqlite:///{file} does not serve: .*optuna storage upgrade"),
        run,
    ):
        Search(run, Silent()).run()


def test_what_another_storage_has_is_not_blamed_on_the_run_folder(new_run, tmp_path):
    """It says itself what is wrong, to whoever uses the run with `with` too."""
    run = new_run(storage=f"sqlite:///{tmp_path / 'shared.db'}")
    (tmp_path / "shared.db").write_bytes(b"no database" * 100)
    with pytest.raises(UsageError, match=rf"^the storage sqlite:///{tmp_path / 'shared.db'} does not serve"), run:
        Search(run, Silent()).run()


def test_a_journal_that_cannot_be_had_is_one_message_too(new_run, tmp_path):
    nowhere = tmp_path / "no" / "such.log"
    with pytest.raises(UsageError, match=rf"the storage {nowhere} does not serve: .*No such file"):
        Search(new_run(storage=str(nowhere)), Silent()).run()


def damaged(run, change, journal=None):
    """`change`s what the run has on record of its trials, and says what it is told when it is read then."""
    if journal is not None:
        journal.write_text(change(journal.read_text()))
    else:
        with sqlite3.connect(run.database) as database:
            database.execute(change)
    with pytest.raises(RunError) as caught:
        load_front(run)
    return str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        """update trial_user_attributes set value_json = replace(value_json, '"width": ', '"width": 1')""",  # digits
        "update trial_user_attributes set value_json = replace(value_json, ':', ';') where trial_id = 3",
        "update trial_user_attributes set key = 'kez' where key = 'key'",
        "update trial_params set distribution_json = replace(distribution_json, 'attributes', 'attribufes')",
        "update trial_params set param_value = param_value + 1 where param_id = 5",
        "update trial_values set value = value * 1.0000001 where trial_id = 4",
        "update trials set number = 100 where number = 4",
        "update trials set state = 'COMPLETF' where number = 4",
        "delete from trials where number = 4",
        "update study_user_attributes set value_json = replace(value_json, '[', '{') where key = 'aggregate'",
        "update study_user_attributes set value_json = '[1, 2]' where key = 'references'",
    ],
)
def test_a_changed_byte_in_the_database_is_found_and_said_with_the_way_out(finished_run, change):
    run = finished_run(trials=10)
    message = damaged(run, change)
    assert message.startswith(f"{run.database}: what it holds of the run is damaged")
    assert message.count("\n") == 0
    assert "Move it away and make the same trials again" in message
    assert message.endswith(f"evit-nas resume {run.path}")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "this is no journal\n" * 3,
        lambda text: text.replace('"study_id"', '"studi_id"'),
        lambda text: text.replace("DISTRIBUTION", "distribution").replace("distributions", "distribufions"),
        lambda text: text.replace('"width":1', '"width":2'),
        lambda text: re.sub(r'\{"op_code":4,.*\n', "", text, count=1),  # a trial
    ],
)
def test_so_is_one_in_a_journal(new_run, tmp_path, change):
    journal = tmp_path / "shared.log"
    run = new_run(storage=str(journal), trials=10)
    Search(run, Silent()).run()
    assert "is damaged" in (message := damaged(run, change, journal))
    assert "Move it away and make the same trials again" in message
    assert message.endswith(f"evit-nas resume {run.path}")


def test_so_is_one_in_what_the_tables_are_called(finished_run):
    run = finished_run(trials=10)
    run.database.write_bytes(
        run.database.read_bytes().replace(b"CREATE TABLE trial_values", b"CREATE TABLE trial_v\xaelues")
    )
    with pytest.raises(
        RunError, match=r"study\.db: .*Move it away and make the same trials again; .*: evit-nas resume"
    ):
        load_front(run)


def test_a_journal_whose_last_line_has_changed_loses_that_line(new_run, tmp_path):
    journal = tmp_path / "shared.log"
    run = new_run(storage=str(journal), trials=10)
    front = Search(run, Silent()).run()
    changed = journal.read_bytes()[:-2] + b"!\n"
    journal.write_bytes(changed)
    with run.lock():
        assert Search(run, Silent()).run() == front
    assert journal.with_suffix(".torn").read_bytes() == changed


def test_trials_without_a_seal_are_of_an_older_version_and_taken_as_they_are(finished_run):
    run = finished_run(trials=10)
    front = load_front(run)
    with sqlite3.connect(run.database) as database:
        assert database.execute(f"delete from trial_system_attributes where key = '{SEAL}'").rowcount == 10
    assert load_front(run) == front


def test_what_goes_wrong_in_the_search_is_not_the_storages_fault(new_run, storage):
    class Broken(Silent):
        def update(self, status):
            raise ImportError("a library is missing")

    with pytest.raises(ImportError, match="a library is missing"):
        Search(new_run(storage=storage), Broken()).run()


def test_a_storage_that_goes_away_in_mid_search_loses_nothing(new_run, tmp_path):
    file = tmp_path / "shared.db"
    run = new_run(storage=f"sqlite:///{file}")

    class Locking(Silent):
        def update(self, status):
            if status.done == 5:
                with sqlite3.connect(file) as database:
                    database.execute("ALTER TABLE trials RENAME TO gone")

    with pytest.raises(RunError, match=r"does not serve: .*no such table: trials.*Nothing that was evaluated is lost"):
        Search(run, Locking()).run()
    with sqlite3.connect(file) as database:
        database.execute("ALTER TABLE gone RENAME TO trials")
    Search(run, Silent()).run()
    assert len(keys(run)) == 24


def test_a_journal_on_a_disk_that_fills_in_mid_search_loses_nothing(new_run, tmp_path, monkeypatch):
    journal = tmp_path / "shared.log"
    run = new_run(storage=str(journal))
    write = os.fsync

    def full(file):
        if os.path.sameopenfile(file, probe):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(file)

    class Filling(Silent):
        def update(self, status):
            if status.done == 5:
                monkeypatch.setattr(os, "fsync", full)

    with journal.open("wb") as opened:
        probe = opened.fileno()
        with pytest.raises(RunError, match=r"does not serve: .*No space left.*Nothing that was evaluated is lost"):
            Search(run, Filling()).run()
    monkeypatch.setattr(os, "fsync", write)
    Search(run, Silent()).run()
    assert len(keys(run)) == 24


def test_constraints_are_where_optuna_dashboard_looks_for_them_and_samplers_see_each_once(new_run):
    run = new_run(trials=8, limits={"params": 120_000})
    Search(run, Silent()).run()
    with open_study(run) as study:
        recorded = study.get_trials()
    for trial in recorded:
        named = for_samplers(trial).constraints
        assert [*named] == ["latency_ms", "params"]
        assert trial.system_attrs["constraints"] == [*named.values()]


@pytest.mark.parametrize("storage", ["me:secret@host/db", "me:sec/ret@host/db", "host/db?user=me&password=secret"])
def test_a_password_in_the_open_is_refused(storage):
    with pytest.raises(ValueError, match=r"the storage has a password, which run\.yaml would keep: write \$NAME"):
        settings_of(storage=f"postgresql://{storage}")


def test_a_password_stays_out_of_the_run_folder(monkeypatch):
    assert settings_of(storage="postgresql://host/db?password=$NAS_PASSWORD").storage
    assert settings_of(storage="redis://host:6379/0").storage
    kept = settings_of(storage="postgresql://me:$NAS_PASSWORD@host/db").storage
    with pytest.raises(UsageError, match="takes \\$NAS_PASSWORD from the environment"):
        storage_url(kept)
    monkeypatch.setenv("NAS_PASSWORD", "se$ret")
    assert storage_url(kept) == "postgresql://me:se$ret@host/db"


def test_a_journal_is_found_from_other_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert settings_from(budget="5ms", storage="study.log").storage == str(tmp_path / "study.log")
    assert settings_from(budget="5ms", storage="redis://host").storage == "redis://host"


def test_the_study_in_the_run_folder_is_called_evit_nas(finished_run):
    run = finished_run(trials=10)
    with open_study(run) as study:
        assert study.study_name == "evit-nas"


def test_optuna_says_to_its_own_user_what_it_said_before(new_run):
    heard = set()

    class Listening(Silent):
        def update(self, status):
            heard.add(optuna.logging.get_verbosity())

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    try:
        Search(new_run(trials=4), Listening()).run()
        assert (heard, optuna.logging.get_verbosity()) == ({optuna.logging.WARNING}, optuna.logging.DEBUG)
    finally:
        optuna.logging.set_verbosity(before)
