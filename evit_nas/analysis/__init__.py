"""The paper's own instruments (arXiv 2305.07027, section 2): see why an architecture is good, and steer the space.

    where the time goes     `latency.profile`: memory-bound operators on the user's device (figure 2)
    attention's share       `proportion.py`: accuracy against it at equal latency (figure 3)
    heads that agree        `heads.py`: similarity of the heads of a layer (figure 4)
    channels that matter    `taylor.py`: importance of each (figure 5)

What they say becomes a narrower search space (`suggest.py`) and a smaller network to start training from
(`pruning.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from evit_nas.analysis.results import Analysis, BlockHeads, Channels
from evit_nas.arch import ArchConfig
from evit_nas.errors import UsageError
from evit_nas.latency import TimmModel

if TYPE_CHECKING:
    from torch import nn

    from evit_nas.config import Conditions
    from evit_nas.data.preprocessing import Preprocessing
    from evit_nas.network.saved import Saved

__all__ = ["Analysis", "BlockHeads", "Channels", "analyze"]

DOUBTS = 3.0  # standard errors above chance below which a network counts as untrained


def analyze(
    network: str,
    data: str,
    *,
    images: int = 512,
    batch: int = 64,
    seed: int = 0,
    conditions: Conditions | None = None,
    like: str | None = None,
    note: Callable[[str], None] = lambda message: None,
) -> Analysis:
    """Head similarity and Taylor importance on some of the training images, and the profile on a device.

    Training images, since what is cut or narrowed by these figures is judged on the validation images afterwards, which
    must have had no part in it. What is answered right among them says whether there is anything to look at; how good
    the network is, `evaluation` says.

    Args:
        network: what `open_saved` takes: an EfficientViT, or one of timm's transformers (DeiT, Swin).
        data: what `open_source` takes.
        images: how many to look at; a random choice.
        batch: images at a time; moves no figure.
        seed: of the choice.
        conditions: what to profile under; None leaves the profile out.
        like: a folder that tells the classes and the preprocessing of a file that has none.
        note: told of what to keep in mind.

    Raises:
        UsageError: the network or the data cannot be used, their classes differ, or the weights are untrained.
        MeasurementError: the profile failed.
    """
    from evit_nas.analysis.heads import head_similarity
    from evit_nas.analysis.sample import sample
    from evit_nas.analysis.taylor import importance
    from evit_nas.data.sources import open_source
    from evit_nas.latency.profile import profile
    from evit_nas.network.model import EfficientViT
    from evit_nas.network.saved import open_saved

    if images < 2 or batch < 1:
        raise UsageError(f"give at least 2 images and a batch of at least 1, got {images} and {batch}.")
    saved = open_saved(network)
    model = _ours(saved)
    about = open_saved(like) if like and saved.preprocessing is None else saved
    if about.preprocessing is None:
        raise UsageError(
            f"{network}: weights alone do not tell how images are normalised. Name a folder that does with "
            "--like FOLDER."
        )
    if isinstance(model, EfficientViT):
        model.set_input_size(about.preprocessing.input_size[1:])  # shapes of weights alone do not tell it
    if _is_fresh(model):
        raise UsageError(f"{network} holds no trained weights: all of its norms are as they were initialised.")
    source, outputs = open_source(data), int(model.num_classes)  # type: ignore[arg-type]
    batches = sample(about, about.preprocessing, source, outputs, images, batch, seed)
    # first, for it may be refused, and nothing that took long is lost then
    profiled = profile(_measurable(model, about.preprocessing), conditions) if conditions else None
    notes = []
    channels: list[Channels] = []
    top1 = None
    if batches.outputs is None:
        notes.append(
            f"{saved.name} has {outputs} outputs, {source.name} has {len(source.classes)} classes: no importance of "
            "channels, which needs a loss"
        )
    else:
        channels, top1 = importance(model, batches)
        if top1 <= _untrained(len(source.classes), len(batches.chosen)):
            notes.append(
                f"{saved.name} is right on {top1:.1f} % of the training images, about as often as chance: its weights "
                "look untrained, so that heads and channels say nothing about the architecture"
            )
    for each in notes:
        note(each)
    return Analysis(
        network=saved.name,
        arch=model.arch if isinstance(model, EfficientViT) else None,
        data=source.name,
        images=len(batches.chosen),
        training_top1=top1,
        profile=profiled,
        heads=tuple(head_similarity(model, batches)),
        channels=tuple(channels),
        notes=tuple(notes),
    )


def _ours(saved: Saved) -> nn.Module:
    """The network, as one of ours where timm's class computes the same."""
    from evit_nas.network.saved import efficientvit

    try:
        return efficientvit(saved)
    except UsageError:
        return saved.model


def _measurable(model: nn.Module, preprocessing: Preprocessing) -> ArchConfig | TimmModel:
    from evit_nas.network.model import EfficientViT

    if isinstance(model, EfficientViT):
        return model.arch
    config: Any = model.pretrained_cfg  # a folder's name is not the network's
    return TimmModel(config["architecture"], preprocessing.input_size[-1])


def _is_fresh(model: nn.Module) -> bool:
    """Whether no norm has learned anything, which the first step of a training changes."""
    from torch import nn

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
    norms = [module for module in model.modules() if isinstance(module, kinds)]
    # one value all over: 1 at first, or 0 where a residual branch ends
    return all(bool((norm.weight == norm.weight[0]).all()) and not norm.bias.any() for norm in norms)


def _untrained(classes: int, images: int) -> float:
    """The percentage of right answers up to which a network may only have guessed."""
    chance = 1 / classes
    return 100 * (chance + DOUBTS * math.sqrt(chance * (1 - chance) / images))
