"""For all tests: one torch thread, a cache folder of their own, and the same random examples in every run."""

import os

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; child processes inherit it

settings.register_profile("evit_nas", derandomize=True, deadline=None)
settings.load_profile("evit_nas")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
