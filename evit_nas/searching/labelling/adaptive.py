"""Which networks to train for a predictor of accuracy: some all over the budget, then those that may be the best.

Few labels are enough if they lie where the choice is made. The first lie in slices below the budget. The others come
in batches: each posterior draw of the predictor (Thompson sampling) names the network it believes in, which is trained
next. It ends when enough are trained, or when the best few have stayed the best.

A batch is a function of the labels before it and of the seed. So after an interruption the same batches come again,
and cost nothing as far as they were measured and trained.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evit_nas.accuracy import evidence
from evit_nas.accuracy.learned import LearnedAccuracy
from evit_nas.accuracy.predictor import MIN_LABELS
from evit_nas.accuracy.table import LabelTable, TrainedNetwork
from evit_nas.arch import ArchConfig
from evit_nas.commands import command_line
from evit_nas.config import SearchSettings
from evit_nas.data.cache import load_dataset
from evit_nas.data.dataset import Dataset
from evit_nas.errors import EvitNasError, MeasurementError, UsageError
from evit_nas.files import Journal, write_atomically
from evit_nas.latency import Device, Latency, Protocol, Steady, Unit
from evit_nas.latency.predictor import fit
from evit_nas.latency.samples import Sample, Table, merged
from evit_nas.searching.labelling.labels import Job, Label, Labels, check_images
from evit_nas.searching.labelling.slices import Sliced, TooFew, slice_of, sliced_pool
from evit_nas.searching.status import Watcher

if TYPE_CHECKING:
    from evit_nas.searching.parallel import Cluster

PLAN, TABLE = "candidates.json", "table.json"  # which networks to train, and what came of it
SLICES = (0.45, 0.7, 0.9)  # middles, as shares of the budget
RANGE = (0.25, 0.55, 0.85)  # the lowest they may be, as shares of the way from the fastest network to the budget
START = 0.6  # share of the labels that is spread over the slices
BATCH = 4  # networks trained between two fits, if the settings say nothing else
CANDIDATES = 1000  # random networks in the slices that draws choose from
TOP, STANDS = 5, 2  # the best few, and the fits in a row after which they count as standing
MAX_DRAWS = 200  # random networks for each candidate


def collect_labels(
    folder: Path, settings: SearchSettings, device: Device, watch: Watcher, cluster: Cluster | None = None
) -> LabelTable:
    """Trains the networks that the settings ask for, and goes on where an earlier call was interrupted.

    Args:
        folder: of a run's folder, where labels, checkpoints and the resulting table are kept.
        settings: data, recipe, number of labels, workers, seed, and the budget on the first device.
        device: that device.
        watch: told what happens.
        cluster: trains them, instead of processes of this machine.

    Raises:
        UsageError: the data cannot be used, or have changed, or a run in `labels_from` has no labels; see
            `check_sources`.
        EvitNasError: a training process died, or too few networks could be trained.
    """
    path, wish = folder / TABLE, settings.accuracy
    if path.exists():
        return LabelTable.load(path)
    assert wish.data is not None
    data = load_dataset(wish.data, wish.recipe.image_size)
    labels = Labels(folder, wish.data, data.digest, wish.recipe, cluster.checkpoints if cluster else None)
    stopwatch = _Stopwatch(folder, device, settings, watch)
    start, planned = _plan(labels, settings, stopwatch, watch)
    candidates = [arch for arch, _ in planned]
    collection = _Collection(labels, data, settings, stopwatch, watch, cluster)
    watch.note(f"training up to {wish.labels} networks on {data.name}, {collection.workers} at a time")
    networks, tops = collection.trained(start), list[set[int]]()
    # as many failures as labels are wanted end it
    while len(networks) < MIN_LABELS and len(collection.tried) - len(networks) < max(wish.labels, MIN_LABELS):
        more = [arch for arch in candidates if arch.key not in collection.tried][: MIN_LABELS - len(networks)]
        if not more:
            break
        networks = collection.measured_and_trained(more)
    while candidates and MIN_LABELS <= len(networks) < wish.labels:
        table = collection.table(networks)
        predictor = LearnedAccuracy.of_table(table).predictor
        unseen = evidence.networks(candidates, table.regime, table.source)
        tops.append(set(np.argsort(predictor.mean(unseen))[:TOP].tolist()))  # log errors: the least are best
        if len(tops) > STANDS and all(top == tops[-1] for top in tops[-STANDS - 1 :]):
            watch.note(f"the best {TOP} stand after {len(networks)} trained networks")
            break
        rng = np.random.default_rng([settings.seed, len(tops)])  # by the batch: the same after an interruption
        draws = -predictor.sample(unseen, settings.together or BATCH, rng)
        untried = np.array([arch.key not in collection.tried for arch in candidates])
        chosen = _chosen(draws, untried)[: wish.labels - len(networks)]
        if not chosen:
            break
        networks = collection.measured_and_trained([candidates[index] for index in chosen])
    if len(networks) < MIN_LABELS:
        raise EvitNasError(
            f"only {len(networks)} networks could be trained, a predictor needs {MIN_LABELS}. What went wrong with the "
            "others is said above; another --data or --space may help."
        )
    table = collection.table(networks)
    table.save(path)
    return table


class _Collection:
    """The networks that have been asked for, and the labels of those that could be measured and trained."""

    def __init__(
        self,
        labels: Labels,
        data: Dataset,
        settings: SearchSettings,
        stopwatch: _Stopwatch,
        watch: Watcher,
        cluster: Cluster | None,
    ) -> None:
        self._labels, self._data, self._settings = labels, data, settings
        self._stopwatch, self._watch, self._cluster = stopwatch, watch, cluster
        self.workers = cluster.concurrent if cluster else max(settings.workers, 1)
        """Trainings at a time."""
        self.tried: set[str] = set()
        """Keys of all that was asked for."""
        self._asked: dict[str, Timed] = {}  # by key, less what could not be measured
        self._done: set[str] = set()  # keys of those that have a label

    def trained(self, more: Sequence[Timed]) -> list[TrainedNetwork]:
        """What was asked for so far, and now, with its labels; what could not be trained is left out."""
        self.tried.update(arch.key for arch, _ in more)
        self._asked.update((arch.key, (arch, ms)) for arch, ms in more)
        found = self._labels.trainings()
        self._done.update(self._asked.keys() & found.keys())
        rung, seed = self._settings.accuracy.recipe.last_rung, self._settings.seed
        jobs = [Job(arch, seed, rung) for arch, _ in more if arch.key not in found]
        way = f"go on with: {command_line('resume', self._labels.folder.parent)}"
        self._labels.collect(jobs, self.workers, self._step, self._watch.note, self._cluster, way)
        found = self._labels.trainings()
        return [
            TrainedNetwork(arch=arch, latency_ms=ms, trainings=found[key])
            for key, (arch, ms) in self._asked.items()
            if key in found
        ]

    def measured_and_trained(self, archs: Sequence[ArchConfig]) -> list[TrainedNetwork]:
        """The same, with what is asked for now measured first; what cannot be measured is left out too."""
        self.tried.update(arch.key for arch in archs)
        return self.trained([(arch, ms) for arch in archs if (ms := self._stopwatch.median_ms(arch)) is not None])

    def table(self, networks: Sequence[TrainedNetwork]) -> LabelTable:
        """The table of these networks."""
        return self._labels.table(self._data, str(self._stopwatch.device.conditions), networks)

    def _step(self, job: Job, _: Label) -> None:
        self._done.add(job.arch.key)
        self._watch.step(f"trained on {self._data.name}", len(self._done), self._settings.accuracy.labels)


class _Stopwatch:
    """Measures networks on the device, each once: the folder remembers what was measured for it."""

    def __init__(self, folder: Path, device: Device, settings: SearchSettings, watch: Watcher) -> None:
        self._watch = watch
        self.samples: list[Sample] = Table(device.context(), settings.space).samples()
        """All that is known of the device's latencies."""
        self._journal = Journal(folder / "latencies.jsonl")
        self._journal.repair()
        records = [*self._journal.read()]
        self._known: dict[str, float] = {record["key"]: record["ms"] for record in records}
        unit = next((Unit(*record["unit"]) for record in records if record.get("unit")), None)
        self.device = Steady(device, unit)

    def median_ms(self, arch: ArchConfig) -> float | None:
        """Measured median in milliseconds; None if it cannot be measured, which is noted.

        Raises:
            LostLink: the device is out of reach.
        """
        if arch.key not in self._known:
            try:
                latency, _ = self.device.measure(arch, Protocol())
            except MeasurementError as error:
                self._watch.note(f"left out: {arch.key}: {error}")
                return None
            Table(self.device.context(), arch).add(arch, latency)  # but for noisy ones, which serve this run alone
            self.samples.append(Sample.of(arch, latency))
            self.keep(arch, latency)
        return self._known[arch.key]

    def keep(self, arch: ArchConfig, latency: Latency) -> None:
        """Remembers what has been measured."""
        self._known[arch.key] = latency.median_ms
        self._journal.append({"key": arch.key, "ms": latency.median_ms, "unit": latency.unit})


def _chosen(draws: np.ndarray, untried: np.ndarray) -> list[int]:
    """Indices of the best in each of the (draws, n) draws that was neither tried nor chosen by an earlier one."""
    chosen: list[int] = []
    for draw in draws:
        open_ = np.flatnonzero(untried)
        if len(open_):
            chosen.append(int(open_[draw[open_].argmax()]))
            untried[chosen[-1]] = False
    return chosen


Timed = tuple[ArchConfig, float]


def _plan(
    labels: Labels, settings: SearchSettings, stopwatch: _Stopwatch, watch: Watcher
) -> tuple[list[Timed], list[Timed]]:
    """The first networks to train, measured, and candidates for the others, by predicted latency; chosen once.

    Where latencies cannot be predicted the candidates are measured as well, and no more than are to be trained.

    What other runs have trained comes first, and counts.

    Raises:
        UsageError: it was made for other images.
    """
    path = labels.folder / PLAN
    if not path.exists():
        start, candidates = _planned(labels, settings, stopwatch, watch)
        plan = {"images": labels.digest, "start": _plain(start), "candidates": _plain(candidates)}
        write_atomically(path, json.dumps(plan))
    read = json.loads(path.read_text(encoding="utf-8"))
    check_images(labels.data, read.get("images", labels.digest), labels.digest)  # plans of up to 0.3 hold no images
    start, candidates = (
        [(ArchConfig.model_validate(arch), float(ms)) for arch, ms in read[name]] for name in ("start", "candidates")
    )
    return start, candidates


def _planned(
    labels: Labels, settings: SearchSettings, stopwatch: _Stopwatch, watch: Watcher
) -> tuple[list[Timed], list[Timed]]:
    """What `_plan` chooses when it is called first."""
    labels.open()
    start = _adopted(labels, settings, stopwatch, watch)
    slices_ms = _slices_ms(settings, stopwatch)
    wanted = max(round(START * settings.accuracy.labels), MIN_LABELS) - len(start)
    found = _in_slices(slices_ms, wanted, [], settings, stopwatch, watch) if wanted > 0 else []
    start += _timed(found)
    candidates = _random(settings, stopwatch.samples, slices_ms[1:] or slices_ms)
    if not candidates:
        watch.note("their latencies cannot be predicted well: those trained later are measured and random ones too")
        rest = max(settings.accuracy.labels - len(start), BATCH)
        more = _in_slices(slices_ms, len(found) + rest, found, settings, stopwatch, watch)
        candidates = _timed(sliced for sliced in more if sliced not in found)
    return start, candidates


def _in_slices(
    slices_ms: Sequence[float],
    wanted: int,
    before: Sequence[Sliced],
    settings: SearchSettings,
    stopwatch: _Stopwatch,
    watch: Watcher,
) -> list[Sliced]:
    """As many architectures as are wanted, with their latencies, `before` among them; fewer if there are no more."""
    watch.note(f"looking for {wanted} architectures of {', '.join(f'{ms:.2g}' for ms in slices_ms)} ms")
    found = [*before]

    def keep(sliced: Sliced) -> None:
        found.append(sliced)
        stopwatch.keep(sliced.arch, sliced.latency)

    try:
        return sliced_pool(
            stopwatch.device,
            settings.space,
            slices_ms,
            wanted,
            settings.seed,
            lambda done: watch.step("architectures in the slices", done, wanted),
            watch.note,
            before=before,
            samples=stopwatch.samples,
            keep=keep,
        )
    except TooFew:
        watch.note(f"the space has few architectures of these latencies: {len(found)} were found")
        return found


def _adopted(labels: Labels, settings: SearchSettings, stopwatch: _Stopwatch, watch: Watcher) -> list[Timed]:
    """The networks of this space that other runs have trained and that keep the budget here, measured."""
    for name in settings.accuracy.labels_from:
        labels.adopt(labels_of(Path(name)))
    archs = {key: label.arch for (key, _), label in labels.known().items() if label.arch in settings.space}
    found: list[Timed] = []
    for done, arch in enumerate(archs.values(), start=1):
        watch.step("trained networks of other runs", done, len(archs))
        ms = stopwatch.median_ms(arch)
        if ms is not None and ms <= settings.targets[0].budget_ms:
            found.append((arch, ms))
    if settings.accuracy.labels_from:
        watch.note(f"{len(found)} trained networks taken over from {', '.join(settings.accuracy.labels_from)}")
    return found


def _slices_ms(settings: SearchSettings, stopwatch: _Stopwatch) -> list[float]:
    """The middles in milliseconds: shares of the budget, but none where the space has nothing so fast."""
    budget_ms = settings.targets[0].budget_ms
    fastest_ms = stopwatch.median_ms(settings.space.smallest()) or budget_ms
    highest_ms = max(SLICES[-1] * budget_ms, fastest_ms)
    above_ms = [fastest_ms + part * (budget_ms - fastest_ms) for part in RANGE]
    middles_ms = {min(max(share * budget_ms, ms), highest_ms) for share, ms in zip(SLICES, above_ms, strict=True)}
    return sorted(middles_ms)


def _random(settings: SearchSettings, samples: Sequence[Sample], slices_ms: Sequence[float]) -> list[Timed]:
    """Random architectures whose predicted latency lies in the slices; none where predictions are not good enough."""
    predictor = fit(merged(samples))
    if predictor is None or not predictor.check.trusted:
        return []
    rng, found = random.Random(settings.seed), dict[str, Timed]()
    for _ in range(MAX_DRAWS):
        archs = [settings.space.sample(rng) for _ in range(CANDIDATES)]
        for arch, ms in zip(archs, predictor.predict_ms(archs).tolist(), strict=True):
            if slice_of(ms, slices_ms) is not None:
                found[arch.key] = (arch, ms)
        if len(found) >= CANDIDATES:
            break
    return list(found.values())[:CANDIDATES]


def _timed(pool: Iterable[Sliced]) -> list[Timed]:
    return [(sliced.arch, sliced.latency.median_ms) for sliced in pool]


def _plain(archs: Sequence[Timed]) -> list[list[Any]]:
    return [[arch.model_dump(mode="json"), ms] for arch, ms in archs]


def labels_of(run: Path) -> Journal:
    """The networks that a run has trained.

    Raises:
        UsageError: it has none.
    """
    path = run / "labels" / "labels.jsonl"
    if not path.exists():
        raise UsageError(f"{run} has no trained networks (no {path}); labels come from runs with --accuracy predictor.")
    return Journal(path)
