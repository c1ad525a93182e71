"""What an analysis found: plain values, for JSON and for the page."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from evit_nas.arch import ArchConfig
from evit_nas.latency.profile import Profile

Kind = Literal["q", "k", "v", "projection", "ffn", "width", "stem", "merge", "squeeze"]
INNER: tuple[Kind, ...] = ("q", "k", "v", "projection", "ffn")
"""Those of the paper's figure 5; they can be cut without changing a stage's width."""


class BlockHeads(BaseModel):
    """How alike the heads of one layer of attention are."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    block: str
    """Path of the layer."""
    stage: int
    """Counted from 0."""
    similarity: tuple[float, ...]
    """For each head its largest cosine similarity with another head of the layer, mean over images; from -1 to 1."""

    @property
    def mean(self) -> float:
        """Over the heads."""
        return float(np.mean(self.similarity))


class Channels(BaseModel):
    """How much the channels of one part matter."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """Path of the part, for example stages.1.blocks.0.mixer.fn.heads.2.v; stages.1 is the width of that stage."""
    kind: Kind
    """What the channels are for."""
    stage: int
    """Counted from 0."""
    importance: tuple[float, ...]
    """Mean over images of what the loss would change by, to first order, without the channel; in nats, at least 0."""


class Analysis(BaseModel):
    """One network on one data set, through the paper's instruments."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    network: str
    """For people."""
    arch: ArchConfig | None
    """None for a network that is no EfficientViT."""
    data: str
    """Name of the data set."""
    images: int
    """How many training images were looked at."""
    training_top1: float | None
    """Right answers among these training images in percent, which shows that the network has learned them and is no
    judgement of it: see `evaluation`. None where the network does not know these classes."""
    profile: Profile | None
    """Where its time goes on the device; None if no device was asked."""
    heads: tuple[BlockHeads, ...]
    """Layers of attention with more than one head, in order of execution."""
    channels: tuple[Channels, ...]
    """Empty where the network does not know the classes of the data."""
    notes: tuple[str, ...]
    """What to keep in mind when the figures are read."""
