"""What `train.yaml` records: all that decides how a training goes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, model_validator

from evit_nas.arch import ArchConfig
from evit_nas.data.preprocessing import CHANNELS, Preprocessing
from evit_nas.space import SearchSpace
from evit_nas.training.recipe import Recipe

GRAY = (0.5,)
SCRATCH = "scratch"  # fresh weights


class TrainSettings(BaseModel):
    """One training of one network; with equal settings and software two trainings do the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """What the network is, for example evit-1.7M-112px or m2."""
    origin: str = ""
    """The member of a search that it is, for example runs/mine/evit-4.31ms-6.2M; empty if it is none."""
    arch: ArchConfig
    """The network, at the image size it is trained at; its classes are those of the data."""
    data: str
    """Images, as given to --data; a folder by its absolute path."""
    recipe_name: str
    """What the recipe was called."""
    recipe: Recipe
    """How it is trained."""
    init: str = SCRATCH
    """Where the weights start from."""
    teacher: str | None = None
    """What it is distilled from."""
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0
    """Of weights, order and augmentation."""

    @model_validator(mode="after")
    def _check(self) -> TrainSettings:
        if self.arch.in_channels not in CHANNELS:
            raise ValueError(
                f"in_channels must be 1 (grey) or 3 (colour) to train on images, whose alpha and further bands are not "
                f"read, got {self.arch.in_channels}"
            )
        return self

    @property
    def preprocessing(self) -> Preprocessing:
        """ImageNet's normalisation, as all published weights have it, whatever the data; gray goes from -1 to 1."""
        from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

        channels, recipe = self.arch.in_channels, self.recipe
        return Preprocessing(
            input_size=(channels, *self.arch.input_size),
            mean=IMAGENET_DEFAULT_MEAN if channels == 3 else GRAY * channels,
            std=IMAGENET_DEFAULT_STD if channels == 3 else GRAY * channels,
            interpolation="bicubic" if recipe.interpolation == "random" else recipe.interpolation,
            crop_pct=recipe.crop_pct,
        )


class SupernetSettings(TrainSettings):
    """The training of all networks of a space at once; `arch` is the largest of them."""

    space: SearchSpace
    """Whose networks, with the classes of the data; they are trained at the image size of `arch`."""
    macs: tuple[int, int]
    """Least and most multiply-accumulates of the networks that are trained, at the space's own image size."""
    smallest: ArchConfig
    """The least of them."""
    budget: str = ""
    """The latency that they were to keep, for example 5 ms on cpu, 1 thread, batch 1, fp32; empty if MACs were said."""
    held_out: Annotated[int, Field(ge=1)]
    """Training images that are left out, to judge networks on."""


def _of_what(settings: Any) -> Any:
    """The settings of a supernet as such."""
    if isinstance(settings, dict) and "space" in settings:
        return SupernetSettings.model_validate(settings)
    return settings


class TrainRecord(BaseModel):
    """What train.yaml holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    evit_nas: str
    created: str
    command: str
    settings: Annotated[SerializeAsAny[TrainSettings], BeforeValidator(_of_what)]
    versions: dict[str, str]
