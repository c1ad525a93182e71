"""The training of a supernet, from what a command says to its folder."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evit_nas.commands import command_line
from evit_nas.config import Conditions
from evit_nas.console import duration, millions
from evit_nas.data.look import look
from evit_nas.data.sources import open_source
from evit_nas.errors import Interrupted, MeasurementError, UsageError
from evit_nas.files import located
from evit_nas.network.cost import cost
from evit_nas.network.supernet import Supernet, held_out_of
from evit_nas.space import SearchSpace, resolved_space
from evit_nas.training.auto import auto_size, reason, recipe_for
from evit_nas.training.carry import carry_on
from evit_nas.training.folder import RECORD, holds_weights, read_record
from evit_nas.training.hardware import Hardware, first, meet, several
from evit_nas.training.pace import pace_of
from evit_nas.training.plan import begin, goes_on
from evit_nas.training.recipe import AUTO, check_names
from evit_nas.training.settings import SupernetSettings
from evit_nas.training.supernet import WIDEST, Band, SupernetRun
from evit_nas.yamlio import validate

if TYPE_CHECKING:
    from evit_nas.training.status import TrainWatcher

MEASURED = 24  # random networks, to know how many MACs keep a budget


@dataclass(frozen=True)
class SupernetAsked:
    """What is to be trained, and how, in the words of `evit-nas supernet train`."""

    space: str
    """A shipped space, a YAML file, or the folder of a training that goes on."""
    data: str | None = None
    macs: tuple[int, int] | None = None
    """Least and most, at the space's own image size."""
    budget_ms: float | None = None
    """In the place of `macs`: what a search will allow."""
    conditions: Conditions = field(default_factory=Conditions)
    """Where the budget holds."""
    recipe: str = AUTO
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of fields of the recipe."""
    image_size: int | None = None
    seed: int = 0
    out: Path | None = None

    @property
    def budget(self) -> str:
        """The latency that its networks are to keep, and where; empty if MACs are said."""
        return "" if self.budget_ms is None else f"{self.budget_ms:g} ms on {self.conditions}"

    @property
    def folder(self) -> Path:
        """Where it is trained."""
        if self.out is not None:
            return self.out
        parts = [Path(self.space).stem, Path(self.data or "").name]
        if self.budget_ms is not None:
            parts += [self.conditions.family, f"{self.budget_ms:g}ms"]
        return Path("runs") / "supernet" / "-".join([*parts, f"s{self.seed}"])


def plan_supernet(
    asked: SupernetAsked, hardware: Hardware, note: Callable[[str], None]
) -> tuple[Path, SupernetSettings]:
    """The folder and the settings; says what will be trained and how long it takes.

    Raises:
        UsageError: space, data or recipe cannot be used, or the networks are too unlike to share weights.
    """
    folder = Path(asked.space)
    if (folder / RECORD).is_file():
        settings = read_record(folder).settings
        if not isinstance(settings, SupernetSettings):
            raise UsageError(f"{folder} is the training of one network: {command_line('train', folder, '--resume')}")
    else:
        folder, settings = _new(asked, note)
    check_names(settings.recipe, hardware.trackers)
    if not several() and not holds_weights(folder):
        pace, recipe = pace_of(SupernetRun, settings, hardware), settings.recipe
        note(
            f"recipe {settings.recipe_name}, {recipe.epochs} epochs of {pace.steps} steps of {recipe.batch_size} "
            f"images; {settings.arch.size_text}; about {duration(recipe.epochs * pace.epoch_s)} here"
        )
    return folder, settings


def train_supernet(
    folder: Path, settings: SupernetSettings, watch: TrainWatcher, hardware: Hardware, *, command: str, resume: bool
) -> Supernet:
    """Trains it to the end, from wherever it stands.

    Args:
        command: what the record says was typed.
        resume: allows to go on with a training that was interrupted.

    Raises:
        RunError: the folder holds a training and `resume` is not said, or cannot be written.
        UsageError: it was begun with other settings, or data or precision cannot be used.
    """
    if first():
        begin([(folder, settings)], command, resume)
    meet()
    try:
        supernet = carry_on(SupernetRun, folder, watch, hardware)
    except (Interrupted, KeyboardInterrupt):  # the second from Python
        if first():
            watch.note(goes_on([(folder, settings)], command_line("supernet", "train", folder, "--resume")))
        raise
    if first():
        watch.note(f"written: {folder}")
    return supernet


def supernet_for(asked: SupernetAsked, watch: TrainWatcher, hardware: Hardware, command: str) -> Path:
    """The folder of a supernet for a search, trained now as far as it has not been; raises what `train_supernet` does.

    Args:
        command: what its record says was typed.
    """
    others = (asked.folder.with_name(f"{asked.folder.name}-{number}") for number in count(2))
    begun = next(
        path for path in chain([asked.folder], others) if not (path / RECORD).is_file() or _is_for(asked, path)
    )
    # what was begun goes on as it is: which networks keep the budget was measured then
    asked = replace(asked, space=str(begun)) if (begun / RECORD).is_file() else replace(asked, out=begun)
    folder, settings = plan_supernet(asked, hardware, watch.note)
    train_supernet(folder, settings, watch, hardware, command=command, resume=True)
    return folder


def _is_for(asked: SupernetAsked, folder: Path) -> bool:
    """Whether what was begun in `folder` is what is asked for: names of spaces and of folders of images repeat."""
    before = read_record(folder).settings
    if not isinstance(before, SupernetSettings):
        return False
    space = SearchSpace.load(resolved_space(asked.space))
    same_space = space.model_copy(update={"num_classes": before.space.num_classes}).hash == before.space.hash
    return same_space and located(before.data) == located(asked.data or "") and before.budget == asked.budget


def _new(asked: SupernetAsked, note: Callable[[str], None]) -> tuple[Path, SupernetSettings]:
    name = resolved_space(asked.space)
    space = SearchSpace.load(name)
    if asked.data is None:
        raise UsageError(
            "a supernet learns from images: add --data PATH, for example a folder with a folder for each class."
        )
    source = open_source(asked.data)
    seen = look(source)
    note(str(seen))
    if not (held_out := held_out_of(source)):
        raise UsageError(f"{seen.train} training images are too few to hold some out: a supernet needs thousands.")
    space = space.model_copy(update={"num_classes": len(source.classes)})
    band = Band(space, asked.macs or _begun_band(asked) or _band(space, asked, note))
    largest, smallest = band.ends(asked.seed)
    if asked.recipe == AUTO:
        note(reason(seen, from_weights=False))
    recipe = recipe_for(asked.recipe, asked.changes, seen, from_weights=False)
    own = space.image_size
    size = asked.image_size or (auto_size(seen, own) if asked.recipe == AUTO and isinstance(own, int) else own)
    fields = {
        "name": Path(name).stem,
        "arch": largest.model_dump(mode="json") | {"image_size": size},
        "smallest": smallest.model_dump(mode="json") | {"image_size": size},
        "space": space,
        "macs": band.macs,
        "held_out": held_out,
        "data": located(asked.data),
        "budget": asked.budget,
        "recipe_name": Path(asked.recipe).stem,
        "recipe": recipe,
        "seed": asked.seed,
    }
    settings = validate(SupernetSettings, fields, name)
    least, most = (cost(arch) for arch in (smallest, largest))
    note(
        f"supernet of {settings.name}: networks of {millions(least.macs)} to {millions(most.macs)} MACs and "
        f"{millions(least.params)} to {millions(most.params)} parameters; {held_out} training images are held out to "
        "judge them"
    )
    return asked.folder, settings


def _begun_band(asked: SupernetAsked) -> tuple[int, int] | None:
    """Of what lies in the folder already: measured anew, a network at the edge of the budget may change sides."""
    if not (asked.folder / RECORD).is_file() or not _is_for(asked, asked.folder):
        return None
    before = read_record(asked.folder).settings
    return before.macs if isinstance(before, SupernetSettings) else None


def _band(space: SearchSpace, asked: SupernetAsked, note: Callable[[str], None]) -> tuple[int, int]:
    """What a search with the budget will look at; without one, the whole space."""
    if asked.budget_ms is None:
        return cost(space.cheapest(lambda arch: cost(arch).macs)).macs, cost(space.largest()).macs
    most = max(_macs_within(space, asked.budget_ms, asked), default=0)
    if not most:
        raise UsageError(
            f"none of {MEASURED} random networks of the space keeps {asked.budget_ms:g} ms: name the networks by "
            "their MACs instead (--macs 50M..150M)."
        )
    note(f"{asked.budget_ms:g} ms are kept by networks of up to {millions(most)} MACs, of {MEASURED} measured")
    return math.ceil(most / WIDEST), most  # up: `Band` refuses what is wider


def _macs_within(space: SearchSpace, budget_ms: float, asked: SupernetAsked) -> list[int]:
    """Of random networks that are measured now, the MACs of those that keep the budget."""
    from evit_nas.latency import Protocol, Steady, open_device

    rng, found = random.Random(asked.seed), []
    with Steady(open_device(asked.conditions)) as device:
        for arch in (space.sample(rng) for _ in range(MEASURED)):
            with suppress(MeasurementError):
                if device.measure(arch, Protocol())[0].median_ms <= budget_ms:
                    found.append(cost(arch).macs)
    return found
