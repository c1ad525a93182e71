"""What shipping leaves: one folder that deploys, and its record.

model.safetensors   the trained weights, under this package's names
config.json         how timm and the Hugging Face hub build the network and prepare images
arch.yaml           the architecture
model.onnx          the deploy graph, "input" (1, C, H, W) to "logits" (1, classes)
model-int8.onnx     the same in 8 bits, where that is faster and as accurate
predict.py          what model.onnx says to pictures, with ONNX Runtime, numpy and Pillow alone
README.md           the model card
shipped.json        every figure, and how it came to be: this file's `Shipped`
SHA256SUMS          of all the others, as `sha256sum --check` reads it
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from evit_nas.errors import UsageError
from evit_nas.latency import Latency
from evit_nas.stats import binomial_error
from evit_nas.trained import Trained
from evit_nas.yamlio import read_json, validate

CONFIG, FP32, INT8, PREDICT, CARD, RECORD, SUMS = (
    "config.json",
    "model.onnx",
    "model-int8.onnx",
    "predict.py",
    "README.md",
    "shipped.json",
    "SHA256SUMS",
)


class ShippedGraph(BaseModel):
    """One ONNX file, as it was when it was made."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    top1: float = Field(ge=0, le=100)
    """Accuracy in percent on the validation images that `Shipped.images` counts."""
    latency: Latency
    """Measured strictly, in the same session of the device as the other graph's."""
    error: float = Field(ge=0)
    """Largest difference to the torch network on `accuracy.probes`, relative to the largest output."""
    megabytes: float
    """Size of the file, in 10^6 bytes."""


class Shipped(BaseModel):
    """A shipped network, without its files."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    trained: Trained
    """The training it comes from."""
    params: int
    """Parameters of the network as it was trained."""
    macs: int
    """Multiply-accumulates for one image."""
    images: int
    """Validation images behind every accuracy here."""
    top1: float = Field(ge=0, le=100)
    """Accuracy of the torch network in percent."""
    fp32: ShippedGraph
    """model.onnx."""
    int8: ShippedGraph | None
    """The graph in 8 bits, also where it is refused; None where it could not be made."""
    int8_refusal: str
    """Why there is no model-int8.onnx; empty where there is one."""
    calibration_images: int
    """Training images that the ranges of the 8-bit activations come from."""
    tolerance: float = Field(ge=0)
    """Points of accuracy that the 8-bit graph may lose."""
    command: str
    """What was typed."""
    versions: dict[str, str]
    """Of evit_nas and the libraries."""

    def summary(self) -> str:
        """The network in a line."""
        error = binomial_error(self.top1, self.images)
        return (
            f"top-1 {self.top1:.1f} ± {error:.1f} % of {self.images} validation images, {self.fp32.latency} "
            f"on {self.fp32.latency.conditions.device}, {self.params / 1e6:.1f}M parameters"
        )

    @property
    def graphs(self) -> dict[str, ShippedGraph]:
        """The ONNX files of the folder by name."""
        return {FP32: self.fp32} | ({INT8: self.int8} if self.int8 and not self.int8_refusal else {})

    @classmethod
    def load(cls, folder: Path) -> Shipped:
        """The record in `folder`.

        Raises:
            UsageError: there is none, or it is damaged.
        """
        path = folder / RECORD
        if not path.is_file():
            near = (folder / "shipped", folder.parent)  # of a training, of a file
            known = [place for place in near if (place / RECORD).is_file()]
            hint = f"Did you mean {known[0]}?" if known else "Make one with evit-nas ship."
            raise UsageError(f"{folder} is not a shipped folder (it has no {RECORD}). {hint}")
        return validate(cls, read_json(path), str(path))


def write_sums(folder: Path) -> None:
    """Writes the check sums of all other files in `folder`."""
    lines = [f"{sha256(path)}  {path.name}\n" for path in sorted(folder.iterdir())]
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def read_sums(folder: Path) -> dict[str, str]:
    """The check sum that each file had, by name.

    Raises:
        UsageError: the list is missing or damaged.
    """
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / SUMS}: cannot be read: {error}.") from None
    pairs = [line.split("  ") for line in lines]
    if not all(len(pair) == 2 for pair in pairs):
        raise UsageError(f"{folder / SUMS}: damaged: every line must hold a check sum and a file name.")
    return {name: digest for digest, name in pairs}


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
