"""Optuna's storage of a run: a database in the run folder, or what `--storage` names.

A run has one writer, for which SQLite in its own folder is the best choice: transactions, no server, and the folder
stands on its own. A database elsewhere is for those who watch many runs in one place, for example with
optuna-dashboard; each run is a study of its own there, by a name that no other run has.
"""

from __future__ import annotations

import copy
import json
import sqlite3
import warnings
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import distribution_to_json
from optuna.storages.journal import JournalFileBackend, JournalRedisBackend
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from evit_nas import __version__
from evit_nas.commands import command_line
from evit_nas.config import storage_url
from evit_nas.errors import EvitNasError, RunError, UsageError, in_a_line
from evit_nas.files import Journal
from evit_nas.runs import Run, anew, explained
from evit_nas.searching.attributes import StudyAttributes, missing
from evit_nas.searching.objectives import directions, metric_names

NAMELESS = "constraints"  # where Optuna kept a list of them up to version 4; optuna-dashboard 0.21 looks nowhere else
SEAL = "evit_nas:seal"  # attribute of a trial: check sum of what it holds


@contextmanager
def open_study(run: Run) -> Iterator[optuna.Study]:
    """The run's Optuna study, made if there is none; its database is closed at the end.

    Raises:
        UsageError: the storage that a new run names does not serve.
        RunError: it does not answer any more, or what it holds of the run is damaged; says the way out.
    """
    with discreet(), _opened(run) as storage:
        with _undamaged(run):
            if run.study in optuna.get_all_study_names(storage):  # a journal notes even an attempt to make it again
                study = optuna.load_study(storage=storage, study_name=run.study)
            else:
                study = optuna.create_study(storage=storage, study_name=run.study, directions=directions(run.settings))
            if study.metric_names is None:
                with _quiet():
                    study.set_metric_names(metric_names(run.settings))
            StudyAttributes(study).check()
            for number, trial in enumerate(study.get_trials(deepcopy=False)):
                _check_seal(trial, number)
        yield study


@contextmanager
def discreet() -> Iterator[None]:
    """Optuna says nothing of what goes well; to a program that has studies of its own it does so afterwards."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def begun(run: Run) -> bool:
    """Whether the run has a study yet; nothing is made.

    Raises:
        RunError: the storage that the run names does not answer.
    """
    if run.settings.storage is None:
        return run.database.exists()
    with _opened(run) as storage:
        return run.study in optuna.get_all_study_names(storage)


def forget(run: Run) -> None:
    """Takes the run's study out of a storage that it shares with others."""
    if run.settings.storage is not None:
        with suppress(EvitNasError), discreet(), _opened(run) as storage:
            if run.study in optuna.get_all_study_names(storage):
                optuna.delete_study(study_name=run.study, storage=storage)


def for_dashboards(trial: FrozenTrial) -> FrozenTrial:
    """The trial as it goes on record: sealed, and with its constraints where optuna-dashboard looks for them too."""
    shown = copy.copy(trial)
    shown.system_attrs = trial.system_attrs | {NAMELESS: [*trial.constraints.values()], SEAL: _seal(trial)}
    return shown


def for_samplers(trial: FrozenTrial) -> FrozenTrial:
    """The trial from the record with each constraint once, by its name."""
    plain = copy.copy(trial)
    plain.system_attrs = {name: value for name, value in trial.system_attrs.items() if name not in (NAMELESS, SEAL)}
    return plain


def _seal(trial: FrozenTrial) -> str:
    """Check sum of what a trial holds, but for the times: databases do not notice a byte that has changed."""
    space = {name: distribution_to_json(distribution) for name, distribution in trial.distributions.items()}
    plain = for_samplers(trial)
    held = [trial.number, trial.state.name, trial.values, trial.params, space, trial.user_attrs, plain.constraints]
    return f"{zlib.crc32(json.dumps(held, sort_keys=True).encode()):08x}"


def _check_seal(trial: FrozenTrial, number: int) -> None:
    """
    Raises:
        ValueError: the trial is not what went on record as the one with that number.
    """
    if lacking := missing(trial):
        raise ValueError(f"trial {number} has no {', '.join(sorted(lacking))}")
    sealed = trial.system_attrs.get(SEAL)  # up to 0.3 there was none
    if trial.number != number or sealed not in (None, _seal(trial)):
        raise ValueError(f"trial {number} has changed")


@contextmanager
def _undamaged(run: Run) -> Iterator[None]:
    """
    Raises:
        RunError: something else than the storage's silence kept the record from being read: it is damaged.
    """
    try:
        yield
    except Exception as error:  # whatever Optuna, SQLAlchemy and JSON raise on changed bytes
        unreachable = (*_storage_errors(), OSError) if run.settings.storage else OSError
        if isinstance(error, unreachable) or isinstance(_root(error), sqlite3.Error) or "optuna version" in str(error):
            raise  # these are said where the storage is opened
        where, made_with = run.settings.storage or run.database, run.record["evit_nas"]
        reason = f"{where}: what it holds of the run is damaged ({' '.join(repr(error).split()):.100})"
        if made_with != __version__:
            reason += (
                f", or not as evit-nas {__version__} writes it; the run was made with {made_with}. "
                "Read it with that version, or give it up:"
            )
        raise RunError(f"{reason}. {anew(run.path)}") from error


@contextmanager
def _opened(run: Run) -> Iterator[optuna.storages.BaseStorage]:
    named = run.settings.storage
    if named is None:
        with explained(run.path):
            with _undamaged(run):
                engine = {"creator": partial(_connected, run.database)}
                database = optuna.storages.RDBStorage("sqlite:///study.db", engine)  # it opens nothing: `creator` does
            with _disposed(database):
                yield database
        return
    url = storage_url(named) if "://" in named else ""
    with ExitStack() as stack:
        with _refused(run, named, (*_storage_errors(), ImportError, OSError, ValueError, RuntimeError)):
            storage = stack.enter_context(_elsewhere(url, named, run))
        with _refused(run, named, _storage_errors()):
            yield storage


def _connected(file: Path) -> sqlite3.Connection:
    """By its path: a name may hold what means something in a URL (?, #, %) or to Optuna (braces)."""
    return sqlite3.connect(file, check_same_thread=False)  # SQLAlchemy's own default for a file


@contextmanager
def _elsewhere(url: str, named: str, run: Run) -> Iterator[optuna.storages.BaseStorage]:
    if url.startswith("redis"):
        with _quiet():
            backend = JournalRedisBackend(url)
        yield optuna.storages.JournalStorage(backend)
    elif url:
        with _disposed(optuna.storages.RDBStorage(url)) as database:
            yield database
    else:
        if run.writing:
            Journal(Path(named)).repair()  # or the next line would glue itself to a torn one
        with _undamaged(run):
            storage = optuna.storages.JournalStorage(_JournalFile(named))
        yield storage


class _JournalFile(JournalFileBackend):
    """A file that does not take a line, on a full disk say, is a storage that does not serve."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        try:
            super().append_logs(logs)
        except OSError as error:
            raise optuna.exceptions.StorageInternalError from error


@contextmanager
def _refused(run: Run, named: str, kinds: tuple[type[Exception], ...]) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        refusal = f"the storage {named} does not serve: {in_a_line(_root(error), most=300)}."
        if run.new and not (run.path / "measurements.jsonl").exists():
            raise UsageError(f"{refusal} Put that right, or give another --storage.") from error
        raise RunError(
            f"{refusal} Nothing that was evaluated is lost; when it answers again: {command_line('resume', run.path)}"
        ) from error


@contextmanager
def _disposed(storage: optuna.storages.RDBStorage) -> Iterator[optuna.storages.RDBStorage]:
    """Closes its connections at the end."""
    try:
        yield storage
    finally:
        storage.engine.dispose()


def _quiet() -> warnings.catch_warnings[None]:
    """Without Optuna's warnings that something is experimental."""
    return warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning)


def _storage_errors() -> tuple[type[Exception], ...]:
    """What a storage raises when it does not serve."""
    kinds: tuple[type[Exception], ...] = (SQLAlchemyError, optuna.exceptions.StorageInternalError)
    with suppress(ImportError):
        from redis.exceptions import RedisError

        kinds = (*kinds, RedisError)
    return kinds


def _root(error: BaseException) -> BaseException:
    return _root(error.__cause__) if error.__cause__ is not None else error
