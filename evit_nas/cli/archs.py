"""Verbs about single architectures and spaces: describe, score, space, export, schema."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from evit_nas.arch import ArchConfig
from evit_nas.cli.app import Arch, Archs, ClassesOption, FormatOption, ImagesOption, SeedOption, app
from evit_nas.commands import command_line
from evit_nas.console import Format, emit, make_table, millions, plain, put, say
from evit_nas.errors import UsageError
from evit_nas.files import write_atomically, writing
from evit_nas.lookup import find_arch
from evit_nas.regime import default_regime

if TYPE_CHECKING:
    from evit_nas.accuracy.learned import LearnedAccuracy
    from evit_nas.space import SearchSpace


EDITORS = "# yaml-language-server: $schema=space.schema.json (written by: evit-nas schema space > space.schema.json)\n"


@app.command()
def describe(arch: Arch, format_: FormatOption = Format.table) -> None:
    """Show an architecture: its stages, maps, parameters and MACs."""
    from evit_nas.accuracy.learned import LearnedAccuracy
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
    if format_ is Format.table:
        learned = LearnedAccuracy.under(default_regime(config.num_classes))
        value, low, high = (float(column[0]) for column in learned.intervals([config]))
        say(f"score {value:.1f} ({low:.1f} to {high:.1f}): {learned.origin}")


def _mixer(stage: Any) -> str:
    if stage.mixer != "softmax":
        return str(stage.mixer)
    kernels = "-".join(map(str, stage.used_q_kernels))
    return f"{'cascade' if stage.cascaded else 'parallel'} q{kernels} w{stage.window}"


@app.command()
def score(
    archs: Archs,
    accuracy: Annotated[
        Literal["table", "zero-cost"] | None,
        typer.Option(help="Which score, as in a search.", show_default="zero-cost: proxies; with --run that run's"),
    ] = None,
    images: ImagesOption = None,
    classes: ClassesOption = None,
    data: Annotated[str | None, typer.Option(metavar="DATA", help="Score for as many images and classes.")] = None,
    run: Annotated[Path | None, typer.Option(metavar="RUN", help="The score that this run's search used.")] = None,
    seed: SeedOption = 0,
    format_: FormatOption = Format.table,
) -> None:
    """Scores of architectures, side by side; higher is better.

    Zero-cost proxies are weak evidence: see evit-nas proxies bench.
    """
    from evit_nas.accuracy.learned import LearnedAccuracy
    from evit_nas.runs import Run
    from evit_nas.searching.judges import learned_of
    from evit_nas.searching.record import load_aggregate
    from evit_nas.words import regime_from, said

    configs = {text: find_arch(text) for text in archs}
    opened = Run.open(run) if run is not None else None
    asked = said(images=images, classes=classes, data=data)
    if opened is not None and (asked or accuracy is not None):
        raise UsageError("a run has its own score: leave out --accuracy, --images, --classes and --data, or --run.")
    if asked and accuracy == "zero-cost":
        raise UsageError("--images, --classes and --data are for --accuracy table; proxies see no images.")
    if opened is not None:
        learned = learned_of(opened)
    elif asked or accuracy == "table":
        own = default_regime(next(iter(configs.values())).num_classes)
        learned = LearnedAccuracy.under(regime_from(asked, own.classes) or own)
    else:
        learned = None
    if learned is not None:
        _print_learned(configs, learned, format_)
        return
    from evit_nas.accuracy.zero_cost import score_all

    aggregate = load_aggregate(opened) if opened is not None else None
    used_seed = opened.settings.seed if opened is not None else seed
    rows = []
    for text in archs:
        scores = score_all(configs[text], seed=used_seed)
        rows.append({"arch": text, **scores, **({"score": aggregate.score(scores)} if aggregate else {})})
    names = [name for name in rows[0] if name != "arch"]
    cells = [[name, *(f"{row[name]:,.6g}" for row in rows)] for name in names]
    emit(rows, format_, make_table("proxies, higher is better", ["", *archs], cells, block=1))


def _print_learned(configs: Mapping[str, ArchConfig], learned: LearnedAccuracy, format_: Format) -> None:
    found = {
        text: (float(value), float(low), float(high))
        for text, value, low, high in zip(configs, *learned.intervals(list(configs.values())), strict=True)
    }
    rows = [{"arch": text, "score": value, "score_low": a, "score_high": b} for text, (value, a, b) in found.items()]
    cells = [[text, f"{value:.2f}", f"{a:.2f} to {b:.2f}"] for text, (value, a, b) in found.items()]
    emit(rows, format_, make_table("scores, higher is better", ["", "score", "four times in five"], cells))
    if format_ is Format.table:
        say(f"score: {learned.origin}")


@app.command()
def space(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A shipped space, or a YAML file.")] = None,
    dump: Annotated[bool, typer.Option("--dump", help="Print the YAML file, to be edited.")] = False,
    sample: Annotated[int, typer.Option(min=0, help="Print that many random architectures as YAML.")] = 0,
    seed: SeedOption = 0,
    format_: FormatOption = Format.table,
) -> None:
    """List the search spaces, or show, sample or dump one."""
    from evit_nas.space import SearchSpace, resolved_space, space_path

    if name is None:
        _list_spaces(format_)
        return
    name = resolved_space(name)
    found = SearchSpace.load(name)
    if dump:
        put(EDITORS + space_path(name).read_text(encoding="utf-8"))
    elif sample:
        _sample_space(found, name, sample, seed)
    else:
        _show_space(found, name, format_)


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
    put("---\n".join(texts))


def _show_space(found: SearchSpace, name: str, format_: Format) -> None:
    from evit_nas.choices import describe_choices

    dimensions = found.dimensions()
    rows = [{"dimension": dimension, "choices": plain(choices)} for dimension, choices in dimensions]
    cells = [[dimension, str(len(choices)), describe_choices(choices)] for dimension, choices in dimensions]
    title = f"{name}: {found.image_size} px, {found.num_classes} classes, {found.size:.3g} points"
    columns = ["dimension", "choices", "values"]
    emit(rows, format_, make_table(title, columns, cells, text=["dimension", "values"]))


@app.command()
def export(
    arch: Arch,
    to: Annotated[Literal["yaml", "onnx", "torchscript", "pt2"], typer.Option("--to", help="What to write.")],
    out: Annotated[Path | None, typer.Option(help="File to write.", show_default="NAME.onnx, ...")] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Checkpoint (.safetensors or .pth), or its folder.", show_default="ARCH's")
    ] = None,
    batch: Annotated[int, typer.Option(min=0, help="Images per inference; 0 for a dynamic batch size.")] = 1,
    seed: SeedOption = 0,
) -> None:
    """Write the deploy form of a network, or an architecture as YAML.

    The deploy form, as ONNX, TorchScript or an exported program of torch, is checked before it is written.
    """
    from evit_nas import exporting
    from evit_nas.trained import WEIGHTS, parted

    config = find_arch(arch)
    if weights is None and ((Path(arch) / WEIGHTS).is_file() or parted(arch) is not None):
        weights = Path(arch)
    suffix = ".yaml" if to == "yaml" else exporting.WRITERS[to][1]
    path = out or Path(Path(arch).resolve().name.removesuffix(".yaml") + suffix)
    if to == "yaml":
        with writing(path, " Give another file with --out."):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, config.to_yaml(f"EfficientViT {arch}; key {config.key}"))
        say(f"written: {path}")
        return
    with writing(path, " Give another file with --out."):
        error = exporting.export(to, config, path, weights=weights, batch=batch or None, seed=seed)
    kind = f"weights of {exporting.checkpoint(weights)}" if weights else "random weights, for latency only"
    say(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB, {kind}; differs from torch by {error:.1e})")
    if to == "onnx":
        say(f"next:    {command_line('measure', path)}")


@app.command()
def schema(
    of: Annotated[str, typer.Argument(metavar="arch|space", help="What the YAML file describes.")] = "arch",
) -> None:
    """Print the JSON schema of a YAML file, for editors."""
    import json

    from evit_nas.space import SearchSpace

    models = {"arch": ArchConfig, "space": SearchSpace}
    if of not in models:
        raise UsageError(f"a schema exists of arch and space, got '{of}'.")
    put(json.dumps(models[of].model_json_schema(), indent=2) + "\n")
