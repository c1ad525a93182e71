"""What a search evaluates next, round by round: first the pool, then what a sampler or a screening proposes.

A screening needs predicted latencies. It begins once there are some: the rest of the pool is then left.

The proposals of a round are a function of the rounds before it (and of the seed) alone. So a resumed search makes the
same ones again, skips those on record and goes on; and a round can be proposed while the one before it is evaluated.
Each round is asked of an in-memory study of its own, which holds copies of the earlier trials: Optuna writes every
parameter of a proposal to its storage, some 40 commits a trial, and a trial that was running when the process died
stays RUNNING for ever and biases TPE. Only finished trials are ever recorded.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.config import SearchSettings
from evit_nas.latency.yardstick import Units
from evit_nas.searching.attributes import TrialAttributes
from evit_nas.searching.objectives import directions
from evit_nas.searching.samplers import make, own_name
from evit_nas.searching.storage import for_samplers
from evit_nas.searching.units import after, restated

TOGETHER = 4  # proposals in a round of the pool or of a sampler, if the settings say nothing else
SCREENED = 16  # best candidates of a screening, measured before the next one
MAX_POOL_DRAWS = 50  # random draws for each place in the pool, in a space with few distinct networks

Pool = Sequence[tuple[ArchConfig, str]]
"""Architectures with where they come from."""

Screening = Callable[[Sequence[FrozenTrial], int, Units], list[ArchConfig]]
"""From the trials before a round, its number and its units: the architectures that are worth a measurement; may be
none."""


def pool_of(settings: SearchSettings) -> Pool:
    """What a search evaluates first: the presets that the space holds, then distinct random architectures."""
    space = settings.space
    presets = [(space.adapted(ArchConfig.preset(name)), name) for name in PRESETS]
    pool = {arch.key: (arch, name) for arch, name in presets if arch in space}
    wanted, rng = len(pool) + settings.pool, random.Random(settings.seed)
    for _ in range(MAX_POOL_DRAWS * settings.pool):
        if len(pool) == wanted:
            break
        arch = space.sample(rng)
        pool.setdefault(arch.key, (arch, "random"))
    return list(pool.values())


@dataclass(frozen=True)
class Round:
    """Proposals to evaluate in order; each is told to the study that it was asked of."""

    study: optuna.Study
    proposals: list[tuple[optuna.Trial, ArchConfig]]
    units: Units
    """By which milliseconds are said while it is evaluated."""

    def finish(self, trial: optuna.Trial, values: Sequence[float] | None) -> FrozenTrial:
        """The trial as it goes on record; None is a failure, whose reason is among its attributes."""
        return self.study.tell(trial, values, state=None if values else TrialState.FAIL)


class Rounds:
    """Makes the rounds of one search.

    Args:
        settings: space, objectives, sampler and seed.
        pool: what is evaluated first.
        screening: proposes in the sampler's stead, as long as it finds something.
        units: by which milliseconds are said in the first round.
        ahead: how many rounds are proposed before the one before them is told: one where candidates are dear, so that
            workers can begin with it. They may or may not be there, the proposals are the same.
    """

    def __init__(
        self,
        settings: SearchSettings,
        pool: Pool,
        screening: Screening | None,
        ahead: int,
        units: Units = MappingProxyType({}),
    ) -> None:
        self._settings, self._pool, self._screening, self._ahead = settings, pool, screening, ahead
        self._units = units
        self._together = settings.together or TOGETHER

    def follow(self, record: optuna.Study, first: int, expect: Callable[[ArchConfig], None]) -> Iterator[Round]:
        """The rounds from number `first` on; whoever takes one puts its trials on record before taking the next.

        Args:
            record: holds the trials of all rounds before `first`, and perhaps some of that one.
            first: number of a round.
            expect: told of every proposal that is not on record as soon as it is made.
        """
        made: deque[Round] = deque()
        for number in itertools.count(first):
            # rounds in `made` count as proposals, whatever of them is on record: a resumed search goes on alike
            on_record = record.get_trials(deepcopy=False)
            earlier = [trial for trial in on_record if TrialAttributes(trial).round < number - len(made)]
            asked = [trial for waiting in made for trial, _ in waiting.proposals]
            made.append(self.make(number, [*earlier, *asked]))
            evaluated = {TrialAttributes(trial).key for trial in on_record}  # those that failed are not tried again
            for _, arch in made[-1].proposals:
                if arch.key not in evaluated:
                    expect(arch)
            if len(made) > self._ahead:
                yield made.popleft()

    def make(self, number: int, earlier: Sequence[optuna.Trial | FrozenTrial]) -> Round:
        """The round with that number, counted from 0, after the trials of all rounds before it."""
        told = number - self._ahead  # the rounds before this one have their values
        finished = [t for t in earlier if isinstance(t, FrozenTrial) and TrialAttributes(t).round < told]
        pending = earlier[len(finished) :]
        # `_ask` sets the sampler that proposes; what is enqueued needs none
        study = optuna.create_study(directions=directions(self._settings), sampler=optuna.samplers.RandomSampler())
        units = after(finished, self._units)
        study.add_trials([restated(for_samplers(trial), units, self._settings) for trial in finished])
        study.add_trials([_placeholder(trial) for trial in pending])
        known = {TrialAttributes(trial).key for trial in earlier}
        wanted = self._wanted(number, finished, known, units)
        return Round(study, [self._ask(study, number, arch, origin) for arch, origin in wanted], units)

    def _ask(
        self, study: optuna.Study, number: int, arch: ArchConfig | None, origin: str
    ) -> tuple[optuna.Trial, ArchConfig]:
        """A trial for `arch`, or for what the sampler proposes."""
        space, settings = self._settings.space, self._settings
        if arch is not None:
            study.enqueue_trial(space.params(arch))
        else:
            told = len(study.get_trials(deepcopy=False))  # those of this round too: each proposal has its own seed
            study.sampler = make(settings.sampler, seed=settings.seed, told=told, space=space)
        trial = study.ask()
        proposed = space.suggest(trial)
        on_record = TrialAttributes(trial)
        on_record.key, on_record.arch, on_record.round, on_record.origin = proposed.key, proposed, number, origin
        return trial, proposed

    def _wanted(
        self, number: int, finished: Sequence[FrozenTrial], known: set[str], units: Units
    ) -> Iterator[tuple[ArchConfig | None, str]]:
        """What the round holds; None leaves the choice to the sampler."""
        untried = [(arch, origin) for arch, origin in self._pool if arch.key not in known]
        papers = [(arch, origin) for arch, origin in untried if origin in PRESETS]
        if papers:
            yield from papers[: self._together]
        elif screened := self._screening(finished, number, units) if self._screening else []:
            yield from ((arch, "screening") for arch in screened)
        elif untried:  # the random ones: what predictions are learnt from, and no more of them than that takes
            yield from untried[: self._together]
        else:
            yield from [(None, own_name(self._settings.sampler))] * self._together


def _placeholder(trial: optuna.Trial | FrozenTrial) -> FrozenTrial:
    """Stands for a trial in progress: samplers learn nothing from it but that its architecture is taken."""
    taken = create_trial(state=TrialState.FAIL, params=trial.params, distributions=trial.distributions)
    TrialAttributes(taken).key = TrialAttributes(trial).key
    return taken
