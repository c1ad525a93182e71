"""For tests that end processes: who descends from one, and whether it has ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


def children_of(parent: int) -> list[int]:
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(pid) for task in tasks for pid in task.read_text().split()]


def family(pid: int) -> list[int]:
    """A process and everything that descends from it."""
    return [pid, *(found for child in children_of(pid) for found in family(child))]


def lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def wait_until(condition: Callable[[], object], seconds: float = 240) -> None:
    """Returns once it holds, and fails long before the test's time is over if it never does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)
