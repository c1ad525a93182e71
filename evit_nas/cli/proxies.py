"""`evit-nas proxies list | bench`: what scores there are, and what they are worth on trained networks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evit_nas.cli.app import DATA_HELP, DeviceOption, FormatOption, SeedOption, app, conditions_of
from evit_nas.config import ShortRecipe
from evit_nas.console import Format, duration, emit, make_table, say
from evit_nas.errors import UsageError
from evit_nas.quantities import parse_latency
from evit_nas.views import progress_view

if TYPE_CHECKING:
    from evit_nas.accuracy.scorecard import Card
    from evit_nas.accuracy.table import LabelTable

proxies = typer.Typer(help="Scores of untrained networks, and what they are worth.", no_args_is_help=True)
app.add_typer(proxies, name="proxies")

TIMED = 3  # networks of the table on which the cost of a proxy is measured


@proxies.command("list")
def list_(format_: FormatOption = Format.table) -> None:
    """Show every proxy and what it looks at."""
    from evit_nas.accuracy.zero_cost import PROXIES

    rows = [
        {"name": name, "kind": "size" if proxy.is_size else "proxy", "description": proxy.description}
        for name, proxy in PROXIES.items()
    ]
    header = ["name", "kind", "description"]
    emit(rows, format_, make_table("higher is better", header, [[str(row[h]) for h in header] for row in rows], header))


@proxies.command()
def bench(
    data: Annotated[str | None, typer.Option(help=DATA_HELP)] = None,
    archs: Annotated[int, typer.Option(min=16, help="Random architectures to train, in all slices together.")] = 48,
    slices: Annotated[str, typer.Option(help="Middles of the latency slices.")] = "2ms,3.5ms,5ms",
    space: Annotated[str, typer.Option(help="A shipped search space, or a YAML file.")] = "efficientvit-224",
    device: DeviceOption = "cpu",
    image_size: Annotated[int, typer.Option(min=64, help="Side of the training images.")] = 64,
    images: Annotated[int, typer.Option(min=2, help="Training images, class-balanced.")] = 10_000,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of each training.")] = 8,
    width: Annotated[float, typer.Option(min=0.1, max=1, help="Share of every width that is trained.")] = 0.5,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each network; a quarter has two anyway.")] = 1,
    workers: Annotated[int | None, typer.Option(min=1, help="Trainings at a time.", show_default="cores")] = None,
    so_far: Annotated[bool, typer.Option("--so-far", help="Train nothing more: judge on what is trained.")] = False,
    from_table: Annotated[
        str | None, typer.Option(metavar="TABLE", help="Judge on trained networks: a shipped table or a file.")
    ] = None,
    export: Annotated[Path | None, typer.Option(help="Write the trained networks as a table.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the card as PNG or SVG.")] = None,
    seed: SeedOption = 0,
    out: Annotated[Path | None, typer.Option(help="Folder of the pool.", show_default="runs/pool-DATA")] = None,
    format_: FormatOption = Format.table,
) -> None:
    """Judge every score by how well it ranks trained networks.

    With --data it trains networks of about equal latency, which takes hours and can be stopped at any time: the same
    command goes on. Shipped networks (--from-table) answer within minutes.
    """
    from evit_nas.accuracy.scorecard import score_card
    from evit_nas.accuracy.table import LabelTable

    if (data is None) == (from_table is None):
        raise UsageError("give either --data, to train networks, or --from-table, to judge on trained ones.")
    if from_table is not None:
        table = LabelTable.load(from_table)
    else:
        assert data is not None
        from evit_nas.latency.machine import usable_cores

        recipe = {"image_size": image_size, "images": images, "cycles": (epochs,), "width": width}
        processes = 0 if so_far else workers or usable_cores()
        table = _train(data, archs, slices, space, device, recipe, processes, seeds, seed, out)
    if export is not None:
        table.save(export)
        say(f"written: {export} ({len(table.networks)} networks)")
    card = score_card(table, seed=seed)
    _print(card, _costs(card, table), format_)
    if plot is not None:
        from evit_nas.report.plot import write_card_plot

        write_card_plot(card, plot)
        say(f"written: {plot}")


def _train(
    data: str,
    archs: int,
    slices: str,
    space: str,
    device: str,
    recipe: dict[str, object],
    workers: int,
    seeds: int,
    seed: int,
    out: Path | None,
) -> LabelTable:
    from evit_nas.latency import Steady, open_device
    from evit_nas.searching.labelling.pool import PoolSettings, TrainedPool
    from evit_nas.space import SearchSpace
    from evit_nas.yamlio import validate

    fields = {
        "data": data,
        "space": SearchSpace.load(space),
        "conditions": conditions_of(device, None, 1, None, None),
        "slices_ms": [parse_latency(part, "each of --slices", "2ms,3.5ms,5ms") for part in slices.split(",")],
        "archs": archs,
        "recipe": validate(ShortRecipe, recipe, "recipe"),
        "seed": seed,
    }
    settings = validate(PoolSettings, fields, "proxies bench")
    folder = out or Path("runs") / f"pool-{Path(data).name}"
    pool = TrainedPool(folder, settings)
    say(f"pool: {folder}")
    with Steady(open_device(settings.conditions)) as opened, progress_view() as view:
        return pool.train(opened, workers, view, seeds)


def _costs(card: Card, table: LabelTable) -> dict[str, float]:
    """Name of a proxy, or of their aggregate, on the card -> CPU seconds for a network here."""
    from evit_nas.accuracy.aggregate import NAMES
    from evit_nas.accuracy.scorecard import AGGREGATE
    from evit_nas.accuracy.zero_cost import PROXIES, cpu_seconds

    scored = [network.arch for network in table.networks if network.proxies]
    some = scored[:: math.ceil(len(scored) / TIMED) or 1]  # a slice takes no step of 0
    known = {AGGREGATE: NAMES} | {name: (name,) for name in PROXIES}
    names = [row.score for row in card.rows if row.kind in ("proxy", "aggregate") and row.score in known]
    return {name: cpu_seconds(some, known[name]) for name in names}


def _print(card: Card, costs: dict[str, float], format_: Format) -> None:
    rows = [row.plain() | {"cpu_seconds": costs.get(row.score)} for row in card.rows]
    cells = [
        [
            row.score,
            f"{row.overall:.2f}",
            f"{row.iso.value:.2f}",
            f"{row.iso.low:.2f}..{row.iso.high:.2f}",
            f"{row.gain.value:+.2f}" if row.gain else "",
            f"{row.regret:.2f}",
            f"{costs[row.score]:.2f}" if row.score in costs else "",
        ]
        for row in card.rows
    ]
    header = ["score", "tau", "iso tau", "95 %", "gain", "regret", "CPU s"]
    emit(rows, format_, make_table(f"{card.networks} networks, {card.pairs} pairs of rivals", header, cells))
    if format_ is Format.table:
        say(f"trained: {card.origin}")
        say("tau: all pairs; iso tau: pairs within 10 % of latency, and its gain over the best size")
        say("regret: accuracy in points that is lost by training the five best-scored of a slice only")
        say(f"CPU s: of a proxy for one network here; a label is one training, {duration(card.training_s)} of a core")
        if card.spread is not None:
            say(
                f"a perfect score would reach an iso tau of {card.ceiling}: rivals differ by {card.spread.arch_sd:.2f} "
                f"points because of the architecture, trainings of one network by {card.spread.seed_sd:.2f}"
            )
