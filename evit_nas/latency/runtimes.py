"""The table of runtimes: what can turn a network into numbers on this machine.

A runtime is a line here and a backend module with three functions, imported only where it measures:

    load(network, conditions) -> Loaded    a network ready to run, as often as one likes
    version(family) -> str                 of the runtime, for every record and memo key
    missing(family) -> str | None          why it cannot run here, and what would help; None if it can
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evit_nas.config import Conditions
    from evit_nas.latency.values import Measurable


@dataclass(frozen=True)
class Loaded:
    """A network in a runtime: `run()` makes one inference on random input and waits for its end."""

    run: Callable[[], object]
    input_shape: tuple[int, ...]


@dataclass(frozen=True)
class Runtime:
    """One line of the table."""

    what: str
    """What a user reads in `evit-nas devices`."""
    backend: str
    """Module of this package with the three functions."""
    precisions: tuple[str, ...] = ("fp32",)
    """Arithmetic it offers; the first is the default."""
    argument: str | None = None
    """What may follow a colon: "threads", "index" (of a GPU), or that very word."""
    clock: str = "cpu"
    """How time is counted with one thread: "cpu" if all work stays on the calling thread, else "wall" or "cuda"."""
    takes_entries: bool = True
    """Whether it has session settings."""
    takes_timm: bool = False
    """Whether it builds timm's networks itself; the others get them as ONNX files."""
    timeout_s: float = 120.0
    """Wall limit of a visit; half a second is usual, a compiler takes minutes."""

    def missing(self, family: str) -> str | None:
        """Why it cannot run here, and what would help; None if it can."""
        reason: str | None = self._module().missing(family)
        return reason

    def version(self, family: str) -> str:
        """Name and version of the runtime."""
        return str(self._module().version(family))

    def load(self, network: Measurable, conditions: Conditions) -> Loaded:
        """A network ready to run.

        Raises:
            MeasurementError: this runtime does not take such a network, or not under these conditions.
        """
        loaded: Loaded = self._module().load(network, conditions)
        return loaded

    def _module(self) -> Any:
        return importlib.import_module(f"evit_nas.latency.{self.backend}")


RUNTIMES: dict[str, Runtime] = {
    "cpu": Runtime("ONNX Runtime on the processor", "onnx_backend", argument="threads"),
    "cpu-int8": Runtime("ONNX Runtime, quantised to 8 bits", "onnx_backend", ("int8",), argument="threads"),
    "openvino": Runtime("OpenVINO on the processor", "openvino_backend", ("fp32", "bf16"), argument="threads"),
    "torch": Runtime(
        "PyTorch on the processor, eager or :compiled",
        "torch_backend",
        ("fp32", "bf16"),
        argument="compiled",
        takes_entries=False,
        takes_timm=True,
        timeout_s=900.0,
    ),
    "cuda": Runtime(
        "PyTorch on an NVIDIA GPU",
        "torch_backend",
        ("fp32", "fp16", "bf16"),
        argument="index",
        clock="cuda",
        takes_entries=False,
        takes_timm=True,
    ),
    # ONNX Runtime returns when the GPU is done, on a stream of its own: only the wall clock sees it
    "cuda-onnx": Runtime("ONNX Runtime on an NVIDIA GPU", "onnx_backend", argument="index", clock="wall"),
    "tensorrt": Runtime(
        "TensorRT in ONNX Runtime", "onnx_backend", ("fp32", "fp16"), argument="index", clock="wall", timeout_s=900.0
    ),
}


def clock_of(conditions: Conditions) -> str:
    """What counts time under `conditions`: the "cpu" time of the one thread, the "wall" clock, or a GPU's events
    ("cuda")."""
    clock = RUNTIMES[conditions.family].clock
    return "wall" if clock == "cpu" and conditions.threads > 1 else clock


@dataclass(frozen=True)
class RuntimeInfo:
    """A line of the table as it is on this machine."""

    name: str
    what: str
    precisions: tuple[str, ...]
    missing: str | None
    """Why it cannot run here, and what would help; None if it can."""
    version: str | None
    """Of the runtime; None where it cannot run."""


def list_runtimes() -> list[RuntimeInfo]:
    """Every runtime of the table, and whether it can run here; torch is imported to ask for a GPU."""
    infos = []
    for name, runtime in RUNTIMES.items():
        missing = runtime.missing(name)
        version = runtime.version(name) if missing is None else None
        infos.append(RuntimeInfo(name, runtime.what, runtime.precisions, missing, version))
    return infos
