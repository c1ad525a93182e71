"""Commands as a user can copy them: every word quoted for the shell where it needs to be."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from evit_nas.errors import EvitNasError

PROGRAM = "evit-nas"
_COMMAND_OR_OPTION = re.compile(  # a command goes to the end of its sentence
    rf"(?P<command>{PROGRAM} [a-z].*?(?=\. |; |\.?$))"
    r"|(?<![\w./-])--(?P<option>[a-z][a-z\d-]*)(?: (?P<value>\d\w*(?:\.\w+)*|[A-Z]+\b))?"
)


def command_line(*words: object) -> str:
    """This program called with `words`, for example `evit-nas resume 'runs/my run'`."""
    return shlex.join([PROGRAM, *map(str, words)])


def typed() -> str:
    """The command line of this process."""
    return command_line(*sys.argv[1:])


def in_python(message: str) -> str:
    """`message` with arguments where it names options: "add budget='5ms'" for "add --budget 5ms".

    Commands in it stay as they are: they are for a terminal.
    """
    return _COMMAND_OR_OPTION.sub(_argument, message)


def _argument(match: re.Match[str]) -> str:
    if match["command"]:
        return match["command"]
    name, value = match["option"].replace("-", "_"), match["value"]
    if value is None:
        return name
    return f"{name}={value}" if value.isdecimal() or value.isupper() else f"{name}={value!r}"


@contextmanager
def said_in_python() -> Iterator[None]:
    """Errors that leave this block speak of arguments."""
    try:
        yield
    except EvitNasError as error:
        error.args = (in_python(str(error)), *error.args[1:])
        raise
