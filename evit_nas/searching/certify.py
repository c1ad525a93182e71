"""The end of a search: its front is measured strictly until it stands, beside the paper's networks, and written."""

from __future__ import annotations

from collections.abc import Sequence

import optuna

from evit_nas.accuracy import Estimate
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.commands import command_line
from evit_nas.config import SearchSettings
from evit_nas.errors import Infeasible, MeasurementError
from evit_nas.runs import Run
from evit_nas.searching.attributes import StudyAttributes
from evit_nas.searching.evaluate import Evaluator, recorded_latencies
from evit_nas.searching.feasibility import nothing_fits, plainly
from evit_nas.searching.front import REPEATS, Candidate, excess, write_front
from evit_nas.searching.judge import Judge
from evit_nas.searching.objectives import OBJECTIVES, limit_excess
from evit_nas.searching.record import Known, certified, give_up, journal_of, named, readmit, standing
from evit_nas.searching.status import Watcher
from evit_nas.searching.units import adopt

FOUND = f"that was found (which must keep it by {REPEATS:.0%} or its own uncertainty)"
MAX_LATE = 3  # strict measurements in a row that take too long


def certify(run: Run, record: optuna.Study, evaluator: Evaluator, judge: Judge, watch: Watcher) -> None:
    """Measures the front strictly until it stands: a member that falls out may let another one in.

    A yardstick that has become better meanwhile restates all figures first. What missed the budget by less than a
    hurried measurement can tell gets its second visit here. What cannot be measured strictly is given up, for good, so
    that a resumed search shows the front that was written.

    Raises:
        Infeasible: nothing keeps the budget.
        LostLink: a device is out of reach; a resumed search tries again.
        MeasurementError: nothing can be measured in time any more; the same.
    """
    settings, late, references, told = run.settings, list[str](), None, False
    presets = [settings.space.adapted(ArchConfig.preset(name)) for name in PRESETS]
    while True:
        if StudyAttributes(record).units and adopt(record, evaluator.seen_units()):  # up to 0.3 there were none
            watch.note("quieter moments have been seen: all milliseconds are said by the better yardstick")
        evaluator.units = StudyAttributes(record).units
        known = Known(record)  # units may be others by now, networks given up
        candidates = certified(known.candidates, recorded_latencies(journal_of(run), "strict", known.units), settings)
        members = standing(candidates, settings)
        open_members = [member for member in members if not member.certified]
        if not told and not all(map(evaluator.certified, [*(member.arch for member in open_members), *presets])):
            watch.note("measuring the front and the paper's networks again, strictly")
            told = True
        if not open_members:
            if not members:
                raise Infeasible(_none_found(candidates, [*known.stopped.values()], settings))
            if references is not None:
                break
            references = _references(settings, evaluator, judge, watch)  # and once more around: by what that has learnt
        for done, member in enumerate(open_members, start=1):
            watch.step("strict measurement", done, len(open_members))
            try:
                evaluator.latencies(member.arch, strict=True)
                late.clear()
            except MeasurementError as error:
                late = [*late, member.arch.key] if error.kind == "timeout" else []
                if len(late) == MAX_LATE:
                    readmit(record, late)  # the earlier ones were given up below
                    raise MeasurementError(
                        f"{MAX_LATE} networks in a row took too long to be measured strictly: it is the device rather "
                        f"than they. Nothing is lost; when it is less busy: {command_line('resume', run.path)}",
                        "timeout",
                    ) from error
                give_up(record, member.arch.key, str(error))
                watch.note(f"left out of the front: {member.arch.key}: {error}")
    StudyAttributes(record).references = references  # before the files, which derive from the record
    write_front(run, named(members, settings.budget_stat), judge.origin)


def _none_found(candidates: Sequence[Candidate], stopped: Sequence[Candidate], settings: SearchSettings) -> str:
    """What came nearest: of the candidates, or where there are none of those whose training was stopped early."""
    nearest = min(candidates or stopped, key=lambda candidate: _worst_excess(candidate, settings), default=None)
    if nearest is not None and _worst_excess(nearest, settings) <= 0:
        return _other_limits([c for c in candidates if _worst_excess(c, settings) <= 0], settings)
    return nothing_fits(settings, nearest.latencies if nearest else None, FOUND)


def _references(settings: SearchSettings, evaluator: Evaluator, judge: Judge, watch: Watcher) -> dict[str, Estimate]:
    """Estimates of the paper's networks by name, all of which are then measured strictly; those that can be."""
    found: dict[str, Estimate] = {}
    for name in PRESETS:
        arch = settings.space.adapted(ArchConfig.preset(name))
        try:
            estimate = judge.estimate(arch)
            evaluator.latencies(arch, strict=True)
        except (MeasurementError, RuntimeError, MemoryError) as error:  # torch out of memory is a RuntimeError
            watch.note(f"without {name} beside the front: {error}")
        else:
            found[name] = estimate
    return found


def _other_limits(in_time: Sequence[Candidate], settings: SearchSettings) -> str:
    """The message for a search whose candidates keep the budgets, but none of them every other limit."""
    if not in_time:
        return "what was found within the budget was stopped early in its training. Give the search more --trials."
    numbers = [candidate.numbers(settings.budget_stat) for candidate in in_time]
    beyond = [limit_excess(one, settings) for one in numbers]
    for objective in OBJECTIVES.values():
        missed = [one.get(objective.metric, 0.0) for one in beyond]
        if min(missed) > 0:
            [nearest] = numbers[missed.index(min(missed))][objective.metric]
            limit = getattr(settings.limits, objective.metric)
            return (
                f"nothing that was found within the budget keeps {objective.limit} "
                f"{plainly(limit, objective.metric)}: the nearest has {plainly(nearest, objective.metric)}. "
                "Give it more room, or the search more --trials."
            )
    return "nothing that was found keeps all limits at once. Give one of them more room, or the search more --trials."


def _worst_excess(candidate: Candidate, settings: SearchSettings) -> float:
    """How far a candidate is beyond the budget where it is furthest, as a share of it."""
    pairs = zip(candidate.latencies, settings.targets, strict=True)
    return max(excess(la, candidate.certified, target, settings.budget_stat) for la, target in pairs)
