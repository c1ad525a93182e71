"""The judges: what a search takes a candidate's accuracy from. To add one: a class, and a line in JUDGES."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna

from evit_nas.accuracy import Estimate
from evit_nas.accuracy.aggregate import RankAggregate
from evit_nas.arch import ArchConfig
from evit_nas.commands import command_line
from evit_nas.config import SearchSettings
from evit_nas.errors import MeasurementError, RunError, UsageError
from evit_nas.regime import default_regime
from evit_nas.runs import Run
from evit_nas.searching.attributes import StudyAttributes
from evit_nas.searching.evaluate import Evaluator
from evit_nas.searching.judge import Judge, JudgeContext
from evit_nas.searching.status import Watcher

if TYPE_CHECKING:
    from evit_nas.accuracy.learned import LearnedAccuracy
    from evit_nas.searching.parallel import Cluster


class ZeroCost(Judge):
    """Mean log rank of sizes and proxies in a random pool of the space."""

    origin = "a rank aggregate of sizes and zero-cost proxies within this run, not an accuracy"

    def __init__(
        self, evaluator: Evaluator, record: optuna.Study, pool: Sequence[tuple[ArchConfig, str]], watch: Watcher
    ) -> None:
        self._evaluator = evaluator
        on_record = StudyAttributes(record)
        stored = on_record.aggregate
        if stored is None:
            stored = on_record.aggregate = self._rank(pool, watch).to_json()
        self._aggregate = RankAggregate.from_json(stored)

    def _rank(self, pool: Sequence[tuple[ArchConfig, str]], watch: Watcher) -> RankAggregate:
        watch.note(f"scoring a pool of {len(pool)} architectures, against which the others will be ranked")
        scored = []
        for arch, _ in pool:
            self.expect(arch)
        for done, (arch, origin) in enumerate(pool, start=1):
            watch.step("pool", done, len(pool))
            try:
                scored.append(self._evaluator.proxies(arch))
            except (MeasurementError, RuntimeError, MemoryError) as error:
                why = error
                watch.note(f"left out of the pool: {origin} {arch.key}: {error}")
        if not scored:
            raise MeasurementError(f"none of the {len(pool)} architectures of the pool can be scored: {why}")
        return RankAggregate.fit(scored)

    def expect(self, arch: ArchConfig) -> None:
        self._evaluator.expect(arch)

    def estimate(self, arch: ArchConfig, latency_ms: float | None = None) -> Estimate:
        return Estimate(value=self._aggregate.score(self._evaluator.proxies(arch)), method="zero-cost")


class Learned(Judge):
    """Learned from trained networks, whether they came with the package or were trained in this run."""

    immediate = True

    def __init__(self, learned: LearnedAccuracy, method: str) -> None:
        self._learned, self._method = learned, method
        self.origin, self.digest = learned.origin, learned.digest

    def estimate(self, arch: ArchConfig, latency_ms: float | None = None) -> Estimate:
        value, low, high = (float(column[0]) for column in self._learned.intervals([arch]))
        return Estimate(value=value, low=low, high=high, method=self._method)

    def values(self, archs: Sequence[ArchConfig]) -> np.ndarray:
        return self._learned.values(archs)


def judge_of(
    run: Run,
    evaluator: Evaluator,
    record: optuna.Study,
    pool: Sequence[tuple[ArchConfig, str]],
    watch: Watcher,
    cluster: Cluster | None = None,
    labels: Path | None = None,
) -> Judge:
    """The judge that the settings name, prepared; one that trains each candidate keeps that in `labels`, or in the run.

    Raises:
        RunError: the run began with another judge, for example an earlier version of a table, or a table of as many
            networks with other results.
    """
    judge = JUDGES[run.settings.accuracy.method](
        JudgeContext(run, evaluator, record, pool, watch, cluster, labels or run.path / "labels")
    )
    on_record = StudyAttributes(record)
    before = on_record.judge
    if not before:
        on_record.judge = judge.origin
        watch.note(f"score: {judge.origin}")
    elif before != judge.origin:
        raise RunError(
            f"{run.path} cannot be continued here, its scores would not compare: they were {before}, here they would "
            f"be {judge.origin}. Start a new search instead; the front that was found stays as it is."
        )
    on_record.learned = on_record.learned or judge.digest  # a run of up to 0.3 goes on with what it finds
    if on_record.learned != judge.digest:
        raise RunError(
            f"{run.path} cannot be continued here, its scores would not compare: what they are learned from had the "
            f"digest {on_record.learned}, here it has {judge.digest} ({judge.origin}). Bring it back, or start a new "
            "search; the front that was found stays as it is."
        )
    return judge


def learned_of(run: Run) -> LearnedAccuracy | None:
    """What a run's score is learned from, as its search used it; None if its score is no learned one.

    Raises:
        UsageError: its networks have not been trained yet, or its table cannot be read.
    """
    from evit_nas.accuracy.learned import LearnedAccuracy
    from evit_nas.accuracy.table import LabelTable
    from evit_nas.searching.labelling.adaptive import TABLE

    wish = run.settings.accuracy
    if wish.method == "predictor":
        path = run.path / "labels" / TABLE
        if not path.exists():
            raise UsageError(f"{run.path} has not trained its networks yet: {command_line('resume', run.path)}")
        return LearnedAccuracy.of_table(LabelTable.load(path))
    if wish.method != "table":
        return None
    if wish.table is not None:
        return LearnedAccuracy.of_table(LabelTable.load(wish.table))
    return LearnedAccuracy.under(wish.regime or default_regime(run.settings.space.num_classes))


def check_sources(
    settings: SearchSettings,
    labels: Path,
    note: Callable[[str], None],
    step: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> None:
    """Reads what the judge will need, so that it is refused before anything is measured; images are decoded here.

    Args:
        settings: which judge, and what from.
        labels: the folder of what it has trained; what needs no images any more is not asked for them.
        note: told about the images.
        step: told how many of them are decoded.

    Raises:
        UsageError: the table, the images or a run with trained networks cannot be used.
    """
    wish = settings.accuracy
    if wish.table is not None:
        from evit_nas.accuracy.table import LabelTable

        LabelTable.load(wish.table)
    if wish.supernet is not None:
        from evit_nas.network.supernet import Supernet

        Supernet.load(Path(wish.supernet)).check_covers(settings.space)
    if wish.method in ("predictor", "short"):
        from evit_nas.data.cache import load_dataset
        from evit_nas.searching.labelling.adaptive import PLAN, TABLE, labels_of

        if not (labels / PLAN).exists():
            for run in wish.labels_from:
                labels_of(Path(run))
        if wish.data is not None and not (labels / TABLE).exists():
            channels = settings.space.in_channels
            train = load_dataset(
                wish.data, wish.recipe.image_size, channels=channels, note=note, step=step, workers=settings.workers
            ).train
            train.check_subset(min(wish.recipe.images, len(train)))


def _table(context: JudgeContext) -> Judge:
    learned = learned_of(context.run)
    assert learned is not None
    return Learned(learned, "table")


def _short(context: JudgeContext) -> Judge:
    from evit_nas.searching.halving import ShortTrainings

    return ShortTrainings(context)


def _supernet(context: JudgeContext) -> Judge:
    from evit_nas.searching.shared_weights import SharedWeights

    return SharedWeights(context)


def _predictor(context: JudgeContext) -> Judge:
    from evit_nas.accuracy.learned import LearnedAccuracy
    from evit_nas.searching.labelling.adaptive import collect_labels

    table = collect_labels(
        context.run.path / "labels", context.run.settings, context.evaluator.devices[0], context.watch, context.cluster
    )
    learned = LearnedAccuracy.of_table(table)
    for doubt in learned.doubts(table):
        context.watch.note(doubt)
    return Learned(learned, "predictor")


JUDGES: dict[str, Callable[[JudgeContext], Judge]] = {
    "table": _table,
    "predictor": _predictor,
    "short": _short,
    "supernet": _supernet,
    "zero-cost": lambda context: ZeroCost(context.evaluator, context.record, context.pool, context.watch),
}
