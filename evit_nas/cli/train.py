"""Verbs that make a model of an architecture, and judge it: train, ship, verify, eval."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evit_nas.cli.app import (
    DeviceOption,
    FormatOption,
    ImageSizeOption,
    SeedOption,
    SessionOption,
    ThreadsOption,
    app,
    conditions_of,
    find_arch,
)
from evit_nas.cli.latency import report_findings
from evit_nas.commands import typed
from evit_nas.console import Format, emit, make_table, millions, progress_view, say
from evit_nas.errors import EvitNasError, Interrupted, UsageError

if TYPE_CHECKING:
    from evit_nas.trained import Trained
    from evit_nas.training.plan import Chosen
    from evit_nas.training.settings import TrainSettings

FROM = "A training or shipped folder, weights of m0..m5, ARCH=FILE, timm:NAME[@FILE]."
SHIPPED = "shipped"  # in a training folder
OF_NEW_TRAININGS = frozenset(  # what a training that was begun has in its train.yaml
    {"data", "recipe", "changes", "image_size", "init", "teacher", "front", "top", "seed", "seeds", "out"}
)
LoadersOption = Annotated[
    int | None,
    typer.Option(min=0, max=64, help="Processes that load images.", show_default="half the cores, at most 8"),
]


class Split(StrEnum):
    """Images of a data set."""

    val = "val"
    train = "train"


@app.command()
def train(
    context: typer.Context,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="WHAT...", help="m0..m5, YAML files, RUN/NAME, RUN with --front or --top, training folders."
        ),
    ],
    data: Annotated[str | None, typer.Option(metavar="DATA", help="A folder of images, or a name: see README.")] = None,
    recipe: Annotated[
        str, typer.Option(metavar="NAME", help="paper, short, finetune, tiny, or a YAML file.")
    ] = "paper",
    changes: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Change the recipe: epochs=50.")
    ] = None,
    image_size: ImageSizeOption = None,
    init: Annotated[str, typer.Option(metavar="MODEL", help=f"First weights. {FROM}")] = "scratch",
    teacher: Annotated[str | None, typer.Option(metavar="MODEL", help="Distil from it; named as for --init.")] = None,
    front: Annotated[bool, typer.Option("--front", help="All members of the RUN's front.")] = False,
    top: Annotated[int | None, typer.Option(min=1, help="So many of them, by score.")] = None,
    baseline: Annotated[
        str | None, typer.Option(metavar="M", help="Train m0..m5 beside, or the nearest of them in latency.")
    ] = None,
    seed: SeedOption = 0,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each network, from --seed on.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Where training folders go.", show_default="RUN/train")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with interrupted trainings.")] = False,
    workers: LoadersOption = None,
    ship: Annotated[bool, typer.Option(help="Make a folder that deploys of each, as evit-nas ship does.")] = True,
    track: Annotated[
        list[str] | None, typer.Option(metavar="TRACKER", help="tensorboard, wandb or mlflow, if installed.")
    ] = None,
    format_: FormatOption = Format.table,
) -> None:
    """Train architectures on your images, and compare them."""
    from evit_nas.training.compare import compare
    from evit_nas.training.folder import read_record
    from evit_nas.training.loop import Hardware, meet, several
    from evit_nas.training.loop import train as run_training
    from evit_nas.training.plan import Chosen, How, baselines, begin, plan
    from evit_nas.training.recipe import check_names, load_recipe

    begun = [Path(text) for text in what if (Path(text) / "train.yaml").is_file()]
    plans = [(folder, read_record(folder).settings) for folder in begun]
    chosen = _chosen([text for text in what if Path(text) not in begun], front or top is not None, top)
    known = [Chosen(settings.name, settings.arch) for _, settings in plans]
    beside = baselines([*known, *chosen], baseline) if baseline else {}
    if not chosen and not beside:
        _check_folders_suffice(context, begun)
    else:
        if data is None:
            raise UsageError("train needs images: add --data PATH, for example a folder with a folder for each class.")
        how = How(
            data=data,
            recipe_name=Path(recipe).stem,
            recipe=load_recipe(recipe, _changes(changes or [])),
            image_size=image_size,
            init=init,
            teacher=teacher,
            seeds=range(seed, seed + seeds),
            out=out,
        )
        plans += plan([*chosen, *beside.values()], how)
    for _, settings in plans:
        check_names(settings.recipe, track or ())
    first = os.environ.get("RANK", "0") == "0"  # as torchrun and accelerate launch number their processes
    if first:
        begin(plans, typed(), resume)
    meet()  # the others read the folders that the first has made
    hardware, failed = Hardware(workers=_loaders(workers), trackers=tuple(track or ())), False
    trainings: dict[TrainSettings, Trained] = {}
    with progress_view() if first else nullcontext(_Silence()) as view:
        for folder, settings in plans:
            trained = False
            try:
                trainings[settings] = run_training(folder, view, hardware)
                view.note(f"written: {folder}")
                trained = True
                if first and ship and not (folder / SHIPPED).exists():
                    _ship(folder, folder / SHIPPED, view.note)
            except Interrupted:
                view.note(f"interrupted; go on from the last checkpoint with: {_typed_to_resume()}")
                raise
            except Exception as error:  # of torch and ONNX Runtime, too: the next network may do without
                if len(plans) == 1 or "--debug" in sys.argv:
                    raise
                if several() and not trained:  # the other processes wait for this one, whatever it does next
                    raise
                failed = True
                unexpected = "" if isinstance(error, EvitNasError) else f"unexpected {type(error).__name__}: "
                view.note(f"evit-nas: {folder}: {unexpected}{error}")
    if first and trainings:
        rows = compare(trainings, {name: each.name for name, each in beside.items()})
        _print_trained(rows, format_)
    if failed:
        raise EvitNasError("not everything could be trained and shipped, see above; --resume does the rest")


def _check_folders_suffice(context: typer.Context, begun: Sequence[Path]) -> None:
    """
    Raises:
        UsageError: options are given that only new trainings have.
    """
    idle = [
        max(option.opts, key=len)
        for option in context.command.params
        if option.name in OF_NEW_TRAININGS
        and (source := context.get_parameter_source(option.name)) is not None
        and source.name == "COMMANDLINE"
    ]
    if idle:
        raise UsageError(
            f"a training goes on as its train.yaml says, {', '.join(idle)} cannot change {begun[0]}. For another "
            "training name the network (m0..m5, a YAML file, RUN/NAME) instead of the folder."
        )


def _ship(training: Path, out: Path, note: Callable[[str], None], **options: Any) -> None:
    from evit_nas.shipping.package import ship

    shipped = ship(training, out, command=typed(), note=note, **options)
    fp32, int8 = shipped.fp32, shipped.int8
    note(f"written: {out}: top-1 {shipped.top1:.2f} % of {shipped.images} images, {fp32.latency}")
    if shipped.int8_refusal:
        note(f"no 8-bit file: {shipped.int8_refusal}")
    elif int8 is not None:
        note(f"in 8 bits: top-1 {int8.top1:.2f} %, {int8.latency}")


def _loaders(asked: int | None) -> int:
    from evit_nas.latency.machine import usable_cores

    return min(max(usable_cores() // 2, 1), 8) if asked is None else asked


class _Silence:
    """Watches in all processes of a training but the first."""

    def note(self, message: str) -> None:
        """See TrainWatcher."""

    def trained(self, status: Any) -> None:
        """See TrainWatcher."""


def _typed_to_resume() -> str:
    return typed() if "--resume" in sys.argv else f"{typed()} --resume"


def _chosen(what: Sequence[str], whole_front: bool, top: int | None) -> list[Chosen]:
    from evit_nas.training.plan import Chosen, front_of

    chosen = []
    for text in what:
        path = Path(text)
        if (path / "run.yaml").is_file():
            if not whole_front:
                raise UsageError(f"{text} is a run: add --top 1 or --front, or name one member as {text}/NAME.")
            chosen += front_of(path, top)
        else:
            runs = [parent for parent in (path.parent, path.parent.parent) if (parent / "run.yaml").is_file()]
            chosen.append(Chosen(path.name.removesuffix(".yaml"), find_arch(text), runs[0] if runs else None))
    return chosen


def _changes(pairs: Sequence[str]) -> dict[str, Any]:
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


def _print_trained(rows: Sequence[Mapping[str, Any]], format_: Format) -> None:
    baselines = list(dict.fromkeys(row["baseline"] for row in rows if row["baseline"]))
    varied = [name for name in ("data", "recipe", "init", "teacher") if len({row[name] for row in rows}) > 1]
    varied += ["baseline"] if len(baselines) > 1 else []
    cells = [
        [
            row["name"],
            *(row[name] or "" for name in varied),
            str(row["seeds"]),
            f"{row['top1']:.2f}" + ("" if row["top1_sd"] is None else f" ± {row['top1_sd']:.2f}"),
            "" if row["top5"] is None else f"{row['top5']:.2f}",
            f"{row['loss']:.3f}",
            *([_gain(row)] if baselines else []),
            millions(row["params"]),
            millions(row["macs"]),
        ]
        for row in rows
    ]
    gain = ["gain"] if baselines else []
    header = ["network", *varied, "seeds", "top-1 %", "top-5 %", "loss", *gain, "params", "MACs"]
    data = ", ".join(dict.fromkeys(row["data"] for row in rows))
    emit(rows, format_, make_table(f"validated on {data}", header, cells, text=["network", *varied]))
    if format_ is Format.table and baselines:
        above = baselines[0] if len(baselines) == 1 else "the baseline"
        say(f"gain: points of top-1 above {above}, ± the standard error of the difference where there are seeds")


def _gain(row: Mapping[str, Any]) -> str:
    if row["gain"] is None:
        return ""
    return f"{row['gain']:+.2f}" + ("" if row["gain_error"] is None else f" ± {row['gain_error']:.2f}")


@app.command()
def ship(
    training: Annotated[Path, typer.Argument(metavar="TRAINING", help="A finished training folder.")],
    out: Annotated[Path | None, typer.Option(help="New folder to write.", show_default="TRAINING/shipped")] = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    session: SessionOption = None,
    tolerance: Annotated[float, typer.Option(min=0, help="Points of top-1 that 8 bits may lose.")] = 1.0,
    images: Annotated[int, typer.Option(min=1, help="Validation images to compare on, at most.")] = 5000,
    calibration: Annotated[int, typer.Option(min=1, help="Training images to calibrate 8 bits on, at most.")] = 256,
) -> None:
    """Make a folder that deploys of a training: ONNX in 32 and 8 bits, timm's files, a model card; all checked."""
    conditions = conditions_of(device, threads, 1, None, session)
    with progress_view() as view:
        _ship(
            training,
            out or training / SHIPPED,
            view.note,
            conditions=conditions,
            tolerance=tolerance,
            images=images,
            calibration_images=calibration,
        )


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A shipped folder.")],
    data: Annotated[str | None, typer.Option(metavar="DATA", help="Also take the accuracy again, on these.")] = None,
    format_: FormatOption = Format.table,
) -> None:
    """Check a shipped folder: every file, that timm and ONNX Runtime load it, and that they agree."""
    from evit_nas.shipping.verify import verify

    report_findings(verify(folder, data), str(folder), format_, "the folder is not as it was shipped")


@app.command("eval")
def evaluate_(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Training or shipped folders, .onnx files, timm:NAME@FILE.")
    ],
    data: Annotated[str, typer.Option(metavar="DATA", help="A folder of images, or a name: see README.")],
    split: Annotated[Split, typer.Option(help="Which images.")] = Split.val,
    batch: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 64,
    workers: LoadersOption = None,
    like: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Whose classes and preprocessing a lone .onnx file has.")
    ] = None,
    per_class: Annotated[bool, typer.Option("--per-class", help="Also show every class.")] = False,
    format_: FormatOption = Format.table,
) -> None:
    """Accuracy, confusions and calibration of trained networks; torch, ONNX and int8 side by side."""
    from evit_nas.evaluation import class_cells, confusion_cells, evaluate, rows, summary_cells

    with progress_view() as view:
        found = evaluate(
            models,
            data,
            split=split.value,
            batch=batch,
            workers=_loaders(workers),
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
