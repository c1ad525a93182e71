"""Verbs about runs as a whole: runs, replay, report, config."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.main import get_command

from evit_nas.cli.app import FormatOption, RunPath, app, given
from evit_nas.console import Format, emit, make_table, put, say
from evit_nas.errors import EvitNasError, UsageError
from evit_nas.views import progress_view

SPARE = ("begun", "device", "budget", "best")  # a run is named after its device and budget, as a rule


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where the run folders lie.")] = Path("runs"),
    format_: FormatOption = Format.table,
) -> None:
    """List runs: their states, and the best score within the budget."""
    from evit_nas.runs import run_folders

    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}; `evit-nas search` makes runs, by default in runs/.")
    rows = [_row(path) | {"run": str(path.relative_to(folder))} for path in run_folders(folder)]
    cells = [
        [
            row["run"],
            row["state"],
            f"{row['done']}/{row['total']}" if row["total"] else "",
            " ".join(row["devices"]),
            " ".join(f"{ms:g} ms" for ms in row["budgets_ms"]),
            "" if row["best"] is None else f"{row['best']:.3f}",
            row["begun"][:10],
        ]
        for row in rows
    ]
    header = ["run", "state", "trials", "device", "budget", "best", "begun"]
    emit(rows, format_, make_table(f"runs in {folder}", header, cells, ["run", "state", "device"], SPARE))
    if format_ is Format.table:
        for row in rows:
            if row["why"]:
                say(f"{row['run']}: {row['why']}")


def _row(path: Path) -> dict[str, Any]:
    """One run; what cannot be read is in the list as well, and says why."""
    from evit_nas.api import Result

    row: dict[str, Any] = {"run": path.name, "state": "unreadable", "done": 0, "total": 0, "devices": []}
    row |= {"budgets_ms": [], "best": None, "begun": "", "why": ""}
    try:
        result = Result(path)
        found, targets = result.found, result.run.settings.targets
    except EvitNasError as error:
        return row | {"why": str(error)}
    owner = result.run.owner()
    return row | {
        "state": result.state,
        "done": found.done,
        "total": found.total,
        "devices": [target.device for target in targets],
        "budgets_ms": [target.budget_ms for target in targets],
        "best": max((member.score for member in found.members), default=None),
        "begun": result.run.record["created"],
        "why": f"being written by {owner}" if owner else "",
    }


@app.command()
def replay(
    run: RunPath,
    trial: Annotated[int, typer.Argument(metavar="TRIAL", min=0, help="Its number, as in the front's YAML files.")],
    format_: FormatOption = Format.table,
) -> None:
    """Evaluate a trial of a run again, and compare it with the record.

    Exit 1 if a number has changed.
    """
    from evit_nas.runs import Run
    from evit_nas.searching.record import better_since
    from evit_nas.searching.replay import replay

    opened = Run.open(run)
    with progress_view() as view:
        found = replay(opened, trial, view)
    if said := better_since(opened):
        say(said)
    if found.recorded_failure:
        say(f"trial {found.trial} failed: {found.recorded_failure}")
    if found.failure:
        say(f"it fails {'again' if found.recorded_failure else 'now'}: {found.failure}")
    elif found.recorded_failure:
        say("it does not fail now")
    rows = [
        {"number": c.name, "recorded": c.recorded, "now": c.now, "change": c.change, "holds": c.holds}
        for c in found.checks
    ]
    cells = [
        [
            check.name,
            f"{check.recorded:.6g}",
            f"{check.now:.6g}",
            f"{100 * check.change:+.2f}%",
            "" if check.allowed is None else f"±{100 * check.allowed:.2g}%",
            "" if check.allowed is None else "yes" if check.holds else "no",
        ]
        for check in found.checks
    ]
    header = ["", "recorded", "now", "change", "allowed", "holds"]
    emit(rows, format_, make_table(f"trial {found.trial} (key {found.arch.key})", header, cells))
    if not found.holds:
        raise EvitNasError(f"trial {found.trial} does not come out as recorded.")


@app.command()
def report(
    run: RunPath,
    plot: Annotated[Path | None, typer.Option(help="Also draw the front, as PNG, SVG or PDF.")] = None,
) -> None:
    """Write a run as one page for people: report.html in its folder.

    It works while the search goes on, too.
    """
    from evit_nas.report.page import write_report
    from evit_nas.report.plot import write_plot
    from evit_nas.runs import Run, explained

    opened = Run.open(run)
    with explained(run):
        say(f"written: {write_report(opened)}")
        if plot is not None:
            write_plot(opened, plot)
            say(f"written: {plot}")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    options_metavar="[RUN] [OPTIONS OF search]",
)
def config(context: typer.Context) -> None:
    """Print the settings of a run or of a search, for --config.

    They are those of RUN, of a search with these options, or of RUN with these changes, as YAML.
    """
    from evit_nas.words import settings_from
    from evit_nas.yamlio import to_yaml

    named = context.args[:1] if context.args and not context.args[0].startswith("-") else []
    options = context.args[len(named) :]
    words: Any = {"config": named[0]} if named else {}
    if options or not named:
        parsed = get_command(app).commands["search"].make_context("evit-nas config", options)  # type: ignore[attr-defined]
        words = given(parsed) | words
    put(to_yaml(settings_from(**words)))
