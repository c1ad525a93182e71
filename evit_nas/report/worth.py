"""How well the score of a run ranks trained networks of about equal latency: judged once, then kept in the run folder.

The judges of the card are networks that were trained: those that a learned score was learned from (each was left out
in turn), those of the nearest regime that come with the package, or what is published on ImageNet.
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from evit_nas.accuracy.coverage import default_method
from evit_nas.accuracy.table import LabelTable, shipped_tables
from evit_nas.config import SHIPPED
from evit_nas.errors import UsageError
from evit_nas.files import write_atomically
from evit_nas.regime import IMAGENET, Regime
from evit_nas.runs import Run

if TYPE_CHECKING:
    from evit_nas.accuracy.scorecard import Card, Row

Worth = list[dict[str, str]]

SCORES = {"table": "predictor", "predictor": "predictor", "zero-cost": "zero-cost aggregate"}
"""Accuracy method -> its row of the score card."""


def worth_of(run: Run) -> tuple[Worth, str]:
    """Rows about the run's score, and a sentence on what it was judged by; empty if there is nothing to judge by."""
    if run.settings.accuracy.regime == IMAGENET:
        return _on_imagenet()
    table = _table(run)
    if table is None:
        return [], ""
    path, method = run.path / "card.json", run.settings.accuracy.method
    identity = hashlib.sha256(f"{method} {table.model_dump_json()}".encode()).hexdigest()[:12]
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["of"] == identity:
            return known["rows"], known["judged"]
    from evit_nas.accuracy.scorecard import score_card

    try:
        card = score_card(table, labels=(), only=SCORES[method])
    except UsageError:  # too few trained networks, or none of about equal latency
        return [], ""
    rows, judged = [_plain(row) for row in card.rows], _judged(card)
    with suppress(OSError):  # a run of somebody else's
        write_atomically(path, json.dumps({"of": identity, "rows": rows, "judged": judged}))
    return rows, judged


def _on_imagenet() -> tuple[Worth, str]:
    from evit_nas.accuracy.imagenet import imagenet_card

    card = imagenet_card()
    rows = [
        {
            "network": one.name,
            "published top-1": f"{one.published:.1f} %",
            "predicted without it": f"{one.predicted:.1f} % ({one.low:.1f} to {one.high:.1f})",
        }
        for one in card.presets
    ]
    return rows, (
        "Each of them was left out of everything that the score was learned from, and predicted. Seven networks of "
        f"other papers are predicted by their sizes with an error of {card.rmse:.1f} points (root mean square). These "
        "few networks lie far apart: how well the score ranks networks of about the same latency on ImageNet is not "
        "known."
    )


def _table(run: Run) -> LabelTable | None:
    wish = run.settings.accuracy
    names: dict[str, str | Path] = {"predictor": run.path / "labels" / "table.json"}
    if wish.table is not None:
        names["table"] = wish.table
    elif wish.regime is not None and (nearest := _nearest(wish.regime)):
        names["table"] = nearest
    if wish.method == "zero-cost" and default_method(run.settings.space, None) == "table":
        names["zero-cost"] = SHIPPED
    with suppress(UsageError):  # a file that has gone since, or labels that are still being trained
        return LabelTable.load(names[wish.method]) if wish.method in names else None
    return None


def _nearest(regime: Regime) -> str | None:
    """The table of the package whose regime is the fewest decades away."""
    return min(
        shipped_tables(), key=lambda name: math.dist(LabelTable.load(name).regime.decades, regime.decades), default=None
    )


def _plain(row: Row) -> dict[str, str]:
    gain = f"{row.gain.value:+.2f} ({row.gain.low:+.2f} to {row.gain.high:+.2f})" if row.gain else ""
    return {"score": row.score, "tau at equal latency (95 %)": str(row.iso), "gain over the best size": gain}


def _judged(card: Card) -> str:
    text = f"Kendall’s tau over {card.pairs} pairs of {card.origin}; pairs differ by at most 10 % in latency."
    if math.isfinite(card.coverage):
        text += f" {100 * card.coverage:.0f} % of the labels lay in their 80 % intervals."
    if card.ceiling is None:
        return text
    return f"{text} With labels as noisy as these a perfect score is expected to reach {card.ceiling}."
