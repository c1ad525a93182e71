"""Weights under three namings: ours, timm's efficientvit_m0..m5, and the official Microsoft checkpoints.

Each naming differs from ours by renamed tensors only; attention biases are resampled when the window differs.
Nothing is unpickled: .safetensors files, or torch files read with weights_only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from evit_nas.errors import UsageError
from evit_nas.network.model import EfficientViT, resize_bias_table

# ours -> timm, applied in order to every key
_TO_TIMM = [
    (r"^stem\.(\d)", lambda m: f"patch_embed.conv{int(m[1]) + 1}"),
    (r"\.before\.0\.dw\.fn\.", ".dw0.m."),
    (r"\.before\.0\.ffn\.fn\.", ".ffn0.m."),
    (r"\.after\.0\.dw\.fn\.", ".dw1.m."),
    (r"\.after\.0\.ffn\.fn\.", ".ffn1.m."),
    (r"downsample\.before\.dw\.fn\.", "downsample.res1.0.m."),
    (r"downsample\.before\.ffn\.fn\.", "downsample.res1.1.m."),
    (r"downsample\.after\.dw\.fn\.", "downsample.res2.0.m."),
    (r"downsample\.after\.ffn\.fn\.", "downsample.res2.1.m."),
    (r"\.(ffn[01]|1)\.m\.expand\.", r".\1.m.pw1."),
    (r"\.(ffn[01]|1)\.m\.project\.", r".\1.m.pw2."),
    (r"downsample\.expand\.", "downsample.patchmerge.conv1."),
    (r"downsample\.reduce\.", "downsample.patchmerge.conv2."),
    (r"downsample\.se\.reduce\.", "downsample.patchmerge.se.fc1."),
    (r"downsample\.se\.expand\.", "downsample.patchmerge.se.fc2."),
    (r"downsample\.project\.", "downsample.patchmerge.conv3."),
    (r"\.mixer\.fn\.heads\.(\d+)\.qkv\.", r".mixer.m.attn.qkvs.\1."),
    (r"\.mixer\.fn\.heads\.(\d+)\.q_local\.", r".mixer.m.attn.dws.\1."),
    (r"\.mixer\.fn\.proj\.", ".mixer.m.attn.proj.1."),
    (r"\.mixer\.fn\.bias\.table$", ".mixer.m.attn.attention_biases"),
]

# timm -> official: the downsampling's three parts are the first entries of blocks2 and blocks3
_TO_OFFICIAL = [
    (r"^patch_embed\.conv(\d)\.", lambda m: f"patch_embed.{2 * int(m[1]) - 2}."),
    (r"^stages\.(\d)\.downsample\.res1\.", lambda m: f"blocks{int(m[1]) + 1}.0."),
    (r"^stages\.(\d)\.downsample\.patchmerge\.", lambda m: f"blocks{int(m[1]) + 1}.1."),
    (r"^stages\.(\d)\.downsample\.res2\.", lambda m: f"blocks{int(m[1]) + 1}.2."),
    (r"^stages\.0\.blocks\.", "blocks1."),
    (r"^stages\.([12])\.blocks\.(\d+)\.", lambda m: f"blocks{int(m[1]) + 1}.{int(m[2]) + 3}."),
    (r"\.conv\.weight$", ".c.weight"),
    (r"^head\.linear\.", "head.l."),
]


def _rename(key: str, rules: list) -> str:  # type: ignore[type-arg]
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def timm_key(key: str) -> str:
    """The name that timm gives to our tensor `key`."""
    return _rename(key, _TO_TIMM)


def official_key(key: str) -> str:
    """The name that the official checkpoints give to our tensor `key`."""
    return _rename(timm_key(key), _TO_OFFICIAL)


def to_timm(model: EfficientViT) -> dict[str, Tensor]:
    """The network's weights under timm's names; a preset's load into timm's model with strict=True.

    Raises:
        UsageError: the network has a part that timm's class does not have.
    """
    for index, stage in enumerate(model.arch.stages):
        if not stage.cascaded or stage.v_dim != stage.head_dim or stage.ffn_count != 1:
            raise UsageError(
                f"stages[{index}] is not one that timm's efficientvit_msra can hold: it knows only cascaded "
                "softmax heads with v_ratio 1 and ffn_count 1. Use the ONNX export or this package instead."
            )
    return {timm_key(key): value for key, value in model.state_dict().items()}


def load_weights(model: EfficientViT, weights: str | Path | Mapping[str, Tensor]) -> None:
    """Loads a whole checkpoint (ours, timm's or official) into `model`, resampling attention biases.

    Args:
        weights: a state dict, or a .safetensors / torch file that holds one (also under "model" or
            "state_dict").

    Raises:
        UsageError: the file cannot be read, or a tensor is missing, unknown or of the wrong shape.
    """
    source = str(weights) if isinstance(weights, str | Path) else "the state dict"
    given = dict(read_weights(Path(weights)) if isinstance(weights, str | Path) else weights)
    given = {k: v for k, v in given.items() if not k.endswith("attention_bias_idxs")}  # derived, not learned
    own = model.state_dict()
    names = max(
        ({key: rename(key) for key in own} for rename in (str, timm_key, official_key)),
        key=lambda table: len(set(table.values()) & set(given)),
    )
    missing = [name for name in names.values() if name not in given]
    unknown = sorted(set(given) - set(names.values()))
    if missing or unknown:
        raise UsageError(
            f"{source} does not fit this architecture: {len(missing)} tensors are missing"
            f"{_sample(missing)}, {len(unknown)} are unknown{_sample(unknown)}. Was it trained with another config?"
        )
    loaded = {}
    for key, name in names.items():
        value = given[name]
        if key.endswith("bias.table") and value.shape[0] == own[key].shape[0] and value.shape != own[key].shape:
            value = resize_bias_table(value, int(own[key].shape[1] ** 0.5))
        if value.shape != own[key].shape:
            raise UsageError(
                f"{source}: {name} has shape {tuple(value.shape)}, this architecture needs {tuple(own[key].shape)}."
            )
        loaded[key] = value
    model.load_state_dict(loaded)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors or torch file, without unpickling code.

    Raises:
        UsageError: the file is missing, damaged, or holds something else than tensors.
    """
    if not path.is_file():
        raise UsageError(f"{path}: no such file.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(path))
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the readers raise on a damaged or hostile file
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{path}: not a readable checkpoint (.safetensors or plain tensors): {reason}") from None
    for field in ("model", "state_dict"):
        if isinstance(data, dict) and isinstance(data.get(field), dict):
            data = data[field]
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise UsageError(f"{path}: expected a mapping of names to tensors.")
    return data


def _sample(names: list[str]) -> str:
    return f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""
