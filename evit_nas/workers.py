"""Worker processes of one thread each, for what keeps a core busy for seconds: proxies and short trainings.

Two single-threaded workers make more of two cores than one computation with two threads. They end with the process
that started them, however that ends.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

WATCH_PARENT_S = 2.0


def worker_pool(
    count: int, prepare: Callable[..., None] | None = None, *args: Any, avoid: frozenset[int] = frozenset()
) -> ProcessPoolExecutor:
    """A pool of `count` fresh processes; each calls `prepare(*args)` before its first task.

    They keep off the cores in `avoid`, such as the one that measurements are pinned to, if that leaves them any.
    """
    return ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=_begin, initargs=(os.getpid(), avoid, prepare, args)
    )


def end(pool: ProcessPoolExecutor) -> None:
    """Ends the workers at once, in the middle of what they do."""
    for process in list((pool._processes or {}).values()):
        process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)


def _begin(parent: int, avoid: frozenset[int], prepare: Callable[..., None] | None, args: tuple[Any, ...]) -> None:
    import signal

    import torch

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, os.sched_getaffinity(0) - avoid or os.sched_getaffinity(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends its workers
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    if prepare is not None:
        prepare(*args)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_PARENT_S)
    os._exit(1)
