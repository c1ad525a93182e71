"""The command line: one function a verb, a file for each family of verbs. Data goes to standard output, talk to
standard error.

Exit codes: 0 done, 1 nothing feasible, a check failed or nobody read the output to its end, 2 wrong use, 130
interrupted (143 by SIGTERM, 129 by SIGHUP). Nothing heavy is imported before the verb that needs it runs.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

# Each adds its verbs, in the order of --help.
# isort: off
from evit_nas.cli import (
    make as make,
    search as search,
    train as train,
    supernet as supernet,
    predict as predict,
    analyze as analyze,
    runs as runs,
    archs as archs,
    proxies as proxies,
    latency as latency,
    devices as devices,
    latency_table as latency_table,
)

# isort: on
from evit_nas.cli.app import app
from evit_nas.cli.help import arrange
from evit_nas.console import adapt_streams, delivered, say
from evit_nas.data.once import opened_once
from evit_nas.errors import EvitNasError, Interrupted, UsageError

arrange(app)


def _interrupt(number: int, _: object) -> None:
    raise Interrupted(number)


def _end_in_order() -> None:
    """Has whatever asks the process to end, but for SIGKILL, end it as Ctrl-C does: with nothing left behind.

    Ctrl-C is heeded even where a script started the command in the background; what else the caller has had ignored, as
    nohup does, stays ignored.
    """
    signal.signal(signal.SIGINT, _interrupt)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _check_folder() -> None:
    """
    Raises:
        UsageError: the current folder was removed: relative paths lead nowhere, and MKL ends a process that uses it.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise UsageError(f"the current folder cannot be used ({error.strerror}): change to one that exists.") from None


class _Said(logging.Handler):
    """What the package logs is said to the user, one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


def main() -> None:
    """Entry point of the console script."""
    _end_in_order()
    adapt_streams()
    logging.getLogger("evit_nas").handlers = [_Said()]
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]  # wherever it stands
    try:
        _check_folder()
        try:
            with opened_once():
                app(arguments, prog_name="evit-nas")
        finally:
            with delivered():  # the text of --help, which is not ours to print
                pass
    except BrokenPipeError:
        sys.exit(1)
    except Interrupted as end:
        sys.exit(end.exit_code)
    except EvitNasError as error:
        if debug:
            raise
        say(f"evit-nas: {error}")
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            raise
        say(f"evit-nas: unexpected {type(error).__name__}: {error}. Run it again with --debug for the traceback.")
        sys.exit(1)
