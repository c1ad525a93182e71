"""From what a user writes to the architecture that it names."""

from __future__ import annotations

from pathlib import Path

from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.errors import UsageError


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
