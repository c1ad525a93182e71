"""report.html: a run on one page that opens anywhere, offline, with everything it needs inside.

The page says what was searched and found, how certain it is, and what it is not. Whatever came from a user (names,
commands) is escaped; the page's own policy forbids it to load anything. The same record gives the same bytes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from evit_nas.commands import command_line
from evit_nas.data.look import FEW_IMAGES, few
from evit_nas.files import write_atomically
from evit_nas.latency import Latency, about_ms
from evit_nas.latency.predictor import compare
from evit_nas.regime import IMAGENET, Regime
from evit_nas.report.figures import figures
from evit_nas.report.repeat import limits, repeat
from evit_nas.report.template import render
from evit_nas.runs import Run
from evit_nas.searching.feasibility import enough
from evit_nas.searching.findings import (
    Findings,
    find,
    highlights,
    in_budget,
    nearest,
    published_top1,
    sketch,
    spread_text,
)
from evit_nas.searching.front import Candidate, score_text
from evit_nas.searching.objectives import OBJECTIVES, asked
from evit_nas.searching.record import load_front
from evit_nas.searching.score_card import card_of
from evit_nas.searching.selection import beside

FEW_PHOTOGRAPHS = Regime(images=5000, classes=10)  # as many as a team photographs and sorts by itself

FAR = 1.5  # times as slow, or as fast: no rival any more

EVIDENCE = {
    "zero-cost": "No network was trained for it: it is weak evidence of accuracy, weakest between networks of about "
    "the same latency. About 0 is as good as the best of this run’s random pool; scores compare within this run.",
    "table": "It is what as many images of as many classes are expected to bring, learned from networks that were "
    "trained on others: your own images and recipe decide what a training reaches.",
    "predictor": "It was learned from networks that were trained briefly for this run: it is meant to put networks in "
    "order, and says little about the accuracy of a full training.",
    "short": "Every network was trained briefly, once: two that are close may be in the wrong order, and a full "
    "training may bring another one.",
    "supernet": "No network was trained for itself: all share the weights of one training, which ranks them, and says "
    "little about the accuracy that a training of its own brings.",
}
"""What kind of evidence each accuracy method gives."""


@dataclass(frozen=True)
class Rival:
    """A network that a reader might take instead."""

    label: str
    note: str
    latency: Latency
    top1: float
    """As published on ImageNet, in percent."""
    ours: Candidate | None
    """The member with the highest score among those that are no slower."""


def write_report(run: Run) -> Path:
    """Writes report.html into the run folder and returns its path; the search may still be going on.

    Raises:
        UsageError: the run has not evaluated anything yet.
    """
    path = run.path / "report.html"
    write_atomically(path, _page(run, find(run)))
    return path


def _page(run: Run, found: Findings) -> str:
    settings, front = found.settings, found.front
    rows = sorted([*front.members, *front.references], key=lambda one: one.latency.stat_ms(settings.budget_stat))
    certified = sum(member.certified for member in front.members)
    return render(
        "page.html",
        ["evit_nas.report"],
        name=run.path.resolve().name,
        found=found,
        front=front,
        settings=settings,
        several=len(settings.targets) > 1,
        besides={
            each.metric: each.measured for name, each in OBJECTIVES.items() if each.measured and asked(name, settings)
        },
        budgets=_budgets(found),
        limits=limits(settings),
        in_budget=in_budget(found),
        nearest=nearest(found),
        wider=_wider(run, found),
        certified=certified,
        highlights=[(what, member, _rival(found, what, member)) for what, member in highlights(found)],
        titles={member.name: what for what, member in highlights(found)},
        papers={reference.arch.key: reference.name for reference in front.references},
        commands=lambda member: _commands(run, member),
        short_list=_short_list(run, found),
        resume=command_line("resume", run.path),
        relative=not run.path.is_absolute(),
        charts=figures(found),
        checks=[compare(one.predicted_ms, one.measured_ms) if one.names else None for one in found.forecasts],
        rows=rows,
        restless=sum(any(latency.noisy for latency in one.latencies) for one in front.members),
        typical=all(latency.wall_ms is not None for one in rows for latency in one.latencies),
        about_ms=about_ms(latency for one in rows for latency in one.latencies).splitlines(),
        yaml=_yaml,
        rivals=[_rivals(found, index) for index in range(len(settings.targets))],
        on_imagenet=settings.accuracy.regime == IMAGENET,
        elsewhere=_elsewhere(run, found),
        card=card_of(run),
        evidence=EVIDENCE[settings.accuracy.method],
        few=few(regime.images) if (regime := settings.accuracy.regime) and regime.images < FEW_IMAGES else "",
        repeat=repeat(run, found),
        command_line=command_line,
        sketch=sketch,
        score=score_text,
        spread=spread_text,
    )


def _budgets(found: Findings) -> str:
    """The budgets in words: 5 ms on cpu and 40 ms (p90) on remote:pi."""
    stat = f" ({found.settings.budget_stat})" if found.settings.budget_stat != "median" else ""
    return " and ".join(f"{target.budget_ms:g} ms{stat} on {target.device}" for target in found.settings.targets)


def _wider(run: Run, found: Findings) -> str:
    """The same search with budgets that something keeps; empty where it is not the budgets that nothing keeps."""
    fastest, settings = nearest(found), found.settings
    if found.front.members or fastest is None:
        return ""
    pairs = zip(fastest.latencies, settings.targets, strict=True)
    if all(latency.stat_ms(settings.budget_stat) <= target.budget_ms for latency, target in pairs):
        return ""
    return command_line("search", "--config", run.path, "--budget", enough(settings, fastest.latencies))


def _rival(found: Findings, what: list[str], member: Candidate) -> Candidate | None:
    """The paper's network to hold a member against; but for the best one only what is about as fast."""
    other = beside(member, found.front.references)
    if other is None or "best" in what:
        return other
    return other if 1 / FAR < other.latency.median_ms / member.latency.median_ms < FAR else None


def _data(run: Run) -> str:
    """The images of the run, or what stands for those of the reader."""
    return run.settings.accuracy.data or "PATH"


def _short_list(run: Run, found: Findings) -> str:
    """The command that finds out what the scores are worth; empty while there is nothing to compare."""
    if not found.front.members or not found.front.references:
        return ""
    return command_line("train", run.path, "--top", 3, "--baseline", "nearest", "--data", _data(run))


def _commands(run: Run, member: Candidate) -> list[tuple[str, str]]:
    """What can be done with a member, and how; nothing before its file is there."""
    path = run.path / member.name
    if not (run.front_folder / f"{member.name}.yaml").exists():
        return []
    return [
        ("train", command_line("train", path, "--data", _data(run))),
        ("export, untrained", command_line("export", path, "--to", "onnx")),
    ]


def _yaml(member: Candidate) -> str:
    """The member's config with what was measured in its head, as `evit-nas` takes it."""
    measured = [f"{latency} on {latency.conditions}, {latency.runtime}" for latency in member.latencies]
    return member.arch.to_yaml("\n".join([member.name, *measured, f"key: {member.arch.key}"]))


def _rivals(found: Findings, index: int) -> list[Rival]:
    """Networks of other people that were measured on a device, fastest first.

    The paper's are among them where their published accuracy is on the scale of the score; elsewhere they stand in the
    table of the front already.
    """
    others = [
        (f"EfficientViT-{one.name.upper()}", "", one.latencies[index], top1)
        for one in found.front.references
        if (top1 := published_top1(one, found)) is not None
    ]
    for known in found.references[index] if found.references else ():
        one = known.reference
        note = ", ".join(filter(None, [f"{one.image_size} px" if one.image_size != 224 else "", one.note]))
        others.append((one.label, note, known.latency, one.published_top1))
    return [Rival(*other, _within(found, index, other[2])) for other in sorted(others, key=lambda o: o[2].median_ms)]


def _within(found: Findings, index: int, latency: Latency) -> Candidate | None:
    """The member with the highest score among those that are no slower."""
    members = [m for m in found.front.members if m.latencies[index].median_ms <= latency.median_ms]
    return max(members, key=lambda member: member.score, default=None)


def _elsewhere(run: Run, found: Findings) -> tuple[str, str] | None:
    """How far another regime, far from the run's own, agrees about the front, and the command that shows it.

    None where the score has no regime.
    """
    regime = found.settings.accuracy.regime
    if regime is None or not found.front.members:
        return None
    other = FEW_PHOTOGRAPHS if math.dist(regime.decades, FEW_PHOTOGRAPHS.decades) > 1 else IMAGENET
    members = {member.arch.key for member in found.front.members}
    theirs = {member.arch.key for member in load_front(run, other).members}
    return (
        f"For {other} the same measured networks would make a front of {len(theirs)}, {len(members & theirs)} of them "
        "on this one too:",
        command_line("front", run.path, "--images", other.images, "--classes", other.classes),
    )
