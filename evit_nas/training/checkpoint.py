"""The state of a training on disk: one file, whole or not there, read without unpickling code.

There is no random state in it: batches are a function of seed, epoch and step (`batches.py`), and the networks have no
dropout.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import torch
from torch import Tensor

from evit_nas.errors import UsageError, first_few, in_a_line
from evit_nas.files import serialised, write_whole
from evit_nas.network.weights import load_torch

if TYPE_CHECKING:
    from evit_nas.data.images import Source

Tensors = dict[str, Tensor]


class State(TypedDict):
    """Everything that a training needs to go on as if it had not been interrupted."""

    model: Tensors
    average: Tensors | None
    optimiser: dict[str, Any]
    scaler: dict[str, Any] | None
    epoch: int
    """Epochs that are done."""
    step: int
    """Steps of the current epoch that are done."""
    loss_sum: NotRequired[float]  # versions up to 0.3 saved nothing between two lines of metrics
    """Of the training losses since the last line of metrics, the mean over processes."""
    loss_steps: NotRequired[int]
    """How many these are."""
    classes: NotRequired[list[str]]  # versions up to 0.3 kept none
    """Names of the outputs, in their order."""
    images: NotRequired[tuple[int, int]]  # versions up to 0.3 kept none
    """How many there are to train on and to validate on."""
    seconds: float
    """Spent training and validating so far."""
    best: dict[str, Any] | None
    """The metrics of the weights that validated best."""
    unreadable: list[int]
    """Indices of the training images that could not be read."""
    lines: int
    """Lines of metrics that belong to this state; later ones are written again."""


def save_state(path: Path, state: State) -> None:
    """Takes the place of the last one, or leaves it as it is."""
    write_whole(path, lambda scratch: scratch.write_bytes(serialised(lambda file: torch.save(dict(state), file))))


def load_state(path: Path) -> State | None:
    """The last state; None if nothing was saved.

    Raises:
        UsageError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        state: State = load_torch(path)
    except Exception as error:  # whatever is raised on a damaged file
        reason = in_a_line(error, kind=True, most=200)
        raise UsageError(f"{path}: damaged ({reason}). Remove it to train from the start.") from None
    return state


def check_data(state: State, source: Source, data: str) -> None:
    """That a training goes on with the classes and as many images as it began with.

    Args:
        data: what messages call the source.

    Raises:
        UsageError: it would not.
    """
    before, now = state.get("classes"), list(source.classes)
    if before is not None and before != now:  # what has been learned of one would be called another
        only = first_few(sorted(set(before) ^ set(now))) or "in another order"
        raise UsageError(
            f"{data} has other classes than when this training began: {only}. Give them back their names, or train "
            "anew with another --out."
        )
    train, val = len(source.train), len(source.val)
    train_before, val_before = state.get("images", (train, val))
    if (train_before, val_before) != (train, val):  # images trained on may be held out now, and steps mean others
        raise UsageError(
            f"{data} has {train} training and {val} validation images, and had {train_before} and {val_before} when "
            "this training began. Bring them back, or train anew with another --out."
        )


def save_weights(path: Path, weights: Tensors, metadata: dict[str, str]) -> None:
    """Writes tensors as safetensors, the same way."""
    from safetensors.torch import save as serialise

    # contiguous: safetensors refuses channels-last kernels, as training has them
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    write_whole(path, lambda scratch: scratch.write_bytes(serialise(plain, metadata)))
