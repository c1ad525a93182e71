"""The Pareto front of a run: feasible, measured strictly, one entry for each architecture.

`best_trials` of Optuna is none of these. The front is recomputed from the run's record whenever it is shown;
the files written here are derived and may be deleted.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evit_nas.arch import ArchConfig
from evit_nas.latency import Latency
from evit_nas.network.cost import cost
from evit_nas.pareto import non_dominated
from evit_nas.runs import Run, write_atomically


@dataclass(frozen=True)
class Candidate:
    """One evaluated architecture with its score (higher is better) and its best-known latency."""

    name: str
    arch: ArchConfig
    score: float
    latency: Latency
    certified: bool
    """Measured strictly, after the search."""
    trial: int | None
    """Number of the trial in study.db; None for a reference that is not in the space."""

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return cost(self.arch).params

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return cost(self.arch).macs


def select(candidates: Sequence[Candidate], budget_ms: float) -> list[Candidate]:
    """The candidates that keep the budget and that no other one beats, fastest first.

    A certified latency keeps the budget with its uncertainty, so that the member still does when measured again.
    """
    feasible = [c for c in candidates if (c.latency.high_ms if c.certified else c.latency.median_ms) <= budget_ms]
    points = np.array([(c.latency.median_ms, -c.score) for c in feasible]).reshape(-1, 2)
    kept = [c for c, keep in zip(feasible, non_dominated(points), strict=True) if keep]
    return sorted(kept, key=lambda c: c.latency.median_ms)


def file_name(candidate: Candidate) -> str:
    """A file name that explains itself: latency and parameters, for example evit-4.31ms-6.2M."""
    return f"evit-{candidate.latency.median_ms:.2f}ms-{candidate.params / 1e6:.1f}M"


def write_front(run: Run, members: Sequence[Candidate]) -> None:
    """Writes front/<name>.yaml for each member and front.csv, replacing an earlier front."""
    folder = run.front_folder
    folder.mkdir(exist_ok=True)
    for old in folder.glob("evit-*.yaml"):
        old.unlink()
    for member in members:
        write_atomically(folder / f"{member.name}.yaml", member.arch.to_yaml(_header(run, member)))
    write_atomically(run.path / "front.csv", to_csv(members))


def _header(run: Run, member: Candidate) -> str:
    latency, settings = member.latency, run.settings
    return "\n".join(
        [
            f"EfficientViT {member.name.removeprefix('evit-')}: {latency} on {latency.device}, "
            f"{latency.threads} thread, batch {latency.batch}, {latency.precision}",
            f"machine: {latency.machine}; {latency.runtime}; {latency.pairs} pairs, "
            f"{latency.ratio:.3f} times the canary's {latency.canary_ms:.3f} ms",
            f"params {member.params:,}; MACs {member.macs:,}; zero-cost score {member.score:.4f} "
            "(a rank aggregate within this run, not an accuracy)",
            f"found by: {run.record['command']} (evit-nas {run.record['evit_nas']}, seed {settings.seed}, "
            f"space {settings.space_name} {settings.space.hash}, trial {member.trial})",
            f"key: {member.arch.key}",
        ]
    )


def rows(members: Sequence[Candidate]) -> list[dict[str, object]]:
    """The members as plain rows: what `front --format json|csv|yaml` prints."""
    return [
        {
            "name": member.name,
            "latency_ms": round(member.latency.median_ms, 4),
            "latency_p90_ms": round(member.latency.p90_ms, 4),
            "latency_rel_error": round(member.latency.rel_error, 4),
            "certified": member.certified,
            "noisy": member.latency.noisy,
            "score": round(member.score, 5),
            "params": member.params,
            "macs": member.macs,
            "trial": member.trial,
            "key": member.arch.key,
            "arch": json.loads(member.arch.model_dump_json()),
        }
        for member in members
    ]


def to_csv(members: Sequence[Candidate]) -> str:
    """The members as CSV, without the architecture itself (that is in the YAML file of the same name)."""
    table = [{k: v for k, v in row.items() if k != "arch"} for row in rows(members)]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table[0]) if table else ["name"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()
