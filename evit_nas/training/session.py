"""The trainings of a command: what is asked for, what it takes, one after the other, shipped and compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evit_nas.arch import PRESETS
from evit_nas.commands import command_line
from evit_nas.console import duration
from evit_nas.data.look import FEW_IMAGES, Look, few, look
from evit_nas.data.sources import open_source
from evit_nas.errors import EvitNasError, Interrupted, MeasurementError, UsageError
from evit_nas.lookup import find_arch
from evit_nas.training.auto import reason, recipe_for
from evit_nas.training.folder import RECORD, holds_weights, read_record
from evit_nas.training.hardware import first, meet, several
from evit_nas.training.plan import Chosen, How, baselines, begin, front_of, goes_on, plan
from evit_nas.training.recipe import AUTO, RATE_BATCH, changed, check_names
from evit_nas.training.settings import SCRATCH, SupernetSettings

if TYPE_CHECKING:
    from evit_nas.arch import ArchConfig
    from evit_nas.shipped import Shipped
    from evit_nas.trained import Trained
    from evit_nas.training.hardware import Hardware
    from evit_nas.training.settings import TrainSettings
    from evit_nas.training.status import Pace, TrainWatcher

SHIPPED = "shipped"  # in a training folder
LONGER = 4  # times the epochs, after a training in vain

Plans = Sequence[tuple[Path, "TrainSettings"]]


@dataclass(frozen=True)
class Asked:
    """What is to be trained, and how, in the words of `evit-nas train`."""

    what: Sequence[str | Path]
    """Presets, YAML files, RUN/NAME, runs (with `front` or `top`), training folders."""
    data: str | None = None
    recipe: str = AUTO
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of fields of the recipe."""
    rate: float | None = None
    """The highest learning rate itself, whatever the batch."""
    time_s: float | None = None
    """The epochs become fewer until all trainings take about this long."""
    image_size: int | None = None
    init: str = SCRATCH
    teacher: str | None = None
    download: bool = False
    """Whether timm may fetch what these two name."""
    front: bool = False
    top: int | None = None
    baseline: str | None = None
    seeds: Sequence[int] = (0,)
    out: Path | None = None


@dataclass(frozen=True)
class Planned:
    """Trainings that can begin."""

    plans: Plans
    baselines: Mapping[str, str]
    """See `compare`."""
    seconds: float
    """How long those take that have not begun, about; 0 where several processes train together."""
    equal_time: bool = False
    """Whether each gets the same time (`--time`) instead of the same epochs."""


@dataclass
class Outcome:
    """What came of them."""

    trained: dict[TrainSettings, Trained] = field(default_factory=dict)
    folders: dict[TrainSettings, Path] = field(default_factory=dict)
    shipped: dict[TrainSettings, Shipped] = field(default_factory=dict)
    failed: bool = False
    """Whether one of them could not be trained or shipped."""

    def latencies_ms(self) -> dict[ArchConfig, float]:
        """Of the networks as they were trained, on one thread of this processor: as shipped, or measured now.

        What cannot be measured is left out.
        """
        from evit_nas.config import Conditions
        from evit_nas.latency import Protocol, Steady, open_device

        found = {settings.arch: shipped.fp32.latency for settings, shipped in self.shipped.items()}
        known = {arch: latency.median_ms for arch, latency in found.items() if latency.conditions == Conditions()}
        if rest := [settings.arch for settings in self.trained if settings.arch not in known]:
            with Steady(open_device(Conditions())) as device:
                for arch in dict.fromkeys(rest):
                    with suppress(MeasurementError):
                        known[arch] = device.measure(arch, Protocol())[0].median_ms
        return known

    def doubts(self) -> dict[str, list[str]]:
        """What speaks against the networks: each sentence, and the names of those that it is about."""
        found: dict[str, list[str]] = {}
        for settings, trained in self.trained.items():
            for sentence in filter(None, (trained.no_good, *trained.doubts)):
                names = found.setdefault(sentence, [])
                names += [] if settings.name in names else [settings.name]
        return found

    def best(self) -> TrainSettings | None:
        """The network that validated best, of those that are worth something."""
        worth = {settings: trained.top1 for settings, trained in self.trained.items() if not trained.no_good}
        return max(worth, key=lambda settings: worth[settings], default=None)

    def next_command(self) -> str:
        """What to do with the best of them; train for longer, if none is worth anything."""
        if (best := self.best()) is not None:
            folder = self.folders[best]
            return (
                command_line("predict", folder / SHIPPED, "IMAGE")
                if best in self.shipped
                else command_line("ship", folder)
            )
        settings = next(iter(self.trained))
        network = settings.origin or (
            settings.name if settings.name in PRESETS else self.folders[settings] / "arch.yaml"
        )
        longer = ("--epochs", LONGER * settings.recipe.epochs, "--out", "PATH")
        return command_line("train", network, "--data", settings.data, *longer)


def prepare(asked: Asked, hardware: Hardware, note: Callable[[str], None]) -> Planned:
    """Finds out what is asked for, looks at the data, and says what will be done and how long it takes.

    Raises:
        UsageError: networks, data or recipe cannot be used, or there is no time for one epoch.
    """
    folders = [Path(text) for text in asked.what if (Path(text) / RECORD).is_file()]
    plans = [(folder, read_record(folder).settings) for folder in folders]
    for folder, settings in plans:
        if isinstance(settings, SupernetSettings):
            again = command_line("supernet", "train", folder, "--resume")
            raise UsageError(f"{folder} is the training of a supernet, which goes on with: {again}")
    chosen = _chosen([str(text) for text in asked.what if Path(text) not in folders], asked)
    known = [Chosen(settings.origin or settings.name, settings.arch) for _, settings in plans]
    beside = baselines([*known, *chosen], asked.baseline) if asked.baseline else {}
    wanted = [*chosen, *beside.values()]
    if wanted and asked.data is None:
        raise UsageError("train needs images: add --data PATH, for example a folder with a folder for each class.")
    data = [settings.data for _, settings in plans] + ([asked.data] if wanted and asked.data is not None else [])
    seen = {each: look(open_source(each)) for each in dict.fromkeys(data)}
    for each in seen.values():
        note(str(each))  # before anything long: a wrong folder shows at once
    if asked.download:
        from evit_nas.network.saved import fetch

        for model in filter(None, (asked.init, asked.teacher)):
            fetch(model, note)
    new: Plans = []
    if wanted and asked.data is not None:
        mine = seen[asked.data]
        if asked.init == SCRATCH and asked.teacher is None and mine.train < FEW_IMAGES:
            note(few(mine.train))
        if asked.recipe == AUTO:
            note(reason(mine, from_weights=asked.init != SCRATCH))
        new = plan(wanted, _how(asked, mine))
        if asked.init != SCRATCH:
            from evit_nas.network.transfer import check_start

            check_start(asked.init)  # before anything is timed, and once for all networks
    for _, settings in [*plans, *new]:
        check_names(settings.recipe, hardware.trackers)
    timed, seconds = _timed([*plans, *new], asked, hardware, note)
    return Planned(timed, {key: each.name for key, each in beside.items()}, seconds, asked.time_s is not None)


def _chosen(what: Sequence[str], asked: Asked) -> list[Chosen]:
    chosen = []
    for text in what:
        path = Path(text)
        if (path / "run.yaml").is_file():
            if not asked.front and asked.top is None:
                raise UsageError(f"{text} is a run: add --top 1 or --front, or name one member as {text}/NAME.")
            chosen += front_of(path, asked.top)
        else:
            # RUN/NAME, or the file itself: RUN/front/NAME.yaml
            runs = [parent for parent in (path.parent, path.parent.parent) if (parent / "run.yaml").is_file()]
            chosen.append(Chosen(path.name.removesuffix(".yaml"), find_arch(text), runs[0] if runs else None))
    return chosen


def _how(asked: Asked, seen: Look) -> How:
    assert asked.data is not None
    fresh = asked.init == SCRATCH
    if asked.recipe == "finetune" and fresh:
        raise UsageError(
            "the recipe finetune goes on from trained weights: add --init MODEL (a training or shipped folder, a file "
            "of m0..m5, timm:efficientvit_m1), or take --recipe auto to begin from scratch."
        )
    recipe = recipe_for(asked.recipe, asked.changes, seen, from_weights=not fresh)
    if asked.rate is not None:
        rate = asked.rate * RATE_BATCH / recipe.batch_size  # `Recipe` scales it back
        recipe = changed(recipe.model_dump(), {"learning_rate": rate}, "--lr")
    return How(
        data=asked.data,
        recipe_name=Path(asked.recipe).stem,
        recipe=recipe,
        image_size=asked.image_size,
        seen=seen if asked.recipe == AUTO else None,
        init=asked.init,
        teacher=asked.teacher,
        seeds=asked.seeds,
        out=asked.out,
    )


def _timed(plans: Plans, asked: Asked, hardware: Hardware, note: Callable[[str], None]) -> tuple[Plans, float]:
    """The plans, with as many epochs as there is time for, and the seconds of those that have not begun.

    Says what each takes, from a few steps of those to come.
    """
    from evit_nas.training.network import NetworkRun
    from evit_nas.training.pace import pace_of

    if several():  # which would all have to be timed together
        if asked.time_s is not None:
            raise UsageError("--time is for one process; say --epochs where several train together.")
        return plans, 0.0
    fresh = [folder for folder, _ in plans if not holds_weights(folder)]
    # of all, those too that are done or begun: the command that goes on has no more time than the first one
    share_s = asked.time_s / len(plans) if asked.time_s is not None else None
    begun = share_s is not None and len(fresh) < len(plans)
    timed, total_s = [], 0.0
    paces: dict[TrainSettings, Pace] = {}
    for folder, settings in plans:
        if kept := begun and (folder / RECORD).is_file():  # or seeds of one network would be trained unlike
            settings = _as_begun(folder, settings)
        if folder not in fresh:
            timed.append((folder, settings))
            continue
        alike = settings.model_copy(update={"seed": 0})  # a seed moves no pace
        if new := alike not in paces:
            try:
                paces[alike] = pace_of(NetworkRun, settings, hardware, share_s)
            except UsageError:
                raise
            except EvitNasError:
                if len(plans) == 1:
                    raise
                timed.append((folder, settings))  # its training says the same, and the others go on without it
                continue
        pace = paces[alike]
        if share_s is not None and not kept:
            settings = _within(settings, share_s, pace.epoch_s)
        recipe = settings.recipe
        total_s += recipe.epochs * pace.epoch_s
        if new:
            note(
                f"{settings.name}: recipe {settings.recipe_name}, {recipe.epochs} epochs of {pace.steps} steps of "
                f"{recipe.batch_size} images, {recipe.epochs * pace.steps:,} steps; {settings.arch.size_text}; about "
                f"{duration(recipe.epochs * pace.epoch_s)} here"
            )
        timed.append((folder, settings))
    if len(fresh) > 1:
        note(f"{len(fresh)} trainings, about {duration(total_s)} in all")
    return timed, total_s


def _as_begun(folder: Path, settings: TrainSettings) -> TrainSettings:
    """`settings` with the epochs that are on record, which there was time for then."""
    before = read_record(folder).settings.recipe
    epochs = {"epochs": before.epochs, "warmup_epochs": before.warmup_epochs}
    return settings.model_copy(update={"recipe": settings.recipe.model_copy(update=epochs)})


def _within(settings: TrainSettings, seconds: float, epoch_s: float) -> TrainSettings:
    """`settings` with as many epochs as fit, and no more than they have.

    Raises:
        UsageError: none does.
    """
    fitting = int(seconds / epoch_s)
    if not fitting:
        raise UsageError(
            f"{settings.name}: one epoch takes about {duration(epoch_s)} here, and --time leaves {duration(seconds)} "
            "for it: give more time, train fewer networks, or a smaller --image-size."
        )
    epochs = min(settings.recipe.epochs, fitting)
    recipe = changed(settings.recipe.model_dump(), {"epochs": epochs}, settings.name)
    return settings.model_copy(update={"recipe": recipe})


def carry_out(
    planned: Planned,
    watch: TrainWatcher,
    hardware: Hardware,
    *,
    command: str,
    again: str,
    resume: bool = False,
    ship: bool = True,
    raised: bool = False,
) -> Outcome:
    """Trains them one after the other; one that fails does not cost the others, unless it is the only one.

    Args:
        command: what the records say was typed.
        again: the command that goes on after an interruption; empty where the caller says it.
        resume: allows to go on with trainings that were interrupted.
        ship: makes a folder that deploys of each that is worth it.
        raised: has the first error out instead.

    Raises:
        EvitNasError: what the only training raises, or one of several processes that has not trained.
    """
    from evit_nas.training.network import train

    if first():
        begin(planned.plans, command, resume)
    meet()  # the others read the folders that the first has made
    outcome = Outcome()

    def train_one(folder: Path, settings: TrainSettings) -> None:
        outcome.trained[settings] = train(folder, watch, hardware)
        outcome.folders[settings] = folder
        watch.note(f"written: {folder}")

    def ship_one(folder: Path, settings: TrainSettings) -> None:
        if ship and first() and settings in outcome.trained:
            shipped = _shipped(folder, outcome.trained[settings], command, watch.note)
            if shipped is not None:
                outcome.shipped[settings] = shipped

    if several():  # the others must not wait, nor keep the cores busy, while the first one ships and measures
        tasks = [(task, plan) for task in (train_one, ship_one) for plan in planned.plans]
    else:
        tasks = [(task, plan) for plan in planned.plans for task in (train_one, ship_one)]
    for task, (folder, settings) in tasks:
        try:
            task(folder, settings)
        except (Interrupted, KeyboardInterrupt):  # the second from Python
            if again:
                watch.note(goes_on(planned.plans, again))
            raise
        except Exception as error:  # of torch and ONNX Runtime, too: the next network may do without
            if len(planned.plans) == 1 or raised:
                raise
            if several() and task is train_one:  # the other processes wait for this one, whatever it does next
                raise
            outcome.failed = True
            unexpected = "" if isinstance(error, EvitNasError) else f"unexpected {type(error).__name__}: "
            watch.note(f"evit-nas: {folder}: {unexpected}{error}")
    return outcome


def _shipped(training: Path, trained: Trained, command: str, note: Callable[[str], None]) -> Shipped | None:
    from evit_nas.shipped import Shipped

    out = training / SHIPPED
    if out.exists():
        return Shipped.load(out)
    if trained.no_good:
        note(f"not shipped: {trained.no_good}; to ship it all the same: {command_line('ship', training, '--anyway')}")
        return None
    return shipped(training, out, note, command=command)


def shipped(training: Path, out: Path, note: Callable[[str], None], **options: Any) -> Shipped:
    """`ship`, with a word about what came of it."""
    from evit_nas.shipping.package import ship

    made = ship(training, out, note=note, **options)
    note(f"written: {out}: {made.summary()}")
    if made.int8_refusal:
        note(f"no 8-bit file: {made.int8_refusal}")
    elif made.int8 is not None:
        note(f"in 8 bits: top-1 {made.int8.top1:.2f} %, {made.int8.latency}")
    return made
