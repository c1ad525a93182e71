"""How to repeat a run: commands that do, what they take again, and what is on record of how it was made."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from evit_nas import __version__
from evit_nas.commands import PROGRAM, command_line
from evit_nas.config import SearchSettings
from evit_nas.runs import Run
from evit_nas.searching.feasibility import plainly
from evit_nas.searching.findings import Findings, highlights
from evit_nas.searching.objectives import OBJECTIVES


@dataclass(frozen=True)
class Repeat:
    """What stands under "To repeat it"."""

    search: str
    """The command that makes another run by the settings of this one."""
    replay: str
    """The command that evaluates the best member once more; empty where there is none."""
    notes: list[str]
    """Sentences on what they take again, and on what moves."""
    facts: dict[str, str]
    """How the run was made and where."""


def repeat(run: Run, found: Findings) -> Repeat:
    """The run once more.

    It starts from the settings on record, not from the words that were typed: those may name a folder that is taken
    by now, a file that has changed, or a call of Python.
    """
    trial = next((member.trial for what, member in highlights(found) if "best" in what), None)
    return Repeat(
        search=command_line("search", "--config", run.path),
        replay="" if trial is None else command_line("replay", run.path, trial),
        notes=[*_notes(run)],
        facts=_facts(run),
    )


def _notes(run: Run) -> Iterator[str]:
    settings, accuracy = run.settings, run.settings.accuracy
    yield (
        "Settings, seed and space are the same. Latencies are measured anew, and what is proposed follows from them "
        "and from what is known of the device by then: expect a front like this one, not the same networks."
    )
    if accuracy.method == "predictor":
        taken = "".join(f", with those of {name}" for name in accuracy.labels_from)
        yield (
            f"Up to {accuracy.labels} networks are trained again on {accuracy.data}{taken}; a further "
            f"{shlex.join(['--labels-from', str(run.path)])} takes over what was trained here."
        )
    if accuracy.method == "short":
        yield f"The candidates are trained again on {accuracy.data}."
    if accuracy.method == "supernet":
        yield f"The candidates are judged again with the weights in {accuracy.supernet}."
    if accuracy.method == "table" and accuracy.table is not None:
        yield f"The score is learned again from the table {accuracy.table}."
    if settings.engine == "ray":
        yield (
            f"Ray at {settings.cluster.address} runs it again; --engine local does without."
            if settings.cluster.address
            else "Ray runs it on this machine; --engine local does without."
        )
    if settings.storage:
        yield f"It keeps its study in {settings.storage} beside this one."
    if settings.time_s:
        yield f"It begins nothing new after {settings.time_s:g} seconds: a faster machine gets further."
    if (version := run.record["evit_nas"]) != __version__:
        yield f"The run is of version {version}, this page of {__version__}, whose scores may be others."


def _facts(run: Run) -> dict[str, str]:
    record, settings = run.record, run.settings
    command: str = record["command"]
    facts = {
        "typed" if command.startswith(PROGRAM) else "called in Python": command,
        "created": record["created"],
        "evit-nas": record["evit_nas"],
        "seed": str(settings.seed),
        "space": f"{settings.space_name} ({settings.space.hash})",
        "trials": f"{settings.trials}, of which a pool of {settings.pool} random ones",
        "time": f"{settings.time_s:g} s" if settings.time_s else "",
        "patience": f"{settings.patience} networks without growth of the front" if settings.patience else "",
        "sampler": settings.sampler,
        "accuracy": _accuracy(settings),
        "devices": "; ".join(f"{target.conditions}, budget {target.budget_ms:g} ms" for target in settings.targets),
        "budget on": settings.budget_stat,
        "objectives": ", ".join(settings.objectives),
        "limits": limits(settings),
        "front": f"at most {settings.front_size} members",
        "engine": settings.engine,
        "storage": settings.storage or "",
        **{name.replace("_", " "): str(value) for name, value in record["machine"].items() if value is not None},
        "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    }
    return {name: fact for name, fact in facts.items() if fact}


def limits(settings: SearchSettings) -> str:
    """The limits besides the budgets in words: score ≥ 70, params ≤ 6000000; empty if there are none."""
    found = []
    for name, objective in OBJECTIVES.items():
        limit = getattr(settings.limits, objective.metric, None)
        if limit is not None:
            found.append(f"{name} {'≥' if objective.higher_is_better else '≤'} {plainly(limit, objective.metric)}")
    return ", ".join(found)


def _accuracy(settings: SearchSettings) -> str:
    wish = settings.accuracy
    parts: list[str] = [wish.method]
    if wish.regime is not None:
        parts.append(f"for {wish.regime}")
    if wish.table is not None:
        parts.append(f"table {wish.table}")
    if wish.data is not None:
        parts.append(f"data {wish.data}")
    if wish.supernet is not None:
        parts.append(f"weights of {wish.supernet}")
    if wish.method == "predictor":
        parts.append(f"{wish.labels} labels")
    if wish.labels_from:
        parts.append(f"labels from {', '.join(wish.labels_from)}")
    if wish.method == "short":
        parts.append(f"scheduler {wish.scheduler}")
    return ", ".join(parts)
