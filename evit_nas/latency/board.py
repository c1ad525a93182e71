"""What a board does for clients elsewhere: takes jobs, measures one at a time, keeps answers; `worker.py` serves it.

A job's name is a hash of everything that decides its answer and of the client's `visit`: a question asked again after a
lost link finds its job, running, or answered in memory or on disk. Another visit is a new measurement.

The measuring process is kept for the next job under the same conditions, as on the client's own machine: `LocalDevice`
ends it on a crash or at the wall limit, and a new process for each job would spend two seconds on the canary for every
half second of measuring.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evit_nas import __version__
from evit_nas.arch import ArchConfig
from evit_nas.caches import cache_folder
from evit_nas.config import Conditions
from evit_nas.errors import MeasurementError, UsageError
from evit_nas.latency.devices import parse_conditions
from evit_nas.latency.link import Board
from evit_nas.latency.local import LocalDevice
from evit_nas.latency.machine import LoadMeter, check_threads, machine_of, probe
from evit_nas.latency.runtimes import RUNTIMES
from evit_nas.latency.values import Protocol

JOB_LIMIT_S = 600.0  # for one measurement; boards are slow, and a strict one makes some 300 runs
MAX_UNFINISHED = 32  # jobs; the next one is told that the board is busy
MAX_MODEL_BYTES = 512 * 2**20
MAX_ANSWERS_BYTES = 64 * 2**20  # on disk; an answer takes a few kB
LOAD_S = 0.5  # over which the load is counted
FILE_WORDS = ("file", "path", "folder", "dir", "context")  # in names of session entries that open files

logger = logging.getLogger("evit_nas.worker")

Reply = dict[str, Any]


class MeasurementJob(BaseModel):
    """One measurement as a client asks for it: either `arch` or `model`."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    arch: ArchConfig | None = None
    """The network, whose graph is written on the board."""
    model: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """SHA-256 of an ONNX file that was put on the board."""
    protocol: Protocol
    """How carefully to measure."""
    conditions: Conditions
    """Of the client; the device is the worker's own."""
    board: dict[str, str]
    """`Board.context` as the client knows it: another one is another device."""
    visit: Annotated[str, Field(pattern="^[0-9A-Za-z-]{1,64}$")]
    """Equal for a question asked again, new for every new measurement."""

    @model_validator(mode="after")
    def _check(self) -> MeasurementJob:
        if (self.arch is None) == (self.model is None):
            raise ValueError("a job has either an arch or a model")
        return self


class Refusal(Exception):
    """A request that gets an error; `status` is HTTP's, `kind` as in MeasurementError, or "usage", "unknown model"."""

    def __init__(self, status: int, message: str, kind: str = "usage") -> None:
        super().__init__(message)
        self.status, self.kind = status, kind


class FileCache:
    """Files in a folder of bounded size; those unused for longest go first. Survives the process."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes

    def find(self, name: str) -> Path | None:
        """The file, from now on the most recently used one; None if there is none."""
        path = self._folder / name
        try:
            os.utime(path)
        except OSError:
            return None
        return path

    def put(self, name: str, content: bytes) -> None:
        """Keeps `content`, whole or not at all.

        Raises:
            OSError: the disk is full, or the folder cannot be written.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        # of this thread alone: two clients may upload the same file at once
        scratch = self._folder / f"{name}.{os.getpid()}.{threading.get_ident()}.tmp"
        try:
            scratch.write_bytes(content)
            scratch.replace(self._folder / name)
        finally:
            scratch.unlink(missing_ok=True)
        self._prune(keep=name)

    def _prune(self, keep: str) -> None:
        files = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):  # another thread keeps or forgets a file just now
                files.append((path.stat(), path))
        excess = sum(stat.st_size for stat, _ in files) - self._max_bytes
        for stat, path in sorted(files, key=lambda file: file[0].st_mtime):  # which `find` sets
            if excess <= 0:
                break
            if path.name != keep:
                path.unlink(missing_ok=True)
                excess -= stat.st_size


class BoardDevice(LocalDevice):
    """A local device whose measurement another thread can end."""

    def end(self) -> None:
        """Ends the measuring process, or the wait for a turn; the thread that measures notices."""
        self._ended.set()
        # close() would close the pipe under that thread, which would then wait for it until the wall limit
        child = self._child
        if child is not None:
            child.kill()


class Worker:
    """Jobs, one at a time, and their answers. Its methods may be called from any thread."""

    def __init__(self, device: str = "cpu", *, max_model_bytes: int = MAX_MODEL_BYTES) -> None:
        """
        Raises:
            UsageError: `device` is none of this machine, cannot run here, or sets what clients choose.
        """
        conditions = parse_conditions(device)
        runtime = RUNTIMES.get(conditions.family)
        if runtime is None:
            raise UsageError(f"a worker measures on its own machine: --device {', '.join(RUNTIMES)}, got '{device}'.")
        if conditions.argument and runtime.argument == "threads":
            raise UsageError(f"a worker's clients choose the threads; leave out ':{conditions.argument}'.")
        missing = runtime.missing(conditions.family)
        if missing:
            raise UsageError(f"device '{device}' cannot run here: {missing}")
        self.device, self.max_model_bytes = device, max_model_bytes
        folder = cache_folder() / "worker"
        self._models = FileCache(folder / "models", 2 * max_model_bytes)
        self._answers = FileCache(folder / "answers", MAX_ANSWERS_BYTES)
        self._runtime = runtime.version(conditions.family)
        self._processor = machine_of(conditions)  # a GPU, where it is one that computes
        self._noise: str | None = None
        # one thread, which stays: a measuring process dies with the thread that started it
        self._runner = ThreadPoolExecutor(1, "measuring")
        self._local: BoardDevice | None = None  # touched by the runner's thread only, until `close`
        self._jobs: dict[str, Future[Reply]] = {}
        self._lock = threading.Lock()  # guards _jobs
        self._closing = False

    def board(self) -> Board:
        """What measures here."""
        return Board(
            evit_nas=__version__,
            host=socket.gethostname(),
            device=self.device,
            runtime=self._runtime,
            machine=probe().model_copy(update={"processor": self._processor}),
            max_model_bytes=self.max_model_bytes,
            noise=self._noise,
        )

    def load(self) -> Reply:
        """Cores that other processes keep busy, counted over half a second, and the jobs not yet answered."""
        meter = LoadMeter()
        time.sleep(LOAD_S)
        return {"foreign_cores": meter.foreign_cores(), "unfinished_jobs": self._unfinished()}

    def keep_model(self, sha256: str, content: bytes) -> None:
        """Makes an ONNX file known by its hash.

        Raises:
            Refusal: other bytes than announced, no ONNX graph, one that reads further files, or no room.
        """
        if hashlib.sha256(content).hexdigest() != sha256:
            raise Refusal(400, f"the bytes received do not have the SHA-256 {sha256}", "lost link")  # it is sent again
        check_model(content)
        try:
            self._models.put(_model_file(sha256), content)
        except OSError as error:
            raise Refusal(507, f"the board cannot keep the model: {error.strerror}", "rejected") from None

    def ask(self, job: MeasurementJob, wait_s: float) -> Reply | None:
        """The answer to `job`, which is begun unless it is known; None if it takes longer than `wait_s`.

        Raises:
            Refusal: the board is not the one the client expects, lacks the model, is busy, or is closing.
            UsageError: the device does not have these conditions.
        """
        conditions = self._conditions(job.conditions)
        name = self._name(job, conditions)
        with self._lock:
            future = self._jobs.get(name)
            if future is None:
                stored = self._stored(name)
                if stored is not None:
                    return stored
                future = self._jobs[name] = self._begin(name, job, conditions)
        try:
            return future.result(wait_s)  # without the lock: others ask meanwhile
        except TimeoutError:
            return None
        except CancelledError:
            raise _closing() from None

    def close(self) -> None:
        """Ends the measuring process, and with it a running job, which is not answered: a client asks again."""
        self._closing = True  # before anything is killed: what ends from now on is no answer
        self._runner.shutdown(wait=False, cancel_futures=True)
        while self._unfinished():  # a job that has just begun may yet start its process
            if self._local is not None:
                self._local.end()
            time.sleep(0.05)
        if self._local is not None:
            self._local.close()

    def _conditions(self, wanted: Conditions) -> Conditions:
        for name in wanted.entries:
            if any(word in name.lower() for word in FILE_WORDS):
                raise UsageError(f"session entry {name} can open files of the board; a worker does not take it.")
        conditions = parse_conditions(
            self.device,
            threads=wanted.threads if wanted.threads > 1 else None,  # some devices take no threads at all
            batch=wanted.batch,
            precision=wanted.precision,
            entries=wanted.entries,
        )
        check_threads(conditions)
        return conditions

    def _name(self, job: MeasurementJob, conditions: Conditions) -> str:
        here = self.board().context
        if job.board != here:
            raise Refusal(409, f"this board is {_listed(here)}, but the client began on {_listed(job.board)}")
        network = job.arch.key if job.arch else job.model
        parts = [network, job.protocol.model_dump(), conditions.model_dump(), here, job.visit]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _begin(self, name: str, job: MeasurementJob, conditions: Conditions) -> Future[Reply]:
        network = job.arch or self._models.find(_model_file(str(job.model)))
        if network is None:
            raise Refusal(404, f"the board has no model {job.model}; put it there first", "unknown model")
        if self._closing:
            raise _closing()
        if self._unfinished() >= MAX_UNFINISHED:
            raise Refusal(503, f"the board has {MAX_UNFINISHED} jobs to do; ask again later")
        answered = [known for known, future in self._jobs.items() if future.done()]
        for known in answered[:-MAX_UNFINISHED]:  # from now on they are on disk only
            del self._jobs[known]
        return self._runner.submit(self._run, name, network, job.protocol, conditions)

    def _unfinished(self) -> int:
        return sum(not future.done() for future in list(self._jobs.values()))  # a copy: other threads add and take away

    def _run(self, name: str, network: ArchConfig | Path, protocol: Protocol, conditions: Conditions) -> Reply:
        try:
            reply = self._measure(network, protocol, conditions)
            if self._closing:  # the job was ended from outside: that is no answer
                raise _closing()
        except BaseException:
            with self._lock:
                del self._jobs[name]  # asked again, it is tried again
            raise
        try:
            self._answers.put(f"{name}.json", json.dumps(reply).encode())
        except OSError as error:
            logger.warning("the answer is kept in memory only: %s", error)
        return reply

    def _measure(self, network: ArchConfig | Path, protocol: Protocol, conditions: Conditions) -> Reply:
        if self._local is None or self._local.conditions != conditions:
            if self._local is not None:
                self._local.close()
            self._local = BoardDevice(conditions, JOB_LIMIT_S)
        what = network.key if isinstance(network, ArchConfig) else network.stem[:12]
        try:
            latency, samples = self._local.measure(network, protocol)
        except MeasurementError as error:
            logger.info("%s: %s", what, error)
            return {"error": str(error), "kind": error.kind}
        self._noise = latency.noise
        logger.info("%s: %s", what, latency)
        return {"latency": latency.model_dump(mode="json"), "samples": samples}

    def _stored(self, name: str) -> Reply | None:
        path = self._answers.find(f"{name}.json")
        try:
            reply: Reply | None = json.loads(path.read_bytes()) if path else None
        except (OSError, ValueError):  # gone meanwhile, or damaged: measured anew
            return None
        return reply


def check_model(content: bytes) -> None:
    """Takes `content` only if it is an ONNX graph that stands on its own.

    Raises:
        Refusal: it is none, or keeps tensors in other files, which would be files of this board.
    """
    import onnx

    try:
        model = onnx.load_model_from_string(content)  # unlike onnx.load it opens no other file
    except Exception:  # whatever protobuf raises
        raise Refusal(400, "the file is no ONNX graph", "rejected") from None
    if any(_is_external(tensor) for tensor in _tensors(model)):
        message = "the graph keeps tensors in other files; save it with everything in one file"
        raise Refusal(400, message, "rejected")


def _is_external(tensor: Any) -> bool:
    return bool(tensor.data_location or tensor.external_data)


def _tensors(message: Any) -> Iterator[Any]:
    """All tensors of a protobuf message, wherever they are: initializers, attributes, subgraphs, functions."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if hasattr(value, "DESCRIPTOR") else value:
                yield from _tensors(part)


def _model_file(sha256: str) -> str:
    return f"{sha256}.onnx"


def _listed(context: dict[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(context.items()))


def _closing() -> Refusal:
    return Refusal(503, "the worker is closing; ask again when it is back")
