"""`evit-nas latency fit | show | check`: the predictor that spares a search most of its measurements."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evit_nas.cli.app import (
    NOISY_NOTE,
    BatchOption,
    DeviceOption,
    FormatOption,
    PrecisionOption,
    SeedOption,
    SessionOption,
    ThreadsOption,
    app,
    conditions_of,
)
from evit_nas.commands import command_line
from evit_nas.console import Format, emit, make_table, say
from evit_nas.errors import EvitNasError
from evit_nas.views import progress_view
from evit_nas.words import DEFAULT_SPACE

if TYPE_CHECKING:
    from evit_nas.latency import Device, Protocol
    from evit_nas.latency.samples import Sample, Table

latency = typer.Typer(help="Predicted latency: fit it to this device, look at it, check it.", no_args_is_help=True)
app.add_typer(latency, name="latency")

MAX_DRAWS = 50  # random ones for each that is wanted, in a space with few distinct networks
SpaceOption = Annotated[str, typer.Option(help="Search space whose architectures are measured.")]


@latency.command()
def fit(
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    batch: BatchOption = 1,
    precision: PrecisionOption = None,
    session: SessionOption = None,
    space: SpaceOption = DEFAULT_SPACE,
    networks: Annotated[int, typer.Option(min=32, help="Measured networks that the fit rests on.")] = 100,
    import_: Annotated[Path | None, typer.Option("--import", help="First take over an exported table.")] = None,
    seed: SeedOption = 0,
) -> None:
    """Measure random architectures until the table holds enough of them, and fit the predictor."""
    from evit_nas.latency import Protocol, open_device
    from evit_nas.latency.predictor import MIN_SAMPLES
    from evit_nas.latency.predictor import fit as fit_predictor
    from evit_nas.latency.samples import Table
    from evit_nas.space import SearchSpace

    with open_device(conditions_of(device, threads, batch, precision, session)) as opened:
        table = Table(opened.context(), SearchSpace.load(space))
        if import_ is not None:
            say(f"{table.import_from(import_)} networks taken over from {import_}")
        fresh = _measure_unseen(opened, table, space, networks - len(table.samples()), seed, Protocol())
    noisy = sum(sample.noisy for sample in fresh)
    if noisy:
        say(f"{noisy} of {len(fresh)} figures are not kept: the machine was not quiet")
    samples = table.samples()
    predictor = fit_predictor(samples)
    if predictor is None:
        shown_by = command_line("device", "check", device)
        raise EvitNasError(
            f"a fit needs {MIN_SAMPLES} networks, {len(samples)} are known. "
            + (
                f"End other work on the machine ({shown_by} shows it) and run this again."
                if noisy
                else f"Give a --space with enough networks that run on {device}."
            )
        )
    say(f"{predictor.samples} networks, method {predictor.method}; in cross-validation {predictor.check}")
    _verdict(predictor.check.trusted, device)


@latency.command()
def show(
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    batch: BatchOption = 1,
    precision: PrecisionOption = None,
    session: SessionOption = None,
    space: SpaceOption = DEFAULT_SPACE,
    export: Annotated[Path | None, typer.Option("--export", help="Write the table as JSON, for fit --import.")] = None,
    format_: FormatOption = Format.table,
) -> None:
    """Show what is known about a device: networks measured, method, errors in cross-validation."""
    from evit_nas.latency import open_device
    from evit_nas.latency.predictor import fit as fit_predictor
    from evit_nas.latency.samples import Table
    from evit_nas.space import SearchSpace

    with open_device(conditions_of(device, threads, batch, precision, session)) as opened:
        table = Table(opened.context(), SearchSpace.load(space))
    samples = table.samples()
    if export is not None:
        say(f"written: {export} ({table.export_to(export)} networks)")
    predictor = fit_predictor(samples)
    if predictor is None:
        raise EvitNasError(
            f"{len(samples)} networks have been measured on {device}, too few for a fit. "
            f"Measure more with: {_fit_command(device, threads, batch, precision, session, space)}"
        )
    check = predictor.check
    row = {
        "device": device,
        "networks": predictor.samples,
        "method": predictor.method,
        "mape": check.mape,
        "within_5": check.within_5,
        "within_10": check.within_10,
        "spearman": check.spearman,
        "trusted": check.trusted,
    }
    cells = [
        ["networks measured", str(predictor.samples)],
        ["fastest, slowest", f"{min(s.ms for s in samples):.2f} ms, {max(s.ms for s in samples):.2f} ms"],
        ["method", predictor.method],
        ["mean error", f"{100 * check.mape:.1f}%"],
        ["within 5%, within 10%", f"{100 * check.within_5:.0f}%, {100 * check.within_10:.0f}%"],
        ["rank correlation", f"{check.spearman:.3f}"],
        ["a search relies on it", "yes" if check.trusted else "no: it measures every architecture"],
    ]
    cells += [[name, value] for name, value in table.context.items() if name != "conditions"]
    title = f"predicted latency on {device}, in cross-validation"
    emit([row], format_, make_table(title, ["", "value"], cells, ["", "value"]))


@latency.command()
def check(
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    batch: BatchOption = 1,
    precision: PrecisionOption = None,
    session: SessionOption = None,
    space: SpaceOption = DEFAULT_SPACE,
    networks: Annotated[  # of fewer than 8, all of them right, nobody can say that 9 of 10 are
        int, typer.Option(min=8, help="Unseen architectures to measure, strictly.")
    ] = 20,
    seed: SeedOption = 1,
    format_: FormatOption = Format.table,
) -> None:
    """Measure architectures the predictor has not seen, and compare."""
    from evit_nas.latency import STRICT, open_device
    from evit_nas.latency.predictor import compare
    from evit_nas.latency.predictor import fit as fit_predictor
    from evit_nas.latency.samples import Table
    from evit_nas.space import SearchSpace

    with open_device(conditions_of(device, threads, batch, precision, session)) as opened:
        table = Table(opened.context(), SearchSpace.load(space))
        predictor = fit_predictor(table.samples())
        if predictor is None:
            first = _fit_command(device, threads, batch, precision, session, space)
            raise EvitNasError(f"there is nothing to check yet. First: {first}")
        fresh = _measure_unseen(opened, table, space, networks, seed, STRICT)
    if not fresh:
        raise EvitNasError("no unseen architecture could be measured; there is nothing to compare.")
    predicted = predictor.predict_ms([sample.arch for sample in fresh])
    found = compare(predicted, [sample.ms for sample in fresh])
    rows = [
        {
            "key": s.arch.key,
            "predicted_ms": float(ms),
            "measured_ms": s.ms,
            "error": float(ms / s.ms - 1),
            "noisy": s.noisy,
        }
        for s, ms in zip(fresh, predicted, strict=True)
    ]
    cells = [
        [s.arch.key, f"{ms:.3f}", f"{s.ms:.3f}{'*' if s.noisy else ''}", f"{100 * (ms / s.ms - 1):+.1f}%"]
        for s, ms in sorted(zip(fresh, predicted, strict=True), key=lambda pair: pair[0].ms)
    ]
    title = f"{device}: {predictor.samples} networks in the fit, method {predictor.method}"
    emit(rows, format_, make_table(title, ["architecture", "predicted ms", "measured ms", "off"], cells))
    if format_ is Format.table and any(sample.noisy for sample in fresh):
        say(NOISY_NOTE)
    say(str(found))
    _verdict(found.trusted, device)


def _fit_command(
    device: str, threads: int | None, batch: int, precision: str | None, session: list[str] | None, space: str
) -> str:
    """What fits the predictor of these very conditions."""
    said = {"--device": device, "--threads": threads, "--batch": batch if batch != 1 else None}
    said |= {"--precision": precision, "--space": space if space != DEFAULT_SPACE else None}
    words = [word for option, value in said.items() if value is not None for word in (option, value)]
    words += [word for setting in session or () for word in ("--session", setting)]
    return command_line("latency", "fit", *words)


def _verdict(trusted: bool, device: str) -> None:
    if not trusted:
        raise EvitNasError(f"that is not good enough: searches measure every architecture on {device}.")
    say(f"searches rely on it on {device}, and measure only what may reach the front")


def _measure_unseen(
    device: Device, table: Table, space: str, count: int, seed: int, protocol: Protocol
) -> list[Sample]:
    """Measures `count` random architectures of the space that the table does not hold yet."""
    from evit_nas.latency.samples import measure_unseen
    from evit_nas.space import SearchSpace

    found, rng = SearchSpace.load(space), random.Random(seed)
    with progress_view() as view:
        archs = (found.sample(rng) for _ in range(MAX_DRAWS * max(count, 0)))
        return measure_unseen(
            device, table, archs, count, protocol, lambda done: view.step("networks measured", done, count), view.note
        )
