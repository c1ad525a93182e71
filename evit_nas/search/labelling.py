"""Which networks to train for a predictor of accuracy: some all over the budget, then those that may be the best.

Few labels are enough if they lie where the choice is made. The first lie in slices below the budget. The others come
in batches: each posterior draw of the predictor (Thompson sampling) names the network it believes in, which is trained
next. It ends when enough are trained, or when the best few have stayed the best.

A batch is a function of the labels before it and of the seed. So after an interruption the same batches come again,
and cost nothing as far as they were trained.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evit_nas.accuracy.features import table as features_of
from evit_nas.accuracy.labels import Job, Label, Labels
from evit_nas.accuracy.learned import INPUTS
from evit_nas.accuracy.predictor import MIN_LABELS, AccuracyPredictor
from evit_nas.accuracy.table import LabelTable, TrainedNetwork, Training
from evit_nas.arch import ArchConfig
from evit_nas.config import SearchSettings
from evit_nas.data import load_dataset
from evit_nas.errors import EvitNasError, MeasurementError, UsageError
from evit_nas.latency import Device, Protocol
from evit_nas.latency.predictor import Table, fit
from evit_nas.runs import Journal, write_atomically
from evit_nas.search.slices import slice_of, sliced_pool
from evit_nas.search.status import Watcher

if TYPE_CHECKING:
    from evit_nas.search.parallel import Cluster

SLICES = (0.45, 0.7, 0.9)  # middles, as shares of the budget
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
        folder: where labels, checkpoints and the resulting table are kept.
        settings: data, recipe, number of labels, workers, seed, and the budget on the first device.
        device: that device.
        watch: told what happens.
        cluster: trains them, instead of processes of this machine.

    Raises:
        UsageError: the data cannot be used, or a run in `labels_from` has no labels.
        EvitNasError: a training process died, or too few networks could be trained.
    """
    path, wish = folder / "table.json", settings.accuracy
    if path.exists():
        return LabelTable.load(path)
    assert wish.data is not None
    data = load_dataset(wish.data, wish.recipe.image_size, note=watch.note)
    labels = Labels(folder, wish.data, data.digest, wish.recipe, cluster.checkpoints if cluster else None)
    start, candidates = _plan(labels, settings, device, watch)
    workers = cluster.concurrent if cluster else max(settings.workers, 1)
    watch.note(f"training up to {wish.labels} networks on {data.name}, {workers} at a time")
    asked: dict[str, Timed] = {}
    done: set[str] = set()

    def step(job: Job, _: Label) -> None:
        done.add(job.arch.key)
        watch.step(f"trained on {data.name}", len(done), wish.labels)

    def trained(more: Sequence[Timed]) -> list[TrainedNetwork]:
        """What was asked for so far, and now, with its labels; what could not be trained is left out."""
        asked.update((arch.key, (arch, ms)) for arch, ms in more)
        found = _trainings(labels)
        done.update(asked.keys() & found.keys())
        jobs = [Job(arch, settings.seed, wish.recipe.last_rung) for arch, _ in more if arch.key not in found]
        labels.collect(jobs, workers, step, watch.note, cluster)
        found = _trainings(labels)
        return [
            TrainedNetwork(arch=arch, latency_ms=ms, trainings=found[key])
            for key, (arch, ms) in asked.items()
            if key in found
        ]

    networks, tops, features = trained(start), list[set[int]](), features_of([arch for arch, _ in candidates], INPUTS)
    while candidates and MIN_LABELS <= len(networks) < wish.labels:
        predictor = AccuracyPredictor.fit(*_known(networks))
        tops.append(set(np.argsort(-predictor.predict(features)[0])[:TOP].tolist()))
        if len(tops) > STANDS and all(top == tops[-1] for top in tops[-STANDS - 1 :]):
            watch.note(f"the best {TOP} stand after {len(networks)} trained networks")
            break
        rng = np.random.default_rng([settings.seed, len(tops)])
        untried = np.array([arch.key not in asked for arch, _ in candidates])
        chosen = _chosen(predictor.sample(features, settings.together or BATCH, rng), untried)[
            : wish.labels - len(networks)
        ]
        if not chosen:
            break
        networks = trained([candidates[index] for index in chosen])
    if len(networks) < MIN_LABELS:
        raise EvitNasError(
            f"only {len(networks)} networks could be trained, a predictor needs {MIN_LABELS}. What went wrong with the "
            "others is said above; another --data or --space may help."
        )
    table = LabelTable(data=data.name, recipe=wish.recipe, device=str(device.conditions), networks=tuple(networks))
    table.save(path)
    return table


def _trainings(labels: Labels) -> dict[str, tuple[Training, ...]]:
    """Key of the network -> its trainings, in the order of their seeds."""
    found: dict[str, tuple[Training, ...]] = {}
    for (key, seed), label in sorted(labels.known().items(), key=lambda item: item[0]):
        found[key] = (*found.get(key, ()), Training(seed=seed, score=label.score, seconds=label.seconds))
    return found


def _known(networks: Sequence[TrainedNetwork]) -> tuple[np.ndarray, np.ndarray]:
    """(n, d) features, and (n,) minus the mean cross-entropies."""
    losses = [np.mean([training.score.cross_entropy for training in network.trainings]) for network in networks]
    return features_of([network.arch for network in networks], INPUTS), -np.array(losses)


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


def _plan(labels: Labels, settings: SearchSettings, device: Device, watch: Watcher) -> tuple[list[Timed], list[Timed]]:
    """The first networks to train, measured, and candidates for the others, by predicted latency; chosen once.

    What other runs have trained comes first, and counts.
    """
    path = labels.folder / "candidates.json"
    if not path.exists():
        start = _adopted(labels, settings, device, watch)
        slices_ms = [share * settings.targets[0].budget_ms for share in SLICES]
        wanted = max(round(START * settings.accuracy.labels), MIN_LABELS) - len(start)
        if wanted > 0:
            watch.note(f"looking for {wanted} architectures of {', '.join(f'{ms:.2g}' for ms in slices_ms)} ms")
            found = sliced_pool(
                device,
                settings.space,
                slices_ms,
                wanted,
                settings.seed,
                lambda done: watch.step("architectures in the slices", done, wanted),
                watch.note,
            )
            start += [(sliced.arch, sliced.latency.median_ms) for sliced in found]
        plan = {"start": _plain(start), "candidates": _plain(_random(settings, device, slices_ms))}
        labels.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(plan))
    read = json.loads(path.read_text())
    start, candidates = (
        [(ArchConfig.model_validate(arch), float(ms)) for arch, ms in read[name]] for name in ("start", "candidates")
    )
    return start, candidates


def _adopted(labels: Labels, settings: SearchSettings, device: Device, watch: Watcher) -> list[Timed]:
    """The networks of this space that other runs have trained and that keep the budget here, measured."""
    for name in settings.accuracy.labels_from:
        labels.adopt(_journal_of(Path(name)))
    archs = {key: label.arch for (key, _), label in labels.known().items() if label.arch in settings.space}
    found: list[Timed] = []
    for done, arch in enumerate(archs.values(), start=1):
        watch.step("trained networks of other runs", done, len(archs))
        try:
            latency, _ = device.measure(arch, Protocol())
        except MeasurementError as error:
            if error.kind == "lost link":
                raise
            watch.note(f"left out: {arch.key}: {error}")
            continue
        Table(device.context(), arch).add(arch, latency)
        if latency.median_ms <= settings.targets[0].budget_ms:
            found.append((arch, latency.median_ms))
    if settings.accuracy.labels_from:
        watch.note(f"{len(found)} trained networks taken over from {', '.join(settings.accuracy.labels_from)}")
    return found


def _random(settings: SearchSettings, device: Device, slices_ms: Sequence[float]) -> list[Timed]:
    """Random architectures whose predicted latency lies in the upper slices."""
    predictor = fit(Table(device.context(), settings.space).samples())
    if predictor is None:  # too few were measured: only the start is trained
        return []
    rng, found = random.Random(settings.seed), dict[str, Timed]()
    for _ in range(MAX_DRAWS):
        archs = [settings.space.sample(rng) for _ in range(CANDIDATES)]
        for arch, ms in zip(archs, predictor.predict_ms(archs).tolist(), strict=True):
            if slice_of(ms, slices_ms[1:]) is not None:
                found[arch.key] = (arch, ms)
        if len(found) >= CANDIDATES:
            break
    return list(found.values())[:CANDIDATES]


def _plain(archs: Sequence[Timed]) -> list[list[Any]]:
    return [[arch.model_dump(mode="json"), ms] for arch, ms in archs]


def _journal_of(run: Path) -> Journal:
    path = run / "labels" / "labels.jsonl"
    if not path.exists():
        raise UsageError(f"{run} has no trained networks (no {path}); labels come from runs with --accuracy predictor.")
    return Journal(path)
