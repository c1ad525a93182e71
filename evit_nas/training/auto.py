"""The recipe that fits a data set: thousands of steps whatever its size, and images about as large as they are.

From scratch a small network of this kind learns for thousands of steps, not for a number of epochs: 300 epochs of 600
images in the paper's batches are 600 steps. So the batch follows the number of images, and the epochs follow both.
`benchmarks/recipes.py` compares augmentations, rates and batches around what is chosen here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from evit_nas.data.look import Look
from evit_nas.training.recipe import AUTO, RATE_BATCH, RECIPES, Recipe, changed, load_recipe

PAPER_IMAGES = 200_000  # from so many on the paper's recipe has steps enough
STEPS = 6000  # from scratch
TUNING_STEPS = 2000  # from trained weights
EPOCHS = (20, 400)  # least and most
BATCHES = (16, 256)  # least and most; BatchNorm wants no fewer
STEPS_AN_EPOCH = 24  # at least, where the batch may be made smaller for it
RATE, TUNING_RATE = 2e-3, 5e-4  # highest, at a batch of 128; it goes with the root of the batch
SIZES_PX = (64, 96, 112, 128, 160, 192, 224)  # multiples of 16, as every network takes them
MAGNIFIED = 1.75  # an image is trained at this many times its side: the stem keeps one point of 16 x 16 pixels


def auto_fields(seen: Look, from_weights: bool) -> dict[str, Any]:
    """The fields of the recipe for these images, from scratch or from trained weights."""
    if seen.train >= PAPER_IMAGES:
        return dict(RECIPES["finetune" if from_weights else "paper"])
    batch = 2 ** math.floor(math.log2(max(seen.train / STEPS_AN_EPOCH, 1)))
    batch = min(max(batch, BATCHES[0]), BATCHES[1], max(2, seen.train // 2 * 2))  # even, as `Recipe` wants it
    steps = seen.train // batch
    epochs = math.ceil((TUNING_STEPS if from_weights else STEPS) / steps)
    epochs = min(max(epochs, EPOCHS[0]), EPOCHS[1])
    rate = (TUNING_RATE if from_weights else RATE) * math.sqrt(batch / 128)
    return RECIPES["short"] | {
        "epochs": epochs,
        "batch_size": batch,
        "learning_rate": float(f"{rate * RATE_BATCH / batch:.2g}"),  # `Recipe` scales it by batch / RATE_BATCH again
        "warmup_epochs": min(5, epochs / 10),  # the paper's, or as `recipe.changed` shortens it
        "smallest_crop": 0.35,  # 0.6 does as well, within the error: docs/results/recipes.md
        "auto_augment": None if seen.grey else "rand-m7-mstd0.5-inc1",  # grey images have no colours to change
    }


def recipe_for(name: str, changes: Mapping[str, Any], seen: Look, from_weights: bool) -> Recipe:
    """The recipe that `name` says: "auto" for the one that fits these images, or what `load_recipe` takes.

    Raises:
        UsageError: there is no such recipe or field, or a value is not allowed.
    """
    if name == AUTO:
        return changed(auto_fields(seen, from_weights), changes, "--recipe auto")
    return load_recipe(name, changes)


def auto_size(seen: Look, own_px: int) -> int:
    """The side that a network of `own_px` is trained at: somewhat larger than the images, and not above its own."""
    wanted = seen.side_px * MAGNIFIED
    return min(own_px, next((size for size in SIZES_PX if size >= wanted), own_px))


def reason(seen: Look, from_weights: bool) -> str:
    """Why the recipe is what it is, for people."""
    if seen.train >= PAPER_IMAGES:
        return f"recipe auto: {seen.train:,} images are enough for the {'finetune' if from_weights else 'paper'} recipe"
    steps, batch = TUNING_STEPS if from_weights else STEPS, auto_fields(seen, from_weights)["batch_size"]
    start = "from trained weights" if from_weights else "from scratch"
    return (
        f"recipe auto: about {steps:,} steps {start}, in batches of {batch} for {seen.train:,} images; images of "
        f"{seen.side_px} px are taken at {auto_size(seen, SIZES_PX[-1])} px where the network's own are larger"
    )
