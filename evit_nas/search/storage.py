"""Optuna's storage of a run: a database in the run folder, or what `--storage` names.

A run has one writer, for which SQLite in its own folder is the best choice: transactions, no server, and the folder
stands on its own. A database elsewhere is for those who watch many runs in one place, for example with
optuna-dashboard; each run is a study of its own there, by a name that no other run has.
"""

from __future__ import annotations

import copy
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from optuna.storages.journal import JournalFileBackend, JournalRedisBackend
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError

from evit_nas.commands import command_line
from evit_nas.config import storage_url
from evit_nas.errors import RunError
from evit_nas.runs import Journal, Run
from evit_nas.search.objectives import directions, metric_names

NAMELESS = "constraints"  # where Optuna kept a list of them up to version 4; optuna-dashboard 0.21 looks nowhere else


@contextmanager
def open_study(run: Run) -> Iterator[optuna.Study]:
    """The run's Optuna study, made if there is none; its database is closed at the end.

    Raises:
        RunError: the storage that the run names does not answer; says the way out.
    """
    with _discreet(), _opened(run) as storage:
        if run.study in optuna.get_all_study_names(storage):  # a journal notes even an attempt to make it again
            study = optuna.load_study(storage=storage, study_name=run.study)
        else:
            study = optuna.create_study(storage=storage, study_name=run.study, directions=directions(run.settings))
        if study.metric_names is None:
            with _quiet():
                study.set_metric_names(metric_names(run.settings))
        yield study


@contextmanager
def _discreet() -> Iterator[None]:
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


def for_dashboards(trial: FrozenTrial) -> FrozenTrial:
    """The trial as it goes on record: with its constraints where optuna-dashboard looks for them as well."""
    shown = copy.copy(trial)
    shown.system_attrs = trial.system_attrs | {NAMELESS: [*trial.constraints.values()]}
    return shown


def for_samplers(trial: FrozenTrial) -> FrozenTrial:
    """The trial from the record with each constraint once, by its name."""
    plain = copy.copy(trial)
    plain.system_attrs = {name: value for name, value in trial.system_attrs.items() if name != NAMELESS}
    return plain


@contextmanager
def _opened(run: Run) -> Iterator[optuna.storages.BaseStorage]:
    named = run.settings.storage
    if named is None:
        with _database("sqlite:///study.db", creator=partial(_connected, run.database)) as database:
            yield database  # what goes wrong is explained by the run folder
        return
    url = storage_url(named) if "://" in named else ""
    with ExitStack() as stack:
        with _refused(run, named, (*_storage_errors(), ImportError, OSError, ValueError, RuntimeError)):
            storage = stack.enter_context(_elsewhere(url, named, run.writing))
        with _refused(run, named, _storage_errors()):
            yield storage


def _connected(file: Path) -> sqlite3.Connection:
    """By its path: a name may hold what means something in a URL (?, #, %) or to Optuna (braces)."""
    return sqlite3.connect(file, check_same_thread=False)


@contextmanager
def _elsewhere(url: str, named: str, writing: bool) -> Iterator[optuna.storages.BaseStorage]:
    if url.startswith("redis"):
        with _quiet():
            backend = JournalRedisBackend(url)
        yield optuna.storages.JournalStorage(backend)
    elif url:
        with _database(url) as database:
            yield database
    else:
        if writing:
            Journal(Path(named)).repair()  # or the next line would glue itself to a torn one
        yield optuna.storages.JournalStorage(_JournalFile(named))


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
        raise RunError(
            f"the storage {named} does not serve: {' '.join(str(_root(error)).split()):.300}. Nothing that was "
            f"evaluated is lost; when it answers again: {command_line('resume', run.path)}"
        ) from error


@contextmanager
def _database(url: str, **engine: Any) -> Iterator[optuna.storages.RDBStorage]:
    storage = optuna.storages.RDBStorage(url, engine)
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
