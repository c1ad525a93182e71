"""A device of this machine: the runtime runs in a child process, so that its crash or hang costs one measurement.

The child (`child.py`) answers one JSON line for each request; if it dies or exceeds the wall limit it is ended, that
measurement fails, and the next request starts a new child. Two searches of one user take turns: networks measured at
the same time would be in each other's figures.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import math
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from evit_nas import __version__
from evit_nas.caches import cache_folder
from evit_nas.config import Conditions
from evit_nas.errors import MeasurementError, out_of_memory
from evit_nas.latency.device import Device
from evit_nas.latency.machine import boot, machine_of
from evit_nas.latency.measurable import encoded, resolved
from evit_nas.latency.runtimes import RUNTIMES
from evit_nas.latency.values import Latency, Measurable, Protocol
from evit_nas.latency.yardstick import identity_of, known

WAIT_S = 1.0  # parts of a time limit: a halt costs one of them, however long it is
LOOK_S = 0.1  # between looks whether a wait was ended
TOLD_AFTER_S = 30.0  # a network takes half a second, one with strict measurements some
logger = logging.getLogger(__name__)


class LocalDevice(Device):
    """One runtime of the table on this machine."""

    def __init__(self, conditions: Conditions, timeout_s: float | None = None) -> None:
        self.conditions = conditions
        self._timeout_s = timeout_s or RUNTIMES[conditions.family].timeout_s
        self._ended = threading.Event()  # by another thread: it waits for its turn no longer
        self._child: subprocess.Popen[str] | None = None
        # lives as long as the device; a pipe would fill up and stop the child, since nobody reads it meanwhile
        self._stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115

    def measure(self, network: Measurable, protocol: Protocol) -> tuple[Latency, dict[str, Any]]:
        # before the lock: a timm model may have to be exported, which takes seconds
        request = {"network": encoded(resolved(network, self.conditions.family)), "protocol": protocol.model_dump()}
        with alone(self._ended):
            reply = self._exchange(json.dumps(request), self._timeout_s * most_visits(protocol))
        if "error" in reply:
            runtime = RUNTIMES[self.conditions.family].what
            raise MeasurementError(f"{runtime} could not run the network: {reply['error']}", reply["kind"])
        return Latency.model_validate(reply["latency"]), reply["samples"]

    def context(self) -> dict[str, str]:
        return {
            "conditions": self.conditions.model_dump_json(),
            "processor": machine_of(self.conditions),
            "runtime": RUNTIMES[self.conditions.family].version(self.conditions.family),
            "graph": __version__,
        }

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _exchange(self, line: str, timeout_s: float) -> dict[str, Any]:
        if self._child is None or self._child.poll() is not None:
            self._child = self._start()
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(line + "\n")
            child.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(child.stdout, selectors.EVENT_READ)  # its buffer is empty: one request, one line
                answered = any(selector.select(wait_s) for wait_s in _waits(timeout_s))
            reply = child.stdout.readline() if answered else ""
        except BrokenPipeError:  # it died before it read: its last words say why
            answered, reply = True, ""
        except BaseException:  # interrupted: the pending answer must not be read as the next one's
            self.close()
            raise
        if reply.endswith("\n"):  # else it died while it wrote
            answer: dict[str, Any] = json.loads(reply)
            return answer
        if not answered:
            self.close()
            raise MeasurementError(f"the measurement took longer than {timeout_s:.0f} s and was ended.", "timeout")
        status = child.wait()
        self._stderr.seek(0)
        words = self._stderr.read()
        self.close()
        # SIGKILL is the system's for want of memory: what ran out of time has been answered above
        kind = "out of memory" if status == -signal.SIGKILL or out_of_memory(words) else "crashed"
        raise MeasurementError(f"the measuring process died with exit status {status}: {last_line(words)}", kind)

    def _start(self) -> subprocess.Popen[str]:
        if known(identity_of(self.conditions)) is None:
            device = self.conditions.device
            logger.warning("first use of %s here: half a minute to learn how fast it is when quiet", device)
        self._stderr.seek(0)
        self._stderr.truncate()
        return subprocess.Popen(
            python("-m", "evit_nas.latency.child", self.conditions.model_dump_json()),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            encoding="utf-8",
            env=child_environment(self.conditions.threads),
            start_new_session=True,  # Ctrl-C is for the parent, which ends the child itself
        )


def last_line(words: str) -> str:
    """What a process that died said last."""
    return (words.strip().splitlines() or ["no message; out of memory?"])[-1]


def most_visits(protocol: Protocol) -> int:
    """How many visits a measurement may make: one more where several may disagree."""
    return protocol.visits + (protocol.visits > 1)


def python(*arguments: str) -> list[str]:
    """A command of this interpreter; what lies in the current folder, a profile.py say, hides no modules from it."""
    return [sys.executable, "-P", *arguments]


def child_environment(threads: int) -> dict[str, str]:
    """The environment of a measuring process, started with `python`: so many threads, pipes in UTF-8, and the cache
    folder and the modules of this process, whose path a notebook may have extended."""
    own = {"XDG_CACHE_HOME": str(cache_folder().parent), "PYTHONPATH": os.pathsep.join(sys.path)}
    return os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONIOENCODING": "utf-8"} | own


def run_alone(command: Sequence[str], threads: int, timeout_s: float, what: str) -> subprocess.CompletedProcess[str]:
    """Runs a measuring process to its end while nobody else measures: it would be in their figures, and they in its.

    Raises:
        MeasurementError: `what` it does took longer than `timeout_s`.
    """
    with (
        alone(),
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=child_environment(threads),
        ) as process,
    ):
        try:
            for wait_s in _waits(timeout_s):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    out, err = process.communicate(timeout=wait_s)  # called again, it has lost nothing
                    return subprocess.CompletedProcess(command, process.returncode, out, err)
        finally:
            process.kill()
    raise MeasurementError(f"{what} took longer than {timeout_s:.0f} s and was ended.", "timeout")


def _waits(timeout_s: float) -> list[float]:
    """The seconds that a process is given, in parts: each is to be counted as no more, however long it took.

    The clock goes on while all stands still, stopped by a shell, a batch system or with the machine: a halt is no hang.
    """
    parts = max(round(timeout_s / WAIT_S), 1)
    return [timeout_s / parts] * parts


@contextlib.contextmanager
def alone(ended: threading.Event | None = None) -> Iterator[None]:
    """Waits until nobody else with the same cache folder measures on this machine, and keeps it so.

    The lock is the operating system's and goes with the process; a stopped one keeps it, so that a long wait is told.
    Without a folder to lock in, nobody waits.

    Raises:
        MeasurementError: `ended` was set while it waited.
    """
    # by its boot, which all containers of a machine have in common: other machines may share the folder over a network
    path = cache_folder() / f"measuring-{boot()}.lock"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # no folder, or a file system without locks
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(path.open("ab", buffering=0))  # not "w", which would blank the owner's name
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike lockf's it holds between threads too
            except BlockingIOError:
                _wait(lock, path, ended or threading.Event())
            lock.truncate(0)
            lock.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def _wait(lock: BinaryIO, path: Path, ended: threading.Event) -> None:
    """Takes the lock when it is its turn; says who has it if that takes long.

    Raises:
        MeasurementError: `ended` was set before.
    """
    held = threading.Event()

    def take() -> None:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        held.set()

    # nothing ends this wait, and asking again and again would never win against a search that measures all the time
    threading.Thread(target=take, daemon=True).start()
    tell_at = time.monotonic() + TOLD_AFTER_S
    while not held.wait(LOOK_S):
        if ended.is_set():
            raise MeasurementError("it was ended while it waited for its turn", "ended")
        if time.monotonic() > tell_at:
            tell_at = math.inf
            with contextlib.suppress(OSError):
                owner = path.read_text(encoding="utf-8") or "another process"
                logger.warning(
                    "waiting for %s, which is measuring on this machine; if it was stopped let it go on, or end it",
                    owner,
                )
