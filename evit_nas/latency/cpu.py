"""`cpu`: ONNX Runtime on one thread, batch 1, fp32, measured in a child process.

The child (`worker.py`) holds no torch, is pinned to one core and answers one JSON line for each request; if it
crashes or hangs, one measurement fails and the next request starts a new child.
"""

from __future__ import annotations

import json
import selectors
import subprocess
import sys
import tempfile
from importlib.metadata import version
from typing import Any

from evit_nas import __version__
from evit_nas.arch import ArchConfig
from evit_nas.errors import MeasurementError
from evit_nas.latency import Device, Latency, Protocol
from evit_nas.latency.machine import processor

TIMEOUT_S = 120.0  # one measurement takes about half a second


class CpuDevice(Device):
    """ONNX Runtime, CPU provider, one thread."""

    name = "cpu"

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._child: subprocess.Popen[str] | None = None
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the device

    def measure(self, arch: ArchConfig, protocol: Protocol) -> tuple[Latency, dict[str, Any]]:
        return self._ask({"arch": arch.model_dump(mode="json")}, protocol)

    def measure_file(self, path: str, protocol: Protocol) -> tuple[Latency, dict[str, Any]]:
        return self._ask({"onnx": path}, protocol)

    def context(self) -> dict[str, str]:
        return {
            "device": self.name,
            "processor": processor(),
            "runtime": f"onnxruntime {version('onnxruntime')}",
            "graph": __version__,
        }

    def close(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _ask(self, request: dict[str, Any], protocol: Protocol) -> tuple[Latency, dict[str, Any]]:
        line = json.dumps(request | {"protocol": protocol.model_dump()})
        reply = self._exchange(line)
        if "error" in reply:
            raise MeasurementError(f"ONNX Runtime could not run the network: {reply['error']}")
        return Latency.model_validate(reply["latency"]), reply["samples"]

    def _exchange(self, line: str) -> dict[str, Any]:
        if self._child is None or self._child.poll() is not None:
            self._child = self._start()
        child = self._child
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(line + "\n")
            child.stdin.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(child.stdout, selectors.EVENT_READ)
                answered = bool(selector.select(self._timeout_s))
            reply = child.stdout.readline() if answered else ""
        except BrokenPipeError:
            answered, reply = True, ""
        except BaseException:  # interrupted: the pending answer must not be read as the next one's
            self.close()
            raise
        if reply.endswith("\n"):
            answer: dict[str, Any] = json.loads(reply)
            return answer
        if not answered:
            self.close()
            raise MeasurementError(f"the measurement took longer than {self._timeout_s:.0f} s and was ended.")
        status = child.wait()
        self._stderr.seek(0)
        last_words = (self._stderr.read().strip().splitlines() or ["no message; out of memory?"])[-1]
        self.close()
        raise MeasurementError(f"the measuring process died with exit status {status}: {last_words}")

    def _start(self) -> subprocess.Popen[str]:
        self._stderr.truncate(0)
        return subprocess.Popen(
            [sys.executable, "-m", "evit_nas.latency.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            start_new_session=True,  # Ctrl-C is for the parent, which ends the child itself
        )
