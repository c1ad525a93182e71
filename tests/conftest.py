"""For all tests: one torch thread, and the same random examples in every run."""

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; child processes inherit it

settings.register_profile("evit_nas", derandomize=True, deadline=None)
settings.load_profile("evit_nas")
