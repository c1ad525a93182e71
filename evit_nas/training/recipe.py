"""The settings of a training: the paper's recipe, and three of other sizes.

The paper's (section 5.1, and the official code where that says more) is 300 epochs of AdamW over batches of 2048 at a
learning rate of 1e-3 for every 512 images of a batch, with heavy augmentation. The official code gives each of its
eight processes 256 images; that is the batch here, and the learning rate follows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from evit_nas.errors import UsageError, did_you_mean
from evit_nas.yamlio import read_yaml, validate

RATE_BATCH = 512  # images in the batch that `learning_rate` is for
WARMUP_SHARE = 0.1  # of the epochs, at most, where their number is changed
AUTO = "auto"  # the recipe that follows from the data: auto.py

Share = Annotated[float, Field(ge=0, le=1)]


class Recipe(BaseModel):
    """How a network is trained; the defaults are the paper's."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 300
    """Passes over the training images."""
    batch_size: Annotated[int, Field(ge=2, le=65_536)] = 256
    """Images in a step, over all processes."""
    accumulate: Annotated[int, Field(ge=1, le=1024)] = 1
    """Parts that a step is computed in, for batches that do not fit into memory."""
    optimiser: str = "adamw"
    """A name that timm's optimiser factory knows."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Highest learning rate for a batch of 512 images; scaled in proportion to `batch_size`."""
    final_rate: Share = 0.0025
    """Where the cosine ends, as a share of the highest rate: 1e-5 of 4e-3 in the paper's set-up."""
    warmup_epochs: Annotated[float, Field(ge=0)] = 5
    """Epochs in which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.025
    """On matrices and kernels; biases, norms and attention biases go without."""
    clip: Annotated[float, Field(gt=0)] | None = 0.02
    """Limit for gradients; None leaves them as they are."""
    clip_mode: Literal["agc", "norm", "value"] = "agc"
    """What is limited: each unit's gradient as a share of its weights (AGC), the norm of all, or each value."""
    smallest_crop: Annotated[float, Field(gt=0, le=1)] = 0.08
    """Smallest share of an image's area that a random crop keeps; 1 leaves the whole image, resized."""
    flip: Share = 0.5
    """Chance of a mirrored image."""
    colour_jitter: Annotated[float, Field(ge=0, le=2)] = 0.4
    """Change of brightness, contrast and saturation; without effect beside `auto_augment`."""
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    """A policy in timm's spelling; None for none."""
    erasing: Share = 0.25
    """Chance that a rectangle is replaced by noise."""
    repeats: Annotated[int, Field(ge=1, le=16)] = 3
    """Times that a drawn image is used in an epoch, augmented anew each time; the epoch keeps its length."""
    mixup: Annotated[float, Field(ge=0)] = 0.8
    """Alpha of Mixup; 0 leaves it out."""
    cutmix: Annotated[float, Field(ge=0)] = 1.0
    """Alpha of CutMix; 0 leaves it out. With both, each batch takes one of them."""
    mix_chance: Share = 1.0
    """Chance that a batch is mixed."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Label smoothing."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.99996
    """Decay of the moving average of the weights, reached gradually; 0 keeps none."""
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    """Of every resize; "random" only while training."""
    crop_pct: Annotated[float, Field(gt=0, le=1)] = 0.875
    """Side of the centre crop in validation and use, as a share of the resized image."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward pass; the paper's is fp32."""
    distil: Literal["soft", "hard"] = "soft"
    """With a teacher: learn its distribution, or its decision."""
    distil_share: Share = 0.5
    """With a teacher: its share of the loss."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """With a teacher: what both distributions are softened by."""

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        if self.batch_size % (2 * self.accumulate):
            raise ValueError(
                f"batch_size must be a multiple of 2 times accumulate, so that every part can be mixed in pairs: "
                f"{self.batch_size} is not one of {2 * self.accumulate}"
            )
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs must be fewer than the {self.epochs} epochs, got {self.warmup_epochs:g}")
        return self

    @property
    def peak_rate(self) -> float:
        """The highest learning rate at this batch size."""
        return self.learning_rate * self.batch_size / RATE_BATCH

    @property
    def mixed(self) -> bool:
        """Whether batches are mixed."""
        return self.mix_chance > 0 and (self.mixup > 0 or self.cutmix > 0)


# Light augmentation of small images, as for Fashion-MNIST: crops that keep most of the object, no colours to jitter.
_LIGHT = {"smallest_crop": 0.6, "auto_augment": None, "colour_jitter": 0.0, "repeats": 1, "mixup": 0.0, "cutmix": 0.0}

RECIPES: dict[str, dict[str, Any]] = {
    "paper": {},
    # rates are for RATE_BATCH images: short reaches 2e-3 at its 128, tiny 1.9e-3 at its 32
    "short": _LIGHT
    | {"epochs": 20, "batch_size": 128, "learning_rate": 8e-3, "warmup_epochs": 2, "clip": 1.0, "clip_mode": "norm"}
    | {"weight_decay": 0.05, "erasing": 0.1, "average": 0.999},
    # weight decay as the authors fine-tune: microsoft/Cream, issue 172
    "finetune": {"epochs": 30, "learning_rate": 1e-4, "weight_decay": 1e-8, "smallest_crop": 0.35, "warmup_epochs": 2}
    | {"erasing": 0.0, "repeats": 1, "mixup": 0.2, "average": 0.999, "auto_augment": "rand-m5-mstd0.5-inc1"},
    "tiny": _LIGHT
    | {"epochs": 20, "batch_size": 32, "learning_rate": 3e-2, "warmup_epochs": 2, "clip": 1.0, "clip_mode": "norm"}
    | {"flip": 0.0, "erasing": 0.0, "smoothing": 0.0, "average": 0.0, "crop_pct": 1.0, "weight_decay": 0.05},
}
"""paper: ImageNet in days. short: from scratch on tens of thousands of images in an hour. finetune: from trained
weights. tiny: a few thousand small images in a minute."""


def load_recipe(text: str, changes: Mapping[str, Any]) -> Recipe:
    """The recipe that `text` names, one of RECIPES or a YAML file of its fields, with `changes` on top.

    Raises:
        UsageError: there is no such recipe or field, or a value is not allowed.
    """
    if text in RECIPES:
        return changed(RECIPES[text], changes, f"--recipe {text}")
    if not Path(text).exists() and Path(text).suffix not in (".yaml", ".yml"):
        known = [AUTO, *RECIPES]
        raise UsageError(f"no recipe is called '{text}'. {did_you_mean(text, known)} A YAML file is one, too.")
    return changed(read_yaml(Path(text)), changes, text)


def changed(fields: Mapping[str, Any], changes: Mapping[str, Any], where: str) -> Recipe:
    """The recipe of `fields` with `changes` on top; where only the epochs change, the warm-up shrinks with them.

    Args:
        where: what messages call it.

    Raises:
        UsageError: there is no such field, or a value is not allowed.
    """
    epochs, warmup = changes.get("epochs"), fields.get("warmup_epochs", Recipe().warmup_epochs)
    if isinstance(epochs, int) and epochs > 0 and isinstance(warmup, int | float) and "warmup_epochs" not in changes:
        # anything else is refused below
        changes = {**changes, "warmup_epochs": min(warmup, epochs * WARMUP_SHARE)}
    return validate(Recipe, {**fields, **changes}, where)


def check_names(recipe: Recipe, trackers: Sequence[str] = ()) -> None:
    """That timm and accelerate know what the recipe and the user call by their names.

    Raises:
        UsageError: one is not known, or not installed.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from timm.data import create_transform
    from timm.optim import list_optimizers

    optimisers = list_optimizers()
    if recipe.optimiser not in optimisers:
        raise UsageError(f"timm has no optimiser '{recipe.optimiser}'. {did_you_mean(recipe.optimiser, optimisers)}")
    try:
        create_transform(64, is_training=True, auto_augment=recipe.auto_augment)
    except Exception as error:  # timm asserts, and parses numbers
        policy = recipe.auto_augment
        raise UsageError(f"timm does not know auto_augment '{policy}': {error}; try rand-m9-mstd0.5-inc1.") from None
    here = [str(tracker) for tracker in get_available_trackers()]
    for tracker in trackers:
        if tracker not in LOGGER_TYPE_TO_CLASS:
            raise UsageError(f"no tracker is called '{tracker}'. {did_you_mean(tracker, LOGGER_TYPE_TO_CLASS)}")
        if tracker not in here:
            raise UsageError(f"the tracker '{tracker}' is not installed: pip install {tracker}. Installed: {here}.")
