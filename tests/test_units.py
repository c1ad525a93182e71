"""A yardstick that gets better restates a search and changes no order; one that gets worse changes nothing."""

import itertools
from typing import Any, ClassVar

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from evit_nas.latency import DEVICES, Unit
from evit_nas.latency.yardstick import MOMENT_S, Window, Yardstick, kept
from evit_nas.network.cost import cost
from evit_nas.searching.attributes import StudyAttributes, TrialAttributes
from evit_nas.searching.record import better_since, load_front
from evit_nas.searching.replay import replay
from evit_nas.searching.storage import open_study
from evit_nas.searching.study import Search
from evit_nas.searching.units import adopt, factors, predictions, restated
from tests.fakes import FakeDevice, latency_of
from tests.searches import Died, Silent, keys, trials

QUIET_MS, BUDGET_MS = 2.0, 1.2


class Settling(FakeDevice):
    """One millisecond for each million MACs when quiet; `canary_ms` tells what the canary seems to take by then."""

    canary_ms: ClassVar[Any] = staticmethod(lambda measured: QUIET_MS)

    def measure(self, subject, protocol):
        self.calls.append((subject.key, protocol.visits))
        canary_ms, quiet_ms = self.canary_ms(len(self.calls)), cost(subject).macs / 1e6
        latency = latency_of(
            quiet_ms * canary_ms / QUIET_MS,
            ratio=quiet_ms / QUIET_MS,
            canary_ms=canary_ms,
            conditions=self.conditions,
            yardstick="here",
            wall_ms=2 * quiet_ms,
        )
        return latency, {"visits": []}


@pytest.fixture
def settling(fakes, monkeypatch, tmp_path):
    """Says what the canary seems to take, by the number of measurements so far, on a machine that knows nothing."""
    machines = itertools.count()
    monkeypatch.setitem(DEVICES, "fake", Settling)

    def settle(canary_ms):
        FakeDevice.calls.clear()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"machine{next(machines)}"))
        monkeypatch.setattr(Settling, "canary_ms", staticmethod(canary_ms))

    return settle


def slow_first(measured):
    return 1.25 * QUIET_MS if measured <= 14 else QUIET_MS


def fast_first(measured):
    return QUIET_MS if measured <= 14 else 1.25 * QUIET_MS


def searched(run):
    Search(run, watcher := Silent()).run()
    return watcher


class TestSearch:
    def test_on_a_machine_that_is_slow_at_first_comes_to_the_quiet_machines_figures(self, settling, finished_run):
        settling(slow_first)
        front = load_front(finished_run("slow first", budget_ms=BUDGET_MS))
        for one in [*front.members, *front.references]:
            assert one.latency.median_ms == pytest.approx(cost(one.arch).macs / 1e6)
            assert one.latency.unit == Unit(QUIET_MS, 0.005)
        assert all(f"{cost(member.arch).macs / 1e6:.2f}ms" in member.name for member in front.members)

    def test_what_was_out_of_the_budget_by_the_first_yardstick_may_be_in_by_the_better_one(self, settling, new_run):
        settling(slow_first)
        run = new_run(budget_ms=BUDGET_MS)
        watcher = searched(run)
        within = {key for key, ms in _quiet_ms(run).items() if ms <= BUDGET_MS}
        assert any(ms * 1.25 > BUDGET_MS for key, ms in _quiet_ms(run).items() if key in within)
        assert watcher.statuses[-1].feasible == len(within)

    def test_on_a_machine_that_becomes_slow_is_the_search_on_a_quiet_one(self, settling, new_run):
        runs = []
        for canary_ms in (lambda measured: QUIET_MS, fast_first):
            settling(canary_ms)
            runs.append(new_run(budget_ms=BUDGET_MS))
            searched(runs[-1])
        assert keys(runs[0]) == keys(runs[1])
        found = [[(one.name, one.latency.median_ms) for one in load_front(run).members] for run in runs]
        assert found[0] == [(name, pytest.approx(ms)) for name, ms in found[1]]

    @pytest.mark.parametrize("killed_after", [12, 17, 22])
    def test_goes_on_after_a_crash_as_if_there_had_been_none(
        self, settling, new_run, finished_run, killed_after, monkeypatch
    ):
        settling(slow_first)
        whole = finished_run("slow first", budget_ms=BUDGET_MS)
        settling(slow_first)
        run = new_run(budget_ms=BUDGET_MS)
        measure = Settling.measure

        def dying(self, subject, protocol):
            if len(self.calls) == killed_after:
                raise Died
            return measure(self, subject, protocol)

        with monkeypatch.context() as patched:
            patched.setattr(Settling, "measure", dying)
            with pytest.raises(Died):
                searched(run)
        searched(run)
        assert keys(run) == keys(whole)
        pairs = zip(trials(run), trials(whole), strict=True)
        assert all(one.values == other.values and one.constraints == other.constraints for one, other in pairs)
        assert [one.name for one in load_front(run).members] == [one.name for one in load_front(whole).members]

    def test_every_trial_says_by_what_it_was_told(self, settling, finished_run):
        settling(slow_first)
        run = finished_run("slow first", budget_ms=BUDGET_MS)
        told = [TrialAttributes(trial).units["fake"].ms for trial in trials(run)]
        assert told == sorted(told, reverse=True)
        assert set(told) == {1.25 * QUIET_MS, QUIET_MS}
        quiet = _quiet_ms(run)
        for trial, ms in zip(trials(run), told, strict=True):
            quiet_ms = quiet[trial.user_attrs["key"]]
            assert trial.values[1] == pytest.approx(quiet_ms * ms / QUIET_MS)

    def test_keeps_a_typical_budget_by_the_wall_clock(self, settling, new_run):
        settling(slow_first)
        run = new_run(budget_ms=2 * BUDGET_MS, budget_stat="typical")
        searched(run)
        members = load_front(run).members
        assert members
        for member in members:
            assert f"{member.latency.wall_ms:.2f}ms" in member.name
            assert member.latency.wall_ms == pytest.approx(2 * cost(member.arch).macs / 1e6)
            assert member.latency.wall_ms * 1.01 <= 2 * BUDGET_MS


def _quiet_ms(run):
    with open_study(run) as study:
        found = {
            t.user_attrs["key"]: t.user_attrs["latencies"][0] for t in study.get_trials() if "latencies" in t.user_attrs
        }
    return {key: latency["ratio"] * QUIET_MS for key, latency in found.items()}


class TestAfterwards:
    @pytest.fixture
    def run(self, settling, finished_run):
        settling(lambda measured: QUIET_MS)
        return finished_run("quiet", budget_ms=BUDGET_MS)

    def learn(self, ms):
        """Another command of this machine meets quieter moments."""
        windows = [Window(ms=ms, shape=(1, 3, 6), beside_work=False, at=MOMENT_S * number) for number in range(3)]
        kept(Yardstick(identity="here", windows=windows, calm=True, moments=1_000_000))

    def test_a_run_keeps_its_yardstick_and_says_that_there_is_a_better_one(self, run):
        before = load_front(run)
        assert better_since(run) == ""
        self.learn(0.8 * QUIET_MS)
        assert load_front(run) == before
        assert "milliseconds are 20.0% lower" in better_since(run)
        assert "evit-nas resume" in better_since(run)

    def test_one_that_is_hardly_better_or_worse_is_not_worth_a_word(self, run):
        for ms in (1.2 * QUIET_MS, QUIET_MS, 0.995 * QUIET_MS):
            self.learn(ms)
            assert better_since(run) == ""

    def test_resuming_certifies_by_it_and_lets_in_what_keeps_the_budget_now(self, run):
        before = {member.arch.key: member.latency.median_ms for member in load_front(run).members}
        self.learn(0.5 * QUIET_MS)
        watcher = searched(run)
        assert any("better yardstick" in note for note in watcher.notes)
        after = load_front(run).members
        both = [member for member in after if member.arch.key in before]
        assert all(one.latency.median_ms == pytest.approx(0.5 * before[one.arch.key]) for one in both)
        assert max(one.latency.median_ms for one in after) > 0.5 * max(before.values())
        assert all(one.certified for one in after)
        assert {path.stem for path in run.front_folder.glob("*.yaml")} == {one.name for one in after}
        assert better_since(run) == ""

    def test_a_replay_compares_ratios(self, run, settling):
        settling(lambda measured: 0.7 * QUIET_MS)
        checks = {check.name: check for check in replay(run, 3, Silent()).checks}
        assert checks["latency_ms"].change == pytest.approx(0)


class TestRestated:
    @pytest.fixture
    def settings(self, new_run):
        return new_run(budget_ms=BUDGET_MS, devices=("fake", "fake:2")).settings

    def trial(self, **changes):
        fields = {
            "values": [0.7, 1.5, 3.0],
            "constraints": {"latency_ms@fake": 0.25, "latency_ms@fake:2": 1.5, "params": -0.5},
            "user_attrs": {"units": {"fake": [2.0, 0.01], "fake:2": [4.0, 0.01]}, "predicted_ms": [1.5, 3.0]},
        }
        return create_trial(**fields | changes)

    def test_latencies_and_budgets_follow_the_yardstick_of_their_device(self, settings):
        now = {"fake": Unit(1.6, 0.01), "fake:2": Unit(4.0, 0.01)}
        found = restated(self.trial(), now, settings)
        assert found.values == pytest.approx([0.7, 1.2, 3.0])
        assert found.constraints == pytest.approx({"latency_ms@fake": 0.0, "latency_ms@fake:2": 1.5, "params": -0.5})
        assert predictions(self.trial(), now, settings) == pytest.approx([1.2, 3.0])

    def test_what_samplers_noted_for_themselves_stays(self, settings):
        trial = self.trial(system_attrs={"nsga3:generation": 4})
        found = restated(trial, {"fake": Unit(1.0, 0.01)}, settings)
        assert found.system_attrs["nsga3:generation"] == 4
        assert trial.values == [0.7, 1.5, 3.0]  # a copy was changed

    @pytest.mark.parametrize(
        "now", [{}, {"fake": Unit(2.0, 0.5), "fake:2": Unit(4.0, 0.5)}, {"other": Unit(1.0, 0.1)}], ids=str
    )
    def test_without_a_better_one_it_is_the_same_trial(self, settings, now):
        trial = self.trial()
        assert restated(trial, now, settings) is trial

    def test_a_failure_or_a_trial_of_an_earlier_version_is_left_alone(self, settings):
        failed = create_trial(state=TrialState.FAIL, user_attrs={"units": {"fake": [2.0, 0.01]}})
        old = self.trial(user_attrs={"predicted_ms": [1.5, 3.0]})
        for trial in (failed, old):
            assert restated(trial, {"fake": Unit(1.0, 0.01)}, settings) is trial
        assert factors(old, {"fake": Unit(1.0, 0.01)}, settings) == {}

    def test_by_the_wall_clock_there_is_no_yardstick(self, settings):
        typical = settings.model_copy(update={"budget_stat": "typical"})
        assert factors(self.trial(), {"fake": Unit(1.0, 0.01)}, typical) == {}


def test_only_what_is_better_is_adopted():
    study = optuna.create_study()
    assert adopt(study, {"fake": Unit(2.0, 0.01)})
    assert not adopt(study, {"fake": Unit(2.2, 0.01)})
    assert adopt(study, {"fake": Unit(2.2, 0.01), "other": Unit(3.0, 0.01)})
    assert adopt(study, {"fake": Unit(1.5, 0.01)})
    assert StudyAttributes(study).units == {"fake": Unit(1.5, 0.01), "other": Unit(3.0, 0.01)}
