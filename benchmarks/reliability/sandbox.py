"""Functions and commands in processes of their own, which may hang or die without harm to the others."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from evit_nas import cli


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int | None
    """Its exit code, negative for a signal; None if it was still at it when its time was up."""
    text: str
    """What it printed."""
    seconds: float


class Fork:
    """A function in a copy of this process, at the head of a process group of its own; what it prints goes to `log`."""

    def __init__(self, function: Callable[[], int], log: Path) -> None:
        sys.stdout.flush()
        self._log, self._start = log, time.monotonic()
        self._code: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(out, 1)
            os.dup2(out, 2)
            code = 70
            try:
                code = function()
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def poll(self) -> int | None:
        """Its exit code once it has ended; None before."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code

    def kill(self) -> None:
        """SIGKILL, for this process alone."""
        os.kill(self.pid, signal.SIGKILL)
        self._code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def wait(self, seconds: float) -> Ended:
        """How it ends, within so many seconds; with it go the processes that it has started."""
        code, pause_s = self.poll(), 0.001
        while code is None and time.monotonic() - self._start < seconds:
            time.sleep(pause_s)
            pause_s, code = min(2 * pause_s, 0.05), self.poll()
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if code is None:
            os.waitpid(self.pid, 0)
        return Ended(code, self._log.read_text(errors="replace"), time.monotonic() - self._start)


def rehearsed(function: Callable[[], int], folder: Path, seconds: float) -> Ended:
    """How a function ends in a process of its own; what it imported is imported here, and every later fork has it."""

    def work() -> int:
        code = function()
        (folder / "imported").write_text("\n".join(sorted(sys.modules)))
        return code

    ended = Fork(work, folder / "log").wait(seconds)
    assert ended.code == 0, ended.text
    for name in (folder / "imported").read_text().split():
        if name.partition(".")[0] not in ("ray", "__main__", "tests", "benchmarks"):
            with suppress(Exception):
                importlib.import_module(name)
    return ended


def command(*arguments: str) -> int:
    """The exit code of `evit-nas ARGUMENTS`, here and now."""
    sys.argv = ["evit-nas", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
