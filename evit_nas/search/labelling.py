"""Which networks to train for a predictor of accuracy: some all over the budget, then those that may be the best.

Few labels are enough if they lie where the choice is made. The first lie in slices below the budget. The others come
in batches: each posterior draw of the predictor (Thompson sampling) names the network it believes in, which is trained
next. It ends when enough are trained, or when the best few have stayed the best.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evit_nas.accuracy.features import table as features_of
from evit_nas.accuracy.labels import Job, Label, Labels
from evit_nas.accuracy.learned import INPUTS
from evit_nas.accuracy.predictor import AccuracyPredictor
from evit_nas.accuracy.table import LabelTable, TrainedNetwork, Training
from evit_nas.arch import ArchConfig
from evit_nas.config import SearchSettings
from evit_nas.data import load_dataset
from evit_nas.errors import EvitNasError, UsageError
from evit_nas.latency import Device
from evit_nas.latency.predictor import Table, fit
from evit_nas.runs import Journal, write_atomically
from evit_nas.search.slices import slice_of, sliced_pool
from evit_nas.search.status import Watcher

SLICES = (0.45, 0.7, 0.9)  # middles, as shares of the budget
START = 0.6  # share of the labels that is spread over the slices
BATCH = 4  # networks trained between two fits
CANDIDATES = 1000  # random networks in the slices that draws choose from
TOP, STANDS = 5, 2  # the best few, and the fits in a row after which they count as standing
MAX_DRAWS = 200  # random networks for each candidate


def collect_labels(folder: Path, settings: SearchSettings, device: Device, watch: Watcher) -> LabelTable:
    """Trains the networks that the settings ask for, and goes on where an earlier call was interrupted.

    Args:
        folder: where labels, checkpoints and the resulting table are kept.
        settings: data, recipe, number of labels, workers, seed, and the budget on the first device.
        device: that device.
        watch: told what happens.

    Raises:
        UsageError: the data cannot be used, or a run in `labels_from` has no labels.
        EvitNasError: a training process died, or too few networks could be trained.
    """
    wish = settings.accuracy
    assert wish.data is not None
    data = load_dataset(wish.data, wish.recipe.image_size, seed=settings.seed, note=watch.note)
    labels = Labels(folder, wish.data, data.digest, wish.recipe)
    for name in wish.labels_from:
        taken = labels.adopt(_journal_of(Path(name)))
        watch.note(f"{taken} trained networks taken over from {name}")
    start, candidates = _candidates(folder, settings, device, watch)
    latency_ms = {arch.key: ms for arch, ms in (*start, *candidates)}
    found: dict[str, Label] = {key: label for (key, _), label in labels.known().items() if key in latency_ms}

    def train(archs: Sequence[ArchConfig]) -> None:
        def step(job: Job, label: Label) -> None:
            found[job.arch.key] = label
            watch.step(f"trained on {data.name}", len(found), wish.labels)

        labels.collect([Job(arch, settings.seed, wish.recipe.last_rung) for arch in archs], workers, step, watch.note)
        found.update({key: label for (key, _), label in labels.known().items() if key in latency_ms})

    workers = max(settings.workers, 1)
    watch.note(f"training up to {wish.labels} networks on {data.name}, {workers} at a time")
    train([arch for arch, _ in start[: wish.labels]])
    for archs in _batches(found, [arch for arch, _ in candidates], settings):
        train(archs)
    networks = tuple(
        TrainedNetwork(
            arch=label.arch,
            latency_ms=latency_ms[key],
            trainings=(Training(seed=label.seed, score=label.score, seconds=label.seconds),),
        )
        for key, label in found.items()
    )
    if len(networks) < 8:
        raise EvitNasError(f"only {len(networks)} networks could be trained, too few for a predictor.")
    table = LabelTable(data=data.name, recipe=wish.recipe, device=str(device.conditions), networks=networks)
    table.save(folder / "table.json")
    return table


def _batches(found: dict[str, Label], candidates: Sequence[ArchConfig], settings: SearchSettings) -> Any:
    """The networks to train next, batch by batch; the caller adds their labels to `found`."""
    rng, tops = np.random.default_rng(settings.seed), []
    features = features_of(candidates, INPUTS)
    while len(found) < settings.accuracy.labels:
        known = list(found.values())
        truth = np.array([-label.score.cross_entropy for label in known])
        predictor = AccuracyPredictor.fit(features_of([label.arch for label in known], INPUTS), truth)
        tops.append(set(np.argsort(-predictor.predict(features)[0])[:TOP].tolist()))
        if len(tops) > STANDS and all(top == tops[-1] for top in tops[-STANDS - 1 :]):
            return
        chosen: dict[str, ArchConfig] = {}
        for draw in predictor.sample(features, BATCH, rng):
            for index in np.argsort(-draw):
                arch = candidates[index]
                if arch.key not in found and arch.key not in chosen:
                    chosen[arch.key] = arch
                    break
        wanted = list(chosen.values())[: settings.accuracy.labels - len(found)]
        if not wanted:
            return
        before = len(found)
        yield wanted
        if len(found) == before:  # none of them could be trained
            return


Timed = tuple[ArchConfig, float]


def _candidates(
    folder: Path, settings: SearchSettings, device: Device, watch: Watcher
) -> tuple[list[Timed], list[Timed]]:
    """The first networks to train, measured, and candidates for the others, by predicted latency; chosen once."""
    path = folder / "candidates.json"
    if not path.exists():
        target = settings.targets[0]
        slices_ms = [share * target.budget_ms for share in SLICES]
        wanted = max(round(START * settings.accuracy.labels), 8)
        watch.note(f"looking for {wanted} architectures of {', '.join(f'{ms:.2g}' for ms in slices_ms)} ms")
        pool = sliced_pool(
            device,
            settings.space,
            slices_ms,
            wanted,
            settings.seed,
            lambda done: watch.step("architectures in the slices", done, wanted),
            watch.note,
        )
        start = [(sliced.arch, sliced.latency.median_ms) for sliced in pool]
        text = json.dumps({"start": _plain(start), "candidates": _plain(_random(settings, device, slices_ms))})
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    read = json.loads(path.read_text())
    start, others = (
        [(ArchConfig.model_validate(arch), float(ms)) for arch, ms in read[name]] for name in ("start", "candidates")
    )
    return start, others


def _random(settings: SearchSettings, device: Device, slices_ms: Sequence[float]) -> list[Timed]:
    """Random architectures whose predicted latency lies in the upper slices."""
    predictor = fit(Table(device.context(), settings.space).samples())
    if predictor is None:  # too few were measured: only the start is trained
        return []
    rng, found = random.Random(settings.seed), {}
    for _ in range(MAX_DRAWS):
        archs = [settings.space.sample(rng) for _ in range(CANDIDATES)]
        for arch, ms in zip(archs, predictor.predict_ms(archs), strict=True):
            if slice_of(float(ms), slices_ms[1:]) is not None:
                found[arch.key] = (arch, float(ms))
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
