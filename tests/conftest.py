"""For all tests: one torch thread, a cache folder of their own, and the same random examples in every run."""

import contextlib
import itertools
import os
import resource
import shutil
import signal
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from evit_nas.latency.yardstick import Yardstick

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; child processes inherit it

settings.register_profile("evit_nas", derandomize=True, deadline=None)
settings.load_profile("evit_nas")


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk():
    """No test cuts the power: what is written is there for whoever reads it, seen to the disk or not. On a slow disk a
    search waits for that as long as it computes.
    """
    from evit_nas.searching import storage

    connected = storage._connected

    def at_once(file):
        connection = connected(file)
        connection.execute("PRAGMA synchronous = OFF")
        return connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        patch.setattr(storage, "_connected", at_once)
        yield


@cache
def _a_yardstick(conditions: str) -> "Yardstick":
    """As a device has it that was used before: learning one takes half a minute."""
    from evit_nas.config import Conditions
    from evit_nas.latency.yardstick import MOMENT_S, Window, Yardstick, identity_of

    identity = identity_of(Conditions.model_validate_json(conditions))
    ms = 2.0 * Conditions.model_validate_json(conditions).batch
    windows = [Window(ms=ms, shape=(1, 3, 6), beside_work=False, at=MOMENT_S * number) for number in range(3)]
    return Yardstick(identity=identity, windows=windows, calm=True, moments=1_000_000)


def used_before() -> None:
    """Puts the yardstick of the device cpu into the cache folder, for commands that are processes of their own."""
    from evit_nas.latency.yardstick import path_of

    known = _a_yardstick("{}")
    path_of(known.identity).write_text(known.model_dump_json(), encoding="utf-8")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Where every device of this machine has been used before."""
    from evit_nas.latency import local, yardstick

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))

    def identity_of(conditions):
        with contextlib.suppress(ImportError):  # of an imaginary runtime
            return yardstick.kept(_a_yardstick(conditions.model_dump_json())).identity
        return "imaginary"

    monkeypatch.setattr(local, "identity_of", identity_of)  # asked whenever a measuring process starts
    used_before()


@pytest.fixture(autouse=True)
def _own_signals():
    """The command line, run in this process, takes over what would end it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def full_disk():
    """A context in which no file can grow beyond a few thousand bytes, or fewer, as on a disk that is full."""

    @contextlib.contextmanager
    def full(holds: int = 5000) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (holds, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return full


class Result(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch, capsys, tmp_path, fakes):
    """Runs the command line in this process, in an empty folder, on the fake device and with fake proxies."""
    from evit_nas import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["evit-nas", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code or 0
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return call


@pytest.fixture
def walks(monkeypatch):
    """The folders of images that were looked through, in order."""
    from evit_nas.data import sources

    walks, walk = [], sources.open_folder

    def counted(path, seed):
        walks.append(path.name)
        return walk(path, seed)

    monkeypatch.setattr(sources, "open_folder", counted)
    return walks


@pytest.fixture
def fakes(monkeypatch):
    """The device "fake", and proxies that cost nothing."""
    from evit_nas.accuracy import zero_cost
    from evit_nas.latency import DEVICES
    from tests.fakes import FakeDevice, fake_proxies

    FakeDevice.calls.clear()
    monkeypatch.setitem(DEVICES, "fake", FakeDevice)
    monkeypatch.setattr(zero_cost, "score_all", fake_proxies)


@pytest.fixture
def new_run(tmp_path, fakes):
    """Makes runs of a small search on fake devices."""
    from evit_nas.config import SearchSettings
    from evit_nas.runs import Run
    from evit_nas.space import SearchSpace

    numbers = itertools.count()

    def create(budget_ms=1.2, trials=24, pool=6, seed=0, space="efficientvit-tiny", devices=("fake",), **more):
        found = SearchSpace.load(space) if isinstance(space, str) else space
        settings = SearchSettings(
            space_name="x",
            space=found,
            targets=[{"conditions": {"device": device}, "budget_ms": budget_ms} for device in devices],
            trials=trials,
            pool=pool,
            seed=seed,
            **more,
        )
        return Run.create(tmp_path / f"run{next(numbers)}", settings, {}, "evit-nas search")

    return create


_FINISHED: dict[tuple[str, ...], Path] = {}  # searches of this process, by their settings and what else moves them


@pytest.fixture
def finished_run(new_run, tmp_path_factory):
    """Makes runs as `new_run` does and searches them to the end: once for equal settings, of which each test gets a
    copy. For tests of what a search leaves. `kind` tells apart what settings do not: fakes that were changed before.
    """
    from evit_nas.latency import DEVICES
    from evit_nas.runs import Run
    from evit_nas.searching.study import Search
    from tests.searches import Silent

    def create(kind="", **changes):
        run = new_run(**changes)
        known_by = (kind, DEVICES["fake"].__name__, run.settings.model_dump_json())
        if known_by not in _FINISHED:
            Search(run, Silent()).run()
            _FINISHED[known_by] = tmp_path_factory.mktemp("finished") / "run"
            shutil.copytree(run.path, _FINISHED[known_by])
        else:
            shutil.copytree(_FINISHED[known_by], run.path, dirs_exist_ok=True)
        return Run.open(run.path)

    return create
