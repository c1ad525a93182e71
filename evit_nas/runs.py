"""The run folder: settings in, one record of everything measured, and derived files that may be deleted.

    run.yaml             settings, space, seed, versions, machine, command     written once
    study.db             Optuna's storage: trials, parameters, values, limits  the record of the search
    measurements.jsonl   every number with its raw samples, one line each      the memo: nothing is computed twice
    front/, front.csv    the Pareto front                                      derived
    card.json            how well the score ranks                              derived

One process at a time writes a run; the lock is the operating system's and goes with the process.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ConfigDict

from evit_nas import __version__
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.commands import command_line
from evit_nas.config import SearchSettings
from evit_nas.errors import EvitNasError, RunError, UsageError
from evit_nas.files import Before, lock, owner_of, write_atomically
from evit_nas.yamlio import read_yaml, to_yaml, validate

_VERSIONED = ("torch", "timm", "accelerate", "optuna", "onnx", "onnxruntime", "numpy")


class RunRecord(BaseModel):
    """What run.yaml holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    evit_nas: str
    created: str
    command: str
    settings: SearchSettings
    study: str = "evit-nas"
    space_hash: str
    versions: dict[str, str]
    machine: dict[str, Any]


class Run:
    """One run folder. `create` makes one, `open` finds one; `lock` before writing."""

    def __init__(self, path: Path, record: RunRecord) -> None:
        self.path, self._record, self.settings = path, record, record.settings
        self._lock: IO[str] | None = None
        self._before: Before | None = None

    @classmethod
    def create(cls, path: Path, settings: SearchSettings, machine: dict[str, Any], command: str) -> Run:
        """A new run folder.

        Raises:
            RunError: there is a run already, another process is about to make one, or the folder cannot be written.
        """
        cls.check_new(path)
        before = Before.of(path)  # before the folder is made: what `discard` leaves
        with _made(path):
            path.mkdir(parents=True, exist_ok=True)
        return cls._begun(path, before, settings, machine, command)

    @classmethod
    def create_in(cls, parent: Path, name: str, settings: SearchSettings, machine: dict[str, Any], command: str) -> Run:
        """A new run folder `parent/name`, or `parent/name-2`, -3, ...: searches that begin together have one each.

        Raises:
            RunError: it cannot be made.
        """
        path = new_run_path(parent, name)
        before = Before.of(path)
        with _made(path):
            parent.mkdir(parents=True, exist_ok=True)
            try:
                path.mkdir()
            except FileExistsError:  # another search has taken it since
                return cls.create_in(parent, name, settings, machine, command)
        return cls._begun(path, before, settings, machine, command)

    @classmethod
    def _begun(cls, path: Path, before: Before, settings: SearchSettings, machine: dict[str, Any], command: str) -> Run:
        """The run of a folder that is there, with its run.yaml."""
        record = RunRecord(
            evit_nas=__version__,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            command=command,
            settings=settings,
            study=f"{path.name}-{secrets.token_hex(4)}" if settings.storage else "evit-nas",
            space_hash=settings.space.hash,
            versions=installed_versions(),
            machine=machine,
        )
        with _made(path), lock(path):
            cls.check_new(path)  # once more: another search may have begun in the folder meanwhile
            write_atomically(path / "run.yaml", to_yaml(record))
        run = cls(path, record)
        run._before = before
        return run

    @staticmethod
    def check_new(path: Path) -> None:
        """
        Raises:
            RunError: there is a run already.
        """
        if (path / "run.yaml").exists():
            raise RunError(
                f"{path} holds a run already: choose another folder with --out. "
                f"Continue it with: {command_line('resume', path)}"
            )

    @classmethod
    def open(cls, path: Path) -> Run:
        """An existing run folder.

        Raises:
            UsageError: there is none, or its run.yaml is damaged.
        """
        if not (path / "run.yaml").is_file():
            raise UsageError(f"{path} is not a run folder (it has no run.yaml).{_nearby(path)}")
        return cls(path, validate(RunRecord, read_yaml(path / "run.yaml"), str(path / "run.yaml")))

    @property
    def record(self) -> dict[str, Any]:
        """All of run.yaml: settings, versions, machine and command."""
        return self._record.model_dump(mode="json")

    @property
    def study(self) -> str:
        """What the run's study is called in Optuna's storage: in one that runs share, each has a name of its own."""
        return self._record.study

    @property
    def database(self) -> Path:
        """Where the storage lies if the settings name no other one."""
        return self.path / "study.db"

    @property
    def writing(self) -> bool:
        """Whether this process is the run's writer."""
        return self._lock is not None

    @property
    def new(self) -> bool:
        """Whether this object made the folder, rather than finding it."""
        return self._before is not None

    @property
    def front_folder(self) -> Path:
        """Where the front's YAML files lie."""
        return self.path / "front"

    def lock(self) -> Run:
        """Makes this process the run's only writer until `close`; returns the run itself.

        Raises:
            RunError: another process writes it, named with its id and host, or the folder cannot be written.
        """
        with explained(self.path):
            self._lock = lock(self.path)
        return self

    def owner(self) -> str | None:
        """Who writes the run at this moment; see `owner_of`."""
        return owner_of(self.path)

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def discard(self) -> None:
        """Removes a new run again, with the folders that were made for it; what lay there before stays."""
        self.close()
        if self._before is not None:
            self._before.restore(self.path)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self.close()
        if error is not None and (refusal := _refusal(self.path, error)):
            raise RunError(refusal) from error


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Says in one sentence what the system or the database has against the run folder `path`.

    Raises:
        RunError: it cannot be read or written, or its database is damaged; says the way out.
    """
    try:
        yield
    except Exception as error:
        if refusal := _refusal(path, error):
            raise RunError(refusal) from error
        raise


def run_folders(parent: Path) -> list[Path]:
    """The run folders in a folder, by name, and those of the searches that `make` began in it."""
    return sorted(found.parent for place in ("*", "*/search") for found in parent.glob(f"{place}/run.yaml"))


def new_run_path(parent: Path, name: str) -> Path:
    """`parent/name`, or `parent/name-2`, -3, ... when that is taken."""
    path, number = parent / name, 1
    while os.path.lexists(path):  # a link to nowhere is taken too
        number += 1
        path = parent / f"{name}-{number}"
    return path


@contextmanager
def _made(path: Path) -> Iterator[None]:
    """
    Raises:
        RunError: the system does not let a run folder be made there.
    """
    try:
        yield
    except OSError as error:
        raise RunError(f"cannot write the run folder {path}: {error.strerror}. Choose another with --out.") from None


def _refusal(path: Path, error: BaseException) -> str | None:
    """What is wrong with the run folder, and the way out; None if `error` is about something else or says so itself."""
    if isinstance(error, EvitNasError):
        return None
    while error.__cause__ is not None:
        error = error.__cause__
    database = path / "study.db"
    if isinstance(error, sqlite3.Error):
        locked = " (a program has it open, or its file system knows no locks)" if "locked" in str(error) else ""
        what = f"{database}: {error}{locked}"
    elif isinstance(error, RuntimeError) and "optuna version" in str(error):
        return f"{database}: {error} What is in {path / 'front'} stays readable without it."
    elif isinstance(error, OSError) and Path(str(error.filename)).is_relative_to(path):
        what = f"{error.filename}: {error.strerror}"
    else:
        return None
    if not (path / "run.yaml").exists():
        return f"{what}. The run folder was removed while it was in use; start a new search."
    if type(error) is sqlite3.DatabaseError:  # not a database, or damaged; what derives from it is about the disk
        return f"{what}. {anew(path)}"
    return f"{what}. Put that right; nothing that was evaluated is lost, continue with: {command_line('resume', path)}"


def anew(path: Path) -> str:
    """The way out where the record of trials of the run folder `path` is damaged."""
    return (
        f"Move it away and make the same trials again; what is in {path / 'measurements.jsonl'} is not measured "
        f"again: {command_line('resume', path)}"
    )


def installed_versions() -> dict[str, str]:
    """Of the libraries that move numbers, as far as they are installed."""
    found = {}
    for package in _VERSIONED:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _nearby(path: Path) -> str:
    """The runs beside a path that is none, as a hint."""
    parent = path.parent if path.parent.is_dir() else Path("runs")
    names = [str(run.relative_to(parent)) for run in run_folders(parent)]
    return f" Runs in {parent}: {', '.join(names)}." if names else ""


def named_arch(text: str) -> ArchConfig:
    """The architecture that a name stands for: a preset, a YAML file, RUN/NAME, or a training or shipped folder.

    Raises:
        UsageError: it is none of them.
    """
    if text in PRESETS:
        return ArchConfig.preset(text)
    path = Path(text)
    if (path / "arch.yaml").is_file():
        return ArchConfig.load(path / "arch.yaml")
    member = path.parent / "front" / f"{path.name.removesuffix('.yaml')}.yaml"
    if not path.exists() and member.exists():
        return ArchConfig.load(member)
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        raise UsageError(
            f"'{text}' is not a preset ({', '.join(PRESETS)}), a YAML file, RUN/NAME of a front member, or a "
            "training or shipped folder."
        )
    return ArchConfig.load(path)
