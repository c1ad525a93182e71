"""The canaries: fixed networks whose times on the quiet machine turn what is measured now into milliseconds.

Ratios to a canary of about the same size repeat on a loaded machine, absolute times do not. So the canaries' times on
the quiet machine are kept per processor, runtime and conditions in the user's cache folder and only ever lowered, when
a calmer moment is met: milliseconds then agree between today's search and tomorrow's `evit-nas measure`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evit_nas.arch import ArchConfig, StageConfig
from evit_nas.caches import cache_folder
from evit_nas.runs import write_atomically

# About 1, 3 and 6 ms on one core of a server: what a search looks at lies between them or not far beside.
CANARIES = (
    ArchConfig(stages=tuple(StageConfig(width=width, depth=1, heads=2, q_kernels=(5, 5)) for width in (48, 96, 192))),
    ArchConfig.preset("m1"),
    ArchConfig.preset("m4"),
)
LEARNING_S = 1.5  # spent on canary runs alone when a measuring process starts
SLOW_FACTOR = 1.25  # a canary's median over its quiet time beyond which the machine counts as noisy


def quiet_ms(seen_ms: Sequence[float], identity: str) -> list[float]:
    """The canaries' quiet times in milliseconds: `seen_ms`, or those known if they are faster on the whole.

    They are replaced together, never one by one: their ratios come from one session and fit each other.

    Args:
        seen_ms: medians of canary runs just made, in the order of CANARIES.
        identity: processor, runtime, conditions and canary graphs that the figures belong to.
    """
    path = _path(identity)
    known = _read(path, len(seen_ms))
    if known is not None and np.mean(np.log(known)) <= np.mean(np.log(seen_ms)):
        return known
    _write(path, {"identity": identity, "quiet_ms": list(seen_ms)})
    return list(seen_ms)


def _path(identity: str) -> Path:
    name = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return cache_folder() / f"canary-{name}.json"


def _read(path: Path, count: int) -> list[float] | None:
    try:
        found = [float(ms) for ms in json.loads(path.read_text(encoding="utf-8"))["quiet_ms"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if len(found) == count and min(found) > 0 else None


def _write(path: Path, record: dict[str, object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(record))
    except OSError:
        pass  # without a cache folder the quiet times are learnt anew in each session
