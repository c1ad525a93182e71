"""Short training as a score: who goes on, who may enter a front, and that nothing is trained twice."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from evit_nas.accuracy import RungEstimate, ShortScore
from evit_nas.config import AccuracySettings
from evit_nas.errors import Infeasible, MeasurementError, UsageError
from evit_nas.latency import DEVICES
from evit_nas.network.cost import cost
from evit_nas.report.page import write_report
from evit_nas.searching import evaluate, halving, trials
from evit_nas.searching.attributes import StudyAttributes
from evit_nas.searching.certify import FOUND
from evit_nas.searching.findings import find, nearest
from evit_nas.searching.halving import REDUCTION, Halving
from evit_nas.searching.labelling import labels
from evit_nas.searching.labelling.labels import Job, Label
from evit_nas.searching.record import Known, load_front
from evit_nas.searching.replay import replay
from evit_nas.searching.storage import open_study
from evit_nas.searching.study import Search
from tests.fakes import FakeDevice
from tests.searches import SPACE, Died, Silent, known_device, new_run, outcome, search

WISH = {"method": "short", "data": "digits", "scheduler": "asha", "recipe": {"images": 20, "cycles": [1, 2, 6]}}


@pytest.fixture
def trained(monkeypatch):
    """Stands for training: a loss that follows from the network, and a record of what was asked."""
    jobs: list[Job] = []

    def train(data, digest, recipe, job, checkpoint):
        jobs.append(job)
        heads = sum(stage.heads * stage.qk_dim for stage in job.arch.stages)
        loss = 3 - 0.1 * cost(job.arch).params ** 0.2 - heads / 1000 - 0.1 * job.rung
        curve = (loss,) * recipe.end_of(job.rung)
        score = ShortScore(accuracy=1 / (1 + loss), cross_entropy=loss, curve=curve)
        return Label(arch=job.arch, seed=job.seed, score=score, seconds=1.0)

    class Here:
        """Calls at once what it is given."""

        def submit(self, function, *args):
            future = evaluate.Future()
            future.set_result(function(*args))
            return future

    monkeypatch.setitem(DEVICES, "fake", FakeDevice)
    monkeypatch.setattr(labels, "_train", train)
    monkeypatch.setattr(evaluate, "worker_pool", lambda count, avoid: Here())
    monkeypatch.setattr(evaluate, "end", lambda pool: None)
    return jobs


def done(loss):
    """A network of the first slice that was trained for one rung."""
    return RungEstimate(value=0, method="short", slice=0, losses=(loss,), unfinished=0.5)


def test_about_a_third_of_a_slice_goes_on_and_the_first_one_always_does():
    rng, halving = random.Random(0), Halving()

    def goes_on(loss):
        found = halving.goes_on(0, 0, loss)
        halving.count(done(loss))
        return found

    went_on = [goes_on(rng.random()) for _ in range(300)]
    assert went_on[0]
    assert sum(went_on[30:]) == pytest.approx(270 / REDUCTION, rel=0.3)


def test_networks_compete_with_those_of_their_latency_and_their_rung_alone():
    halving = Halving([done(1.0)])
    assert halving.goes_on(1, 0, 2.0)
    assert halving.goes_on(0, 1, 3.0)
    assert not halving.goes_on(0, 0, 2.0)


def test_what_comes_later_does_not_matter_and_what_came_before_is_taken_from_the_record():
    halving = Halving([done(1.0), done(0.5), done(2.0)])
    assert not halving.goes_on(0, 0, 0.7)
    assert halving.goes_on(0, 0, 0.4)


def test_only_what_was_trained_to_the_end_enters_the_front(tmp_path, trained):
    run = new_run(tmp_path / "run", accuracy=WISH, trials=30)
    search(run)
    with open_study(run) as study:
        recorded, known = study.get_trials(), Known(study)
    stopped = [t for t in recorded if t.constraints["unfinished"] > 0]
    whole = [t for t in recorded if t.constraints["unfinished"] == 0]
    assert stopped
    assert whole
    assert all(len(t.user_attrs["trained"]["losses"]) == 3 for t in whole)
    assert not {t.user_attrs["key"] for t in stopped} & set(known.candidates)
    to_the_end = {job.arch.key for job in trained if job.rung == 2}
    assert {member.arch.key for member in load_front(run).members} <= to_the_end


def test_what_is_beyond_the_budget_is_trained_for_the_first_rung_alone(tmp_path, trained):
    run = new_run(tmp_path / "run", accuracy=WISH, budget_ms=0.5, trials=20)
    search(run)
    with open_study(run) as study:
        beyond = [t for t in study.get_trials() if t.constraints["latency_ms"] > 0.05]
    assert beyond
    assert all(len(t.user_attrs["trained"]["losses"]) == 1 for t in beyond)


def test_no_rung_is_trained_twice_and_a_search_that_dies_comes_to_the_same(tmp_path, trained, monkeypatch):
    whole = search(new_run(tmp_path / "whole", accuracy=WISH))
    once = [(job.arch.key, job.rung) for job in trained]
    assert len(once) == len(set(once))
    trained.clear()
    run, measure, lives = new_run(tmp_path / "run", accuracy=WISH), FakeDevice.measure, [9, 7, 5, 1000]

    def mortal(self, *args):
        lives[0] -= 1
        if lives[0] < 0:
            lives.pop(0)
            raise Died
        return measure(self, *args)

    monkeypatch.setattr(FakeDevice, "measure", mortal)
    while len(lives) > 1:
        with pytest.raises(Died):
            search(run)
    search(run)
    assert outcome(run).trials == whole.trials
    assert outcome(run).front == whole.front
    written = [line["id"] for line in labels.Journal(run.path / "labels" / "labels.jsonl").read()]
    assert len(written) == len(set(written))


def test_what_fails_late_does_not_make_a_resumed_search_another_one(tmp_path, trained, monkeypatch):
    """Some networks diverge in the second rung; some are trained, and then cannot be measured."""
    train, measure = labels._train, FakeDevice.measure

    def diverging(data, digest, recipe, job, checkpoint):
        if job.rung == 1 and job.arch.key[0] in "0123456":
            raise MeasurementError("the loss is not finite")
        return train(data, digest, recipe, job, checkpoint)

    def picky(self, subject, protocol):
        if subject.key[-1] in "0123456" and subject.key not in spared:
            raise MeasurementError("the graph is refused")
        return measure(self, subject, protocol)

    spared = {arch.key for arch in (SPACE.smallest(), SPACE.largest())}
    monkeypatch.setattr(labels, "_train", diverging)
    monkeypatch.setattr(FakeDevice, "measure", picky)

    class Dying(Silent):
        def update(self, status):
            if status.done in ends:
                ends.remove(status.done)
                raise Died

    found = []
    for name, ends in (("whole", []), ("run", [*range(3, 40, 9)])):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache of {name}"))
        known_device()
        run = new_run(tmp_path / name, accuracy=WISH, trials=40)
        while ends:
            with pytest.raises(Died):
                Search(run, Dying()).run()
        found.append(search(run))
    whole, interrupted = found
    failed = [attributes for _, state, *_, attributes in whole.trials if state.name == "FAIL"]
    assert {"the loss is not finite", "the graph is refused"} == {one["reason"].split(": ")[1] for one in failed}
    assert any("trained" in one for one in failed)  # as those were held against that came after it
    assert interrupted.trials == whole.trials


def test_a_replay_trains_as_far_as_the_trial_was_trained_and_writes_nothing_to_the_run(tmp_path, trained):
    run = new_run(tmp_path / "run", accuracy=WISH, trials=20)
    search(run)
    with open_study(run) as study:
        rungs = {len(t.user_attrs["trained"]["losses"]): t.number for t in study.get_trials()}
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert {1, 3} <= rungs.keys()
    for count, number in rungs.items():
        trained.clear()
        assert replay(run, number, Silent()).holds
        assert [job.rung for job in trained] == [*range(count)]
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("then", "now", "shift", "holds"),
    [
        ("cpu", "cpu", 0.001, False),
        ("H200", "H200", 0.001, True),
        ("H200", "cpu", 0.001, True),
        ("cpu", "H200", 0.001, True),
        ("H200", "H200", 0.3, False),
    ],
)
def test_a_score_that_was_trained_on_a_gpu_is_confirmed_within_what_chance_does(
    tmp_path, trained, monkeypatch, then, now, shift, holds
):
    train = labels._train

    def trains(device, shift):
        def trained_there(*args):
            label = train(*args)
            score = label.score.model_copy(update={"accuracy": label.score.accuracy + shift})
            return label.model_copy(update={"device": device, "score": score})

        monkeypatch.setattr(labels, "_train", trained_there)

    trains(then, 0)
    run = new_run(tmp_path / "run", accuracy=WISH, trials=4, budget_ms=3)
    search(run)
    trains(now, shift)
    check, *_ = replay(run, 0, Silent()).checks
    assert check.holds == holds
    assert check.name == ("score" if then == now == "cpu" else f"score (trained on {then}, now on {now})")


def test_a_report_takes_the_latency_of_what_was_stopped_early_too(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(trials, "DOUBT_EVERY", 1)
    known_device()
    run = new_run(tmp_path / "run", accuracy=WISH, trials=20)
    search(run)
    found = find(run)
    assert len(found.measured) < len(found.forecasts[0].measured_ms) == 20
    assert len(found.measured) + len(found.predicted) + found.stopped == found.front.done  # each is counted once
    assert len(found.unfinished) == found.stopped


def test_what_was_stopped_early_and_never_measured_is_not_shown_with_the_score_of_its_first_rung(tmp_path, trained):
    known_device()
    run = new_run(tmp_path / "run", accuracy=WISH, trials=20)
    search(run)
    found = find(run)
    to_the_end = {job.arch.key for job in trained if job.rung == 2}
    assert {one.arch.key for one in found.predicted} <= to_the_end
    assert len(found.measured) + len(found.predicted) + found.stopped == found.front.done
    assert found.stopped > len(found.unfinished)


def test_a_budget_that_nothing_keeps_is_said_with_the_nearest_though_all_trainings_were_stopped(tmp_path, trained):
    run = new_run(tmp_path / "run", accuracy=WISH, trials=8, budget_ms=0.33)
    with pytest.raises(Infeasible) as error:
        search(run)
    assert f"nothing keeps the budget of 0.33 ms (median): the fastest architecture {FOUND} takes" in str(error.value)
    found = find(run)
    assert found.measured == []
    fastest_ms = min(one.latency.median_ms for one in found.unfinished)
    assert nearest(found).latency.median_ms == fastest_ms
    assert f"{fastest_ms:.2f} ms" in str(error.value)
    page = write_report(run).read_text()
    assert f"The fastest one measured takes {fastest_ms:.2f}&nbsp;ms" in page
    assert "8 stopped early in training" in page


def test_images_that_have_changed_are_refused_before_scores_of_both_are_mixed(tmp_path, trained, monkeypatch):
    run, load = new_run(tmp_path / "run", accuracy=WISH, trials=6), halving.load_dataset
    search(run)
    trained.clear()
    monkeypatch.setattr(halving, "load_dataset", lambda *args: replace(load(*args), digest="other"))
    with pytest.raises(UsageError, match=r"the images of digits have changed: .* these other\. Bring them back"):
        search(run)
    with pytest.raises(UsageError, match="the images of digits have changed"):
        replay(run, 0, Silent())
    assert trained == []


def test_a_run_of_an_earlier_version_which_noted_no_images_goes_on(tmp_path, trained):
    run = new_run(tmp_path / "run", accuracy=WISH, trials=6)
    found = search(run)
    with open_study(run) as study:
        StudyAttributes(study).images = ""
    trained.clear()
    assert search(run).trials == found.trials
    assert trained == []


def test_without_a_scheduler_every_candidate_is_trained_to_the_end_at_once(tmp_path, trained):
    run = new_run(tmp_path / "run", accuracy=WISH | {"scheduler": "none"}, trials=10)
    search(run)
    assert {job.rung for job in trained} == {2}


def test_halving_needs_rungs_and_training_needs_data():
    with pytest.raises(ValueError, match="needs a recipe with several cycles"):
        AccuracySettings.model_validate(WISH | {"recipe": {}})
    with pytest.raises(ValueError, match="add --data"):
        AccuracySettings.model_validate(WISH | {"data": None})
