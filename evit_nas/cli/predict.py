"""The verb that a shipped network answers pictures with: predict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evit_nas.cli.app import FormatOption, app
from evit_nas.console import Format, emit, make_table, progress_view, say
from evit_nas.errors import EvitNasError


@app.command()
def predict(
    shipped: Annotated[Path, typer.Argument(metavar="DIR", help="A shipped folder.")],
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE...", help="Pictures, folders of them, - for one on standard input.")
    ],
    top: Annotated[int, typer.Option(min=1, help="Classes to name for each picture.")] = 1,
    int8: Annotated[bool, typer.Option("--int8", help="Answer with model-int8.onnx.")] = False,
    format_: FormatOption = Format.table,
) -> None:
    """Say what is in pictures, with a shipped network; exit 1 if one cannot be read."""
    from evit_nas.shipping.answer import answers, find_pictures

    pictures, skipped = find_pictures(images), list[str]()
    with progress_view() as view:

        def skip(picture: str) -> None:
            skipped.append(picture)
            view.note(f"skipped {picture}")

        found = answers(
            shipped,
            pictures,
            top=top,
            int8=int8,
            skip=skip,
            step=lambda done, total: view.step("pictures", done, total),
        )
    each = [
        (one, rank, name, probability)
        for one in found
        for rank, (name, probability) in enumerate(zip(one.classes, one.probabilities, strict=True), start=1)
    ]
    rows = [
        {"image": one.image, "rank": rank, "class": name, "probability": probability, "ms": one.ms}
        for one, rank, name, probability in each
    ]
    cells = [[one.image, name, f"{100 * probability:.1f}", f"{one.ms:.2f}"] for one, _, name, probability in each]
    if found or format_ is not Format.table:
        emit(rows, format_, make_table(str(shipped), ["image", "class", "probability %", "ms"], cells))
    if found and format_ is Format.table:
        say("ms: of this one inference in this run, no certified latency")
    if skipped:
        raise EvitNasError(f"{len(skipped)} of {len(pictures)} pictures could not be read, see above.")
