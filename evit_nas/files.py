"""Files that survive: whole writes, journals, locks, folders that go again if nothing comes of them; paths as typed."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import shutil
import socket
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

from evit_nas.errors import RunError, UsageError


def expanded(text: str | Path) -> Path:
    """The path that `text` names, with ~ for a home folder; ~x.jpg is no user's, and pathlib would refuse it."""
    return Path(os.path.expanduser(text))


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
    scratch = path.with_name(f".{path.name}.{os.getpid()}")  # `_clear` knows it by this name
    try:
        write(scratch)
        with scratch.open("rb+") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


@contextmanager
def writing(path: Path, way_out: str = "") -> Iterator[None]:
    """Says in one sentence what the system has against a file, and after it the way out.

    Raises:
        UsageError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}.{way_out}") from None


def located(text: str | Path) -> str:
    """What `text` is called in a record that is read from other folders: the absolute path, where it names a folder."""
    path = os.path.expanduser(text)
    return os.path.abspath(path) if os.path.isdir(path) else str(text)


def serialised(save: Callable[[BinaryIO], object]) -> memoryview:
    """What `save` writes into a file. For torch, which is not to write files itself: it makes an error of its own of
    what the system has against one, and on a full disk `torch.jit.save` ends the process.
    """
    file = io.BytesIO()
    save(file)
    return file.getbuffer()


def _named(error: OSError, path: Path) -> OSError:
    """The same error with the file's name in it, which writing and syncing leave out."""
    return OSError(error.errno, error.strerror, str(path))


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
        OSError: it cannot be written; with the name of the file.
    """
    path = folder / ".lock"
    handle = path.open("a+", encoding="utf-8")  # not "w": it names whoever has the lock
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
    try:
        handle.truncate(0)
        handle.write(f"process {os.getpid()} on {socket.gethostname()}")
        handle.flush()
    except OSError as error:
        with suppress(OSError):  # it tries once more to write
            handle.close()
        raise _named(error, path) from None
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
    except (ProcessLookupError, OverflowError):  # no process has it, or can have it
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
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: others that ask are no owners
            except BlockingIOError:
                return handle.read().strip() or "another process"
    except OSError:  # nobody has ever locked it, or not on a file system that can
        pass
    return None


@contextmanager
def work_folder(path: Path, *settings: str) -> Iterator[None]:
    """A folder for hours of work, made if need be, and locked. What is refused or interrupted while there is no more
    in it than the files `settings` leaves nothing.

    Raises:
        UsageError: it cannot be made.
        RunError: another process is at work in it, which is named.
    """
    before = Before.of(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}. Choose another with --out.") from None
    with lock(path):
        try:
            yield
        except BaseException:
            if {entry.name for entry in before.new(path)} <= {".lock", *settings}:
                before.restore(path)
            raise


@dataclass(frozen=True)
class Before:
    """What there was where a folder is made."""

    entries: frozenset[Path]
    """In the folder."""
    missing: tuple[Path, ...]
    """The folder, if there was none, and those around it that were missing too, the innermost first."""

    @classmethod
    def of(cls, path: Path) -> Before:
        missing = tuple(folder for folder in (path, *path.parents) if not folder.exists())
        return cls(frozenset(path.iterdir() if path.is_dir() else ()), missing)

    def new(self, path: Path) -> frozenset[Path]:
        """What has come since."""
        return frozenset(path.iterdir() if path.is_dir() else ()) - self.entries

    def restore(self, path: Path) -> None:
        """Removes what has come since, with the folders that were made for it."""
        with suppress(OSError):  # somebody else may use a folder by now
            for entry in self.new(path):
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                else:
                    entry.unlink()
            for folder in self.missing:
                folder.rmdir()
