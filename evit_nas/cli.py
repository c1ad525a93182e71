"""The command line: one function a verb. Data goes to standard output, talk to standard error.

Exit codes: 0 done, 1 nothing feasible or a check failed, 2 wrong use, 130 interrupted. Nothing heavy is imported
before the verb that needs it runs.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evit_nas import __version__
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.console import Format, duration, emit, make_table, millions, plain, progress_view, say
from evit_nas.errors import EvitNasError, Interrupted, UsageError

if TYPE_CHECKING:
    from evit_nas.config import SearchSettings
    from evit_nas.runs import Run
    from evit_nas.search.study import Front
    from evit_nas.space import SearchSpace

app = typer.Typer(
    help="Search EfficientViT architectures that keep a latency budget on your own device.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Arch = Annotated[str, typer.Argument(metavar="ARCH", help="m0..m5, a YAML file, or RUN/NAME of a front member.")]
Archs = Annotated[list[str], typer.Argument(metavar="ARCH...", help="m0..m5, YAML files, RUN/NAME.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, for example runs/efficientvit-224-cpu-5ms.")]
FormatOption = Annotated[Format, typer.Option("--format", help="How to print the data.")]
DeviceOption = Annotated[str, typer.Option(help="Where latency is measured.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]


def _version(value: bool) -> None:
    if value:
        print(f"evit-nas {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def search(
    budget: Annotated[str, typer.Option(help="Latency limit on the median, with its unit: 5ms.")],
    device: DeviceOption = "cpu",
    space: Annotated[str, typer.Option(help="A shipped search space, or a YAML file.")] = "efficientvit-224",
    trials: Annotated[int, typer.Option(min=1, help="Distinct architectures to evaluate.")] = 200,
    pool: Annotated[int, typer.Option(min=4, help="Random ones among them that the others are ranked against.")] = 40,
    seed: SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/SPACE-DEVICE-BUDGET")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would happen, and how long it takes.")
    ] = False,
) -> None:
    """Find the architectures with the best score within a latency budget."""
    from evit_nas.config import SearchSettings, parse_budget
    from evit_nas.latency.machine import probe
    from evit_nas.runs import Run, new_run_path
    from evit_nas.space import SearchSpace
    from evit_nas.yamlio import validate

    fields = {"device": device, "budget_ms": parse_budget(budget), "trials": trials, "pool": pool, "seed": seed}
    settings = validate(SearchSettings, fields | {"space_name": space, "space": SearchSpace.load(space)}, "search")
    if dry_run:
        _dry_run(settings)
        return
    path = out or new_run_path(Path("runs"), f"{Path(space).stem}-{device}-{settings.budget_ms:g}ms")
    command = shlex.join(["evit-nas", *sys.argv[1:]])
    with Run.create(path, settings, probe().model_dump(), command).lock() as run:
        say(f"run folder: {path}")
        _search(run)


@app.command()
def resume(run: RunPath) -> None:
    """Continue a search that was interrupted, to the same total of trials."""
    from evit_nas.runs import Run

    with Run.open(run).lock() as opened:
        _search(opened)


def _search(run: Run) -> None:
    from evit_nas.search.study import Search

    try:
        with progress_view() as view:
            found = Search(run, view).run()
    except Interrupted:
        say(f"interrupted; nothing that was evaluated is lost. Continue with: evit-nas resume {run.path}")
        raise
    _print_front(run, found, Format.table)
    best = max(found.members, key=lambda member: member.score)
    say(f"written: {run.front_folder}/ ({len(found.members)} YAML files) and {run.path / 'front.csv'}")
    say(f"next:    evit-nas export {run.front_folder / best.name}.yaml --to onnx")


@app.command()
def front(run: RunPath, format_: FormatOption = Format.table) -> None:
    """Show the Pareto front of a run, with the paper's networks measured in the same run."""
    from evit_nas.runs import Run
    from evit_nas.search.study import load_front

    opened = Run.open(run)
    found = load_front(opened)
    if found.done < found.total:
        say(f"{found.done} of {found.total} trials so far. Continue with: evit-nas resume {run}")
    _print_front(opened, found, format_)
    if not found.members:
        raise EvitNasError("no architecture within the budget has been found yet.")


def _print_front(run: Run, found: Front, format_: Format) -> None:
    from evit_nas.search.front import rows

    shown = sorted([*found.members, *found.references], key=lambda c: c.latency.median_ms)
    cells = [
        [
            c.name,
            f"{c.latency.median_ms:.2f}{'' if c.certified else '?'}",
            f"±{100 * c.latency.rel_error:.1f}%{'*' if c.latency.noisy else ''}",
            f"{c.score:.3f}",
            millions(c.params),
            millions(c.macs),
        ]
        for c in shown
    ]
    title = f"{run.path.name}: {len(found.members)} on the front, budget {run.settings.budget_ms:g} ms"
    table = make_table(title, ["name", "ms", "spread", "score", "params", "MACs"], cells)
    emit(rows(found.members), format_, table)
    if format_ is Format.table:
        if any(c.latency.noisy for c in shown):
            say("* the machine was not quiet: ratios hold, milliseconds are estimates")
        if not all(c.certified for c in shown):
            say("? not measured strictly yet")


def _dry_run(settings: SearchSettings) -> None:
    """Feasibility, and the pace of a few real evaluations; nothing is written."""
    import random
    import tempfile
    import time

    from evit_nas.latency import open_device
    from evit_nas.runs import Journal
    from evit_nas.search.evaluate import Evaluator
    from evit_nas.search.study import feasibility

    space = settings.space
    say(f"space {settings.space_name}: {len(space.dimensions())} dimensions, {space.size:.3g} points")
    with tempfile.TemporaryDirectory() as scratch, open_device(settings.device) as opened:
        evaluator = Evaluator(opened, Journal(Path(scratch) / "measurements.jsonl"), settings.seed)
        found = feasibility(evaluator, space, settings.budget_ms)
        rng, start = random.Random(settings.seed), time.monotonic()
        for arch in (space.sample(rng) for _ in range(5)):
            evaluator.proxies(arch)
            evaluator.latency(arch)
        pace = (time.monotonic() - start) / 5
    latencies = {"smallest": found.smallest, **found.presets, "largest": found.largest}
    rows = [
        {
            "name": name,
            "latency_ms": latency.median_ms,
            "within_budget": latency.median_ms <= settings.budget_ms,
        }
        for name, latency in latencies.items()
    ]
    cells = [
        [name, str(latency), "yes" if row["within_budget"] else "no"]
        for (name, latency), row in zip(latencies.items(), rows, strict=True)
    ]
    emit(
        rows,
        Format.table,
        make_table(f"budget {settings.budget_ms:g} ms on {settings.device}", ["", "latency", "within"], cells),
    )
    say(f"{settings.trials} trials would take about {duration(settings.trials * pace + 40)}")


@app.command()
def describe(arch: Arch, format_: FormatOption = Format.table) -> None:
    """Show an architecture: its stages, resolutions, parameters and MACs."""
    from evit_nas.network.cost import cost, stage_costs

    config = find_arch(arch)
    parts = stage_costs(config)
    total = cost(config)
    rows: list[dict[str, Any]] = [{"part": p.name, "params": p.params, "macs": p.macs} for p in parts]
    stages = make_table(
        f"{arch} (key {config.key})",
        ["stage", "map", "width", "depth", "heads", "q/k", "v", "ffn", "mixer"],
        [
            [
                str(i + 1),
                "×".join(map(str, config.grids[i])),
                str(s.width),
                str(s.depth),
                "-" if s.mixer == "none" else str(s.heads),
                "-" if s.mixer == "none" else str(s.qk_dim),
                "-" if s.mixer == "none" else str(s.v_dim),
                f"{s.ffn_count}+{s.ffn_count}×{s.ffn_dim}",
                _mixer(s),
            ]
            for i, s in enumerate(config.stages)
        ],
        text=["stage", "mixer"],
    )
    if format_ is Format.table:
        emit([], Format.table, stages)
    cells = [[p.name, f"{p.params:,}", f"{p.macs:,}", f"{100 * p.macs / total.macs:.1f}%"] for p in parts]
    cells.append(["total", f"{total.params:,}", f"{total.macs:,}", "100.0%"])
    height, width = config.input_size
    table = make_table(f"input {config.in_channels}×{height}×{width}", ["part", "params", "MACs", "share"], cells)
    emit([*rows, {"part": "total", "params": total.params, "macs": total.macs}], format_, table)


def _mixer(stage: Any) -> str:
    if stage.mixer != "softmax":
        return str(stage.mixer)
    kernels = "-".join(map(str, stage.used_q_kernels))
    return f"{'cascade' if stage.cascaded else 'parallel'} q{kernels} w{stage.window}"


@app.command()
def measure(
    archs: Archs,
    device: DeviceOption = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="As a search measures, instead of strictly.")] = False,
    format_: FormatOption = Format.table,
) -> None:
    """Measure the latency of architectures, or of ONNX files, side by side."""
    from evit_nas.latency import STRICT, Protocol, open_device, ratio_table

    protocol = Protocol() if quick else STRICT
    found = []
    targets = [(text, None if text.endswith(".onnx") else find_arch(text)) for text in archs]
    with open_device(device) as opened:
        for text, config in targets:
            latency, _ = opened.measure_file(text, protocol) if config is None else opened.measure(config, protocol)
            found.append(latency)
    ratios = ratio_table(found)
    rows = [{"arch": text, **latency.model_dump()} for (text, _), latency in zip(targets, found, strict=True)]
    cells = [
        [
            text,
            f"{latency.median_ms:.3f}",
            f"±{100 * latency.rel_error:.1f}%{'*' if latency.noisy else ''}",
            f"{latency.p90_ms:.3f}",
            f"{ratio:.3f}×",
        ]
        for (text, _), latency, ratio in zip(targets, found, ratios, strict=True)
    ]
    where = found[0]
    title = f"{device}, {where.threads} thread, batch {where.batch}, {where.precision}, {where.runtime}"
    emit(rows, format_, make_table(title, ["arch", "ms", "spread", "p90 ms", "ratio"], cells))
    if any(latency.noisy for latency in found):
        say("* the machine was not quiet: ratios hold, milliseconds are estimates")


@app.command()
def score(
    archs: Archs,
    run: Annotated[Path | None, typer.Option(help="Also rank against this run's pool.")] = None,
    seed: SeedOption = 0,
    format_: FormatOption = Format.table,
) -> None:
    """Zero-cost proxies of architectures, side by side; higher is better, and weak evidence."""
    from evit_nas.accuracy.zero_cost import score_all
    from evit_nas.runs import Run
    from evit_nas.search.study import load_aggregate

    opened = Run.open(run) if run is not None else None
    aggregate = load_aggregate(opened) if opened is not None else None
    used_seed = opened.settings.seed if opened is not None else seed
    rows = []
    for text in archs:
        scores = score_all(find_arch(text), seed=used_seed)
        rows.append({"arch": text, **scores, **({"score": aggregate.score(scores)} if aggregate else {})})
    names = [name for name in rows[0] if name != "arch"]
    cells = [[name, *(f"{row[name]:,.6g}" for row in rows)] for name in names]
    emit(rows, format_, make_table("proxies, higher is better", ["", *archs], cells))


@app.command()
def space(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A shipped space, or a YAML file.")] = None,
    dump: Annotated[bool, typer.Option("--dump", help="Print the YAML file, to be edited.")] = False,
    sample: Annotated[int, typer.Option(min=0, help="Print that many random architectures as YAML.")] = 0,
    seed: SeedOption = 0,
    format_: FormatOption = Format.table,
) -> None:
    """List the shipped search spaces, or show, sample or dump one."""
    from evit_nas.space import SearchSpace, space_path

    if name is None:
        _list_spaces(format_)
    elif dump:
        print(space_path(name).read_text(), end="")
    elif sample:
        _sample_space(SearchSpace.load(name), name, sample, seed)
    else:
        _show_space(SearchSpace.load(name), name, format_)


def _list_spaces(format_: Format) -> None:
    from evit_nas.network.cost import cost
    from evit_nas.space import SearchSpace, shipped_spaces

    rows, cells = [], []
    for name in shipped_spaces():
        found = SearchSpace.load(name)
        low, high = cost(found.smallest()).macs, cost(found.largest()).macs
        rows.append({"name": name, "points": found.size, "min_macs": low, "max_macs": high})
        cells.append([name, f"{found.size:.2g}", f"{millions(low)} .. {millions(high)}"])
    emit(rows, format_, make_table("search spaces", ["name", "points", "MACs"], cells))


def _sample_space(found: SearchSpace, name: str, count: int, seed: int) -> None:
    import random

    rng = random.Random(seed)
    configs = [found.sample(rng) for _ in range(count)]
    texts = [c.to_yaml(f"sample {i} of {name}, seed {seed}; key {c.key}") for i, c in enumerate(configs)]
    print("---\n".join(texts), end="")


def _show_space(found: SearchSpace, name: str, format_: Format) -> None:
    from evit_nas.space import describe_choices

    dimensions = found.dimensions()
    rows = [{"dimension": dimension, "choices": plain(choices)} for dimension, choices in dimensions]
    cells = [[dimension, str(len(choices)), describe_choices(choices)] for dimension, choices in dimensions]
    title = f"{name}: {found.image_size} px, {found.num_classes} classes, {found.size:.3g} points"
    columns = ["dimension", "choices", "values"]
    emit(rows, format_, make_table(title, columns, cells, text=["dimension", "values"]))


class ExportFormat(StrEnum):
    """What `export` writes."""

    yaml = "yaml"
    onnx = "onnx"


@app.command()
def export(
    arch: Arch,
    to: Annotated[ExportFormat, typer.Option("--to", help="What to write.")],
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="NAME.yaml or NAME.onnx")] = None,
    weights: Annotated[Path | None, typer.Option(help="Checkpoint (.safetensors or .pth); random without.")] = None,
    batch: Annotated[int, typer.Option(min=0, help="Images per inference; 0 for a dynamic batch size.")] = 1,
    seed: SeedOption = 0,
) -> None:
    """Write an architecture as YAML, or its deploy graph as ONNX."""
    config = find_arch(arch)
    path = out or Path(f"{Path(arch).name.removesuffix('.yaml')}.{to}")
    if to is ExportFormat.yaml:
        from evit_nas.runs import write_atomically

        write_atomically(path, config.to_yaml(f"EfficientViT {arch}; key {config.key}"))
        say(f"written: {path}")
        return
    from evit_nas.export import export_onnx

    error = export_onnx(config, path, weights=weights, batch=batch or None, seed=seed)
    kind = "trained weights" if weights else "random weights, for latency only"
    say(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB, {kind}; differs from torch by {error:.1e})")
    say(f"next:    evit-nas measure {path}")


@app.command()
def schema(
    of: Annotated[str, typer.Argument(metavar="arch|space", help="What the YAML file describes.")] = "arch",
) -> None:
    """Print the JSON schema of a config file, so that editors complete and check it."""
    import json

    from evit_nas.space import SearchSpace

    models = {"arch": ArchConfig, "space": SearchSpace}
    if of not in models:
        raise UsageError(f"a schema exists of arch and space, got '{of}'.")
    print(json.dumps(models[of].model_json_schema(), indent=2))


@app.command()
def doctor(device: DeviceOption = "cpu", format_: FormatOption = Format.table) -> None:
    """Check this machine: versions, what can measure, and whether it is quiet enough."""
    from evit_nas.doctor import examine

    findings = examine(device)
    rows = [{"check": f.check, "result": f.result, "ok": f.ok} for f in findings]
    cells = [[f.check, f.result, {True: "ok", False: "look", None: ""}[f.ok]] for f in findings]
    emit(
        rows,
        format_,
        make_table("this machine", ["check", "result", ""], cells, text=["check", "result", ""]),
    )
    if any(f.fatal for f in findings):
        raise EvitNasError("latency cannot be measured here reliably; see the lines marked 'look'.")


def find_arch(text: str) -> ArchConfig:
    """The architecture that a command-line argument names: a preset, a YAML file, or RUN/NAME.

    Raises:
        UsageError: it is none of them.
    """
    if text in PRESETS:
        return ArchConfig.preset(text)
    path = Path(text)
    member = path.parent / "front" / f"{path.name.removesuffix('.yaml')}.yaml"
    if not path.exists() and member.exists():
        return ArchConfig.load(member)
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        raise UsageError(
            f"'{text}' is not a preset ({', '.join(PRESETS)}), a YAML file, or RUN/NAME of a front member."
        )
    return ArchConfig.load(path)


def _interrupt(*_: object) -> None:
    raise Interrupted


def main() -> None:
    """Entry point of the console script."""
    signal.signal(signal.SIGINT, _interrupt)
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]  # wherever it stands
    try:
        app(arguments, prog_name="evit-nas")
    except Interrupted:
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output left, for example head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    except EvitNasError as error:
        if debug:
            raise
        say(f"evit-nas: {error}")
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            raise
        say(f"evit-nas: unexpected {type(error).__name__}: {error}. Run it again with --debug for the traceback.")
        sys.exit(1)
