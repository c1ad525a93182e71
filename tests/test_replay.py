"""Replaying a trial: the same numbers hold, others are noticed, a failure is confirmed, and the run stays as it was."""

import hashlib
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from evit_nas.accuracy import zero_cost
from evit_nas.config import SearchSettings
from evit_nas.errors import MeasurementError, RunError, UsageError
from evit_nas.latency import DEVICES
from evit_nas.runs import Run
from evit_nas.searching.replay import DAYS_APART, replay
from evit_nas.searching.storage import SEAL, open_study
from evit_nas.searching.study import Search
from evit_nas.space import SearchSpace
from tests.fakes import FakeDevice, fake_proxies, latency_of
from tests.searches import Silent

TRIALS = 14


def picky(arch, *, seed=0, names=None):
    """Refuses about a third of the tiny space."""
    if arch.stages[0].mixer == "linear":
        raise MeasurementError("no finite value")
    return fake_proxies(arch, seed=seed)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished search on two devices with a trial that failed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setitem(DEVICES, "fake", FakeDevice)
        patch.setattr(zero_cost, "score_all", picky)
        settings = SearchSettings(
            space_name="x",
            space=SearchSpace.load("efficientvit-tiny"),
            targets=[{"conditions": {"device": name}, "budget_ms": 2.4} for name in ("fake", "fake:2")],
            trials=TRIALS,
            pool=10,
        )
        made = Run.create(tmp_path_factory.mktemp("runs") / "run", settings, {}, "evit-nas search")
        with made.lock():
            Search(made, Silent()).run()
    return Run.open(made.path)


@pytest.fixture
def copied(run, tmp_path):
    """The run, to be changed."""
    return Run.open(Path(shutil.copytree(run.path, tmp_path / "run")))


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    monkeypatch.setitem(DEVICES, "fake", FakeDevice)
    monkeypatch.setattr(zero_cost, "score_all", picky)


def trials(run, state):
    with open_study(run) as study:
        return [t.number for t in study.get_trials() if t.state.name == state and "repeat_of" not in t.user_attrs]


def contents(run):
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in run.path.rglob("*") if path.is_file()}


def test_every_number_of_a_trial_is_the_same_again_and_nothing_is_written(run):
    before = contents(run)
    for number in trials(run, "COMPLETE")[:3]:
        found = replay(run, number, Silent())
        assert [check.name for check in found.checks] == ["score", "latency_ms@fake", "latency_ms@fake:2"]
        assert all(check.now == check.recorded for check in found.checks)
        assert found.holds
    assert contents(run) == before


def test_a_score_that_moved_by_a_hair_does_not_hold(run, monkeypatch):
    def moved(arch, *, seed=0, names=None):
        return {name: value * 1.01 for name, value in fake_proxies(arch, seed=seed).items()}

    monkeypatch.setattr(zero_cost, "score_all", moved)
    number = trials(run, "COMPLETE")[0]
    found = replay(run, number, Silent())
    assert not found.holds
    assert [check.holds for check in found.checks] == [False, True, True]


@pytest.mark.parametrize(
    ("factor", "rel_error", "holds"),
    [(1 + DAYS_APART / 2, 0.01, True), (1 + DAYS_APART * 2, 0.01, False), (1 + DAYS_APART * 2, 0.1, True)],
)
def test_a_latency_holds_within_what_days_and_its_own_spread_explain(run, monkeypatch, factor, rel_error, holds):
    real = FakeDevice.measure

    def slower(self, arch, protocol):
        latency, samples = real(self, arch, protocol)
        return latency_of(latency.median_ms * factor, rel_error=rel_error, conditions=self.conditions), samples

    monkeypatch.setattr(FakeDevice, "measure", slower)
    found = replay(run, trials(run, "COMPLETE")[0], Silent())
    assert [check.holds for check in found.checks] == [True, holds, holds]
    assert found.checks[1].change == pytest.approx(factor - 1)


def test_one_hurried_measurement_that_is_off_proves_nothing(run, monkeypatch):
    real = FakeDevice.measure

    def slow_when_hurried(self, arch, protocol):
        latency, samples = real(self, arch, protocol)
        off = latency_of(2 * latency.median_ms, conditions=self.conditions)
        return (latency if protocol.visits > 1 else off), samples

    monkeypatch.setattr(FakeDevice, "measure", slow_when_hurried)
    assert replay(run, trials(run, "COMPLETE")[0], Silent()).holds


def test_a_failure_is_confirmed_with_both_reasons(run):
    found = replay(run, trials(run, "FAIL")[0], Silent())
    assert found.recorded_failure == found.failure == "MeasurementError: no finite value"
    assert found.checks == []
    assert found.holds


def test_a_failure_that_is_gone_does_not_hold(run, monkeypatch):
    monkeypatch.setattr(zero_cost, "score_all", fake_proxies)
    found = replay(run, trials(run, "FAIL")[0], Silent())
    assert found.recorded_failure
    assert not found.failure
    assert not found.holds


def test_a_trial_that_fails_now_does_not_hold(run, monkeypatch):
    def broken(self, arch, protocol):
        raise MeasurementError("the runtime died", "crashed")

    monkeypatch.setattr(FakeDevice, "measure", broken)
    found = replay(run, trials(run, "COMPLETE")[0], Silent())
    assert "the runtime died" in found.failure
    assert not found.holds


def test_what_a_judge_notes_is_not_written_to_the_run(copied):
    with sqlite3.connect(copied.path / "study.db") as database:
        database.execute("delete from study_user_attributes where key = 'judge'")
    database.close()
    before = contents(copied)
    assert replay(copied, trials(copied, "COMPLETE")[0], Silent()).holds
    assert contents(copied) == before


def unseal(database: sqlite3.Connection, trial_id: int) -> None:
    """As a trial of a version that had no seals yet."""
    database.execute("delete from trial_system_attributes where trial_id = ? and key = ?", (trial_id, SEAL))


def test_a_repeat_is_replayed_as_what_it_repeats(copied):
    first = trials(copied, "COMPLETE")[0]
    with sqlite3.connect(copied.path / "study.db") as database:
        (trial_id,) = database.execute("select trial_id from trials where number = ?", (TRIALS - 1,)).fetchone()
        insert = "insert into trial_user_attributes (trial_id, key, value_json) values (?, 'repeat_of', ?)"
        database.execute(insert, (trial_id, json.dumps(first)))
        unseal(database, trial_id)
    assert replay(copied, TRIALS - 1, Silent()).trial == first


@pytest.mark.parametrize("number", [-1, 10_000])
def test_a_trial_that_is_not_there_is_refused_with_those_that_are(run, number):
    with pytest.raises(UsageError, match=rf"no trial {number}; its trials are 0 to \d+"):
        replay(run, number, Silent())


def test_another_machine_is_refused_since_latencies_do_not_compare(run, monkeypatch):
    monkeypatch.setitem(FakeDevice.machine, "processor", "another")
    with pytest.raises(RunError, match="processor was imaginary, here it is another"):
        replay(run, 0, Silent())


def test_a_run_that_is_being_written_is_not_measured_beside(run):
    with Run.open(run.path).lock(), pytest.raises(RunError, match=r"being written by process \d+ on"):
        replay(run, 0, Silent())


def test_what_was_only_predicted_stands_beside_a_measurement_that_is_held_against_nothing(copied):
    """As a search records an architecture that cannot reach the front."""
    number = trials(copied, "COMPLETE")[1]
    with sqlite3.connect(copied.path / "study.db") as database:
        (trial_id,) = database.execute("select trial_id from trials where number = ?", (number,)).fetchone()
        change = "update trial_user_attributes set value_json = ? where trial_id = ? and key = ?"
        database.execute(change, ("[]", trial_id, "latencies"))
        database.execute(change, ("[0.001, 0.002]", trial_id, "predicted_ms"))
        unseal(database, trial_id)
    found = replay(copied, number, Silent())
    assert [check.name for check in found.checks[1:]] == [
        "latency_ms@fake (predicted)",
        "latency_ms@fake:2 (predicted)",
    ]
    assert found.checks[1].recorded == 0.001
    assert found.checks[1].change > DAYS_APART
    assert found.holds
