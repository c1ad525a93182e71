"""The canary: a fixed network whose time on the quiet machine turns ratios into milliseconds.

Ratios to the canary repeat on a loaded machine, absolute times do not. So the canary's time on the quiet machine is
kept per processor and runtime in the user's cache folder and only ever lowered, when a calmer moment is met:
milliseconds then agree between today's search and tomorrow's `evit-nas measure`.

Its size is a compromise. With a few megabytes of weights it is back in the caches after a few runs, whatever ran before
it, and yet feels a slow memory as the networks do that are measured beside it. Beside busy loops and a memory copy,
ratios to it moved by 6 % at most, to a network of a quarter of its size by 12 %, to m0 by 5 % (benchmarks/canary.py).
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import platformdirs

from evit_nas.arch import ArchConfig, StageConfig

CANARY = ArchConfig(
    stages=tuple(StageConfig(width=width, depth=1, heads=2, q_kernels=(5, 5)) for width in (48, 96, 192))
)
LEARNING_S = 1.5  # spent on canary runs alone when a measuring process starts
NOISY_FACTOR = 1.25  # canary median over its quiet time beyond which the machine counts as noisy


def quiet_ms(samples_ns: np.ndarray, identity: str) -> float:
    """The canary's quiet time in milliseconds: the median of `samples_ns`, or the lowest one known.

    Args:
        samples_ns: (n,) CPU nanoseconds of canary runs just made.
        identity: processor, runtime and canary graph that the figure belongs to.
    """
    path = _path(identity)
    known = _read(path)
    seen = float(np.median(samples_ns)) / 1e6
    if known is not None and known <= seen:
        return known
    _write(path, {"identity": identity, "quiet_ms": seen})
    return seen


def is_noisy(samples_ns: np.ndarray, quiet: float) -> bool:
    """Whether the canary ran slower than on the quiet machine."""
    return float(np.median(samples_ns)) / 1e6 > NOISY_FACTOR * quiet


def _path(identity: str) -> Path:
    name = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return Path(platformdirs.user_cache_dir("evit-nas")) / f"canary-{name}.json"


def _read(path: Path) -> float | None:
    try:
        return float(json.loads(path.read_text())["quiet_ms"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, record: dict[str, object]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(json.dumps(record))
        scratch.replace(path)
    except OSError:
        pass  # without a cache folder the quiet time is learnt anew in each session
