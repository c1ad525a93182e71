"""The Pareto front of a run: feasible, measured strictly, one entry for each architecture.

`best_trials` of Optuna is none of these. The front is recomputed from the run's record whenever it is shown;
the files written here are derived and may be deleted.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evit_nas.arch import ArchConfig
from evit_nas.config import SearchSettings, Target
from evit_nas.files import write_atomically
from evit_nas.latency import Latency
from evit_nas.network.cost import cost
from evit_nas.pareto import non_dominated
from evit_nas.runs import Run
from evit_nas.searching.objectives import MEASURED, Numbers, limit_excess, losses, numbers_of

NEAR = 1.05  # times the budget: what a hurried measurement cannot tell from it
REPEATS = 0.02  # what strict sessions of one network, minutes apart, differ by, whatever each says of its own spread


@dataclass(frozen=True)
class Candidate:
    """One evaluated architecture with its score (higher is better) and its best-known measured latencies."""

    name: str
    arch: ArchConfig
    score: float
    latencies: tuple[Latency, ...]
    """On each device of the search, in its order."""
    certified: bool
    """Measured strictly, after the search; a latency of that may still be noisy."""
    trial: int | None
    """Number of the trial in study.db; None for a reference that is not in the space."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """What the search asks the first device for besides, by metric: peak memory_mb, energy_mj above the idle draw."""
    interval: tuple[float, float] | None = None
    """What holds the true value of the score four times in five; None where nobody knows."""

    @property
    def latency(self) -> Latency:
        """On the first device."""
        return self.latencies[0]

    @property
    def params(self) -> int:
        """Trainable parameters."""
        return cost(self.arch).params

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return cost(self.arch).macs

    def numbers(self, stat: str) -> Numbers:
        """All that is known of it, by metric; of the latencies that statistic."""
        return numbers_of(self.arch, self.score, [latency.stat_ms(stat) for latency in self.latencies], self.figures)


def excess(latency: Latency, certified: bool, target: Target, stat: str) -> float:
    """How far a latency lies beyond the target's budget, as a share of it; zero or less keeps it.

    A certified latency keeps the budget with the uncertainty of its milliseconds, so that the network still does when
    measured again.
    """
    ms = latency.stat_ms(stat) * (1 + max(latency.error_of(stat), REPEATS) if certified else 1)
    return ms / target.budget_ms - 1


def select(candidates: Sequence[Candidate], settings: SearchSettings) -> list[Candidate]:
    """The candidates that keep every limit and that no other one beats, fastest on the first device first."""
    return unbeaten([c for c in candidates if keeps_limits(c, settings)], settings)


def unbeaten(candidates: Sequence[Candidate], settings: SearchSettings) -> list[Candidate]:
    """The candidates that no other one beats in all objectives, fastest first."""
    if not candidates:
        return []
    kept = [c for c, keep in zip(candidates, non_dominated(points(candidates, settings)), strict=True) if keep]
    return sorted(kept, key=lambda c: c.latency.stat_ms(settings.budget_stat))


def points(candidates: Sequence[Candidate], settings: SearchSettings) -> np.ndarray:
    """(n, m) losses of the candidates, every column to be minimised."""
    return np.array([losses(candidate.numbers(settings.budget_stat), settings) for candidate in candidates])


def keeps_limits(candidate: Candidate, settings: SearchSettings) -> bool:
    """Whether a candidate keeps the budget on each device and every other limit."""
    pairs = zip(candidate.latencies, settings.targets, strict=True)
    in_time = all(excess(la, candidate.certified, target, settings.budget_stat) <= 0 for la, target in pairs)
    beyond = limit_excess(candidate.numbers(settings.budget_stat), settings)
    return in_time and all(value <= 0 for value in beyond.values())


def file_name(candidate: Candidate, stat: str) -> str:
    """A file name that explains itself: the latency that the budget is for, and parameters, as evit-4.31ms-6.2M."""
    return f"evit-{candidate.latency.stat_ms(stat):.2f}ms-{candidate.params / 1e6:.1f}M"


def write_front(run: Run, members: Sequence[Candidate], origin: str) -> None:
    """Writes front/<name>.yaml for each member and front.csv, replacing an earlier front.

    `origin` says what the scores are.
    """
    folder = run.front_folder
    folder.mkdir(exist_ok=True)
    for old in folder.glob("evit-*.yaml"):
        old.unlink()
    for member in members:
        write_atomically(folder / f"{member.name}.yaml", member.arch.to_yaml(_header(run, member, origin)))
    write_atomically(run.path / "front.csv", to_csv(members))


def _header(run: Run, member: Candidate, origin: str) -> str:
    settings = run.settings
    return "\n".join(
        [
            f"EfficientViT {member.name.removeprefix('evit-')}",
            *(line for latency in member.latencies for line in _provenance(latency)),
            f"params {member.params:,}; MACs {member.macs:,}",
            f"score {score_text(member)}: {origin}",
            f"found by: {run.record['command']} (evit-nas {run.record['evit_nas']}, seed {settings.seed}, "
            f"space {settings.space_name} {settings.space.hash}, trial {member.trial})",
            f"key: {member.arch.key}",
        ]
    )


def score_text(member: Candidate) -> str:
    """The score, with half the interval that holds its true value four times in five where that is known."""
    if member.interval is None:
        return f"{member.score:.3f}"
    low, high = member.interval
    return f"{member.score:.2f} ± {(high - low) / 2:.2f}"


def _provenance(latency: Latency) -> list[str]:
    noise = f"; an estimate: {latency.doubts}" if latency.noisy else ""
    typical = f"; {latency.wall_ms:.2f} ms (p90 {latency.wall_p90_ms:.2f}) as it was" if latency.wall_ms else ""
    yardstick = f" ± {latency.canary_error:.1%}" if latency.canary_error is not None else ""
    return [
        f"{latency} (p90 {latency.p90_ms:.2f} ms) on {latency.conditions} when quiet{typical}",
        f"  measured on {latency.machine}; {latency.runtime}; {latency.rounds} rounds, {latency.ratio:.3f} ± "
        f"{latency.rel_error:.1%} times the canary's {latency.canary_ms:.3f} ms{yardstick}{noise}",
    ]


def rows(members: Sequence[Candidate]) -> list[dict[str, object]]:
    """The members as plain rows: what `front --format json|csv|yaml` prints."""
    return [
        {
            "name": member.name,
            **{name: value for latency in member.latencies for name, value in _latency_cells(member, latency).items()},
            "certified": member.certified,
            "score": round(member.score, 5),
            **(
                {"score_low": round(member.interval[0], 5), "score_high": round(member.interval[1], 5)}
                if member.interval
                else {}
            ),
            "params": member.params,
            "macs": member.macs,
            **{metric: round(value, MEASURED[metric].digits) for metric, value in member.figures.items()},
            "trial": member.trial,
            "key": member.arch.key,
            "arch": json.loads(member.arch.model_dump_json()),
        }
        for member in members
    ]


def _latency_cells(member: Candidate, latency: Latency) -> dict[str, object]:
    """The columns of one device; where there are several, each is named after its device."""
    suffix = f"@{latency.conditions.device}" if len(member.latencies) > 1 else ""
    return {
        f"latency_ms{suffix}": round(latency.median_ms, 4),
        f"latency_p90_ms{suffix}": round(latency.p90_ms, 4),
        f"latency_rel_error{suffix}": round(latency.rel_error, 4),
        f"latency_ms_error{suffix}": round(latency.ms_error, 4),
        **(
            {
                f"typical_ms{suffix}": round(latency.wall_ms, 4),
                f"typical_p90_ms{suffix}": round(latency.wall_p90_ms, 4),
            }
            if latency.wall_ms is not None and latency.wall_p90_ms is not None
            else {}
        ),
        f"noisy{suffix}": latency.noisy,
    }


def to_csv(members: Sequence[Candidate]) -> str:
    """The members as CSV, without the architecture itself (that is in the YAML file of the same name)."""
    table = [{k: v for k, v in row.items() if k != "arch"} for row in rows(members)]
    text = io.StringIO()
    columns = dict.fromkeys(name for row in table for name in row) if table else ["name"]
    writer = csv.DictWriter(text, fieldnames=list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue()
