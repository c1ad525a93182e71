"""Commands as a user can copy them: every word quoted for the shell where it needs to be."""

from __future__ import annotations

import shlex
import sys

PROGRAM = "evit-nas"


def command_line(*words: object) -> str:
    """This program called with `words`, for example `evit-nas resume 'runs/my run'`."""
    return shlex.join([PROGRAM, *map(str, words)])


def typed() -> str:
    """The command line of this process."""
    return command_line(*sys.argv[1:])
