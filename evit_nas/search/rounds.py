"""What a search evaluates next, round by round: first the pool, then what a sampler or a screening proposes.

The proposals of a round are a function of the rounds before it (and of the seed) alone. So a resumed search makes the
same ones again, skips those on record and goes on; and a round can be proposed while the one before it is evaluated.
Each round is asked of an in-memory study of its own, which holds copies of the finished trials: Optuna writes every
parameter of a proposal to its storage, some 40 commits a trial, and a trial that was running when the process died
stays RUNNING for ever and biases TPE. Only finished trials are ever recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from evit_nas.arch import ArchConfig
from evit_nas.config import SearchSettings
from evit_nas.search.samplers import make

TOGETHER = 4  # proposals of a sampler in a round, where candidates are scored beside the measuring
SCREENED = 16  # best candidates of a screening, measured before the next one


@dataclass(frozen=True)
class Round:
    """Proposals to evaluate in order; each is told to the study that it was asked of."""

    number: int
    study: optuna.Study
    proposals: list[tuple[optuna.Trial, ArchConfig]]

    def finish(self, trial: optuna.Trial, values: Sequence[float] | None) -> FrozenTrial:
        """The trial as it goes on record; None is a failure, whose reason is among its attributes."""
        return self.study.tell(trial, values, state=None if values else TrialState.FAIL)


Screening = Callable[[Sequence[FrozenTrial], int], list[ArchConfig]]
"""From the trials before a round, and its number: the architectures that are worth a measurement; may be none."""


class Rounds:
    """Makes the rounds of one search.

    Args:
        settings: space, sampler and seed.
        directions: of the objectives.
        pool: what is evaluated first, with where it comes from.
        screening: proposes in the sampler's stead, as long as it finds something; None where candidates are dear.
        ahead: rounds that may be proposed before the one being evaluated is told.
    """

    def __init__(
        self,
        settings: SearchSettings,
        directions: Sequence[optuna.study.StudyDirection],
        pool: Sequence[tuple[ArchConfig, str]],
        screening: Screening | None,
        ahead: int,
    ) -> None:
        self._settings, self._space, self._directions = settings, settings.space, directions
        self._pool, self._screening, self.ahead = pool, screening, ahead

    def make(
        self, number: int, earlier: Sequence[FrozenTrial], pending: Sequence[optuna.Trial | FrozenTrial] = ()
    ) -> Round:
        """The round with that number.

        Args:
            number: counted from 0.
            earlier: the recorded trials of the rounds before it, without those that are pending.
            pending: the trials of the round before it, if that need not have been told yet.
        """
        study = optuna.create_study(directions=list(self._directions))
        study.add_trials(earlier)
        study.add_trials([_placeholder(trial) for trial in pending])
        known = {trial.user_attrs["key"] for trial in study.get_trials(deepcopy=False)}
        proposals = []
        for arch, origin in self._wanted(number, earlier, known):
            if arch is not None:
                study.enqueue_trial(self._space.params(arch))
            told = len(study.get_trials(deepcopy=False))
            study.sampler = make(self._settings.sampler, seed=self._settings.seed, told=told, space=self._space)
            trial = study.ask()
            proposed = self._space.suggest(trial)
            attributes = {"key": proposed.key, "arch": proposed.model_dump(mode="json"), "round": number}
            for name, value in (attributes | {"origin": origin}).items():
                trial.set_user_attr(name, value)
            proposals.append((trial, proposed))
        return Round(number, study, proposals)

    def _wanted(
        self, number: int, earlier: Sequence[FrozenTrial], known: set[str]
    ) -> Iterator[tuple[ArchConfig | None, str]]:
        """What the round holds; None leaves the choice to the sampler."""
        untried = [(arch, origin) for arch, origin in self._pool if arch.key not in known]
        if untried:
            yield from untried[:TOGETHER]
            return
        screened = self._screening(earlier, number) if self._screening else []
        fresh = [arch for arch in screened if arch.key not in known]
        if fresh:
            yield from ((arch, "screening") for arch in fresh[:SCREENED])
        else:
            yield from [(None, self._settings.sampler)] * (TOGETHER if self.ahead else 1)


def _placeholder(trial: optuna.Trial | FrozenTrial) -> FrozenTrial:
    """Stands for a trial in progress: samplers learn nothing from it but that its architecture is taken."""
    return create_trial(
        state=TrialState.FAIL,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs={"key": trial.user_attrs["key"]},
    )
