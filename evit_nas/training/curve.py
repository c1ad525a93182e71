"""The learning curve as a picture: training loss, and validation accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_curve(rows: Sequence[dict[str, Any]], name: str, path: Path) -> None:
    """Draws the lines of metrics.jsonl as PNG: loss in nats (left), top-1 in percent (right) over epochs."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    train = [row for row in rows if row["kind"] == "train"]
    val = [row for row in rows if row["kind"] == "val"]
    steps = max((row["step"] for row in train), default=1)  # of an epoch
    with rc_context({"font.size": 9, "axes.spines.top": False}):
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        left = figure.subplots()
        left.plot(
            [r["epoch"] - 1 + r["step"] / steps for r in train], [r["loss"] for r in train], color="#0f5fa8", lw=1
        )
        left.set(xlabel="epoch", title=name)
        left.set_ylabel("training loss (nats)", color="#0f5fa8")
        right = left.twinx()
        right.plot([row["epoch"] for row in val], [row["top1"] for row in val], color="#b0520c", marker=".")
        right.set_ylabel("validation top-1 (%)", color="#b0520c")
        figure.savefig(path, dpi=150)
