"""For all tests: one torch thread, a cache folder of their own, and the same random examples in every run."""

import os
import sys
from typing import NamedTuple

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; child processes inherit it

settings.register_profile("evit_nas", derandomize=True, deadline=None)
settings.load_profile("evit_nas")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


class Result(NamedTuple):
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    """Runs the command line in this process, in an empty folder, on the fake device and with fake proxies."""
    from evit_nas import cli
    from evit_nas.accuracy import zero_cost
    from evit_nas.latency import DEVICES
    from tests.fakes import FakeDevice, fake_proxies

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setitem(DEVICES, "fake", FakeDevice)
    monkeypatch.setattr(zero_cost, "score_all", fake_proxies)

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
