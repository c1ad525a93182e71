"""The classifiers that a trained network makes: in torch, and as the ONNX files beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from evit_nas.data.preprocessing import Preprocessing
from evit_nas.errors import UsageError, in_a_line
from evit_nas.exporting import open_onnx
from evit_nas.files import expanded
from evit_nas.network.saved import Saved, open_saved
from evit_nas.network.supernet import Supernet
from evit_nas.shipped import FP32, INT8, Shipped
from evit_nas.shipped import RECORD as SHIPPED
from evit_nas.trained import RECORD, Trained, parted

TORCH = "torch"
_FILES = {FP32: "onnx", INT8: "int8"}


@dataclass(frozen=True, eq=False)
class Classifier:
    """Something that answers images, and how it wants them."""

    network: str
    form: str
    """torch, onnx or int8."""
    path: str
    classes: tuple[str, ...] | None
    preprocessing: Preprocessing
    run: Callable[[Tensor], np.ndarray]
    """(B, C, H, W) normalised images to (B, classes) logits."""
    batch: int | None = None
    """Images at a time, where that is fixed."""
    training: Trained | Supernet | None = None
    """Where the network comes from, if a record tells it."""


def open_classifiers(text: str, like: str | None = None) -> list[Classifier]:
    """All classifiers of the network that `text` names: an ONNX file, or whatever `open_saved` takes.

    Args:
        like: a folder that tells the classes and the preprocessing of a file that has none.

    Raises:
        UsageError: there is no such network, or nobody knows how it wants its images.
    """
    path = expanded(text)
    if path.suffix == ".onnx":
        if not path.is_file():
            raise UsageError(f"there is no file {text}.")
        folder = expanded(like) if like else path.resolve().parent
        training = _training(folder)
        try:
            about = _named(open_saved(str(folder)), training)
        except UsageError as error:
            if like:
                raise
            raise UsageError(f"{text}: name a folder that tells its classes with --like FOLDER; {error}") from None
        return [_onnx(path, about, _preprocessing(about, text), training)]
    saved = open_saved(text)
    if like and saved.preprocessing is None:
        about, training = open_saved(like), _training(expanded(like))
    else:
        training = _training(path)
        saved = about = _named(saved, training)
    preprocessing = _preprocessing(about, text)
    in_torch = Classifier(saved.name, TORCH, text, about.classes, preprocessing, torch_run(saved.model), None, training)
    files = [path / name for name in _FILES if (path / name).is_file()]
    return [in_torch, *(_onnx(file, saved, preprocessing, training) for file in files)]


def _named(saved: Saved, training: Trained | Supernet | None) -> Saved:
    """With the network's name where a record tells it: shipped folders are all called shipped."""
    return replace(saved, name=training.name) if isinstance(training, Trained) else saved


def _training(folder: Path) -> Trained | Supernet | None:
    """Where the network of a training or shipped folder, or SUPERNET#ARCH, comes from."""
    if (parts := parted(str(folder))) is not None:
        return Supernet.load(parts[0])
    if (folder / RECORD).is_file():
        return Trained.load(folder)
    return Shipped.load(folder).trained if (folder / SHIPPED).is_file() else None


def torch_run(model: nn.Module) -> Callable[[Tensor], np.ndarray]:
    """`model` in eval mode, channels last, as a function of a batch."""
    model = model.eval().to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(images: Tensor) -> np.ndarray:
        logits: np.ndarray = model(images.contiguous(memory_format=torch.channels_last)).float().numpy()
        return logits

    return run


def _preprocessing(about: Saved, text: str) -> Preprocessing:
    if about.preprocessing is None:
        raise UsageError(
            f"{text}: weights alone do not tell how images are normalised and what the classes are. Name a folder "
            "that does with --like FOLDER."
        )
    return about.preprocessing


def _onnx(path: Path, about: Saved, preprocessing: Preprocessing, training: Trained | Supernet | None) -> Classifier:
    try:
        session = open_onnx(path)
    except Exception as error:  # ONNX Runtime has many
        raise UsageError(f"{path}: ONNX Runtime cannot open it: {in_a_line(error, most=300)}") from None
    entry = session.get_inputs()[0]
    fixed, *sides = entry.shape
    wanted = preprocessing.input_size
    # of an open side ONNX Runtime gives a name, or None, in place of a number
    if len(sides) != len(wanted) or any(isinstance(a, int) and a != b for a, b in zip(sides, wanted, strict=True)):
        raise UsageError(f"{path}: takes images of {sides}, but {about.name} wants {list(preprocessing.input_size)}.")
    batch = fixed if isinstance(fixed, int) else None

    def run(images: Tensor) -> np.ndarray:
        array = images.numpy()
        size = batch or len(array)
        padded = np.concatenate([array, array[:1].repeat(-len(array) % size, axis=0)])  # a fixed batch takes no fewer
        parts = [session.run(None, {entry.name: padded[i : i + size]})[0] for i in range(0, len(padded), size)]
        return np.concatenate(parts)[: len(array)]

    form = _FILES.get(path.name, "onnx")
    return Classifier(about.name, form, str(path), about.classes, preprocessing, run, batch, training)
