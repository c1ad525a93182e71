"""A search on a cluster: the same trials, values and front as on one machine, whatever dies on the way.

All tests here share one Ray on this machine; the last two start three more, of which two are ended by force.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from evit_nas.accuracy import zero_cost
from evit_nas.arch import ArchConfig
from evit_nas.config import Conditions
from evit_nas.errors import LostLink, MeasurementError, UsageError
from evit_nas.latency import DEVICES, STRICT, Protocol
from evit_nas.searching import study
from tests.fakes import FakeDevice, fake_proxies, latency_of
from tests.processes import family, lives, wait_until
from tests.searches import new_run, search

pytest.importorskip("ray")

from evit_nas.searching.parallel import Cluster

pytestmark = pytest.mark.slow

FIRST, *OTHERS = (ArchConfig.preset(name) for name in ("m0", "m1", "m2"))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Two trials at a time, and the fake device."""
    folder = tmp_path_factory.mktemp("cluster")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DEVICES, "fake", FakeDevice)
        run = new_run(folder / "run", engine="ray", cluster={"concurrent": 2, "max_failures": 1})
        with Cluster(run.settings, run.path, print) as connected:
            yield connected


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    monkeypatch.setitem(DEVICES, "fake", FakeDevice)
    monkeypatch.setattr(zero_cost, "score_all", fake_proxies)


@pytest.fixture
def on_cluster(cluster, monkeypatch):
    """Searches use the cluster of this module."""

    class Connected:
        def __enter__(self):
            return cluster

        def __exit__(self, *exc): ...

    monkeypatch.setattr(study, "open_cluster", lambda run, watch: Connected())


def killed_once(path: Path) -> str:
    """Its process dies when it is called for the first time."""
    if not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def deadly() -> None:
    os._exit(1)


def refused(arch: ArchConfig) -> None:
    raise MeasurementError(f"{arch.key} has no finite score")


def whereabouts() -> tuple[set[int], int, int]:
    import torch

    return os.sched_getaffinity(0), torch.get_num_threads(), os.getpriority(os.PRIO_PROCESS, 0)


def test_a_search_on_the_cluster_is_the_search_on_this_machine(on_cluster, tmp_path):
    """The same trials in the same order with the same values, so fronts of equal hypervolume."""
    here, there = search(new_run(tmp_path / "here")), search(new_run(tmp_path / "there", engine="ray"))
    assert there.trials == here.trials
    assert there.front == here.front
    assert sorted(there.measured) == sorted(here.measured)


def test_a_trial_whose_process_dies_begins_anew(cluster, tmp_path):
    assert cluster.submit(killed_once, tmp_path / "mark").result() == "done"


def test_a_trial_that_always_dies_fails_and_others_go_on(cluster):
    fatal, other = cluster.submit(deadly), cluster.submit(fake_proxies, FIRST)
    with pytest.raises(MeasurementError, match="--max-failures") as failure:
        fatal.result()
    assert failure.value.kind == "crashed"
    assert other.result() == fake_proxies(FIRST)


def test_the_error_of_a_call_is_the_calls_and_is_not_tried_again(cluster):
    with pytest.raises(MeasurementError, match=f"^{FIRST.key} has no finite score$") as failure:
        cluster.submit(refused, FIRST).result()
    assert failure.value.kind == "rejected"


def test_trials_keep_off_the_core_that_measures_have_a_thread_for_each_core_and_the_usual_priority(cluster):
    cores, threads, priority = cluster.submit(whereabouts).result()
    assert cores == (os.sched_getaffinity(0) - {max(os.sched_getaffinity(0))} or os.sched_getaffinity(0))
    assert threads == 1
    assert priority == os.getpriority(os.PRIO_PROCESS, 0)


def test_measurements_of_one_device_take_turns_and_come_from_its_node(cluster):
    (device,) = cluster.devices
    here = FakeDevice(Conditions(device="fake"))
    assert device.context() == here.context()
    assert device.measure(FIRST, Protocol()) == here.measure(FIRST, Protocol())


def test_a_device_that_is_another_machine_now_is_not_believed(cluster, monkeypatch):
    (device,) = cluster.devices
    monkeypatch.setattr(device, "_context", device.context() | {"processor": "another"})
    with pytest.raises(LostLink, match="figures would not compare"):
        device.measure(FIRST, Protocol())


def test_a_device_that_no_node_offers_is_refused_with_the_line_that_offers_it(cluster):
    from evit_nas.searching.parallel.devices import ClusterDevice

    with pytest.raises(UsageError, match=r"""ray start .*--resources='\{"evit_device:cpu": 1\}'"""):
        ClusterDevice(Conditions(device="cpu:2"))


@pytest.mark.parametrize(
    ("device", "protocol", "visit_s", "visits"),
    [
        ("cpu", Protocol(), 120, 1),
        ("torch", Protocol(), 900, 1),
        ("tensorrt", STRICT, 900, 3),
        ("fake", STRICT, 600, 3),
    ],
)
def test_a_node_may_take_as_long_as_a_device_of_this_machine_before_it_counts_as_lost(
    monkeypatch, device, protocol, visit_s, visits
):
    """A compiler takes minutes; a node that restarts meanwhile has ten more."""
    from evit_nas.searching.parallel import devices

    asked = []

    def get(answer, timeout):
        asked.append(timeout)
        return (latency_of(1.0), {}, {}) if len(asked) == 2 else {}

    ray = SimpleNamespace(
        cluster_resources=lambda: {f"evit_device:{device}": 1.0},
        remote=lambda **needs: lambda function: SimpleNamespace(remote=lambda *args: None),
        get=get,
    )
    monkeypatch.setattr(devices, "ray", ray)
    there = devices.ClusterDevice(Conditions(device=device))
    there.measure(FIRST, protocol)
    there.peak_memory_mb(FIRST)
    assert asked == [600, 600 + visit_s * visits, 600 + visit_s]


LOOPBACK = {"0100007F", "0" * 16 + "FFFF00000100007F", "0" * 24 + "01000000"}  # 127.0.0.1, the same in IPv6, ::1


def test_ray_on_this_machine_listens_on_the_loopback_interface_alone(cluster):
    own = {name for pid in family(os.getpid()) for name in open_files(pid)}
    addresses = {address for address, inode in listening() if f"socket:[{inode}]" in own}
    assert addresses
    assert addresses <= LOOPBACK


def listening() -> Iterator[tuple[str, str]]:
    """Address and inode of each socket of the machine that listens."""
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        for line in table.read_text().splitlines()[1:] if table.exists() else ():
            _, local, _, state, *rest = line.split()
            if state == "0A":
                yield local.partition(":")[0], rest[5]


def open_files(pid: int) -> Iterator[str]:
    with suppress(FileNotFoundError):  # the process has ended
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                yield os.readlink(link)


SEARCH = """
import faulthandler, signal, sys, time
from pathlib import Path
from evit_nas.accuracy import zero_cost
from evit_nas.latency import DEVICES
from evit_nas.runs import Run
from evit_nas.searching.study import Search
from tests.fakes import FakeDevice, fake_proxies
from tests.searches import Silent
DEVICES["fake"], zero_cost.score_all = FakeDevice, fake_proxies

class Slow(Silent):
    "So slow that a search is ended long before its end, but for the paper's networks."
    def update(self, status):
        time.sleep(1 if status.done < 8 else 60)

if __name__ == "__main__":
    faulthandler.register(signal.SIGUSR1)
    Search(Run.open(Path(sys.argv[1])), Slow()).run()
"""


def begun(run: Path, tmp_path: Path, scratch: Path) -> subprocess.Popen[bytes]:
    (tmp_path / "search.py").write_text(SEARCH)
    paths = {"PYTHONPATH": str(Path(__file__).parents[1]), "TMPDIR": str(scratch)}
    environment = os.environ | paths
    return subprocess.Popen([sys.executable, tmp_path / "search.py", run], env=environment, start_new_session=True)


@pytest.fixture
def scratch():
    """A folder for temporary files; the paths of sockets in it must be short."""
    with tempfile.TemporaryDirectory(prefix="t-") as folder:
        yield Path(folder)


CONNECTED = """
import sys
from pathlib import Path
from evit_nas.runs import Run
from evit_nas.searching.parallel.cluster import _connected
with _connected(Run.open(Path(sys.argv[1])).settings, print):
    pass
"""


def test_a_first_worker_that_never_comes_up_does_not_keep_the_search_from_ray(tmp_path, scratch):
    run = new_run(tmp_path / "run", engine="ray")
    environment = os.environ | {"TMPDIR": str(scratch), "RAY_worker_register_timeout_seconds": "0"}
    driver = subprocess.Popen([sys.executable, "-c", CONNECTED, run.path], env=environment)
    try:
        assert driver.wait(timeout=120) == 0
    finally:
        driver.kill()


def measured(run: Path) -> int:
    journal = run / "measurements.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def test_a_driver_that_is_killed_and_then_interrupted_leaves_nothing_behind_and_its_run_comes_to_the_same(
    on_cluster, tmp_path, scratch
):
    """The last part of it on the cluster of this module."""
    whole = search(new_run(tmp_path / "whole"))
    run = new_run(tmp_path / "run", engine="ray", cluster={"concurrent": 2})

    killed = begun(run.path, tmp_path, scratch)
    wait_until(lambda: measured(run.path) >= 5)  # of some sixty: it must be far from its end twice
    left = [pid for pid in family(killed.pid) if b"Agent" not in Path(f"/proc/{pid}/cmdline").read_bytes()]
    killed.kill()  # Ray's two agents for each node take a minute to see it, and do nothing meanwhile
    killed.wait()
    assert list(scratch.glob("evit-nas-ray-*"))  # which the next one clears away

    before = measured(run.path)
    interrupted = begun(run.path, tmp_path, scratch)
    wait_until(lambda: measured(run.path) > before + 1)  # it is at work, and far from its end
    started = family(interrupted.pid)
    interrupted.send_signal(signal.SIGINT)
    try:
        interrupted.wait(timeout=200)
    except subprocess.TimeoutExpired:  # twice, beside other work: says where it stands
        interrupted.send_signal(signal.SIGUSR1)
        interrupted.wait(timeout=5)
    wait_until(lambda: not any(map(lives, [*left, *started])))
    assert not list(scratch.glob("evit-nas-ray-*"))

    assert measured(run.path) < len(whole.measured)
    found = search(run)
    assert found.trials == whole.trials
    assert found.front == whole.front
    assert sorted(found.measured) == sorted(whole.measured)
