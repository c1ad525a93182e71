"""What clients of the torch network have in common: they start from timm's `create_model`, as users do."""

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from common import arguments, keep, networks, reason
from safetensors.torch import load_file
from torch import nn

import evit_nas  # noqa: F401 - makes the networks known to timm

IMAGES = 40  # of the photographs, of which some clients take no more in a minute


def network(folder: Path, **options: Any) -> nn.Module:
    """The trained network in `folder`, in eval mode; `options` go to timm."""
    model = timm.create_model("evit_nas", arch=str(folder / "arch.yaml"), **options).eval()
    weights = load_file(folder / "model.safetensors")
    if options.get("features_only"):
        own = model.state_dict()
        weights = {name: weights[name.removeprefix("model.")] for name in own}
    model.load_state_dict(weights)
    return model


def tried(
    client: str,
    version: str,
    use: Callable[[Path, torch.Tensor, np.ndarray], dict[str, object]],
    how: str = "",
) -> None:
    """Has `use` try every network on its images and torch's logits for them, and keeps what came of it."""
    folder = arguments().folder
    rows = []
    for name in networks():
        images, logits = (np.load(folder / name / f"{each}.npy")[:IMAGES] for each in ("images", "logits"))
        torch.manual_seed(0)
        try:
            answer = use(folder / name, torch.from_numpy(images), logits)
        except Exception as error:  # each client fails in its own way
            traceback.print_exc(limit=-3)
            answer = {"failed": reason(error)}
        rows.append({"network": name, "form": "timm", **answer})
        print(rows[-1], flush=True)
        keep(client, version, how, rows)
