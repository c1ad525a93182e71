"""The run folder: settings in, one record of everything measured, and derived files that may be deleted.

    run.yaml             settings, space, seed, versions, machine, command     written once
    study.db             Optuna's storage: trials, parameters, values, limits  the record of the search
    measurements.jsonl   every number with its raw samples, one line each      the memo: nothing is computed twice
    front/, front.csv    the Pareto front                                      derived

One process at a time writes a run; the lock is the operating system's and goes with the process.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import secrets
import shutil
import socket
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any, BinaryIO

import yaml
from pydantic import BaseModel, ConfigDict

from evit_nas import __version__
from evit_nas.commands import command_line
from evit_nas.config import SearchSettings
from evit_nas.errors import EvitNasError, RunError, UsageError
from evit_nas.yamlio import read_yaml, validate

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
        self._before: _Before | None = None

    @classmethod
    def create(cls, path: Path, settings: SearchSettings, machine: dict[str, Any], command: str) -> Run:
        """A new run folder.

        Raises:
            RunError: there is a run already, or the folder cannot be written.
        """
        if (path / "run.yaml").exists():
            raise RunError(
                f"{path} holds a run already: choose another folder with --out. "
                f"Continue it with: {command_line('resume', path)}"
            )
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
        before = _Before.of(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_atomically(path / "run.yaml", to_yaml(record))
        except OSError as error:
            raise RunError(
                f"cannot write the run folder {path}: {error.strerror}. Choose another with --out."
            ) from None
        run = cls(path, record)
        run._before = before
        return run

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
        """Who writes the run at this moment, for example "process 4711 on laptop"; None if nobody does.

        The file alone says nothing: it outlives its owner, the lock on it does not.
        """
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


@dataclass(frozen=True)
class _Before:
    """What there was where a run folder was made."""

    entries: frozenset[Path]
    """In the folder."""
    missing: tuple[Path, ...]
    """The folder, if there was none, and those around it that were missing too, the innermost first."""

    @classmethod
    def of(cls, path: Path) -> _Before:
        missing = tuple(folder for folder in (path, *path.parents) if not folder.exists())
        return cls(frozenset(path.iterdir() if path.is_dir() else ()), missing)

    def restore(self, path: Path) -> None:
        with suppress(OSError):  # somebody else may use a folder by now
            for entry in frozenset(path.iterdir()) - self.entries:
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            for folder in self.missing:
                folder.rmdir()


class Journal:
    """An append-only file of JSON lines that survives being killed in the middle of one.

    Each line ends with a check sum of what stands before it: a changed digit is not taken for a figure. Versions up to
    0.3 wrote none; their lines are taken as they are, but only before the first one that has it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Iterator[dict[str, Any]]:
        """Every whole line; one that is damaged is left out, as if its number had not been computed yet."""
        if self.path.exists():
            checked = False
            with self.path.open("rb") as file:
                for line in file:
                    content, mark, check = line.rpartition(_CHECK)
                    if mark and check == _check(content):
                        checked, line = True, content + b"}"
                    elif mark or checked or not line.endswith(b"\n"):
                        continue
                    with suppress(ValueError):
                        if isinstance(record := json.loads(line), dict):
                            yield record

    def repair(self) -> None:
        """Cuts off a torn last line, which the next one would otherwise glue itself to; keeps a backup.

        One that is whole but no JSON goes as well: Optuna takes it for torn until another one follows.
        """
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        last = whole[whole.rfind(b"\n", 0, -1) + 1 :]
        try:
            json.loads(last or b"0")
        except ValueError:
            whole = whole.removesuffix(last)
        if whole != data:
            shutil.copy2(self.path, self.path.with_suffix(".torn"))
            self._replace(whole)

    def append(self, record: dict[str, Any]) -> None:
        """Adds one line and sees it to the disk."""
        try:
            with self.path.open("ab") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise _named(error, self.path) from None

    def cut(self, lines: int) -> None:
        """Keeps the first `lines` of those that `read` gives.

        Raises:
            OSError: the file cannot be written.
        """
        self._replace(b"".join(_line(record) for _, record in zip(range(lines), self.read(), strict=False)))

    def _replace(self, content: bytes) -> None:
        try:
            write_whole(self.path, lambda scratch: scratch.write_bytes(content))
        except OSError as error:
            raise _named(error, self.path) from None


_CHECK = b',"crc":"'


def _line(record: dict[str, Any]) -> bytes:
    """A line of a journal; `record` has one entry or more."""
    content = json.dumps(record, separators=(",", ":")).encode().removesuffix(b"}")
    return content + _CHECK + _check(content)


def _check(content: bytes) -> bytes:
    return b'%08x"}\n' % zlib.crc32(content)


def lock(folder: Path) -> IO[str]:
    """Makes this process the only writer of a folder until the file is closed or the process ends.

    Raises:
        RunError: another process writes it, which is named; or its file system knows no locks.
    """
    handle = (folder / ".lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        owner = owner_of(folder) or "another process"
        raise RunError(f"{folder} is being written by {owner}. Wait for it, or end it first.") from None
    except OSError as error:
        handle.close()
        raise RunError(
            f"{folder} lies on a file system without locks ({error.strerror}): two processes could write it at once, "
            "and neither would know. Choose a folder on another one with --out, or move this one there."
        ) from None
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {socket.gethostname()}")
    handle.flush()
    _clear(folder)
    return handle


def _clear(folder: Path) -> None:
    """Removes what killed processes had begun to write beside a file (`write_whole`)."""
    for path in [*folder.glob(".*"), *folder.glob("*/.*")]:
        found = re.fullmatch(r"\..+\.([0-9]+)", path.name)
        if found and not _lives(int(found[1])):
            with suppress(OSError):
                path.unlink()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        pass
    return True


def owner_of(folder: Path) -> str | None:
    """Who writes a folder at this moment, for example "process 4711 on laptop"; None if nobody does.

    The file alone says nothing: it outlives its owner, the lock on it does not.
    """
    try:
        with (folder / ".lock").open(encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return handle.read().strip() or "another process"
    except OSError:  # nobody has ever locked it, or not on a file system that can
        pass
    return None


def write_atomically(path: Path, text: str) -> None:
    """The whole text or none of it, on the disk.

    Raises:
        OSError: with the name of the file, which writing and syncing leave out.
    """
    try:
        write_whole(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise _named(error, path) from None


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """The whole file or none of it, on the disk: `write` is given a path beside it, which then takes its name.

    What takes the place of an older file is seen to the disk first: a power cut must not tear both.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(scratch)
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


def serialised(save: Callable[[BinaryIO], object]) -> memoryview:
    """What `save` writes into a file. For torch, which is not to write files itself: it makes an error of its own of
    what the system has against one, and on a full disk `torch.jit.save` ends the process.
    """
    file = io.BytesIO()
    save(file)
    return file.getbuffer()


def to_yaml(model: BaseModel) -> str:
    """All fields of a model as YAML that `read_yaml` reads."""
    return yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, width=110)


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
    while path.exists():
        number += 1
        path = parent / f"{name}-{number}"
    return path


def _named(error: OSError, path: Path) -> OSError:
    """The same error with the file's name in it, which writing and syncing leave out."""
    return OSError(error.errno, error.strerror, str(path))


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
