"""report.html: a run on one page that opens anywhere, offline, with everything it needs inside.

The page says what was found, how certain it is, and what it is not. Whatever came from a user (names, commands) is
escaped; the page's own policy forbids it to load anything. The same record gives the same bytes.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import jinja2
import plotly.offline

from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.commands import command_line
from evit_nas.latency import Latency
from evit_nas.latency.predictor import compare
from evit_nas.latency.references import PUBLISHED_TOP1
from evit_nas.regime import IMAGENET, Regime
from evit_nas.report.figures import figures
from evit_nas.report.findings import Findings, find, in_budget, nearest, sketch
from evit_nas.report.worth import worth_of
from evit_nas.runs import Run, write_atomically
from evit_nas.searching.front import Candidate, score_text
from evit_nas.searching.objectives import asked
from evit_nas.searching.picks import pick
from evit_nas.searching.record import load_front

FEW_PHOTOGRAPHS = Regime(images=5000, classes=10)  # as many as a team photographs and sorts by itself

EVIDENCE = {
    "zero-cost": "No network was trained for it: it is weak evidence of accuracy, weakest between networks of about "
    "the same latency. About 0 is as good as the best of this run’s random pool; scores compare within this run.",
    "table": "It is what as many images of as many classes are expected to bring, learned from networks that were "
    "trained on others: your own images and recipe decide what a training reaches.",
    "predictor": "It was learned from networks that were trained briefly for this run: it is meant to put networks in "
    "order, and says little about the accuracy of a full training.",
    "short": "Every network was trained briefly, once: two that are close may be in the wrong order, and a full "
    "training may bring another one.",
}
"""What kind of evidence each accuracy method gives."""


def write_report(run: Run) -> Path:
    """Writes report.html into the run folder and returns its path; the search may still be going on.

    Raises:
        UsageError: the run has not evaluated anything yet.
    """
    path = run.path / "report.html"
    write_atomically(path, _page(run, find(run)))
    return path


def _page(run: Run, found: Findings) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("evit_nas.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"sketch": sketch, "score": score_text}
    card, judged = worth_of(run)
    settings = found.settings
    rows = sorted([*found.front.members, *found.front.references], key=lambda c: c.latency.median_ms)
    charts = {place: json.loads(figure.to_json()) for place, figure in figures(found).items()}
    return environment.get_template("page.html").render(
        name=run.path.resolve().name,
        found=found,
        front=found.front,
        settings=settings,
        several=len(settings.targets) > 1,
        memory=asked("memory", settings),
        energy=asked("energy", settings),
        budgets=_budgets(found),
        in_budget=in_budget(found),
        nearest=nearest(found),
        picks=_picks(found),
        charts=charts,
        checks=[compare(one.predicted_ms, one.measured_ms) if one.names else None for one in found.forecasts],
        rows=rows,
        restless=sum(any(latency.noisy for latency in one.latencies) for one in found.front.members),
        noisy=any(latency.noisy for one in rows for latency in one.latencies),
        columns=6 + len(settings.targets) * (3 if settings.budget_stat == "p90" else 2),
        yaml=_yaml,
        published=_published(found),
        on_imagenet=settings.accuracy.regime == IMAGENET,
        elsewhere=_elsewhere(run, found),
        card=card,
        judged=judged,
        evidence=EVIDENCE[settings.accuracy.method],
        facts=_facts(run),
        command_line=command_line,
        plotlyjs=plotly.offline.get_plotlyjs(),
    )


def _budgets(found: Findings) -> str:
    """The budgets in words: 5 ms on cpu and 40 ms (p90) on remote:pi."""
    stat = " (p90)" if found.settings.budget_stat == "p90" else ""
    return " and ".join(f"{target.budget_ms:g} ms{stat} on {target.device}" for target in found.settings.targets)


def _picks(found: Findings) -> list[tuple[str, Candidate]]:
    """What to look at first, with what it is; one member may be several things."""
    members = found.front.members
    titles: dict[str, list[str]] = {}
    for what in ("best", "knee", "fastest") if members else ():
        titles.setdefault(pick(members, what, found.settings).name, []).append(what)
    return [
        (", ".join(what), next(member for member in members if member.name == name)) for name, what in titles.items()
    ]


def _yaml(member: Candidate) -> str:
    """The member's config with what was measured in its head, as `evit-nas` takes it."""
    measured = [f"{latency} on {latency.conditions}, {latency.runtime}" for latency in member.latencies]
    return member.arch.to_yaml("\n".join([member.name, *measured, f"key: {member.arch.key}"]))


def _published(found: Findings) -> list[list[dict[str, Any]]]:
    """For each device: networks with a published accuracy, fastest first, and the run's best that is no slower."""
    tables = []
    for index, references in enumerate(found.references):
        rows: list[tuple[str, float, str, Latency]] = [
            (f"EfficientViT-{c.name.upper()}", PUBLISHED_TOP1[c.name], "", c.latencies[index])
            for c in found.front.references
            if c.name in PRESETS and c.arch.key == ArchConfig.preset(c.name).key  # not one for other images or classes
        ]
        for one in references:
            size = f"{one.reference.image_size} px" if one.reference.image_size != 224 else ""
            note = ", ".join(filter(None, [size, one.reference.note]))
            rows.append((one.reference.label, one.reference.published_top1, note, one.latency))
        tables.append(
            [
                {"label": label, "top1": top1, "note": note, "latency": latency, "ours": _within(found, index, latency)}
                for label, top1, note, latency in sorted(rows, key=lambda row: row[3].median_ms)
            ]
        )
    return tables


def _elsewhere(run: Run, found: Findings) -> str:
    """How far another regime, far from the run's own, agrees about the front; empty where the score has no regime."""
    regime = found.settings.accuracy.regime
    if regime is None or not found.front.members:
        return ""
    other = FEW_PHOTOGRAPHS if math.dist(regime.decades, FEW_PHOTOGRAPHS.decades) > 1 else IMAGENET
    members = {member.arch.key for member in found.front.members}
    theirs = {member.arch.key for member in load_front(run, other).members}
    options = command_line("front", run.path, "--images", other.images, "--classes", other.classes)
    return (
        f"For {other} the same measured networks would make a front of {len(theirs)}, {len(members & theirs)} of them "
        f"on this one too: {options}"
    )


def _within(found: Findings, index: int, latency: Latency) -> Candidate | None:
    """The member with the highest score among those that are no slower."""
    members = [m for m in found.front.members if m.latencies[index].median_ms <= latency.median_ms]
    return max(members, key=lambda member: member.score, default=None)


def _facts(run: Run) -> dict[str, str]:
    """How to repeat the run, and where it ran."""
    record, settings = run.record, run.settings
    limits = [f"{n} {'≥' if n == 'score' else '≤'} {limit:g}" for n, limit in settings.limits if limit is not None]
    return {
        "command": record["command"],
        "created": record["created"],
        "evit-nas": record["evit_nas"],
        "seed": str(settings.seed),
        "space": f"{settings.space_name} ({settings.space.hash})",
        "trials": f"{settings.trials}, of which a pool of {settings.pool} random ones",
        "sampler": settings.sampler,
        "accuracy": settings.accuracy.method,
        "devices": "; ".join(f"{target.conditions}, budget {target.budget_ms:g} ms" for target in settings.targets),
        "budget on": settings.budget_stat,
        "objectives": ", ".join(settings.objectives),
        **({"limits": ", ".join(limits)} if limits else {}),
        **{name.replace("_", " "): str(value) for name, value in record["machine"].items() if value is not None},
        "versions": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    }
