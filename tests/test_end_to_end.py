"""The real thing on the tiny space: real networks, proxies, ONNX Runtime, study and files; killed and resumed."""

import collections
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from evit_nas.arch import ArchConfig
from evit_nas.runs import Run
from evit_nas.searching.record import Known
from evit_nas.searching.storage import open_study

TRIALS = 24
SEARCH = ["search", "--budget", "100ms", "--space", "efficientvit-tiny", "--trials", str(TRIALS), "--pool", "6"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "evit_nas", *arguments]


def evit_nas(*arguments: str, code: int = 0) -> subprocess.CompletedProcess:
    result = subprocess.run(command(*arguments), capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    return result


@pytest.mark.slow
def test_budget_to_front_to_onnx(tmp_path, call):
    """Whatever only reads does so in this process: on what a real search has left."""
    run = tmp_path / "run"
    searched = evit_nas(*SEARCH, "--out", str(run))
    assert "written:" in searched.stderr
    rows = json.loads(call("front", str(run), "--format", "json").out)
    assert rows
    assert all(row["certified"] for row in rows)

    member = run / "front" / f"{rows[0]['name']}.yaml"
    assert ArchConfig.load(member).key == rows[0]["key"]
    assert call("export", str(member), "--to", "onnx", "--out", str(tmp_path / "net.onnx")).code == 0
    measured = json.loads(call("measure", str(member), str(tmp_path / "net.onnx"), "--quick", "--format", "json").out)
    assert [entry["network"] for entry in measured] == [str(member), str(tmp_path / "net.onnx")]

    resumed = evit_nas("resume", str(run))  # nothing left to do: the same front again, by a better yardstick perhaps
    again = json.loads(call("front", str(run), "--format", "json").out)
    facts = ("key", "score", "trial", "latency_rel_error", "certified", "typical_ms")
    assert [[row[fact] for fact in facts] for row in again] == [[row[fact] for fact in facts] for row in rows]
    factors = [row["latency_ms"] / before["latency_ms"] for row, before in zip(again, rows, strict=True)]
    assert factors == pytest.approx([factors[0]] * len(rows), rel=0.01)  # of figures with four digits
    assert "written:" in resumed.stderr


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed_nothing_is_lost_or_done_twice(tmp_path):
    run, rng = tmp_path / "run", random.Random(0)
    kills = 0
    arguments = [*SEARCH, "--out", str(run)]
    while True:
        process = subprocess.Popen(command(*arguments), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        if kills == 5:
            assert process.wait() == 0
            break
        time.sleep(rng.uniform(1, 9))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
        if (run / "run.yaml").exists():
            arguments = ["resume", str(run)]

    with open_study(Run.open(run)) as study:
        known = Known(study)
        assert all(trial.state.is_finished() for trial in study.get_trials())
    assert len(known.by_key) == TRIALS
    records = [json.loads(line) for line in (run / "measurements.jsonl").read_text().splitlines()]
    times = collections.Counter(record["id"] for record in records)
    assert max(times.values()) == 1  # no number was computed twice, over all processes


@pytest.mark.slow
@pytest.mark.parametrize(("seen", "kept"), [(b'"id":"proxies:', True), (b'"id":"latency:', False)])
def test_ctrl_c_ends_with_130_and_the_resume_command_if_there_is_something_to_resume(tmp_path, seen, kept):
    run = tmp_path / "run"
    process = subprocess.Popen(command(*SEARCH, "--out", str(run)), stderr=subprocess.PIPE, text=True)
    journal = run / "measurements.jsonl"
    while not (journal.exists() and seen in journal.read_bytes()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (f"evit-nas resume {run}" in talk) is kept
    assert run.exists() is kept
