"""Worker processes of one thread each, for what keeps a core busy for seconds: proxies and short trainings.

Two single-threaded workers make more of two cores than one computation with two threads. They end with the process
that started them, however that ends.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType

WATCH_PARENT_S = 2.0


class _Process(SpawnProcess):
    """A process that does not import the program it is begun by: what it computes is in this package.

    `multiprocessing` would run a script once more that is not guarded by `if __name__ == "__main__"`, and look for the
    file of one that was piped into the interpreter.
    """

    def start(self) -> None:
        program = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = program


class _Context(SpawnContext):
    Process = _Process


def _nothing() -> None:  # a lambda cannot be sent to a process
    pass


def worker_pool(
    count: int, avoid: frozenset[int] = frozenset(), ready: Callable[[], None] = _nothing
) -> ProcessPoolExecutor:
    """A pool of up to `count` fresh processes.

    They keep off the cores in `avoid`, such as the one that measurements are pinned to, if that leaves them any.
    `ready` is called in each of them before its first work.
    """
    return ProcessPoolExecutor(count, mp_context=_Context(), initializer=_begin, initargs=(os.getpid(), avoid, ready))


def end(pool: ProcessPoolExecutor) -> None:
    """Ends the workers at once, in the middle of what they do, and waits until they are gone."""
    for process in list((pool._processes or {}).values()):  # shutdown alone waits for what they are at
        process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)


def _begin(parent: int, avoid: frozenset[int], ready: Callable[[], None]) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal's are for the parent, which ends its workers
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, os.sched_getaffinity(0) - avoid or os.sched_getaffinity(0))
    import torch  # takes seconds, so the parent is watched before

    torch.set_num_threads(1)
    ready()


def _end_with(parent: int) -> None:
    """Ends this process once its parent is another one; a killed parent cannot do it."""
    while os.getppid() == parent:
        time.sleep(WATCH_PARENT_S)
    os._exit(1)  # sys.exit would end this thread alone
