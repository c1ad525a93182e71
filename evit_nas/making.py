"""From a folder of photographs to a model that answers: the steps of `evit-nas make`, each a command of its own.

    OUT/search   the run of the search        evit-nas search --data PHOTOS ... --out OUT/search
    OUT/train    the trainings                evit-nas train OUT/search/NAME --data PHOTOS ... --out OUT/train
    OUT/shipped  the best of them             evit-nas ship OUT/train/NAME --out OUT/shipped
                 what it says to pictures     evit-nas predict OUT/shipped PICTURE...

What is there is not made again, and what was begun is gone on with: the same words make what is missing.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from evit_nas.accuracy.coverage import default_method
from evit_nas.api import Result, file_name, new_run
from evit_nas.commands import command_line
from evit_nas.config import Conditions, SearchSettings
from evit_nas.console import duration
from evit_nas.data.images import Source
from evit_nas.data.look import Look, look
from evit_nas.data.sources import open_source
from evit_nas.errors import EvitNasError, Interrupted, RunError, UsageError, interruptions
from evit_nas.latency.runtimes import RUNTIMES
from evit_nas.quantities import parse_duration
from evit_nas.runs import Run
from evit_nas.space import SearchSpace
from evit_nas.training.auto import auto_size
from evit_nas.training.folder import RECORD, read_record
from evit_nas.training.hardware import several
from evit_nas.training.session import SHIPPED, Asked, Outcome, Planned, carry_out, prepare, shipped
from evit_nas.training.settings import SCRATCH
from evit_nas.words import DEFAULT_SPACE, Words, settings_from

if TYPE_CHECKING:
    from evit_nas.searching.front import Candidate
    from evit_nas.searching.record import Front
    from evit_nas.shipped import Shipped
    from evit_nas.shipping.answer import Answer
    from evit_nas.training.hardware import Hardware

SEARCH_SHARE, TRAIN_SHARE = 0.1, 0.8  # of the time; the rest is for certifying, shipping and answers
SEARCH_S = (60.0, 600.0)  # least and most: a default search ends by itself within the latter
NETWORKS = 3  # trained at most
WORTHWHILE = 0.5  # of the steps of its recipe, that there must be time for
PICTURES = 10  # validation images that are answered in the end, at most one of a class


@dataclass(frozen=True)
class Order:
    """What is to be made, in the words of `evit-nas make`."""

    data: str
    budget: str
    time_s: float
    out: Path
    device: str = "cpu"
    space: str = DEFAULT_SPACE
    image_size: int | None = None
    """None lets it follow from the photographs."""
    init: str = SCRATCH
    seed: int = 0


class Viewer(Protocol):
    """Somebody who is shown what happens."""

    def note(self, message: str) -> None:
        """Something worth knowing."""

    def step(self, command: str) -> None:
        """A step begins, which `command` alone would do."""

    def progress(self) -> AbstractContextManager[Any]:
        """What watches a search or a training for as long as it is open."""

    def found(self, run: Run, front: Front) -> None:
        """The search has ended."""

    def trained(self, planned: Planned, outcome: Outcome) -> None:
        """The trainings have ended."""

    def answered(self, shipped: Path, answers: list[Answer], truth: dict[str, str]) -> None:
        """The model has answered validation images, whose classes are `truth`, by name."""


@dataclass(frozen=True)
class Made:
    """What was made."""

    run: Path
    training: Path
    folder: Path
    """The shipped folder."""
    shipped: Shipped


def order_of(
    data: str,
    budget: str,
    time: str,
    device: str,
    space: str | Path | None,
    image_size: int | None,
    init: str,
    seed: int,
    out: str | Path | None,
) -> Order:
    """The order that these words describe; `out` is runs/PHOTOS-DEVICE-BUDGET where it is not said.

    Raises:
        UsageError: the time is no length of time.
    """
    name = f"{Path(data).resolve().name}-{file_name(device)}-{budget}"
    return Order(
        data=data,
        budget=budget,
        time_s=parse_duration(time),
        out=Path("runs") / name if out is None else Path(out),
        device=device,
        space=str(space or DEFAULT_SPACE),
        image_size=image_size,
        init=init,
        seed=seed,
    )


def made_of(order: Order, hardware: Hardware, view: Viewer, command: str) -> Made:
    """Searches for the photographs, trains what there is time for, ships the best and has it answer some of them.

    Args:
        command: what was typed; it goes on after an interruption, too.

    Raises:
        UsageError: the photographs or a word cannot be used.
        RunError: the folder was made with other words.
        Infeasible: no architecture keeps the budget.
        EvitNasError: nothing that was trained is worth shipping.
    """
    if several():
        raise UsageError("make is one process; have several train its front with: torchrun ... -m evit_nas train.")
    source = open_source(order.data)
    seen = look(source)
    view.note(str(seen))
    if order.init != SCRATCH:
        from evit_nas.network.transfer import check_start

        check_start(order.init)  # the search takes minutes
    try:
        run, front = _search(order, seen, view, command)
        outcome = _train(order, run, front, hardware, view, command)
        training, folder, shipped = _ship(order, run, outcome, view)
        _answer(folder, source, view)
    except (Interrupted, KeyboardInterrupt):  # the second from Python
        view.note(f"interrupted; what is finished and the last checkpoint are kept. Go on with: {command}")
        raise
    return Made(run.path, training, folder, shipped)


def _words(order: Order, seen: Look) -> Words:
    """The words of the search."""
    words: Words = {"budget": order.budget, "device": order.device, "space": order.space}
    space = SearchSpace.load(order.space)
    own, words["accuracy"] = space.image_size, default_method(space, None)
    if words["accuracy"] == "table":  # for so many images and classes; zero-cost proxies look at no image
        words["data"] = order.data
    if order.image_size is not None or isinstance(own, int):  # other spaces are for images of one shape
        words["image_size"] = order.image_size or auto_size(seen, own if isinstance(own, int) else max(own))
    least, most = SEARCH_S
    words["time"] = f"{min(max(SEARCH_SHARE * order.time_s, least), most):.0f}s"
    words["seed"] = order.seed
    return words


def _search(order: Order, seen: Look, view: Viewer, command: str) -> tuple[Run, Front]:
    from evit_nas.report.page import write_report
    from evit_nas.searching.study import Search

    words = _words(order, seen)
    settings, folder = settings_from(**words), order.out / "search"
    options = [part for word, value in words.items() for part in (f"--{word.replace('_', '-')}", value)]
    view.step(command_line("search", *options, "--out", folder))
    if (folder / "run.yaml").exists():
        _check_words(order.out, Run.open(folder), settings)
        if (result := Result(folder)).state == "done" and result.found.members:  # without any it goes on, or says why
            view.found(result.run, result.found)
            return result.run, result.found
        opening: AbstractContextManager[Run] = Run.open(folder).lock()
    else:
        opening = new_run(settings, folder, command)
    with opening as run:
        with view.progress() as watch, interruptions():
            front = Search(run, watch).run()
        write_report(run)
        view.found(run, front)
    return run, front


def _check_words(out: Path, run: Run, settings: SearchSettings) -> None:
    """
    Raises:
        RunError: the run was begun with others.
    """
    names = {
        "targets": "budget or device",
        "space": "space or image size",
        "accuracy": "data",
        "seed": "seed",
    }
    differ = [name for field, name in names.items() if getattr(run.settings, field) != getattr(settings, field)]
    if differ:
        raise RunError(
            f"{out} was made with another {' and '.join(differ)}, by: {run.record['command']}. Choose another --out."
        )


def _train(order: Order, run: Run, front: Front, hardware: Hardware, view: Viewer, command: str) -> Outcome:
    """Trains what is worth it in the time: the best by score of those that can be trained for half their steps or more.

    Two or three of them if each can be trained whole.
    """
    out, train_s = order.out / "train", TRAIN_SHARE * order.time_s
    size = front.members[0].arch.image_size
    asked = Asked(
        what=[],
        data=order.data,
        image_size=size if isinstance(size, int) else None,  # oblong networks are trained at their own size
        init=order.init,
        seeds=(order.seed,),
        out=out,
        time_s=train_s,
    )
    begun = [Path(read_record(record.parent).settings.origin).name for record in sorted(out.glob(f"*/{RECORD}"))]
    # begun ones stay: on a slower day others would be affordable
    members = begun or [member.name for member in _affordable(asked, run, front, hardware, view)]
    names = [str(run.path / member) for member in members]
    options = ["--data", order.data, "--init", order.init, "--seed", order.seed]
    options += ["--image-size", asked.image_size] if asked.image_size else []
    view.step(command_line("train", *names, *options, "--time", f"{train_s:.0f}s", "--no-ship", "--out", out))
    planned = prepare(replace(asked, what=names), hardware, view.note)
    with view.progress() as watch:
        outcome = carry_out(planned, watch, hardware, command=command, again="", resume=True, ship=False)
    if not outcome.trained:
        raise EvitNasError("nothing could be trained, for the reasons above; the same command tries again.")
    view.trained(planned, outcome)
    if outcome.failed:
        view.note("not everything could be trained, see above; the same command tries the rest again")
    return outcome


def _affordable(asked: Asked, run: Run, front: Front, hardware: Hardware, view: Viewer) -> list[Candidate]:
    """The members that are trained; what a step costs is timed with the best of them, and goes with the latency."""
    assert asked.time_s is not None
    members = sorted(front.members, key=lambda member: -member.score)
    best = members[0]
    alone = replace(asked, what=[run.path / best.name], time_s=None)
    per_ms_s = prepare(alone, hardware, lambda message: None).seconds / best.latency.median_ms
    chosen = [member for member in members if WORTHWHILE * per_ms_s * member.latency.median_ms <= asked.time_s]
    chosen = chosen or [min(members, key=lambda member: member.latency.median_ms)]
    if best is not chosen[0]:
        whole_s = per_ms_s * best.latency.median_ms
        view.note(
            f"{best.name} has the best score, but its training would take about {duration(whole_s)}: with more --time "
            f"it is trained; in this time {chosen[0].name} comes further"
        )
    return chosen[: min(max(int(asked.time_s / (per_ms_s * chosen[0].latency.median_ms)), 1), NETWORKS)]


def _ship(order: Order, run: Run, outcome: Outcome, view: Viewer) -> tuple[Path, Path, Shipped]:
    """The best training, the folder that it is shipped to, and what that is."""
    from evit_nas.shipped import Shipped
    from evit_nas.trained import Trained

    best = outcome.best()
    if best is None:
        reasons = "; ".join(outcome.doubts())
        raise EvitNasError(f"nothing is shipped: {reasons}. Give more time (--time) or more photographs.")
    training, out = outcome.folders[best], order.out / SHIPPED
    for number in count(2):  # another one may have been the best, before this one was trained
        if not out.exists() or (made := Shipped.load(out)).trained == Trained.load(training):
            break
        out = order.out / f"{SHIPPED}-{number}"
    conditions = _for_files(run.settings.targets[0].conditions)
    options = [] if conditions == Conditions() else ["--device", conditions.device]
    line = command_line("ship", training, *options, "--out", out)
    view.step(line)
    if not out.exists():
        with view.progress() as watch:
            made = shipped(training, out, watch.note, command=line, conditions=conditions)
    return training, out, made


def _for_files(conditions: Conditions) -> Conditions:
    """Those of the search, or one thread of this processor where that device takes no files or has 8 bits alone."""
    runtime = RUNTIMES.get(conditions.family)  # a board is in no table
    return Conditions() if conditions.precision == "int8" or (runtime and runtime.takes_timm) else conditions


def _answer(folder: Path, source: Source, view: Viewer) -> None:
    """Has the model in `folder` answer a validation image of each of the first classes, if images are files."""
    from evit_nas.shipping.answer import answers, find_pictures

    firsts = [int(np.flatnonzero(source.val.labels == label)[0]) for label in np.unique(source.val.labels)[:PICTURES]]
    labels = {source.val.file(index): source.classes[source.val.labels[index]] for index in firsts}
    # a link that leads nowhere has been skipped by training and shipping
    files = {_from_here(file): label for file, label in labels.items() if file is not None and file.exists()}
    if not files:
        return
    view.step(command_line("predict", folder, *files))
    view.answered(folder, answers(folder, find_pictures([*files])), files)


def _from_here(file: Path) -> str:
    """The shorter way to it."""
    return min(str(file), os.path.relpath(file), key=len)
