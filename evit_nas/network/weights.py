"""Weights under three namings: ours, timm's efficientvit_m0..m5, and the official Microsoft checkpoints.

Each naming differs from ours by renamed tensors only; attention biases are resampled when the window differs.
Nothing is unpickled: .safetensors files, or torch files read with weights_only.
"""

from __future__ import annotations

import argparse
import math
import re
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.errors import UsageError, first_few
from evit_nas.network.attention import resize_bias_table
from evit_nas.network.model import EfficientViT
from evit_nas.yamlio import shown

MAX_IMAGE = 512  # side of the largest input: its maps hold every window

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
    (r"\.(ffn[01]|1)\.m\.expand\.", r".\1.m.pw1."),  # 1: the FFN of res1 and res2
    (r"\.(ffn[01]|1)\.m\.project\.", r".\1.m.pw2."),
    (r"downsample\.expand\.", "downsample.patchmerge.conv1."),
    (r"downsample\.reduce\.", "downsample.patchmerge.conv2."),
    (r"downsample\.se\.reduce\.", "downsample.patchmerge.se.fc1."),
    (r"downsample\.se\.expand\.", "downsample.patchmerge.se.fc2."),
    (r"downsample\.project\.", "downsample.patchmerge.conv3."),
    (r"\.mixer\.fn\.heads\.(\d+)\.qkv\.", r".mixer.m.attn.qkvs.\1."),
    (r"\.mixer\.fn\.heads\.(\d+)\.q_local\.", r".mixer.m.attn.dws.\1."),
    (r"\.mixer\.fn\.proj\.", ".mixer.m.attn.proj.1."),  # 0 is the ReLU
    (r"\.mixer\.fn\.bias\.table$", ".mixer.m.attn.attention_biases"),
]

# timm -> official: the downsampling's three parts are the first entries of blocks2 and blocks3
_TO_OFFICIAL = [
    (r"^patch_embed\.conv(\d)\.", lambda m: f"patch_embed.{2 * int(m[1]) - 2}."),  # ReLUs stand between
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


def names_in(given: Collection[str], keys: Iterable[str]) -> dict[str, str]:
    """The names of our tensors `keys` in the naming, of the three, that the names `given` follow."""
    keys = list(keys)
    tables = ({key: rename(key) for key in keys} for rename in (str, timm_key, official_key))
    return max(tables, key=lambda table: len(set(table.values()) & set(given)))


def fitted(arch: ArchConfig, given: Mapping[str, Tensor]) -> ArchConfig | None:
    """`arch` with the classes, input channels and attention windows of a checkpoint; None if the rest does not fit.

    Args:
        given: a whole state dict in any of the three namings.
    """
    names = names_in(given, _shapes(arch.model_copy(update={"num_classes": 1})))  # 1: names of a classifier, too

    def size(key: str, dim: int) -> int:
        tensor = given.get(names.get(key, ""))
        return tensor.shape[dim] if tensor is not None and tensor.ndim > dim else 0

    sides = [math.isqrt(size(f"stages.{i}.blocks.0.mixer.fn.bias.table", 1)) for i in range(len(arch.stages))]
    own_sides = [arch.window_side(i) if stage.used_q_kernels else 0 for i, stage in enumerate(arch.stages)]
    changes: dict[str, Any] = {
        "num_classes": size("head.linear.weight", 0),
        "in_channels": size("stem.0.conv.weight", 1),
    }
    if sides != own_sides:  # trained at another size: one whose maps hold these windows
        stages = [
            stage.model_dump() | ({"window": side} if side else {})
            for stage, side in zip(arch.stages, sides, strict=True)
        ]
        changes |= {"image_size": MAX_IMAGE, "stages": stages}
    try:
        changed = ArchConfig.model_validate(arch.model_dump() | changes)
    except ValueError:
        return None
    shapes = {names.get(key, key): shape for key, shape in _shapes(changed).items()}
    return changed if all(name in given and given[name].shape == shape for name, shape in shapes.items()) else None


def recognised(given: Mapping[str, Tensor]) -> tuple[str, ArchConfig] | None:
    """Which of m0 to m5 a checkpoint is of, at any input size and number of classes: its name and architecture."""
    for name in PRESETS:
        if arch := fitted(ArchConfig.preset(name), given):
            return name, arch
    return None


def _shapes(arch: ArchConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {key: value.shape for key, value in EfficientViT(arch).state_dict().items()}


def to_timm(model: EfficientViT) -> dict[str, Tensor]:
    """The network's weights under timm's names; a preset's load into timm's model with strict=True.

    Raises:
        UsageError: the network has a part that timm's class does not have.
    """
    if model.arch.stem_widths != model.arch.model_copy(update={"stem_ratio": 1.0}).stem_widths:
        raise UsageError(f"timm's efficientvit_msra knows only stem_ratio 1, got {model.arch.stem_ratio}.")
    for index, stage in enumerate(model.arch.stages):
        usual = stage.v_dim == stage.head_dim and stage.ffn_count == 1 and stage.ffn_dim == 2 * stage.width
        if index:
            usual = usual and model.arch.merge_dim(index) == 4 * model.arch.stages[index - 1].width
        if not stage.cascaded or not usual:
            raise UsageError(
                f"stages[{index}] is not one that timm's efficientvit_msra can hold: it knows only cascaded "
                "softmax heads with v_ratio 1, ffn_ratio 2, ffn_count 1 and merge_ratio 4. Use the ONNX "
                "export or this package instead."
            )
    return {timm_key(key): value for key, value in model.state_dict().items()}


def load_weights(model: EfficientViT, weights: str | Path | Mapping[str, Tensor]) -> None:
    """Loads a whole checkpoint (ours, timm's or official) into `model`, resampling attention biases.

    Args:
        weights: a state dict, or a .safetensors / torch file that holds one; either may keep it under "model",
            "model_state_dict" or "state_dict", and begin all names alike. A model on the meta device comes to the
            processor.

    Raises:
        UsageError: the file cannot be read, or a tensor is missing, unknown or of the wrong shape.
    """
    if isinstance(weights, str | Path):
        source, given = str(weights), read_weights(Path(weights))
    else:
        source, given = "the state dict", _state_dict(weights, "the state dict")
    given = {k: v for k, v in given.items() if not k.endswith("attention_bias_idxs")}  # derived, not learned
    own = model.state_dict()
    names = names_in(given, own)
    missing = [name for name in names.values() if name not in given]
    unknown = sorted(set(given) - set(names.values()))
    if missing or unknown:
        raise UsageError(
            f"{source} does not fit this architecture: {len(missing)} tensors are missing{_sample(missing)}, "
            f"{len(unknown)} are unknown{_sample(unknown)}. Was it trained with another config?"
        )
    loaded = {}
    for key, name in names.items():
        value, needed = given[name], tuple(own[key].shape)
        if key.endswith("bias.table") and value.shape != needed and _is_bias_table(value, heads=needed[0]):
            value = resize_bias_table(value, math.isqrt(needed[1]))
        if value.shape != needed:
            raise UsageError(f"{source}: {name} has shape {tuple(value.shape)}, this architecture needs {needed}.")
        loaded[key] = value
    if any(value.is_meta for value in own.values()):
        model.to_empty(device="cpu")  # all of it is loaded: no tensor of a network is left out of its checkpoints
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
        with torch.serialization.safe_globals([argparse.Namespace]):  # timm's train.py keeps its options in one
            data = load_torch(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except Exception:  # whatever the readers raise on a damaged or hostile file (torch: "trust it")
        kind = ".safetensors" if path.suffix == ".safetensors" else "torch"
        rule = "code and other objects than tensors are never loaded"
        raise UsageError(f"{path}: damaged, or not a {kind} file of tensors ({rule}).") from None
    return _state_dict(data, str(path))


def load_torch(path: Path) -> Any:
    """What a file of `torch.save` holds, without unpickling code.

    Raises:
        ValueError: bytes of it have changed; torch itself reads on, and does not look at the check sums it wrote.
        Exception: whatever torch raises on what is no such file.
    """
    if zipfile.is_zipfile(path):  # not so before torch 1.6
        with zipfile.ZipFile(path) as archive:
            if name := archive.testzip():
                raise ValueError(f"{name} has changed")
    return torch.load(path, map_location="cpu", weights_only=True)


def _state_dict(data: Any, source: str) -> dict[str, Tensor]:
    for field in ("model", "model_state_dict", "state_dict"):
        if isinstance(data, Mapping) and isinstance(data.get(field), Mapping):
            data = data[field]
    if not isinstance(data, Mapping):
        raise UsageError(f"{source}: expected a mapping of names to tensors, got {type(data).__name__}.")
    data = _unwrapped(data)
    for name, value in data.items():
        if not isinstance(name, str) or not _is_plain(value):
            raise UsageError(f"{source}: expected names and dense tensors of real numbers, not {shown(name)}.")
    return dict(data)


def _unwrapped(data: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Without first parts that all names share: DDP (module.), torch.compile (_orig_mod.) and others put them there."""
    while data and all(isinstance(name, str) and "." in name for name in data):
        first, *others = {name.partition(".")[0] for name in data}
        if others:
            break
        data = {name.removeprefix(f"{first}."): value for name, value in data.items()}
    return data


def _is_plain(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not (value.is_meta or value.is_quantized or value.is_complex())
    )


def _is_bias_table(value: Tensor, heads: int) -> bool:
    return value.ndim == 2 and value.shape[0] == heads and math.isqrt(value.shape[1]) ** 2 == value.shape[1] > 0


def _sample(names: list[str]) -> str:
    return f" ({first_few(names, 3)})" if names else ""
