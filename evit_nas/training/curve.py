"""The learning curve as a picture: training and validation loss, and validation accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_curve(rows: Sequence[dict[str, Any]], name: str, path: Path) -> None:
    """Draws the lines of metrics.jsonl as PNG: losses in nats (left), top-1 in percent (right) over epochs.

    The training loss is that of augmented images, mixed and with smoothed labels where the recipe says so: it may lie
    above the validation loss.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    train = [row for row in rows if row["kind"] == "train"]
    val = [row for row in rows if row["kind"] == "val"]
    steps = max((row["step"] for row in train), default=1)  # of an epoch
    with rc_context({"font.size": 9, "axes.spines.top": False}):
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        left = figure.subplots()
        left.plot(
            [r["epoch"] - 1 + r["step"] / steps for r in train],  # rows count epochs from 1
            [r["loss"] for r in train],
            color="#0f5fa8",
            lw=1,
            label="training",
        )
        left.plot(
            [row["epoch"] for row in val], [row["loss"] for row in val], color="#0f5fa8", ls="--", label="validation"
        )
        left.set(xlabel="epoch", title=name)
        left.set_ylabel("loss (nats)", color="#0f5fa8")
        left.legend(loc="center right", frameon=False)
        right = left.twinx()
        right.plot([row["epoch"] for row in val], [row["top1"] for row in val], color="#b0520c", marker=".")
        right.set_ylabel("validation top-1 (%)", color="#b0520c")
        figure.savefig(path, dpi=150)
