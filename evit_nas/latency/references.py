"""What a user would pick instead: popular small networks, their published accuracy and their latency on this device.

Published top-1 figures (ImageNet-1k, at the stated input size, by their authors or by timm's trained weights) come from
training recipes that differ; they are quoted beside a network and never mixed with a search's estimates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version

from evit_nas.caches import cache_folder
from evit_nas.errors import MeasurementError
from evit_nas.files import Journal
from evit_nas.latency.device import Device
from evit_nas.latency.values import Latency, Protocol, TimmModel
from evit_nas.published import IMAGENET_1K, TOP1

PUBLISHED_TOP1 = {name: round(top1, 1) for name, top1 in TOP1[IMAGENET_1K].items()}
"""Percent on ImageNet-1k of the presets."""


@dataclass(frozen=True)
class Reference:
    """A network of timm."""

    name: str
    """In timm."""
    label: str
    """For people."""
    published_top1: float
    """Percent on ImageNet-1k at `image_size`, one crop."""
    image_size: int = 224
    """Input side in pixels."""
    note: str = ""
    """What a reader of the accuracy should know."""


REFERENCES = (
    Reference("mobilenetv3_small_100", "MobileNetV3-Small", 67.7),
    Reference("efficientvit_b0", "EfficientViT-B0 (MIT)", 71.4, note="another network of the same name"),
    Reference("mobileone_s0", "MobileOne-S0", 71.4),
    Reference("resnet18", "ResNet-18", 71.5),
    Reference("lcnet_100", "PP-LCNet", 72.1),
    Reference("shvit_s1", "SHViT-S1", 72.8),
    Reference("starnet_s1", "StarNet-S1", 73.5),
    Reference("mobilenetv4_conv_small", "MobileNetV4-Conv-S", 73.8),
    Reference("ghostnet_100", "GhostNet", 74.0),
    Reference("mobilenetv3_large_100", "MobileNetV3-Large", 75.8),
    Reference("mobileone_s1", "MobileOne-S1", 75.8),
    Reference("levit_128s", "LeViT-128S", 76.5, note="distilled"),
    Reference("tinynet_a", "TinyNet-A", 77.6, image_size=192),
    Reference("efficientnet_b0", "EfficientNet-B0", 77.7),
    Reference("levit_128", "LeViT-128", 78.5, note="distilled"),
    Reference("repvit_m0_9", "RepViT-M0.9", 78.7, note="distilled"),
    Reference("mobilenetv4_conv_medium", "MobileNetV4-Conv-M", 79.1),
    Reference("levit_192", "LeViT-192", 79.9, note="distilled"),
)


@dataclass(frozen=True)
class MeasuredReference:
    """A reference and its latency on one device."""

    reference: Reference
    latency: Latency


def measure_references(
    device: Device,
    protocol: Protocol,
    note: Callable[[str], None] = lambda message: None,
) -> list[MeasuredReference]:
    """Measures all REFERENCES on `device`, in the table's order; figures known from before are not measured again.

    A noisy figure is measured again: the machine may be quieter now. One that cannot be exported or run is left out.

    Args:
        device: where.
        protocol: how carefully.
        note: told what is being measured, and what was left out and why.

    Raises:
        LostLink: the link to the device was lost.
    """
    remembered = {name: latency for name, of, latency in _remembered(device.context()) if of == protocol}
    measured = []
    for reference in REFERENCES:
        latency = remembered.get(reference.name)
        if latency is None or latency.noisy:
            note(f"measuring {reference.label}")
            try:
                latency, _ = device.measure(TimmModel(reference.name, reference.image_size), protocol)
            except MeasurementError as error:
                note(f"{reference.label} is left out: {error}")
                continue
            _remember(device.context(), reference.name, protocol, latency)
        measured.append(MeasuredReference(reference, latency))
    return measured


def known_references(context: Mapping[str, str]) -> list[MeasuredReference]:
    """The latest figures measured before in a device's `context()`, in the table's order; nothing is measured."""
    latest = {name: latency for name, _, latency in _remembered(context)}
    return [
        MeasuredReference(reference, latest[reference.name]) for reference in REFERENCES if reference.name in latest
    ]


def _remembered(context: Mapping[str, str]) -> list[tuple[str, Protocol, Latency]]:
    """Name, protocol and latency of every figure measured in `context` with this timm, oldest first."""
    try:
        return [
            (record["name"], Protocol.model_validate(record["protocol"]), Latency.model_validate(record["latency"]))
            for record in _journal().read()
            if record["context"] == dict(context) and record["timm"] == version("timm")
        ]
    except (OSError, ValueError, KeyError):
        return []  # a damaged cache costs a measurement, no more


def _remember(context: Mapping[str, str], name: str, protocol: Protocol, latency: Latency) -> None:
    journal = _journal()
    try:
        journal.path.parent.mkdir(parents=True, exist_ok=True)
        journal.repair()  # else a line torn by a kill would swallow the next one
        journal.append(
            {
                "context": dict(context),
                "timm": version("timm"),
                "name": name,
                "protocol": protocol.model_dump(mode="json"),
                "latency": latency.model_dump(mode="json"),
            }
        )
    except OSError:
        pass  # without a cache folder the references are measured anew each time


def _journal() -> Journal:
    return Journal(cache_folder() / "references.jsonl")
