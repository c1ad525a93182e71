"""The run folder: settings in, one record of everything measured, and derived files that may be deleted.

    run.yaml             settings, space, seed, versions, machine, command     written once
    study.db             Optuna's storage: trials, parameters, values, limits  the record of the search
    measurements.jsonl   every number with its raw samples, one line each      the memo: nothing is computed twice
    front/, front.csv    the Pareto front                                      derived

One process at a time writes a run; the lock is the operating system's and goes with the process.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import yaml

from evit_nas import __version__
from evit_nas.config import SearchSettings
from evit_nas.errors import RunError, UsageError
from evit_nas.yamlio import read_yaml, validate

_VERSIONED = ("torch", "timm", "optuna", "onnx", "onnxruntime", "numpy")


class Run:
    """One run folder. `create` makes one, `open` finds one; `lock` before writing."""

    def __init__(self, path: Path, settings: SearchSettings) -> None:
        self.path, self.settings = path, settings
        self._lock: IO[str] | None = None

    @classmethod
    def create(cls, path: Path, settings: SearchSettings, machine: dict[str, Any], command: str) -> Run:
        """A new run folder.

        Raises:
            RunError: there is a run already, or the folder cannot be written.
        """
        if (path / "run.yaml").exists():
            raise RunError(f"{path} holds a run already. Continue it with: evit-nas resume {path}")
        record = {
            "evit_nas": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command,
            "settings": settings.model_dump(mode="json"),
            "space_hash": settings.space.hash,
            "versions": _versions(),
            "machine": machine,
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            write_atomically(path / "run.yaml", yaml.safe_dump(record, sort_keys=False, width=110))
        except OSError as error:
            raise RunError(
                f"cannot write the run folder {path}: {error.strerror}. Choose another with --out."
            ) from None
        return cls(path, settings)

    @classmethod
    def open(cls, path: Path) -> Run:
        """An existing run folder.

        Raises:
            UsageError: there is none, or its run.yaml is damaged.
        """
        if not (path / "run.yaml").is_file():
            raise UsageError(f"{path} is not a run folder (it has no run.yaml).{_nearby(path)}")
        record = read_yaml(path / "run.yaml")
        return cls(path, validate(SearchSettings, record.get("settings"), f"{path / 'run.yaml'}: settings"))

    @property
    def record(self) -> dict[str, Any]:
        """All of run.yaml: settings, versions, machine and command."""
        return read_yaml(self.path / "run.yaml")

    @property
    def front_folder(self) -> Path:
        """Where the front's YAML files lie."""
        return self.path / "front"

    def lock(self) -> Run:
        """Makes this process the run's only writer until `close`; returns the run itself.

        Raises:
            RunError: another process writes it, named with its id and host.
        """
        handle = (self.path / ".lock").open("a+")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            owner = handle.read().strip() or "another process"
            handle.close()
            raise RunError(f"{self.path} is being written by {owner}. Wait for it, or end it first.") from None
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
        self._lock = handle
        return self

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Journal:
    """An append-only file of JSON lines that survives being killed in the middle of one."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Iterator[dict[str, Any]]:
        """Every whole line."""
        if self.path.exists():
            with self.path.open("rb") as file:
                for line in file:
                    if line.endswith(b"\n"):
                        yield json.loads(line)

    def repair(self) -> None:
        """Cuts off a torn last line, which the next one would otherwise glue itself to; keeps a backup."""
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            shutil.copy2(self.path, self.path.with_suffix(".torn"))
            write_atomically(self.path, whole.decode())

    def append(self, record: dict[str, Any]) -> None:
        """Adds one line and sees it to the disk."""
        with self.path.open("a") as file:
            file.write(json.dumps(record, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())


def write_atomically(path: Path, text: str) -> None:
    """The whole file or none of it: writes beside it and renames."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_text(text)
        scratch.replace(path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise


def new_run_path(parent: Path, name: str) -> Path:
    """`parent/name`, or `parent/name-2`, -3, ... when that is taken."""
    path, number = parent / name, 1
    while path.exists():
        number += 1
        path = parent / f"{name}-{number}"
    return path


def _versions() -> dict[str, str]:
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
    runs = sorted(found.parent.name for found in parent.glob("*/run.yaml"))
    return f" Runs in {parent}: {', '.join(runs)}." if runs else ""
