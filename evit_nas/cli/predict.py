"""The verb that a shipped network answers pictures with: predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer

from evit_nas.cli.app import FormatOption, app
from evit_nas.console import Format, emit, make_table, say
from evit_nas.errors import EvitNasError
from evit_nas.views import progress_view

if TYPE_CHECKING:
    from evit_nas.shipping.answer import Answer


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
    if found or format_ is not Format.table:
        print_answers(shipped, found, format_)
    if skipped:
        raise EvitNasError(f"{len(skipped)} of {len(pictures)} pictures could not be read, see above.")


def print_answers(
    shipped: Path, answers: Sequence[Answer], format_: Format, truth: Mapping[str, str] = MappingProxyType({})
) -> None:
    """What a network says to pictures; with the classes that are right, by picture, where they are known."""
    from evit_nas.shipping.answer import rows

    found = rows(answers)
    cells = [
        [
            row["image"],
            *([truth[row["image"]]] if truth else []),
            row["class"],
            f"{100 * row['probability']:.1f}",
            f"{row['ms']:.2f}",
        ]
        for row in found
    ]
    header = ["image", *(["is"] if truth else []), "class", "probability %", "ms"]
    emit(found, format_, make_table(str(shipped), header, cells))
    if format_ is Format.table:
        say("ms: of this one inference in this run, no certified latency")
