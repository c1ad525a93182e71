"""The Typer application, and the arguments and options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evit_nas import __version__
from evit_nas.console import Format, put

if TYPE_CHECKING:
    from evit_nas.config import Conditions

app = typer.Typer(
    help="Search EfficientViT architectures that keep a latency budget on your own device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # `main` says errors itself
    rich_markup_mode="rich",
)

DATA_HELP = "Images: a folder CLASS/*, or train/ and val/ of such; or digits, torch/NAME@FOLDER."
NOISY_NOTE = "* an estimate: the machine was not quiet enough"

Arch = Annotated[str, typer.Argument(metavar="ARCH", help="m0..m5, a YAML file, RUN/NAME, or a training folder.")]
Archs = Annotated[list[str], typer.Argument(metavar="ARCH...", help="m0..m5, YAML files, RUN/NAME, training folders.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, for example runs/efficientvit-224-cpu-5ms.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print the data.")]
Networks = Annotated[
    list[str], typer.Argument(metavar="NETWORK...", help="m0..m5, YAML files, RUN/NAME, timm:NAME, .onnx files.")
]
DeviceOption = Annotated[
    str, typer.Option(metavar="NAME", help="Where latency is measured: cpu, cpu:4, cuda, remote:HOST, ...")
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Threads for one inference.", show_default="1")
]
BatchOption = Annotated[int, typer.Option(min=1, metavar="N", help="Images per inference.")]
PrecisionOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="fp32, fp16, bf16 or int8.", show_default="the device's")
]
SessionOption = Annotated[
    list[str] | None, typer.Option("--session", metavar="NAME=VALUE", help="A setting that the runtime is handed.")
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option(
        min=32, metavar="PX", help="Input side in pixels instead of the network's own.", show_default="its own"
    ),
]
ImagesOption = Annotated[
    str | None, typer.Option(metavar="5k", help="Score for so many training images.", show_default="ImageNet's")
]
ClassesOption = Annotated[
    int | None, typer.Option(min=2, metavar="N", help="Classes of these images.", show_default="the space's")
]
SeedOption = Annotated[int, typer.Option(min=0, metavar="N", help="Seed of everything random.")]


def _version(value: bool) -> None:
    if value:
        put(f"evit-nas {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    # for --help alone: `main` takes it away, wherever it stands
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def conditions_of(
    device: str, threads: int | None, batch: int, precision: str | None, session: list[str] | None
) -> Conditions:
    """The conditions that the options of a verb describe."""
    from evit_nas.latency import parse_conditions

    return parse_conditions(device, threads=threads, batch=batch, precision=precision, entries=session or ())


def given(context: typer.Context) -> Any:
    """The options of `search` that are on the command line, as `settings_from` takes them; not its defaults."""
    from evit_nas.words import Words

    return {name: context.params[name] for name in Words.__annotations__ if on_the_line(context, name)}


def on_the_line(context: typer.Context, name: str) -> bool:
    """Whether a parameter was typed, and is no default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"
