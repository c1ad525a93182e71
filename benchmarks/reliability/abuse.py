"""Malformed requests to `evit-nas worker` on 127.0.0.1: does it refuse each, stay small, and serve the next honest one?

The worker is a process of its own, as on a board; a second one has a token. Requests come from THREADS clients at a
time, CROWD connections at once for the last classes. An answer may be an error (400 to 499, as JSON) or, to what is not
HTTP or does not come, a closed connection; an acceptance, a failure (500 and more) or silence is counted against it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evit_nas.config import Conditions
from evit_nas.latency import Protocol
from evit_nas.latency.remote import RemoteDevice
from evit_nas.network.onnx_graph import build_onnx
from tests.networks import tiny_arch

THREADS = 16
CROWD = 200
SILENCE_S = 40.0  # without an answer
WARM = 500  # requests between two looks at the memory
GROWTH_MB = 4.0  # of mean memory, that it may grow by from the second quarter of the requests to the last
TOKEN = "a token of this benchmark"

Address = tuple[str, int]


class Worker:
    """A worker in a process of its own."""

    def __init__(self, command: list[str], port: int, pid: int) -> None:
        self.command, self.address, self.pid = command, ("127.0.0.1", port), pid

    def memory_mb(self) -> float:
        """Resident."""
        status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8")
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]

    def threads(self) -> int:
        """Of the process."""
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def files(self) -> int:
        """Open ones, and sockets."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


@contextmanager
def working(folder: Path, token: str = "") -> Iterator[Worker]:
    """A worker that listens."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "evit_nas", "worker", "--port", str(port)]
    environment = os.environ | {"EVIT_NAS_TOKEN": token}
    with (folder / f"worker-{port}.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert process.poll() is None, (folder / f"worker-{port}.log").read_text(encoding="utf-8")
                time.sleep(0.05)
            yield Worker(command, port, process.pid)
        finally:
            process.terminate()
            process.wait()


def honest(worker: Worker, token: str = "") -> float:
    """Seconds that an honest question takes."""
    start = time.monotonic()
    head = f"GET /v1/info HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    answer = said(worker.address, head.encode())
    assert answer.startswith((b"HTTP/1.0 200", b"HTTP/1.1 200")), answer
    return time.monotonic() - start


def said(address: Address, request: bytes, then: str = "wait") -> bytes:
    """What comes back on `request`, after which the client waits, says that it is done, or resets the connection."""
    with socket.create_connection(address, timeout=SILENCE_S) as link:
        with suppress(ConnectionError, BrokenPipeError):
            link.sendall(request)
        if then == "reset":
            link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return b""
        with suppress(OSError):
            if then == "done":
                link.shutdown(socket.SHUT_WR)
        answer = b""
        with suppress(ConnectionError):
            while chunk := link.recv(65536):
                answer += chunk
                if then == "wait" and _whole(answer):
                    break
        return answer


def _whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(end and length and len(body) >= int(length[1]))


def dripped(address: Address, request: bytes, pause_s: float) -> bytes:
    """What comes back on `request`, sent byte by byte, and how it is taken."""
    with socket.create_connection(address, timeout=SILENCE_S) as link:
        deadline, answer = time.monotonic() + SILENCE_S, b""
        link.settimeout(pause_s)
        for byte in request:
            with suppress(TimeoutError):
                try:
                    link.sendall(bytes([byte]))
                    answer = link.recv(65536)
                except ConnectionError:
                    return b""
                return answer
            if time.monotonic() > deadline:
                raise TimeoutError
        return answer


def verdict(ask: Callable[[], bytes]) -> str:
    """What a worker made of a request."""
    try:
        answer = ask()
    except TimeoutError:
        return "silence"
    except ConnectionError:
        return "closed"
    if not answer:
        return "closed"
    head, _, body = answer.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.[01] (\d{3})", head)
    if status is None or int(status[1]) >= 500:
        return "failed"
    if int(status[1]) < 400:
        return "accepted"
    try:
        return "refused" if json.loads(body)["error"] else "failed"
    except (ValueError, KeyError, TypeError):
        return "not JSON"


class Requests:
    """Random requests, each wrong in a way of its class."""

    def __init__(self, rng: random.Random, context: dict[str, str]) -> None:
        self._rng = rng
        protocol = Protocol().model_dump()
        arch = tiny_arch().model_dump(mode="json")
        self.job = {"protocol": protocol, "conditions": {}, "board": context, "visit": "abuse", "arch": arch}

    def junk(self, most: int = 200) -> bytes:
        """Bytes."""
        return self._rng.randbytes(self._rng.randrange(1, most))

    def post(
        self, body: bytes, length: object = None, path: str = "/v1/jobs", method: str = "POST", **heads: str
    ) -> bytes:
        """A request with a body."""
        more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in heads.items())
        length = len(body) if length is None else length
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{more}Content-Length: {length}\r\n\r\n"
        return head.encode("latin-1", "replace") + body

    def garbage(self) -> bytes:
        """No HTTP."""
        rng = self._rng
        versions = [b"9", b"2.0", b"x.y", b"1.1.1", b""]
        return rng.choice(
            [
                b"!" + self.junk() + b"\r\n\r\n",
                b"\x16\x03\x01" + self.junk(),  # TLS
                b"POST /v1/jobs HTTP/" + rng.choice(versions) + b"\r\n\r\n",
                b"\r\n" * rng.randrange(1, 50) + b"!\r\n\r\n",
                b"GET /v1/info\x00 HTTP/1.1\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                b"GET /v1/nothing HTTP/1.1\r\nno colon\r\n\r\n",
            ]
        )

    def bodies(self) -> bytes:
        """Bodies that are no job."""
        rng, text = self._rng, json.dumps(self.job).encode()
        values: list[Any] = [None, [], {}, -1, 1e400, "", "x" * 300, True, [[]], float("nan"), "\ud800", 10**400]
        changed = json.loads(text)
        part = rng.choice([changed, changed["arch"], changed["protocol"], rng.choice(changed["arch"]["stages"])])
        part[rng.choice([*part, "unknown"])] = rng.choice(values)
        part["surplus"] = 1
        return self.post(
            rng.choice(
                [
                    self.junk(),
                    text[: rng.randrange(len(text))],
                    b"[" * rng.choice([10, 100_000]),
                    json.dumps(rng.choice([None, 1, "job", [], {}, [self.job]])).encode(),
                    json.dumps(changed).encode(),
                    text.replace(b"abuse", b"../../etc"),
                ]
            )
        )

    def too_long(self) -> bytes:
        """Bodies beyond what is taken, announced or sent."""
        rng, path = self._rng, f"/v1/models/{'0' * 64}"
        return rng.choice(
            [
                self.post(bytes(rng.randrange(2**20 + 1, 2**21))),
                self.post(b"{}", rng.choice([2**20 + 1, 10**12, 10**17, 10**30])),
                self.post(b"{}", 2**40, path, "PUT"),
            ]
        )

    def lengths(self) -> bytes:
        """Lengths that are none."""
        text = json.dumps(self.job).encode()
        wrong = [-1, "", "many", "1e3", "0x10", "1 2", "+5", "1_0", "²"]
        return self.post(text, self._rng.choice(wrong))

    def cut(self) -> bytes:
        """Bodies that end early."""
        text = json.dumps(self.job).encode()
        return self.post(text[: self._rng.randrange(len(text))], len(text) + self._rng.randrange(1000))

    def chunked(self) -> bytes:
        """Chunks, good and bad, beside a length or without."""
        rng, head = self._rng, b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: "
        sizes = [b"5", b"FFFFFFFFFFFFFFFF", b"-1", b"zz", b"", b"0x5", b"5;" + b"x" * 5000]
        how = rng.choice([b"chunked", b"gzip, chunked", b"chunked, identity", b" chunked", b"nonsense"])
        length = rng.choice([b"", b"Content-Length: 4\r\n", b"Content-Length: 0\r\n"])
        chunk = rng.choice(sizes) + b"\r\nhello\r\n"
        return head + how + b"\r\n" + length + b"\r\n" + chunk * rng.randrange(1, 20) + rng.choice([b"0\r\n\r\n", b""])

    def pipelined(self) -> bytes:
        """Several at once: the first one is wrong, and the others may not be taken for anything."""
        others = [self.post(b"", method="GET", path="/v1/info"), self.post(json.dumps(self.job).encode(), "x")]
        return b"".join([self.lengths(), *self._rng.choices(others, k=self._rng.randrange(1, 30))])

    def heads(self) -> bytes:
        """Heads that are too long."""
        line = b"POST /v1/jobs HTTP/1.1\r\n"
        return self._rng.choice(
            [
                b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
                line + b"X: y\r\n" * 150 + b"\r\n",
                line + b"X: " + b"y" * 70_000 + b"\r\n\r\n",
                line + b"X: y\r\n" * 20_000 + b"\r\n",
            ]
        )

    def hosts(self) -> bytes:
        """Names that a web page made to mean this machine."""
        host = self._rng.choice(["evil.example", "127.0.0.1.evil.example:8642", "192.0.2.1", "", "[::2]", "a b"])
        return f"GET /v1/info HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()

    def paths(self) -> bytes:
        """What is not there, and methods that are none."""
        rng = self._rng
        path = rng.choice(["/", "/v1", "/v1/jobs/", "/v1/info?x", "/%00", "http://x/", "/../etc/passwd", "*"])
        method = rng.choice(["GET", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "get", "HEAD", "CONNECT"])
        return self.post(b"", path=path, method="GET" if method == "HEAD" else method)

    def models(self) -> bytes:
        """Files that are no network, another one than announced, or one that reads files of the board."""
        rng, content = self._rng, self.junk(5000)
        if rng.random() < 0.3:
            model = build_onnx(tiny_arch(), batch=None)
            tensor = model.graph.initializer[0]
            tensor.data_location = 1
            tensor.external_data.add(key="location", value="/etc/hostname")
            content = model.SerializeToString()
        name = hashlib.sha256(content).hexdigest()
        wrong = rng.choice([name, name, "0" * 64, "../../etc", name.upper(), name[:-1]])
        return self.post(content, path=f"/v1/models/{wrong}", method="PUT")

    def tokens(self) -> bytes:
        """Without the token, or with another one."""
        given = self._rng.choice(
            ["", "Bearer", "Bearer ", f"Bearer {TOKEN[:-1]}", f"bearer {TOKEN}", f"Bearer {TOKEN}x", "Basic eDp5"]
        )
        return self.post(json.dumps(self.job).encode(), Authorization=given)


def run(folder: Path, count: int, seed: int) -> bool:
    """Prints what became of the requests of each class, and the worker's memory."""
    rng = random.Random(seed)
    with working(folder) as worker, working(folder, TOKEN) as guarded, ThreadPoolExecutor(CROWD) as clients:
        return _run(worker, guarded, clients, count, rng)


def _run(worker: Worker, guarded: Worker, clients: ThreadPoolExecutor, count: int, rng: random.Random) -> bool:
    device = RemoteDevice(Conditions(device=f"remote:127.0.0.1:{worker.address[1]}"))
    before = device.measure(tiny_arch(), Protocol(min_rounds=4, max_rounds=6))[0]
    requests = Requests(rng, device.board.context)
    plain = {
        "no HTTP": (requests.garbage, "done"),
        "no job in the body": (requests.bodies, "wait"),
        "body too long": (requests.too_long, "done"),
        "no length": (requests.lengths, "wait"),
        "body cut short": (requests.cut, "done"),
        "chunked": (requests.chunked, "done"),
        "pipelined": (requests.pipelined, "done"),
        "head too long": (requests.heads, "done"),
        "wrong host": (requests.hosts, "wait"),
        "wrong path or method": (requests.paths, "wait"),
        "wrong model": (requests.models, "wait"),
        "wrong token": (requests.tokens, "wait"),
        "reset by the client": (requests.bodies, "reset"),
    }
    crowds = 2 * CROWD  # half sent and then silent; byte by byte
    found: dict[str, Counter[str]] = {name: Counter() for name in plain}
    memory, waits_s = [], []
    names = [rng.choice(list(plain)) for _ in range(max(count - 2 * crowds, 0))]
    for start in range(0, len(names), WARM):
        batch = []
        for name in names[start : start + WARM]:
            make, then = plain[name]
            at = guarded if name == "wrong token" else worker
            batch.append((name, partial(said, at.address, make(), then)))
        width = CROWD if start // WARM % 4 == 3 else THREADS  # now and then all of them at once
        for index in range(0, len(batch), width):
            for (name, _), what in zip(
                batch[index : index + width],
                clients.map(verdict, [ask for _, ask in batch[index : index + width]]),
                strict=True,
            ):
                found[name][what] += 1
        waits_s += [honest(worker), honest(guarded, TOKEN)]
        memory.append(worker.memory_mb())
    half = requests.post(b"{", 1000)
    slow = b"POST /v1/jobs HTTP/1.1\r\n" + b"X-Slow: " + b"y" * 1000
    for name, ask in (
        ("200 at once, half sent", lambda request: said(worker.address, request)),
        ("200 at once, dripping", lambda request: dripped(worker.address, request, 1.0)),
    ):
        for _ in range(2):
            parts = [
                half if "half" in name and i % 2 else half[: rng.randrange(60)] if "half" in name else slow
                for i in range(CROWD)
            ]
            answers = [clients.submit(verdict, partial(ask, part)) for part in parts]
            time.sleep(2)
            waits_s.append(honest(worker))
            most_threads = worker.threads()
            found.setdefault(name, Counter()).update(answer.result() for answer in answers)
    memory.append(worker.memory_mb())
    return _print(found, memory, waits_s, most_threads, worker, before, device)


def _print(
    found: dict[str, Counter[str]],
    memory: list[float],
    waits_s: list[float],
    most_threads: int,
    worker: Worker,
    before: object,
    device: RemoteDevice,
) -> bool:
    columns = ["refused", "closed", "accepted", "failed", "not JSON", "silence"]
    print(f"{'request':26}{'sent':>8}" + "".join(f"{column:>10}" for column in columns))
    total: Counter[str] = sum(found.values(), Counter())
    for name, row in [*found.items(), ("all", total)]:
        print(f"{name:26}{row.total():8}" + "".join(f"{row[column]:10}" for column in columns))
    time.sleep(2)
    after = device.measure(tiny_arch(), Protocol(min_rounds=4, max_rounds=6))[0]
    quarter = max(len(memory) // 4, 1)
    growth = float(np.mean(memory[-quarter:]) - np.mean(memory[quarter : 2 * quarter]))
    print(
        f"\nhonest questions between them: {len(waits_s)} of {len(waits_s)} served, the slowest in {max(waits_s):.2f} s"
    )
    print(f"an honest measurement before: {before}; after: {after}")
    print(f"memory (VmRSS) after each {2 * WARM} requests, in MB: {', '.join(f'{mb:.1f}' for mb in memory[::2])}")
    print(f"from the second quarter to the last: {growth:+.1f} MB")
    print(f"threads at most {most_threads}, at the end {worker.threads()}; open files at the end {worker.files()}")
    return growth < GROWTH_MB and not any(total[column] for column in columns[2:])
