"""Verbs that search, and that show what a search found."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evit_nas.cli.app import (
    BatchOption,
    ClassesOption,
    FormatOption,
    ImageSizeOption,
    ImagesOption,
    PrecisionOption,
    RunPath,
    SeedOption,
    SessionOption,
    ThreadsOption,
    app,
    given,
)
from evit_nas.commands import command_line, typed
from evit_nas.config import TRIALS, BudgetStat, Engine, Method, Scheduler
from evit_nas.console import Format, duration, emit, make_table, millions, put, say
from evit_nas.errors import EvitNasError, Interrupted, UsageError, interruptions
from evit_nas.views import progress_view

if TYPE_CHECKING:
    from evit_nas.config import SearchSettings
    from evit_nas.runs import Run
    from evit_nas.searching.record import Front


SPARE = ("MACs", "params", "typical ms", "MB", "mJ", "spread")  # columns of a front
CERTIFYING_S = 40.0  # the strict measurements at the end


EngineOption = Annotated[Engine | None, typer.Option(help="What runs trials: this machine or Ray.", show_default=False)]
AddressOption = Annotated[
    str | None,
    typer.Option(metavar="auto|ray://HOST:10001", help="The Ray cluster, if not this machine.", show_default=False),
]
CpusOption = Annotated[float | None, typer.Option(help="Cores of a trial on Ray, if not 1.", show_default=False)]
GpusOption = Annotated[float | None, typer.Option(help="GPUs of a trial on Ray, if any.", show_default=False)]
ConcurrentOption = Annotated[
    int | None,
    typer.Option(
        min=1, metavar="N", help="Trials at a time on Ray, if not as many as it has room for.", show_default=False
    ),
]
FailuresOption = Annotated[
    int | None,
    typer.Option(
        min=0, metavar="N", help="Deaths of a worker that a trial on Ray survives, if not 3.", show_default=False
    ),
]
StorageOption = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Files that all nodes of Ray see, if not the run folder.", show_default=False),
]


@app.command()
def search(
    context: typer.Context,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="5ms", help="Latency limit with its unit; for several devices cpu=5ms,pi=40ms.", show_default=False
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="RUN|FILE", help="Start from the settings of a run, or of evit-nas config's file."),
    ] = None,
    device: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="cpu, cpu:4, cuda, remote:HOST, ...; may be given several times.", show_default="cpu"
        ),
    ] = None,
    budget_stat: Annotated[
        BudgetStat,
        typer.Option(
            help="Which latency keeps the budget: median or p90 of the quiet machine, or typical of it as it is."
        ),
    ] = "median",
    objective: Annotated[
        list[str] | None,
        typer.Option(
            metavar="WHAT",
            help="What is optimised, given several times: score, latency, params, macs, memory, energy.",
            show_default="score and latency",
        ),
    ] = None,
    min_score: Annotated[float | None, typer.Option(help="Lowest score.")] = None,
    max_params: Annotated[str | None, typer.Option(metavar="10M", help="Limit on parameters.")] = None,
    max_macs: Annotated[str | None, typer.Option(metavar="300M", help="Limit on MACs for one image.")] = None,
    max_memory: Annotated[str | None, typer.Option(metavar="64MB", help="Limit on peak resident memory.")] = None,
    max_energy: Annotated[str | None, typer.Option(metavar="40mJ", help="Limit on energy per inference.")] = None,
    space: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="A shipped search space, or a YAML file.")
    ] = "efficientvit-224",
    image_size: ImageSizeOption = None,
    threads: ThreadsOption = None,
    batch: BatchOption = 1,
    precision: PrecisionOption = None,
    session: SessionOption = None,
    accuracy: Annotated[
        Method | None,
        typer.Option(
            help="Where the score comes from.",
            show_default="table if it covers the space, else predictor with --data and zero-cost without",
        ),
    ] = None,
    images: ImagesOption = None,
    classes: ClassesOption = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Your images: counted for the score, or trained on by its other kinds."),
    ] = None,
    labels: Annotated[int, typer.Option(min=8, metavar="N", help="Networks that --accuracy predictor trains.")] = 30,
    labels_from: Annotated[
        list[Path] | None, typer.Option(metavar="RUN", help="Take over the trained networks of another run.")
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(metavar="TABLE", help="Networks you trained: score for their images.", show_default=False),
    ] = None,
    supernet: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Shared weights to judge by: evit-nas supernet train.", show_default=False),
    ] = None,
    scheduler: Annotated[Scheduler, typer.Option(help="asha: --accuracy short trains on the best third.")] = "none",
    sampler: Annotated[
        str, typer.Option(metavar="NAME", help="auto, tpe, nsga2, nsga3, gp, evolution, qmc or random.")
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Processes that score or train candidates.", show_default="cores - 1"),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, metavar="N", help="Distinct architectures to evaluate.")] = TRIALS,
    time: Annotated[str | None, typer.Option(metavar="10m", help="Begin no new candidate after this time.")] = None,
    patience: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="End after so many architectures without a better front.")
    ] = None,
    front_size: Annotated[int, typer.Option(min=1, metavar="N", help="Most members of the front.")] = 16,
    pool: Annotated[
        int, typer.Option(min=4, metavar="N", help="How many of --trials are drawn at random first, to compare with.")
    ] = 40,
    seed: SeedOption = 0,
    engine: EngineOption = None,
    together: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Candidates in a round: about --concurrent.", show_default="4"),
    ] = None,
    address: AddressOption = None,
    cpus_per_trial: CpusOption = None,
    gpus_per_trial: GpusOption = None,
    concurrent: ConcurrentOption = None,
    max_failures: FailuresOption = None,
    storage_path: StorageOption = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL|FILE", help="Optuna's storage: a database or Redis, or a journal.", show_default="RUN/study.db"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder.", show_default="runs/SPACE-DEVICE-BUDGET")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would happen, and how long it takes.")
    ] = False,
) -> None:
    """Find the architectures that score best within a latency budget."""
    from evit_nas.api import new_run
    from evit_nas.runs import Run
    from evit_nas.words import settings_from, with_supernet, without_supernet

    words = given(context)
    if dry_run:
        if without_supernet(words) != words:
            say("a supernet is trained for it first, which takes hours on a processor")
        _dry_run(settings_from(**without_supernet(words)))
        return
    if out is not None:
        Run.check_new(out)  # before hours of a supernet
    with progress_view() as view:
        words = with_supernet(words, view, typed())
    settings = settings_from(**words)
    if settings.accuracy.data is not None:
        _look_at(settings.accuracy.data, settings)
    elif settings.accuracy.regime is not None and (images, classes) == (None, None):
        say(f"scored for {settings.accuracy.regime}; for yours add --images 5k --classes 10, or --data PATH")
    with new_run(settings, out, typed()) as run:
        _search(run)


@app.command()
def resume(
    context: typer.Context,
    run: RunPath,
    workers: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Processes that score candidates.", show_default="as before")
    ] = None,
    engine: EngineOption = None,
    address: AddressOption = None,
    cpus_per_trial: CpusOption = None,
    gpus_per_trial: GpusOption = None,
    concurrent: ConcurrentOption = None,
    max_failures: FailuresOption = None,
    storage_path: StorageOption = None,
) -> None:
    """Continue an interrupted search, here or on another cluster.

    It goes on to the same total of trials, and comes to what an uninterrupted search comes to.
    """
    from evit_nas.runs import Run
    from evit_nas.words import elsewhere

    with Run.open(run).lock() as opened:
        elsewhere(opened, **given(context))
        _search(opened)


def _look_at(data: str, settings: SearchSettings) -> None:
    """What the images are, and a word where networks of another size would fit them."""
    from evit_nas.data.look import FEW_IMAGES, few, look
    from evit_nas.data.sources import open_source
    from evit_nas.training.auto import auto_size

    seen, own = look(open_source(data)), settings.space.image_size
    say(str(seen))
    if seen.train < FEW_IMAGES:
        say(few(seen.train))
    if isinstance(own, int) and (fitting := auto_size(seen, own)) < own:
        say(f"the networks take {own} px; for images of this size --image-size {fitting} spends the budget better")


def _search(run: Run) -> None:
    from evit_nas.api import leaves_nothing
    from evit_nas.report.page import write_report
    from evit_nas.searching.study import Search

    try:
        with progress_view() as view, interruptions():
            found = Search(run, view).run()
    except Interrupted:
        if leaves_nothing(run):
            say(f"interrupted before anything was evaluated: nothing is left of {run.path}")
        else:
            say(f"interrupted; nothing that was evaluated is lost. Continue with: {command_line('resume', run.path)}")
        raise
    write_report(run)
    print_found(run, found)
    best = max(found.members, key=lambda member: member.score)
    wish, start = run.settings.accuracy, list[str | Path]()
    if wish.supernet is not None:
        start = ["--init", wish.supernet]
    say(f"next:    {command_line('train', run.path / best.name, '--data', wish.data or 'PATH', *start)}")


def print_found(run: Run, found: Front) -> None:
    """The front of a search that has ended, and where it was written."""
    _print_front(run, found, Format.table)
    say(f"score:   {found.origin}")
    files = f"{run.front_folder}/ ({len(found.members)} YAML files), {run.path / 'front.csv'}"
    say(f"written: {files} and {run.path / 'report.html'}")


@app.command()
def front(
    run: RunPath,
    pick: Annotated[
        str | None, typer.Option(metavar="WHAT", help="Only the path of one: best, fastest, knee or under=4ms.")
    ] = None,
    images: ImagesOption = None,
    classes: ClassesOption = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATA", help="Score for as many images and classes as these.")
    ] = None,
    format_: FormatOption = Format.table,
) -> None:
    """Show the Pareto front of a run beside the paper's networks.

    With --images, --classes or --data: the front that the same measured networks would make under another regime.
    """
    from evit_nas.runs import Run, explained
    from evit_nas.searching import selection
    from evit_nas.searching.front import write_front
    from evit_nas.searching.record import better_since, load_front
    from evit_nas.words import regime_from, said

    opened = Run.open(run)
    regime = regime_from(said(images=images, classes=classes, data=data), opened.settings.space.num_classes)
    with explained(run):
        found = load_front(opened, regime)
    if pick is not None:
        path = opened.front_folder / f"{selection.pick(found.members, pick, opened.settings).name}.yaml"
        if regime is not None and not path.exists():
            raise UsageError(
                f"what is {pick} for {regime} is not among the front's files: {path.stem}. Search for these images."
            )
        if not path.exists():
            with opened.lock():
                write_front(opened, found.members, found.origin)
        put(f"{path}\n")
        return
    if better := better_since(opened):
        say(better)
    if found.done < found.total and found.ended:
        say(f"ended after {found.done} of {found.total} trials: {found.ended}")
    elif found.done < found.total:
        say(f"{found.done} of {found.total} trials so far. Continue with: {command_line('resume', run)}")
    _print_front(opened, found, format_)
    if regime is not None and format_ is Format.table:
        say(f"score:   {found.origin}")
    if not found.members:
        raise EvitNasError("no architecture within the budget has been found yet.")


def _print_front(run: Run, found: Front, format_: Format) -> None:
    from evit_nas.latency import about_ms
    from evit_nas.searching.front import rows, score_text
    from evit_nas.searching.objectives import MEASURED

    stat = run.settings.budget_stat
    shown = sorted([*found.members, *found.references], key=lambda c: c.latency.stat_ms(stat))
    targets = run.settings.targets
    several = len(targets) > 1
    columns = [f"{target.device} ms" if several else "ms" for target in targets]
    further: list[str] = [stat] if stat == "p90" else []
    further += ["typical"] if all(c.latency.wall_ms for c in shown) else []
    further = [] if several else further
    besides = {metric: each for metric, each in MEASURED.items() if any(metric in c.figures for c in shown)}
    cells = [
        [
            c.name,
            *(f"{latency.median_ms:.2f}{'' if c.certified else '?'}" for latency in c.latencies),
            *(f"{c.latency.stat_ms(other):.2f}" for other in further),
            "/".join(f"±{100 * la.rel_error:.1f}%{'*' if la.noisy else ''}" for la in c.latencies),
            score_text(c),
            millions(c.params),
            millions(c.macs),
            *(each.form.format(c.figures[m]) if m in c.figures else "" for m, each in besides.items()),
        ]
        for c in shown
    ]
    budgets = " and ".join(f"{t.budget_ms:g} ms{f' on {t.device}' if several else ''}" for t in targets)
    title = f"{run.path.name}: {len(found.members)} on the front, budget {budgets}"
    header = ["name", *columns, *(f"{other} ms" for other in further), "spread", "score", "params", "MACs"]
    header += [each.heading for each in besides.values()]
    emit(rows(found.members), format_, make_table(title, header, cells, spare=SPARE))
    if format_ is Format.table:
        say(about_ms(latency for c in shown for latency in c.latencies))
        if not all(c.certified for c in shown):
            say("? not measured strictly yet")


def _dry_run(settings: SearchSettings) -> None:
    """Feasibility, and the pace of a few real evaluations; nothing is written."""
    import random
    import tempfile
    import time

    from evit_nas.files import Journal
    from evit_nas.searching.evaluate import Evaluator
    from evit_nas.searching.feasibility import feasibility
    from evit_nas.searching.judges import check_sources
    from evit_nas.searching.study import open_devices

    space = settings.space
    say(f"space {settings.space_name}: {len(space.dimensions())} dimensions, {space.size:.3g} points")
    with tempfile.TemporaryDirectory() as scratch, open_devices(settings) as devices:
        check_sources(settings, Path(scratch) / "labels", say)
        evaluator = Evaluator(devices, Journal(Path(scratch) / "measurements.jsonl"), settings.seed)
        found = feasibility(evaluator, settings, say)
        rng, start = random.Random(settings.seed), time.monotonic()
        for arch in (space.sample(rng) for _ in range(5)):
            if settings.accuracy.method == "zero-cost":
                evaluator.proxies(arch)
            evaluator.latencies(arch)
        pace_s = (time.monotonic() - start) / 5
    measured = {"smallest": found.smallest, **found.presets} | ({"largest": found.largest} if found.largest else {})
    stat = settings.budget_stat
    for index, target in enumerate(settings.targets):
        cells = []
        for name, latencies in measured.items():
            within = latencies[index].stat_ms(stat) <= target.budget_ms
            cells.append([name, latencies[index].said(stat), "yes" if within else "no"])
        title = f"budget {target.budget_ms:g} ms on {target.conditions}"
        emit([], Format.table, make_table(title, ["", "latency", "within"], cells))
    takes_s = min(settings.trials * pace_s, settings.time_s or math.inf) + CERTIFYING_S
    besides = ""
    if settings.accuracy.method in ("predictor", "short"):
        besides = f", and the trainings of --accuracy {settings.accuracy.method} besides: hours, as a rule"
    say(f"{settings.trials} trials would take about {duration(takes_s)}{besides}")
