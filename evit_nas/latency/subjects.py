"""What can be measured, as it travels to another process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evit_nas.arch import ArchConfig
from evit_nas.latency import Subject, TimmModel
from evit_nas.latency.runtimes import RUNTIMES


def resolved(subject: Subject, family: str) -> Subject:
    """`subject` as the runtime called `family` takes it: a timm model becomes an ONNX file where that needs one.

    Raises:
        UsageError: timm has no such network.
        MeasurementError: it cannot be exported.
    """
    runtime = RUNTIMES.get(family)
    if isinstance(subject, TimmModel) and not (runtime and runtime.takes_timm):
        from evit_nas.network.timm_models import timm_onnx

        return timm_onnx(subject.name, subject.image_size)
    return subject


def encoded(subject: Subject) -> dict[str, Any]:
    """Plain values that `decoded` turns back."""
    if isinstance(subject, ArchConfig):
        return {"arch": subject.model_dump(mode="json")}
    if isinstance(subject, Path):
        return {"onnx": str(subject.absolute())}
    return {"timm": subject.name, "image_size": subject.image_size}


def decoded(values: dict[str, Any]) -> Subject:
    """The subject that `encoded` wrote.

    Raises:
        KeyError: it is none.
        ValueError: the architecture is not valid.
    """
    if "onnx" in values:
        return Path(values["onnx"])
    if "timm" in values:
        return TimmModel(values["timm"], values.get("image_size"))
    return ArchConfig.model_validate(values["arch"])
