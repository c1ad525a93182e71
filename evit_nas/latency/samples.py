"""What has been measured of networks on a device, in the user's cache folder: what predictions are fitted to.

Every real measurement is kept, under the conditions, processor and runtime it belongs to, and refines the next fit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evit_nas.arch import ArchConfig
from evit_nas.caches import cache_folder
from evit_nas.errors import MeasurementError, UsageError
from evit_nas.files import Journal, write_atomically, writing
from evit_nas.latency.device import Device
from evit_nas.latency.values import Latency, Protocol
from evit_nas.space import SearchSpace


@dataclass(frozen=True)
class Sample:
    """One network measured on the device; several visits of it count as one."""

    arch: ArchConfig
    ms: float
    rel_error: float
    canary_ms: float | None = None
    """The yardstick that `ms` is said by; None where all samples are said by one."""
    noisy: bool = False
    """Whether the figure is only an estimate; a table holds no such sample."""

    @classmethod
    def of(cls, arch: ArchConfig, latency: Latency) -> Sample:
        """What was measured of a network."""
        canary_ms = latency.unit.ms if latency.unit else None
        return cls(arch, latency.median_ms, latency.rel_error, canary_ms, latency.noisy)

    def by(self, canary_ms: float | None) -> Sample:
        """The same by another yardstick."""
        if canary_ms is None or self.canary_ms is None:
            return self
        return replace(self, ms=self.ms * canary_ms / self.canary_ms, canary_ms=canary_ms)


def merged(samples: Iterable[Sample]) -> list[Sample]:
    """One sample for each network: the mean of its measurements, weighted by their errors; all by the best yardstick
    among them."""
    visits: dict[str, list[Sample]] = {}
    for sample in samples:
        visits.setdefault(sample.arch.key, []).append(sample)
    canary_ms = min((s.canary_ms for same in visits.values() for s in same if s.canary_ms), default=None)
    found = []
    for same in visits.values():
        # an error of 0, that of equal samples, would outweigh all others
        weights = np.array([1 / max(sample.rel_error, 1e-3) ** 2 for sample in same])
        ms = float(np.average([sample.by(canary_ms).ms for sample in same], weights=weights))
        found.append(Sample(same[0].arch, ms, float(1 / np.sqrt(weights.sum())), canary_ms))
    return found


class Table:
    """Everything ever measured under one device context, in the user's cache folder: one JSON line a measurement.

    Networks of another input have other operators, of which a fit would know nothing: they are another table.
    """

    def __init__(self, context: Mapping[str, str], task: ArchConfig | SearchSpace) -> None:
        self.context = {**context, "image_size": str(task.image_size), "in_channels": str(task.in_channels)}
        self.digest = hashlib.sha256(json.dumps(self.context, sort_keys=True).encode()).hexdigest()[:12]
        self._journal = Journal(cache_folder() / f"latency-{self.digest}.jsonl")

    def add(self, arch: ArchConfig, latency: Latency) -> None:
        """Keeps one more measurement, unless its ratio is an estimate only; without a cache folder it is forgotten."""
        if latency.noise:  # a doubtful yardstick does no harm: `merged` says all by the best one
            return
        with contextlib.suppress(OSError):
            self._append([Sample.of(arch, latency)])

    def samples(self) -> list[Sample]:
        """The distinct networks, each with the mean of its measurements, weighted by their errors."""
        return merged(_sample(record) for record in self._journal.read() if "canary_ms" in record)  # not so up to 0.3

    def export_to(self, path: Path) -> int:
        """Writes the table as one JSON file; returns the number of networks in it.

        Raises:
            UsageError: the file cannot be written.
        """
        samples = self.samples()
        networks = [_record(sample) for sample in samples]
        with writing(path):
            write_atomically(path, json.dumps({"context": self.context, "networks": networks}, indent=1))
        return len(samples)

    def import_from(self, path: Path) -> int:
        """Adds the networks of an exported table that are not known yet; returns their number.

        Raises:
            UsageError: not such a file, or measured under other conditions.
        """
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            context, samples = dict(found["context"]), read_samples(found)
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}.") from None
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"{path} is not a latency table; write one with: evit-nas latency show --export FILE"
            ) from None
        other = [
            f"{name} {context.get(name)} there, {own} here"
            for name, own in self.context.items()
            if context.get(name) != own
        ]
        if other:
            raise UsageError(f"{path} was measured under other conditions: {'; '.join(other)}.")
        known = {sample.arch.key for sample in self.samples()}
        fresh = [sample for sample in samples if sample.arch.key not in known]
        with writing(self._journal.path):
            self._append(fresh)
        return len(fresh)

    def _append(self, samples: Sequence[Sample]) -> None:
        self._journal.path.parent.mkdir(parents=True, exist_ok=True)
        self._journal.repair()  # else a line torn by a kill would swallow the next one and make the file unreadable
        for sample in samples:
            self._journal.append(_record(sample))


def read_samples(exported: Mapping[str, Any]) -> list[Sample]:
    """The networks of an exported table."""
    return [_sample(record) for record in exported["networks"]]


def _record(sample: Sample) -> dict[str, Any]:
    return {
        "arch": sample.arch.model_dump(mode="json"),
        "ms": sample.ms,
        "rel_error": sample.rel_error,
        "canary_ms": sample.canary_ms,
    }


def _sample(record: Mapping[str, Any]) -> Sample:
    ms, rel_error = float(record["ms"]), float(record["rel_error"])
    if not 0 < ms < math.inf or not 0 <= rel_error < math.inf:
        raise ValueError(f"a latency must be positive and its error no less than 0, got {ms} and {rel_error}")
    return Sample(ArchConfig.model_validate(record["arch"]), ms, rel_error, record.get("canary_ms"))


def measure_unseen(
    device: Device,
    table: Table,
    archs: Iterable[ArchConfig],
    count: int,
    protocol: Protocol,
    step: Callable[[int], None],
    note: Callable[[str], None],
) -> list[Sample]:
    """Measures the first `count` of `archs` that the table does not hold, and adds what is not noisy to it.

    Args:
        device: where.
        table: of that device.
        archs: as many as needed are drawn; those that cannot be measured are left out.
        count: how many to measure.
        protocol: how carefully.
        step: told how many are done.
        note: told what was left out and why.

    Raises:
        LostLink: the link to the device was lost.
    """
    known = {sample.arch.key for sample in table.samples()}
    fresh: list[Sample] = []
    for arch in archs:
        if len(fresh) >= count:
            break
        if arch.key in known:
            continue
        known.add(arch.key)  # before it is measured: one that fails is not tried twice
        try:
            latency, _ = device.measure(arch, protocol)
        except MeasurementError as error:
            note(f"left out: {arch.key}: {error}")
            continue
        table.add(arch, latency)
        fresh.append(Sample.of(arch, latency))
        step(len(fresh))
    return fresh
