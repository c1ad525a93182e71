"""What a run has on record: the Optuna study, the distinct architectures in it, and the front they make.

Nothing here measures or proposes; `front` and `score --run` read a run through this module alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import optuna
from optuna.trial import FrozenTrial, TrialState

from evit_nas.accuracy import Estimate
from evit_nas.accuracy.aggregate import RankAggregate
from evit_nas.arch import ArchConfig
from evit_nas.commands import command_line
from evit_nas.config import SearchSettings
from evit_nas.errors import RunError, UsageError
from evit_nas.files import Journal
from evit_nas.latency import Latency
from evit_nas.latency.yardstick import best_units, said_by
from evit_nas.regime import Regime
from evit_nas.runs import Run
from evit_nas.searching.attributes import StudyAttributes, TrialAttributes
from evit_nas.searching.evaluate import recorded, recorded_latencies
from evit_nas.searching.front import NEAR, Candidate, file_name, keeps_limits, unbeaten
from evit_nas.searching.objectives import NO_FIGURES
from evit_nas.searching.selection import thin
from evit_nas.searching.storage import begun, open_study

TRAININGS = ("labels", "ray/checkpoints")  # where judges keep what they train


@dataclass(frozen=True)
class Front:
    """The front of a run as far as it is known, and the paper's networks measured in the same run."""

    members: list[Candidate]
    references: list[Candidate]
    done: int
    total: int
    origin: str
    """What the scores are and where they come from."""
    ended: str = ""
    """Why nothing more was evaluated; empty while the search goes on, or where it was interrupted."""
    whole: bool = False
    """Whether the search has come to its end, with everything here measured strictly."""


def load_front(run: Run, regime: Regime | None = None) -> Front:
    """The front from the run's record alone: nothing is measured and nothing is written.

    Members are certified once the search has ended; before that they carry their search-time latency.

    Args:
        run: finished or not.
        regime: scores the measured networks for it instead, as `--accuracy table` does.

    Raises:
        UsageError: the run has not evaluated anything yet.
    """
    if not begun(run):
        raise UsageError(f"{run.path} has no trials yet. Continue it with: {command_line('resume', run.path)}")
    with open_study(run) as study:
        known, on_record = Known(study), StudyAttributes(study)
        estimates, origin, ended = on_record.references, on_record.judge, on_record.ended
    strict = recorded_latencies(journal_of(run), "strict", known.units)
    candidates = certified(known.candidates, strict, run.settings)
    if regime is not None:
        candidates, origin = rescored(candidates, regime)
    members = standing(candidates, run.settings)
    if not all(keeps_limits(member, run.settings) for member in members):  # some hope to keep them when measured again
        members = standing([one for one in candidates if keeps_limits(one, run.settings)], run.settings)
    references = []
    for name, estimate in (estimates or {}).items():
        arch = run.settings.space.adapted(ArchConfig.preset(name))
        latencies = on_all(strict.get(arch.key, {}), run.settings)
        if latencies:
            references.append(_candidate(arch, estimate, latencies, name=name, certified=True))
    if regime is not None:
        references, _ = rescored(references, regime)
    return Front(
        members=named(members, run.settings.budget_stat),
        references=references,
        done=len(known.by_key),
        total=run.settings.trials,
        origin=origin,
        ended=ended,
        whole=estimates is not None and all(member.certified for member in members),
    )


def better_since(run: Run) -> str:
    """A sentence if this machine knows a better yardstick by now than the one that the run's figures are said by."""
    with open_study(run) as study:
        before = StudyAttributes(study).units
    strict = recorded_latencies(journal_of(run), "strict", {})
    seen = best_units(latency for on_devices in strict.values() for latency in on_devices.values())
    better = {device: seen[device] for device in seen if device in before and seen[device].improves(before[device])}
    return " ".join(
        f"quieter moments have been seen on {device} since: by these all its milliseconds are "
        f"{1 - unit.ms / before[device].ms:.1%} lower, in the same order. "
        f"{command_line('resume', run.path)} certifies the front by them."
        for device, unit in better.items()
    )


def rescored(candidates: Sequence[Candidate], regime: Regime) -> tuple[list[Candidate], str]:
    """The candidates with scores for another regime, and what these are."""
    from evit_nas.accuracy.learned import LearnedAccuracy

    learned = LearnedAccuracy.under(regime)
    columns = learned.intervals([candidate.arch for candidate in candidates])
    found = zip(candidates, *(column.tolist() for column in columns), strict=True)
    return [replace(c, score=value, interval=(low, high)) for c, value, low, high in found], learned.origin


def load_aggregate(run: Run) -> RankAggregate:
    """The score of a run.

    Raises:
        UsageError: the run has not scored its pool yet.
    """
    stored = None
    if begun(run):
        with open_study(run) as study:
            stored = StudyAttributes(study).aggregate
    if stored is None:
        raise UsageError(
            f"{run.path} has not scored its pool yet. Continue it with: {command_line('resume', run.path)}"
        )
    return RankAggregate.from_json(stored)


def journal_of(run: Run) -> Journal:
    """Everything measured in the run."""
    return Journal(run.path / "measurements.jsonl")


def evaluated(run: Run) -> bool:
    """Whether a search has something to go on from: a trial, scores of networks, or one that is being trained.

    What it measures to know whether anything keeps the limits is not enough.
    """
    if any(path.is_file() for place in TRAININGS for path in (run.path / place).rglob("*")):
        return True
    if not journal_of(run).path.exists():
        return False
    if any(recorded(journal_of(run), kind) for kind in ("proxies", "judgement")):
        return True
    try:
        with open_study(run) as study:
            return bool(study.get_trials(deepcopy=False))
    except RunError:  # nobody can tell
        return True


class Known:
    """The distinct architectures of a study, by key."""

    def __init__(self, study: optuna.Study) -> None:
        self.by_key: dict[str, FrozenTrial] = {}
        self.candidates: dict[str, Candidate] = {}  # those that were measured, and not given up since
        self.stopped: dict[str, Candidate] = {}  # measured too, but not trained to the end
        self.failed = 0
        on_record = StudyAttributes(study)
        self.units, self._given_up = on_record.units, on_record.given_up
        for trial in study.get_trials(deepcopy=False):
            self.add(trial)

    def add(self, trial: FrozenTrial) -> None:
        """Counts one more finished trial."""
        on_record = TrialAttributes(trial)
        if on_record.repeat_of is not None:
            return
        key = on_record.key
        self.by_key[key] = trial
        self.failed += trial.state is TrialState.FAIL
        if trial.state is TrialState.COMPLETE and on_record.measured and key not in self._given_up:
            (self.stopped if stopped(trial) else self.candidates)[key] = _candidate(
                on_record.arch,
                on_record.estimate,
                said_by(self.units, on_record.latencies),
                trial=trial.number,
                figures=on_record.figures,
            )


def stopped(trial: FrozenTrial) -> bool:
    """Whether the training of its network was stopped early."""
    return trial.constraints.get("unfinished", 0) > 0


def give_up(study: optuna.Study, key: str, reason: str) -> None:
    """Keeps an architecture off the front for good: it cannot be measured strictly."""
    on_record = StudyAttributes(study)
    on_record.given_up = on_record.given_up | {key: reason}


def readmit(study: optuna.Study, keys: Collection[str]) -> None:
    """Takes back that architectures were given up: it was not their fault."""
    on_record = StudyAttributes(study)
    on_record.given_up = {key: reason for key, reason in on_record.given_up.items() if key not in keys}


def _candidate(
    arch: ArchConfig,
    estimate: Estimate,
    latencies: tuple[Latency, ...],
    *,
    name: str = "",
    certified: bool = False,
    trial: int | None = None,
    figures: Mapping[str, float] = NO_FIGURES,
) -> Candidate:
    interval = None if estimate.low is None or estimate.high is None else (estimate.low, estimate.high)
    return Candidate(name, arch, estimate.value, latencies, certified, trial, figures, interval)


def check_same_conditions(study: optuna.Study, here: list[dict[str, str]], run: Run) -> None:
    """Refuses to continue a run under conditions that make its latencies incomparable."""
    on_record = StudyAttributes(study)
    before = on_record.conditions
    if not before:
        on_record.conditions = here
        return
    changes = [
        f"{name} was {then.get(name)}, here it is {value}"
        for then, now in zip(before, here, strict=True)
        for name, value in now.items()
        if then.get(name) != value
    ]
    if changes:
        raise RunError(
            f"{run.path} cannot be continued here, its latencies would not compare: {'; '.join(changes)}. "
            "Start a new search instead; the front that was found stays as it is."
        )


def certified(
    candidates: dict[str, Candidate], strict: dict[str, dict[str, Latency]], settings: SearchSettings
) -> list[Candidate]:
    """The candidates, with their strict latencies wherever those are on record for all devices."""
    found = [(c, on_all(strict.get(key, {}), settings)) for key, c in candidates.items()]
    return [replace(c, latencies=latencies, certified=True) if latencies else c for c, latencies in found]


def standing(candidates: Sequence[Candidate], settings: SearchSettings) -> list[Candidate]:
    """The front as far as it is known, thinned out: what should be measured strictly, or has been.

    What is not certified may miss the budget by as much as a hurried measurement can be wrong.
    """
    slack = settings.model_copy(
        update={"targets": tuple(t.model_copy(update={"budget_ms": t.budget_ms * NEAR}) for t in settings.targets)}
    )
    hopeful = [c for c in candidates if keeps_limits(c, settings if c.certified else slack)]
    front = unbeaten(hopeful, settings)
    return thin(front, settings.front_size, settings, [member for member in front if member.certified])


def on_all(measured: dict[str, Latency], settings: SearchSettings) -> tuple[Latency, ...]:
    """The latency on each device of the search; empty if one is missing."""
    devices = [target.device for target in settings.targets]
    return tuple(measured[device] for device in devices) if all(device in measured for device in devices) else ()


def named(members: list[Candidate], stat: str) -> list[Candidate]:
    """Members with file names; where several would share one, the key tells them apart."""
    names = [file_name(member, stat) for member in members]
    return [
        replace(member, name=name if names.count(name) == 1 else f"{name}-{member.arch.key[:4]}")
        for member, name in zip(members, names, strict=True)
    ]
