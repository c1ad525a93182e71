"""What a person sees: tables on standard output, talk and progress on standard error, both fit 80 columns."""

from __future__ import annotations

import csv
import io
import json
import sys
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

import yaml
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from evit_nas.search.status import Status
from evit_nas.train.status import TrainStatus

PLAIN_EVERY_S = 10.0  # between progress lines when the output is not a terminal


class Format(StrEnum):
    """How data is printed."""

    table = "table"
    json = "json"
    csv = "csv"
    yaml = "yaml"


def _console(*, stderr: bool = False) -> Console:
    """Prints words as they are: in remote:tiger:8642 there is no emoji."""
    return Console(stderr=stderr, highlight=False, emoji=False)


def say(message: str) -> None:
    """One line of talk on standard error."""
    _console(stderr=True).print(escape(message), soft_wrap=True)


def emit(rows: Sequence[Mapping[str, Any]], format_: Format, table: Table) -> None:
    """Data on standard output: `table` for people, `rows` for programs."""
    if format_ is Format.table:
        _console().print(table)
    elif format_ is Format.json:
        print(json.dumps(list(rows), indent=2))
    elif format_ is Format.yaml:
        print(yaml.safe_dump([dict(row) for row in rows], sort_keys=False), end="")
    else:
        print(_csv(rows), end="")


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    if rows:
        writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """A CSV cell: what has parts is written as JSON, not as Python writes it."""
    return json.dumps(value) if isinstance(value, dict | list) else value


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[str] = ()) -> Table:
    """A table; the columns in `text` (by default the first) are flush left, the others are numbers."""
    table = Table(title=escape(title), title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(
            escape(column), justify="left" if column in (text or columns[:1]) else "right", overflow="fold"
        )
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    return table


def millions(count: float) -> str:
    """A count of parameters or MACs, for example 6.9M or 1.2G."""
    return f"{count / 1e9:.2f}G" if count >= 1e9 else f"{count / 1e6:.2f}M" if count < 1e7 else f"{count / 1e6:.1f}M"


def plain(value: Any) -> Any:
    """Tuples as lists, inside and out: what JSON and YAML can say."""
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


def duration(seconds: float) -> str:
    """Seconds as people say them: 45s, 3m20s, 2h05m."""
    minutes, secs = divmod(int(seconds + 0.5), 60)
    if minutes < 60:
        return f"{minutes}m{secs:02d}s" if minutes else f"{secs}s"
    return f"{minutes // 60}h{minutes % 60:02d}m"


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
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            TextColumn("ETA {task.fields[eta]}"),
        )
        self._live = Live(self._progress, console=_console(stderr=True), transient=True)
        self._task = self._progress.add_task("", total=None, eta="-", visible=False)

    def note(self, message: str) -> None:
        """See Watcher."""
        self._live.console.print(escape(message))

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
