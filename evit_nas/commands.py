"""Commands as a user can copy them: every word quoted for the shell where it needs to be."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from evit_nas.errors import EvitNasError

PROGRAM = "evit-nas"
_SET = r"--set \w+=[\w.+-]*\w"
_COMMAND_OR_OPTION = re.compile(  # a command goes to the end of its sentence
    rf"(?P<command>{PROGRAM} [a-z].*?(?=\. |; |\.?$))"
    rf"|(?<![\w./-])(?:(?P<fields>{_SET}(?: {_SET})*)"
    r"|--(?P<flag>anyway|download|front|resume)\b"
    r"|--(?P<choice>accuracy|engine|precision|recipe|scheduler) (?P<chosen>[a-z][\w-]*)"
    r"|--(?P<option>[a-z][a-z\d-]*)(?: (?P<value>\d\w*(?:\.\w+)*|[A-Z]+\b))?)"
)


def command_line(*words: object) -> str:
    """This program called with `words`, for example `evit-nas resume 'runs/my run'`."""
    return shlex.join([PROGRAM, *map(str, words)])


def typed() -> str:
    """The command line of this process."""
    return command_line(*sys.argv[1:])


def in_python(message: str) -> str:
    """`message` with arguments where it names options: "add budget='5ms'" for "add --budget 5ms".

    What `--set` changes is an entry of `changes`.

    Commands in it stay as they are: they are for a terminal.
    """
    return _COMMAND_OR_OPTION.sub(_argument, message)


def _argument(match: re.Match[str]) -> str:
    if match["command"]:
        return match["command"]
    if match["fields"]:
        pairs = [pair.removeprefix("--set ").partition("=") for pair in re.findall(_SET, match["fields"])]
        return f"changes={{{', '.join(f'{field!r}: {_literal(value)}' for field, _, value in pairs)}}}"
    if match["flag"]:
        return f"{match['flag']}=True"
    if match["choice"]:
        return f"{match['choice']}={match['chosen']!r}"
    name, value = match["option"].replace("-", "_"), match["value"]
    if value is None:
        return name
    return f"{name}={value}" if value.isdecimal() or value.isupper() else f"{name}={value!r}"


def _literal(value: str) -> str:
    """As Python has it: numbers as they are, everything else in quotes."""
    try:
        float(value)
    except ValueError:
        return repr(value)
    return value


@contextmanager
def said_in_python() -> Iterator[None]:
    """Errors that leave this block speak of arguments."""
    try:
        yield
    except EvitNasError as error:
        error.args = (in_python(str(error)), *error.args[1:])
        raise
