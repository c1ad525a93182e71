"""What a judge is: what a search takes a candidate's accuracy from. `judges.py` has the table of them.

A judge is prepared once (it may score a pool or train networks; all of that is remembered in the run folder) and is
then a fixed function of the architecture, as an objective must be.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from evit_nas.accuracy import Estimate
from evit_nas.arch import ArchConfig
from evit_nas.runs import Run
from evit_nas.searching.evaluate import Evaluator
from evit_nas.searching.status import Watcher

if TYPE_CHECKING:
    from evit_nas.searching.parallel import Cluster


class Judge(ABC):
    """Estimates the accuracy of candidates; higher is better."""

    immediate = False
    """Whether an estimate costs microseconds, so that nothing is gained by beginning it early."""
    origin: str
    """A clause that says what the values are and where they come from; equal for judges whose values compare."""
    digest = ""
    """Of what the values are learned from, if they are; equal for judges whose values compare."""

    @property
    def predicts(self) -> bool:
        """Whether `values` cost microseconds each, so that tens of thousands of candidates can be looked at."""
        return self.immediate

    @abstractmethod
    def estimate(self, arch: ArchConfig, latency_ms: float | None = None) -> Estimate:
        """What `arch` is thought to be worth.

        Args:
            arch: a network.
            latency_ms: what it takes on the first device, as far as is known: a judge may stop early with one that is
                worse than others of its latency. None asks for the whole effort.

        Raises:
            MeasurementError: this network has no finite score.
        """

    def again(self, arch: ArchConfig, trial: FrozenTrial) -> Estimate:
        """The estimate that a trial has on record, made anew with the same effort; raises what `estimate` does."""
        return self.estimate(arch)

    def values(self, archs: Sequence[ArchConfig]) -> np.ndarray:
        """(n,) values of the estimates, all at once; predictions of them where the judge `predicts`."""
        return np.array([self.estimate(arch).value for arch in archs])

    def expect(self, arch: ArchConfig) -> None:  # noqa: B027 - most judges have nothing to begin
        """Begins in the background, if it can, what `estimate` will be asked."""


@dataclass(frozen=True)
class JudgeContext:
    """What a judge is made from."""

    run: Run
    evaluator: Evaluator
    record: optuna.Study
    pool: Sequence[tuple[ArchConfig, str]]
    """What a search evaluates first, with where it comes from."""
    watch: Watcher
    cluster: Cluster | None
    """Where networks are trained, if not on this machine."""
    labels: Path
    """Where a judge that trains each candidate keeps what it trained."""
