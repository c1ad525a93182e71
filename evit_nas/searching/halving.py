"""The judge that trains every candidate briefly, and the rule by which it goes on with the best of them.

Asynchronous successive halving (ASHA, arXiv 1810.05934), among networks of about the same latency: over a wide range
the slowest win, and what has to be chosen is the best under a budget. It is decided in the order of the trials, not in
that in which trainings happen to end: so a search on one machine, one on a cluster and a resumed one go on with the
same networks. What is waited for is the rung of earlier trials, which other workers are at meanwhile.

What was stopped early is on record with the value of its rung and a limit that it does not keep, `unfinished`: a
sampler ranks it behind what was trained to the end, and it never enters a front.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable

from optuna.trial import FrozenTrial

from evit_nas.accuracy import RungEstimate
from evit_nas.arch import ArchConfig
from evit_nas.data.cache import load_dataset
from evit_nas.searching.attributes import StudyAttributes, TrialAttributes
from evit_nas.searching.front import NEAR
from evit_nas.searching.judge import Judge, JudgeContext
from evit_nas.searching.labelling.labels import Job, Label, Labels, check_images
from evit_nas.stats import binomial_error

REDUCTION = 3  # one of so many goes on to the next rung
SLICE = 1.5  # latencies in a slice differ by less than this factor


class Halving:
    """Which networks go on to the next rung: a function of those before them."""

    def __init__(self, before: Iterable[RungEstimate] = ()) -> None:
        self._losses: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        for trained in before:
            self.count(trained)

    def count(self, trained: RungEstimate) -> None:
        """Holds a network against those that come after it."""
        for rung, loss in enumerate(trained.losses):
            self._losses[trained.slice, rung].append(loss)

    def goes_on(self, slice_: int, rung: int, loss: float) -> bool:
        """Whether a network is among the best third of its slice at that rung so far; the first one is."""
        losses = [*self._losses[slice_, rung], loss]
        return sum(other < loss for other in losses) < max(len(losses) // REDUCTION, 1)


class ShortTrainings(Judge):
    """Trains each candidate, as far as it is worth it; what was trained is never trained again."""

    def __init__(self, context: JudgeContext) -> None:
        settings, cluster = context.run.settings, context.cluster
        self._evaluator, self._seed, self._targets = context.evaluator, settings.seed, settings.targets
        wish = settings.accuracy
        assert wish.data is not None
        data = load_dataset(wish.data, wish.recipe.image_size)
        on_record = StudyAttributes(context.record)
        on_record.images = on_record.images or data.digest  # a run of up to 0.3 goes on with those it finds
        check_images(wish.data, on_record.images, data.digest)
        place = cluster.checkpoints if cluster else None
        self._labels = Labels(context.labels, wish.data, data.digest, wish.recipe, place)
        self._labels.open()
        self._validation_images = len(data.val)
        self._rungs = range(wish.recipe.last_rung + 1)
        self._known = {
            (key, rung): label for rung in self._rungs for (key, _), label in self._labels.known(rung).items()
        }
        self._first = 0 if wish.scheduler == "asha" else wish.recipe.last_rung
        trials = context.record.get_trials(deepcopy=False)
        found = (TrialAttributes(trial).trained for trial in trials)  # failed ones too: others were held against them
        self._halving = Halving(trained for trained in found if trained is not None)
        size = f"{wish.recipe.image_size} px at {100 * wish.recipe.width:.0f} % of its width"
        self.origin = f"accuracy in percent after {wish.recipe.epochs} epochs on {data.name}, trained at {size}"

    def expect(self, arch: ArchConfig) -> None:
        job = self._job(arch, self._first)
        if (arch.key, job.rung) not in self._known:
            self._evaluator.begin(_name(job), self._labels.training(job))

    def estimate(self, arch: ArchConfig, latency_ms: float | None = None) -> RungEstimate:
        trained = self._train(arch, latency_ms, self._rungs[-1])
        if latency_ms is not None:  # the paper's networks, asked for at the end, compete with none
            self._halving.count(trained)
        return trained

    def again(self, arch: ArchConfig, trial: FrozenTrial) -> RungEstimate:
        on_record = TrialAttributes(trial).trained
        rungs = len(on_record.losses) if on_record else len(self._rungs) - self._first
        return self._train(arch, None, self._first + rungs - 1)

    def _train(self, arch: ArchConfig, latency_ms: float | None, last: int) -> RungEstimate:
        """To the end of rung `last`, or as far as it is worth it among those of the same latency."""
        budget_ms = self._targets[0].budget_ms
        # -1 ends at the budget, 0 begins there
        slice_ = math.floor(math.log((latency_ms or budget_ms) / budget_ms, SLICE))
        losses, devices = [], set()
        for rung in self._rungs[self._first : last + 1]:
            label = self._label(self._job(arch, rung))
            losses.append(label.score.cross_entropy)
            devices.add(label.device)
            if rung == last or latency_ms is None:
                continue
            promising = self._halving.goes_on(slice_, rung, losses[-1])
            if not promising or latency_ms > NEAR * budget_ms:
                self._labels.give_up(self._job(arch, rung))
                break
        return RungEstimate(
            value=(value := 100 * label.score.accuracy),
            method="short",
            slice=slice_,
            losses=tuple(losses),
            unfinished=1 - (rung + 1) / len(self._rungs),
            device=" and ".join(sorted(devices)),
            error=binomial_error(value, self._validation_images),
        )

    def _label(self, job: Job) -> Label:
        found = self._known.get((job.arch.key, job.rung))
        if found is None:
            found = self._evaluator.result(_name(job), self._labels.training(job))
            self._labels.keep(job, found)
            self._known[job.arch.key, job.rung] = found
        return found

    def _job(self, arch: ArchConfig, rung: int) -> Job:
        return Job(arch, self._seed, rung)


def _name(job: Job) -> str:
    return f"the training of {job.arch.key} to rung {job.rung}"
