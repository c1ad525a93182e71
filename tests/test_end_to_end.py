"""The real thing on the tiny space: real networks, proxies, ONNX Runtime, study and files; killed and resumed.

One search, which is interrupted once and killed twice, feeds all tests but one. That a search may be killed at any
write is tests/test_resume.py's; here are samples of it with real processes.
"""

import collections
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evit_nas.arch import ArchConfig
from evit_nas.runs import Run
from evit_nas.searching.record import Known
from evit_nas.searching.storage import open_study
from tests.conftest import used_before
from tests.processes import wait_until

pytestmark = pytest.mark.slow

TRIALS = 10
SEARCH = ["search", "--budget", "100ms", "--space", "efficientvit-tiny", "--trials", str(TRIALS), "--pool", "4"]


def begun(*arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "evit_nas", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def written(run: Path) -> int:
    """Lines in its journal."""
    return (run / "measurements.jsonl").read_bytes().count(b"\n")


def interrupted(run: Path, seen: bytes) -> tuple[int, str]:
    """How a search ends that gets Ctrl-C as soon as its journal holds `seen`, and what it says."""
    process, journal = begun(*SEARCH, "--out", str(run)), run / "measurements.jsonl"
    wait_until(lambda: journal.exists() and seen in journal.read_bytes())
    process.send_signal(signal.SIGINT)
    _, talk = process.communicate(timeout=60)
    return process.returncode, talk


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """The folder of a search that was interrupted, killed twice and at last left alone; what it said first and last."""
    run = tmp_path_factory.mktemp("real") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        used_before()
        ended = interrupted(run, b'"id":"proxies:')
        for _ in range(2):
            process, enough = begun("resume", str(run)), written(run) + 4
            wait_until(lambda enough=enough: written(run) >= enough)
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
        last = begun("resume", str(run))
        _, talk = last.communicate()
        assert last.returncode == 0, talk
        yield run, ended, talk


def test_ctrl_c_ends_with_130_and_the_resume_command_if_there_is_something_to_resume(killed, tmp_path):
    run, (code, talk), _ = killed
    assert (code, f"evit-nas resume {run}" in talk, run.exists()) == (130, True, True)
    run = tmp_path / "run"
    code, talk = interrupted(run, b'"id":"latency:')
    assert (code, f"evit-nas resume {run}" in talk, run.exists()) == (130, False, False)


def test_killed_and_resumed_nothing_is_lost_or_done_twice(killed):
    run, _, _ = killed
    with open_study(Run.open(run)) as study:
        known = Known(study)
        assert all(trial.state.is_finished() for trial in study.get_trials())
    assert len(known.by_key) == TRIALS
    records = [json.loads(line) for line in (run / "measurements.jsonl").read_text().splitlines()]
    times = collections.Counter(record["id"] for record in records)
    assert max(times.values()) == 1  # no number was computed twice, over all processes


def test_budget_to_front_to_onnx(killed, tmp_path, call):
    """Whatever only reads does so in this process: on what a real search has left."""
    run, _, talk = killed
    assert "written:" in talk
    rows = json.loads(call("front", str(run), "--format", "json").out)
    assert rows
    assert all(row["certified"] for row in rows)

    member = run / "front" / f"{rows[0]['name']}.yaml"
    assert ArchConfig.load(member).key == rows[0]["key"]
    assert call("export", str(member), "--to", "onnx", "--out", str(tmp_path / "net.onnx")).code == 0
    measured = json.loads(call("measure", str(member), str(tmp_path / "net.onnx"), "--quick", "--format", "json").out)
    assert [entry["network"] for entry in measured] == [str(member), str(tmp_path / "net.onnx")]

    resumed = call("resume", str(run))  # nothing left to do: the same front again, by a better yardstick perhaps
    assert resumed.code == 0, resumed.err
    again = json.loads(call("front", str(run), "--format", "json").out)
    facts = ("key", "score", "trial", "latency_rel_error", "certified", "typical_ms")
    assert [[row[fact] for fact in facts] for row in again] == [[row[fact] for fact in facts] for row in rows]
    factors = [row["latency_ms"] / before["latency_ms"] for row, before in zip(again, rows, strict=True)]
    assert factors == pytest.approx([factors[0]] * len(rows), rel=0.01)  # of figures with four digits
    assert "written:" in resumed.err
