"""Pools of architectures in latency slices: of about equal latency, as a search under a budget compares them.

Over a wide range of sizes every score ranks well, because size does. Whether a score can choose shows inside a slice.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from evit_nas.arch import ArchConfig
from evit_nas.errors import EvitNasError, MeasurementError
from evit_nas.latency import Device, Latency, Protocol
from evit_nas.latency.predictor import fit
from evit_nas.latency.samples import Sample, Table, merged
from evit_nas.space import SearchSpace

TOLERANCE = 0.1  # half the width of a slice, as a share of its middle
MAX_DRAWS = 20_000  # random architectures in a row that were of no use, after which the slices are given up
DRAWS_PER_MEASUREMENT = 100  # what a measurement counts for: it takes so much longer
REFIT_EVERY = 16  # measurements


class TooFew(EvitNasError):
    """The space has not enough architectures in a slice."""


@dataclass(frozen=True)
class Sliced:
    """An architecture measured to be in a slice."""

    arch: ArchConfig
    latency: Latency
    slice_ms: float
    """The middle of its slice."""


def slice_of(latency_ms: float, slices_ms: Sequence[float]) -> float | None:
    """The middle of the slice that a latency lies in; None if in none."""
    near = [middle for middle in slices_ms if abs(latency_ms / middle - 1) <= TOLERANCE]
    return min(near, key=lambda middle: abs(latency_ms / middle - 1)) if near else None


def sliced_pool(
    device: Device,
    space: SearchSpace,
    slices_ms: Sequence[float],
    count: int,
    seed: int,
    step: Callable[[int], None],
    note: Callable[[str], None],
    *,
    before: Sequence[Sliced] = (),
    samples: list[Sample] | None = None,
    keep: Callable[[Sliced], None] = lambda sliced: None,
) -> list[Sliced]:
    """`count` random architectures, equally many in each slice and in turns, so that a part of them is balanced too.

    What has been measured on the device before tells which architectures are worth measuring here.

    Args:
        device: where latency is measured.
        space: what is sampled, uniformly over the choices of each dimension.
        slices_ms: the middle of each slice in milliseconds; it reaches 10 % either way.
        count: of all slices together; the first slices get one more where it does not divide.
        seed: of the sampling.
        step: told how many are found.
        note: told what could not be measured.
        before: found for these slices by an earlier call, and counted; the draws of this one are others then.
        samples: what is known of the device, to which every measurement is added; None for its table.
        keep: told each one that is found.

    Raises:
        TooFew: the space has not enough architectures in a slice.
        LostLink: the link to the device was lost.
    """
    slices_ms = sorted(set(slices_ms))
    rng = random.Random(f"{seed} {len(before)}" if before else seed)
    table = Table(device.context(), space)
    wanted = {middle: (count + index) // len(slices_ms) for index, middle in enumerate(reversed(slices_ms))}
    found: dict[float, list[Sliced]] = {middle: [] for middle in slices_ms}
    for sliced in before:
        found[sliced.slice_ms].append(sliced)
    known = {sliced.arch.key for sliced in before}
    samples = table.samples() if samples is None else samples
    predictor, effort = fit(merged(samples)), 0
    while open_slices := [middle for middle in found if len(found[middle]) < wanted[middle]]:
        effort += 1
        if effort > MAX_DRAWS:
            few = ", ".join(f"{len(found[middle])} of {wanted[middle]} at {middle:.3g} ms" for middle in open_slices)
            raise TooFew(
                f"the space has too few architectures of these latencies on {device.conditions.device}: found {few}. "
                "Ask for fewer, for latencies that it has, or give a --space that has them."
            )
        arch = space.sample(rng)
        if arch.key in known:
            continue
        if predictor is not None and slice_of(float(predictor.predict_ms([arch])[0]), open_slices) is None:
            continue
        known.add(arch.key)
        effort += DRAWS_PER_MEASUREMENT
        try:
            latency, _ = device.measure(arch, Protocol())
        except MeasurementError as error:
            note(f"left out: {arch.key}: {error}")
            continue
        table.add(arch, latency)
        samples.append(Sample.of(arch, latency))  # noisy ones too, which the table leaves out
        place = slice_of(latency.median_ms, open_slices)
        if place is not None:
            effort = 0
            found[place].append(Sliced(arch, latency, place))
            keep(found[place][-1])
            step(sum(map(len, found.values())))
        if len(known) % REFIT_EVERY == 0:
            predictor = fit(merged(samples))
    turns = max(map(len, found.values()))
    return [members[turn] for turn in range(turns) for members in found.values() if turn < len(members)]
