"""Processes that measure: they find the modules that this process finds, whatever lies in the current folder, and
report nothing to anybody."""

from __future__ import annotations

import json
import os
import profile as profile_of_python
import signal
import subprocess
import sys

import pytest

from evit_nas.config import Conditions
from evit_nas.latency import Protocol
from evit_nas.latency.local import LocalDevice, child_environment, python
from evit_nas.latency.memory import peak_memory_mb
from evit_nas.latency.profile import profile
from tests.networks import tiny_arch


def measure(arch, conditions):
    with LocalDevice(conditions) as device:
        device.measure(arch, Protocol())


STARTS = {
    "measure": (measure, Conditions()),
    "profile": (profile, Conditions()),
    "memory": (peak_memory_mb, Conditions()),
    "memory of torch": (peak_memory_mb, Conditions(device="torch")),
}


@pytest.fixture(params=STARTS)
def found(request, monkeypatch):
    """Where such a process finds a module."""
    begin, conditions = STARTS[request.param]

    def found(module: str) -> str:
        begun = []

        def noted(command, *, env, **others):
            begun.append((command, env))
            raise OSError("enough")

        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", noted)
            with pytest.raises(OSError, match="enough"):
                begin(tiny_arch(), conditions)
        ((command, env),) = begun
        program = [*command[:2], "-c", f"import {module}; print({module}.__file__)"]
        return subprocess.run(program, env=env, capture_output=True, text=True, check=True).stdout.strip()

    return found


def test_what_the_current_folder_holds_hides_no_module(tmp_path, monkeypatch, found):
    (tmp_path / "profile.py").write_text("raise SystemExit('not this one')")
    monkeypatch.chdir(tmp_path)
    assert found("profile") == profile_of_python.__file__


def test_a_folder_that_this_process_was_told_of_is_known_there(tmp_path, monkeypatch, found):
    """As a notebook does that runs beside a checkout: sys.path.insert(0, ...)."""
    (tmp_path / "only_here.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert found("only_here") == str(tmp_path / "only_here.py")


def test_onnx_runtime_is_kept_from_reporting(tmp_path):
    """It leaves nothing in the user's home, and starts no thread besides those that compute."""
    program = (
        "import evit_nas, onnxruntime; from evit_nas.config import Conditions; from tests.networks import tiny_arch\n"
        "from evit_nas.latency.onnx_backend import load; load(tiny_arch(), Conditions()).run()\n"
        "print(open('/proc/self/status').read().partition('Threads:')[2].split()[0])"
    )
    known = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    env = {"PYTHONPATH": os.pathsep.join(sys.path), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run([sys.executable, "-c", program], env=known | env, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["1"]
    assert list(tmp_path.iterdir()) == []


def test_a_measuring_process_leaves_it_to_its_parent_to_end():
    """A batch system ends a job by SIGTERM to all of its processes; no network may go on record as failed for it."""
    command = python("-m", "evit_nas.latency.child", Conditions().model_dump_json())
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=child_environment(1), **pipes) as child:
        for number in (0, signal.SIGTERM, signal.SIGHUP):
            os.kill(child.pid, number)
            child.stdin.write('{"protocol": {"visits": 0}}\n')
            child.stdin.flush()
            assert "visits" in json.loads(child.stdout.readline())["error"]
        child.stdin.close()
        assert child.wait() == 0
