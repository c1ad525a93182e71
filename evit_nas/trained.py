"""What a finished training leaves: one folder that evaluation, export and other trainings start from.

model.safetensors    the weights that validated best, under this package's names
trained.json         everything needed to use them, and how they came to be: this file's `Trained`
arch.yaml            the architecture as it was trained
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from evit_nas.arch import ArchConfig
from evit_nas.commands import command_line
from evit_nas.data.preprocessing import Preprocessing
from evit_nas.errors import UsageError
from evit_nas.files import expanded, write_atomically
from evit_nas.yamlio import read_json, validate

WEIGHTS, RECORD, ARCH = "model.safetensors", "trained.json", "arch.yaml"
SUPERNET_RECORD = "supernet.json"  # of a supernet, beside its WEIGHTS: see network/supernet.py


def parted(text: str) -> tuple[Path, str] | None:
    """The folder and the network of SUPERNET#ARCH; None where `text` is nothing of the kind."""
    folder, mark, arch = text.rpartition("#")
    whole = expanded(folder)
    return (whole, arch) if mark and (whole / SUPERNET_RECORD).is_file() else None


class Trained(BaseModel):
    """A trained network, without its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """What it is, for example evit-1.7M-112px or m2."""
    origin: str = ""
    """The member of a search that it is, for example runs/mine/evit-4.31ms-6.2M; empty if it is none."""
    arch: ArchConfig
    """As trained: with the image size and the classes of the data."""
    classes: tuple[str, ...]
    """Names of the outputs, in their order."""
    preprocessing: Preprocessing
    """From an image to an input."""
    data: str
    """What was given as --data."""
    data_name: str
    """For people, for example fashion-mnist."""
    recipe: dict[str, Any]
    """The resolved recipe."""
    init: str
    """Where the weights started from."""
    teacher: str | None = None
    """What the network was distilled from."""
    seed: int
    """Of weights and batches."""
    epoch: int
    """After how many epochs these weights were taken."""
    averaged: bool
    """Whether they are the moving average."""
    top1: float = Field(ge=0, le=100)
    """Validation accuracy in percent."""
    top5: float | None = None
    """The same, for the right class among the first five; None with five classes or fewer."""
    loss: float
    """Validation cross-entropy in nats."""
    validation_images: int = 0
    """How many these figures are of; 0 in records of older versions, which do not know."""
    train_top1: float | None = None
    """Accuracy in percent on training images as they are, without augmentation; None in records of older versions."""
    no_good: str = ""
    """Why it is worth nothing, as far as the training could tell; empty if it is worth something."""
    doubts: tuple[str, ...] = ()
    """What else its user should know."""
    command: str
    """What was typed."""
    versions: dict[str, str]
    """Of evit_nas and the libraries."""

    @classmethod
    def load(cls, folder: Path) -> Trained:
        """What the training in `folder` left.

        Raises:
            UsageError: it is not such a folder, its training is not finished, or the record is damaged.
        """
        path = folder / RECORD
        if not path.is_file() or not (folder / WEIGHTS).is_file():
            raise UsageError(
                f"{folder} holds no finished training (no {RECORD} with {WEIGHTS}). Make one with evit-nas train, or "
                f"continue an interrupted one with: {command_line('train', folder, '--resume')}"
            )
        return validate(cls, read_json(path), str(path))

    def save(self, folder: Path) -> None:
        """Writes the record and the architecture beside the weights."""
        write_atomically(folder / ARCH, self.arch.to_yaml())
        write_atomically(folder / RECORD, self.model_dump_json(indent=1) + "\n")
