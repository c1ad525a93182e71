"""What a search notes on its study and on each trial, beside what Optuna knows of them: the user attributes.

The names are those on disk. An attribute is read, and checked, when it is asked for and no other one with it: each
round of a search asks all trials before it for one or two.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import TypeAdapter

from evit_nas.accuracy import Estimate, RungEstimate
from evit_nas.arch import ArchConfig
from evit_nas.latency import Latency, Unit
from evit_nas.searching.objectives import MEASURED

Held = TypeVar("Held")


class Attribute(Generic[Held]):
    """One attribute: `TrialAttributes(trial).origin` reads it, and an assignment to that writes it.

    Args:
        kind: its type. What is written is written as that type, without what a subclass adds.
        absent: what is read where nothing is on record; left out for what always is.
        name: the one on disk, where that is not the one here.
    """

    def __init__(self, kind: type[Held], *absent: Held, name: str = "") -> None:
        self._form, self._absent, self._name = TypeAdapter[Held](kind), absent, name

    def __set_name__(self, owner: type[Attributes], name: str) -> None:
        self._name = self._name or name

    def __get__(self, owner: Attributes, _: type[Attributes]) -> Held:
        return self.read(owner.held)

    def read(self, held: dict[str, Any]) -> Held:
        """What stands in the attributes as they are on disk."""
        if held.get(self._name) is None and self._absent:
            return self._absent[0]
        return self._form.validate_python(held[self._name])

    def __set__(self, owner: Attributes, value: Held) -> None:
        owner.holder.set_user_attr(self._name, None if value is None else self._form.dump_python(value, mode="json"))


class Attributes:
    """All attributes of a study or a trial.

    Reading one raises KeyError if it always is on record and is not, and ValueError if it has not the form that it is
    written in.
    """

    def __init__(self, holder: optuna.Study | optuna.Trial | FrozenTrial) -> None:
        self.holder = holder

    @property
    def held(self) -> dict[str, Any]:
        """Each as it is on disk, by name."""
        return self.holder.user_attrs


class StudyAttributes(Attributes):
    """Of the study."""

    aggregate = Attribute(dict[str, list[float]], None)
    """The scored pool that a rank aggregate is held against."""
    conditions = Attribute(list[dict[str, str]], [])
    """What each device's latencies depend on."""
    ended = Attribute(str, "")
    """Why nothing more is evaluated; empty while the search goes on."""
    evaluating = Attribute(tuple[str, int], ("", 0))
    """Key of the network that is being evaluated, and how often that has begun; empty if none is."""
    given_up = Attribute(dict[str, str], {}, name="given up")
    """Key of a network that cannot be measured strictly -> why."""
    images = Attribute(str, "")
    """Digest of those that candidates are trained on; empty where none are, and up to version 0.3."""
    judge = Attribute(str, "")
    """What the scores are and where they come from."""
    learned = Attribute(str, "")
    """Digest of what the scores are learned from; empty where they are not, and up to version 0.3."""
    references = Attribute(dict[str, Estimate], None)
    """Name of a network of the paper -> its estimate, once the front is certified."""
    units = Attribute(dict[str, Unit], {})
    """Device -> what milliseconds are said by; empty up to version 0.3."""

    def check(self) -> None:
        """Reads all of them.

        Raises:
            ValueError: one has not the form that it is written in.
        """
        held = self.held
        for attribute in vars(StudyAttributes).values():
            if isinstance(attribute, Attribute):
                attribute.read(held)


class TrialAttributes(Attributes):
    """Of a trial: of every one, its proposal; of one that failed, the reason; of others, what it came to."""

    key = Attribute(str)
    """Of the architecture."""
    arch = Attribute(ArchConfig)
    """What was proposed."""
    round = Attribute(int)
    """Number of the round that it was proposed in, from 0."""
    origin = Attribute(str, None)
    """Who proposed it: a preset's name, "random", "screening" or a sampler."""
    units = Attribute(dict[str, Unit], {})
    """Device -> what its milliseconds were said by when it was told; empty up to version 0.3."""
    repeat_of = Attribute(int, None)
    """Number of the trial whose architecture it proposes once more."""
    reason = Attribute(str, "")
    """Why it failed."""
    estimate = Attribute(Estimate)
    """What it was thought to be worth."""
    trained = Attribute(RungEstimate, None)
    """The whole of an estimate by a brief training, also of a trial that failed later."""
    predicted_ms = Attribute(list[float], None)
    """Predicted median latency on each device; None while that could not be predicted."""
    latencies = Attribute(tuple[Latency, ...], ())
    """On each device, by the yardsticks they were measured by; empty if it was not measured."""

    @property
    def figures(self) -> dict[str, float]:
        """Metric -> what was measured besides because the search asks for it; each is an attribute of its own."""
        return {metric: float(self.held[metric]) for metric in MEASURED if self.held.get(metric) is not None}

    @figures.setter
    def figures(self, figures: Mapping[str, float]) -> None:
        for metric, value in figures.items():
            self.holder.set_user_attr(metric, value)

    @property
    def measured(self) -> bool:
        """Whether there are latencies."""
        return bool(self.held.get("latencies"))

    @property
    def yardsticks(self) -> list[tuple[str, Unit]]:
        """Device and yardstick of each latency, without those up to version 0.3.

        Taken from the record as it is: each round asks all trials before it.
        """
        return [
            (latency["conditions"]["device"], Unit(latency["canary_ms"], latency["canary_error"]))
            for latency in self.held.get("latencies") or ()
            if latency.get("canary_error") is not None
        ]


def missing(trial: FrozenTrial) -> set[str]:
    """Names of the attributes that every trial like this one has, and this one has not."""
    needed = {"key", "arch", "round"}
    if trial.state is TrialState.COMPLETE and TrialAttributes(trial).repeat_of is None:
        needed |= {"estimate", "latencies"}
    return needed - trial.user_attrs.keys()
