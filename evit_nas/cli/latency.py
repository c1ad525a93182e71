"""Verbs that measure: measure, profile, doctor, devices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
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
    find_subject,
)
from evit_nas.console import Format, emit, make_table, say
from evit_nas.errors import EvitNasError, MeasurementError, UsageError

if TYPE_CHECKING:
    from evit_nas.latency.profile import Profile

LONGEST_HEADER = 12
SPARE = ("p90 ms", "peak MB", "mJ", "typ p90", "ratio", "published", "typical", "spread")  # of a measurement
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
    from evit_nas.arch import ArchConfig
    from evit_nas.latency import STRICT, Protocol, open_device
    from evit_nas.latency.predictor import Table

    if not networks and not references:
        raise UsageError("name at least one network (m0..m5, a YAML file, RUN/NAME, timm:NAME or an .onnx file).")
    conditions = conditions_of(device, threads, batch, precision, session)
    protocol = Protocol() if quick else STRICT
    subjects = {text: find_subject(text, image_size) for text in networks or ()}
    rows: list[dict[str, Any]] = []
    failed: list[str] = []
    with open_device(conditions) as opened:
        for text, subject in subjects.items():
            with _tried(text, failed):
                latency, samples = opened.measure(subject, protocol)
                if isinstance(subject, ArchConfig):
                    Table(opened.context(), subject).add(subject, latency)
                energy = {"energy_mj": samples.get("energy_mj")} if protocol.energy else {}
                rows.append({"network": text, "latency": latency, **energy})
        if references:
            rows += _references(opened, protocol, failed)
    if not quick and conditions.family != "remote":
        from evit_nas.latency.memory import peak_memory_mb

        for row in rows:
            if row["network"] in subjects:
                with _tried(f"memory of {row['network']}", failed):
                    row["memory_mb"] = peak_memory_mb(subjects[row["network"]], conditions)
    if rows:
        _print_measured(_by_one_yardstick(rows), format_)
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


def _by_one_yardstick(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was measured first as well by what the yardstick is at the end."""
    from evit_nas.latency.yardstick import best_units, said_by

    latencies = [row["latency"] for row in rows]
    return [row | {"latency": one} for row, one in zip(rows, said_by(best_units(latencies), latencies), strict=True)]


@contextmanager
def _tried(what: str, failed: list[str]) -> Iterator[None]:
    """Says and notes a measurement that fails, so that the others go on; of a lost link it is no network's fault."""
    try:
        yield
    except MeasurementError as error:
        if error.kind == "lost link":
            raise
        say(f"{what}: {error}")
        failed.append(what)


def _references(opened: Any, protocol: Any, failed: list[str]) -> list[dict[str, Any]]:
    """The presets and the references, with the accuracy that their authors published."""
    from evit_nas.arch import ArchConfig
    from evit_nas.latency.references import PUBLISHED_TOP1, measure_references

    presets = []
    for name, top1 in PUBLISHED_TOP1.items():
        label = f"EfficientViT-{name.upper()}"
        with _tried(label, failed):
            latency, _ = opened.measure(ArchConfig.preset(name), protocol)
            presets.append({"network": label, "latency": latency, "published_top1": top1})
    return presets + [
        {"network": one.reference.label, "latency": one.latency, "published_top1": one.reference.published_top1}
        for one in measure_references(opened, protocol, note=say)
    ]


def _print_measured(rows: list[dict[str, Any]], format_: Format) -> None:
    from evit_nas.latency import about_ms

    first = rows[0]["latency"].median_ms
    if any("published_top1" in row for row in rows):
        rows = sorted(rows, key=lambda row: float(row["latency"].median_ms))
    shown = {
        name: any(row.get(name) is not None for row in rows) for name in ("memory_mb", "energy_mj", "published_top1")
    }
    cells = []
    for row in rows:
        latency = row["latency"]
        optional = {
            "memory_mb": "{:.0f}",
            "energy_mj": "{:.2f}",
            "published_top1": "{:.1f}%",
        }
        cells.append(
            [
                row["network"],
                f"{latency.median_ms:.3f}",
                f"±{100 * latency.rel_error:.1f}%{'*' if latency.noisy else ''}",
                f"{latency.p90_ms:.3f}",
                f"{latency.median_ms / first:.3f}×",
                f"{latency.stat_ms('typical'):.3f}",
                f"{latency.wall_p90_ms or latency.p90_ms:.3f}",
                *(
                    text.format(row[name]) if row.get(name) is not None else "-"
                    for name, text in optional.items()
                    if shown[name]
                ),
            ]
        )
    titles = {"memory_mb": "peak MB", "energy_mj": "mJ", "published_top1": "published"}
    columns = [
        "network",
        "ms",
        "spread",
        "p90 ms",
        "ratio",
        "typical",
        "typ p90",
        *(titles[name] for name in titles if shown[name]),
    ]
    machine = rows[0]["latency"]
    table = make_table(f"{machine.conditions}; {machine.runtime}", columns, cells, spare=SPARE)
    plain_rows = [
        {
            "network": row["network"],
            **row["latency"].model_dump(mode="json"),
            "ms_error": row["latency"].ms_error,
            "noisy": row["latency"].noisy,
            **{name: row.get(name) for name in titles},
        }
        for row in rows
    ]
    emit(plain_rows, format_, table)
    if format_ is Format.table:
        say(about_ms(row["latency"] for row in rows))
        if not shown["energy_mj"] and any("energy_mj" in row for row in rows):  # asked for, and none was read
            say("energy: not available here (no readable RAPL or NVML counter)")
        if shown["published_top1"]:
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
    subjects = {text: find_subject(text, image_size) for text in networks}
    profiles = {text: profile_one(subject, conditions) for text, subject in subjects.items()}
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
