"""What attention is worth at equal latency: accuracy against its share of the layers (arXiv 2305.07027, figure 3).

The variants of one network differ in the number of FFNs around each layer of attention and in the stages that have
attention at all. Each is then made wider or narrower until it has the latency of the network itself
as measured on the device, and is trained briefly. As in the paper the share counts layers: attention among attention
and FFNs, those of the blocks alone, for the downsamplings are the same in all variants.

A folder keeps what was measured and trained: an interrupted study goes on where it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from evit_nas.arch import ArchConfig, round_to
from evit_nas.config import ShortRecipe
from evit_nas.data.cache import load_dataset
from evit_nas.errors import EvitNasError, MeasurementError, UsageError
from evit_nas.files import work_folder, write_atomically
from evit_nas.latency import Device, Latency, Protocol, Steady, Unit
from evit_nas.searching.labelling.labels import Job, Label, Labels
from evit_nas.searching.status import Watcher
from evit_nas.space import BLOCK

VARIANTS = "variants.json"  # in the folder of a study
FFN_COUNTS = (0, 1, 2, 3)
TOLERANCE = 0.05  # of the latency; a variant that cannot be brought so near is left out
NEAR = 0.02  # near enough not to look on
NARROWEST, WIDEST = 0.25, 3.0  # times the widths of the network
TRIES = 8  # halvings of the range of widths, to 1 % of a width


class Variant(BaseModel):
    """A network of about the latency that the study is for."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    name: str
    """What sets it apart: FFNs on each side of the mixer, and the stages with attention."""
    arch: ArchConfig
    latency: Latency

    @property
    def share(self) -> float:
        """See `attention_share`."""
        return attention_share(self.arch)


class TrainedVariant(BaseModel):
    """A variant and what it has learned."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    variant: Variant
    accuracy: tuple[float, ...]
    """In percent of the validation images, for each seed that is trained."""

    @property
    def mean(self) -> float:
        """Over seeds."""
        return float(np.mean(self.accuracy))


class Proportion(BaseModel):
    """A study, finished or not."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    data: str
    """Name of the data set."""
    recipe: ShortRecipe
    target_ms: float
    """Latency of the network itself."""
    points: tuple[TrainedVariant, ...]
    """Variants with at least one training, by share."""


def attention_share(arch: ArchConfig) -> float:
    """Layers of attention as a share of those of attention and FFNs in the blocks, from 0 to 1."""
    attention = sum(stage.depth for stage in arch.stages if stage.mixer != "none")
    ffns = sum(2 * stage.ffn_count * stage.depth for stage in arch.stages)
    return attention / (attention + ffns)


def variants(arch: ArchConfig) -> Iterator[tuple[str, ArchConfig]]:
    """Names and architectures of all variants of `arch`, at its own widths, those with most attention first."""
    attending = [index for index, stage in enumerate(arch.stages) if stage.mixer != "none"]
    for count in FFN_COUNTS:
        for without in range(len(attending)):  # the paper's stages lose their attention from the first on
            stages = [stage.model_dump() | {"ffn_count": count} for stage in arch.stages]
            if not count and (without or len(attending) < len(arch.stages)):  # a block must hold something
                continue
            for index in attending[:without]:
                stages[index]["mixer"] = "none"
            left = ", ".join(str(index + 1) for index in attending[without:])
            name = f"{count} FFN{'s' if count != 1 else ''} a side, attention in {left}"
            yield name, ArchConfig.model_validate(arch.model_dump() | {"stages": stages})


def widened(arch: ArchConfig, factors: Sequence[float]) -> ArchConfig:
    """`arch` with the width of each stage times its factor, rounded to a multiple of 16 and of the heads."""
    stages = [
        stage.model_dump() | {"width": round_to(stage.width * factor, math.lcm(BLOCK, stage.heads))}
        for stage, factor in zip(arch.stages, factors, strict=True)
    ]
    return ArchConfig.model_validate(arch.model_dump() | {"stages": stages})


def matched(device: Device, arch: ArchConfig, target_ms: float) -> tuple[ArchConfig, Latency] | None:
    """The width of `arch` that takes `target_ms` on the device; None if none comes near enough.

    All stages are made wider alike as long as that is too fast still; the last one makes up for the rest, for a step
    in the width of the first is a large one.

    Raises:
        MeasurementError: a network could not be measured.
    """
    measured: dict[str, tuple[ArchConfig, Latency]] = {}

    def widest(low: float, factors: Callable[[float], Sequence[float]]) -> float:
        """The largest factor from `low` on that is too fast still, to a few percent."""
        high = WIDEST
        for _ in range(TRIES):
            factor = math.sqrt(low * high)  # latency grows about as a power of the width
            wide = widened(arch, factors(factor))
            if wide.key not in measured:  # widths are rounded, so that near factors make one network
                measured[wide.key] = wide, device.measure(wide, Protocol())[0]
            low, high = (factor, high) if measured[wide.key][1].median_ms < target_ms else (low, factor)
        return low

    def off(found: tuple[ArchConfig, Latency]) -> float:
        return abs(found[1].median_ms / target_ms - 1)

    alike = widest(NARROWEST, lambda factor: (factor, factor, factor))
    if off(min(measured.values(), key=off)) > NEAR:
        widest(alike, lambda factor: (alike, alike, factor))
    best = min(measured.values(), key=off)
    return best if off(best) <= TOLERANCE else None


def study(
    folder: Path,
    arch: ArchConfig,
    data: str,
    device: Device,
    watch: Watcher,
    *,
    recipe: ShortRecipe | None = None,
    seeds: Sequence[int] = (0,),
    workers: int = 1,
) -> Proportion:
    """Trains all variants of `arch` with all seeds, as far as that has not been done, and returns what is there.

    Args:
        folder: of this study alone.
        arch: at the input that its latency is measured for; trained at the recipe's.
        data: what `load_dataset` takes.
        device: where latency is kept constant.
        watch: told what happens.
        recipe: how they are trained; None for the one that searches train by.
        seeds: of the trainings.
        workers: trainings at a time; 0 measures and trains nothing more.

    Raises:
        UsageError: the data cannot be used, no stage of the network has attention, or the folder is of another study,
            or cannot be written, or there is none and it is not to be begun.
        RunError: another process is at work in the folder; names it.
        EvitNasError: a training process died, or nothing could be measured or trained.
    """
    if all(stage.mixer == "none" for stage in arch.stages):
        raise UsageError("no stage of the network has attention, so there is no share of it to vary. Take another one.")
    if not workers and not (folder / VARIANTS).is_file():
        raise UsageError(f"{folder} holds no study that could be shown. Begin it with --workers 1.")
    with work_folder(folder):
        return _study(folder, arch, data, device, watch, recipe or ShortRecipe(), seeds, workers)


def _study(
    folder: Path,
    arch: ArchConfig,
    data: str,
    device: Device,
    watch: Watcher,
    recipe: ShortRecipe,
    seeds: Sequence[int],
    workers: int,
) -> Proportion:
    images = load_dataset(data, recipe.image_size, note=watch.note, step=watch.step, workers=workers)
    target_ms, found = _variants(folder, arch, device, watch, look=workers > 0)
    labels = Labels(folder, data, images.digest, recipe)
    # begun in this order: every variant once before any of them twice
    jobs = [Job(variant.arch, seed, recipe.last_rung) for seed in seeds for variant in found]
    done = len({(job.arch.key, job.seed) for job in jobs} & labels.known().keys())

    def step(job: Job, label: Label) -> None:
        nonlocal done
        done += 1
        watch.step(f"trained on {images.name}", done, len(jobs))

    if workers:
        labels.collect(jobs, workers, step, watch.note)
    known = labels.known()
    points = [
        TrainedVariant(
            variant=variant,
            accuracy=tuple(
                100 * known[variant.arch.key, seed].score.accuracy
                for seed in seeds
                if (variant.arch.key, seed) in known
            ),
        )
        for variant in sorted(found, key=lambda variant: variant.share)
    ]
    points = [point for point in points if point.accuracy]
    if not points:
        reason = "; what went wrong is said above." if workers else " yet. Go on with --workers 1."
        raise EvitNasError(f"none of the variants is trained{reason}")
    return Proportion(data=images.name, recipe=recipe, target_ms=target_ms, points=tuple(points))


def _variants(
    folder: Path, arch: ArchConfig, device: Device, watch: Watcher, *, look: bool
) -> tuple[float, list[Variant]]:
    """The latency of the network, and its variants of that latency; each is looked for once, where `look`, and kept."""
    path = folder / VARIANTS
    about: dict[str, Any] = {"arch": arch.key, "device": device.context()}
    if path.exists():
        plain = json.loads(path.read_text(encoding="utf-8"))
        if plain["about"] != about:
            raise UsageError(f"{folder} holds the study of another network or device. Choose another folder.")
    else:
        own, _ = device.measure(arch, Protocol())
        plain = {"about": about, "target_ms": own.median_ms, "unit": own.unit, "variants": {}}
    unit = plain.get("unit")  # earlier versions kept none
    device = Steady(device, unit and Unit(*unit))
    target_ms, found, plans = float(plain["target_ms"]), plain["variants"], list(variants(arch)) if look else []
    for done, (name, variant) in enumerate(plans, start=1):
        if name in found:
            continue
        try:
            match = matched(device, variant, target_ms)
        except MeasurementError as error:
            watch.note(f"left out: {name}: {error}")
            continue  # not kept: the next call tries again
        if match is None:
            watch.note(f"left out: {name}: no width of it comes within {TOLERANCE:.0%} of {target_ms:.2f} ms")
        one = match and Variant(name=name, arch=match[0], latency=match[1]).model_dump(mode="json")
        found[name] = one  # None as well, so that no width is looked for again
        write_atomically(path, json.dumps(plain))
        watch.step(f"variants of {target_ms:.2f} ms", done, len(plans))
    return target_ms, [Variant.model_validate(one) for one in found.values() if one]
