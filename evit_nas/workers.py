"""Worker processes of one thread each, for what keeps a core busy for seconds: proxies and short trainings.

Two single-threaded workers make more of two cores than one computation with two threads. They end with the process
that started them, however that ends.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

WATCH_PARENT_S = 2.0


def worker_pool(count: int, avoid: frozenset[int] = frozenset()) -> ProcessPoolExecutor:
    """A pool of up to `count` fresh processes.

    They keep off the cores in `avoid`, such as the one that measurements are pinned to, if that leaves them any.
    """
    return ProcessPoolExecutor(
        count, mp_context=get_context("spawn"), initializer=_begin, initargs=(os.getpid(), avoid)
    )


def end(pool: ProcessPoolExecutor) -> None:
    """Ends the workers at once, in the middle of what they do, and waits until they are gone."""
    for process in list((pool._processes or {}).values()):
        process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)


def _begin(parent: int, avoid: frozenset[int]) -> None:
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal's are for the parent, which ends its workers
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, os.sched_getaffinity(0) - avoid or os.sched_getaffinity(0))
    import torch  # takes seconds, so the parent is watched before

    torch.set_num_threads(1)


def _end_with(parent: int) -> None:
    """Ends this process once its parent is another one; a killed parent cannot do it."""
    while os.getppid() == parent:
        time.sleep(WATCH_PARENT_S)
    os._exit(1)
