"""From what a user writes to the architecture, or the network, that it names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.errors import UsageError
from evit_nas.yamlio import validate

if TYPE_CHECKING:
    from evit_nas.latency import Measurable


def find_arch(text: str) -> ArchConfig:
    """The architecture that an argument names: a preset, a YAML file, RUN/NAME, or a training or shipped folder.

    Raises:
        UsageError: it is none of them.
    """
    if text in PRESETS:
        return ArchConfig.preset(text)
    path = Path(text)
    if (path / "arch.yaml").is_file():
        return ArchConfig.load(path / "arch.yaml")
    member = path.parent / "front" / f"{path.name.removesuffix('.yaml')}.yaml"
    if not path.exists() and member.exists():
        return ArchConfig.load(member)
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        raise UsageError(
            f"'{text}' is not a preset ({', '.join(PRESETS)}), a YAML file, or RUN/NAME of a front member."
        )
    return ArchConfig.load(path)


def find_measurable(text: str, image_size: int | None = None) -> Measurable:
    """What an argument names: an architecture as for `find_arch`, timm:NAME, or an ONNX file.

    Raises:
        UsageError: it is none of them, its input size cannot be chosen, or has to be.
    """
    from evit_nas.latency import TimmModel

    if text.startswith("timm:"):
        return TimmModel(text.removeprefix("timm:"), image_size)
    if text.endswith(".onnx"):
        from evit_nas.latency.measurable import sized

        if not Path(text).is_file():
            raise UsageError(f"there is no file {text}.")
        return sized(Path(text), image_size)
    arch = find_arch(text)
    return arch if image_size is None else resized(arch, image_size)


def resized(arch: ArchConfig, image_size: int) -> ArchConfig:
    """`arch` for square images of `image_size` pixels.

    Raises:
        UsageError: not a size that an architecture can have.
    """
    return validate(ArchConfig, arch.model_dump(mode="json") | {"image_size": image_size}, "--image-size")
