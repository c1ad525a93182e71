"""Verbs about networks that share weights: supernet train."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from evit_nas.cli.app import DATA_HELP, ImageSizeOption, SeedOption, app
from evit_nas.cli.train import LoadersOption, parse_changes, refuse_changes
from evit_nas.commands import command_line, typed
from evit_nas.console import say
from evit_nas.errors import UsageError
from evit_nas.training.status import Silence
from evit_nas.views import progress_view

supernet = typer.Typer(help="One training for all networks of a space.", no_args_is_help=True)
app.add_typer(supernet, name="supernet")


@supernet.callback()
def _supernet() -> None:
    """Keeps `train` a word of its own while it is the only one."""


@supernet.command()
def train(
    context: typer.Context,
    space: Annotated[
        str, typer.Argument(metavar="SPACE|FOLDER", help="A shipped space, a YAML file, or a training to go on with.")
    ],
    data: Annotated[str | None, typer.Option(metavar="DATA", help=DATA_HELP)] = None,
    macs: Annotated[
        str | None, typer.Option(metavar="100M..300M", help="Only networks of so many MACs, at most 3:1.")
    ] = None,
    budget: Annotated[
        str | None, typer.Option(metavar="5ms", help="Only those that a search for it on this processor looks at.")
    ] = None,
    recipe: Annotated[
        str, typer.Option(metavar="NAME", help="auto (by the images), paper, short, tiny, or a YAML file.")
    ] = "auto",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images.", show_default="the recipe's")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Images in a step.", show_default="the recipe's")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change the recipe: mixup=0.2.")
    ] = None,
    image_size: ImageSizeOption = None,
    seed: SeedOption = 0,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the training.", show_default="runs/supernet/, by space, data and budget"),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted training.")] = False,
    workers: LoadersOption = None,
) -> None:
    """Train all networks of a space at once, with shared weights.

    A search then reads their accuracy off these weights (--accuracy supernet), and trainings go on from them (--init).
    """
    from evit_nas.quantities import parse_latency, parse_span
    from evit_nas.training.hardware import Hardware, first, loaders
    from evit_nas.training.supernet_session import SupernetAsked, plan_supernet, train_supernet
    from evit_nas.words import DEFAULT_SPACE, said

    if (Path(space) / "train.yaml").is_file():
        refuse_changes(context, space)
    if macs is not None and budget is not None:
        raise UsageError("--macs and --budget both say which networks are trained: leave one of them out.")
    asked = SupernetAsked(
        space=space,
        data=data,
        macs=None if macs is None else parse_span(macs, "--macs"),
        budget_ms=None if budget is None else parse_latency(budget),
        recipe=recipe,
        changes=parse_changes(changes or []) | said(epochs=epochs, batch_size=batch_size),
        image_size=image_size,
        seed=seed,
        out=out,
    )
    hardware = Hardware(workers=loaders(workers))
    folder, settings = plan_supernet(asked, hardware, say if first() else lambda message: None)
    with progress_view() if first() else nullcontext(Silence()) as view:
        found = train_supernet(folder, settings, view, hardware, command=typed(), resume=resume)
    if first():
        say(
            f"on {found.held_out} held-out images: the largest {found.largest_top1:.1f} %, the smallest "
            f"{found.smallest_top1:.1f} %"
        )
        named = found.name if Path(space) == folder else space
        options = [] if found.name == DEFAULT_SPACE else ["--space", named]
        options += ["--budget", settings.budget.partition(" on ")[0].replace(" ", "") or "5ms"]  # as it was typed
        say(f"next:    {command_line('search', '--accuracy', 'supernet', '--supernet', folder, *options)}")
