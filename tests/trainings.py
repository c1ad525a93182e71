"""For tests of trainings: few images that are quickly learned, and a finished training on scikit-learn's digits."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from evit_nas.arch import ArchConfig
from evit_nas.config import Conditions
from evit_nas.data.preprocessing import Preprocessing
from evit_nas.data.sources import open_source
from evit_nas.errors import MeasurementError
from evit_nas.latency import STRICT, Device, Latency, Measurable, Protocol
from evit_nas.network.model import build
from evit_nas.trained import Trained
from tests.fakes import latency_of
from tests.networks import tiny_arch

ARCH = ArchConfig.model_validate(tiny_arch().model_dump() | {"in_channels": 1})
PREPROCESSING = Preprocessing(input_size=(1, 64, 64), mean=(0.5,), std=(0.5,), crop_pct=1.0)
TRAINED = Trained(
    name="tiny",
    arch=ARCH,
    classes=tuple("0123456789"),
    preprocessing=PREPROCESSING,
    data="digits",
    data_name="digits",
    recipe={"epochs": 3, "batch_size": 64},
    init="scratch",
    seed=0,
    epoch=3,
    averaged=False,
    top1=90.0,
    loss=0.3,
    command="evit-nas train tiny.yaml --data digits",
    versions={"evit_nas": "0"},
)


SHADES = ("dark", "light", "striped")


def write_shades(root: Path) -> Path:
    """A folder of 72 training and 18 validation images in three classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 6)):
        for kind, name in enumerate(SHADES):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                _shade(kind, rng).save(root / split / name / f"{number}.png")
    return root


def _shade(kind: int, rng: np.random.Generator) -> Image.Image:
    pixels = rng.integers(0, 60, (40, 40, 3)) + (0, 150, 0)[kind]
    if kind == 2:
        pixels[::4] += 150
    return Image.fromarray(pixels.astype(np.uint8))


@functools.cache
def fitted_weights() -> dict[str, Tensor]:
    """Weights of ARCH after three passes over the digits: about 90 % of the others are recognised."""
    images = open_source("digits", 0).train
    transform = PREPROCESSING.transform()
    inputs, labels = torch.stack([transform(image) for image, _ in images]), torch.from_numpy(images.labels)
    model = build(ARCH, seed=0).train()
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    order = np.random.default_rng(0)
    for _ in range(3):
        for batch in torch.from_numpy(order.permutation(len(labels))).split(64):
            loss = F.cross_entropy(model(inputs[batch]), labels[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return model.state_dict()


def finished(folder: Path, **changes: Any) -> Path:
    """Writes the training to `folder`, with other fields of its record where they are given."""
    folder.mkdir()
    save_file(fitted_weights(), folder / "model.safetensors")
    TRAINED.model_copy(update=changes).save(folder)
    return folder


class FileDevice(Device):
    """Measures ONNX files by their names, at once; a name that is not in the table cannot be measured."""

    ms: ClassVar[dict[str, float]] = {"model.onnx": 2.0, "model-int8.onnx": 1.0}

    def __init__(self, conditions: Conditions) -> None:
        self.conditions = conditions

    def measure(self, subject: Measurable, protocol: Protocol) -> tuple[Latency, dict[str, Any]]:
        assert isinstance(subject, Path)
        assert subject.is_file()
        assert protocol == STRICT
        if subject.name not in self.ms:
            raise MeasurementError("the runtime died", "crashed")
        return latency_of(self.ms[subject.name], conditions=self.conditions), {}

    def context(self) -> dict[str, str]:
        return {}

    def close(self) -> None: ...


FILES = Conditions(device="files")
