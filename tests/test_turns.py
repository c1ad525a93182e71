"""Measurements on one machine take turns, whichever process wants them, and nothing can keep the lock for ever."""

from __future__ import annotations

import json
import multiprocessing
import os
import selectors
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from evit_nas.config import Conditions
from evit_nas.errors import MeasurementError
from evit_nas.latency import Protocol, local
from evit_nas.latency.board import BoardDevice
from evit_nas.latency.local import LocalDevice, alone, run_alone
from evit_nas.latency.memory import peak_memory_mb
from evit_nas.latency.profile import profile
from tests.fakes import latency_of
from tests.networks import tiny_arch

PROTOCOL = Protocol()


def hold(begun, end) -> None:
    with alone():
        begun.set()
        end.wait()


@pytest.fixture
def other():
    """Another process that is measuring, and what ends its measurement."""
    context = multiprocessing.get_context("fork")
    begun, end = context.Event(), context.Event()
    process = context.Process(target=hold, args=(begun, end))
    process.start()
    assert begun.wait(30)
    yield process, end
    process.kill()
    process.join()


def wanting() -> tuple[threading.Thread, threading.Event]:
    """Somebody who wants to measure, and whether it has come to that."""
    measured = threading.Event()

    def measure():
        with alone():
            measured.set()

    thread = threading.Thread(target=measure, daemon=True)
    thread.start()
    return thread, measured


def test_a_measurement_waits_for_that_of_another_process(other):
    _, end = other
    thread, measured = wanting()
    assert not measured.wait(0.2)
    end.set()
    assert measured.wait(30)
    thread.join(30)


def test_a_wait_can_be_ended_by_another_thread(other):
    """A worker on a board is told to end while somebody else measures there, or was stopped while doing so."""
    _, end = other
    device, said = BoardDevice(Conditions()), []

    def measure():
        try:
            device.measure(tiny_arch(), PROTOCOL)
        except MeasurementError as error:
            said.append(str(error))

    thread = threading.Thread(target=measure, daemon=True)
    thread.start()
    time.sleep(0.2)
    device.end()
    thread.join(30)
    assert said == ["it was ended while it waited for its turn"]
    end.set()
    _, measured = wanting()
    assert measured.wait(30)  # what waited in vain does not keep the lock when it comes to it


def test_machines_that_share_a_folder_do_not_wait_for_each_other(other, monkeypatch):
    monkeypatch.setattr(local, "boot", lambda: "elsewhere")
    _, measured = wanting()
    assert measured.wait(30)


def test_a_process_that_is_killed_gives_the_lock_back(other):
    process, _ = other
    _, measured = wanting()
    assert not measured.wait(0.2)
    process.kill()
    assert measured.wait(30)


def test_two_threads_never_measure_together():
    inside, together = [], []

    def measure():
        for _ in range(20):
            with alone():
                inside.append(1)
                together.append(len(inside))
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=measure) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert together == [1] * 60


def test_a_device_measures_under_the_lock_and_gives_it_back_when_that_fails(monkeypatch):
    """While it measures, nobody else can; after an error anybody can."""
    waiting = []

    def exchange(self, line, timeout_s):
        waiting.append(wanting())
        assert not waiting[-1][1].wait(0.1)
        if len(waiting) == 2:
            raise OSError("the child is gone")
        return {"latency": latency_of(1.0).model_dump(mode="json"), "samples": {}}

    monkeypatch.setattr(LocalDevice, "_exchange", exchange)
    device = LocalDevice(Conditions())
    assert device.measure(tiny_arch(), PROTOCOL)[0].median_ms == 1.0
    with pytest.raises(OSError, match="gone"):
        device.measure(tiny_arch(), PROTOCOL)
    assert all(measured.wait(30) for _, measured in waiting)


@pytest.mark.parametrize("measure", [profile, peak_memory_mb])
def test_whatever_else_runs_a_network_takes_its_turn_too(measure, monkeypatch):
    """A profile is in the figures of others and they are in it; a process for its memory is in theirs."""
    waiting = []

    def run(command, **options):
        waiting.append(wanting())
        assert not waiting[-1][1].wait(0.1)
        raise OSError("the child is gone")

    monkeypatch.setattr(subprocess, "Popen", run)
    with pytest.raises(OSError, match="gone"):
        measure(tiny_arch(), Conditions())
    ((_, measured),) = waiting
    assert measured.wait(30)


def test_without_a_folder_to_lock_in_it_measures_all_the_same(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("evit_nas.latency.local.cache_folder", lambda: tmp_path / "file")
    entered = False
    with alone():
        entered = True
    assert entered


def test_a_lock_that_the_file_system_does_not_know_keeps_nobody_from_measuring(monkeypatch):
    def refused(handle, operation):
        raise OSError(os.strerror(37))

    monkeypatch.setattr(local.fcntl, "flock", refused)
    entered = False
    with alone():
        entered = True
    assert entered


def test_whoever_waits_for_long_says_for_whom(other, monkeypatch, caplog):
    """A search that was stopped (Ctrl-Z) keeps the lock: nobody is to wonder why nothing happens."""
    process, end = other
    monkeypatch.setattr(local, "TOLD_AFTER_S", 0.01)
    thread, measured = wanting()
    while not caplog.records:
        assert not measured.wait(0.05)
    assert f"waiting for process {process.pid} on " in caplog.text
    end.set()
    thread.join(30)
    assert measured.is_set()


def test_a_halt_is_not_taken_for_a_hang_of_the_process_that_measures(monkeypatch):
    """After SIGSTOP and SIGCONT, or a night's sleep, a wait ends with nothing read although there is an answer."""
    reply = json.dumps({"latency": latency_of(1.0).model_dump(mode="json"), "samples": {}})
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    answering = [sys.executable, "-c", f"input(); print({reply!r}, flush=True); input()"]
    monkeypatch.setattr(LocalDevice, "_start", lambda self: subprocess.Popen(answering, **pipes))
    select, halts = selectors.DefaultSelector.select, [[]]
    monkeypatch.setattr(selectors.DefaultSelector, "select", lambda *args: halts.pop() if halts else select(*args))
    with LocalDevice(Conditions()) as device:
        assert device.measure(tiny_arch(), PROTOCOL)[0].median_ms == 1.0


def test_nor_of_one_that_runs_to_its_end(monkeypatch):
    communicate, halts = subprocess.Popen.communicate, [1]

    def halted(self, timeout):
        if halts and halts.pop():
            raise subprocess.TimeoutExpired(self.args, timeout)
        return communicate(self, timeout=timeout)

    monkeypatch.setattr(subprocess.Popen, "communicate", halted)
    assert run_alone([sys.executable, "-c", "print('done')"], 1, 60.0, "it").stdout == "done\n"


def test_a_process_that_hangs_is_ended(tmp_path):
    sleeping = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"
    with pytest.raises(MeasurementError, match="sleeping took longer than 5 s and was ended"):
        run_alone([sys.executable, "-c", sleeping, str(tmp_path / "pid")], 1, 5.0, "sleeping")
    assert not Path("/proc", (tmp_path / "pid").read_text()).exists()
