"""A connection to Ray for as long as one search takes: started on this machine, or found where the user says.

Ray on this machine listens on the loopback interface alone, shows no dashboard and reports no usage. It keeps its files
in a folder of its own under the system's for temporary files (paths of sockets must be short), which goes when the
search ends; what a killed search left there goes with the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import itertools
import logging
import math
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from evit_nas.arch import ArchConfig
from evit_nas.config import SearchSettings
from evit_nas.errors import LostLink, UsageError, in_a_line
from evit_nas.latency.machine import usable_cores

if TYPE_CHECKING:
    from evit_nas.searching.parallel.devices import ClusterDevice
    from evit_nas.searching.parallel.trials import CallResult

LOG = "ray.log"
AT_ONCE = 10_000  # calls that may wait for an answer
OBJECT_STORE_BYTES = 256 * 2**20  # on this machine; an answer has a few hundred bytes
SCRATCH = "evit-nas-ray-"
SOCKET = "session_2026-11-29_07-30-46_096253_4194304/sockets/plasma_store"  # the longest name that Ray gives one
SOCKET_BYTES = 107  # of a socket's whole path at most; sun_path has 108 on Linux, one for the closing zero


class Cluster(Executor):
    """Ray, connected: an executor whose calls trials answer, and the devices of the search. Use as a context manager.

    Args:
        settings: targets, and what Ray should know.
        folder: of the run; Ray's log goes there.
        note: told what is worth reading.

    Raises:
        UsageError: no cluster answers at the address, or no node offers a device of the search.
    """

    def __init__(self, settings: SearchSettings, folder: Path, note: Callable[[str], None]) -> None:
        self._settings, self._folder = settings.cluster, folder
        self._experiment: Any = None
        self._open: set[Future[Any]] = set()
        self._numbers = itertools.count()
        with contextlib.ExitStack() as stack:
            stack.enter_context(_logged(folder / LOG))
            stack.enter_context(_connected(settings, note))
            stack.enter_context(_logged(folder / LOG))  # once more: Ray forgets it while it starts
            self.devices = self._open_devices(settings)
            self.concurrent = self._settings.concurrent or self._places()
            self._stack = stack.pop_all()

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Has a trial call a function that other machines can import; calls are begun in the order of submission.

        Its error is the call's. One that its process or node died of too often is a MeasurementError that "crashed"; if
        the cluster is gone, it is a LostLink.
        """
        from evit_nas.searching.parallel.trials import Call

        result: Future[Any] = Future()
        self._open.add(result)
        result.add_done_callback(self._open.discard)
        answer = self._started().answer.remote(next(self._numbers), Call(function, args, kwargs)).future()
        answer.add_done_callback(lambda done: _pass_on(done, result))
        return result

    def rest(self) -> None:
        """Ends every trial that was begun; what is submitted after that begins anew."""
        if self._open:
            self._end()

    def _end(self) -> None:
        """Ends the experiment: Tune gives back what it held, and writes what it has not written yet."""
        import ray

        with contextlib.suppress(ray.exceptions.RayError):  # it is over already
            ray.get(self._experiment.end.remote())
        ray.kill(self._experiment)
        self._experiment = None
        self._open.clear()

    def peak_memory_mb(self, arch: ArchConfig) -> float | None:
        """Peak resident memory of the network on the first device's node; None where it cannot be had."""
        return self.devices[0].peak_memory_mb(arch)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Ends every trial, and Ray itself if it was started here."""
        if self._experiment is not None and not self._open:
            self._end()
        self._stack.close()

    @property
    def checkpoints(self) -> str:
        """Where trainings leave off, for whichever node goes on with them."""
        return f"{self._storage}/checkpoints"

    @property
    def _storage(self) -> str:
        path = self._settings.storage_path or str(self._folder / "ray")
        return path if "://" in path else str(Path(path).absolute())

    def _open_devices(self, settings: SearchSettings) -> list[ClusterDevice]:
        from evit_nas.searching.parallel.devices import ClusterDevice

        return [ClusterDevice(target.conditions) for target in settings.targets]

    def _places(self) -> int:
        """Trials that the nodes have room for now."""
        import ray

        wanted = {"CPU": self._settings.cpus_per_trial, "GPU": self._settings.gpus_per_trial}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        places = sum(min(int(node.get(name, 0) / share) for name, share in wanted.items() if share) for node in nodes)
        if places == 0:
            raise UsageError(
                f"no node of the cluster has room for a trial: it needs {wanted['CPU']:g} cores and {wanted['GPU']:g} "
                "GPUs. Use a smaller --cpus-per-trial or --gpus-per-trial, or give --concurrent if nodes are to come."
            )
        return places

    def _started(self) -> Any:
        if self._experiment is None:
            import ray
            from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

            from evit_nas.searching.parallel.trials import Experiment

            name = f"{self._folder.name}-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}"
            # beside the driver (with ray:// on the head): of any other node the search is to survive the death
            beside = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            actor = ray.remote(Experiment).options(
                name=name, num_cpus=0, max_concurrency=AT_ONCE, scheduling_strategy=beside
            )
            self._experiment = actor.remote(name, self._settings, self._storage, self.concurrent)
        return self._experiment


def _pass_on(done: Future[CallResult], result: Future[Any]) -> None:
    lost = done.exception()
    error = done.result().error if lost is None else LostLink(f"the cluster is gone: {lost}")
    if error is not None:
        result.set_exception(error)
    else:
        result.set_result(done.result().value)


@contextlib.contextmanager
def _connected(settings: SearchSettings, note: Callable[[str], None]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        import ray

        address, options = settings.cluster.address, dict[str, Any]()
        if address is None:
            stack.enter_context(_peaceful())
            options = _options(settings) | {"_temp_dir": stack.enter_context(_scratch_folder())}
        if ray.is_initialized():
            raise UsageError("this process is connected to Ray already; call ray.shutdown() before the search.")
        if address is not None and (advice := _open_to_all(address)):
            note(advice)
        before = signal.getsignal(signal.SIGTERM)  # Ray puts its own in place, which exits without a word
        stack.callback(signal.signal, signal.SIGTERM, before)
        stack.callback(ray.shutdown)
        try:
            ray.init(address, log_to_driver=False, **options)
        except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:  # a missing token is the last one
            what = f"no Ray cluster answers at --address {address}" if address else "Ray cannot be started here"
            raise UsageError(f"{what}: {in_a_line(error)}") from error
        if callable(before):
            signal.signal(signal.SIGTERM, before)
        yield


def _options(settings: SearchSettings) -> dict[str, Any]:
    """What Ray on this machine offers: every device of the search, and cores for the trials that are wanted at a time.

    Without a wish that is a core less than there are, which measures.
    """
    from evit_nas.searching.parallel.devices import resource

    free = max(usable_cores() - 1, 1)
    wanted = math.ceil((settings.cluster.concurrent or 0) * settings.cluster.cpus_per_trial)
    return {
        "num_cpus": wanted or free,
        "resources": {resource(target.conditions): 1 for target in settings.targets},
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }


def _open_to_all(address: str) -> str:
    """What to say before connecting to an address that others may reach and use; empty if there is no need."""
    from ray._private.utils import read_ray_address

    found = (os.environ.get("RAY_ADDRESS") or read_ray_address() or "") if address == "auto" else address
    host = urlsplit(found if "://" in found else f"//{found}").hostname or ""
    with contextlib.suppress(ValueError):
        if host == "localhost" or ipaddress.ip_address(host).is_loopback:
            return ""
    if not host or os.environ.get("RAY_AUTH_MODE") == "token":
        return ""
    return (
        f"whoever reaches {host} can run programs on its nodes and on this machine, unless Ray asks for a token: set "
        "RAY_AUTH_MODE=token on every node and here, or let the nodes listen on 127.0.0.1 and go through ssh -L."
    )


@contextlib.contextmanager
def _peaceful() -> Iterator[None]:
    """Ray that is started meanwhile listens on 127.0.0.1 alone, reports nothing, and does not put itself last.

    It listens there on systems where it knows no clusters; any other way to say so it takes for a slip, and puts an
    address there that others reach. Its processes give way to all others (nice 15), which would hold up measurements.
    And it answers its driver when a first worker has come up; one that takes a minute it ends, and then never answers.
    """
    from ray._private import ray_constants

    own = {
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
        "RAY_prestart_worker_first_driver": "0",
    }
    # Ray read the variable when it was imported; the processes that it starts read it then
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    variables = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
        for name, value in variables.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _scratch_parent() -> Path:
    """The system's folder for temporary files, or /tmp where that (a batch job's TMPDIR, say) is too long for sockets.

    Raises:
        UsageError: there is no such folder.
    """
    named = tempfile.gettempdir()
    for folder in (named, "/tmp"):
        longest = os.fsencode(f"{folder}/{SCRATCH}12345678/{SOCKET}")  # tempfile adds eight
        if len(longest) <= SOCKET_BYTES and os.access(folder, os.W_OK | os.X_OK):
            return Path(folder)
    raise UsageError(
        f"Ray makes sockets in the folder for temporary files, whose paths may have {SOCKET_BYTES} bytes: {named} is "
        "too long, and /tmp cannot be written. Set TMPDIR to a folder with a short path."
    )


@contextlib.contextmanager
def _scratch_folder() -> Iterator[str]:
    """A new folder that is removed at the end, after those that killed searches left."""
    parent = _scratch_parent()
    for left in parent.glob(f"{SCRATCH}*/.lock"):
        with contextlib.suppress(OSError), left.open(encoding="utf-8") as lock:  # of somebody else, or in use
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left.parent, ignore_errors=True)
    with (
        tempfile.TemporaryDirectory(prefix=SCRATCH, dir=parent, ignore_cleanup_errors=True) as folder,
        (Path(folder) / ".lock").open("w", encoding="utf-8") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


@contextlib.contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Sends what Ray says to a file instead of the terminal: what it logs, and what it prints about its processes."""
    from ray._private import worker

    logger, handler = logging.getLogger("ray"), logging.FileHandler(path, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    before = logger.handlers, logger.propagate, worker.print_to_stdstream
    logger.handlers, logger.propagate = [handler], False
    worker.print_to_stdstream = lambda data, ignore_prefix: logger.warning("\n".join(data["lines"]))
    try:
        yield
    finally:
        logger.handlers, logger.propagate, worker.print_to_stdstream = before
        handler.close()
