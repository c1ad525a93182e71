"""Samplers: what a search proposes next. To add one: a function, and a line in SAMPLERS.

A search makes its sampler anew for each proposal (`make`), because Optuna stores no sampler's state. So every sampler
here is a function of the trials on record, the seed and the number of trials, and a resumed search proposes what an
uninterrupted one does. Facts about Optuna 5 that shape this file:

* No sampler avoids what it proposed before, and different answers may mean the same network. `Unrepeated` avoids both.
* NSGA-II and III tag the trials they proposed themselves with a generation; warm starts get no tag and never become
  parents. Selected parents are kept by id, and come back in another order than they were chosen in. `_InOrder` counts
  generations instead, and sorts.
* NSGA-III selects by chance, and QMC counts its own proposals: both would go on differently after a resume.
* The Gaussian process refuses trials with unequal numbers of constraints, and reads them by position: every trial sets
  the same ones, in the same order.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import (
    BaseGASampler,
    BaseSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from evit_nas.choices import FixedTrial
from evit_nas.errors import UsageError, did_you_mean
from evit_nas.pareto import non_dominated
from evit_nas.searching.attributes import TrialAttributes
from evit_nas.space import SearchSpace

MAX_STEPS = 100  # away from a known architecture, one dimension each: then the space around it is used up
DEPTH = 50  # generations that may ask for one another: a few hundred calls, of the thousand that Python allows
GENERATION = 20  # trials in a generation of NSGA-II and III: some ten generations in 200 trials
DIVISIONS = 5  # of each objective in NSGA-III: 21 reference points for three objectives, about one a parent
AUTO = "auto"  # a search's own choice: screening where score and latency are predicted, else the first in SAMPLERS
LIVING = 50  # youngest trials from which evolution takes its parents
TOURNAMENT = 10  # of them compete to become one
CROSSOVER = 0.5  # share of the children that have two parents

Distributions = dict[str, BaseDistribution]
Params = dict[str, Any]


@dataclass(frozen=True)
class Turn:
    """The moment of one proposal: all that a sampler depends on besides the record."""

    seed: int
    """Of the search."""
    told: int
    """Number of trials on record."""

    @property
    def own_seed(self) -> int:
        """A seed for this proposal alone; searches with neighbouring seeds share none."""
        # a prime above the most trials that a search may have, a million
        return (self.seed * 1_000_003 + self.told) % 2**32


def make(name: str, *, seed: int, told: int, space: SearchSpace) -> BaseSampler:
    """The sampler for one proposal; it avoids the architectures whose keys are on record (user attribute "key").

    Args:
        name: in SAMPLERS, or AUTO.
        seed: of the search.
        told: number of trials on record, failed ones and repeats included: the sampler's clock.
        space: that all trials of the study are from.

    Raises:
        UsageError: no sampler has that name.
    """
    check_sampler(name)
    turn = Turn(seed, told)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return Unrepeated(SAMPLERS[own_name(name)](turn), space, turn.own_seed)


def _tpe(turn: Turn) -> BaseSampler:
    """Tree-structured Parzen estimator over all dimensions together (Falkner et al., arXiv 1807.01774)."""
    return TPESampler(seed=turn.own_seed, multivariate=True, n_startup_trials=0)  # the search's pool is the start-up


def _nsga2(turn: Turn) -> BaseSampler:
    """NSGA-II: survivors by non-domination, then by crowding distance (Deb et al., 2002)."""
    return Nsga2(population_size=GENERATION, seed=turn.own_seed)


def _nsga3(turn: Turn) -> BaseSampler:
    """NSGA-III: survivors by non-domination, then by reference points (Deb and Jain, 2014): for many objectives."""
    return Nsga3(turn.own_seed)


def _gp(turn: Turn) -> BaseSampler:
    """Gaussian processes and expected hypervolume improvement (Daulton et al., arXiv 2006.05078)."""
    return GPSampler(seed=turn.own_seed, warn_independent_sampling=False)


def _evolution(turn: Turn) -> BaseSampler:
    """Regularised evolution (Real et al., arXiv 1802.01548) with Pareto tournaments."""
    return Evolution(turn.own_seed)


def _qmc(turn: Turn) -> BaseSampler:
    """A scrambled Sobol sequence: chance that leaves fewer gaps."""
    return Sobol(turn)


def _random(turn: Turn) -> BaseSampler:
    """Chance: what every other sampler has to beat."""
    return RandomSampler(seed=turn.own_seed)


SAMPLERS: dict[str, Callable[[Turn], BaseSampler]] = {
    "tpe": _tpe,
    "nsga2": _nsga2,
    "nsga3": _nsga3,
    "gp": _gp,
    "evolution": _evolution,
    "qmc": _qmc,
    "random": _random,
}


def check_sampler(name: str) -> None:
    """
    Raises:
        UsageError: no sampler has that name.
    """
    if name not in (known := (AUTO, *SAMPLERS)):
        raise UsageError(f"no sampler is called '{name}'. {did_you_mean(name, known)}")


def own_name(name: str) -> str:
    """What proposes where nothing is screened: a name in SAMPLERS."""
    return next(iter(SAMPLERS)) if name == AUTO else name


class Unrepeated(BaseSampler):
    """Another sampler's proposals; from one that is known already it walks on, a dimension at a time, to a new one.

    The walk is cheap and stays near what was wanted; asking again would cost a model's fit, and a model
    that likes an architecture likes it twice.
    """

    def __init__(self, sampler: BaseSampler, space: SearchSpace, seed: int) -> None:
        self._sampler, self._space = sampler, space
        self._rng, self._chance = random.Random(seed), RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Distributions:
        return _dimensions(study)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Distributions) -> Params:
        if not search_space:
            return {}
        params = self._sampler.sample_relative(study, trial, search_space)
        for name, distribution in search_space.items():
            if name not in params:  # chance answers none here, nor does a Gaussian process in its first ten trials
                params[name] = self._sampler.sample_independent(study, trial, name, distribution)
        earlier = (one for one in study.get_trials(deepcopy=False) if one.number != trial.number)
        known = {TrialAttributes(one).key for one in earlier}
        for _ in range(MAX_STEPS):
            if self._space.suggest(FixedTrial(params)).key not in known:
                break
            name = self._rng.choice(list(search_space))
            params[name] = self._chance.sample_independent(study, trial, name, search_space[name])
        return params

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        return self._sampler.sample_independent(study, trial, name, distribution)


class _InOrder(BaseGASampler):
    """Generations as the trials come, whoever proposed them: warm starts are parents, and nothing is kept in tags."""

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        return len(_complete(study)) // GENERATION

    def get_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        return _complete(study)[generation * GENERATION : (generation + 1) * GENERATION]

    def get_parent_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        for earlier in range(DEPTH, generation, DEPTH):  # each asks for the one before it, as far as none is known
            super().get_parent_population(study, earlier)
        return sorted(super().get_parent_population(study, generation), key=lambda trial: trial.number)


class Nsga2(_InOrder, NSGAIISampler):
    """NSGA-II over generations in order."""


class Nsga3(_InOrder, NSGAIIISampler):
    """NSGA-III over generations in order; chance decides in their selection by their number alone."""

    def __init__(self, seed: int) -> None:
        super().__init__(population_size=GENERATION, dividing_parameter=DIVISIONS, seed=seed)

    def select_parent(self, study: Study, generation: int) -> list[FrozenTrial]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            chooser = Nsga3(seed=generation)
        return NSGAIIISampler.select_parent(chooser, study, generation)


class Sobol(QMCSampler):
    """The point of a Sobol sequence whose number is that of the trials on record."""

    def __init__(self, turn: Turn) -> None:
        super().__init__(scramble=True, seed=turn.seed)  # not its own seed: all points are of one scrambled sequence
        self._told = turn.told

    def _find_sample_id(self, study: Study, search_space: Distributions) -> int:
        return self._told


class Evolution(BaseSampler):
    """Children of the youngest trials: one dimension of a parent drawn anew, or each stage from one of two parents.

    A parent has won a tournament: it violates the constraints least, and of those that keep them it is not beaten.
    """

    def __init__(self, seed: int) -> None:
        self._rng, self._chance = random.Random(seed), RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> Distributions:
        return _dimensions(study)

    def sample_relative(self, study: Study, trial: FrozenTrial, search_space: Distributions) -> Params:
        # `non_dominated`, which decides tournaments, takes finite values alone
        living = [trial for trial in _complete(study) if np.isfinite(trial.values).all()][-LIVING:]
        if not living or not search_space:
            return {}
        child = self._inherited(study, living, search_space)
        if self._rng.random() < CROSSOVER:
            other = self._inherited(study, living, search_space)
            stages = sorted({_stage(name) for name in child})
            from_other = {stage for stage in stages if self._rng.random() < 0.5}
            return child | {name: answer for name, answer in other.items() if _stage(name) in from_other}
        child.pop(self._rng.choice(list(search_space)), None)  # to be sampled independently
        return child

    def sample_independent(self, study: Study, trial: FrozenTrial, name: str, distribution: BaseDistribution) -> Any:
        return self._chance.sample_independent(study, trial, name, distribution)

    def _inherited(self, study: Study, living: Sequence[FrozenTrial], search_space: Distributions) -> Params:
        """The answers of a parent to what is asked now; a part of it may be fixed or bounded otherwise."""
        parent = self._winner(study, living)
        asked = (name for name in parent.params if parent.distributions[name] == search_space.get(name))
        return {name: parent.params[name] for name in asked}

    def _winner(self, study: Study, living: Sequence[FrozenTrial]) -> FrozenTrial:
        rivals = self._rng.sample(living, min(TOURNAMENT, len(living)))
        least = min(map(_violation, rivals))
        rivals = [trial for trial in rivals if _violation(trial) == least]
        signs = [-1 if direction is StudyDirection.MAXIMIZE else 1 for direction in study.directions]
        unbeaten = non_dominated(np.array([trial.values for trial in rivals]) * signs)
        return self._rng.choice([trial for trial, kept in zip(rivals, unbeaten, strict=True) if kept])


def _dimensions(study: Study) -> Distributions:
    """What every trial of the study is asked; nothing is known of it in the first one."""
    return dict(sorted(study.get_trials(deepcopy=False)[0].distributions.items()))  # sorted, as Optuna's own are


def _complete(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def _violation(trial: FrozenTrial) -> float:
    return sum(max(beyond, 0.0) for beyond in trial.constraints.values())


def _stage(name: str) -> str:
    return name.partition(".")[0]
