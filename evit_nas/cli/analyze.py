"""Verbs that show why an architecture is good: analyze, proportion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evit_nas.cli.app import (
    DATA_HELP,
    Arch,
    DeviceOption,
    FormatOption,
    ImageSizeOption,
    SeedOption,
    ThreadsOption,
    app,
    conditions_of,
)
from evit_nas.commands import command_line
from evit_nas.console import Format, emit, make_table, say
from evit_nas.errors import UsageError
from evit_nas.lookup import find_arch, resized
from evit_nas.views import progress_view


@app.command()
def analyze(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Training or shipped folders, timm:NAME@FILE (DeiT, Swin).")
    ],
    data: Annotated[str, typer.Option(metavar="DATA", help=DATA_HELP)],
    images: Annotated[int, typer.Option(min=2, help="Training images to look at.")] = 512,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    like: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Whose classes and preprocessing a lone file has.")
    ] = None,
    suggest_space: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a narrower search space that the first one supports.")
    ] = None,
    space: Annotated[str, typer.Option(help="The space to narrow: a shipped one, or a file.")] = "efficientvit-224",
    prune_to: Annotated[
        str | None, typer.Option(metavar="ARCH", help="Cut the first one to it, for train --init.")
    ] = None,
    seed: SeedOption = 0,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("analysis.html"),
    format_: FormatOption = Format.table,
) -> None:
    """Look into trained networks: where the time goes, heads that agree, channels that matter; as a page."""
    from evit_nas.analysis import analyze
    from evit_nas.analysis.page import write_page
    from evit_nas.analysis.pruning import write_start
    from evit_nas.analysis.suggest import suggest_space as narrowed
    from evit_nas.runs import new_run_path
    from evit_nas.space import SearchSpace

    conditions = conditions_of(device, threads, 1, None, None)
    target = find_arch(prune_to) if prune_to else None
    wide = SearchSpace.load(space) if suggest_space else None
    with progress_view() as view:
        found = [
            analyze(model, data, images=images, seed=seed, conditions=conditions, like=like, note=view.note)
            for model in models
        ]
    first = found[0]
    rows = [one.model_dump(mode="json") for one in found]
    cells = [
        [
            one.network,
            "-" if one.training_top1 is None else f"{one.training_top1:.1f}",
            "-" if one.profile is None else f"{one.profile.total.time_ms:.2f}",
            "-" if one.profile is None else f"{100 * one.profile.total.memory_bound_share:.0f}",
            "-" if not one.heads else f"{sum(block.mean for block in one.heads) / len(one.heads):.2f}",
            str(len(one.heads)),
        ]
        for one in found
    ]
    header = ["network", "training top-1 %", "ms", "memory-bound %", "head similarity", "layers with heads"]
    emit(rows, format_, make_table(f"on {first.images} training images of {first.data}", header, cells))
    write_page(out, found)  # before what may still be refused
    say(f"written: {out}")
    if wide is not None and suggest_space is not None:
        if first.arch is None:
            raise UsageError(f"{models[0]} is no EfficientViT: a search space cannot be narrowed by it.")
        suggestion = narrowed(models[0], first.arch, first.channels, wide)
        suggestion.save(suggest_space)
        write_page(out, found, suggestion=suggestion)
        say(f"written: {suggest_space}, with {len(suggestion.narrowings)} narrower dimensions and their reasons")
        say(f"next:    {command_line('search', '--space', suggest_space, '--budget', '5ms')}")
    if target is not None:
        folder = new_run_path(Path(), f"{first.network}-to-{Path(str(prune_to)).stem}")
        if first.arch is None:
            raise UsageError(f"{models[0]} is no EfficientViT: it cannot be cut to one.")
        write_start(models[0], target, first.channels, first.arch.image_size, folder)
        say(f"written: {folder}")
        say(f"next:    {command_line('train', folder, '--init', folder, '--data', data)}")


@app.command()
def proportion(
    arch: Arch,
    data: Annotated[str, typer.Option(metavar="DATA", help=DATA_HELP)],
    out: Annotated[Path, typer.Option(help="Folder of this study; the same again goes on with it.")],
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    image_size: ImageSizeOption = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each variant.")] = 1,
    workers: Annotated[int, typer.Option(min=0, help="Trainings at a time; 0 only shows what is there.")] = 1,
    format_: FormatOption = Format.table,
) -> None:
    """How much attention pays: variants of equal latency with more and less of it, each trained briefly."""
    from evit_nas.analysis.page import write_page
    from evit_nas.analysis.proportion import study
    from evit_nas.latency import open_device

    config = find_arch(arch) if image_size is None else resized(find_arch(arch), image_size)
    with open_device(conditions_of(device, threads, 1, None, None)) as opened, progress_view() as view:
        found = study(out, config, data, opened, view, seeds=range(seeds), workers=workers)
    write_page(out / "proportion.html", proportion=found)
    rows = [
        point.model_dump(mode="json") | {"share": point.variant.share, "mean": point.mean} for point in found.points
    ]
    cells = [
        [p.variant.name, f"{100 * p.variant.share:.0f}", f"{p.variant.latency.median_ms:.2f}", f"{p.mean:.2f}"]
        for p in found.points
    ]
    title = f"variants of {arch} of about {found.target_ms:.2f} ms, trained on {found.data}"
    emit(rows, format_, make_table(title, ["variant", "attention %", "ms", "top-1 %"], cells))
    say(f"written: {out / 'proportion.html'}")
