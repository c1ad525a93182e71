"""Trained networks on this machine, in any form: what a training starts from, learns from, and `eval` takes.

Nothing is downloaded unasked (`fetch`): what is not here is refused, with the command that gets it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.data.preprocessing import Preprocessing
from evit_nas.errors import UsageError, first_few, in_a_line
from evit_nas.files import expanded
from evit_nas.runs import named_arch
from evit_nas.trained import ARCH, RECORD, WEIGHTS, Trained, parted

if TYPE_CHECKING:
    from torch import nn

    from evit_nas.network.model import EfficientViT

CONFIG = "config.json"  # of timm and the Hugging Face hub
TIMM = "timm:"
KNOWN_WHOLE = (
    "the folder of a training, a shipped folder or another one with timm's config.json, timm:NAME or timm:NAME@FILE, "
    "SUPERNET#ARCH for a network of a supernet"
)
"""Networks of which is known how they want their images."""
FORMS = (
    f"{KNOWN_WHOLE}; with weights alone, a folder with arch.yaml and model.safetensors, a file of one of m0 to m5, "
    "ARCH=FILE for those of another architecture (a preset or a YAML file)"
)


@dataclass(frozen=True, eq=False)
class Saved:
    """A trained network, and what is known about its use."""

    name: str
    """For people."""
    model: nn.Module
    """In eval mode, on the processor: an EfficientViT, or another network of timm's."""
    classes: tuple[str, ...] | None = None
    """Names of the outputs, in their order."""
    preprocessing: Preprocessing | None = None
    """From an image to an input."""


def open_saved(text: str) -> Saved:
    """The network that `text` names: one of `FORMS`.

    Raises:
        UsageError: there is none, or its files are damaged or do not fit each other.
    """
    if text.startswith(TIMM):
        return _open_timm(text)
    if (parts := parted(text)) is not None:
        return _open_member(*parts)
    path = expanded(text)
    if path.is_dir():
        return _open_folder(path)
    arch, equals, file = text.partition("=")
    if equals and not path.is_file():  # a file's own name may have an equals sign
        return _open_file(expanded(file), ArchConfig.preset(arch) if arch in PRESETS else ArchConfig.load(arch))
    if path.is_file():
        beside = path.parent / ARCH
        return _open_file(path, ArchConfig.load(beside) if beside.is_file() else None)
    raise UsageError(f"{text}: no such network. It can be {FORMS}.")


def fetch(text: str, note: Callable[[str], None]) -> None:
    """Has the weights that timm:NAME names on this machine from here on; whatever else `text` is needs no fetching.

    Raises:
        UsageError: timm has no such network, or they cannot be had.
    """
    if not text.startswith(TIMM) or "@" in text:
        return
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    name = text.removeprefix(TIMM)
    config = _timm_config(name)
    if config is None or not config.hf_hub_id:
        return  # which opening it says
    note(f"fetching the weights of {name} from {config.hf_hub_id}")
    try:
        hf_hub_download(config.hf_hub_id, WEIGHTS)
    except (OSError, HfHubHTTPError) as error:
        reason = in_a_line(error, most=300)
        raise UsageError(f"{text}: its weights cannot be fetched: {reason}") from None


def efficientvit(saved: Saved) -> EfficientViT:
    """The network as one of ours; timm's efficientvit_m0 to m5 are converted.

    Raises:
        UsageError: it is another kind of network.
    """
    from evit_nas.network.model import EfficientViT, build
    from evit_nas.network.weights import load_weights, recognised

    if isinstance(saved.model, EfficientViT):
        return saved.model
    weights = saved.model.state_dict()
    found = recognised(weights)
    if found is None:
        raise UsageError(f"{saved.name} must be an EfficientViT, whose weights another can start from.")
    model = build(found[1], seed=0)
    load_weights(model, weights)
    return model.eval()


def class_order(ours: Sequence[str], theirs: Sequence[str], who: str) -> list[int]:
    """For each of our classes its number among theirs.

    Raises:
        UsageError: the names differ; the message lists those that are on one side only, and calls them `who`.
    """
    if set(ours) != set(theirs) or len(ours) != len(theirs):
        only = {"missing": sorted(set(ours) - set(theirs)), "unknown here": sorted(set(theirs) - set(ours))}
        listed = "; ".join(f"{what}: {first_few(names)}" for what, names in only.items() if names)
        raise UsageError(f"{who} must have the classes of the data ({len(ours)}), got {len(theirs)}; {listed}.")
    return [theirs.index(name) for name in ours]


def _open_folder(folder: Path) -> Saved:
    if (folder / RECORD).is_file():
        trained = Trained.load(folder)
        return Saved(trained.name, _load(trained.arch, folder / WEIGHTS), trained.classes, trained.preprocessing)
    if (folder / CONFIG).is_file():
        return _open_hub_folder(folder)
    if (folder / ARCH).is_file() and (folder / WEIGHTS).is_file():  # cut from another by `analyze --prune-to`
        return Saved(folder.resolve().name, _load(ArchConfig.load(folder / ARCH), folder / WEIGHTS))
    raise UsageError(
        f"{folder} holds no trained network ({RECORD}, {CONFIG} or {ARCH} with {WEIGHTS}). It can be {FORMS}."
    )


def _open_member(folder: Path, arch: str) -> Saved:
    from evit_nas.network.supernet import Members

    members = Members(folder)
    about = members.supernet
    return Saved(
        Path(arch).name.removesuffix(".yaml"), members.take(named_arch(arch)), about.classes, about.preprocessing
    )


def _open_hub_folder(folder: Path) -> Saved:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        details = config.get("pretrained_cfg", config)
        names = config.get("label_names", details.get("label_names"))
        classes = tuple(map(str, names)) if isinstance(names, list) else None
        preprocessing = _preprocessing(details)
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{folder / CONFIG}: damaged, or not timm's: {error}.") from None
    if (folder / ARCH).is_file():
        model: nn.Module = _load(ArchConfig.load(folder / ARCH), folder / WEIGHTS)
    else:
        model = _create(f"local-dir:{folder}", {})
    return Saved(folder.resolve().name, model, classes, preprocessing)


def _open_file(path: Path, arch: ArchConfig | None) -> Saved:
    from evit_nas.network.weights import fitted, read_weights, recognised

    weights = read_weights(path)
    if arch is not None:
        # where nothing fits, loading `arch` says what is missing or of another shape
        return Saved(path.stem, _load(fitted(arch, weights) or arch, path))
    found = recognised(weights)
    if found is None:
        raise UsageError(
            f"{path} does not hold the weights of one of {', '.join(PRESETS)}, and shapes alone do not tell how heads "
            f"are laid out. Name its architecture: ARCH.yaml={path}, or the folder that holds {ARCH} and {WEIGHTS}."
        )
    name, arch = found
    return Saved(name, _load(arch, path))


def _timm_config(name: str) -> Any:
    """What timm knows of NAME or NAME.TAG; None if there is no such network, or no such tag of it."""
    import timm

    if not timm.is_model(name):  # which does not look at the tag
        return None
    with suppress(RuntimeError):
        return timm.get_pretrained_cfg(name, allow_unregistered=False)
    return None


def _open_timm(text: str) -> Saved:
    import timm
    from huggingface_hub import try_to_load_from_cache

    from evit_nas.network.weights import read_weights

    name, _, file = text.removeprefix(TIMM).partition("@")
    config = _timm_config(name)
    if config is None:
        near = timm.list_models(f"*{name.partition('.')[0][:5]}*")[:3]
        raise UsageError(f"timm has no network called '{name}'. Similar names: {', '.join(near) or 'none'}.")
    if not file:
        cached = try_to_load_from_cache(config.hf_hub_id, WEIGHTS) if config.hf_hub_id else None
        if not isinstance(cached, str):
            get = (
                f"get them with: hf download {config.hf_hub_id} {WEIGHTS} (train with --download does it); or name"
                if config.hf_hub_id
                else "Name"
            )
            raise UsageError(
                f"{text}: its weights must be on this machine already, nothing is downloaded here; {get} a file with "
                f"timm:{name}@FILE."
            )
        file = cached
    weights = read_weights(Path(file))
    classifier = weights.get(f"{config.classifier}.bias")
    classes = config.num_classes if classifier is None else len(classifier)
    # timm drops the classifier of a file whose number of classes is not that of its description
    overlay = {"state_dict": weights, "num_classes": classes}
    model = _create(name, {"pretrained_cfg_overlay": overlay, "num_classes": classes})
    return Saved(name, model, None, _preprocessing(model.pretrained_cfg))


def _create(name: str, options: dict[str, Any]) -> Any:
    import timm

    try:
        return timm.create_model(name, pretrained=True, **options).eval()
    except Exception as error:  # timm and torch refuse weights with errors of every type
        reason = in_a_line(error, most=300)
        raise UsageError(f"{name}: timm cannot load it: {reason}") from None


def _load(arch: ArchConfig, weights: Path) -> EfficientViT:
    from evit_nas.network.model import build
    from evit_nas.network.weights import load_weights

    model = build(arch, seed=0)
    load_weights(model, weights)
    return model.eval()


def _preprocessing(config: Any) -> Preprocessing:
    from timm.data.config import resolve_data_config

    resolved = resolve_data_config(pretrained_cfg=config)
    return Preprocessing.model_validate({name: resolved[name] for name in Preprocessing.model_fields})
