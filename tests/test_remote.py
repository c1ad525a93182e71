"""A board is a device like any other, but further away: nothing asked is lost, nothing is measured twice unasked."""

import hashlib
import http.client
import json
import logging
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import onnx
import pytest

from evit_nas import doctor
from evit_nas.config import Conditions
from evit_nas.doctor import examine_board
from evit_nas.errors import LostLink, MeasurementError, UsageError
from evit_nas.latency import Latency, Protocol, TimmModel, parse_conditions
from evit_nas.latency import board as board_module
from evit_nas.latency import remote as remote_module
from evit_nas.latency import worker as worker_module
from evit_nas.latency.board import FileCache
from evit_nas.latency.remote import RemoteDevice, parse_address
from evit_nas.latency.runtimes import RUNTIMES, Runtime
from evit_nas.latency.worker import DEFAULT_PORT, WorkerServer
from evit_nas.network.onnx_graph import build_onnx
from tests.conftest import used_before
from tests.networks import tiny_arch

QUICK = Protocol(min_rounds=4, max_rounds=6, warmup_ms=5)
LATENCY = Latency(
    median_ms=4.0,
    p90_ms=4.4,
    rel_error=0.01,
    ratio=1.0,
    canary_ms=4.0,
    rounds=12,
    conditions=Conditions(),
    input_shape=(1, 3, 64, 64),
    clock="cpu",
    runtime="none 1.0",
    machine="imaginary",
)


class FakeLocal:
    """Measures at once, or as soon as `go` is set, and notes what."""

    def __init__(self, conditions, timeout_s):
        self.conditions = conditions
        self.devices.append(self)

    def measure(self, subject, protocol):
        assert not self.measuring, "two jobs at a time"
        self.measuring.append(subject)
        self.calls.append(subject)
        assert self.go.wait(20)
        self.measuring.clear()
        if self.failure:
            raise self.failure
        return LATENCY.model_copy(update={"conditions": self.conditions}), {"visits": []}

    def end(self):
        self.go.set()

    def close(self): ...


@pytest.fixture(autouse=True)
def fake(tmp_path, monkeypatch):
    """The device behind every worker of this process, a cache folder of its own, and no patience with lost links."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("EVIT_NAS_TOKEN", raising=False)
    fields = {"devices": [], "calls": [], "measuring": [], "go": threading.Event(), "failure": None}
    kind = type("FakeLocal", (FakeLocal,), fields)
    kind.go.set()
    monkeypatch.setattr(board_module, "BoardDevice", kind)
    monkeypatch.setattr(board_module, "LOAD_S", 0.01)
    monkeypatch.setattr(remote_module, "FIRST_DELAY_S", 0.05)
    return kind


@contextmanager
def serving(**options):
    with WorkerServer(port=0, **options) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def server():
    with serving() as server:
        yield server


def client(server, **options):
    conditions = {"device": f"remote:127.0.0.1:{server.address[1]}", **options.pop("conditions", {})}
    return RemoteDevice(Conditions(**conditions), **options)


def ask(server, method, path, body=b"", **headers):
    """Status and JSON of one request."""
    link = http.client.HTTPConnection(*server.address, timeout=20)
    link.request(method, path, body if isinstance(body, bytes) else json.dumps(body), headers)
    response = link.getresponse()
    reply = json.loads(response.read())
    link.close()
    return response.status, reply


def job(server, visit="first", **changes):
    fields = {"protocol": QUICK.model_dump(), "conditions": {}, "board": server.worker.board().context, "visit": visit}
    return fields | {"arch": tiny_arch().model_dump(mode="json")} | changes


def until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


class TestMeasuring:
    def test_a_figure_comes_back_under_the_name_the_client_has_for_the_board(self, server):
        device = client(server, conditions={"threads": 2})
        latency, samples = device.measure(tiny_arch(), QUICK)
        assert latency.conditions == device.conditions
        assert latency.median_ms == LATENCY.median_ms
        assert samples == {"visits": []}

    def test_the_board_measures_the_network_that_was_meant_under_the_conditions_that_were_meant(self, server, fake):
        client(server, conditions={"threads": 2, "batch": 4, "entries": {"a": "b"}}).measure(tiny_arch(), QUICK)
        assert fake.calls == [tiny_arch()]
        (device,) = fake.devices
        assert device.conditions == Conditions(device="cpu:2", threads=2, batch=4, entries={"a": "b"})

    def test_one_measuring_process_serves_as_long_as_the_conditions_stay(self, server, fake):
        for threads in (1, 1, 2):
            client(server, conditions={"threads": threads}).measure(tiny_arch(), QUICK)
        assert [device.conditions.threads for device in fake.devices] == [1, 2]

    def test_measuring_again_measures_again(self, server, fake):
        device = client(server)
        for _ in range(2):
            device.measure(tiny_arch(), QUICK)
        assert len(fake.calls) == 2

    @pytest.mark.parametrize("kind", ["rejected", "timeout", "out of memory", "crashed", "noisy"])
    def test_a_failure_keeps_its_kind(self, server, fake, kind):
        fake.failure = MeasurementError("no", kind)
        with pytest.raises(MeasurementError, match=r"remote:127.*: no") as caught:
            client(server).measure(tiny_arch(), QUICK)
        assert caught.value.kind == kind

    def test_what_the_board_cannot_do_is_the_users_to_change(self, server):
        with pytest.raises(UsageError, match="computes in fp32"):
            client(server, conditions={"precision": "fp8"}).measure(tiny_arch(), QUICK)

    def test_session_entries_open_no_files_of_the_board(self, server, fake):
        entries = {"session.collect_node_memory_stats_to_file": "x"}
        with pytest.raises(UsageError, match="files of the board"):
            client(server, conditions={"entries": entries}).measure(tiny_arch(), QUICK)
        assert not fake.calls

    def test_the_context_tells_boards_apart(self, server, monkeypatch):
        here = client(server).context()
        assert {"conditions", "host", "processor", "runtime", "graph"} <= set(here)
        assert here == client(server).context()
        monkeypatch.setattr("socket.gethostname", lambda: "another")
        assert client(server).context() != here


class TestOtherDevices:
    """A board that measures on something else than fp32 with threads of a processor."""

    @pytest.fixture(params=["cuda", "cuda:1", "cuda-onnx", "tensorrt", "torch", "cpu-int8"])
    def board(self, request, monkeypatch):
        monkeypatch.setattr(Runtime, "missing", lambda self, family: None)
        with serving(device=request.param) as server:
            yield server

    def test_serves_a_client_that_asks_for_nothing_in_particular(self, board, fake):
        device = RemoteDevice(parse_conditions(f"remote:127.0.0.1:{board.address[1]}"))
        latency, _ = device.measure(tiny_arch(), QUICK)
        (local,) = fake.devices
        assert local.conditions == parse_conditions(board.worker.device)
        assert not any(finding.fatal for finding in examine_board(device))
        assert latency.conditions.precision == local.conditions.precision  # what it really was, in the figure
        assert latency.conditions.device == device.conditions.device
        assert f'"precision":"{local.conditions.precision}"' in device.context()["conditions"]  # and in its key

    def test_does_not_quietly_measure_something_else_than_it_is_asked_for(self, board, fake):
        device = RemoteDevice(parse_conditions(f"remote:127.0.0.1:{board.address[1]}", precision="fp8"))
        with pytest.raises(UsageError, match=r"computes in .*got --precision fp8\.$"):
            device.measure(tiny_arch(), QUICK)
        assert not fake.calls

    def test_takes_threads_only_where_its_device_does(self, board):
        device = RemoteDevice(parse_conditions(f"remote:127.0.0.1:{board.address[1]}", threads=2))
        if RUNTIMES[board.worker.device.partition(":")[0]].argument == "index":
            with pytest.raises(UsageError, match="takes no --threads"):
                device.measure(tiny_arch(), QUICK)
        else:
            assert device.measure(tiny_arch(), QUICK)[0].conditions.threads == 2


def test_a_board_in_fp32_is_the_same_board_whether_that_was_asked_for_or_not(server):
    name = f"remote:127.0.0.1:{server.address[1]}"
    silent, explicit = (RemoteDevice(parse_conditions(name, precision=precision)) for precision in (None, "fp32"))
    assert silent.context() == explicit.context()


class TestIdempotence:
    def test_the_same_visit_is_measured_once(self, server, fake):
        first, again = (ask(server, "POST", "/v1/jobs", job(server)) for _ in range(2))
        assert first == again
        assert first[0] == 200
        assert len(fake.calls) == 1

    @pytest.mark.parametrize(
        "change",
        [
            {"visit": "second"},
            {"protocol": QUICK.model_copy(update={"visits": 2}).model_dump()},
            {"conditions": {"threads": 2}},
            {"arch": tiny_arch(depth=2).model_dump(mode="json")},
        ],
        ids=lambda change: next(iter(change)),
    )
    def test_whatever_changes_the_question_makes_it_another_job(self, server, fake, change):
        ask(server, "POST", "/v1/jobs", job(server))
        assert ask(server, "POST", "/v1/jobs", job(server, **change))[0] == 200
        assert len(fake.calls) == 2

    def test_an_answer_outlives_the_worker(self, server, fake):
        first = ask(server, "POST", "/v1/jobs", job(server))
        with serving() as second:
            assert ask(second, "POST", "/v1/jobs", job(second)) == first
        assert len(fake.calls) == 1

    def test_a_failure_is_an_answer_too(self, server, fake):
        fake.failure = MeasurementError("no", "rejected")
        first = ask(server, "POST", "/v1/jobs", job(server))
        with serving() as second:
            assert ask(second, "POST", "/v1/jobs", job(second)) == first
        assert first == (422, {"error": "no", "kind": "rejected"})
        assert len(fake.calls) == 1

    def test_a_damaged_answer_is_measured_anew(self, server, fake, tmp_path):
        first = ask(server, "POST", "/v1/jobs", job(server))
        (answer,) = (tmp_path / "cache").rglob("*.json")
        answer.write_text('{"latency": {"medi')
        with serving() as second:
            assert ask(second, "POST", "/v1/jobs", job(second)) == first
        assert len(fake.calls) == 2

    def test_without_a_disk_answers_are_kept_in_memory(self, server, fake, tmp_path):
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache").write_text("no folder")
        assert ask(server, "POST", "/v1/jobs", job(server))[0] == 200
        assert ask(server, "POST", "/v1/jobs", job(server))[0] == 200
        assert len(fake.calls) == 1

    def test_a_question_about_a_running_job_joins_it(self, server, fake):
        fake.go.clear()
        server.wait_s = 0.05
        assert ask(server, "POST", "/v1/jobs", job(server)) == (202, {"state": "running"})
        assert ask(server, "POST", "/v1/jobs", job(server)) == (202, {"state": "running"})
        fake.go.set()
        until(lambda: ask(server, "POST", "/v1/jobs", job(server))[0] == 200)
        assert len(fake.calls) == 1

    def test_a_client_waits_for_a_long_job(self, server, fake):
        fake.go.clear()
        server.wait_s = 0.02
        threading.Timer(0.2, fake.go.set).start()
        assert client(server, patience_s=0.0).measure(tiny_arch(), QUICK)[0].median_ms == LATENCY.median_ms
        assert len(fake.calls) == 1

    def test_jobs_of_two_clients_run_one_after_the_other(self, server, fake):
        fake.go.clear()
        with ThreadPoolExecutor(2) as clients:
            answers = [clients.submit(client(server).measure, tiny_arch(), QUICK) for _ in range(2)]
            until(lambda: server.worker.load()["unfinished_jobs"] == 2)
            time.sleep(0.05)  # a second runner would have begun by now
            assert len(fake.calls) == 1
            fake.go.set()
            assert all(answer.result(20)[0].median_ms == LATENCY.median_ms for answer in answers)
        assert len(fake.calls) == 2

    def test_a_job_that_the_worker_ended_itself_has_no_answer(self, fake):
        fake.go.clear()
        with serving() as first:
            first.wait_s = 0.05
            ask(first, "POST", "/v1/jobs", job(first))
            until(lambda: fake.measuring)
        until(lambda: not fake.measuring)
        with serving() as second:
            assert ask(second, "POST", "/v1/jobs", job(second))[0] == 200
        assert len(fake.calls) == 2

    def test_the_shelf_forgets_what_was_unused_for_longest(self, tmp_path):
        shelf = FileCache(tmp_path, max_bytes=100)
        for age, name in enumerate(["old", "used", "new"]):
            shelf.put(name, bytes(30))
            os.utime(tmp_path / name, (age, age))
        assert shelf.find("old")
        shelf.put("newest", bytes(30))
        assert not shelf.find("used")
        assert shelf.find("old")
        shelf.put("huge", bytes(1000))
        assert [path.name for path in tmp_path.iterdir()] == ["huge"]

    def test_a_file_that_vanishes_meanwhile_is_no_trouble_for_the_shelf(self, tmp_path, monkeypatch):
        monkeypatch.setattr(Path, "iterdir", lambda folder: iter([folder / "gone.tmp", folder / "kept"]))
        FileCache(tmp_path, max_bytes=100).put("kept", bytes(30))
        assert (tmp_path / "kept").stat().st_size == 30


class TestFiles:
    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "net.onnx"
        path.write_bytes(build_onnx(tiny_arch(), batch=None).SerializeToString())
        return path

    @pytest.fixture
    def uploads(self, server, monkeypatch):
        keep, names = server.worker.keep_model, []
        monkeypatch.setattr(
            server.worker, "keep_model", lambda name, content: (names.append(name), keep(name, content))
        )
        return names

    def test_a_file_goes_to_the_board_once(self, server, fake, path, uploads):
        for _ in range(3):
            client(server).measure(path, QUICK)
        assert uploads == [hashlib.sha256(path.read_bytes()).hexdigest()]
        assert [found.read_bytes() for found in fake.calls] == [path.read_bytes()] * 3

    def test_a_file_that_the_board_forgot_goes_there_again(self, server, path, uploads, tmp_path):
        client(server).measure(path, QUICK)
        for kept in (tmp_path / "cache").rglob("*.onnx"):
            kept.unlink()
        client(server).measure(path, QUICK)
        assert len(uploads) == 2

    def test_a_timm_model_goes_there_as_a_file(self, server, fake, path, monkeypatch):
        asked = []
        monkeypatch.setattr("evit_nas.network.timm_models.timm_onnx", lambda *args: (asked.append(args), path)[1])
        client(server).measure(TimmModel("resnet18", 64), QUICK)
        assert asked == [("resnet18", 64)]
        assert fake.calls[0].read_bytes() == path.read_bytes()

    def test_a_file_that_is_no_graph_is_rejected(self, server, tmp_path):
        (tmp_path / "junk.onnx").write_bytes(b"not a graph")
        device = client(server)
        with pytest.raises(MeasurementError, match="no ONNX graph"):
            device.measure(tmp_path / "junk.onnx", QUICK)
        with pytest.raises(MeasurementError, match="No such file"):
            device.measure(tmp_path / "nothing.onnx", QUICK)
        assert device.measure(tiny_arch(), QUICK)

    @pytest.mark.parametrize("where", ["an initializer", "an attribute", "a subgraph", "a function"])
    def test_a_graph_cannot_read_the_boards_files(self, server, fake, path, tmp_path, where):
        model = onnx.load(path)
        tensor = onnx.TensorProto(name="secret", dims=[1], data_type=onnx.TensorProto.FLOAT)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="/etc/hostname")
        node = onnx.helper.make_node("Constant", [], ["x"], value=tensor)
        if where == "an initializer":
            model.graph.initializer.append(tensor)
        elif where == "an attribute":
            model.graph.node.append(node)
        elif where == "a subgraph":
            branch = onnx.helper.make_graph([node], "branch", [], [])
            model.graph.node.append(onnx.helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch))
        else:
            model.functions.add(name="f").node.append(node)
        path.write_bytes(model.SerializeToString())
        with pytest.raises(MeasurementError, match="tensors in other files") as caught:
            client(server).measure(path, QUICK)
        assert caught.value.kind == "rejected"
        assert not fake.calls

    def test_a_file_too_large_for_the_board_is_not_sent(self, fake, path):
        with serving(max_model_bytes=1000) as server:
            with pytest.raises(UsageError, match=r"takes 1,000; start it .* with a larger"):
                client(server).measure(path, QUICK)
            assert ask(server, "PUT", f"/v1/models/{'0' * 64}", bytes(1001))[0] == 413

    def test_bytes_that_were_changed_on_the_way_are_not_kept(self, server, path, tmp_path):
        status, reply = ask(server, "PUT", f"/v1/models/{'0' * 64}", path.read_bytes())
        assert (status, reply["kind"]) == (400, "lost link")
        assert not list((tmp_path / "cache").rglob("*.onnx"))

    def test_a_disk_that_is_full_is_an_error(self, server, path, tmp_path):
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache").write_text("no folder")
        with pytest.raises(MeasurementError, match="cannot keep the model"):
            client(server).measure(path, QUICK)


class TestLostLinks:
    def test_nobody_there_at_the_first_contact_is_said_at_once_with_the_way_out(self, server):
        device = client(server)
        server.shutdown()
        server.server_close()
        with pytest.raises(UsageError, match=r"no worker answers .*`evit-nas worker`.*ssh -N -L"):
            device.measure(tiny_arch(), QUICK)

    def test_a_worker_that_stays_away_costs_the_measurement(self, server, caplog):
        device = client(server, patience_s=0.2)
        device.context()
        server.shutdown()
        server.server_close()
        with pytest.raises(LostLink, match=r"could not be had for 0 s"):
            device.measure(tiny_arch(), QUICK)
        assert [record.name for record in caplog.records] == ["evit_nas.remote"]  # once, not at every attempt

    def test_a_busy_worker_is_waited_for(self, server, fake, monkeypatch, caplog):
        monkeypatch.setattr(board_module, "MAX_UNFINISHED", 1)
        fake.go.clear()
        server.wait_s = 0.05
        ask(server, "POST", "/v1/jobs", job(server))
        with caplog.at_level(logging.WARNING), ThreadPoolExecutor(1) as thread:
            second = thread.submit(client(server).measure, tiny_arch(depth=2), QUICK)
            until(lambda: "1 jobs to do" in caplog.text)
            fake.go.set()
            assert second.result(20)[0].median_ms == LATENCY.median_ms
        assert "answers again" in caplog.text

    def test_a_board_that_is_another_one_when_it_comes_back_is_refused(self, server, monkeypatch):
        device = client(server)
        device.context()
        monkeypatch.setattr(server.worker, "_runtime", "onnxruntime 99")
        with pytest.raises(UsageError, match=r"onnxruntime 99, but the client began on"):
            device.measure(tiny_arch(), QUICK)

    def test_another_version_of_the_package_is_refused(self, server, monkeypatch):
        for module in (remote_module, doctor):
            monkeypatch.setattr(module, "__version__", "99.0")
        with pytest.raises(UsageError, match=r"this one is 99\.0.* Install the same version on both"):
            client(server).measure(tiny_arch(), QUICK)
        assert examine_board(client(server))[-1].fatal

    def test_something_else_at_that_port_is_no_worker(self, server, monkeypatch):
        monkeypatch.setattr(
            worker_module.Handler, "_send", lambda self, *_: self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nhi")
        )
        with pytest.raises(UsageError, match="no evit-nas worker"):
            client(server).measure(tiny_arch(), QUICK)


# A worker whose measurements are noted in the file CALLS and last as long as there is a file HOLD.
SLOW_WORKER = """
import sys, time
from pathlib import Path
from evit_nas.latency import Latency, board, worker

class SlowLocal:
    def __init__(self, conditions, timeout_s):
        self.conditions = conditions
    def measure(self, subject, protocol):
        with Path("CALLS").open("a") as file:
            file.write(subject.key + "\\n")
        while Path("HOLD").exists():
            time.sleep(0.01)
        return Latency.model_validate_json(sys.argv[2]), {}
    def close(self): ...

board.BoardDevice = SlowLocal
worker.WorkerServer(port=int(sys.argv[1])).run()
"""

REAL_WORKER = """
import sys
from evit_nas.latency.worker import WorkerServer

WorkerServer(port=int(sys.argv[1])).run()
print([name for name in ("torch", "timm", "optuna", "ray", "typer", "rich") if name in sys.modules])
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@contextmanager
def process(code, port, *args, cwd=None):
    """A worker in a process of its own, once it listens."""
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", code, str(port), *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=cwd) as worker:
        try:
            until(lambda: listens(port) or worker.poll() is not None)
            yield worker
        finally:
            worker.kill()


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def children(worker):
    """Process ids of the children that the threads of `worker` have started."""
    found = []
    for task in Path(f"/proc/{worker.pid}/task").iterdir():
        with suppress(FileNotFoundError):  # threads of requests come and go
            found += (task / "children").read_text().split()
    return found


def test_a_worker_killed_in_mid_job_loses_nothing(tmp_path):
    port, calls, hold = free_port(), tmp_path / "CALLS", tmp_path / "HOLD"
    device = RemoteDevice(Conditions(device=f"remote:127.0.0.1:{port}"), patience_s=30)
    done, running = tiny_arch(), tiny_arch(depth=2)
    with ThreadPoolExecutor(1) as thread:
        with process(SLOW_WORKER, port, LATENCY.model_dump_json(), cwd=tmp_path) as worker:
            device.measure(done, QUICK)
            hold.touch()
            pending = thread.submit(device.measure, running, QUICK)
            until(lambda: running.key in calls.read_text())
            worker.send_signal(signal.SIGKILL)
            worker.wait()
        hold.unlink()
        with process(SLOW_WORKER, port, LATENCY.model_dump_json(), cwd=tmp_path):
            assert pending.result(30)[0].median_ms == LATENCY.median_ms
    assert calls.read_text().split() == [done.key, running.key, running.key]


def test_a_real_board_measures_without_torch_and_goes_in_mid_job_without_a_trace():
    used_before()
    port, long = free_port(), Protocol(min_rounds=1000, max_rounds=1000)  # some 20 s
    device = RemoteDevice(Conditions(device=f"remote:127.0.0.1:{port}"), patience_s=0.0)
    with process(REAL_WORKER, port) as worker, ThreadPoolExecutor(1) as thread:
        latency, samples = device.measure(tiny_arch(), QUICK)
        (child,) = children(worker)
        maps = Path(f"/proc/{child}/maps").read_text()
        assert "onnxruntime" in maps
        assert "torch" not in maps
        pending = thread.submit(device.measure, tiny_arch(), long)
        until(lambda: device.load()["unfinished_jobs"])
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(10) == 0
        assert worker.stdout.read().strip() == "[]"
        with pytest.raises(LostLink):
            pending.result(20)
    assert not Path(f"/proc/{child}").exists()
    assert latency.median_ms > 0
    assert latency.rounds == len(samples["visits"][0]["candidate_ns"])
    assert latency.runtime == device.context()["runtime"]


def raw(server, request):
    """Status and JSON that a worker gives on `request`, after which the client says nothing more."""
    with socket.create_connection(server.address, timeout=20) as link:
        link.sendall(request)
        link.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: link.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def malformed(server, rng):
    """A request that is wrong in one of many ways."""
    good = job(server)
    junk = bytes(rng.randrange(1, 256) for _ in range(rng.randrange(1, 200)))
    text = json.dumps(good).encode()

    def post(body, length=None, path="/v1/jobs", method="POST"):
        length = len(body) if length is None else length
        return f"{method} {path} HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode() + body

    def wrong_value():
        changed = json.loads(text)
        values = [None, [], {}, -1, 1e400, "", "x" * 300, True, [[]], float("nan"), "\ud800", 10**400]
        part = rng.choice([changed, changed["arch"], changed["protocol"], rng.choice(changed["arch"]["stages"])])
        fields = sorted(set(part) - {"arch", "model", "q_kernels", "stem"}) if part else []
        part[rng.choice([*fields, "unknown"])] = rng.choice(values)
        part["surplus"] = 1
        return post(json.dumps(changed).encode())

    return rng.choice(
        [
            lambda: b"!" + junk + b"\r\n\r\n",
            lambda: post(junk),
            lambda: post(text[: rng.randrange(len(text))]),
            lambda: post(text[: rng.randrange(len(text))], len(text)),
            lambda: post(text, rng.choice([-1, "", "many", "1e3", "0x10", 10**12, 10**30, "1 2"])),
            lambda: post(b"[" * rng.choice([10, 100_000])),
            lambda: post(json.dumps(rng.choice([None, 1, "job", [], {}, [good]])).encode()),
            wrong_value,
            lambda: post(junk, path=f"/v1/models/{rng.randbytes(32).hex()}", method="PUT"),
            lambda: post(junk, path="/v1/models/" + rng.choice(["", "../../etc", "ABC", "0" * 63]), method="PUT"),
            lambda: post(
                b"", path=rng.choice(["/", "/v1", "/v1/jobs/", "/v1/info?x", "/%00", "http://x/"]), method="GET"
            ),
            lambda: post(text, method=rng.choice(["DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "get"])),
            lambda: b"POST /v1/jobs HTTP/" + rng.choice([b"9", b"2.0", b"x.y", b"1.1.1"]) + b"\r\n\r\n",
            lambda: b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n",
            lambda: b"POST /v1/jobs HTTP/1.1\r\n" + b"X: y\r\n" * 150 + b"\r\n",
            lambda: b"POST /v1/jobs HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        ]
    )()


def test_two_hundred_malformed_requests_get_an_error_each_and_do_no_harm(server, fake):
    rng = random.Random(0)
    for number in range(200):
        request = malformed(server, rng)
        status, reply = raw(server, request)
        assert 400 <= status < 500, (number, request[:200], reply)
        assert reply["error"], (number, request[:200])
        assert reply["kind"]
    assert not fake.calls
    assert client(server).measure(tiny_arch(), QUICK)[0].median_ms == LATENCY.median_ms


def test_an_error_reaches_a_client_that_is_still_sending(server):
    head = b"POST /v1/jobs HTTP/1.1\r\nContent-Length: 2000000\r\n\r\n"
    assert raw(server, head + bytes(500_000))[0] == 413


@pytest.mark.parametrize(
    "head", [b"GET /v1/info HTTP/1.1\r\nX-Slow: ", b"POST /v1/jobs HTTP/1.1\r\nContent-Length: 9999\r\n\r\n"]
)
@pytest.mark.parametrize("drip", [b"", b"x"], ids=["silent", "byte by byte"])
def test_a_client_that_is_too_slow_is_given_up(server, monkeypatch, head, drip):
    monkeypatch.setattr(worker_module, "SOCKET_TIMEOUT_S", 0.2)  # for the whole head, or the whole body
    monkeypatch.setattr(worker_module, "MIN_BYTES_PER_S", 1e9)
    with socket.create_connection(server.address, timeout=0.02) as link:
        link.sendall(head)
        answer = None
        for _ in range(1000):
            with suppress(TimeoutError):
                answer = link.recv(65536)
                break
            with suppress(ConnectionError):
                link.sendall(drip)
    assert answer is not None
    assert b" 408 " in answer if b"POST" in head else answer == b""


class TestTokens:
    @pytest.mark.parametrize("bind", ["0.0.0.0", "192.0.2.1", "::", "board.example"])
    def test_beyond_loopback_there_is_no_worker_without_a_token(self, bind):
        with pytest.raises(UsageError, match="give it a token in EVIT_NAS_TOKEN, or leave --bind out"):
            WorkerServer(bind=bind, port=0, token=" \n")

    def test_with_a_token_any_address_will_do(self):
        with WorkerServer(bind="0.0.0.0", port=0, token="secret") as server:
            assert server.address[0] == "0.0.0.0"

    @pytest.mark.parametrize("given", ["", "wrong", "secre", "secret2", "sécret"])
    def test_who_does_not_know_the_token_learns_nothing(self, fake, monkeypatch, given):
        monkeypatch.setenv("EVIT_NAS_TOKEN", given)
        with serving(token="secret") as server:
            with pytest.raises(UsageError, match="set EVIT_NAS_TOKEN"):
                client(server).measure(tiny_arch(), QUICK)
            for request in ("GET /v1/info", "GET /v1/load", "POST /v1/jobs", f"PUT /v1/models/{'0' * 64}", "GET /x"):
                assert ask(server, *request.split(), Authorization=f"Bearer {given}".encode())[0] == 401
        assert not fake.calls

    @pytest.mark.parametrize(
        "host", ["localhost", "LocalHost:8642", "127.0.0.1", "127.1.2.3:80", "[::1]", "[::1]:8642"]
    )
    def test_without_a_token_who_asks_this_machine_is_answered(self, server, host):
        assert ask(server, "GET", "/v1/info", Host=host)[0] == 200

    @pytest.mark.parametrize("host", ["evil.example", "evil.example:8642", "127.0.0.1.evil.example", "192.0.2.1", ""])
    def test_without_a_token_a_name_made_to_mean_this_machine_is_refused(self, server, host):
        status, reply = ask(server, "GET", "/v1/info", Host=host)
        assert status == 403
        assert "set EVIT_NAS_TOKEN" in reply["error"]

    def test_with_the_token_the_board_may_have_any_name(self):
        with serving(token="secret") as server:
            assert ask(server, "GET", "/v1/info", Host="board.example", Authorization="Bearer secret")[0] == 200

    def test_who_knows_it_measures(self, monkeypatch):
        monkeypatch.setenv("EVIT_NAS_TOKEN", "secret\n")  # as read from a file
        with serving(token=" secret\n") as server:
            assert client(server).measure(tiny_arch(), QUICK)


class TestStarting:
    @pytest.mark.parametrize(
        ("device", "message"),
        [
            ("cpu:4", "clients choose the threads"),
            ("gpu9", "no device is called 'gpu9'"),
        ],
    )
    def test_a_wrong_device_is_refused(self, device, message):
        with pytest.raises(UsageError, match=message):
            WorkerServer(device, port=0)

    @pytest.mark.parametrize("port", [None, 70_000])
    def test_a_port_that_cannot_be_had_is_said_with_the_way_out(self, server, port):
        with pytest.raises(UsageError, match="Choose another with --port"):
            WorkerServer(port=port or server.address[1])


@pytest.mark.parametrize(
    ("device", "address"),
    [
        ("remote:pi", ("pi", DEFAULT_PORT)),
        ("remote:pi.local:9000", ("pi.local", 9000)),
        ("remote:[::1]", ("::1", DEFAULT_PORT)),
        ("remote:[fe80::2]:9000", ("fe80::2", 9000)),
    ],
)
def test_addresses_read_as_people_write_them(device, address):
    assert parse_address(device) == address


@pytest.mark.parametrize("device", ["remote", "remote:", "remote:pi:", "remote:pi:0", "remote:pi:99999", "remote:::1"])
def test_a_wrong_address_is_refused_with_an_example(device):
    with pytest.raises(UsageError, match="try remote:localhost"):
        RemoteDevice(Conditions(device=device))


def test_the_check_reports_the_link_the_board_and_the_canary(server):
    findings = {finding.check: finding for finding in examine_board(client(server))}
    assert findings["link, there and back"].result.endswith(" ms")
    assert {"evit-nas", "processor", "clock governor", "load of other processes"} <= set(findings)
    assert findings["canary against itself"].result == "ratio 1.000"
    assert not any(finding.fatal for finding in findings.values())


def test_the_check_finds_a_canary_that_is_not_itself(server, fake):
    fake.failure = MeasurementError("no", "crashed")
    assert examine_board(client(server))[-1].fatal
