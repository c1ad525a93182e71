"""From what a user writes to the architecture, or the network, that it names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from evit_nas.arch import ArchConfig
from evit_nas.errors import UsageError
from evit_nas.runs import named_arch
from evit_nas.trained import parted
from evit_nas.yamlio import validate

if TYPE_CHECKING:
    from evit_nas.latency import Measurable


def find_arch(text: str) -> ArchConfig:
    """The architecture that an argument names: what `named_arch` takes, or SUPERNET#ARCH as it is trained there.

    Raises:
        UsageError: it is none of them.
    """
    if (parts := parted(text)) is not None:
        from evit_nas.network.supernet import Supernet

        folder, arch = parts
        return Supernet.load(folder).fitted(named_arch(arch))
    return named_arch(text)


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
