"""Labels: briefly trained networks, each of which cost minutes, so none is ever trained twice or thrown away.

A journal holds one line for each (network, seed, data, recipe, rung). Trainings run side by side in worker processes of
one thread each, which makes more of the cores than one training on all of them.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from evit_nas.accuracy import ShortScore
from evit_nas.accuracy.table import LabelTable, TrainedNetwork, Training
from evit_nas.arch import ArchConfig
from evit_nas.config import ShortRecipe
from evit_nas.errors import EvitNasError, MeasurementError, UsageError
from evit_nas.files import Journal
from evit_nas.workers import end, worker_pool

if TYPE_CHECKING:
    from evit_nas.accuracy.short import ShortTraining
    from evit_nas.data.dataset import Dataset


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
    """Of processor time that the training took, on a GPU of wall-clock time; of its last part if it was interrupted."""
    device: str = "cpu"
    """What it was trained on: cpu, or the name of a GPU."""

    @property
    def training(self) -> Training:
        """As a table holds it, beside those of the same network."""
        return Training(seed=self.seed, score=self.score, seconds=self.seconds, device=self.device)


@dataclass(frozen=True)
class Job:
    """A training that is wanted: to the end of `rung` of the recipe."""

    arch: ArchConfig
    seed: int
    rung: int


class Labels:
    """The trained networks of one data set and recipe, in `folder`; checkpoints of unfinished ones lie beside them.

    Args:
        folder: written by one process at a time.
        data: what `load_dataset` takes, with its default split.
        image_digest: `Dataset.digest` at the recipe's image size.
        recipe: how networks are trained.
        checkpoints: where those of unfinished trainings lie if other machines are to go on with them: a folder that
            they share, or the URI of a bucket.
    """

    def __init__(
        self, folder: Path, data: str, image_digest: str, recipe: ShortRecipe, checkpoints: str | None = None
    ) -> None:
        self.folder, self.data, self.recipe = folder, data, recipe
        self.digest = image_digest
        self._checkpoints = checkpoints or str(folder / "checkpoints")
        self._journal = Journal(folder / "labels.jsonl")
        self._failures = Journal(folder / "failures.jsonl")

    def known(self, rung: int | None = None) -> dict[tuple[str, int], Label]:
        """(key of the network, seed) -> its label at that rung, the last one by default."""
        wanted = self.recipe.last_rung if rung is None else rung
        found = {}
        for record in self._journal.read():
            label = Label.model_validate(record["label"])
            # the journal may hold labels of other data, recipes and rungs as well
            if record["id"] == self._id(Job(label.arch, label.seed, wanted)):
                found[label.arch.key, label.seed] = label
        return found

    def trainings(self) -> dict[str, tuple[Training, ...]]:
        """Key of each network that was trained to the end -> its trainings, in the order of their seeds."""
        found: dict[str, tuple[Training, ...]] = {}
        for (key, _), label in sorted(self.known().items(), key=lambda item: item[0]):
            found[key] = (*found.get(key, ()), label.training)
        return found

    def table(self, data: Dataset, device: str, networks: Sequence[TrainedNetwork]) -> LabelTable:
        """Networks that were trained here.

        Args:
            data: what they were trained on.
            device: what their latencies were measured on.
            networks: with their trainings.
        """
        return LabelTable(
            data=data.name,
            recipe=self.recipe,
            images=min(self.recipe.images, len(data.train)),
            classes=len(data.classes),
            validation_images=len(data.val),
            device=device,
            networks=tuple(networks),
        )

    def adopt(self, other: Journal) -> None:
        """Takes over the labels of another journal that are for the same data and recipe."""
        known = self.open()
        for record in other.read():
            label = Label.model_validate(record["label"])
            ids = {self._id(Job(label.arch, label.seed, rung)) for rung in range(len(self.recipe.cycles))}
            if record["id"] in ids - known:
                self._journal.append(record)
                known.add(record["id"])

    def training(self, job: Job) -> Callable[[], Label]:
        """What computes a label, in any process that can read the data."""
        return partial(_train, self.data, self.digest, self.recipe, job, self._checkpoint(job))

    def keep(self, job: Job, label: Label) -> None:
        """Writes a label down; the checkpoint of the last rung has done its service."""
        # before the checkpoint goes: killed between the two, nothing is trained again
        self._journal.append({"id": self._id(job), "label": label.model_dump(mode="json")})
        if job.rung == self.recipe.last_rung:
            self.give_up(job)

    def give_up(self, job: Job) -> None:
        """Removes the checkpoint: the training is not to go on."""
        _remove(self._checkpoint(job))

    def collect(
        self,
        jobs: Sequence[Job],
        workers: int,
        step: Callable[[Job, Label], None],
        note: Callable[[str], None],
        cluster: Executor | None = None,
        way: str = "run the same command again to go on",
    ) -> None:
        """Trains what is not known yet, begun in the order of `jobs`, and writes each label down as it comes.

        Args:
            jobs: what is wanted: a network and seed at one rung, for rungs share a checkpoint.
            workers: trainings at a time, each on one core.
            step: told of each new label.
            note: told which networks could not be trained, and why. One whose training diverged is not tried again;
                one that failed for want of memory, say, is by the next call.
            cluster: trains them, instead of processes of this machine.
            way: how to go on when a worker has died, for the message.

        Raises:
            EvitNasError: a worker process died, or the cluster is gone; the labels so far are kept and unfinished
                trainings will go on.
            UsageError: the images cannot be read, or are others than the labels are for.
        """
        known, devices = self.open(), {label.device for label in self.known().values()}
        missing = {self._id(job): job for job in jobs if self._id(job) not in known}  # equal networks once
        for failure in self._failures.read():
            if job := missing.pop(failure["id"], None):
                note(f"left out: {job.arch.key}: {failure['reason']}")
        waiting, running = iter(missing.values()), dict[Future[Label], Job]()
        pool = None if cluster else worker_pool(workers)
        executor = cluster or pool
        assert executor is not None
        try:
            while True:
                for job in islice(waiting, workers - len(running)):
                    running[executor.submit(self.training(job))] = job
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    label = self._finish(running.pop(future), future, step, note)
                    if label is not None and label.device not in (devices or {label.device}):
                        others = " and ".join(sorted(devices))
                        note(f"trained on {label.device}, others on {others}: their digits differ a little")
                    devices |= {label.device} if label else set()
        except BrokenProcessPool:
            raise EvitNasError(
                "a training process died, perhaps for want of memory. The labels so far are kept; "
                f"{way}, with fewer --workers if it dies again."
            ) from None
        finally:
            if pool is not None:
                end(pool)  # a training in progress has its checkpoint

    def _finish(
        self, job: Job, future: Future[Label], step: Callable[[Job, Label], None], note: Callable[[str], None]
    ) -> Label | None:
        """The label, written down; None if there is none."""
        try:
            label = future.result()
        except BrokenProcessPool:  # a RuntimeError as well, but no fault of this network
            raise
        except (MeasurementError, RuntimeError, MemoryError) as error:  # torch out of memory is a RuntimeError
            if isinstance(error, MeasurementError) and error.kind == "rejected":
                self._failures.append({"id": self._id(job), "reason": str(error)})
            note(f"left out: {job.arch.key}: {error}")
            return None
        self.keep(job, label)
        step(job, label)
        return label

    def open(self) -> set[str]:
        """Makes the journals fit for appending; returns the ids of the labels."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._journal.repair()
        self._failures.repair()
        return {record["id"] for record in self._journal.read()}

    def _checkpoint(self, job: Job) -> Path | str:
        """Where the training goes on, one place for all rungs: a file, or the URI of one."""
        first = self._id(Job(job.arch, job.seed, 0)).replace(":", "-")
        place = f"{self._checkpoints}/{first}.pt"
        return place if "://" in place else Path(place)

    def _id(self, job: Job) -> str:
        recipe = self.recipe.model_dump(mode="json")
        # journals of earlier runs are read by these ids: changed, hours of training would not be found again
        context = {"data": self.digest, "recipe": recipe, "seed": job.seed, "rung": job.rung}
        digest = hashlib.sha256(json.dumps(context, sort_keys=True).encode()).hexdigest()[:12]
        return f"label:{job.arch.key}:{digest}"


def check_images(data: str, before: str, now: str) -> None:
    """Refuses to train on, with what was trained on other images.

    Args:
        data: what names the images.
        before: digest of those of the labels.
        now: digest of what is there.

    Raises:
        UsageError: the two differ.
    """
    if before != now:
        raise UsageError(
            f"the images of {data} have changed: those of the labels have the digest {before}, these {now}. "
            "Bring them back, or train for the new ones in another folder."
        )


@cache
def _training(data: str, digest: str, recipe: ShortRecipe) -> ShortTraining:
    """With the images in the memory of this worker process."""
    from evit_nas.accuracy.short import ShortTraining
    from evit_nas.data.cache import kept_dataset, load_dataset

    dataset = kept_dataset(digest, recipe.image_size) or load_dataset(data, recipe.image_size)
    check_images(data, digest, dataset.digest)
    return ShortTraining(dataset, recipe)


def _train(data: str, digest: str, recipe: ShortRecipe, job: Job, checkpoint: Path | str) -> Label:
    from evit_nas.accuracy.short import device_name

    training = _training(data, digest, recipe)
    # other work beside it must not make a label look dear
    clock = time.process_time if training.device.type == "cpu" else time.monotonic
    start = clock()
    with _at_hand(checkpoint) as (path, keep):
        score = training.run(job.arch, job.seed, rung=job.rung, checkpoint=path, step=keep)
    return Label(
        arch=job.arch,
        seed=job.seed,
        score=score,
        seconds=round(clock() - start, 1),
        device=device_name(training.device),
    )


@contextmanager
def _at_hand(checkpoint: Path | str) -> Iterator[tuple[Path, Callable[[int], None]]]:
    """A file to go on from, and what is to be called after every epoch: that of a bucket is copied here, and back."""
    if isinstance(checkpoint, Path):
        yield checkpoint, lambda _: None
        return
    # comes with ray[tune]; only a cluster's checkpoints lie in a bucket
    from pyarrow import fs  # type: ignore[import-untyped]

    bucket, place = fs.FileSystem.from_uri(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        with suppress(FileNotFoundError), bucket.open_input_stream(place) as source:
            path.write_bytes(source.read())

        def keep(_: int) -> None:
            bucket.create_dir(place.rpartition("/")[0])
            with bucket.open_output_stream(f"{place}.partial") as target:
                target.write(path.read_bytes())
            bucket.move(f"{place}.partial", place)  # a node that dies while it writes leaves the last one whole

        yield path, keep


def _remove(checkpoint: Path | str) -> None:
    if isinstance(checkpoint, Path):
        checkpoint.unlink(missing_ok=True)
        return
    from pyarrow import fs

    bucket, place = fs.FileSystem.from_uri(checkpoint)
    with suppress(FileNotFoundError):
        bucket.delete_file(place)
