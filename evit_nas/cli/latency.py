"""Verbs that measure: measure, profile, doctor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evit_nas.cli.app import (
    BatchOption,
    DeviceOption,
    FormatOption,
    ImageSizeOption,
    Networks,
    PrecisionOption,
    SessionOption,
    ThreadsOption,
    app,
    conditions_of,
)
from evit_nas.console import Format, emit, make_table, say
from evit_nas.errors import EvitNasError, UsageError
from evit_nas.lookup import find_measurable

if TYPE_CHECKING:
    from evit_nas.latency.profile import Profile
    from evit_nas.measuring import Measured

LONGEST_HEADER = 12
SPARE = ("p90 ms", "peak MB", "mJ", "typ p90", "ratio", "published", "typical", "spread")  # of a measurement
OPTIONAL = {  # columns: title and form
    "memory_mb": ("peak MB", "{:.0f}"),
    "energy_mj": ("mJ", "{:.2f}"),
    "published_top1": ("published", "{:.1f}%"),
}
UNRELIABLE = "latency cannot be measured here reliably"


@app.command()
def measure(
    networks: Annotated[
        list[str] | None,
        typer.Argument(metavar="NETWORK...", help="m0..m5, YAML files, RUN/NAME, timm:NAME, .onnx files."),
    ] = None,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    batch: BatchOption = 1,
    precision: PrecisionOption = None,
    image_size: ImageSizeOption = None,
    session: SessionOption = None,
    references: Annotated[
        bool, typer.Option("--references", help="Also m0..m5 and popular small networks of timm, with published top-1.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="As a search measures, instead of strictly.")] = False,
    format_: FormatOption = Format.table,
) -> None:
    """Measure latency, memory and energy of networks side by side."""
    from evit_nas.latency import STRICT, Protocol
    from evit_nas.measuring import measure_all

    if not networks and not references:
        raise UsageError("name at least one network (m0..m5, a YAML file, RUN/NAME, timm:NAME or an .onnx file).")
    conditions = conditions_of(device, threads, batch, precision, session)
    protocol = Protocol() if quick else STRICT
    chosen = {text: find_measurable(text, image_size) for text in networks or ()}
    found, failed = measure_all(chosen, conditions, protocol, say, memory=not quick, references=references)
    if found:
        _print_measured(found, format_, energy=protocol.energy and bool(networks))
        _tell_better(networks or ())
    if failed:
        raise EvitNasError(f"not measured: {', '.join(failed)}; see above for the reason.")


def _tell_better(networks: Sequence[str]) -> None:
    """Says so where a network's front was certified by a yardstick that is not the best any more."""
    from evit_nas.runs import Run
    from evit_nas.searching.record import better_since

    parents = [parent for text in networks for parent in Path(text).parents if (parent / "front").is_dir()]
    for parent in dict.fromkeys(parents):
        if (parent / "run.yaml").is_file() and (said := better_since(Run.open(parent))):
            say(said)


def _print_measured(found: Sequence[Measured], format_: Format, energy: bool) -> None:
    from evit_nas.latency import about_ms

    first = found[0].latency
    if any(one.published_top1 is not None for one in found):
        found = sorted(found, key=lambda one: one.latency.median_ms)
    shown = {name: each for name, each in OPTIONAL.items() if any(getattr(one, name) is not None for one in found)}
    cells = [
        [
            one.network,
            f"{one.latency.median_ms:.3f}",
            f"±{100 * one.latency.rel_error:.1f}%{'*' if one.latency.noisy else ''}",
            f"{one.latency.p90_ms:.3f}",
            f"{one.latency.median_ms / first.median_ms:.3f}×",
            f"{one.latency.stat_ms('typical'):.3f}",
            f"{one.latency.wall_p90_ms or one.latency.p90_ms:.3f}",
            *(
                "-" if (value := getattr(one, name)) is None else form.format(value)
                for name, (_, form) in shown.items()
            ),
        ]
        for one in found
    ]
    columns = ["network", "ms", "spread", "p90 ms", "ratio", "typical", "typ p90"]
    columns += [title for title, _ in shown.values()]
    table = make_table(f"{first.conditions}; {first.runtime}", columns, cells, spare=SPARE)
    emit([one.plain() for one in found], format_, table)
    if format_ is Format.table:
        say(about_ms(one.latency for one in found))
        if energy and "energy_mj" not in shown:
            say("energy: not available here (no readable RAPL or NVML counter)")
        if "published_top1" in shown:
            say("published: ImageNet-1k top-1 as its authors report it, none of it measured here")


@app.command()
def profile(
    networks: Networks,
    device: DeviceOption = "cpu",
    threads: ThreadsOption = None,
    batch: BatchOption = 1,
    image_size: ImageSizeOption = None,
    session: SessionOption = None,
    format_: FormatOption = Format.table,
) -> None:
    """Show where the time of networks goes, by operator and by block."""
    from evit_nas.latency.profile import block_cells, operator_cells, rows
    from evit_nas.latency.profile import profile as profile_one

    conditions = conditions_of(device, threads, batch, None, session)
    chosen = {text: find_measurable(text, image_size) for text in networks}
    profiles = {text: profile_one(network, conditions) for text, network in chosen.items()}
    short, legend = _numbered(profiles)
    title = "\n".join(["Operators (* = memory-bound)", *legend])
    emit(rows(profiles), format_, make_table(title, *operator_cells(short), block=3))
    if format_ is Format.table:
        emit([], format_, make_table("\n".join(["Blocks", *legend]), *block_cells(short), block=3))
        for text, found in profiles.items():
            say(f"{text}: {found}")


def _numbered(profiles: Mapping[str, Profile]) -> tuple[Mapping[str, Profile], list[str]]:
    """The same under numbers where names are too long to stand above columns of figures, and whose numbers they are."""
    if max(map(len, profiles)) <= LONGEST_HEADER:
        return profiles, []
    numbers = {name: str(number) for number, name in enumerate(profiles, start=1)}
    return {numbers[name]: each for name, each in profiles.items()}, [f"{n}: {name}" for name, n in numbers.items()]


@app.command()
def doctor(device: DeviceOption = "cpu", threads: ThreadsOption = None, format_: FormatOption = Format.table) -> None:
    """Check this machine: versions, devices, and whether it is quiet."""
    from evit_nas.doctor import examine

    report_findings(examine(conditions_of(device, threads, 1, None, None)), "this machine", format_)


def report_findings(findings: list[Any], title: str, format_: Format, verdict: str = UNRELIABLE) -> None:
    """Prints the findings of an examination; fails with `verdict` if one of them is fatal."""
    rows = [{"check": f.check, "result": f.result, "ok": f.ok} for f in findings]
    cells = [[f.check, f.result, {True: "ok", False: "look", None: ""}[f.ok]] for f in findings]
    emit(rows, format_, make_table(title, ["check", "result", ""], cells, text=["check", "result", ""]))
    if any(f.fatal for f in findings):
        raise EvitNasError(f"{verdict}; see the lines marked 'look'.")
