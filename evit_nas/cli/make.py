"""The verb that goes all the way: make."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evit_nas.cli.app import DATA_HELP, ImageSizeOption, SeedOption, app
from evit_nas.cli.predict import print_answers
from evit_nas.cli.search import print_found
from evit_nas.cli.train import FROM, LoadersOption, print_trained
from evit_nas.commands import command_line, typed
from evit_nas.console import Format, say
from evit_nas.views import progress_view

if TYPE_CHECKING:
    from evit_nas.runs import Run
    from evit_nas.searching.record import Front
    from evit_nas.shipping.answer import Answer
    from evit_nas.training.session import Outcome, Planned


@app.command()
def make(
    data: Annotated[str, typer.Argument(metavar="PHOTOS", help=DATA_HELP)],
    budget: Annotated[str, typer.Option(metavar="5ms", help="Latency limit with its unit: 5ms.")],
    time: Annotated[str, typer.Option(metavar="2h", help="How long it may take, about.")] = "2h",
    device: Annotated[
        str, typer.Option(metavar="NAME", help="Where the model will run; see: evit-nas devices.")
    ] = "cpu",
    space: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE", help="A shipped search space, or a YAML file.", show_default="efficientvit-224"
        ),
    ] = None,
    image_size: ImageSizeOption = None,
    init: Annotated[str, typer.Option(metavar="MODEL", help=f"First weights. {FROM}")] = "scratch",
    seed: SeedOption = 0,
    workers: LoadersOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Where everything goes.", show_default="runs/PHOTOS-DEVICE-BUDGET")
    ] = None,
) -> None:
    """Make a model of a folder of photographs: search, train, ship, and show what it answers.

    Each step is printed as the command that does it alone. The same command goes on after an interruption.
    """
    from evit_nas.making import made_of, order_of
    from evit_nas.training.hardware import Hardware, loaders

    order = order_of(data, budget, time, device, space, image_size, init, seed, out)
    made = made_of(order, Hardware(workers=loaders(workers)), _Terminal(), typed())
    say(f"made:    {made.folder}: {made.shipped.summary()}")
    say(f"next:    {command_line('predict', made.folder, 'IMAGE')}")


class _Terminal:
    """Shows each step as its own command does."""

    def note(self, message: str) -> None:
        """See Viewer."""
        say(message)

    def step(self, command: str) -> None:
        """See Viewer."""
        say(f"\n$ {command}")

    def progress(self) -> AbstractContextManager[Any]:
        """See Viewer."""
        return progress_view()

    def found(self, run: Run, front: Front) -> None:
        """See Viewer."""
        print_found(run, front)

    def trained(self, planned: Planned, outcome: Outcome) -> None:
        """See Viewer."""
        print_trained(planned, outcome, Format.table)

    def answered(self, shipped: Path, answers: list[Answer], truth: dict[str, str]) -> None:
        """See Viewer."""
        print_answers(shipped, answers, Format.table, truth)
