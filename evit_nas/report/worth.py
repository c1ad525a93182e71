"""How well the score of a run ranks trained networks of about equal latency: judged once, then kept in the run folder.

The judges of the card are networks that were trained: those that a learned score was learned from (each was left out
in turn), or those that come with the package, for a zero-cost score in the space that they are from.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from evit_nas.accuracy.coverage import default_method
from evit_nas.accuracy.table import LabelTable
from evit_nas.config import SHIPPED
from evit_nas.errors import UsageError
from evit_nas.runs import Run, write_atomically

if TYPE_CHECKING:
    from evit_nas.accuracy.scorecard import Card, Row

Worth = list[dict[str, str]]

SCORES = {"table": "predictor", "predictor": "predictor", "zero-cost": "zero-cost aggregate"}
"""Accuracy method -> its row of the score card."""


def worth_of(run: Run) -> tuple[Worth, str]:
    """Rows of the sizes and of the run's score, and a sentence on what they were judged by; empty if there is none."""
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


def _table(run: Run) -> LabelTable | None:
    wish = run.settings.accuracy
    names: dict[str, str | Path] = {"table": wish.table, "predictor": run.path / "labels" / "table.json"}
    if wish.method == "zero-cost" and default_method(run.settings.space, None) == "table":
        names["zero-cost"] = SHIPPED
    with suppress(UsageError):  # a file that has gone since, or labels that are still being trained
        return LabelTable.load(names[wish.method]) if wish.method in names else None
    return None


def _plain(row: Row) -> dict[str, str]:
    gain = f"{row.gain.value:+.2f} ({row.gain.low:+.2f} to {row.gain.high:+.2f})" if row.gain else ""
    return {"score": row.score, "tau at equal latency (95 %)": str(row.iso), "gain over the best size": gain}


def _judged(card: Card) -> str:
    text = f"Kendall’s tau over {card.pairs} pairs of {card.origin}; pairs differ by at most 10 % in latency."
    if card.ceiling is None:
        return text
    return f"{text} With labels as noisy as these a perfect score is expected to reach {card.ceiling}."
