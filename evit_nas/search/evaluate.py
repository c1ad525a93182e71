"""One architecture, all its numbers, each computed once: the run's journal is the memo.

A number is remembered by the network's key and by everything else that changes it (device, runtime, protocol,
seed, versions), so it survives being killed, and another machine's figure is never taken for this one's.
"""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import Any

from evit_nas import __version__
from evit_nas.accuracy.aggregate import NAMES
from evit_nas.arch import ArchConfig
from evit_nas.latency import STRICT, Device, Latency, Protocol
from evit_nas.runs import Journal

SEARCH = Protocol()


class Evaluator:
    """Measures on `device` and scores with `seed`, remembering everything in `journal`."""

    def __init__(self, device: Device, journal: Journal, seed: int) -> None:
        self._device, self._journal, self._seed = device, journal, seed
        self._memo: dict[str, dict[str, Any]] = {record["id"]: record["value"] for record in journal.read()}

    def repair(self) -> None:
        """Makes the journal fit for appending after a process was killed; only for the run's owner."""
        self._journal.repair()

    def latency(self, arch: ArchConfig, strict: bool = False) -> Latency:
        """Measured latency, quickly as a search needs it or as carefully as what is published."""
        memo_id = self._latency_id(arch, strict)
        if memo_id in self._memo:
            return Latency.model_validate(self._memo[memo_id])
        latency, samples = self._device.measure(arch, STRICT if strict else SEARCH)
        self._remember(memo_id, arch, latency.model_dump(), samples=samples)
        return latency

    def proxies(self, arch: ArchConfig) -> dict[str, float]:
        """The zero-cost proxies that the score is made of, by name; higher is better."""
        context = {"seed": self._seed, "names": NAMES, "torch": version("torch"), "evit_nas": __version__}
        memo_id = _memo_id("proxies", arch, context)
        if memo_id not in self._memo:
            from evit_nas.accuracy.zero_cost import score_all

            self._remember(memo_id, arch, score_all(arch, seed=self._seed, names=NAMES))
        return self._memo[memo_id]

    def _latency_id(self, arch: ArchConfig, strict: bool) -> str:
        kind, protocol = ("strict", STRICT) if strict else ("latency", SEARCH)
        return _memo_id(kind, arch, self._device.context() | protocol.model_dump())

    def _remember(self, memo_id: str, arch: ArchConfig, value: dict[str, Any], **details: Any) -> None:
        self._journal.append({"id": memo_id, "key": arch.key, "value": value, **details})
        self._memo[memo_id] = value


def recorded(journal: Journal, kind: str) -> dict[str, dict[str, Any]]:
    """Key of the network -> its latest "latency", "strict" or "proxies" on record, whatever machine made it."""
    return {r["key"]: r["value"] for r in journal.read() if r["id"].startswith(f"{kind}:")}


def _memo_id(kind: str, arch: ArchConfig, context: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(context, sort_keys=True).encode()).hexdigest()[:12]
    return f"{kind}:{arch.key}:{digest}"
