"""A pool of trained networks in latency slices: what scores are judged by, and what predictors learn from.

Hours of training, so everything is kept and gone on with: the pool is drawn once, every label and every proxy is
written down as it comes, and the order is one that gives a balanced table early.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from evit_nas import __version__
from evit_nas.accuracy.table import LabelTable, TrainedNetwork
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.config import Conditions, ShortRecipe
from evit_nas.data.cache import load_dataset
from evit_nas.data.dataset import Dataset
from evit_nas.errors import EvitNasError, MeasurementError, RunError
from evit_nas.files import Journal, work_folder, write_atomically
from evit_nas.latency import STRICT, Device, Latency, Steady
from evit_nas.searching.labelling.adaptive import TABLE
from evit_nas.searching.labelling.labels import Job, Label, Labels
from evit_nas.searching.labelling.slices import Sliced, sliced_pool
from evit_nas.searching.status import Watcher
from evit_nas.space import SearchSpace
from evit_nas.yamlio import read_yaml, to_yaml

SETTINGS = "pool.yaml"  # in the folder
SECOND_SEEDS = 0.25  # share of the networks that are trained twice: they tell the noise
SLOWEST_PRESET = 1.2  # times the slowest slice: slower ones of the paper's are left out


class PoolSettings(BaseModel):
    """What makes two pools the same one."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    data: str
    """As given to --data."""
    space: SearchSpace
    """What the architectures are sampled from."""
    conditions: Conditions
    """Where their latency is measured."""
    slices_ms: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    """Middles of the latency slices."""
    archs: Annotated[int, Field(ge=16, le=10_000)]
    """Random architectures of all slices together."""
    recipe: ShortRecipe
    """How they are trained."""
    seed: Annotated[int, Field(ge=0)]
    """Of the sampling and of the first training of each."""


class TrainedPool:
    """One pool in one folder, which is made when something is to be trained.

    Raises:
        RunError: the folder holds another pool.
    """

    def __init__(self, folder: Path, settings: PoolSettings) -> None:
        self._folder, self._settings = folder, settings
        if (folder / SETTINGS).exists():
            found, wanted = read_yaml(folder / SETTINGS), settings.model_dump(mode="json")
            other = [name for name in wanted if found.get(name) != wanted[name]]
            if other:
                raise RunError(
                    f"{folder} holds another pool, with other {', '.join(other)}. "
                    "Give the same options, or another --out."
                )

    def train(self, device: Device, workers: int, watch: Watcher, seeds: int = 1) -> LabelTable:
        """Draws the pool, trains what is not trained yet, scores it, and writes table.json.

        Args:
            device: measures the latencies of the slices.
            workers: trainings at a time; without any, the table holds what has been trained so far.
            watch: told how it goes.
            seeds: trainings of every network; a quarter has two in any case, which tell the noise.

        Raises:
            UsageError: the data cannot be used.
            RunError: another process is at work in the folder; names it.
            EvitNasError: a slice cannot be filled, or a worker died; what was done is kept.
        """
        with work_folder(self._folder, SETTINGS):
            if not (self._folder / SETTINGS).exists():
                write_atomically(self._folder / SETTINGS, to_yaml(self._settings))
            return self._train(device, workers, watch, seeds)

    def _train(self, device: Device, workers: int, watch: Watcher, seeds: int) -> LabelTable:
        recipe = self._settings.recipe
        channels = self._settings.space.in_channels
        data = load_dataset(
            self._settings.data,
            recipe.image_size,
            channels=channels,
            note=watch.note,
            step=watch.step,
            workers=workers,
        )
        latency_ms, archs = self._pool(device, watch)
        labels = Labels(self._folder, self._settings.data, data.digest, recipe)
        jobs = self._jobs(archs, seeds)
        done = len({(job.arch.key, job.seed) for job in jobs} & labels.known().keys())

        def step(job: Job, label: Label) -> None:
            nonlocal done
            done += 1
            score = label.score
            watch.step("training", done, len(jobs))
            watch.note(
                f"{done}/{len(jobs)} {job.arch.key} seed {job.seed}: {100 * score.accuracy:.2f} %, "
                f"cross-entropy {score.cross_entropy:.4f}, {label.seconds:.0f} s"
            )

        if workers:
            watch.note(f"{len(jobs)} trainings on {data.name}, {workers} at a time; it goes on where it stopped")
            labels.collect(jobs, workers, step, watch.note)
        return self.table(data, labels, archs, latency_ms, watch)

    def _jobs(self, archs: list[ArchConfig], seeds: int) -> list[Job]:
        """All trainings of the pool, in an order that gives a balanced table early: further seeds come last."""
        rung, first = self._settings.recipe.last_rung, self._settings.seed
        once, *further = [[Job(arch, first + turn, rung) for arch in archs] for turn in range(max(seeds, 2))]
        again = further[0][: round(SECOND_SEEDS * len(archs))]
        jobs = [job for pair in zip(once, again, strict=False) for job in pair] + once[len(again) :]
        return jobs + [job for turn in further[: seeds - 1] for job in turn if job not in again]

    def table(
        self, data: Dataset, labels: Labels, archs: list[ArchConfig], latency_ms: dict[str, float], watch: Watcher
    ) -> LabelTable:
        """What is trained so far, with proxies, as table.json."""
        trainings = labels.trainings()
        trained = [arch for arch in archs if arch.key in trainings]
        if not trained:
            raise EvitNasError("no network could be trained.")
        networks = [
            TrainedNetwork(
                arch=arch,
                latency_ms=latency_ms[arch.key],
                proxies=proxies,
                trainings=trainings[arch.key],
            )
            for arch, proxies in zip(trained, self._proxies(trained, watch), strict=True)
        ]
        table = labels.table(data, str(self._settings.conditions), networks)
        table.save(self._folder / TABLE)
        return table

    def _pool(self, device: Device, watch: Watcher) -> tuple[dict[str, float], list[ArchConfig]]:
        """Latency by key, and the architectures: random ones slice by slice in turns, then the paper's that fit."""
        path = self._folder / "pool.json"
        settings = self._settings
        if not path.exists():
            journal = Journal(self._folder / "found.jsonl")
            journal.repair()
            before = [_sliced(record) for record in journal.read()]
            device = Steady(device, before[0].latency.unit if before else None)
            pool = sliced_pool(
                device,
                settings.space,
                settings.slices_ms,
                settings.archs,
                settings.seed,
                lambda done: watch.step("architectures in the slices", done, settings.archs),
                watch.note,
                before=before,
                keep=lambda sliced: journal.append(_record(sliced)),
            )
            found = {sliced.arch.key: (sliced.arch, sliced.latency.median_ms) for sliced in pool}
            for name in PRESETS:
                arch = settings.space.adapted(ArchConfig.preset(name))
                try:
                    ms = device.measure(arch, STRICT)[0].median_ms
                except MeasurementError as error:
                    watch.note(f"left out: {name}: {error}")
                    continue
                if ms <= SLOWEST_PRESET * max(settings.slices_ms):
                    found.setdefault(arch.key, (arch, ms))
            write_atomically(path, json.dumps([[arch.model_dump(mode="json"), ms] for arch, ms in found.values()]))
        read = [
            (ArchConfig.model_validate(arch), float(ms)) for arch, ms in json.loads(path.read_text(encoding="utf-8"))
        ]
        return {arch.key: ms for arch, ms in read}, [arch for arch, _ in read]

    def _proxies(self, archs: list[ArchConfig], watch: Watcher) -> list[dict[str, float]]:
        """The zero-cost scores of each network; empty where one has no finite value."""
        from evit_nas.accuracy.zero_cost import PROXIES, score_all

        seed = self._settings.seed
        context = {"seed": seed, "names": list(PROXIES), "torch": version("torch"), "evit_nas": __version__}
        journal = Journal(self._folder / "proxies.jsonl")
        journal.repair()
        known = {record["key"]: record["proxies"] for record in journal.read() if record.get("context") == context}
        for done, arch in enumerate(archs, start=1):
            watch.step("proxies", done, len(archs))
            if arch.key in known:
                continue
            try:
                known[arch.key] = score_all(arch, seed=seed)
            except MeasurementError as error:
                watch.note(f"without proxies: {arch.key}: {error}")
                known[arch.key] = {}  # not kept: the next call tries again
            else:
                journal.append({"key": arch.key, "context": context, "proxies": known[arch.key]})
        return [known[arch.key] for arch in archs]


def _record(sliced: Sliced) -> dict[str, Any]:
    return {
        "arch": sliced.arch.model_dump(mode="json"),
        "latency": sliced.latency.model_dump(mode="json"),
        "slice_ms": sliced.slice_ms,
    }


def _sliced(record: dict[str, Any]) -> Sliced:
    latency = Latency.model_validate(record["latency"])
    return Sliced(ArchConfig.model_validate(record["arch"]), latency, record["slice_ms"])
