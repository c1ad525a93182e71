"""What both ends of the link between a search and a board agree on: `remote.py` there, `worker.py` on the board."""

from __future__ import annotations

from pydantic import BaseModel

from evit_nas.latency.machine import Machine
from evit_nas.latency.runtimes import RUNTIMES

DEFAULT_PORT = 8642
TOKEN_VARIABLE = "EVIT_NAS_TOKEN"
WAIT_S = 20.0  # that a client is kept waiting for an answer before it is told to ask again


class Board(BaseModel):
    """What a worker says about itself."""

    evit_nas: str
    """Version of this package: it makes the graphs and the canary."""
    host: str
    """Name of the machine."""
    device: str
    """What measures there, as given to the worker's --device."""
    runtime: str
    """Runtime and version."""
    machine: Machine
    """Processor, cores, clock governor and the like."""
    max_model_bytes: int
    """Largest ONNX file it takes."""
    noise: str | None
    """Why its last measurement is only an estimate; empty if it is none, None before the first."""

    @property
    def precision(self) -> str:
        """What it computes in unless a client asks for another."""
        return RUNTIMES[self.device.partition(":")[0]].precisions[0]

    @property
    def context(self) -> dict[str, str]:
        """What must stay as it is for two figures to be comparable."""
        return {
            "host": self.host,
            "device": self.device,
            "processor": self.machine.processor,
            "runtime": self.runtime,
            "graph": self.evit_nas,
        }
