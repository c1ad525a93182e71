"""Labels: briefly trained networks, each of which cost minutes, so none is ever trained twice or thrown away.

A journal holds one line for each (network, seed, data, recipe). Trainings run side by side in worker processes of one
thread each, which makes more of the cores than one training on all of them.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from evit_nas.accuracy import ShortScore
from evit_nas.arch import ArchConfig
from evit_nas.config import ShortRecipe
from evit_nas.errors import EvitNasError, MeasurementError
from evit_nas.runs import Journal
from evit_nas.workers import end, worker_pool

if TYPE_CHECKING:
    from evit_nas.accuracy.short import ShortTraining


class Label(BaseModel):
    """One trained network."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    arch: ArchConfig
    """As in the search space, whatever size it was trained at."""
    seed: int
    """Of the weights and of the order of the images."""
    score: ShortScore
    """What the training came to."""
    seconds: float
    """Time it took."""


@dataclass(frozen=True)
class Job:
    """A training that is wanted: to the end of `rung` of the recipe."""

    arch: ArchConfig
    seed: int
    rung: int


class Labels:
    """The trained networks of one data set and recipe, in `folder`; checkpoints of unfinished ones lie beside them."""

    def __init__(self, folder: Path, data: str, image_digest: str, recipe: ShortRecipe) -> None:
        self.folder, self.data, self.recipe = folder, data, recipe
        self._context = {"data": image_digest, "recipe": recipe.model_dump(mode="json")}
        self._journal = Journal(folder / "labels.jsonl")

    def known(self, rung: int | None = None) -> dict[tuple[str, int], Label]:
        """(key of the network, seed) -> its label at that rung, the last one by default."""
        last = self.recipe.last_rung if rung is None else rung
        found = {}
        for record in self._journal.read():
            label = Label.model_validate(record["label"])
            if record["id"] == self._id(Job(label.arch, label.seed, last)):
                found[label.arch.key, label.seed] = label
        return found

    def adopt(self, other: Journal) -> int:
        """Takes over the labels of another journal that are for the same data and recipe; returns their number."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._journal.repair()
        known = {record["id"] for record in self._journal.read()}
        taken = 0
        for record in other.read():
            label = Label.model_validate(record["label"])
            rungs = range(len(self.recipe.cycles))
            fits = any(record["id"] == self._id(Job(label.arch, label.seed, rung)) for rung in rungs)
            if fits and record["id"] not in known:
                self._journal.append(record)
                taken += 1
        return taken

    def collect(
        self, jobs: Sequence[Job], workers: int, step: Callable[[Job, Label], None], note: Callable[[str], None]
    ) -> None:
        """Trains what is not known yet, in the order of `jobs`.

        Args:
            jobs: what is wanted.
            workers: trainings at a time, each on one core.
            step: told of each new label.
            note: told which networks could not be trained, and why.

        Raises:
            EvitNasError: a worker process died; the labels so far are kept and unfinished trainings will go on.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._journal.repair()
        known = {record["id"] for record in self._journal.read()}
        missing = iter([job for job in jobs if self._id(job) not in known])
        pool = worker_pool(workers, _prepare, self.data, self.recipe)
        running: dict[Future[Label], Job] = {}
        try:
            while True:
                for job in missing:
                    running[pool.submit(_train, job, self._checkpoint(job))] = job
                    if len(running) >= workers:
                        break
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    self._finish(running.pop(future), future, step, note)
        except BrokenProcessPool:
            raise EvitNasError(
                "a training process died, perhaps for want of memory. The labels so far are kept; "
                "run the same command again to go on, with fewer --workers if it dies again."
            ) from None
        finally:
            end(pool)  # a training in progress has its checkpoint

    def _finish(
        self, job: Job, future: Future[Label], step: Callable[[Job, Label], None], note: Callable[[str], None]
    ) -> None:
        try:
            label = future.result()
        except MeasurementError as error:
            note(f"left out: {error}")
            return
        self._journal.append({"id": self._id(job), "label": label.model_dump(mode="json")})
        if job.rung == self.recipe.last_rung:
            self._checkpoint(job).unlink(missing_ok=True)
        step(job, label)

    def _checkpoint(self, job: Job) -> Path:
        first = self._id(Job(job.arch, job.seed, 0)).replace(":", "-")
        return self.folder / "checkpoints" / f"{first}.pt"

    def _id(self, job: Job) -> str:
        context = self._context | {"seed": job.seed, "rung": job.rung}
        digest = hashlib.sha256(json.dumps(context, sort_keys=True).encode()).hexdigest()[:12]
        return f"label:{job.arch.key}:{digest}"


_training: ShortTraining | None = None  # of this worker process


def _prepare(data: str, recipe: ShortRecipe) -> None:
    """Puts the images into a worker's memory."""
    from evit_nas.accuracy.short import ShortTraining
    from evit_nas.data import load_dataset

    global _training
    _training = ShortTraining(load_dataset(data, recipe.image_size), recipe)


def _train(job: Job, checkpoint: Path) -> Label:
    assert _training is not None
    start = time.monotonic()
    score = _training.run(job.arch, job.seed, rung=job.rung, checkpoint=checkpoint)
    return Label(arch=job.arch, seed=job.seed, score=score, seconds=round(time.monotonic() - start, 1))
