"""The search loop: feasibility, a judge of accuracy, rounds of candidates, and the strict re-measurement of the front.

Optuna proposes (`rounds.py`); its storage in the run folder is the record. Only finished trials are recorded, each in
one step, so there is never half a trial on disk. Facts about Optuna 5 that shape this file:

* `best_trials` repeats architectures and trusts hurried latencies: fronts come from `front.py`.
* A constraint must be set on every trial, before it is told.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import optuna

from evit_nas.config import SearchSettings
from evit_nas.latency import Device, open_device
from evit_nas.runs import Run
from evit_nas.searching.attributes import StudyAttributes, TrialAttributes
from evit_nas.searching.certify import certify
from evit_nas.searching.evaluate import Evaluator
from evit_nas.searching.feasibility import Feasibility, check_sizes, feasibility
from evit_nas.searching.forecast import Forecasts
from evit_nas.searching.judge import Judge
from evit_nas.searching.judges import check_sources, judge_of
from evit_nas.searching.progress import Progress
from evit_nas.searching.record import Front, check_same_conditions, journal_of, load_front
from evit_nas.searching.rounds import Pool, Rounds, pool_of
from evit_nas.searching.samplers import AUTO
from evit_nas.searching.score_card import make_card
from evit_nas.searching.status import Watcher
from evit_nas.searching.storage import for_dashboards, open_study
from evit_nas.searching.trials import Trials
from evit_nas.searching.units import adopt

if TYPE_CHECKING:
    from evit_nas.searching.parallel import Cluster


class Search:
    """One search in one run folder; `run()` takes it from wherever it stands to the written front."""

    def __init__(self, run: Run, watcher: Watcher) -> None:
        self._run, self._watch, self._settings = run, watcher, run.settings

    def run(self) -> Front:
        """Searches to the total of trials and writes the certified front, and the card of its score.

        Raises:
            UsageError: a device cannot be had, or what the score is taken from cannot be used.
            Infeasible: no architecture of the space keeps the budget on the device.
            RunError: the run was begun under conditions, or with a judge, that this one would not compare with.
        """
        settings, journal = self._settings, journal_of(self._run)
        with (
            open_cluster(self._run, self._watch) as cluster,
            open_devices(settings, cluster) as devices,
            open_study(self._run) as record,
            Evaluator(devices, journal, settings.seed, _workers(settings), cluster) as evaluator,
        ):
            evaluator.repair()
            evaluator.units = StudyAttributes(record).units
            # what needs no measurement comes first: a refused search has measured nothing
            check_same_conditions(record, [device.context() for device in devices], self._run)
            check_sizes(settings)
            check_sources(settings, self._run.path / "labels", self._watch.note, self._watch.step)
            found = feasibility(evaluator, settings, self._watch.note)
            if not evaluator.units:  # a resumed search goes on by those that its last round was told by
                adopt(record, evaluator.seen_units())
                evaluator.units = StudyAttributes(record).units
            if self._run.new:  # from here on there is something to go on with
                self._watch.note(f"run folder: {self._run.path}")
            self._announce(found)
            pool = pool_of(settings)
            judge = judge_of(self._run, evaluator, record, pool, self._watch, cluster)
            forecasts = Forecasts(devices, settings, self._run.path, self._watch.note)
            self._loop(record, evaluator, judge, forecasts, pool)
            evaluator.rest()  # the rounds ahead, which nobody needs any more, would disturb what is measured now
            certify(self._run, record, evaluator, judge, self._watch)
        make_card(self._run)
        return load_front(self._run)

    def _announce(self, found: Feasibility) -> None:
        stat = self._settings.budget_stat
        for index, target in enumerate(self._settings.targets):
            ms = {name: latencies[index].stat_ms(stat) for name, latencies in found.presets.items()}
            within = [name for name in ms if ms[name] <= target.budget_ms]
            keep = "keep" if len(within) > 1 else "keeps"
            end = found.largest[index].said(stat) if found.largest else "what cannot be measured"
            self._watch.note(
                f"the space spans {found.smallest[index].said(stat)} to {end} on {target.device}; "
                f"of the paper's networks {', '.join(within) or 'none'} {keep} {target.budget_ms:g} ms"
            )
            if found.largest and found.largest[index].stat_ms(stat) <= target.budget_ms:
                self._watch.note(
                    f"even the largest network keeps the budget on {target.device}: "
                    "a smaller budget or a larger space says more"
                )

    def _loop(self, record: optuna.Study, evaluator: Evaluator, judge: Judge, forecasts: Forecasts, pool: Pool) -> None:
        """Evaluates round after round until the search is over, from the last round on record on."""
        trials = Trials(self._settings, record, evaluator, judge, forecasts)
        on_record = {trial.number: trial for trial in record.get_trials(deepcopy=False)}
        first = max((TrialAttributes(trial).round for trial in on_record.values()), default=0)
        screened = trials.screened if self._settings.sampler == AUTO and judge.predicts else None
        units = TrialAttributes(on_record[0]).units if on_record else evaluator.units  # of its first trial
        rounds = Rounds(self._settings, pool, screened, ahead=0 if judge.immediate or screened else 1, units=units)
        for trial in on_record.values():
            if TrialAttributes(trial).round < first:  # the others are learnt from in their turn below
                forecasts.learn(trial)
        progress = Progress(self._settings, record)
        if why := progress.over():
            self._end(record, why)
            return
        self._end(record, "")  # it goes on: why it ended before holds no more
        for current in rounds.follow(record, first, judge.expect):
            if current.units != evaluator.units:
                evaluator.units = current.units
                StudyAttributes(record).units = {**current.units}
                progress.restate()
            for asked, arch in current.proposals:
                told = on_record.get(asked.number)  # the round's study holds copies of all before, so numbers agree
                if told is None:
                    if why := progress.over():
                        self._end(record, why)
                        return
                    told = current.finish(asked, trials.values(asked, arch, progress))
                    record.add_trial(for_dashboards(told))
                    progress.add(told)
                    self._watch.update(progress.status())
                forecasts.learn(told)

    def _end(self, record: optuna.Study, why: str) -> None:
        """Says why nothing more is evaluated, also to whoever reads the record; nothing while the search goes on."""
        on_record = StudyAttributes(record)
        if why != on_record.ended:
            on_record.ended = why
        if why:
            self._watch.note(why)


def _workers(settings: SearchSettings) -> int:
    """Trainings need a process of one thread, or they would not come to the same on every machine."""
    return max(settings.workers, 1) if settings.accuracy.method in ("short", "supernet") else settings.workers


@contextmanager
def open_cluster(run: Run, watch: Watcher) -> Iterator[Cluster | None]:
    """Ray, for as long as a search takes; None for a search on this machine alone."""
    if run.settings.engine == "local":
        yield None
        return
    from evit_nas.searching.parallel import Cluster

    with Cluster(run.settings, run.path, watch.note) as cluster:
        watch.note(f"Ray runs {cluster.concurrent} trials at a time; what it says is in {run.path / 'ray.log'}")
        yield cluster


@contextmanager
def open_devices(settings: SearchSettings, cluster: Cluster | None = None) -> Iterator[list[Device]]:
    """Every device of a search, ready to measure: those of the cluster, or of this machine, closed at the end."""
    if cluster is not None:
        yield [*cluster.devices]
        return
    with ExitStack() as stack:
        yield [stack.enter_context(open_device(target.conditions)) for target in settings.targets]
