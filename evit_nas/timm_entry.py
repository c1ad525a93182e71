"""EfficientViT of any ArchConfig as timm's model "evit_nas": built, loaded and taken apart by `timm.create_model`.

`import evit_nas` registers it, whether timm was imported before or will be after. timm's own scripts import only timm;
this module runs them with the model registered:

    python -m evit_nas.timm_entry validate.py --model local-dir:shipped/NAME --pretrained ...
"""

from __future__ import annotations

import inspect
import math
import runpy
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.errors import UsageError, did_you_mean
from evit_nas.yamlio import shown, validate

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = "evit_nas"
LAYERS = {"first_conv": "stem.0.conv", "classifier": "head.linear", "fixed_input_size": True}  # as timm asks for them
default_cfgs = {NAME: LAYERS}  # read by timm when it registers the model

_SOURCES = ("file", "url", "hf_hub_id", "state_dict")  # any of them makes a pretrained_cfg one of existing weights
_BUILDERS = ("features_only", "cache_dir", "pretrained_cfg_overlay", "pretrained_model_args")  # for timm's builder
_WITHOUT = ("drop_rate", "drop_path_rate", "drop_block_rate")  # timm's scripts pass them, as 0 unless told otherwise


def register(timm: ModuleType) -> None:
    """Makes the model known to `timm`, which has just been imported."""
    timm.models.register_model(evit_nas)


def evit_nas(
    pretrained: bool = False,
    *,
    arch: str | Path | Mapping[str, Any] | ArchConfig | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: int | Sequence[int] | None = None,
    global_pool: str = "avg",
    out_indices: int | Sequence[int] | None = None,
    feature_cls: str | type | None = None,
    feature_cfg: Mapping[str, Any] | None = None,
    device: Any = None,
    dtype: Any = None,
    pretrained_cfg: Any = None,
    **others: Any,
) -> nn.Module:
    """The network of `arch`; call it through `timm.create_model("evit_nas", arch=...)`.

    Args:
        pretrained: load the weights that `pretrained_cfg` names, as "local-dir:FOLDER" and "hf-hub:ID" do. Attention
            biases are resampled to another `img_size`, the first convolution is adapted to other `in_chans`, and the
            classifier is a fresh one where `num_classes` differs.
        arch: "m0" to "m5", the path of a YAML file, the fields as a mapping, or the value itself.
        num_classes, in_chans, img_size: instead of the architecture's own; a side or (height, width) in pixels.
        global_pool: "avg", or "" for none, which needs num_classes=0.
        out_indices: with features_only=True, which of the maps at strides 16, 32 and 64, or how many of the last;
            all of them by default.
        feature_cls: how timm extracts them: "getter" (default), "list", "dict", "hook" or "fx".
        feature_cfg: further settings of that extractor.
        device, dtype: of the parameters, instead of torch's defaults.

    Raises:
        UsageError: an unknown or missing argument (a TypeError as well), or one with a wrong value.
    """
    _check_names(others)
    changes = {"num_classes": num_classes, "in_channels": in_chans, "image_size": img_size}
    config = _config(arch, {name: value for name, value in changes.items() if value is not None})
    from timm.models import build_model_with_cfg

    model: nn.Module = build_model_with_cfg(
        # what timm passes on is in `config`; it is told all the same, as it adapts the first convolution by in_chans
        lambda **_: _network(config, global_pool, device, dtype),
        NAME,
        pretrained,
        pretrained_cfg=_described(config, pretrained_cfg),
        pretrained_filter_fn=_fitted,
        feature_cfg=_extractor(out_indices, feature_cls, feature_cfg or {}),
        num_classes=config.num_classes,
        in_chans=config.in_channels,
        img_size=config.input_size,
        **{name: value for name, value in others.items() if name in _BUILDERS},
    )
    return model


class UnknownArgument(UsageError, TypeError):
    """An argument that there is not, as Python says it and timm expects it, with those that there are."""


def _check_names(others: Mapping[str, Any]) -> None:
    for name, value in others.items():
        if name in _WITHOUT and value:
            raise UsageError(f"{NAME} has no dropout or stochastic depth: leave {name} out, got {shown(value)}.")
        if name not in _BUILDERS + _WITHOUT:
            own = [word for word in inspect.signature(evit_nas).parameters if word != "others"]
            raise UnknownArgument(f"{NAME} takes no argument '{name}'. {did_you_mean(name, [*own, *_BUILDERS])}")


def _config(arch: Any, changes: dict[str, Any]) -> ArchConfig:
    """The architecture in any of its forms, with other classes, channels and size."""
    if isinstance(arch, str) and arch in PRESETS:
        found = ArchConfig.preset(arch)
    elif isinstance(arch, str | Path) and Path(arch).suffix in (".yaml", ".yml"):
        found = ArchConfig.load(arch)
    elif isinstance(arch, Mapping):
        found = validate(ArchConfig, dict(arch), "arch")
    elif isinstance(arch, ArchConfig):
        found = arch
    else:
        raise UsageError(
            f"{NAME} needs arch: a preset ({', '.join(PRESETS)}), a .yaml file, a mapping of its fields or an "
            f"ArchConfig, got {shown(arch)}. In timm's scripts: --model-kwargs arch=m0."
        )
    return validate(ArchConfig, found.model_dump() | changes, NAME)


def _network(config: ArchConfig, global_pool: str, device: Any, dtype: Any) -> nn.Module:
    import torch

    from evit_nas.network.model import build

    with nullcontext() if device is None else torch.device(device):
        model = build(config)
    if global_pool != model.global_pool:
        model.reset_classifier(config.num_classes, global_pool)
    return model if dtype is None else model.to(dtype)


def _extractor(
    out_indices: int | Sequence[int] | None, feature_cls: str | type | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """timm's settings of the feature extractor; the stages lie one Sequential deep."""
    given = {"out_indices": out_indices, "feature_cls": feature_cls}
    chosen = {"out_indices": (0, 1, 2), "feature_cls": "getter", **settings}
    chosen |= {name: value for name, value in given.items() if value is not None}
    return chosen if chosen["feature_cls"] in ("getter", "fx") else {"flatten_sequential": True} | chosen


def _described(config: ArchConfig, pretrained_cfg: Any) -> dict[str, Any]:
    """timm's description of existing weights as it is, or else one of this network."""
    given = pretrained_cfg.to_dict() if hasattr(pretrained_cfg, "to_dict") else pretrained_cfg or {}
    if isinstance(given, str):
        raise UsageError(f"{NAME} has no weights called '{given}'; use local-dir:FOLDER or checkpoint_path.")
    if any(given.get(source) for source in _SOURCES):
        return {**given, "pool_size": given.get("pool_size") or config.grids[-1]}
    return {**given, **LAYERS, **shapes(config), "architecture": NAME}


def shapes(config: ArchConfig) -> dict[str, Any]:
    """What timm's description of a network says about its input and outputs."""
    return {
        "input_size": (config.in_channels, *config.input_size),
        "pool_size": config.grids[-1],
        "num_classes": config.num_classes,
    }


def _fitted(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A checkpoint's tensors for a network of another size: attention biases resampled."""
    from evit_nas.network.attention import resize_bias_table

    own = model.state_dict()
    return {
        name: resize_bias_table(value, math.isqrt(own[name].shape[1]))
        if name.endswith("bias.table") and name in own and value.shape != own[name].shape
        else value
        for name, value in state.items()
    }


def main() -> None:
    """Runs the script that the first argument names with the other arguments, as Python itself would."""
    if len(sys.argv) < 2:
        sys.exit("usage: python -m evit_nas.timm_entry SCRIPT [ARGUMENT...], with a script of timm's: validate.py")
    del sys.argv[0]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
