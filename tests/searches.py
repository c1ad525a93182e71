"""What tests of whole searches share: searches that are quickly done, what they leave, and whoever watches them."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from evit_nas.accuracy import ShortScore
from evit_nas.accuracy.table import LabelTable, TrainedNetwork, Training
from evit_nas.config import Conditions, SearchSettings, ShortRecipe
from evit_nas.files import Journal
from evit_nas.latency.samples import Table
from evit_nas.network.cost import cost
from evit_nas.runs import Run
from evit_nas.searching import storage
from evit_nas.searching.record import Front, Known, journal_of, load_front
from evit_nas.searching.storage import for_samplers, open_study
from evit_nas.searching.study import Search
from evit_nas.space import SearchSpace
from tests.fakes import FakeDevice, latency_of

SPACE = SearchSpace.load("efficientvit-tiny")
TRIALS, POOL = 18, 5


class Died(BaseException):
    """Stands for a process that ends here and now: nothing may catch it."""


class Silent:
    """A watcher that says nothing, and keeps everything."""

    def __init__(self):
        self.notes, self.statuses, self.steps = [], [], []

    def note(self, message):
        self.notes.append(message)

    def step(self, what, done, total):
        self.steps.append((what, done, total))

    def update(self, status):
        self.statuses.append(status)


@dataclass
class Outcome:
    """What a finished search left behind."""

    trials: list[tuple[Any, ...]]
    front: Front
    measured: list[str]
    """Ids in the journal."""


def outcome(run: Run, front: Front | None = None) -> Outcome:
    """The front is read from the run unless it was just found."""
    with open_study(run) as study:
        found = [(t.number, t.state, t.params, t.values, t.constraints, t.user_attrs) for t in study.get_trials()]
    return Outcome(found, front or load_front(run), [record["id"] for record in journal_of(run).read()])


def new_run(folder: Path, budget_ms: float = 0.9, **changes: object) -> Run:
    """A run on the device "fake", whose searches take a second."""
    target = {"conditions": {"device": "fake"}, "budget_ms": budget_ms}
    fields = {"space_name": "x", "space": SPACE, "targets": [target], "trials": TRIALS, "pool": POOL, "front_size": 6}
    return Run.create(folder, SearchSettings.model_validate(fields | changes), {}, "evit-nas search")


def search(run: Run) -> Outcome:
    return outcome(run, Search(run, Silent()).run())


def keys(run: Run) -> list[str]:
    """The distinct architectures of a run in the order in which they were evaluated."""
    with open_study(run) as study:
        return list(Known(study).by_key)


def trials(run: Run) -> list:
    """Every trial of a run, repeats and failures included."""
    with open_study(run) as study:
        return [for_samplers(trial) for trial in study.get_trials()]


def label_table(path: Path) -> Path:
    """Networks whose accuracy follows from what they are."""
    rng, networks = random.Random(5), dict[str, TrainedNetwork]()
    while len(networks) < 16:
        arch = SPACE.sample(rng)
        loss = 3 - 0.1 * cost(arch).params ** 0.2 - 0.02 * sum(stage.mixer == "softmax" for stage in arch.stages)
        score = ShortScore(accuracy=1 / loss, cross_entropy=loss, curve=(loss,))
        networks[arch.key] = TrainedNetwork(
            arch=arch, latency_ms=1.0, trainings=(Training(seed=0, score=score, seconds=1.0),)
        )
    table = LabelTable(data="none", recipe=ShortRecipe(), device="fake", networks=tuple(networks.values()))
    table.save(path)
    return path


def known_device() -> None:
    """Puts so many measurements into the cache folder that latencies can be predicted from the first trial on."""
    rng, table = random.Random(7), Table(FakeDevice(Conditions(device="fake")).context(), SPACE)
    for _ in range(40):
        arch = SPACE.sample(rng)
        table.add(arch, latency_of(cost(arch).macs / 1e6))


@contextmanager
def at_every_write(noticed: Callable[[], None]) -> Iterator[None]:
    """Calls `noticed` before and after each line of a journal, each file that takes its name, and each commit of a
    search: what it finds on the disk is what a process leaves that is killed there.
    """

    def around(write):
        def written(*arguments):
            noticed()
            found = write(*arguments)
            noticed()
            return found

        return written

    class Committing(sqlite3.Connection):
        commit = around(sqlite3.Connection.commit)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "append", around(Journal.append))
        patch.setattr(Path, "replace", around(Path.replace))
        patch.setattr(
            storage, "_connected", lambda file: sqlite3.connect(file, check_same_thread=False, factory=Committing)
        )
        yield
