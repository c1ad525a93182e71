"""transformers: AutoModelForImageClassification.from_pretrained of every network that `prepare.py` has left, offline.

    pip install transformers
    python benchmarks/clients/transformers_from_pretrained.py runs/clients

transformers builds a network on the meta device and assigns what it finds in the file.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import torch
from common import Run, answer
from transformers import AutoModelForImageClassification

import evit_nas  # noqa: F401 makes the architecture known to timm
from evit_nas.arch import ArchConfig
from evit_nas.timm_entry import LAYERS, NAME, shapes


def load(path: Path) -> Run:
    """A folder as `evit-nas ship` writes it: config.json and the weights."""
    arch = ArchConfig.load(path.parent / "arch.yaml")
    config = {
        "architecture": NAME,
        "num_classes": arch.num_classes,
        "label_names": [str(number) for number in range(arch.num_classes)],
        "model_args": {"arch": arch.model_dump(mode="json")},
        "pretrained_cfg": LAYERS | shapes(arch),
    }
    with TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        (Path(folder) / "model.safetensors").symlink_to(path.resolve())
        model = AutoModelForImageClassification.from_pretrained(folder).eval()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            logits: np.ndarray = model(torch.from_numpy(images)).logits.numpy()
        return logits

    return run


if __name__ == "__main__":
    answer(
        "transformers",
        f"transformers {version('transformers')}, timm {version('timm')}",
        load,
        ("model.safetensors",),
        "AutoModelForImageClassification.from_pretrained(SHIPPED) after import evit_nas",
    )
