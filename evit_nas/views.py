"""How far work is: a live picture on a terminal, lines in a pipe, the log where nobody looks."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from evit_nas.console import duration, open_console, say
from evit_nas.searching.status import Status
from evit_nas.training.status import TrainStatus

_log = logging.getLogger(__name__)
PLAIN_EVERY_S = 10.0  # between lines where the output is not a terminal


def _summary(status: Status) -> str:
    best = "-" if status.best_score is None else f"{status.best_score:.3f}"
    failed = f" · {status.failed} failed" if status.failed else ""
    return f"front {len(status.front)} · best {best} · {status.feasible} in budget{failed}"


def scatter(status: Status, columns: int = 60, lines: int = 8) -> str:
    """The front so far, score over latency up to the budget; no line has more than `columns` + 9 characters."""
    grid = [[" "] * columns for _ in range(lines)]
    low, high = (pick((score for _, score in status.front), default=0.0) for pick in (min, max))
    for ms, score in status.front:
        x = min(int(ms / status.budget_ms * columns), columns - 1)
        y = int((high - score) / (high - low or 1) * (lines - 1))
        grid[y][x] = "•"
    labels = [f"{high:8.3g}", *[" " * 8] * (lines - 2), f"{low:8.3g}"]
    rows = [f"{label}│{''.join(row).rstrip()}" for label, row in zip(labels, grid, strict=True)]
    limit = f"{status.budget_ms:g} ms"
    axis = "0".ljust(columns - len(limit)) + limit
    return "\n".join([*rows, f"{'':8}└{'─' * columns}", f"{'':9}{axis}"])


def _training_line(status: TrainStatus) -> str:
    best = "" if status.best_top1 is None else f" · best {status.best_top1:.2f} %"
    return f"{status.name} · loss {status.loss:.3f} · {status.images_per_s:,.0f} img/s{best}"


class PlainView:
    """Progress as lines, for logs and pipes."""

    def __init__(self) -> None:
        self._next = time.monotonic() + PLAIN_EVERY_S

    def note(self, message: str) -> None:
        """See Watcher."""
        say(message)

    def step(self, what: str, done: int, total: int) -> None:
        """See Watcher."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_EVERY_S
            say(f"{what}: {done}/{total}")

    def update(self, status: Status) -> None:
        """See Watcher."""
        if time.monotonic() >= self._next or status.done >= status.total:
            self._next = time.monotonic() + PLAIN_EVERY_S
            eta = f" · ETA {duration(status.eta_s)}" if status.done < status.total else ""
            say(f"{status.done}/{status.total} · {_summary(status)}{eta}")

    def trained(self, status: TrainStatus) -> None:
        """See TrainWatcher."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + PLAIN_EVERY_S
            where = f"epoch {status.epoch + 1}/{status.epochs}, step {status.step}/{status.steps}"
            say(f"{_training_line(status)} · {where} · ETA {duration(status.eta_s)}")

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *exc: object) -> None: ...


class LiveView:
    """Progress as a live picture of a few lines, for terminals: the front so far, its latest members, and a bar."""

    def __init__(self) -> None:
        self._progress = Progress(
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TextColumn("{task.description}", markup=False),  # names may hold brackets: remote:[fe80::2]
            TimeElapsedColumn(),
            TextColumn("ETA {task.fields[eta]}"),
        )
        self._live = Live(self._progress, console=open_console(stderr=True), transient=True)
        self._task = self._progress.add_task("", total=None, eta="-", visible=False)

    def note(self, message: str) -> None:
        """See Watcher."""
        self._live.console.print(escape(message), soft_wrap=True)  # commands in it stay whole, to be copied

    def step(self, what: str, done: int, total: int) -> None:
        """See Watcher."""
        self._progress.update(self._task, completed=done, total=total, description=what, eta="-", visible=True)
        self._live.update(self._progress)

    def update(self, status: Status) -> None:
        """See Watcher."""
        self._progress.update(
            self._task,
            completed=status.done,
            total=status.total,
            description=_summary(status),
            eta=duration(status.eta_s),
            visible=True,
        )
        found = "".join(f"\n  {done}: {ms:.2f} ms, score {score:.4g}" for done, ms, score in status.latest)
        about = f"{status.per_minute:.0f} a minute; latest on the front, after so many:{found or ' none yet'}"
        self._live.update(Group(scatter(status), about, self._progress))

    def trained(self, status: TrainStatus) -> None:
        """See TrainWatcher."""
        self._progress.update(
            self._task,
            completed=status.epoch * status.steps + status.step,
            total=status.epochs * status.steps,
            description=_training_line(status),
            eta=duration(status.eta_s),
            visible=True,
        )

    def __enter__(self) -> LiveView:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()


def progress_view() -> LiveView | PlainView:
    """The live view on a terminal, lines elsewhere."""
    return LiveView() if sys.stderr.isatty() else PlainView()


@contextmanager
def onlooker() -> Iterator[Any]:
    """What watches work that was called from Python: shown on a terminal and in a notebook, else told to the log."""
    if sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules):
        with progress_view() as view:
            yield view
    else:
        yield _Logged()


class _Logged:
    """Watches a search or a training that nobody looks at."""

    def note(self, message: str) -> None:
        _log.info(message)

    def step(self, what: str, done: int, total: int) -> None:
        _log.debug("%s: %d/%d", what, done, total)

    def update(self, status: Status) -> None:
        _log.debug("%d/%d", status.done, status.total)

    def trained(self, status: TrainStatus) -> None:
        _log.debug("%s: epoch %d/%d, loss %.3f", status.name, status.epoch, status.epochs, status.loss)
