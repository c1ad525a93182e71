"""A command looks through its data once: all of its steps are given the images that there were when it began.

A folder of a million pictures takes minutes to list, and a training asks for it five times.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evit_nas.data.images import Source

_opened: ContextVar[dict[tuple[str, int], Source] | None] = ContextVar("_opened", default=None)


@contextmanager
def opened_once() -> Iterator[None]:
    """A command, and what is within it: `open_source` gives all of it what it opened first of a place and a seed.

    The next command opens anew: in a notebook, pictures may have come in between.
    """
    token = _opened.set(opened())
    try:
        yield
    finally:
        _opened.reset(token)


def opened() -> dict[tuple[str, int], Source]:
    """What the command has opened so far, by place and seed; outside of one, a dictionary that nobody keeps."""
    known = _opened.get()
    return {} if known is None else known
