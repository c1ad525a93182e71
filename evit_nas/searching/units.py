"""By which yardstick a search says its milliseconds.

A measurement is a ratio; the yardstick that makes milliseconds of it gets better while a search runs. So a search has
one unit a device, on record in its study, and takes a better one between two rounds and when it certifies its front:
then everything is said by that one, what was told to samplers, predictions and the front alike. That changes no
order, but a candidate may come into the budget.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import optuna
from optuna.trial import FrozenTrial, TrialState

from evit_nas.config import SearchSettings
from evit_nas.latency import Unit
from evit_nas.latency.yardstick import Units
from evit_nas.searching.attributes import StudyAttributes, TrialAttributes
from evit_nas.searching.objectives import latency_names, metric_names
from evit_nas.searching.storage import NAMELESS


def adopt(record: optuna.Study, seen: Units) -> bool:
    """Takes the units that are better than those on record by more than they are uncertain; whether there was one."""
    on_record = StudyAttributes(record)
    before = on_record.units
    better = {device: unit for device, unit in seen.items() if device not in before or unit.supersedes(before[device])}
    if better:
        on_record.units = {**before, **better}
    return bool(better)


def after(trials: Iterable[FrozenTrial], first: Units) -> dict[str, Unit]:
    """The units after these trials, in their order: a better one that was met is taken from there on."""
    units = dict(first)
    for trial in trials:
        for device, unit in TrialAttributes(trial).yardsticks:
            if device in units and unit.supersedes(units[device]):
                units[device] = unit
    return units


def factors(trial: FrozenTrial, now: Units, settings: SearchSettings) -> dict[str, float]:
    """Name of each latency -> what milliseconds of the trial are to be multiplied by to be said by `now`."""
    then = TrialAttributes(trial).units
    devices = [target.device for target in settings.targets]
    if settings.budget_stat == "typical":  # by the wall clock: no yardstick is in it
        return {}
    return {
        name: now[device].ms / then[device].ms
        for name, device in zip(latency_names(settings), devices, strict=True)
        if device in then and device in now
    }


def predictions(trial: FrozenTrial, now: Units, settings: SearchSettings) -> list[float]:
    """What a trial was predicted to take on each device, in milliseconds by `now`."""
    changes = factors(trial, now, settings)
    predicted_ms = TrialAttributes(trial).predicted_ms or []
    pairs = zip(predicted_ms, latency_names(settings), strict=True)
    return [ms * changes.get(name, 1.0) for ms, name in pairs]


def restated(trial: FrozenTrial, now: Units, settings: SearchSettings) -> FrozenTrial:
    """The trial with its values and constraints said by `now`."""
    changes = {name: factor for name, factor in factors(trial, now, settings).items() if factor != 1}
    if not changes or trial.state is not TrialState.COMPLETE:
        return trial
    new = copy.copy(trial)
    new.values = [
        value * changes.get(name, 1.0) for name, value in zip(metric_names(settings), trial.values, strict=True)
    ]
    beyond = {
        name: (1 + excess) * changes[name] - 1 if name in changes else excess  # it is ms / budget - 1
        for name, excess in trial.constraints.items()
    }
    # taken out first: Optuna ignores a constraint that is set already
    named = {f"{NAMELESS}:{name}" for name in beyond}
    new.system_attrs = {name: value for name, value in trial.system_attrs.items() if name not in named}
    for name, excess in beyond.items():
        new.set_constraint(name, excess)
    return new
