"""Verbs that make a model of an architecture, and judge it: train, ship, verify, eval."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from evit_nas.cli.app import (
    DATA_HELP,
    DeviceOption,
    FormatOption,
    ImageSizeOption,
    SeedOption,
    SessionOption,
    ThreadsOption,
    app,
    conditions_of,
    on_the_line,
)
from evit_nas.cli.latency import report_findings
from evit_nas.commands import command_line, typed
from evit_nas.console import Format, emit, make_table, millions, say
from evit_nas.errors import EvitNasError, UsageError
from evit_nas.training.status import Silence
from evit_nas.views import progress_view

if TYPE_CHECKING:
    from evit_nas.arch import ArchConfig
    from evit_nas.training.session import Outcome, Planned

FROM = "A training or shipped folder, weights of m0..m5, ARCH=FILE, timm:NAME[@FILE], SUPERNET[#ARCH]."
OF_NEW_TRAININGS = frozenset(  # what a training that was begun has in its train.yaml
    {
        *("data", "recipe", "epochs", "time", "batch_size", "lr", "changes", "image_size", "init", "teacher"),
        *("front", "top", "seed", "seeds", "out", "macs", "budget"),
    }
)
LoadersOption = Annotated[
    int | None,
    typer.Option(min=0, max=64, help="Processes that load images.", show_default="half the cores, at most 8"),
]


@app.command()
def train(
    context: typer.Context,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="WHAT...", help="m0..m5, YAML files, RUN/NAME, RUN with --front or --top, training folders."
        ),
    ],
    data: Annotated[str | None, typer.Option(metavar="DATA", help=DATA_HELP)] = None,
    recipe: Annotated[
        str, typer.Option(metavar="NAME", help="auto (by the images), paper, short, finetune, tiny, or a YAML file.")
    ] = "auto",
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the images.", show_default="the recipe's")
    ] = None,
    time: Annotated[
        str | None, typer.Option(metavar="2h", help="Fewer epochs, so that all trainings take about this long here.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=2, help="Images in a step.", show_default="the recipe's")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(min=0, help="Highest learning rate, as it is.", show_default="the recipe's")
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change the recipe: mixup=0.2.")
    ] = None,
    image_size: ImageSizeOption = None,
    init: Annotated[str, typer.Option(metavar="MODEL", help=f"First weights. {FROM}")] = "scratch",
    teacher: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Distil from it: a folder, or timm:NAME.")
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Have timm fetch what timm:NAME names, if it is not here.")
    ] = False,
    front: Annotated[bool, typer.Option("--front", help="All members of the RUN's front.")] = False,
    top: Annotated[int | None, typer.Option(min=1, help="The N best by score of a run's front.")] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="M", help="Train m0..m5 beside, or the nearest of them in latency.")
    ] = None,
    seed: SeedOption = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each network, from --seed on.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Where training folders go.", show_default="RUN/train")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with interrupted trainings.")] = False,
    workers: LoadersOption = None,
    ship: Annotated[bool, typer.Option(help="Also package each for deployment, as evit-nas ship does.")] = True,
    track: Annotated[
        list[str] | None, typer.Option(metavar="TRACKER", help="tensorboard, wandb or mlflow, if installed.")
    ] = None,
    format_: FormatOption = Format.table,
) -> None:
    """Train architectures on your images, and compare them."""
    from evit_nas.quantities import parse_duration
    from evit_nas.training.hardware import Hardware, first, loaders
    from evit_nas.training.session import Asked, carry_out, prepare
    from evit_nas.words import said

    if baseline is None and all((Path(text) / "train.yaml").is_file() for text in what):
        refuse_changes(context, what[0])
    asked = Asked(
        what=what,
        data=data,
        recipe=recipe,
        changes=parse_changes(changes or []) | said(epochs=epochs, batch_size=batch_size),
        rate=lr,
        time_s=None if time is None else parse_duration(time),
        image_size=image_size,
        init=init,
        teacher=teacher,
        download=download,
        front=front,
        top=top,
        baseline=baseline,
        seeds=range(seed, seed + seeds),
        out=out,
    )
    hardware = Hardware(workers=loaders(workers), trackers=tuple(track or ()))
    planned = prepare(asked, hardware, say if first() else lambda message: None)
    with progress_view() if first() else nullcontext(Silence()) as view:
        outcome = carry_out(
            planned,
            view,
            hardware,
            command=typed(),
            again=_typed_to_resume(),
            resume=resume,
            ship=ship,
            raised="--debug" in sys.argv,
        )
    if first() and outcome.trained:
        print_trained(planned, outcome, format_, outcome.latencies_ms())
        say(f"next:    {outcome.next_command()}")
    if outcome.failed:
        raise EvitNasError("not everything could be trained and shipped, see above; --resume does the rest")


def refuse_changes(context: typer.Context, folder: str) -> None:
    """
    Raises:
        UsageError: options that only new trainings have are on the command line of one that goes on in `folder`.
    """
    idle = [
        max(option.opts, key=len)
        for option in context.command.params
        if option.name in OF_NEW_TRAININGS and on_the_line(context, option.name)
    ]
    if idle:
        raise UsageError(
            f"a training goes on as its train.yaml says, {', '.join(idle)} cannot change {folder}. For another "
            "training name what is to be trained instead of the folder."
        )


def _typed_to_resume() -> str:
    return typed() if "--resume" in sys.argv else f"{typed()} --resume"


def parse_changes(pairs: Sequence[str]) -> dict[str, Any]:
    """The fields of a recipe that --set changes.

    Raises:
        UsageError: not FIELD=VALUE, or no YAML.
    """
    import yaml

    changes = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise UsageError(f"--set takes FIELD=VALUE, got '{pair}'; for example --set epochs=50.")
        try:
            changes[name.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UsageError(f"--set {name}: '{value}' is not a YAML value.") from None
    return changes


def print_trained(
    planned: Planned, outcome: Outcome, format_: Format, latencies_ms: Mapping[ArchConfig, float] = MappingProxyType({})
) -> None:
    """The networks side by side, with their latencies where these are known, and what speaks against them."""
    from evit_nas.training.compare import compare

    trained, equal_time = outcome.trained, planned.equal_time
    rows = compare(trained, planned.baselines, latencies_ms, outcome.folders, equal_time=equal_time)
    baselines = list(dict.fromkeys(row["baseline"] for row in rows if row["baseline"]))
    varied = [name for name in ("data", "recipe", "init", "teacher") if len({row[name] for row in rows}) > 1]
    varied += ["baseline"] if len(baselines) > 1 else []
    seeds, top5 = any(row["seeds"] > 1 for row in rows), any(row["top5"] is not None for row in rows)
    cells = [
        [
            row["name"],
            *(row[name] or "" for name in varied),
            *([str(row["seeds"])] if seeds else []),
            _top1(row),
            *(["" if row["top5"] is None else f"{row['top5']:.2f}"] if top5 else []),
            *([_gain(row)] if baselines else []),
            *(["" if row["latency_ms"] is None else f"{row['latency_ms']:.2f}"] if latencies_ms else []),
            millions(row["params"]),
            millions(row["macs"]),
        ]
        for row in rows
    ]
    header = ["network", *varied, *(["seeds"] if seeds else []), "top-1 %", *(["top-5 %"] if top5 else [])]
    header += [*(["gain"] if baselines else []), *(["ms"] if latencies_ms else []), "params", "MACs"]
    data = ", ".join(dict.fromkeys(row["data"] for row in rows))
    sizes = ", ".join(dict.fromkeys(row["image_size"] for row in rows))
    title, spare = f"validated on {data}, {sizes}", ["MACs", "top-5 %", "params"]
    emit(rows, format_, make_table(title, header, cells, text=["network", *varied], spare=spare))
    if format_ is not Format.table:
        return
    say(f"top-1: ± its standard error on so many images{', and of its mean over seeds' if seeds else ''}")
    if latencies_ms:
        say("ms: one image, one thread of this processor")
    if baselines:
        above = baselines[0] if len(baselines) == 1 else "the baseline"
        alike = "in the same time, " if equal_time else ""
        say(f"gain: points of top-1 above {above}, {alike}± the standard error of the difference where there are seeds")
    for row in rows:
        if row["origin"]:
            say(f"{row['name']} is {row['origin']}")
    for sentence, names in outcome.doubts().items():
        say(f"{', '.join(names)}: {sentence}")


def _top1(row: Mapping[str, Any]) -> str:
    of_mean = None if row["top1_sd"] is None else row["top1_sd"] / math.sqrt(row["seeds"])
    errors = [error for error in (row["top1_error"], of_mean) if error is not None]
    return f"{row['top1']:.2f}" + (f" ± {math.hypot(*errors):.2f}" if errors else "")


def _gain(row: Mapping[str, Any]) -> str:
    if row["gain"] is None:
        return ""
    return f"{row['gain']:+.2f}" + ("" if row["gain_error"] is None else f" ± {row['gain_error']:.2f}")


@app.command()
def ship(
    training: Annotated[Path, typer.Argument(metavar="TRAINING", help="A finished training folder, or SUPERNET#ARCH.")],
    out: Annotated[Path | None, typer.Option(help="New folder to write.", show_default="TRAINING/shipped")] = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    session: SessionOption = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Points of top-1 that 8 bits may lose.")] = 1.0,
    images: Annotated[int, typer.Option(min=1, help="Validation images to compare on, at most.")] = 5000,
    calibration: Annotated[int, typer.Option(min=1, help="Training images to calibrate 8 bits on, at most.")] = 256,
    anyway: Annotated[bool, typer.Option("--anyway", help="Even a network that did not learn.")] = False,
) -> None:
    """Package a finished training for deployment, every file checked.

    ONNX in 32 and 8 bits, timm's files, a model card, and predict.py.
    """
    from evit_nas.trained import parted
    from evit_nas.training.inherit import inherit
    from evit_nas.training.session import SHIPPED, shipped

    conditions = conditions_of(device, threads, 1, None, session)
    with progress_view() as view:
        if parted(str(training)) is not None:
            training = inherit(str(training), typed(), view.note)
        folder = out or training / SHIPPED
        shipped(
            training,
            folder,
            view.note,
            command=typed(),
            anyway=anyway,
            conditions=conditions,
            tolerance=tolerance,
            images=images,
            calibration_images=calibration,
        )
    say(f"next:    {command_line('predict', folder, 'IMAGE')}")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A shipped folder.")],
    data: Annotated[str | None, typer.Option(metavar="DATA", help="Also take the accuracy again, on these.")] = None,
    format_: FormatOption = Format.table,
) -> None:
    """Check a shipped folder, file by file.

    That nothing has changed, that timm and ONNX Runtime load it, and that they agree.
    """
    from evit_nas.shipping.verify import verify

    report_findings(verify(folder, data), str(folder), format_, "the folder is not as it was shipped")


@app.command("eval")
def evaluate_(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="Training folders, SUPERNET#ARCH, .onnx files, timm:NAME@FILE."),
    ],
    data: Annotated[str, typer.Option(metavar="DATA", help=DATA_HELP)],
    split: Annotated[Literal["val", "train"], typer.Option(help="Which images.")] = "val",
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    workers: LoadersOption = None,
    like: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Whose classes and preprocessing a lone .onnx file has.")
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also show every class.")] = False,
    format_: FormatOption = Format.table,
) -> None:
    """Accuracy, confusions and calibration of trained networks.

    Torch, ONNX and 8 bits side by side.
    """
    from evit_nas.evaluation import class_cells, confusion_cells, evaluate, rows, summary_cells
    from evit_nas.training.hardware import loaders

    with progress_view() as view:
        found = evaluate(
            models,
            data,
            split=split,
            batch=batch,
            workers=loaders(workers),
            like=like,
            note=view.note,
            step=lambda done, total: view.step("batches", done, total),
        )
    title = f"{found[0].data}: {found[0].images} images"
    emit(rows(found), format_, make_table(title, *summary_cells(found), text=["network", "form"]))
    if format_ is not Format.table:
        return
    if per_class:
        emit([], format_, make_table("right in each class, %", *class_cells(found)))
    title = f"taken for another by {found[0].network}"
    emit([], format_, make_table(title, *confusion_cells(found[0])))
    say(
        "ECE: expected calibration error, 15 equal bins (arXiv 1706.04599); images/s: of this run, no certified latency"
    )
