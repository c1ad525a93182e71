"""What can go wrong, grouped by who can act on it; the CLI turns each into a message and an exit code."""

from __future__ import annotations

import difflib
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice

NAMED = 5  # of many, in a message


class EvitNasError(Exception):
    """Base of every error this package raises on purpose; `exit_code` is what the CLI returns."""

    exit_code = 1


class UsageError(EvitNasError, ValueError):
    """The user gave something wrong: the message says the rule, the value and the way out."""

    exit_code = 2


class Infeasible(EvitNasError):
    """Everything worked, but no architecture meets the limits."""


class MeasurementError(EvitNasError):
    """A number could not be had: the runtime rejected the graph, crashed or ran out of time, or a proxy diverged.

    `kind` is one of "rejected" (the runtime or the proxy refused this network), "timeout", "out of memory", "crashed"
    and "noisy" (measured, but not to be trusted).
    """

    def __init__(self, message: str, kind: str = "rejected") -> None:
        super().__init__(message)
        self.kind = kind


class LostLink(EvitNasError):
    """A remote device or the cluster is out of reach: no network's fault, and asking again later may help."""


class RunError(EvitNasError):
    """A run folder cannot be used as asked: locked by another process, damaged, or for another search."""

    exit_code = 2


class Interrupted(BaseException):
    """The user pressed Ctrl-C, or the system wants the process to end.

    Not an Exception: no handler of failed trials may swallow it. The exit code is that of shells: 130 after Ctrl-C, 143
    after SIGTERM, 129 after SIGHUP.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@contextmanager
def interruptions() -> Iterator[None]:
    """Lets an interruption out as what it is: one that C code met comes out of it as a SystemError (of Ray's, say)."""
    try:
        yield
    except SystemError as error:
        if isinstance(error.__cause__, Interrupted):
            raise error.__cause__ from None
        raise


def out_of_memory(words: str) -> bool:
    """Whether the name and text of an error mean want of memory; Python, torch, C++ and protobuf differ."""
    known = ("memoryerror", "out of memory", "allocate memory", "bad_alloc", "failed to serialize proto")
    return any(phrase in words.lower() for phrase in known)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A sentence that lists the known names and, first, the nearest one to `word`."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    return f"{hint}Known: {', '.join(names)}."


def first_few(names: Iterable[str], most: int = NAMED) -> str:
    """The first of `names`, for a message; no more of them are asked for than it takes to know if there are others."""
    first = list(islice(names, most + 1))
    return ", ".join(first[:most]) + (", ..." if len(first) > most else "")


def in_a_line(error: BaseException, kind: bool = False, most: int | None = None) -> str:
    """What an error says, after its type's name if `kind`, on one line of at most `most` characters."""
    text = f"{type(error).__name__}: {error}" if kind else str(error)
    return " ".join(text.split())[:most]
