"""Any numbers of a candidate may be objectives and limits: contracts over the table, and searches with some of them."""

from typing import get_args

import numpy as np
import pytest
from optuna.study import StudyDirection

from evit_nas.config import Conditions, Limits, ObjectiveName
from evit_nas.errors import Infeasible, MeasurementError, UsageError
from evit_nas.files import Journal
from evit_nas.latency import DEVICES, memory
from evit_nas.network.cost import cost
from evit_nas.pareto import non_dominated
from evit_nas.quantities import parse_energy
from evit_nas.searching.evaluate import Evaluator
from evit_nas.searching.front import points
from evit_nas.searching.objectives import OBJECTIVES, directions, limit_excess, losses, metric_names, values, worst
from evit_nas.searching.record import load_front
from evit_nas.searching.samplers import SAMPLERS
from evit_nas.searching.study import Search
from tests.fakes import FakeDevice, Powered, latency_of
from tests.searches import Silent, trials
from tests.test_selection import settings_of

NUMBERS = {
    "score": [88.0],
    "latency_ms": [4.0, 9.0],
    "params": [3e6],
    "macs": [2e8],
    "memory_mb": [80.0],
    "energy_mj": [5],
}
LIMITS = {"score": 80.0, "params": 4_000_000, "macs": 100_000_000, "memory_mb": 64.0, "energy_mj": 10.0}
SETS = [("score",), ("score", "params"), ("score", "latency", "macs"), ("params", "macs", "latency", "score")]


@pytest.fixture
def powered(monkeypatch):
    monkeypatch.setitem(DEVICES, "fake", Powered)
    monkeypatch.setattr(memory, "peak_memory_mb", lambda arch, conditions: cost(arch).params / 1e4)


def test_settings_command_line_and_limits_know_what_the_table_holds():
    assert [*OBJECTIVES] == [*get_args(ObjectiveName)]
    assert {objective.metric for objective in OBJECTIVES.values()} == {*Limits.model_fields, "latency_ms"}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_each_objective_is_named_directed_and_told_once_for_the_network_or_for_each_device(name):
    settings = settings_of(devices=2, objectives=(name,))
    told, names = values(NUMBERS, settings), metric_names(settings)
    assert told == NUMBERS[OBJECTIVES[name].metric]
    assert len(names) == len(directions(settings)) == (2 if name == "latency" else 1)
    assert all(found.startswith(OBJECTIVES[name].metric) for found in names)
    upwards = [way is StudyDirection.MAXIMIZE for way in directions(settings)]
    assert upwards == [name == "score"] * len(names)
    assert losses(NUMBERS, settings).tolist() == [-one if name == "score" else one for one in told]


def test_values_come_in_the_order_of_the_objectives():
    settings = settings_of(devices=2, objectives=("macs", "latency", "score"))
    assert values(NUMBERS, settings) == [2e8, 4.0, 9.0, 88.0]
    assert metric_names(settings) == ["macs", "latency_ms@fake:1", "latency_ms@fake:2", "score"]


def test_a_limit_is_missed_by_a_share_of_it_and_that_on_the_score_by_the_difference():
    beyond = limit_excess(NUMBERS, settings_of(limits=LIMITS))
    assert beyond == pytest.approx({"score": -8.0, "params": -0.25, "macs": 1.0, "memory_mb": 0.25, "energy_mj": -0.5})


def test_what_is_not_limited_or_not_known_makes_no_constraint():
    assert limit_excess(NUMBERS, settings_of()) == {}
    assert set(limit_excess({"params": [1]}, settings_of(limits=LIMITS))) == {"params"}


def test_hypervolume_counts_from_the_budgets_and_from_the_worst_that_was_seen():
    settings = settings_of(objectives=("score", "latency", "params"))
    seen = [np.array([-80.0, 2.0, 5e6]), np.array([-85.0, 3.0, 6e6])]
    assert worst(seen, settings).tolist() == [-80.0, 9.0, 6e6]


def test_an_objective_is_given_once():
    with pytest.raises(ValueError, match="each objective can be given once, got 'score' twice"):
        settings_of(objectives=("score", "score"))


@pytest.mark.parametrize("objectives", SETS, ids="+".join)
def test_the_front_of_a_search_is_what_nothing_within_the_limits_beats_in_its_objectives(new_run, objectives):
    run = new_run(objectives=objectives, patience=20)
    front = Search(run, Silent()).run()
    found = trials(run)
    assert all(len(trial.values) == len(objectives) for trial in found)
    assert non_dominated(points(front.members, run.settings)).all()
    signs = [-1 if way is StudyDirection.MAXIMIZE else 1 for way in directions(run.settings)]
    for trial in found:
        if trial.user_attrs["latencies"] and max(trial.constraints.values()) <= -0.1:
            loss = np.array(trial.values) * signs
            assert any((points([member], run.settings)[0] <= loss + 1e-9).all() for member in front.members)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("objectives", [("score",), ("score", "latency", "params", "macs")], ids=["one", "four"])
def test_every_sampler_takes_any_number_of_objectives(new_run, sampler, objectives):
    run = new_run(objectives=objectives, sampler=sampler, trials=10)
    assert Search(run, Silent()).run().members
    assert len({trial.user_attrs["key"] for trial in trials(run)}) == 10


def test_memory_and_energy_are_asked_of_every_trial_once_and_limited(new_run, powered):
    run = new_run(objectives=("score", "latency", "memory", "energy"), limits={"energy_mj": 1.0, "memory_mb": 12.0})
    front = Search(run, Silent()).run()
    assert front.members
    assert all(member.figures["energy_mj"] <= 1.0 and member.figures["memory_mb"] <= 12.0 for member in front.members)
    for trial in trials(run):
        assert trial.values[2:] == [trial.user_attrs["memory_mb"], trial.user_attrs["energy_mj"]]
        assert set(trial.constraints) == {"latency_ms", "memory_mb", "energy_mj"}
    calls = len(FakeDevice.calls)
    Search(run, Silent()).run()  # it is over: nothing is asked again
    assert len(FakeDevice.calls) == calls


def test_energy_that_nothing_keeps_is_said_before_the_search(new_run, powered):
    with pytest.raises(Infeasible, match=r"nothing keeps --max-energy: the smallest .* the limit is 0\.001"):
        Search(new_run(limits={"energy_mj": 0.001}), Silent()).run()


@pytest.mark.parametrize("more", [{"objectives": ("score", "energy")}, {"limits": {"energy_mj": 5.0}}])
def test_energy_that_cannot_be_had_ends_the_search_before_it_starts(new_run, more):
    run = new_run(**more)
    with pytest.raises(MeasurementError, match=r"energy cannot be had on 'fake': no counter.*Leave out --objective en"):
        Search(run, Silent()).run()
    assert trials(run) == []


def test_energy_that_other_work_hid_is_asked_for_again(monkeypatch, tmp_path, powered):
    journal, arch = Journal(tmp_path / "measurements.jsonl"), settings_of().space.smallest()
    device = DEVICES["fake"](Conditions(device="fake"))
    with monkeypatch.context() as patch:
        patch.setattr(device, "measure", lambda subject, protocol: (latency_of(1.0), {"energy_mj": None}))
        with pytest.raises(MeasurementError, match="other work hides what the network draws"):
            Evaluator([device], journal, seed=0).energy_mj(arch)
    assert Evaluator([device], journal, seed=0).energy_mj(arch) == pytest.approx(cost(arch).macs / 1e6)


def test_a_lowest_score_is_kept_by_every_member(new_run, finished_run):
    scores = [member.score for member in load_front(finished_run()).members]
    bar = float(np.median(scores))
    front = Search(new_run(limits={"score": bar}), Silent()).run()
    assert min(member.score for member in front.members) >= bar > min(scores)


def test_when_the_budget_is_kept_and_another_limit_is_not_that_one_is_named(new_run):
    with pytest.raises(Infeasible, match=r"within the budget keeps --min-score 1000000: the nearest has -?[\d.]+"):
        Search(new_run(limits={"score": 1e6}, trials=8), Silent()).run()


def test_limits_that_are_kept_one_by_one_but_not_together_are_said_to_be(new_run):
    front = Search(new_run(trials=6), Silent()).run().members  # the pool, whatever the limits are
    limits = {"score": max(member.score for member in front), "params": min(member.params for member in front)}
    with pytest.raises(Infeasible, match="nothing that was found keeps all limits at once"):
        Search(new_run(limits=limits, trials=6), Silent()).run()


@pytest.mark.parametrize(("text", "mj"), [("40mJ", 40.0), ("0.04 J", 40.0), ("900uJ", 0.9)])
def test_energies_as_people_write_them(text, mj):
    assert parse_energy(text) == pytest.approx(mj)


@pytest.mark.parametrize("text", ["40", "mJ", "0mJ", "-1J", "4mW"])
def test_an_energy_without_number_or_unit_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="try 40mJ"):
        parse_energy(text)
