"""What a person reads: tables on standard output, talk on standard error, both fit 80 columns.

What is to be copied stays whole at any width: a name, a number, a command. And what the terminal has no letters for is
spelled with those that it has.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TextIO

import yaml
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from evit_nas.errors import EvitNasError

UNLIMITED = 10_000  # columns: what is not read on a terminal has no width
SPELLED = "adapted"  # our handler of what an encoding lacks
_SPELLING = str.maketrans("±·×•│└─…→–’µ", "~|x*|+-.>-'u")  # one character each, so that columns stay in line


class Format(StrEnum):
    """How data is printed."""

    table = "table"
    json = "json"
    csv = "csv"
    yaml = "yaml"


def adapt_streams() -> None:
    """From here on no character stops what is printed: what an encoding lacks is spelled with what it has.

    Bytes of a file's name that were not text when they came in go out as they came.
    """
    codecs.register_error(SPELLED, _spelled)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=SPELLED)


def _spelled(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start]
    if "\udc80" <= lacking <= "\udcff":
        return lacking.encode("utf-8", "surrogateescape"), error.start + 1
    return lacking.translate(_SPELLING).encode("ascii", "backslashreplace").decode(), error.start + 1


@contextmanager
def delivered() -> Iterator[None]:
    """What is printed inside is on its way when this ends, or the error says that it is not.

    Raises:
        EvitNasError: standard output takes no more, for example on a full disk.
    """
    try:
        yield
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _forget(sys.stdout)
        if isinstance(error, BrokenPipeError):  # nobody reads on, and wants to hear of it
            raise
        raise EvitNasError(f"standard output cannot be written: {error.strerror}.") from error


def _forget(stream: TextIO) -> None:
    """Drops what could not be written to `stream`, which the interpreter would write again at its exit."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def open_console(*, stderr: bool = False) -> Console:
    """Prints words as they are: in remote:tiger:8642 there is no emoji."""
    console = Console(stderr=stderr, highlight=False, emoji=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNLIMITED
    return console


def say(message: str) -> None:
    """One line of talk on standard error; where that cannot be written, talk is lost and work is not."""
    try:
        open_console(stderr=True).print(escape(message), soft_wrap=True)
    except BrokenPipeError:
        raise
    except OSError:
        _forget(sys.stderr)


def put(text: str) -> None:
    """Data on standard output as it is.

    Raises:
        EvitNasError: standard output takes no more.
    """
    with delivered():
        print(text, end="")


def emit(rows: Sequence[Mapping[str, Any]], format_: Format, sheet: Sheet) -> None:
    """Data on standard output: `sheet` for people, `rows` for programs.

    Raises:
        EvitNasError: standard output takes no more.
    """
    if format_ is Format.table:
        with delivered():
            open_console().print(sheet, crop=False)
    elif format_ is Format.json:
        put(json.dumps(list(rows), indent=2) + "\n")
    elif format_ is Format.yaml:
        put(yaml.safe_dump([dict(row) for row in rows], sort_keys=False))
    else:
        put(_csv(rows))


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


@dataclass(frozen=True)
class Sheet:
    """A table where the width allows one, and a record for each row where it does not.

    Names (the first column) and numbers are never broken; the other columns in `text` and the headers are, at spaces.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: Sequence[str]
    spare: Sequence[str] = ()
    """Columns that may go, the first one first; which ones did is said."""
    block: int = 0
    """Columns after the first that belong together, as those of one network do: blocks for which there is no room
    beside each other stand one below the other."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.title, style="bold", overflow="ignore")
        spare = [column for column in self.spare if column in self.columns]
        for count in range(len(spare) + 1):
            gone = spare[:count]
            if table := self._table([i for i, name in enumerate(self.columns) if name not in gone], options.max_width):
                yield table
                if gone:
                    yield f"no room for {', '.join(map(_flat, gone))}: --format csv has all"
                return
        if tables := self._blocks(options.max_width):
            yield from tables
            return
        longest = max(cell_len(_flat(column)) for column in self.columns)
        yield ""
        for row in self.rows:
            for column, cell in zip(self.columns, row, strict=True):
                label = _flat(column)
                if cell:
                    line = f"{label}{' ' * (longest - cell_len(label))}  {cell}"
                    yield Text(line, no_wrap=True, overflow="ignore")
            yield ""

    def _blocks(self, width: int) -> list[Table]:
        """As few tables as `width` allows, each with the first column and some of the blocks; none if one is wider."""
        tables: list[Table] = []
        shown: list[int] = []
        for first in range(1, len(self.columns), self.block) if self.block else ():
            block = [*range(first, first + self.block)]
            if shown and (table := self._table([*shown, *block], width)):
                tables[-1], shown = table, [*shown, *block]
            elif table := self._table([0, *block], width):
                tables, shown = [*tables, table], [0, *block]
            else:
                return []
        return tables

    def _table(self, shown: Sequence[int], width: int) -> Table | None:
        """The columns with these indices, in no more than `width`; None if they do not fit."""
        for padding in (1, 0):
            if widths := self._widths(shown, width - (2 * padding + 1) * (len(shown) - 1) - 2):
                break
        else:
            return None
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, padding))
        for index, width in zip(shown, widths, strict=True):
            column = self.columns[index]
            table.add_column(escape(column), justify="left" if column in self.text else "right", width=width)
        for row in self.rows:
            table.add_row(*(escape(row[index]) for index in shown))
        return table

    def _widths(self, shown: Sequence[int], room: int) -> list[int] | None:
        """Of each column, `room` in all: the widest that can be broken gives way first; None if they do not fit."""
        widths, least = [], []
        for index in shown:
            column, cells = self.columns[index], [row[index] for row in self.rows]
            whole = max(map(_longest_line, [column, *cells]))
            words = [*column.split(), *(cells if index == 0 or column not in self.text else " ".join(cells).split())]
            widths.append(whole)
            least.append(max(map(_longest_line, words), default=0))
        if sum(least) > room:
            return None
        while sum(widths) > room:
            widths[max((w, i) for i, w in enumerate(widths) if w > least[i])[1]] -= 1
        return widths


def make_table(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    text: Sequence[str] = (),
    spare: Sequence[str] = (),
    block: int = 0,
) -> Sheet:
    """A table; the columns in `text` (by default the first) are flush left, the others are numbers. See Sheet."""
    return Sheet(title, columns, rows, text or columns[:1], spare, block)


def _longest_line(text: str) -> int:
    return max(map(cell_len, text.splitlines()), default=0)


def _flat(header: str) -> str:
    return " ".join(header.split())


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
