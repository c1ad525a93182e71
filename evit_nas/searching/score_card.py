"""The card of a run's score: how well it ranks trained networks of about equal latency, by cross-validation.

It is judged by networks that were trained: those that a learned score was learned from (each is left out in turn),
those of the nearest regime that come with the package, or what is published on ImageNet. A search makes it at its end;
it is derived, and made anew where it is missing.
"""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evit_nas.accuracy.coverage import default_method
from evit_nas.accuracy.table import SHIPPED_TABLE, LabelTable, shipped_tables
from evit_nas.errors import UsageError
from evit_nas.files import write_atomically
from evit_nas.regime import IMAGENET, Regime
from evit_nas.runs import Run

if TYPE_CHECKING:
    from evit_nas.accuracy.scorecard import Card, Row

FILE = "card.json"  # in the run's folder
SCORES = {"table": "predictor", "predictor": "predictor", "zero-cost": "zero-cost aggregate"}
"""Accuracy method -> its row of the score card."""


@dataclass(frozen=True)
class ScoreCard:
    """The card in words, as pages show it."""

    rows: list[dict[str, str]]
    """Cells by the name of their column; none if there is nothing to judge by."""
    judged: str
    """By what it was judged, in sentences."""


NO_CARD = ScoreCard([], "")


def card_of(run: Run) -> ScoreCard:
    """The card as the run's search left it; made now where there is none, as of a search that goes on."""
    try:
        return ScoreCard(**json.loads((run.path / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # there is none, no JSON, or one of other fields
        return make_card(run)


def make_card(run: Run) -> ScoreCard:
    """Judges the run's score, and keeps the card in the run's folder if that can be written."""
    card = _on_imagenet() if run.settings.accuracy.regime == IMAGENET else _on_table(run)
    if card.rows:
        with suppress(OSError):  # a run of somebody else's
            write_atomically(run.path / FILE, json.dumps(asdict(card)))
    return card


def _on_table(run: Run) -> ScoreCard:
    from evit_nas.accuracy.scorecard import score_card

    table = _table(run)
    if table is None:
        return NO_CARD
    try:
        wish = run.settings.accuracy
        # a score for a regime has no label of the data at hand, so it is judged on data whose labels it has not seen
        blind = wish.method == "table" and wish.table is None
        card = score_card(table, labels=(), only=SCORES[wish.method], blind=blind)
    except UsageError:  # too few trained networks, or none of about equal latency
        return NO_CARD
    return ScoreCard([_plain(row) for row in card.rows], _judged(card))


def _on_imagenet() -> ScoreCard:
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
    return ScoreCard(
        rows,
        "Each of them was left out of everything that the score was learned from, and predicted; only the strengths of "
        "the prior, which all regimes share, were fitted with them. Seven networks of other papers are predicted by "
        f"their sizes with an error of {card.rmse:.1f} points (root mean square). These few networks lie far apart: "
        "how well the score ranks networks of about the same latency on ImageNet is not known.",
    )


def _table(run: Run) -> LabelTable | None:
    from evit_nas.searching.labelling.adaptive import TABLE

    wish = run.settings.accuracy
    names: dict[str, str | Path] = {"predictor": run.path / "labels" / TABLE}
    if wish.table is not None:
        names["table"] = wish.table
    elif wish.regime is not None and (nearest := _nearest(wish.regime)):
        names["table"] = nearest
    if wish.method == "zero-cost" and default_method(run.settings.space, None) == "table":
        names["zero-cost"] = SHIPPED_TABLE
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
