"""Searches from Python, in the words of the command line: `evit_nas.search(budget="5ms").front`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

from evit_nas.commands import said_in_python
from evit_nas.config import SearchSettings
from evit_nas.data.once import opened_once
from evit_nas.errors import RunError
from evit_nas.runs import Run, explained
from evit_nas.views import onlooker
from evit_nas.words import Words, settings_from, with_supernet

if TYPE_CHECKING:
    import pandas as pd

    from evit_nas.searching.front import Candidate
    from evit_nas.searching.record import Front
    from evit_nas.searching.status import Watcher


@contextmanager
def new_run(settings: SearchSettings, out: str | Path | None, command: str) -> Iterator[Run]:
    """A new run folder, locked: `out`, or one in runs/ named after space, devices and budgets.

    Of a search that ends inside before it has evaluated anything, because it was refused or interrupted, nothing is
    left. An error of the folder itself leaves it: it can be resumed once that is put right.

    Raises:
        RunError: there is a run already, or the folder cannot be written.
    """
    from evit_nas.latency.machine import probe

    names = [f"{file_name(target.device)}-{target.budget_ms:g}ms" for target in settings.targets]
    name, machine = "-".join([Path(settings.space_name).stem, *names]), probe().model_dump()
    if out:
        run = Run.create(Path(out), settings, machine, command)
    else:
        run = Run.create_in(Path("runs"), name, settings, machine, command)
    run.lock()
    try:
        with run:
            yield run
    except RunError:
        raise
    except BaseException:
        if leaves_nothing(run):
            from evit_nas.searching.storage import forget

            forget(run)
            run.discard()
        raise


def leaves_nothing(run: Run) -> bool:
    """Whether a search that is refused or interrupted now takes its folder with it: it is new and holds nothing yet."""
    from evit_nas.searching.record import evaluated

    return run.new and not evaluated(run)


def file_name(device: str) -> str:
    """A device as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", device.removeprefix("remote:")).strip("-")


@opened_once()
def search(*, out: str | Path | None = None, watcher: Watcher | None = None, **words: Unpack[Words]) -> Result:
    """Finds the architectures with the best score within a latency budget, as `evit-nas search` does, report included.

    A search that is refused or interrupted before it has evaluated anything leaves no run folder.

    Args:
        out: the run folder to make; by default runs/SPACE-DEVICE-BUDGET.
        watcher: told how it goes; by default it is shown on a terminal and in a notebook, and elsewhere logged.
        words: the options of `evit-nas search`, for example device="cpu", budget="5ms", trials=200.

    Raises:
        UsageError: a wrong word or value.
        Infeasible: no architecture of the space keeps the limits.
        RunError: the run folder cannot be made or written.
    """
    command = f"evit_nas.search({', '.join(f'{word}={value!r}' for word, value in words.items())})"
    with said_in_python(), onlooker() as watch:
        if out is not None:
            Run.check_new(Path(out))  # before hours of a supernet
        settings = settings_from(**with_supernet(words, watch, command))
    with said_in_python(), new_run(settings, out, command) as run:
        return _searched(run, watcher)


@opened_once()
def resume(run: str | Path, watcher: Watcher | None = None) -> Result:
    """Continues a search that was interrupted, to the same total of trials; raises what `search` does."""
    with said_in_python(), Run.open(Path(run)).lock() as opened:
        return _searched(opened, watcher)


def _searched(run: Run, watcher: Watcher | None) -> Result:
    from evit_nas.report.page import write_report
    from evit_nas.searching.study import Search

    with nullcontext(watcher) if watcher is not None else onlooker() as watch:
        Search(run, watch).run()
    write_report(run)
    return Result(run.path)


class Result:
    """What a run has found, finished or not, as it stands when it is first asked; nothing is written.

    Raises:
        UsageError: `path` is not a run folder.
        RunError: its record cannot be read; see `open_study`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.run = Run.open(self.path)

    @cached_property
    def found(self) -> Front:
        """The front's members and the paper's networks, each with its architecture, score and latencies."""
        from evit_nas.searching.record import Front, load_front
        from evit_nas.searching.storage import begun

        with explained(self.path):
            if not begun(self.run):
                return Front([], [], 0, self.run.settings.trials, "")
            return load_front(self.run)

    @property
    def front(self) -> pd.DataFrame:
        """The front, fastest first: a row for each member, by name."""
        import pandas as pd

        from evit_nas.searching.front import rows

        return pd.DataFrame(rows(self.found.members)).set_index("name") if self.found.members else pd.DataFrame()

    @property
    def trials(self) -> pd.DataFrame:
        """A row for each distinct architecture in the order of evaluation, by number, with its parameters."""
        import pandas as pd

        from evit_nas.searching.attributes import TrialAttributes
        from evit_nas.searching.objectives import metric_names
        from evit_nas.searching.record import Known
        from evit_nas.searching.storage import begun, open_study

        trials = []
        if begun(self.run):
            with explained(self.path), open_study(self.run) as study:
                trials = list(Known(study).by_key.values())
        names = metric_names(self.run.settings)
        return pd.DataFrame(
            {
                "state": trial.state.name,
                "origin": about.origin,
                **dict(zip(names, trial.values or [None] * len(names), strict=True)),
                "measured": about.measured,
                "within_limits": bool(trial.constraints) and max(trial.constraints.values()) <= 0,
                "key": about.key,
                "reason": about.reason or None,
                **trial.params,
            }
            for trial, about in ((trial, TrialAttributes(trial)) for trial in trials)
        ).set_axis(pd.Index([trial.number for trial in trials], name="trial"))

    @property
    def state(self) -> str:
        """ "running", "done" or "interrupted"."""
        if self.run.owner():
            return "running"
        nothing_fits = (self.found.ended or self.found.done >= self.found.total) and not self.found.members
        return "done" if self.found.whole or nothing_fits else "interrupted"

    @property
    def best(self) -> Candidate:
        """The member with the highest score; raises what `pick` does."""
        return self.pick("best")

    @property
    def knee(self) -> Candidate:
        """The member where more speed begins to cost much; raises what `pick` does."""
        return self.pick("knee")

    def pick(self, what: str) -> Candidate:
        """One member of the front: "best", "fastest", "knee" or "under=4ms".

        Raises:
            UsageError: `what` is none of these.
            Infeasible: no member is like that.
        """
        from evit_nas.searching.selection import pick

        return pick(self.found.members, what, self.run.settings)

    def __str__(self) -> str:
        front = self.front
        return f"{self.path}: {self.state}, {len(front)} on the front\n{front.to_string() if len(front) else ''}"

    def _repr_html_(self) -> str:
        return str(self.front.to_html())

    def __repr__(self) -> str:
        return f"Result({str(self.path)!r})"
