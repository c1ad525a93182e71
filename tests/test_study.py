"""The search loop on a fake device and fake proxies: exact totals, no repeats, nothing lost, reproducible."""

import errno
import itertools
import re
import sqlite3
from types import SimpleNamespace

import numpy as np
import pytest

from evit_nas.accuracy import zero_cost
from evit_nas.api import Result
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.config import Conditions
from evit_nas.errors import Infeasible, Interrupted, LostLink, MeasurementError, RunError, UsageError
from evit_nas.files import Journal
from evit_nas.latency import Protocol
from evit_nas.network.cost import cost
from evit_nas.quantities import parse_budgets
from evit_nas.runs import Run
from evit_nas.searching import forecast, progress, study
from evit_nas.searching.evaluate import Evaluator
from evit_nas.searching.feasibility import feasibility, plainly
from evit_nas.searching.front import REPEATS, Candidate, select
from evit_nas.searching.judges import ZeroCost
from evit_nas.searching.record import Known, load_front
from evit_nas.searching.storage import for_samplers, open_study
from evit_nas.searching.study import Search
from evit_nas.searching.trials import MAX_DEATHS
from evit_nas.space import SearchSpace
from evit_nas.yamlio import validate
from tests.fakes import FakeDevice, fake_proxies, latency_of
from tests.searches import Died, Silent, keys, trials
from tests.test_selection import settings_of

pytestmark = pytest.mark.usefixtures("fakes")


def high_ms(member):
    """What must hold the budget: the median with its uncertainty, or with what sessions differ by."""
    return member.latency.median_ms * (1 + max(member.latency.rel_error, REPEATS))


def test_a_search_evaluates_the_total_of_distinct_architectures(new_run):
    run, watcher = new_run(), Silent()
    Search(run, watcher).run()
    assert len(keys(run)) == len(set(keys(run))) == 24
    assert watcher.statuses[-1].done == 24
    assert watcher.statuses[-1].eta_s == 0.0
    assert ("pool", 6, 6) in watcher.steps
    assert "all 24 trials are done" in watcher.notes
    searched = [key for key, visits in FakeDevice.calls if visits == 1]
    assert len(searched) == len(set(searched))  # nothing is measured twice


def test_after_every_trial_the_status_is_that_of_the_record(new_run):
    run, watcher = new_run(), Silent()
    Search(run, watcher).run()
    with open_study(run) as study:
        measured = list(Known(study).candidates.values())
    for done in (1, 10, 24):
        front = select(measured[:done], run.settings)
        status = watcher.statuses[done - 1]
        assert (status.done, len(status.front), status.failed) == (done, len(front), 0)
        assert status.feasible == sum(candidate.latency.median_ms <= 1.2 for candidate in measured[:done])
        assert status.best_score == max((member.score for member in front), default=None)


def test_every_trial_carries_its_constraint_and_its_architecture(finished_run):
    run = finished_run()
    for trial in trials(run):
        assert trial.constraints == {"latency_ms": pytest.approx(trial.values[1] / 1.2 - 1)}
        assert run.settings.space.suggest(_fixed(trial.params)).key == trial.user_attrs["key"]


def _fixed(params):
    from evit_nas.choices import FixedTrial

    return FixedTrial(params)


def test_the_front_is_feasible_certified_and_not_beaten(finished_run):
    front = load_front(finished_run())
    assert front.members
    for member in front.members:
        assert member.certified
        assert high_ms(member) <= 1.2
    for a, b in itertools.permutations(front.members, 2):
        assert not (a.score >= b.score and a.latency.median_ms <= b.latency.median_ms)
    assert [m.latency.median_ms for m in front.members] == sorted(m.latency.median_ms for m in front.members)


def test_the_front_is_written_as_yaml_that_loads_to_its_members(finished_run):
    run = finished_run()
    front = load_front(run)
    written = {path.stem: ArchConfig.load(path) for path in run.front_folder.glob("*.yaml")}
    assert written == {member.name: member.arch for member in front.members}
    assert (run.path / "front.csv").read_text().count("\n") == len(front.members) + 1


def test_the_papers_networks_are_references_scored_and_measured_in_the_same_run(finished_run):
    front = load_front(finished_run())
    scores = [c.score for c in front.references]
    assert scores == sorted(scores)
    assert scores[0] > min(member.score for member in front.members)
    assert [c.name for c in front.references] == ["m0", "m1", "m2", "m3", "m4", "m5"]
    assert all(c.certified for c in front.references)


def test_the_front_is_the_same_when_loaded_again(new_run):
    run = new_run()
    found = Search(run, Silent()).run()
    assert load_front(Run.open(run.path)) == found


def test_a_long_front_is_thinned_out_and_all_that_is_left_is_certified(new_run, monkeypatch):
    """Strict measurements that come out otherwise move members in and out, and still it ends."""
    real = FakeDevice.measure

    def otherwise_when_strict(self, arch, protocol):
        latency, samples = real(self, arch, protocol)
        factor = 0.9 + int(arch.key[:4], 16) / 16**4 * 0.3
        ms = latency.median_ms * (factor if protocol.visits > 1 else 1)
        return latency_of(ms, conditions=self.conditions), samples

    monkeypatch.setattr(FakeDevice, "measure", otherwise_when_strict)
    whole, thinned = (Search(new_run(front_size=size), Silent()).run().members for size in (1000, 4))
    assert len(whole) > 4
    assert 2 <= len(thinned) <= 4
    assert all(member.certified and high_ms(member) <= 1.2 for member in thinned)
    for a, b in itertools.permutations(thinned, 2):
        assert not (a.score >= b.score and a.latency.median_ms <= b.latency.median_ms)


def test_a_member_that_cannot_be_measured_strictly_makes_room_for_others_for_good(new_run, finished_run, monkeypatch):
    run, watcher = new_run(), Silent()
    best = max(load_front(finished_run()).members, key=lambda member: member.score).arch.key
    real = FakeDevice.measure

    def picky(self, arch, protocol):
        if arch.key == best and protocol.visits > 1:
            raise MeasurementError("took too long", "timeout")
        return real(self, arch, protocol)

    monkeypatch.setattr(FakeDevice, "measure", picky)
    front = Search(run, watcher).run()
    assert best in keys(run)
    assert front.members
    assert all(member.certified and member.arch.key != best for member in front.members)
    assert f"left out of the front: {best}: took too long" in watcher.notes
    assert load_front(Run.open(run.path)) == front
    FakeDevice.calls.clear()
    assert Search(run, Silent()).run() == front
    assert FakeDevice.calls == []


def test_a_paper_network_that_cannot_be_measured_is_missing_beside_the_front(new_run, monkeypatch):
    run, watcher, real = new_run(trials=8, pool=4), Silent(), FakeDevice.measure
    m5 = run.settings.space.adapted(ArchConfig.preset("m5")).key

    def picky(self, arch, protocol):
        if arch.key == m5 and protocol.visits > 1:
            raise MeasurementError("out of memory", "out of memory")
        return real(self, arch, protocol)

    monkeypatch.setattr(FakeDevice, "measure", picky)
    front = Search(run, watcher).run()
    assert [c.name for c in front.references] == ["m0", "m1", "m2", "m3", "m4"]
    assert "without m5 beside the front: out of memory" in watcher.notes


@pytest.mark.parametrize("error", [RuntimeError, MemoryError])
def test_a_paper_network_that_finds_no_memory_to_be_judged_is_missing_beside_the_front(new_run, monkeypatch, error):
    run, watcher, real = new_run(trials=8, pool=4), Silent(), ZeroCost.estimate
    m5 = run.settings.space.adapted(ArchConfig.preset("m5")).key

    def judged(self, arch, latency_ms=None):
        if arch.key == m5 and latency_ms is None:  # at the end, for its place beside the front
            raise error("out of memory")
        return real(self, arch, latency_ms)

    monkeypatch.setattr(ZeroCost, "estimate", judged)
    front = Search(run, watcher).run()
    assert front.members
    assert [c.name for c in front.references] == ["m0", "m1", "m2", "m3", "m4"]
    assert "without m5 beside the front: out of memory" in watcher.notes


@pytest.mark.parametrize("visits", [1, 2])
def test_a_lost_link_ends_the_search_and_is_nobodys_fault(new_run, finished_run, monkeypatch, visits):
    """However often it is lost: what was being measured is not given up."""
    run, real = new_run(), FakeDevice.measure
    expected = load_front(finished_run())
    victim = expected.members[-1].arch.key

    def lost(self, arch, protocol):
        if arch.key == victim and protocol.visits == visits:
            raise LostLink("the board does not answer")
        return real(self, arch, protocol)

    with monkeypatch.context() as patch:
        patch.setattr(FakeDevice, "measure", lost)
        for _ in range(MAX_DEATHS + 1):
            with pytest.raises(LostLink, match="does not answer"):
                Search(run, Silent()).run()
    assert Search(run, Silent()).run() == expected


def test_a_device_that_refuses_ends_the_search_and_no_trial_fails(new_run, finished_run, monkeypatch):
    """As a board does that was restarted with another runtime, or another token."""
    run, real = new_run(), FakeDevice.measure
    expected = load_front(finished_run())
    calls = itertools.count()

    def refusing(self, arch, protocol):
        if next(calls) > 15:
            raise UsageError("the worker refuses: it is another board")
        return real(self, arch, protocol)

    with monkeypatch.context() as patch:
        patch.setattr(FakeDevice, "measure", refusing)
        for _ in range(2):
            with pytest.raises(UsageError, match="another board"):
                Search(run, Silent()).run()
    assert 0 < len(keys(run)) < 24
    assert {trial.state.name for trial in trials(run)} == {"COMPLETE"}
    assert Search(run, Silent()).run() == expected


@pytest.mark.parametrize("error", [Interrupted(), KeyboardInterrupt(), OSError(errno.ENOSPC, "no space left")])
def test_what_ends_the_search_without_a_death_is_nobodys_fault(new_run, finished_run, monkeypatch, error):
    whole, run = finished_run(trials=10), new_run(trials=10)
    victim = keys(whole)[8]

    def ends(arch, *, seed=0, names=None):
        if arch.key == victim:
            raise error
        return fake_proxies(arch, seed=seed)

    with monkeypatch.context() as patch:
        patch.setattr(zero_cost, "score_all", ends)
        for _ in range(MAX_DEATHS + 1):
            with pytest.raises(type(error)):
                Search(run, Silent()).run()
    Search(run, Silent()).run()
    assert [trial.state for trial in trials(run)] == [trial.state for trial in trials(whole)]


def test_what_is_too_big_for_the_device_is_noted_and_the_search_goes_on(new_run, monkeypatch):
    run, watcher, real = new_run(trials=8, pool=4), Silent(), FakeDevice.measure
    too_big = {run.settings.space.adapted(ArchConfig.preset("m5")).key, run.settings.space.largest().key}

    def small(self, arch, protocol):
        if arch.key in too_big:
            raise MeasurementError("not enough memory", "out of memory")
        return real(self, arch, protocol)

    monkeypatch.setattr(FakeDevice, "measure", small)
    assert Search(run, watcher).run().members
    assert "m5 cannot be measured: not enough memory" in watcher.notes
    assert "the largest network of the space cannot be measured: not enough memory" in watcher.notes
    assert any("to what cannot be measured on fake; of the paper's networks" in note for note in watcher.notes)


def test_when_every_strict_measurement_takes_too_long_nothing_is_given_up(new_run, finished_run, monkeypatch):
    run, real = new_run(), FakeDevice.measure
    expected = load_front(finished_run())

    def slow(self, arch, protocol):
        if protocol.visits > 1:
            raise MeasurementError("took too long", "timeout")
        return real(self, arch, protocol)

    with monkeypatch.context() as patch:
        patch.setattr(FakeDevice, "measure", slow)
        with pytest.raises(MeasurementError, match=r"3 networks in a row took too long.*evit-nas resume") as caught:
            Search(run, Silent()).run()
    assert caught.value.kind == "timeout"
    assert Search(run, Silent()).run() == expected


def test_when_the_time_is_over_the_front_so_far_is_certified_and_a_resumed_search_goes_on(new_run, monkeypatch):
    """Every score takes an hour."""
    now = itertools.count(0, 3600)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(now)))
    run, watcher = new_run(time_s=10 * 3600.0), Silent()
    front = Search(run, watcher).run()
    done = len(keys(run))
    assert 2 <= done < 24
    assert "the time is over; a resumed search takes as much again" in watcher.notes
    assert front.ended in watcher.notes
    assert all(member.certified for member in front.members)
    Search(run, watcher).run()
    assert len(keys(run)) > done


def test_a_search_ends_when_its_front_has_stood_for_so_many_architectures(new_run):
    run, watcher = new_run(trials=200, patience=5), Silent()
    Search(run, watcher).run()
    done = watcher.statuses[-1].done
    assert 6 + 5 <= done < 200
    assert any("has not grown by 0.1% over 5 architectures" in note for note in watcher.notes)
    with open_study(run) as study:
        assert progress.Progress(run.settings, study).over()  # also when it is read from the record
    why = load_front(run).ended
    assert "has not grown" in why
    assert "measuring the front and the paper's networks again, strictly" in watcher.notes
    again = Silent()
    Search(run, again).run()
    assert why in again.notes
    assert not any("strictly" in note for note in again.notes)  # nothing is left to be measured


def test_patience_begins_with_the_first_network_within_the_limits_if_the_pool_has_none():
    settings = settings_of(pool=4, patience=3)
    stall = progress.Stall(settings)

    def candidate(score, ms):
        return Candidate("", ArchConfig.preset("m0"), score, (latency_of(ms),), certified=False, trial=0)

    found = [None] * 6 + [candidate(0.5, 8.0), None, candidate(0.6, 7.0), None, candidate(0.6, 7.0)]
    for done, one in enumerate(found, start=1):
        stall.add(done, one)
    assert stall.grew_at == 9


def test_while_the_score_alone_counts_the_best_within_the_budget_is_the_front(new_run, finished_run, monkeypatch):
    """What is better and near the budget may keep it when it is measured strictly; until then it hides nothing."""
    best = max(load_front(finished_run(objectives=["score"], trials=6)).members, key=lambda member: member.score)
    run = new_run(objectives=["score"], trials=6, budget_ms=best.latency.median_ms / 1.03)

    def killed(*rest):
        raise Died

    monkeypatch.setattr(study, "certify", killed)
    with pytest.raises(Died):
        Search(run, Silent()).run()
    (member,) = load_front(run).members
    assert (member.certified, member.score < best.score) == (False, True)
    assert Result(run.path).state == "interrupted"


def test_with_a_budget_on_the_90th_percentile_that_is_the_figure_in_messages(new_run):
    with pytest.raises(Infeasible, match=r"budget of 0.01 ms \(p90\).* takes \d+\.\d+ ms \(p90\)\. Try"):
        Search(new_run(budget_ms=0.01, budget_stat="p90"), Silent()).run()
    watcher = Silent()
    Search(new_run(budget_ms=9.0, budget_stat="p90", trials=6), watcher).run()
    assert any("ms (p90) to " in note for note in watcher.notes)


def test_an_interrupted_search_has_not_ended(new_run):
    run = new_run()

    class Stops(Silent):
        def update(self, status):
            if status.done == 9:
                raise Died

    with pytest.raises(Died):
        Search(run, Stops()).run()
    assert load_front(run).ended == ""
    assert Search(run, Silent()).run().ended == "all 24 trials are done"


def test_same_seed_same_search_other_seed_other_search(new_run, finished_run):
    first, same, other = finished_run(), new_run(), new_run(seed=2)
    for run in (same, other):
        Search(run, Silent()).run()
    assert keys(first) == keys(same)
    assert keys(first) != keys(other)


def test_a_resumed_finished_search_computes_nothing(finished_run):
    run = finished_run()
    FakeDevice.calls.clear()
    Search(run, Silent()).run()
    assert FakeDevice.calls == []


def test_a_trial_that_raises_is_a_failed_trial_with_its_reason(new_run, monkeypatch):
    def picky(arch, *, seed=0, names=None):
        if arch.stages[0].mixer == "linear":
            raise MeasurementError("no finite value")
        return fake_proxies(arch, seed=seed)

    run, watcher = new_run(), Silent()
    monkeypatch.setattr(zero_cost, "score_all", picky)
    front = Search(run, watcher).run()
    failed = [t for t in trials(run) if t.state.name == "FAIL" and "repeat_of" not in t.user_attrs]
    assert failed
    assert all("no finite value" in t.user_attrs["reason"] for t in failed)
    assert watcher.statuses[-1].failed == len(failed)
    assert len(keys(run)) == 24
    assert all(member.arch.stages[0].mixer != "linear" for member in front.members)


def test_an_architecture_that_keeps_killing_the_process_is_given_up(new_run, finished_run, monkeypatch):
    """One architecture ends the process whenever it is evaluated."""
    whole = finished_run()
    deadly = keys(whole)[12]

    def kill(arch, *, seed=0, names=None):
        if arch.key == deadly:
            raise Died
        return fake_proxies(arch, seed=seed)

    run = new_run()
    monkeypatch.setattr(zero_cost, "score_all", kill)
    for _ in range(MAX_DEATHS):
        with pytest.raises(Died):
            Search(run, Silent()).run()
    Search(run, Silent()).run()
    assert keys(run)[:13] == keys(whole)[:13]
    assert len(keys(run)) == 24


def test_an_impossible_budget_names_the_nearest_and_the_way_out(new_run):
    with pytest.raises(Infeasible, match=r"budget of 0\.01 ms.*fastest architecture.*--budget.*--space"):
        Search(new_run(budget_ms=0.01), Silent()).run()


def test_a_budget_that_everything_keeps_is_remarked_on(new_run):
    watcher = Silent()
    Search(new_run(budget_ms=100.0, trials=10, pool=4), watcher).run()
    assert any("even the largest network keeps the budget" in note for note in watcher.notes)


def test_a_space_that_is_used_up_ends_the_search(new_run):
    stage = {"width": [16, 32], "depth": 1, "heads": 1, "q_kernels": 3}
    fields = {
        "image_size": 64,
        "num_classes": 10,
        "stages": [stage, stage | {"width": 32}, stage | {"width": 32}],
    }
    run, watcher = new_run(space=validate(SearchSpace, fields, "space"), budget_ms=9.0, pool=4), Silent()
    Search(run, watcher).run()
    assert len(keys(run)) == 2
    assert any("used up" in note for note in watcher.notes)


def test_a_run_is_not_continued_under_other_conditions(finished_run, monkeypatch):
    run = finished_run()
    monkeypatch.setitem(FakeDevice.machine, "processor", "another")
    with pytest.raises(RunError, match="processor was imaginary, here it is another"):
        Search(run, Silent()).run()


def test_a_member_that_misses_the_budget_when_measured_strictly_makes_room_for_others(new_run, monkeypatch):
    real = FakeDevice.measure

    def slower_when_strict(self, arch, protocol):
        latency, samples = real(self, arch, protocol)
        return (latency_of(latency.median_ms * 1.2) if protocol.visits > 1 else latency), samples

    monkeypatch.setattr(FakeDevice, "measure", slower_when_strict)
    run = new_run()
    front = Search(run, Silent()).run()
    assert front.members
    assert all(member.certified and high_ms(member) <= 1.2 for member in front.members)
    assert select(front.members, run.settings) == front.members


def test_the_storage_is_a_plain_optuna_study(finished_run):
    run = finished_run(trials=10)
    with sqlite3.connect(run.path / "study.db") as database:
        assert database.execute("select count(*) from trials").fetchone()[0] >= 10
    with open_study(run) as study:
        assert study.metric_names == ["score", "latency_ms"]


def test_several_devices_are_objectives_with_a_budget_each(new_run):
    """ "fake:2" takes twice as long as "fake", so its budget is the one that binds."""
    run = new_run(devices=("fake", "fake:2"))
    front = Search(run, Silent()).run()
    assert front.members
    for member in front.members:
        assert [latency.conditions.device for latency in member.latencies] == ["fake", "fake:2"]
        assert member.latencies[1].median_ms == pytest.approx(2 * member.latencies[0].median_ms)
        assert member.latencies[1].median_ms * 1.01 <= 1.2
    with open_study(run) as study:
        assert study.metric_names == ["score", "latency_ms@fake", "latency_ms@fake:2"]
        assert set(for_samplers(study.trials[0]).constraints) == {"latency_ms@fake", "latency_ms@fake:2"}
    assert load_front(Run.open(run.path)) == front
    written = next(run.front_folder.glob("*.yaml")).read_text()
    assert "on fake, 1 thread" in written
    assert "on fake:2, 1 thread" in written


def test_a_budget_on_the_90th_percentile_holds_for_it(new_run, finished_run):
    """FakeDevice's 90th percentile lies a tenth above the median."""
    pool = {"pool": 16, "trials": 16}  # no sampler: all searches see the same architectures
    edge = load_front(finished_run(**pool)).members[-1]
    budget_ms = high_ms(edge) * 1.001
    fronts = {
        stat: Search(new_run(**pool, budget_ms=budget_ms, budget_stat=stat), Silent()).run().members
        for stat in ("median", "p90")
    }
    assert edge.arch.key in {member.arch.key for member in fronts["median"]}
    assert fronts["p90"]
    assert all(member.latency.p90_ms * (1 + member.latency.rel_error) <= budget_ms for member in fronts["p90"])


def test_limits_on_size_hold_for_every_member_and_are_constraints_of_every_trial(new_run):
    limits = {"params": 120_000, "macs": 900_000}
    run = new_run(limits=limits, trials=30)
    front = Search(run, Silent()).run()
    assert front.members
    assert all(m.params <= limits["params"] and m.macs <= limits["macs"] for m in front.members)
    assert all(set(trial.constraints) == {"latency_ms", "params", "macs"} for trial in trials(run))
    beyond = [trial.constraints["params"] for trial in trials(run)]
    assert min(beyond) <= 0 < max(beyond)


def test_memory_is_measured_once_for_each_architecture_and_limited(new_run, monkeypatch):
    from evit_nas.latency import memory

    asked = []

    def peak(arch, conditions):
        asked.append(arch.key)
        return cost(arch).params / 1e4

    monkeypatch.setattr(memory, "peak_memory_mb", peak)
    run = new_run(limits={"memory_mb": 12.0})
    front = Search(run, Silent()).run()
    assert all(member.figures["memory_mb"] <= 12.0 for member in front.members)
    assert len(asked) == len(set(asked))
    assert all("memory_mb" in trial.constraints for trial in trials(run))


@pytest.mark.parametrize(
    ("limits", "words"),
    [({"params": 10}, "--max-params"), ({"macs": 10}, "--max-macs"), ({"memory_mb": 0.001}, "--max-memory")],
)
def test_a_limit_that_nothing_can_keep_ends_the_search_before_it_starts(new_run, monkeypatch, limits, words):
    from evit_nas.latency import memory

    monkeypatch.setattr(memory, "peak_memory_mb", lambda arch, conditions: 80.0)
    with pytest.raises(Infeasible, match=words):
        Search(new_run(limits=limits), Silent()).run()
    assert FakeDevice.calls == []


def test_a_budget_is_held_against_the_fastest_network_not_the_least_of_every_dimension(new_run):
    """With fewer heads a stage of this space is wider: 96 for 3, 64 for 4."""
    space = SearchSpace.load("efficientvit-96")
    space = space.model_copy(
        update={
            "stages": tuple(stage.model_copy(update={"width": (64, 96), "heads": (3, 4)}) for stage in space.stages)
        }
    )
    device = FakeDevice(Conditions(device="fake"))
    least, fastest = space.smallest(), space.cheapest(lambda arch: cost(arch).macs)
    least_ms, fastest_ms = (device.measure(arch, Protocol())[0].median_ms for arch in (least, fastest))
    assert fastest_ms < 0.9 * least_ms
    run = new_run(space=space, budget_ms=(fastest_ms + least_ms) / 2)
    evaluator = Evaluator([device], Journal(run.path / "measurements.jsonl"), seed=0)
    assert feasibility(evaluator, run.settings, print).smallest[0].median_ms == fastest_ms


@pytest.mark.parametrize("metric", ["params", "macs"])
def test_a_limit_is_held_against_the_cheapest_network_not_the_least_of_every_dimension(new_run, metric):
    """With fewer heads a stage may have more parameters, and with linear attention more MACs."""
    space, device = SearchSpace.load("efficientvit-96"), FakeDevice(Conditions(device="fake"))
    least = getattr(cost(space.cheapest(lambda arch: getattr(cost(arch), metric))), metric)
    assert least < getattr(cost(space.smallest()), metric)
    for limit in (least, least - 1):
        run = new_run(space=space, budget_ms=1000, limits={metric: limit})
        evaluator = Evaluator([device], Journal(run.path / "measurements.jsonl"), seed=0)
        if limit == least:
            assert feasibility(evaluator, run.settings, print).smallest
        else:
            with pytest.raises(Infeasible, match=f"--max-{metric}"):
                feasibility(evaluator, run.settings, print)


def test_the_budget_that_is_too_small_is_named_with_its_device(new_run):
    with pytest.raises(Infeasible, match=r"on fake:100\. Try|fake:100="):
        Search(new_run(devices=("fake", "fake:100")), Silent()).run()


def test_what_missed_the_budget_by_a_hair_gets_a_second_visit(new_run, finished_run, monkeypatch):
    """A hurried measurement that comes out 3 % too slow costs an architecture nothing."""
    run = finished_run(pool=16, trials=16)  # no sampler: both searches see the same architectures
    edge = load_front(run).members[-1]
    real = FakeDevice.measure

    def slow_when_hurried(self, arch, protocol):
        latency, samples = real(self, arch, protocol)
        slower = latency_of(latency.median_ms * 1.03, conditions=self.conditions)
        return (latency if protocol.visits > 1 else slower), samples

    monkeypatch.setattr(FakeDevice, "measure", slow_when_hurried)
    tight = new_run(pool=16, trials=16, budget_ms=high_ms(edge) * 1.001)  # it keeps this one, but not with 3 % more
    front = Search(tight, Silent()).run()
    assert edge.arch.key in keys(tight)
    assert edge.arch.key in {member.arch.key for member in front.members}


def proposed(run: Run) -> set[str]:
    """What proposed the networks after the pool."""
    return {trial.user_attrs["origin"] for trial in trials(run)} - {"random", *PRESETS}


def test_auto_screens_what_is_predicted_and_a_sampler_that_is_asked_for_proposes_itself(new_run, monkeypatch):
    def in_proportion_to_macs(_, archs, unit):
        return np.array([cost(arch).macs / 1e6 for arch in archs])

    monkeypatch.setattr(forecast.Forecast, "predict_ms", in_proportion_to_macs)
    found = {}
    for sampler in ("auto", "evolution"):
        run = new_run(sampler=sampler, accuracy={"method": "table"}, trials=16)
        Search(run, Silent()).run()
        found[sampler] = proposed(run)
    assert found == {"auto": {"screening"}, "evolution": {"evolution"}}


@pytest.mark.parametrize("more", [{"limits": {"memory_mb": 12.0}}, {"objectives": ("score", "latency", "memory")}])
def test_nothing_is_screened_while_a_number_is_asked_for_that_is_not_predicted(new_run, monkeypatch, more):
    from evit_nas.latency import memory

    monkeypatch.setattr(memory, "peak_memory_mb", lambda arch, conditions: cost(arch).params / 1e4)
    monkeypatch.setattr(
        forecast.Forecast, "predict_ms", lambda _, archs, unit: np.array([cost(a).macs / 1e6 for a in archs])
    )
    run = new_run(accuracy={"method": "table"}, trials=16, **more)
    Search(run, Silent()).run()
    assert "screening" not in proposed(run)


@pytest.mark.parametrize(("budget_ms", "device"), [(0.01, "fake"), (1.0, "fake:1000")])
def test_the_budget_that_is_proposed_is_one_that_the_search_takes(new_run, budget_ms, device):
    with pytest.raises(Infeasible) as caught:
        Search(new_run(budget_ms=budget_ms, devices=(device,)), Silent()).run()
    proposal = re.search("--budget (.+?), or", str(caught.value))[1]
    smallest = FakeDevice(Conditions(device=device)).measure(new_run().settings.space.smallest(), Protocol())[0]
    assert parse_budgets(proposal, [device])[0] > smallest.median_ms


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [(6_123_456, "params", "6123000"), (120.0, "latency_ms", "120ms"), (0.0214, "energy_mj", "0.0214mJ")],
)
def test_numbers_in_messages_are_as_options_take_them(value, metric, text):
    assert plainly(value, metric) == text


def test_auto_is_tpe_where_scores_are_dear(finished_run):
    run = finished_run(trials=10)
    assert proposed(run) == {"tpe"}
