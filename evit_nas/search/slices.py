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
from evit_nas.latency.predictor import Table, fit
from evit_nas.space import SearchSpace

TOLERANCE = 0.1  # half the width of a slice, as a share of its middle
MAX_DRAWS = 20_000  # random architectures for each place, before a slice is given up
REFIT_EVERY = 16  # measurements


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

    Raises:
        EvitNasError: the space has not enough architectures in a slice.
    """
    rng, table = random.Random(seed), Table(device.context(), space)
    wanted = {middle: (count + index) // len(slices_ms) for index, middle in enumerate(sorted(slices_ms, reverse=True))}
    found: dict[float, list[Sliced]] = {middle: [] for middle in sorted(slices_ms)}
    known: set[str] = set()
    samples = table.samples()
    predictor, fitted_to = fit(samples), len(samples)
    for _ in range(MAX_DRAWS * count):
        open_slices = [middle for middle in found if len(found[middle]) < wanted[middle]]
        if not open_slices:
            break
        arch = space.sample(rng)
        if arch.key in known:
            continue
        if predictor is not None and slice_of(float(predictor.predict_ms([arch])[0]), open_slices) is None:
            continue
        known.add(arch.key)
        try:
            latency, _ = device.measure(arch, Protocol())
        except MeasurementError as error:
            note(f"left out: {arch.key}: {error}")
            continue
        table.add(arch, latency)
        place = slice_of(latency.median_ms, open_slices)
        if place is not None:
            found[place].append(Sliced(arch, latency, place))
            step(sum(map(len, found.values())))
        if len(known) - fitted_to >= REFIT_EVERY or (predictor is None and len(known) % REFIT_EVERY == 0):
            predictor, fitted_to = fit(table.samples()), len(known)
    else:
        few = ", ".join(f"{len(found[middle])} of {wanted[middle]} at {middle:g} ms" for middle in open_slices)
        raise EvitNasError(
            f"the space has too few architectures in a slice: found {few}. Choose other --slices, or fewer --archs."
        )
    turns = max(map(len, found.values()))
    return [members[turn] for turn in range(turns) for members in found.values() if turn < len(members)]
