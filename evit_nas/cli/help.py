"""What `--help` shows besides names and types: verbs in groups, the options of `search` in panels, and examples.

To add a verb: a line in VERBS.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from copy import copy
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup, TyperOption

RUN = "runs/efficientvit-224-cpu-5ms"
MEMBER = f"{RUN}/evit-4.72ms-7.8M"
TRAINING = "runs/train/m2-flowers-auto-s0"

START = (
    "evit-nas make flowers --budget 5ms",
    "evit-nas search --budget 5ms",
    f"evit-nas front {RUN}",
    f"evit-nas train {RUN} --top 1 --data flowers",
)
VERBS = {  # group -> verb -> examples, each short enough for 80 columns
    "All the way": {
        "make": (
            "evit-nas make flowers --budget 5ms",
            "evit-nas make flowers --budget 40ms --device remote:localhost --time 8h",
            "evit-nas make flowers --budget 5ms --init m1.pth --out runs/flowers",
        ),
    },
    "Search": {
        "search": (
            "evit-nas search --budget 5ms",
            "evit-nas search --budget 3ms --device cpu:4 --data flowers",
            "evit-nas search --budget 1ms --space tiny --trials 50 --dry-run",
        ),
        "resume": (
            f"evit-nas resume {RUN}",
            f"evit-nas resume {RUN} --workers 3",
            f"evit-nas resume {RUN} --engine ray --address auto",
        ),
        "front": (
            f"evit-nas front {RUN}",
            f"evit-nas front {RUN} --pick knee",
            f"evit-nas front {RUN} --images 5k --classes 10",
        ),
        "report": (
            f"evit-nas report {RUN}",
            f"evit-nas report {RUN} --plot front.svg",
            f"evit-nas report {RUN} --plot front.pdf",
        ),
        "runs": ("evit-nas runs", "evit-nas runs elsewhere/runs", "evit-nas runs --format json"),
        "config": (
            f"evit-nas config {RUN}",
            "evit-nas config --budget 5ms --max-params 6M > mine.yaml",
            f"evit-nas config {RUN} --seed 1 > mine.yaml",
        ),
        "replay": (
            f"evit-nas replay {RUN} 83",
            f"evit-nas replay {RUN} 0",
            f"evit-nas replay {RUN} 83 --format json",
        ),
    },
    "Train and ship": {
        "train": (
            f"evit-nas train {RUN} --top 1 --data flowers",
            "evit-nas train m2 --data flowers --time 2h --init m2.pth",
            f"evit-nas train {TRAINING} --resume",
        ),
        "supernet train": (
            "evit-nas supernet train efficientvit-224 --data flowers --budget 5ms",
            "evit-nas supernet train 96 --data flowers --macs 30M..90M",
            "evit-nas supernet train runs/supernet/efficientvit-96-flowers-s0 --resume",
        ),
        "eval": (
            f"evit-nas eval {TRAINING} --data flowers",
            "evit-nas eval shipped/m2 --data flowers --per-class",
            f"evit-nas eval m2.onnx --like {TRAINING} --data flowers",
        ),
        "ship": (
            f"evit-nas ship {TRAINING}",
            f"evit-nas ship {TRAINING} --out shipped/m2",
            f"evit-nas ship {TRAINING} --out m2-ov --device openvino",
        ),
        "verify": (
            f"evit-nas verify {TRAINING}/shipped",
            "evit-nas verify shipped/m2 --data flowers",
            "evit-nas verify shipped/m2 --format json",
        ),
        "predict": (
            f"evit-nas predict {TRAINING}/shipped rose.jpg",
            "evit-nas predict shipped/m2 photos/ --top 3 --format json",
            "evit-nas predict shipped/m2 - < rose.jpg",
        ),
        "analyze": (
            f"evit-nas analyze {TRAINING} --data flowers",
            "evit-nas analyze shipped/m2 --data flowers --suggest-space narrow.yaml",
            "evit-nas analyze shipped/m2 --data flowers --prune-to m1",
        ),
        "proportion": (
            "evit-nas proportion m2 --data flowers --out runs/attention",
            "evit-nas proportion m2 --data flowers --out runs/attention --seeds 3",
            "evit-nas proportion m2 --data flowers --out runs/attention --workers 0",
        ),
    },
    "Devices": {
        "measure": (
            "evit-nas measure m0 m4 --device cpu:4",
            f"evit-nas measure {MEMBER} m4",
            "evit-nas measure timm:mobilenetv4_conv_small net.onnx --references",
        ),
        "profile": (
            "evit-nas profile m0 m4 --device cpu:4",
            f"evit-nas profile {MEMBER} m4",
            "evit-nas profile timm:mobilenetv4_conv_small net.onnx",
        ),
        "devices": ("evit-nas devices", "evit-nas devices --format json", "evit-nas devices --format csv"),
        "device check": (
            "evit-nas device check cpu:4",
            "evit-nas device check cuda:1",
            "evit-nas device check remote:localhost",
        ),
        "doctor": ("evit-nas doctor", "evit-nas doctor --device cpu:4", "evit-nas doctor --format json"),
        "worker": (
            "evit-nas worker",
            "evit-nas worker --device cpu-int8 --port 8643",
            "evit-nas worker --bind 192.168.1.5",
        ),
        "latency fit": (
            "evit-nas latency fit",
            "evit-nas latency fit --device remote:localhost --networks 60",
            "evit-nas latency fit --import table.json",
        ),
        "latency show": (
            "evit-nas latency show",
            "evit-nas latency show --device cpu:4",
            "evit-nas latency show --export table.json",
        ),
        "latency check": (
            "evit-nas latency check",
            "evit-nas latency check --networks 10",
            "evit-nas latency check --device remote:localhost",
        ),
    },
    "Networks, spaces and scores": {
        "describe": (
            "evit-nas describe m4",
            f"evit-nas describe {MEMBER}",
            "evit-nas describe net.yaml --format json",
        ),
        "export": (
            f"evit-nas export {MEMBER} --to onnx",
            f"evit-nas export {TRAINING} --to onnx --batch 0",
            "evit-nas export m4 --to yaml --out net.yaml",
        ),
        "space": ("evit-nas space", "evit-nas space tiny", "evit-nas space efficientvit-224 --dump > mine.yaml"),
        "schema": ("evit-nas schema", "evit-nas schema arch > arch.json", "evit-nas schema space > space.json"),
        "score": (
            "evit-nas score m0 m4",
            "evit-nas score m0 m4 --accuracy table --images 5k --classes 10",
            f"evit-nas score m4 --run {RUN}",
        ),
        "proxies list": (
            "evit-nas proxies list",
            "evit-nas proxies list --format json",
            "evit-nas proxies list --format csv",
        ),
        "proxies bench": (
            "evit-nas proxies bench --from-table fashion-mnist-64",
            "evit-nas proxies bench --data flowers",
            "evit-nas proxies bench --data flowers --so-far --plot card.svg",
        ),
    },
}
GROUPS = {verb.partition(" ")[0]: group for group, verbs in VERBS.items() for verb in verbs}
EXAMPLES = {verb: examples for verbs in VERBS.values() for verb, examples in verbs.items()}

WITH_PANELS = ("search", "resume", "front")
PANELS = {
    "Budget and device": (
        *("budget", "device", "budget_stat", "max_params", "max_macs", "max_memory", "max_energy"),
        *("threads", "batch", "precision", "session"),
    ),
    "Score": (
        *("accuracy", "data", "images", "classes", "min_score"),
        *("table", "labels", "labels_from", "scheduler", "supernet"),
    ),
    "Search": (
        *("space", "image_size", "objective", "trials", "time", "patience"),
        *("sampler", "pool", "workers", "seed", "config"),
    ),
    "Ray cluster": (
        *("engine", "address", "concurrent", "together", "cpus_per_trial", "gpus_per_trial"),
        *("max_failures", "storage_path"),
    ),
    "Output": ("out", "front_size", "storage", "pick", "format_", "dry_run", "help"),
}
PLACES = {option: panel for panel, options in PANELS.items() for option in options}


class Verb(TyperCommand):
    """A verb whose help shows examples, and its options in panels if they are many."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See TyperCommand; a wrong value is said without the words of the library that found it."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """See TyperCommand."""
        verb, shown = _path(ctx), copy(self)  # the verb itself keeps its help and order
        shown.help = _with_examples(self.help, EXAMPLES.get(verb, ()))
        if verb in WITH_PANELS:
            order = [*PLACES]
            # arguments are in no panel and stay first
            shown.params = sorted(self.params, key=lambda param: order.index(param.name) if param.name in order else -1)
            for option in shown.get_params(ctx):
                if isinstance(option, TyperOption):
                    option.rich_help_panel = PLACES.get(option.name or "")
        TyperCommand.format_help(shown, ctx, formatter)


class Verbs(TyperGroup):
    """Verbs, in groups and in the order of VERBS."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        order = [*GROUPS]
        return sorted(super().list_commands(ctx), key=lambda name: order.index(name) if name in order else len(order))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """See TyperGroup."""
        path, shown = _path(ctx), copy(self)
        below = [examples[0] for verb, examples in EXAMPLES.items() if verb.startswith(f"{path} ")]
        shown.help = _with_examples(self.help, below if path else START)
        for name, verb in self.commands.items():
            if not path and isinstance(verb, TyperCommand | TyperGroup):
                verb.rich_help_panel = GROUPS.get(name)
        TyperGroup.format_help(shown, ctx, formatter)


def arrange(app: typer.Typer) -> None:
    """Has every verb of `app`, and those below it, show its help in this way."""
    app.info.cls = Verbs
    for verb in app.registered_commands:
        verb.cls = Verb
    for group in app.registered_groups:
        group.cls = Verbs
        assert group.typer_instance is not None
        arrange(group.typer_instance)


def _path(ctx: Any) -> str:
    """The verb of a context without the program's name, for example "latency fit"."""
    return str(ctx.command_path).partition(" ")[2]


def _with_examples(text: str | None, examples: Sequence[str]) -> str:
    """`text` and the examples, in markup that keeps their indentation, which Typer takes away.

    A paragraph of `text` is wrapped where the terminal ends, not where its lines do; indented lines stay lines.
    """
    paragraphs = re.sub(r"(?<!\n)\n(?=\S)", " ", text or "")
    lines = [f"  {line}" for example in examples for line in broken(example, Console().width - 4)]
    return "\n".join([paragraphs, "", "[bold not dim]Examples:[/]", *(f"[not dim]{escape(line)}[/]" for line in lines)])


def broken(command: str, width: int) -> list[str]:
    """The lines of a command on a terminal of so few columns, as a shell takes them."""
    if len(command) <= width:
        return [command]
    lines = textwrap.wrap(command, width - 2, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return [*(f"{line} \\" for line in lines[:-1]), lines[-1]]
