"""Which networks are trained for a predictor: the same however often it is interrupted, and no more than it takes."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import pytest

from evit_nas.accuracy import ShortScore
from evit_nas.config import Conditions, SearchSettings
from evit_nas.errors import EvitNasError, MeasurementError, UsageError
from evit_nas.network.cost import cost
from evit_nas.searching.labelling import adaptive, slices
from evit_nas.searching.labelling import labels as labels_module
from evit_nas.searching.labelling.adaptive import collect_labels
from evit_nas.searching.labelling.labels import Label
from evit_nas.searching.labelling.slices import slice_of
from evit_nas.space import SearchSpace
from tests.fakes import FakeDevice
from tests.searches import Died, Silent

SPACE = SearchSpace.load("efficientvit-tiny")
BUDGET_MS = 1.2
DATA = SimpleNamespace(name="none", digest="0", classes=range(10), train=range(20_000), val=range(5000))
LABELS = 18


class Trainer:
    """Stands for `_train`: how well a network does follows from its attention and size."""

    def __init__(self):
        self.trained = []

    def __call__(self, data, digest, recipe, job, checkpoint):
        self.trained.append(job.arch.key)
        arch = job.arch
        loss = 2 - 0.02 * cost(arch).params ** 0.25 - 0.1 * sum(stage.mixer == "softmax" for stage in arch.stages)
        score = ShortScore(accuracy=1 - loss / 3, cross_entropy=loss, curve=(loss,) * recipe.epochs)
        return Label(arch=arch, seed=job.seed, score=score, seconds=1.0)


class OneAtATime(ThreadPoolExecutor):
    """A process that dies in a training dies as a whole."""

    def submit(self, function, *args):
        future = super().submit(function, *args)
        if isinstance(future.exception(), Died):
            raise Died
        return future


@pytest.fixture
def trainer(monkeypatch):
    FakeDevice.calls.clear()
    trainer = Trainer()
    monkeypatch.setattr(labels_module, "_train", lambda *args: trainer(*args))
    monkeypatch.setattr(labels_module, "worker_pool", OneAtATime)
    monkeypatch.setattr(labels_module, "end", lambda pool: pool.shutdown(cancel_futures=True))
    monkeypatch.setattr(adaptive, "load_dataset", lambda *args, **more: DATA)
    monkeypatch.setattr(adaptive, "CANDIDATES", 60)
    return trainer


def collected(folder: Path, watch: Silent | None = None, budget_ms: float = BUDGET_MS, **wish):
    """The table of trained networks, and their keys in its order."""
    accuracy = {"method": "predictor", "data": "none", "labels": LABELS} | wish
    target = {"conditions": {"device": "fake"}, "budget_ms": budget_ms}
    fields = {"space_name": "x", "space": SPACE, "targets": [target], "accuracy": accuracy}
    device = FakeDevice(Conditions(device="fake"))
    table = collect_labels(folder / "labels", SearchSettings.model_validate(fields), device, watch or Silent())
    return table, [arch.key for arch in table.archs]


def test_a_budget_just_above_the_fastest_network_is_sliced_where_there_are_networks(trainer, tmp_path):
    fastest_ms = cost(SPACE.smallest()).macs / 1e6
    watch = Silent()
    table, keys = collected(tmp_path, watch, budget_ms=1.8 * fastest_ms, labels=10)
    assert len(keys) >= 8
    assert (table.latency_ms >= fastest_ms).all()
    (looked_for,) = [note for note in watch.notes if note.startswith("looking for")]
    middles_ms = [float(ms.removesuffix(" ms")) for ms in looked_for.split(" of ")[1].split(", ")]
    assert min(middles_ms) > fastest_ms


def test_a_budget_that_little_keeps_still_leaves_a_choice_of_candidates(trainer, tmp_path):
    watch = Silent()
    collected(tmp_path, watch, budget_ms=1.06 * cost(SPACE.smallest()).macs / 1e6, labels=8)
    assert not [note for note in watch.notes if "cannot be predicted well" in note]


def test_slices_that_cannot_be_filled_do_not_end_the_search(trainer, tmp_path, monkeypatch):
    whole = slices.sliced_pool

    def few(*args, keep, **more):
        for sliced in whole(*args, **more)[:8]:
            keep(sliced)
        raise slices.TooFew("found 8")

    monkeypatch.setattr(adaptive, "sliced_pool", few)
    watch = Silent()
    _, keys = collected(tmp_path, watch, labels=20)
    assert len(keys) > 8
    assert "the space has few architectures of these latencies: 8 were found" in watch.notes


@pytest.fixture
def restless(monkeypatch):
    """The top never stands, so that as many are trained as are asked for."""
    monkeypatch.setattr(adaptive, "STANDS", 100)


def test_as_many_as_asked_for_are_trained_once_each_and_lie_below_the_budget(trainer, restless, tmp_path):
    watch = Silent()
    table, keys = collected(tmp_path, watch)
    assert len(keys) == LABELS
    assert sorted(trainer.trained) == sorted(set(keys))
    assert watch.steps[-1] == ("trained on none", LABELS, LABELS)
    slices_ms = [share * BUDGET_MS for share in adaptive.SLICES]
    for network in table.networks:
        assert network.latency_ms == cost(network.arch).macs / 1e6  # as measured, whatever was predicted
        assert slice_of(cost(network.arch).macs / 1e6, slices_ms) or network.latency_ms < BUDGET_MS
    start = [slice_of(ms, slices_ms) for ms in table.latency_ms[: round(adaptive.START * LABELS)]]
    assert max(map(start.count, slices_ms)) - min(map(start.count, slices_ms)) <= 1


def test_later_ones_are_better_than_those_it_begins_with(trainer, restless, tmp_path):
    """They are what the predictor believes in."""
    table, _ = collected(tmp_path)
    start = round(adaptive.START * LABELS)
    losses = [network.trainings[0].score.cross_entropy for network in table.networks]
    assert sum(losses[start:]) / len(losses[start:]) < sum(losses[:start]) / start


def test_it_ends_when_the_best_few_stand(trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(adaptive, "TOP", 1)
    monkeypatch.setattr(adaptive, "STANDS", 1)
    watch = Silent()
    _, keys = collected(tmp_path, watch, labels=60)
    assert len(keys) < 60
    assert f"the best 1 stand after {len(keys)} trained networks" in watch.notes


def test_interrupted_at_any_training_it_trains_the_very_same(trainer, restless, tmp_path, monkeypatch):
    whole, keys = collected(tmp_path / "whole")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    trainer.trained.clear()
    train = trainer.__call__
    deaths = 0
    while True:
        calls = itertools.count(1)

        def mortal(*args, calls=calls):
            if next(calls) == 5:
                raise Died
            return train(*args)

        monkeypatch.setattr(labels_module, "_train", mortal)
        try:
            table, _ = collected(tmp_path / "mortal")
        except Died:
            deaths += 1
        else:
            break
    assert deaths == 4
    assert table == whole
    assert sorted(trainer.trained) == sorted(keys)


def test_a_finished_table_is_taken_as_it_is(trainer, tmp_path):
    table, _ = collected(tmp_path)
    trainer.trained.clear()
    FakeDevice.calls.clear()
    assert collected(tmp_path)[0] == table
    assert trainer.trained == []
    assert FakeDevice.calls == []


def test_images_that_have_changed_since_an_interruption_are_refused_and_nothing_is_trained_for_them(
    trainer, restless, tmp_path, monkeypatch
):
    collected(tmp_path)
    (tmp_path / "labels" / "table.json").unlink()  # as of a run that was interrupted
    trainer.trained.clear()
    monkeypatch.setattr(DATA, "digest", "1")
    with pytest.raises(UsageError, match=r"images of none have changed: .* the digest 0, these 1\. Bring them back"):
        collected(tmp_path)
    assert trainer.trained == []


def test_a_plan_of_an_earlier_version_which_names_no_images_is_gone_on_with(trainer, restless, tmp_path):
    table, _ = collected(tmp_path)
    (tmp_path / "labels" / "table.json").unlink()
    path = tmp_path / "labels" / "candidates.json"
    path.write_text(json.dumps({name: held for name, held in json.loads(path.read_text()).items() if name != "images"}))
    trainer.trained.clear()
    assert collected(tmp_path)[0] == table
    assert trainer.trained == []


def test_networks_that_another_run_trained_count_and_are_not_trained_again(trainer, restless, tmp_path):
    _, before = collected(tmp_path / "other", labels=12)
    trainer.trained.clear()
    watch = Silent()
    _, keys = collected(tmp_path / "run", watch, labels=LABELS, labels_from=[str(tmp_path / "other")])
    assert set(before) < set(keys)
    assert not set(trainer.trained) & set(before)
    assert len(trainer.trained) == LABELS - len(before)
    assert f"12 trained networks taken over from {tmp_path / 'other'}" in watch.notes


def test_networks_beyond_the_budget_are_not_taken_over(trainer, restless, tmp_path, monkeypatch):
    _, before = collected(tmp_path / "other", labels=12)
    monkeypatch.setattr(FakeDevice, "machine", {"processor": "another"})
    real = FakeDevice.measure

    def slower(self, subject, protocol):
        latency, samples = real(self, subject, protocol)
        return latency.model_copy(update={"median_ms": latency.median_ms * 1.8}), samples

    monkeypatch.setattr(FakeDevice, "measure", slower)
    table, keys = collected(tmp_path / "run", labels_from=[str(tmp_path / "other")])
    assert max(table.latency_ms) <= BUDGET_MS
    assert 0 < len(set(before) & set(keys)) < len(before)


def test_a_run_without_trained_networks_cannot_give_any(trainer, tmp_path):
    with pytest.raises(UsageError, match=r"has no trained networks.*--accuracy predictor"):
        collected(tmp_path / "run", labels_from=[str(tmp_path)])


def first_two_diverge(trainer, monkeypatch) -> list[str]:
    """Keys of the networks whose training diverges, as they come."""
    failing: list[str] = []

    def picky(data, digest, recipe, job, checkpoint):
        if len(failing) < 2:
            failing.append(job.arch.key)
            raise MeasurementError("the loss is not finite")
        return trainer(data, digest, recipe, job, checkpoint)

    monkeypatch.setattr(labels_module, "_train", picky)
    return failing


def test_what_cannot_be_trained_is_left_out_and_others_come_instead(trainer, restless, tmp_path, monkeypatch):
    failing = first_two_diverge(trainer, monkeypatch)
    watch = Silent()
    _, keys = collected(tmp_path, watch)
    assert len(keys) == LABELS
    assert not set(keys) & set(failing)
    assert sum("the loss is not finite" in note for note in watch.notes) == 2


@pytest.mark.parametrize(
    "predictor", [None, SimpleNamespace(check=SimpleNamespace(trusted=False))], ids=["none", "not trusted"]
)
def test_where_latencies_cannot_be_predicted_as_many_are_trained(trainer, restless, tmp_path, monkeypatch, predictor):
    monkeypatch.setattr(adaptive, "fit", lambda samples: predictor)
    watch = Silent()
    table, keys = collected(tmp_path, watch, labels=10)
    assert len(keys) == len(trainer.trained) == 10
    assert any("cannot be predicted well" in note for note in watch.notes)
    assert json.loads((tmp_path / "labels" / "candidates.json").read_text())["candidates"]
    assert all(network.latency_ms == cost(network.arch).macs / 1e6 for network in table.networks)


def test_what_was_measured_while_the_start_was_looked_for_makes_predictions_on_a_noisy_machine_too(
    trainer, tmp_path, monkeypatch
):
    """Noisy measurements do not enter the table that other runs read."""
    real = FakeDevice.measure

    def noisy(self, subject, protocol):
        latency, samples = real(self, subject, protocol)
        return latency.model_copy(update={"noise": "others at work"}), samples

    monkeypatch.setattr(FakeDevice, "measure", noisy)
    watch = Silent()
    collected(tmp_path, watch, labels=10)
    assert not any("cannot be predicted well" in note for note in watch.notes)
    assert len(json.loads((tmp_path / "labels" / "candidates.json").read_text())["candidates"]) == 60


def test_a_small_run_replaces_what_diverges_and_a_resume_does_not_train_it_again(trainer, tmp_path, monkeypatch):
    failing = first_two_diverge(trainer, monkeypatch)
    table, keys = collected(tmp_path, labels=8)
    assert len(keys) == 8
    assert not set(keys) & set(failing)

    monkeypatch.setattr(labels_module, "_train", lambda *args: trainer(*args))
    (tmp_path / "labels" / "table.json").unlink()
    trainer.trained.clear()
    watch = Silent()
    assert collected(tmp_path, watch, labels=8)[0] == table
    assert trainer.trained == []
    assert {f"left out: {key}: the loss is not finite" for key in failing} <= set(watch.notes)


def test_a_candidate_that_cannot_be_measured_is_replaced(trainer, tmp_path, monkeypatch):
    """Nothing is trained whose latency nobody knows."""
    real, refused = FakeDevice.measure, list[str]()

    def picky(self, subject, protocol):
        if (tmp_path / "labels" / "candidates.json").exists() and not refused:
            refused.append(subject.key)
            raise MeasurementError("took too long", "timeout")
        return real(self, subject, protocol)

    monkeypatch.setattr(FakeDevice, "measure", picky)
    watch = Silent()
    _, keys = collected(tmp_path, watch, labels=9)
    assert len(keys) == 9
    assert refused
    assert refused[0] not in trainer.trained
    assert f"left out: {refused[0]}: took too long" in watch.notes


def test_a_worker_that_dies_is_an_error_that_names_the_run_to_resume(trainer, tmp_path, monkeypatch):
    def dies(*args):
        raise BrokenProcessPool("died")

    monkeypatch.setattr(labels_module, "_train", dies)
    with pytest.raises(EvitNasError, match=f"go on with: evit-nas resume {tmp_path}, with fewer --workers"):
        collected(tmp_path, labels=8)


def test_too_few_labels_are_an_error(trainer, tmp_path, monkeypatch):
    def hopeless(*args):
        raise MeasurementError("the loss is not finite")

    monkeypatch.setattr(labels_module, "_train", hopeless)
    with pytest.raises(EvitNasError, match="only 0 networks could be trained, a predictor needs 8"):
        collected(tmp_path)


def test_the_candidates_are_drawn_once(trainer, restless, tmp_path):
    collected(tmp_path)
    path = tmp_path / "labels" / "candidates.json"
    plan = json.loads(path.read_text())
    assert len(plan["start"]) == round(adaptive.START * LABELS)
    assert len(plan["candidates"]) == 60
    (tmp_path / "labels" / "table.json").unlink()
    FakeDevice.calls.clear()
    collected(tmp_path)
    assert FakeDevice.calls == []
    assert json.loads(path.read_text()) == plan
