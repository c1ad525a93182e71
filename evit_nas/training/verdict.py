"""What speaks against a trained network, in sentences: nothing that was trained in vain is shipped without a word."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evit_nas.data.look import FEW, Look
from evit_nas.errors import first_few
from evit_nas.stats import binomial_error

STANDING = 0.98  # of the training loss at the beginning, above which it has not fallen
TOO_COARSE = 5.0  # points of top-1 between two networks that the validation images should tell apart
MEMORISED = 25.0  # points of top-1 by which training images may be ahead


@dataclass(frozen=True)
class Verdict:
    """What was found."""

    no_good: str
    """Why the network is worth nothing; empty if it is worth something."""
    doubts: tuple[str, ...]
    """What else its user should know."""


def judge(
    best: Mapping[str, Any], train_top1: float | None, rows: Sequence[Mapping[str, Any]], seen: Look, fresh: bool
) -> Verdict:
    """Judges a finished training.

    Args:
        best: the validation that it is shown by: top1 in percent and the number of images.
        train_top1: of the same weights on training images, without augmentation, in percent.
        rows: of its metrics.
        seen: the data.
        fresh: whether it began without trained weights, so that the loss has to fall.
    """
    return Verdict(_guessing(best, seen) or (_standing(rows) if fresh else ""), tuple(_doubts(best, train_top1, seen)))


def _guessing(best: Mapping[str, Any], seen: Look) -> str:
    """Whether always naming the most frequent class does as well, within two standard errors."""
    top1, images = best["top1"], best["images"]
    chance = 100 * max(seen.val_per_class) / max(sum(seen.val_per_class), 1)
    if top1 > chance + 2 * binomial_error(chance, images):
        return ""
    return (
        f"top-1 {top1:.1f} % of {images} images is no better than always naming one class ({chance:.1f} %): "
        "train for longer, or with another recipe"
    )


def _standing(rows: Sequence[Mapping[str, Any]]) -> str:
    losses = [row["loss"] for row in rows if row["kind"] == "train"]
    tenth = math.ceil(len(losses) / 10)
    if len(losses) < 2:
        return ""
    first, last = sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth
    if last < STANDING * first:
        return ""
    return f"the training loss has not fallen ({first:.2f} to {last:.2f} nats): try another rate, check the labels"


def _doubts(best: Mapping[str, Any], train_top1: float | None, seen: Look) -> list[str]:
    found = []
    top1, images = best["top1"], best["images"]
    apart = 2 * math.sqrt(2) * binomial_error(top1, images)  # two standard errors of a difference of two accuracies
    if apart > TOO_COARSE:
        found.append(
            f"{images} validation images cannot tell two networks apart that differ by less than {apart:.0f} points of "
            "top-1"
        )
    if rare := seen.rare:
        found.append(f"fewer than {FEW} training images of {len(rare)} classes: {first_few(rare, 3)}")
    if train_top1 is not None and train_top1 - top1 > MEMORISED:
        found.append(
            f"it knows training images far better ({train_top1:.0f} %) than others ({top1:.0f} %): more images, or "
            "--init with trained weights, would help most"
        )
    return found
