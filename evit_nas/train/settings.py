"""What `train.yaml` records: all that decides how a training goes."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from evit_nas.arch import ArchConfig
from evit_nas.train.recipe import Recipe


class TrainSettings(BaseModel):
    """One training of one network; with equal settings and software two trainings do the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Of the architecture, for example evit-4.31ms-6.2M or m2."""
    arch: ArchConfig
    """The network, at the image size it is trained at; its classes are those of the data."""
    data: str
    """Images, as given to --data."""
    recipe_name: str
    """What the recipe was called."""
    recipe: Recipe
    """How it is trained."""
    init: str = "scratch"
    """Where the weights start from."""
    teacher: str | None = None
    """What it is distilled from."""
    seed: Annotated[int, Field(ge=0, le=2**31)] = 0
    """Of weights, order and augmentation."""


class TrainRecord(BaseModel):
    """What train.yaml holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    evit_nas: str
    created: str
    command: str
    settings: TrainSettings
    versions: dict[str, str]
