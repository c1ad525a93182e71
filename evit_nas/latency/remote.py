"""The device `remote:HOST[:PORT]`: another machine, a board for instance, where `evit-nas worker` measures.

HOST and PORT are where the worker is reached from here. Through ssh, which needs no token, that is this machine:

    ssh -N -L 8642:127.0.0.1:8642 pi &
    evit-nas search --device remote:localhost --budget 40ms

A link may break at any time: each measurement has its own name (`visit`), under which the same question is asked again
until the board answers.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import re
import time
import uuid
from pathlib import Path
from typing import Any

from evit_nas import __version__
from evit_nas.arch import ArchConfig
from evit_nas.config import Conditions
from evit_nas.errors import LostLink, MeasurementError, UsageError
from evit_nas.latency.device import Device
from evit_nas.latency.link import DEFAULT_PORT, TOKEN_VARIABLE, WAIT_S, Board
from evit_nas.latency.measurable import resolved
from evit_nas.latency.values import BOARDS_DEFAULT, Latency, Measurable, Protocol, TimmModel

PATIENCE_S = 600.0  # without an answer before a measurement is given up: a board restarts in a minute or two
FIRST_DELAY_S, MAX_DELAY_S = 0.5, 15.0  # between attempts on a lost link, doubled each time
LINK_TIMEOUT_S = 2 * WAIT_S  # without a byte from the worker, which answers within WAIT_S

_ADDRESS = re.compile(r"(\[(?P<ipv6>[0-9A-Fa-f:.]+)\]|(?P<host>[^\s:/@\[\]]+))(:(?P<port>[0-9]{1,5}))?")

logger = logging.getLogger("evit_nas.remote")


class RemoteDevice(Device):
    """A worker at the host and port that the conditions name."""

    def __init__(self, conditions: Conditions, patience_s: float = PATIENCE_S) -> None:
        """
        Args:
            patience_s: how long a worker may be out of reach, or busy for others, during a measurement.

        Raises:
            UsageError: the device's name is not remote:HOST[:PORT].
        """
        self.conditions = conditions
        self._host, self._port = parse_address(conditions.device)
        self._patience_s = patience_s
        self._token = os.environ.get(TOKEN_VARIABLE, "").strip()
        self._board: Board | None = None

    def measure(self, network: Measurable, protocol: Protocol) -> tuple[Latency, dict[str, Any]]:
        """See Device.

        Raises:
            MeasurementError: the network could not be measured.
            LostLink: the worker was out of reach or busy for longer than the patience.
            UsageError: no worker at the first contact, another one than at the first contact, or it refuses.
        """
        job = {
            "protocol": protocol.model_dump(),
            "conditions": self._on_board.model_dump(),
            "board": self.board.context,
            "visit": uuid.uuid4().hex,
        }
        if isinstance(network, ArchConfig):
            answer = self._ask("POST", "/v1/jobs", _json(job | {"arch": network.model_dump(mode="json")}))
        else:
            model = self._model(network)
            sha256 = hashlib.sha256(model).hexdigest()
            body = _json(job | {"model": sha256})
            answer = self._ask("POST", "/v1/jobs", body)  # the board may have the file from before
            if answer.get("kind") == "unknown model":
                answer = self._ask("PUT", f"/v1/models/{sha256}", model)
                answer = answer if "error" in answer else self._ask("POST", "/v1/jobs", body)
        if "error" in answer:
            raise MeasurementError(f"{self.conditions.device}: {answer['error']}", answer["kind"])
        latency = Latency.model_validate(answer["latency"])
        # there the device is called cpu, say: a figure has the name by which this side knows it
        return latency.model_copy(update={"conditions": self._on_board}), answer["samples"]

    def context(self) -> dict[str, str]:
        return {"conditions": self._on_board.model_dump_json(), **self.board.context}

    def close(self) -> None: ...

    @property
    def board(self) -> Board:
        """The board as it was at the first contact.

        Raises:
            UsageError: no worker answers, it has another version of this package, or it refuses.
        """
        if self._board is None:
            info = self.info()
            if info.get("evit_nas") != __version__:
                raise UsageError(
                    f"the worker at {self._address} is evit-nas {info.get('evit_nas')}, this one is {__version__}: "
                    "their figures are of different graphs. Install the same version on both."
                )
            self._board = Board.model_validate(info)
        return self._board

    def info(self) -> dict[str, Any]:
        """What the worker says about itself now, whatever its version.

        Raises:
            UsageError: no worker answers, or it refuses.
        """
        return self._now("/v1/info")

    def load(self) -> dict[str, Any]:
        """How busy the board is: `foreign_cores`, None if unknown, and `unfinished_jobs`.

        Raises:
            UsageError: no worker answers, or it refuses.
        """
        return self._now("/v1/load")

    @property
    def _on_board(self) -> Conditions:
        """`conditions` with the precision that the board really uses: what figures and their keys say."""
        if self.conditions.precision != BOARDS_DEFAULT:
            return self.conditions
        return self.conditions.model_copy(update={"precision": self.board.precision})

    @property
    def _address(self) -> str:
        return f"{self._host} port {self._port}"

    def _model(self, network: Path | TimmModel) -> bytes:
        """The ONNX file of `network`."""
        path = resolved(network, self.conditions.family)
        assert isinstance(path, Path)
        try:
            model = path.read_bytes()
        except OSError as error:
            raise MeasurementError(f"{path} cannot be read: {error.strerror}") from None
        if len(model) > self.board.max_model_bytes:
            raise UsageError(
                f"{path} has {len(model):,} bytes, the worker at {self._address} takes {self.board.max_model_bytes:,}; "
                "start it from Python with a larger WorkerServer(max_model_bytes=...)."
            )
        return model

    def _now(self, path: str) -> dict[str, Any]:
        """A question that is not worth waiting for."""
        try:
            _, reply = self._exchange("GET", path)
        except (OSError, http.client.HTTPException) as error:
            tunnel = f"ssh -N -L {self._port}:127.0.0.1:{DEFAULT_PORT} BOARD"
            raise UsageError(
                f"no worker answers at {self._address}: {_reason(error)}. Start `evit-nas worker` on the board and "
                f"here a tunnel to it, `{tunnel}`; then try --device remote:localhost:{self._port}."
            ) from None
        return self._checked(reply)

    def _ask(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        """The worker's answer, or the error of a measurement, however long it takes.

        Raises:
            LostLink: the worker was out of reach or busy for longer than the patience.
            UsageError: it refuses.
        """
        lost_since: float | None = None
        delay = FIRST_DELAY_S
        while True:
            try:
                status, reply = self._exchange(method, path, body)
                # 503 is busy or closing, "lost link" a request that did not arrive whole: both are worth asking again
                trouble = str(reply.get("error")) if status == 503 or reply.get("kind") == "lost link" else None
            except (OSError, http.client.HTTPException) as error:
                trouble = _reason(error)
            if trouble is None:
                if lost_since is not None:
                    logger.warning("the worker at %s answers again", self._address)
                if status != 202:
                    return self._checked(reply)
                lost_since, delay = None, FIRST_DELAY_S
                continue  # at once: it is the worker that waits, WAIT_S before a 202
            if lost_since is None:
                lost_since = time.monotonic()
                logger.warning("waiting for the worker at %s: %s", self._address, trouble)
            if time.monotonic() - lost_since > self._patience_s:
                message = f"the worker at {self._address} could not be had for {self._patience_s:.0f} s: {trouble}"
                raise LostLink(message)
            time.sleep(delay)
            delay = min(2 * delay, MAX_DELAY_S)

    def _checked(self, reply: dict[str, Any]) -> dict[str, Any]:
        if "error" in reply and reply.get("kind") == "usage":
            raise UsageError(f"the worker at {self._address} refuses: {reply['error'].rstrip('.')}.")
        return reply

    def _exchange(self, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
        """One request on a connection of its own, and the status and JSON of its answer."""
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        connection = http.client.HTTPConnection(self._host, self._port, timeout=LINK_TIMEOUT_S)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            reply = json.loads(response.read())
        except ValueError:
            raise UsageError(f"what answers at {self._address} is no evit-nas worker.") from None
        finally:
            connection.close()
        if not isinstance(reply, dict):
            raise UsageError(f"what answers at {self._address} is no evit-nas worker.")
        return response.status, reply


def parse_address(device: str) -> tuple[str, int]:
    """Host and port of `remote:HOST[:PORT]`.

    Raises:
        UsageError: not of that form.
    """
    match = _ADDRESS.fullmatch(device.removeprefix("remote:"))
    port = int(match["port"] or DEFAULT_PORT) if match else 0
    if match is None or not device.startswith("remote:") or not 1 <= port <= 65535:
        raise UsageError(
            "a remote device is written remote:HOST or remote:HOST:PORT, an IPv6 address in brackets, "
            f"got '{device}'; try remote:localhost:{DEFAULT_PORT}."
        )
    return match["ipv6"] or match["host"], port


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
