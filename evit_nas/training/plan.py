"""From networks, data and a recipe to training folders: which trainings a command asks for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.commands import command_line
from evit_nas.data.look import Look
from evit_nas.errors import UsageError, did_you_mean
from evit_nas.files import expanded, located
from evit_nas.network.cost import cost
from evit_nas.trained import WEIGHTS
from evit_nas.training.auto import auto_size
from evit_nas.training.folder import RECORD, check_untrained, create, holds_weights, read_record
from evit_nas.training.recipe import Recipe
from evit_nas.training.settings import SCRATCH, TrainSettings
from evit_nas.yamlio import validate

NEAREST = "nearest"  # as a baseline: the paper's network of the nearest latency


@dataclass(frozen=True)
class Chosen:
    """A network to train."""

    name: str
    """As it was found: a preset's, a file's, or that of a member of a run's front."""
    arch: ArchConfig
    """As it was found: for another image size and other classes, perhaps."""
    run: Path | None = None
    """The run that it is a member of."""

    @property
    def origin(self) -> str:
        """What the record of its training says of where it comes from."""
        return "" if self.run is None else str(self.run / self.name)

    @property
    def key(self) -> str:
        """What tells it apart: members of two runs may have one name."""
        return self.origin or self.name

    def trained_name(self, arch: ArchConfig) -> str:
        """What it is called as `arch`, the form in which it is trained.

        A member's own name has the milliseconds and the size that it has in its search, where it takes other images.
        """
        if self.run is None or arch == self.arch:
            return self.name
        return f"evit-{cost(arch).params / 1e6:.1f}M-{arch.size_text.replace(' ', '')}"


@dataclass(frozen=True)
class How:
    """What all networks of a command have in common."""

    data: str
    recipe_name: str
    recipe: Recipe
    image_size: int | None = None
    """None leaves each network its own, or what fits the images."""
    seen: Look | None = None
    """The images, where each network's size follows from them."""
    init: str = SCRATCH
    teacher: str | None = None
    seeds: Sequence[int] = (0,)
    out: Path | None = None
    """Where the folders go; None for the run of the first network, or runs/."""


def front_of(run: Path, top: int | None) -> list[Chosen]:
    """The front of a run, or the `top` members with the highest score."""
    from evit_nas.runs import Run
    from evit_nas.searching.record import load_front

    members = sorted(load_front(Run.open(run)).members, key=lambda member: -member.score)[:top]
    if not members:
        raise UsageError(
            f"{run} has no architecture within the budget yet. Continue it with: {command_line('resume', run)}"
        )
    return [Chosen(member.name, member.arch, run) for member in members]


def baselines(chosen: Sequence[Chosen], name: str) -> dict[str, Chosen]:
    """What each network, by its key, is compared with: the paper's of that name, at the network's own input.

    For "nearest" it is the one whose latency in the same run is nearest; networks of no run then have none.

    Raises:
        UsageError: there is no such network, or none was measured beside those chosen.
    """
    if name == NEAREST:
        found = {each.key: _nearest(each.arch, each.run) for each in chosen if each.run}
        if not found:
            raise UsageError(f"--baseline {NEAREST} needs a member of a run's front; name one of {', '.join(PRESETS)}.")
        return found
    if name not in PRESETS:
        raise UsageError(f"no baseline is called '{name}'. {did_you_mean(name, [*PRESETS, NEAREST])}")
    preset = ArchConfig.preset(name)
    own = {each.key: {"image_size": each.arch.image_size, "in_channels": each.arch.in_channels} for each in chosen}
    return {key: Chosen(name, preset.model_copy(update=entry)) for key, entry in own.items()}


def _nearest(arch: ArchConfig, run: Path) -> Chosen:
    from evit_nas.runs import Run
    from evit_nas.searching.record import load_front

    opened = Run.open(run)
    front, stat = load_front(opened), opened.settings.budget_stat
    own = next((member.latency.stat_ms(stat) for member in front.members if member.arch.key == arch.key), None)
    if own is None or not front.references:
        way_out = "name m0..m5 as the baseline instead" if front.whole else f"finish it: {command_line('resume', run)}"
        raise UsageError(f"{run} has no latency of this network beside the paper's; {way_out}.")
    nearest = min(front.references, key=lambda reference: abs(reference.latency.stat_ms(stat) / own - 1))
    return Chosen(nearest.name, nearest.arch)


def plan(chosen: Sequence[Chosen], how: How) -> list[tuple[Path, TrainSettings]]:
    """Folder and settings of each training: every network with every seed, each network once.

    Raises:
        UsageError: the data cannot be used, a network does not take the image size, or two have one name.
    """
    from evit_nas.data.sources import open_source

    source = open_source(how.data)
    parent = how.out or next((each.run / "train" for each in chosen if each.run), Path("runs") / "train")
    plans: dict[Path, TrainSettings] = {}
    for each in chosen:
        fitting = each.arch.image_size
        if how.seen is not None and isinstance(fitting, int):  # others were made for images of one shape
            fitting = auto_size(how.seen, fitting)
        own = {"num_classes": len(source.classes), "image_size": how.image_size or fitting}
        arch = validate(ArchConfig, each.arch.model_dump(mode="json") | own, each.name)
        for seed in how.seeds:
            fields = {
                "name": each.trained_name(arch),
                "origin": each.origin,
                "arch": arch,
                "data": located(how.data),
                "recipe_name": how.recipe_name,
                "recipe": how.recipe,
                "init": _located(how.init),
                "teacher": None if how.teacher is None else _located(how.teacher),
                "seed": seed,
            }
            settings = validate(TrainSettings, fields, each.name)
            folder = parent / f"{each.name}-{source.name}-{how.recipe_name}-s{seed}"
            if plans.setdefault(folder, settings) != settings:
                raise UsageError(
                    f"networks must have names of their own, but two different ones are called {each.name}: both would "
                    f"be trained in {folder}. Rename a file, or train them one by one, each with its --out."
                )
    return list(plans.items())


def _located(network: str) -> str:
    """What `network` is called in a record that is read from other folders: its absolute path, where it is one."""
    path = expanded(network)
    return os.path.abspath(path) if network != SCRATCH and path.exists() else network


def goes_on(plans: Sequence[tuple[Path, TrainSettings]], again: str) -> str:
    """What there is to say when trainings were interrupted; `again` is the command that goes on."""
    if any(holds_weights(folder) for folder, _ in plans):
        return f"interrupted; go on from the last checkpoint with: {again}"
    return "interrupted before anything was saved; the same command begins again"


def begin(plans: Sequence[tuple[Path, TrainSettings]], command: str, resume: bool) -> None:
    """Makes the folders that are not there yet; one in which nothing has been trained may get other settings.

    All or none: where one is refused, none is made.

    Raises:
        RunError: one holds an unfinished training and `resume` is not said, or it cannot be written.
        UsageError: one was trained with other settings.
    """
    wanted = []
    for folder, settings in plans:
        if not (folder / RECORD).exists():
            wanted.append((folder, settings))
            continue
        before, now = read_record(folder).settings.model_dump(), settings.model_dump()
        before["data"] = located(before["data"])  # older records have these as they were typed
        before |= {name: _located(before[name]) for name in ("init", "teacher") if before[name] is not None}
        # what a network is called moves no number
        changed = [name for name in now if now[name] != before.get(name) and name not in ("name", "origin")]
        begun, finished = holds_weights(folder), (folder / WEIGHTS).exists()
        if begun and not (resume or finished):
            check_untrained(folder)  # raises, and names --resume
        if changed and not begun:
            wanted.append((folder, settings))
        elif changed:
            raise UsageError(f"{folder} was begun with another {' and '.join(changed)}. Choose another --out.")
    for folder, settings in wanted:
        create(folder, settings, command)
