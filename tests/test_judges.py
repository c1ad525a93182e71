"""Judges: a fixed function of the architecture, prepared once, and the same one for the whole run."""

from __future__ import annotations

import pytest

from evit_nas.accuracy import zero_cost
from evit_nas.accuracy.aggregate import NAMES
from evit_nas.config import AccuracySettings, Conditions, SearchSettings
from evit_nas.errors import MeasurementError, RunError, UsageError
from evit_nas.runs import Run
from evit_nas.searching import judges
from evit_nas.searching.attributes import StudyAttributes
from evit_nas.searching.evaluate import Evaluator
from evit_nas.searching.judges import judge_of
from evit_nas.searching.record import journal_of
from evit_nas.searching.rounds import pool_of
from evit_nas.searching.storage import open_study
from evit_nas.space import SearchSpace
from tests.fakes import FakeDevice, fake_proxies
from tests.searches import Silent, label_table

SPACE = SearchSpace.load("efficientvit-tiny")


@pytest.fixture
def new_run(tmp_path):
    def create(**accuracy):
        target = {"conditions": {"device": "fake"}, "budget_ms": 1.0}
        fields = {"space_name": "x", "space": SPACE, "targets": [target], "pool": 6, "accuracy": accuracy}
        return Run.create(tmp_path / "run", SearchSettings.model_validate(fields), {}, "")

    return create


def judge(run: Run, watch=None):
    """What is made of the run folder, and what judges there."""
    device = FakeDevice(Conditions(device="fake"))
    with open_study(run) as record:
        evaluator = Evaluator([device], journal_of(run), seed=0)
        return judge_of(run, evaluator, record, pool_of(run.settings), watch or Silent())


@pytest.fixture
def scored(monkeypatch):
    """Keys of the networks whose proxies were computed."""
    keys = []

    def score_all(arch, *, seed=0, names=None):
        keys.append(arch.key)
        return fake_proxies(arch)

    monkeypatch.setattr(zero_cost, "score_all", score_all)
    return keys


def test_a_node_that_refuses_is_not_taken_for_a_network_without_a_score(new_run, monkeypatch):
    def refuse(arch, *, seed=0, names=None):
        raise UsageError("a node of the cluster has another version")

    monkeypatch.setattr(zero_cost, "score_all", refuse)
    with pytest.raises(UsageError, match="another version"):
        judge(new_run(method="zero-cost"))


def test_zero_cost_ranks_in_the_pool_which_is_scored_once(new_run, scored):
    run = new_run(method="zero-cost")
    pool = [arch for arch, _ in pool_of(run.settings)]
    first = [judge(run).estimate(arch) for arch in pool]
    assert scored == [arch.key for arch in pool]
    assert [judge(run).estimate(arch) for arch in pool] == first
    assert len(scored) == len(pool)
    best = max(zip(first, pool, strict=True), key=lambda pair: pair[0].value)[1]
    assert fake_proxies(best)["params"] > min(fake_proxies(arch)["params"] for arch in pool)
    assert {estimate.method for estimate in first} == {"zero-cost"}
    assert all(estimate.low is None for estimate in first)


def test_the_rank_of_a_network_does_not_depend_on_what_was_scored_since(new_run, scored):
    run = new_run(method="zero-cost")
    one = judge(run)
    smallest, largest = SPACE.smallest(), SPACE.largest()
    before = one.estimate(smallest)
    assert one.estimate(largest).value > before.value
    assert one.estimate(smallest) == before
    assert one.values([largest, smallest]).tolist() == [one.estimate(largest).value, before.value]


def test_what_cannot_be_scored_is_left_out_of_the_pool_and_noted(new_run, monkeypatch):
    run, watch = new_run(method="zero-cost"), Silent()
    first = pool_of(run.settings)[0][0]

    def picky(arch, *, seed=0, names=None):
        if arch == first:
            raise MeasurementError("no finite value")
        return fake_proxies(arch)

    monkeypatch.setattr(zero_cost, "score_all", picky)
    one = judge(run, watch)
    assert any("left out of the pool: random" in note and "no finite value" in note for note in watch.notes)
    one.estimate(SPACE.largest())
    with pytest.raises(MeasurementError):
        one.estimate(first)


def test_the_proxies_that_count_are_all_asked_for(new_run, monkeypatch):
    asked = set()

    def score_all(arch, *, seed=0, names=None):
        asked.add((seed, tuple(names)))
        return fake_proxies(arch)

    monkeypatch.setattr(zero_cost, "score_all", score_all)
    judge(new_run(method="zero-cost"))
    assert asked == {(0, NAMES)}


def test_a_table_predicts_with_an_interval_and_says_from_what(new_run, tmp_path):
    run = new_run(method="table", table=str(label_table(tmp_path / "table.json")))
    watch = Silent()
    one = judge(run, watch)
    small, large = one.estimate(SPACE.smallest()), one.estimate(SPACE.largest())
    assert small.low < small.value < small.high
    assert large.value > small.value
    assert one.immediate
    assert one.values([SPACE.smallest(), SPACE.largest()]) == pytest.approx([small.value, large.value])
    assert one.origin.startswith("accuracy in percent, predicted from 16 EfficientViTs trained on none")
    assert watch.notes == [f"score: {one.origin}"]


def test_a_run_keeps_its_judge(new_run, tmp_path, monkeypatch):
    """A table of more networks, as a newer version may bring, gives scores that do not compare."""
    from evit_nas.accuracy.table import LabelTable

    path = label_table(tmp_path / "table.json")
    run, watch = new_run(method="table", table=str(path)), Silent()
    judge(run)
    judge(run, watch)
    assert watch.notes == []
    table = LabelTable.load(path)
    table.model_copy(update={"networks": table.networks[:-1]}).save(path)
    with pytest.raises(RunError, match=r"would not compare: they were .* 16 Eff.* here they would be .* 15 Eff"):
        judge(run)


def test_a_table_of_as_many_networks_with_other_results_is_another_judge(new_run, tmp_path):
    """As one that was exported again after other trainings."""
    from evit_nas.accuracy.table import LabelTable

    path = label_table(tmp_path / "table.json")
    run, before = new_run(method="table", table=str(path)), path.read_text()
    judge(run)
    table = LabelTable.load(path)
    first, *others = table.networks
    better = first.trainings[0].score.model_copy(update={"cross_entropy": 0.5, "accuracy": 0.9})
    trained = first.trainings[0].model_copy(update={"score": better})
    networks = (first.model_copy(update={"trainings": (trained,)}), *others)
    table.model_copy(update={"networks": networks}).save(path)
    with pytest.raises(RunError, match=r"what they are learned from had the digest .* here it has .* Bring it back"):
        judge(run)
    path.write_text(before)
    assert judge(run).origin


def test_a_run_of_an_earlier_version_goes_on_with_what_its_judge_learns_from_now(new_run, tmp_path):
    run = new_run(method="table", table=str(label_table(tmp_path / "table.json")))
    judge(run)
    with open_study(run) as record:
        StudyAttributes(record).learned = ""
    assert judge(run).digest
    with open_study(run) as record:
        assert StudyAttributes(record).learned == judge(run).digest


def test_every_method_has_a_judge():
    methods = AccuracySettings.model_fields["method"].annotation.__args__
    assert set(judges.JUDGES) == set(methods)
