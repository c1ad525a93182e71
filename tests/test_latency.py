"""Devices: every runtime that is here keeps one contract, and a child that dies or hangs costs one measurement."""

import json
import os
import re
import selectors
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from pydantic import ValidationError

from evit_nas.config import Conditions
from evit_nas.doctor import examine
from evit_nas.errors import MeasurementError, UsageError
from evit_nas.latency import (
    BOARDS_DEFAULT,
    DEVICES,
    STRICT,
    Latency,
    Protocol,
    Steady,
    TimmModel,
    Unit,
    child,
    machine,
    open_device,
    parse_conditions,
)
from evit_nas.latency.local import LocalDevice
from evit_nas.latency.runtimes import RUNTIMES, Runtime
from evit_nas.latency.yardstick import CANARIES, Window, Yardstick, kept
from evit_nas.network.cost import cost
from evit_nas.network.onnx_graph import build_onnx
from tests.fakes import FakeDevice, latency_of
from tests.networks import tiny_arch
from tests.processes import lives

QUICK = Protocol(min_rounds=4, max_rounds=6, warmup_ms=5)
SMALL, LARGE = tiny_arch(), tiny_arch(depth=4, ffn_count=2)


@pytest.fixture(
    scope="module",
    params=["cpu", "cpu:2", "torch", "openvino", pytest.param("cpu-int8", marks=pytest.mark.slow)],
)
def device(request):
    """One measuring process for all tests of a runtime: starting one takes seconds."""
    conditions = parse_conditions(request.param)
    if RUNTIMES[conditions.family].missing(conditions.family):
        pytest.skip(f"{conditions.family} cannot run here")
    with open_device(conditions) as opened:
        yield opened


class TestEveryDevice:
    def test_measures_with_spread_and_conditions(self, device):
        latency, samples = device.measure(SMALL, QUICK)
        assert 0 < latency.median_ms <= latency.p90_ms
        assert 0 <= latency.rel_error < 10
        assert latency.ratio == pytest.approx(latency.median_ms / latency.canary_ms)
        assert latency.conditions == device.conditions
        assert latency.input_shape == (1, 3, 64, 64)
        assert latency.clock == ("cpu" if device.conditions.threads == 1 else "wall")
        assert latency.runtime == device.context()["runtime"]
        assert latency.machine == device.context()["processor"]
        assert Latency.model_validate_json(latency.model_dump_json()) == latency
        ((visit),) = samples["visits"]
        assert QUICK.min_rounds <= len(visit["slowdown"]) == latency.rounds <= QUICK.max_rounds
        quiet_ns = np.array(visit["candidate_ns"]) / visit["slowdown"]
        assert latency.median_ms == pytest.approx(np.median(quiet_ns) / 1e6)

    def test_tells_a_larger_network_from_a_smaller_one_by_one_yardstick(self, device):
        steady = Steady(device)
        small, large = (steady.measure(arch, QUICK)[0] for arch in (SMALL, LARGE))
        assert large.median_ms > 1.2 * small.median_ms
        assert large.canary_ms == small.canary_ms

    def test_goes_on_after_a_file_that_is_no_graph(self, device, tmp_path):
        (tmp_path / "broken.onnx").write_bytes(b"not a graph")
        with pytest.raises(MeasurementError) as caught:
            device.measure(tmp_path / "broken.onnx", QUICK)
        assert caught.value.kind == "rejected"
        assert RUNTIMES[device.conditions.family].what in str(caught.value)
        assert device.measure(SMALL, QUICK)[0].median_ms > 0


@pytest.mark.parametrize("device", ["cpu"], indirect=True)
class TestOnnxRuntime:
    def test_measures_a_file_like_the_architecture_it_was_written_from(self, device, tmp_path):
        path = tmp_path / "net.onnx"
        path.write_bytes(build_onnx(LARGE, batch=None).SerializeToString())
        (arch, _), (file, _) = device.measure(LARGE, QUICK), device.measure(path, QUICK)
        assert file.input_shape == arch.input_shape
        assert 0.5 < file.median_ms / arch.median_ms < 2

    def test_takes_longer_for_a_batch_than_for_one_image(self, device):
        with open_device(parse_conditions("cpu", batch=16)) as other:
            (one, _), (sixteen, _) = device.measure(SMALL, QUICK), other.measure(SMALL, QUICK)
        assert sixteen.input_shape == (16, 3, 64, 64)
        assert sixteen.median_ms > 1.5 * one.median_ms  # about six times; each has its own yardstick


class TestContext:
    """What the memo of a search goes by."""

    def context(self, device="cpu", **conditions):
        with open_device(parse_conditions(device, **conditions)) as opened:
            return opened.context()

    def test_is_the_same_for_the_same_conditions(self):
        assert self.context("cpu:2", batch=4) == self.context("cpu", threads=2, batch=4)

    @pytest.mark.parametrize(
        "changes",
        [
            {"batch": 2},
            {"threads": 2},
            {"device": "torch"},
            {"device": "torch", "precision": "bf16"},
            {"device": "torch:compiled"},
            {"entries": ["session.set_denormal_as_zero=1"]},
        ],
        ids=str,
    )
    def test_differs_with_everything_that_moves_the_number(self, changes):
        assert self.context(**changes) != self.context()
        without = {name: value for name, value in changes.items() if name == "device"}
        assert changes == without or self.context(**changes) != self.context(**without)

    def test_names_processor_runtime_and_graph(self):
        context = self.context()
        assert set(context) == {"conditions", "processor", "runtime", "graph"}
        assert all(context.values())


class TestOpening:
    def test_a_device_that_cannot_run_here_says_why_and_starts_nothing(self, monkeypatch):
        runtime = SimpleNamespace(missing=lambda family: f"{family} needs a chip; buy one.")
        monkeypatch.setitem(RUNTIMES, "fake", runtime)
        monkeypatch.delitem(DEVICES, "fake", raising=False)
        with pytest.raises(UsageError, match="device 'fake:1' cannot run here: fake needs a chip; buy one"):
            open_device(Conditions(device="fake:1"))

    @pytest.mark.parametrize("name", [name for name, runtime in RUNTIMES.items() if runtime.missing(name)])
    def test_this_machines_missing_runtimes_are_refused(self, name):
        with pytest.raises(UsageError, match=f"device '{name}' cannot run here: "):
            open_device(parse_conditions(name))


class TestConditions:
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ({"device": "cpu"}, {}),
            ({"device": "cpu:4"}, {"device": "cpu:4", "threads": 4}),
            ({"device": "cpu", "threads": 4}, {"device": "cpu:4", "threads": 4}),
            ({"device": "cpu:4", "threads": 4}, {"device": "cpu:4", "threads": 4}),
            ({"device": "cpu:1"}, {"device": "cpu"}),
            ({"device": "cpu", "batch": 8}, {"batch": 8}),
            ({"device": "cpu-int8"}, {"device": "cpu-int8", "precision": "int8"}),
            ({"device": "cuda:1"}, {"device": "cuda:1"}),
            ({"device": "gpu"}, {"device": "cuda"}),
            ({"device": "gpu:1", "precision": "fp16"}, {"device": "cuda:1", "precision": "fp16"}),
            ({"device": "int8", "threads": 2}, {"device": "cpu-int8:2", "threads": 2, "precision": "int8"}),
            ({"device": "cuda", "precision": "fp16"}, {"device": "cuda", "precision": "fp16"}),
            ({"device": "torch:compiled"}, {"device": "torch:compiled"}),
            ({"device": "torch", "threads": 3}, {"device": "torch", "threads": 3}),
            ({"device": "remote:pi", "batch": 2}, {"device": "remote:pi", "batch": 2, "precision": BOARDS_DEFAULT}),
            ({"device": "remote:pi:7000", "precision": "fp16"}, {"device": "remote:pi:7000", "precision": "fp16"}),
            ({"device": "cpu", "entries": ["a.b=1", "c=d=e"]}, {"entries": {"a.b": "1", "c": "d=e"}}),
            ({"device": "cpu", "entries": {"a": "1"}}, {"entries": {"a": "1"}}),
        ],
        ids=str,
    )
    def test_are_what_a_users_words_say(self, words, expected):
        assert parse_conditions(**words) == Conditions(**expected)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ({"device": "cpuu"}, r"no device is called 'cpuu'\. Did you mean 'cpu'\?"),
            ({"device": ""}, r"no device is called ''\. Known: cpu, "),
            ({"device": "cpu:0"}, r"takes a number of threads, got '0'; try cpu:4"),
            ({"device": "cpu:x"}, r"takes a number of threads, got 'x'; try cpu:4"),
            ({"device": "cpu:-1"}, r"got '-1'"),
            ({"device": "cpu:4", "threads": 2}, r"--device cpu:4 and --threads 2 disagree; leave one out"),
            ({"device": "cuda:x"}, r"the number of a GPU, got 'x'; try cuda:0"),
            ({"device": "torch:3"}, r"'torch' takes ':compiled' or nothing, got '3'"),
            ({"device": "cpu", "precision": "fp16"}, r"'cpu' computes in fp32, got --precision fp16"),
            ({"device": "cuda", "precision": "int8"}, r"'cuda' computes in fp32, fp16, bf16, got --precision int8"),
            ({"device": "cpu", "entries": ["no-value"]}, r"a session entry reads name=value, got 'no-value'"),
            ({"device": "torch", "entries": ["a=1"]}, r"device 'torch' has no session settings, got --session a"),
            ({"device": "cpu", "entries": ["=1"]}, r"a session entry reads name=value, got '=1'"),
            ({"device": "cpu", "batch": 0}, r"batch"),
            ({"device": "cpu", "threads": 5000}, r"threads"),
        ],
        ids=str,
    )
    def test_that_make_no_sense_are_refused_with_the_way_out(self, words, message):
        with pytest.raises(UsageError, match=message):
            parse_conditions(**words)

    def test_read_as_one_line(self):
        assert str(Conditions()) == "cpu, 1 thread, batch 1, fp32"
        conditions = parse_conditions("cpu:2", batch=4, entries=["b=2", "a=1"])
        assert str(conditions) == "cpu:2, 2 threads, batch 4, fp32, a=1, b=2"


def test_a_steady_device_says_all_figures_by_the_yardstick_of_the_first():
    class Settling(FakeDevice):
        found = iter([latency_of(6.0), latency_of(5.4, canary_ms=1.8), latency_of(3.0)])

        def measure(self, subject, protocol):
            return next(self.found), {}

    device = Steady(Settling(Conditions(device="fake")))
    figures = [device.measure(SMALL, QUICK)[0] for _ in range(3)]
    assert [(one.median_ms, one.canary_ms) for one in figures] == [(6, 2), (pytest.approx(6), 2), (3, 2)]
    assert device.conditions == Conditions(device="fake")
    assert device.context()["processor"] == "imaginary"
    Settling.found = iter([latency_of(6.0)])
    assert Steady(device, Unit(1.0, 0.01)).measure(SMALL, QUICK)[0].median_ms == pytest.approx(3.0)  # of earlier ones


def test_a_latency_reads_with_its_spread_and_its_doubt():
    assert str(latency_of(4.3149)) == "4.31 ms ± 1.1%"
    assert str(latency_of(4.3149, rel_error=0.0)) == "4.31 ms ± 0.5%"  # the yardstick's
    assert str(latency_of(4.3149, rel_error=0.0, canary_error=0.0)) == "4.31 ms ± 0.1%"  # no measurement is exact
    assert str(latency_of(4.3149, noise="others were busy")) == "4.31 ms ± 1.1% (noisy)"
    assert latency_of(4.0).stat_ms("median") == 4.0
    assert latency_of(4.0).stat_ms("p90") == 4.4
    assert latency_of(4.0).said("median") == str(latency_of(4.0))
    assert latency_of(4.0).said("p90") == "4.40 ms (p90)"


def test_strict_is_stricter():
    assert STRICT.min_rounds > Protocol().min_rounds
    assert STRICT.visits > Protocol().visits
    assert STRICT.target_rel_error < Protocol().target_rel_error


def test_a_protocol_without_an_error_to_speak_of_is_refused():
    with pytest.raises(ValidationError, match="min_rounds"):
        Protocol(min_rounds=2)


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a shell script in the measuring process's place; `reply` and `requests` are files it may use."""
    reply = {"latency": latency_of(7.5, conditions=Conditions()).model_dump(mode="json"), "samples": {"visits": []}}
    (tmp_path / "reply").write_text(json.dumps(reply) + "\n")

    def install(script):
        path = tmp_path / "child"
        path.write_text(f"#!/bin/sh\ncd {tmp_path}\necho $$ >> pids\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setattr("sys.executable", str(path))
        return tmp_path

    return install


ANSWERS = 'while read -r request; do printf "%s\\n" "$request" >> requests; cat reply; done'


def started(folder):
    return [int(line) for line in (folder / "pids").read_text().split()]


@pytest.fixture
def local():
    with LocalDevice(Conditions()) as device:
        yield device


class TestLocalDevice:
    def test_asks_one_process_one_question_after_the_other(self, local, stand_in):
        folder = stand_in(ANSWERS)
        assert [local.measure(SMALL, QUICK)[0].median_ms, local.measure(LARGE, STRICT)[0].median_ms] == [7.5, 7.5]
        requests = [json.loads(line) for line in (folder / "requests").read_text().splitlines()]
        assert [Protocol(**request["protocol"]) for request in requests] == [QUICK, STRICT]
        assert requests[0]["network"] != requests[1]["network"]
        assert len(started(folder)) == 1

    def test_sends_a_timm_model_as_the_file_it_was_exported_to(self, local, stand_in, monkeypatch):
        monkeypatch.setattr("evit_nas.network.timm_models.timm_onnx", lambda name, size: Path(f"/of/{name}-{size}"))
        folder = stand_in(ANSWERS)
        local.measure(TimmModel("resnet18", 64), QUICK)
        assert json.loads((folder / "requests").read_text())["network"] == {"onnx": "/of/resnet18-64"}

    def test_starts_nothing_for_a_timm_model_that_does_not_exist(self, local, stand_in):
        folder = stand_in(ANSWERS)
        with pytest.raises(UsageError, match="no_such_model"):
            local.measure(TimmModel("no_such_model"), QUICK)
        assert not (folder / "pids").exists()

    def test_gives_the_process_its_threads(self, stand_in):
        folder = stand_in(f'echo "$OMP_NUM_THREADS $4" > setting; {ANSWERS}')
        conditions = Conditions(device="cpu:3", threads=3)
        with LocalDevice(conditions) as device:
            device.measure(SMALL, QUICK)
        threads, _, given = (folder / "setting").read_text().partition(" ")
        assert threads == "3"
        assert Conditions.model_validate_json(given) == conditions

    def test_passes_an_error_on_with_its_kind(self, local, stand_in):
        stand_in("""read -r request; echo '{"error": "no room", "kind": "out of memory"}'; read -r request""")
        with pytest.raises(MeasurementError, match="could not run the network: no room") as caught:
            local.measure(SMALL, QUICK)
        assert caught.value.kind == "out of memory"

    def test_notices_a_killed_process_before_it_asks_again(self, local, stand_in):
        folder = stand_in(ANSWERS)
        local.measure(SMALL, QUICK)
        os.kill(started(folder)[0], signal.SIGKILL)
        local._child.wait()
        assert local.measure(SMALL, QUICK)[0].median_ms == 7.5
        assert len(started(folder)) == 2

    @pytest.mark.parametrize("identity", ["known", "new"])
    def test_says_when_it_is_used_for_the_first_time_and_takes_longer(self, stand_in, monkeypatch, caplog, identity):
        kept(Yardstick(identity="known", windows=[Window(ms=2.0, shape=(1, 3, 6), beside_work=False, at=0.0)]))
        monkeypatch.setitem(RUNTIMES, "fake", Runtime("an imaginary chip", "fake_backend"))
        monkeypatch.setattr("evit_nas.latency.local.identity_of", lambda conditions: identity)
        stand_in(ANSWERS)
        with LocalDevice(Conditions(device="fake")) as device:
            device.measure(SMALL, QUICK)
        assert ("first use of fake here: half a minute" in caplog.text) is (identity == "new")

    def test_ends_and_replaces_a_process_that_takes_longer_than_its_runtime_may(self, stand_in, monkeypatch):
        monkeypatch.setitem(RUNTIMES, "fake", Runtime("an imaginary chip", "fake_backend", timeout_s=2))
        with LocalDevice(Conditions(device="fake")) as device:
            folder = stand_in("exec sleep 60")
            with pytest.raises(MeasurementError, match="took longer than 2 s and was ended") as caught:
                device.measure(SMALL, QUICK)
            assert caught.value.kind == "timeout"
            assert not lives(started(folder)[0])
            stand_in("exec sleep 60")
            with pytest.raises(MeasurementError, match="longer than 6 s"):  # two visits, and a third if they disagree
                device.measure(SMALL, STRICT)
            stand_in(ANSWERS)
            assert device.measure(SMALL, QUICK)[0].median_ms == 7.5

    @pytest.mark.parametrize(
        ("end", "kind", "words"),
        [
            ("echo warning >&2; echo 'Error: no more ideas' >&2; exit 3", "crashed", "status 3: Error: no more ideas$"),
            ("exit 0", "crashed", r"status 0: no message; out of memory\?$"),
            ("kill -SEGV $$", "crashed", "status -11"),
            ("kill -KILL $$", "out of memory", "status -9"),
            ("echo std::bad_alloc >&2; exit 1", "out of memory", "bad_alloc"),
            ("printf '{\"latency\": {'; exit 1", "crashed", "status 1"),
        ],
    )
    @pytest.mark.parametrize("asked", ["before it reads", "after it reads"])
    def test_reports_the_last_words_of_a_process_that_dies(self, local, stand_in, end, kind, words, asked):
        stand_in(end if asked == "before it reads" else f"read -r request; {end}")
        with pytest.raises(MeasurementError, match=words) as caught:
            local.measure(SMALL, QUICK)
        assert caught.value.kind == kind
        stand_in(ANSWERS)
        assert local.measure(SMALL, QUICK)[0].median_ms == 7.5

    def test_keeps_the_last_words_of_one_process_from_those_of_the_next(self, local, stand_in):
        for words in ("Error: the first and longer one", "Error: the second"):
            stand_in(f"echo '{words}' >&2; exit 1")
            with pytest.raises(MeasurementError) as caught:
                local.measure(SMALL, QUICK)
            assert str(caught.value).endswith(f"status 1: {words}")

    def test_ends_the_process_when_interrupted_for_its_answer_is_nobodys(self, local, stand_in, monkeypatch):
        folder = stand_in(ANSWERS)
        local.measure(SMALL, QUICK)

        def interrupt(self, timeout=None):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(selectors.DefaultSelector, "select", interrupt)
            with pytest.raises(KeyboardInterrupt):
                local.measure(SMALL, QUICK)
        assert not lives(started(folder)[0])
        assert local.measure(SMALL, QUICK)[0].median_ms == 7.5

    def test_leaves_no_process_behind(self, stand_in):
        folder = stand_in(ANSWERS)
        with LocalDevice(Conditions()) as device:
            device.measure(SMALL, QUICK)
            assert lives(started(folder)[0])
        assert not lives(started(folder)[0])
        device.close()  # twice does no harm


class TestAnswer:
    """What the measuring process says about one request, without the process."""

    REQUEST: ClassVar = {"network": {"onnx": "net.onnx"}, "protocol": {}}

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (ValueError("no such operator"), "rejected"),
            (MemoryError(), "out of memory"),
            (RuntimeError("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc"), "out of memory"),
            (RuntimeError("CUDA Out Of Memory. Tried to allocate 2 GiB"), "out of memory"),
            (ValueError("Failed to serialize proto"), "out of memory"),
            (MeasurementError("the machine is busy", "noisy"), "noisy"),
            (MeasurementError("this graph takes no floats"), "rejected"),
        ],
    )
    def test_has_the_errors_kind(self, error, kind):
        def measure(subject, protocol):
            raise error

        reply = child.answer(lambda: SimpleNamespace(measure=measure), self.REQUEST)
        assert reply["kind"] == kind
        assert str(error) in reply["error"]

    def test_tells_what_was_wrong_with_the_canaries_too(self):
        def bench():
            raise MeasurementError("there is no GPU 3", "rejected")

        assert "there is no GPU 3" in child.answer(bench, self.REQUEST)["error"]

    def test_is_one_line_of_bounded_length_whatever_the_runtime_says(self):
        def measure(subject, protocol):
            raise RuntimeError("first line\n  second line\n" + "x" * 10_000)

        reply = child.answer(lambda: SimpleNamespace(measure=measure), self.REQUEST)
        assert reply["error"].startswith("RuntimeError: first line second line x")
        assert len(reply["error"]) == 500

    @pytest.mark.parametrize(
        ("request_", "words"),
        [
            ({}, "protocol"),
            ({"protocol": {"rounds": 3}, "network": {}}, "rounds"),
            ({"protocol": {}, "network": {}}, "arch"),
            ({"protocol": {}, "network": {"arch": {"stages": []}}}, "exactly 3 stages"),
        ],
    )
    def test_to_a_wrong_request_is_what_is_wrong(self, request_, words):
        reply = child.answer(lambda: SimpleNamespace(measure=None), request_)
        assert reply["kind"] == "rejected"
        assert words in reply["error"]


class TestMachine:
    def test_can_be_described_even_where_files_are_missing(self, monkeypatch):
        assert machine.probe().cores >= 1
        monkeypatch.setattr(machine, "read", lambda path: None)
        bare = machine.probe()
        assert (bare.governor, bare.turbo) == (None, None)
        assert bare.processor
        assert machine.LoadMeter().foreign_cores() is None

    @pytest.mark.parametrize(
        ("files", "turbo"),
        [({"intel_pstate/no_turbo": "0"}, True), ({"intel_pstate/no_turbo": "1"}, False), ({"boost": "1"}, True)],
    )
    def test_tells_turbo_where_the_system_does(self, files, turbo, monkeypatch):
        def read(path):
            return next((text for name, text in files.items() if path.endswith(name)), None)

        monkeypatch.setattr(machine, "read", read)
        assert machine.probe().turbo is turbo

    @pytest.mark.parametrize(
        ("files", "name"),
        [
            (
                {"cpuinfo": "cpu family\t: 6\nmodel\t\t: 167\nmodel name\t: Intel(R) Xeon(R) Processor\n"},
                "Intel(R) Xeon(R) Processor (family 6, model 167)",
            ),
            (
                {
                    "cpuinfo": "CPU implementer\t: 0x41\nCPU part\t: 0xd08\nHardware\t: BCM2835\n",
                    "device-tree/model": "Raspberry Pi 4 Model B Rev 1.4\0",
                },
                "Raspberry Pi 4 Model B Rev 1.4 (implementer 0x41, part 0xd08)",
            ),
            ({"cpuinfo": "CPU implementer\t: 0x41\nCPU part\t: 0xd0c\n"}, "aarch64 (implementer 0x41, part 0xd0c)"),
            (
                {"cpuinfo": "model name\t: ARMv7 Processor\nCPU implementer\t: 0x41\nCPU part\t: 0xd08\n"},
                "ARMv7 Processor",
            ),
            ({"cpuinfo": "Hardware\t: BCM2835\n"}, "BCM2835"),
            ({}, "aarch64"),
        ],
        ids=[
            "x86",
            "a board with 64-bit ARM",
            "a server with 64-bit ARM",
            "32-bit ARM",
            "only the name of a chip",
            "nothing",
        ],
    )
    def test_tells_processors_apart_by_what_the_system_shows_of_them(self, files, name, monkeypatch):
        monkeypatch.setattr(machine, "read", lambda path: files.get(path.removeprefix("/proc/")))
        monkeypatch.setattr(machine, "platform", SimpleNamespace(processor=lambda: "", machine=lambda: "aarch64"))
        assert machine.processor() == name

    def test_counts_the_cores_that_others_keep_busy(self, monkeypatch):
        """Of those it may use, 0 and 2: a container shows all cores of its host."""
        tick = os.sysconf("SC_CLK_TCK")
        moments = iter(
            [
                # user nice system idle iowait irq softirq steal guest of each core, of the process, on the clock; in s
                ([10, 0, 5, 100, 7, 0, 0, 0, 0], [50] * 9, [4, 0, 0, 90, 9, 0, 0, 0, 0], 1.0, 100.0),
                ([12, 1, 6, 107, 9, 0, 0, 0, 0], [52] * 9, [4, 0, 0, 92, 9, 0, 1, 1, 0], 3.0, 102.0),
            ]
        )
        now = {}

        def read(path):
            *cores, now["own"], now["clock"] = next(moments)
            cores = [" ".join(str(second * tick) for second in core) for core in cores]
            return "\n".join(
                [f"cpu  {cores[1]}", *(f"cpu{index} {core}" for index, core in enumerate(cores)), "intr 7 0"]
            )

        monkeypatch.setattr(machine, "read", read)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2})
        clocks = {"process_time": lambda: now["own"], "monotonic": lambda: now["clock"]}
        monkeypatch.setattr(machine, "time", SimpleNamespace(**clocks))
        assert machine.LoadMeter().foreign_cores() == pytest.approx(2.0)  # 6 s of work in 2 s, 2 s of them its own


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tie a process to its parent")
def test_a_measuring_process_dies_with_a_killed_parent():
    child = "\n".join(
        [
            "import time",
            "from evit_nas.latency.machine import die_with_parent",
            "die_with_parent()",
            "print('ready', flush=True)",
            "time.sleep(5)",
            "print('outlived its parent')",
        ]
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "ready\n"
        parent.kill()
        assert parent.stdout.read() == ""  # ends when the last process that holds it does


class TestDoctor:
    @pytest.fixture(autouse=True)
    def _fake(self, monkeypatch):
        monkeypatch.setitem(DEVICES, "fake", FakeDevice)
        monkeypatch.setattr("evit_nas.doctor.LOAD_S", 0.01)

    def findings(self, ratio=1.0):
        """By name, with a canary that comes out at `ratio` of itself: the fake's canary has 2 ms."""
        factor = 2 * ratio / (cost(CANARIES[0]).macs / 1e6)
        return {finding.check: finding for finding in examine(parse_conditions(f"fake:{factor}"))}

    @pytest.mark.parametrize(
        ("ratio", "ok", "fatal"),
        [(1.0, True, False), (1.015, True, False), (0.97, False, False), (1.06, False, True), (0.9, False, True)],
    )
    def test_trusts_a_canary_that_equals_itself(self, ratio, ok, fatal):
        duel = self.findings(ratio)["canary against itself"]
        assert (duel.result, duel.ok, duel.fatal) == (f"ratio {ratio:.3f}", ok, fatal)

    def test_describes_the_machine(self):
        findings = self.findings()
        assert {"processor", "cores", "memory", "python", "evit-nas", "torch", "onnxruntime"} <= set(findings)
        assert re.fullmatch(r"\d+\.\d+\S*, runs on .*CPU.*", findings["onnxruntime"].result)

    @pytest.mark.parametrize(("cores", "ok"), [(0.1, True), (0.9, False)])
    def test_doubts_milliseconds_while_others_are_busy(self, cores, ok, monkeypatch):
        monkeypatch.setattr("evit_nas.doctor.LoadMeter", lambda: SimpleNamespace(foreign_cores=lambda: cores))
        load = self.findings()["load of other processes"]
        assert (load.result, load.ok, load.fatal) == (f"{cores:.2f} cores", ok, False)

    def test_says_why_milliseconds_are_estimates(self, monkeypatch):
        noisy = latency_of(2.0, noise="the canaries ran 2.00 times as long as when quiet")
        monkeypatch.setattr(FakeDevice, "measure", lambda *args: (noisy, {}))
        canary = self.findings()["canary, 2.00 ms when quiet"]
        assert canary.result == f"{noisy.noise}: an estimate"
        assert canary.ok is False

    def test_calls_a_device_that_cannot_measure_unfit(self, monkeypatch):
        def crash(*args):
            raise MeasurementError("the measuring process died", "crashed")

        monkeypatch.setattr(FakeDevice, "measure", crash)
        duel = self.findings()["canary against itself"]
        assert (duel.result, duel.ok, duel.fatal) == ("the measuring process died", False, True)
