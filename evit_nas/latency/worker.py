"""`evit-nas worker`: a board over HTTP, for the remote devices of searches elsewhere.

    GET  /v1/info             what measures here (`Board`)
    GET  /v1/load             how busy the board is with other things
    PUT  /v1/models/SHA256    an ONNX file, known from now on by its hash
    POST /v1/jobs             a measurement (`MeasurementJob`): 200 with the answer, or 202 for "still at it: ask again"

The whole paired protocol runs here, canary included: no sample has ever seen the network. Only JSON and ONNX bytes come
in, nothing is unpickled, and onnxruntime, onnx and numpy are all the machinery it takes. It listens on loopback, where
ssh is the authentication; any other address, and any other name for it, demands a token.

The server is the standard library's on purpose: waitress would leave 83 lines less here, Starlette with uvicorn 50, but
neither gives up a client that sends its head byte by byte. Waitress also puts a whole body on the board's disk before
the token is looked at, and uvicorn takes five times as long to import and 13 MB more memory.
"""

from __future__ import annotations

import hmac
import io
import ipaddress
import json
import logging
import re
import signal
import socket
import socketserver
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from evit_nas import __version__
from evit_nas.errors import UsageError
from evit_nas.latency.board import MAX_MODEL_BYTES, MeasurementJob, Refusal, Reply, Worker
from evit_nas.latency.link import DEFAULT_PORT, TOKEN_VARIABLE, WAIT_S
from evit_nas.yamlio import validate

MAX_JSON_BYTES = 2**20
SOCKET_TIMEOUT_S = 10.0  # that a client may take for the head of a request, or to read an answer
MIN_BYTES_PER_S = 50_000  # a body that comes in more slowly is given up

logger = logging.getLogger("evit_nas.worker")


class Receiver(socket.SocketIO):
    """What a client sends until a deadline; a limit for each read would bear with one that sends byte by byte."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        super().__init__(connection, "r")
        self._connection = connection
        self.allow(seconds)

    def allow(self, seconds: float) -> None:
        """Sets the deadline, from now on."""
        self._deadline = time.monotonic() + seconds

    def readinto(self, buffer: Any) -> int | None:
        """
        Raises:
            TimeoutError: nothing came before the deadline.
        """
        self._connection.settimeout(max(self._deadline - time.monotonic(), 1e-3))  # 0 would not wait at all
        return super().readinto(buffer)


class Handler(BaseHTTPRequestHandler):
    """One request on one connection; whatever is wrong with it is answered with one JSON error."""

    server: WorkerServer
    default_request_version = "HTTP/1.0"  # else the errors of a garbled request line have no status line
    server_version, sys_version = f"evit-nas/{__version__}", ""

    def setup(self) -> None:
        super().setup()
        self._receiver = Receiver(self.connection, SOCKET_TIMEOUT_S)
        self.rfile = io.BufferedReader(self._receiver)

    def _respond(self) -> None:
        try:
            status, reply = self._reply()
        except Refusal as refusal:
            status, reply = refusal.status, {"error": str(refusal), "kind": refusal.kind}
        except UsageError as error:
            status, reply = 400, {"error": str(error), "kind": "usage"}
        except Exception as error:
            logger.exception("%s %s", self.command, self.path)
            status, reply = 500, {"error": f"the worker failed: {error!r}", "kind": "crashed"}
        self._send(status, reply)

    do_GET = do_PUT = do_POST = _respond

    def _reply(self) -> tuple[int, Reply]:
        self._check_caller()  # before a byte of the body is read
        worker, request = self.server.worker, f"{self.command} {self.path}"
        if request == "GET /v1/info":
            return 200, worker.board().model_dump(mode="json")
        if request == "GET /v1/load":
            return 200, worker.load()
        if request == "POST /v1/jobs":
            answer = worker.ask(validate(MeasurementJob, self._json(), "job"), self.server.wait_s)
            if answer is None:
                return 202, {"state": "running"}
            return (422 if "error" in answer else 200), answer
        model = re.fullmatch("PUT /v1/models/([0-9a-f]{64})", request)  # nothing else may become the name of a file
        if model:
            worker.keep_model(model[1], self._body(worker.max_model_bytes))
            return 201, {}
        raise Refusal(404, "there is GET /v1/info, GET /v1/load, PUT /v1/models/SHA256 and POST /v1/jobs")

    def _check_caller(self) -> None:
        if self.server.token:
            given = self.headers.get("Authorization", "").encode()  # of texts compare_digest takes ASCII only
            if not hmac.compare_digest(given, f"Bearer {self.server.token}".encode()):
                raise Refusal(401, f"this worker asks for its token; set {TOKEN_VARIABLE} to it")
            return
        # a web page can make its own name mean this machine, and its reader's browser then asks on its behalf
        host = self.headers.get("Host", "localhost")
        if not _is_loopback(re.sub(r":\d*$", "", host).strip("[]").lower()):
            raise Refusal(
                403,
                "without a token a worker is asked as localhost or at a loopback address, "
                f"got the host {host}; to call it otherwise set {TOKEN_VARIABLE} on both sides",
            )

    def _json(self) -> Any:
        try:
            return json.loads(self._body(MAX_JSON_BYTES))
        except (ValueError, RecursionError) as error:  # the latter by brackets nested too deep
            raise Refusal(400, f"the body is not JSON: {error}") from None

    def _body(self, limit: int) -> bytes:
        """The request's body, of at most `limit` bytes.

        Raises:
            Refusal: its length is not declared or too large, or it comes short or too slowly.
        """
        declared = self.headers.get("Content-Length", "")
        if not re.fullmatch("[0-9]{1,18}", declared):
            raise Refusal(411, "Content-Length must say how many bytes the body has")
        length = int(declared)
        if length > limit:
            raise Refusal(413, f"at most {limit:,} bytes are taken here, got {length:,}")
        self._receiver.allow(SOCKET_TIMEOUT_S + length / MIN_BYTES_PER_S)
        try:
            body = self.rfile.read(length)
        except TimeoutError:
            raise Refusal(408, f"the body comes too slowly, {length:,} bytes were announced", "lost link") from None
        if len(body) < length:
            raise Refusal(400, f"the body ended {length - len(body):,} bytes early", "lost link")
        return body

    def _send(self, status: int, reply: Reply) -> None:
        body = json.dumps(reply).encode()
        self.connection.settimeout(SOCKET_TIMEOUT_S)  # the receiver left what remained of its deadline
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """The base class's own errors, about request lines and headers it cannot read, as JSON."""
        # 501, an unknown method, and 505, an unknown version of HTTP, are mistakes of the client and no failures here
        status = 405 if code == 501 else 400 if code >= 500 else int(code)
        self._send(status, {"error": message or "not a request", "kind": "usage"})

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


class WorkerServer(ThreadingHTTPServer):
    """A worker at an address.

    Args:
        device: what measures here, one of RUNTIMES; a GPU with its index.
        bind: address to listen on.
        port: 0 takes any free one; see `address`.
        token: what clients must know; empty for none, on loopback only.
        max_model_bytes: largest ONNX file taken.

    Raises:
        UsageError: an address beyond loopback without a token, one that cannot be had, or see `Worker`.
    """

    daemon_threads = True
    request_queue_size = 256  # connections that come in at once: beyond that the system has them try again in a second

    def __init__(
        self,
        device: str = "cpu",
        *,
        bind: str = "127.0.0.1",
        port: int = DEFAULT_PORT,
        token: str = "",
        max_model_bytes: int = MAX_MODEL_BYTES,
    ) -> None:
        self.token = token.strip()
        if not self.token and not _is_loopback(bind):
            raise UsageError(
                f"--bind {bind} lets everybody on the network use this worker: give it a token in {TOKEN_VARIABLE}, "
                "or leave --bind out and reach the worker through ssh."
            )
        # first: where it cannot bind, the base class calls `server_close`, which closes it
        self.worker = Worker(device, max_model_bytes=max_model_bytes)
        self.wait_s = WAIT_S
        self.address_family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        try:
            super().__init__((bind, port), Handler)
        except (OSError, OverflowError) as error:
            raise UsageError(f"cannot listen on {bind} port {port}: {error}. Choose another with --port.") from None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        host, port = self.socket.getsockname()[:2]
        return str(host), int(port)

    def run(self) -> None:
        """Serves until Ctrl-C or SIGTERM; call it from the main thread."""
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, signal.default_int_handler)
        with suppress(KeyboardInterrupt), self:
            self.serve_forever()

    def server_close(self) -> None:
        super().server_close()
        self.worker.close()

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's asks a name server, which a board may not have

    def shutdown_request(self, request: Any) -> None:
        """Ends a connection gently: closed on unread bytes, it would be reset and its answer lost."""
        with suppress(OSError):
            request.shutdown(socket.SHUT_WR)
            request.settimeout(1.0)
            for _ in range(16):  # 1 MiB at most: the client may never end
                if not request.recv(2**16):
                    break
        self.close_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("connection with %s lost", client_address, exc_info=True)


def _is_loopback(bind: str) -> bool:
    try:
        return bind == "localhost" or ipaddress.ip_address(bind).is_loopback
    except ValueError:
        return False
