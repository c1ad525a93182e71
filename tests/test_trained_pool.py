"""A pool of trained networks: drawn once, kept, gone on with, and never mixed with another one."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from evit_nas.accuracy import zero_cost
from evit_nas.accuracy.table import LabelTable
from evit_nas.config import Conditions, ShortRecipe
from evit_nas.errors import EvitNasError, LostLink, MeasurementError, RunError
from evit_nas.files import lock
from evit_nas.latency import Unit
from evit_nas.network.cost import cost
from evit_nas.searching.labelling import labels as labels_module
from evit_nas.searching.labelling import pool
from evit_nas.searching.labelling.pool import PoolSettings, TrainedPool
from evit_nas.space import SearchSpace
from tests.fakes import FakeDevice, fake_proxies
from tests.searches import Silent
from tests.test_labelling import DATA, Trainer

ARCHS = 16


def settings_of(**changes) -> PoolSettings:
    fields = {
        "data": "digits",
        "space": SearchSpace.load("efficientvit-tiny"),
        "conditions": Conditions(device="fake"),
        "slices_ms": (0.6, 1.2),
        "archs": ARCHS,
        "recipe": ShortRecipe(images=20, cycles=(1,)),
        "seed": 0,
    }
    return PoolSettings.model_validate(fields | changes)


@pytest.fixture(autouse=True)
def trainer(monkeypatch):
    FakeDevice.calls.clear()
    trainer = Trainer()
    monkeypatch.setattr(labels_module, "_train", lambda *args: trainer(*args))
    monkeypatch.setattr(labels_module, "worker_pool", ThreadPoolExecutor)
    monkeypatch.setattr(labels_module, "end", lambda pool: pool.shutdown(cancel_futures=True))
    monkeypatch.setattr(pool, "load_dataset", lambda *args, **more: DATA)
    monkeypatch.setattr(zero_cost, "score_all", fake_proxies)
    return trainer


def train(folder, watch=None, seeds=1, workers=1, **changes) -> LabelTable:
    settings = settings_of(**changes)
    return TrainedPool(folder, settings).train(FakeDevice(settings.conditions), workers, watch or Silent(), seeds)


def test_the_table_holds_the_pool_with_latency_proxies_and_labels(tmp_path):
    table = train(tmp_path)
    assert LabelTable.load(tmp_path / "table.json") == table
    assert len({network.arch.key for network in table.networks}) == len(table.networks) == ARCHS
    for network in table.networks:
        assert network.latency_ms == pytest.approx(cost(network.arch).macs / 1e6)
        assert network.proxies == fake_proxies(network.arch)
    middles = [min((0.6, 1.2), key=lambda middle: abs(ms / middle - 1)) for ms in table.latency_ms[:ARCHS]]
    assert middles == [0.6, 1.2] * (ARCHS // 2)  # in turns, so that a part of the table is balanced too


def test_a_quarter_is_trained_with_a_second_seed_and_right_away(tmp_path, trainer):
    table = train(tmp_path)
    seeds = [[training.seed for training in network.trainings] for network in table.networks]
    assert seeds == [[0, 1]] * 4 + [[0]] * 12
    first = [arch.key for arch in table.archs[:4]]
    assert trainer.trained[:8] == [key for key in first for _ in range(2)]


def test_further_seeds_come_when_every_network_has_been_trained(tmp_path, trainer):
    once = train(tmp_path)
    trained = len(trainer.trained)
    thrice = train(tmp_path, seeds=3)
    assert [[training.seed for training in network.trainings] for network in thrice.networks] == [[0, 1, 2]] * ARCHS
    assert thrice.archs == once.archs
    keys = [arch.key for arch in once.archs]
    assert trainer.trained[trained:] == keys[4:] + keys  # what had two seeds already is not trained again


def test_the_papers_networks_that_are_not_too_slow_belong_to_it(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "SLOWEST_PRESET", 8.0)
    table = train(tmp_path)
    assert ARCHS < len(table.networks) < ARCHS + 6
    assert max(table.latency_ms) <= 8 * 1.2


def test_what_is_there_is_gone_on_with(tmp_path, trainer, monkeypatch):
    whole = train(tmp_path / "whole")
    monkeypatch.setattr(FakeDevice, "machine", {"processor": "new"})  # nothing known of it: the same pool again

    def dies(arch, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zero_cost, "score_all", dies)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "again")
    trained, measured = len(trainer.trained), len(FakeDevice.calls)
    found = train(tmp_path / "again")
    assert found == whole
    assert len(trainer.trained) == trained
    assert len(FakeDevice.calls) == measured


def test_architectures_that_were_found_survive_an_interruption(tmp_path, monkeypatch):
    measured, real = [], FakeDevice.measure

    def stopped(self, subject, protocol):
        if len(measured) == 20:
            raise KeyboardInterrupt
        measured.append(real(self, subject, protocol))
        return measured[-1]

    with monkeypatch.context() as patch:
        patch.setattr(FakeDevice, "measure", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path)
    found = [json.loads(line)["arch"] for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert 0 < len(found) < ARCHS

    def quieter(self, subject, protocol):
        latency, samples = real(self, subject, protocol)
        return latency.by(Unit(latency.canary_ms / 2, 0.005)), samples

    monkeypatch.setattr(FakeDevice, "measure", quieter)
    table = train(tmp_path)
    assert len(table.networks) == ARCHS
    for network in table.networks:  # a better yardstick divides no pool
        assert network.latency_ms == pytest.approx(cost(network.arch).macs / 1e6)
    kept = [arch.model_dump(mode="json") for arch in table.archs]
    assert all(arch in kept for arch in found)


@pytest.mark.parametrize("workers", [0, 1])
def test_two_processes_do_not_write_one_folder(tmp_path, workers):
    train(tmp_path)
    with lock(tmp_path), pytest.raises(RunError, match=f"is being written by process {os.getpid()} on .*Wait for it"):
        train(tmp_path, workers=workers)
    train(tmp_path, workers=workers)


def test_judged_so_far_it_says_nothing_of_trainings(tmp_path):
    whole, watch = train(tmp_path), Silent()
    assert train(tmp_path, watch, workers=0) == whole
    assert watch.notes == []


def test_only_trainings_that_are_asked_for_count_as_done(tmp_path):
    train(tmp_path, seeds=3)
    (tmp_path / "labels.jsonl").write_text("".join((tmp_path / "labels.jsonl").read_text().splitlines(True)[1:]))
    watch = Silent()
    train(tmp_path, watch)
    assert ("training", ARCHS + 4, ARCHS + 4) in watch.steps


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr(pool, "__version__", "0.0.0"),
        lambda patch: patch.setattr(pool, "version", lambda package: "0.0.0"),
        lambda patch: patch.delitem(zero_cost.PROXIES, next(iter(zero_cost.PROXIES))),
    ],
    ids=["evit-nas", "torch", "proxies"],
)
def test_proxies_of_other_versions_or_other_names_are_scored_again(tmp_path, monkeypatch, change):
    train(tmp_path)
    change(monkeypatch)
    monkeypatch.setattr(zero_cost, "score_all", lambda arch, **options: {"new": 1.0})
    assert all(network.proxies == {"new": 1.0} for network in train(tmp_path).networks)


@pytest.mark.parametrize(
    ("name", "other"),
    [("data", "procedural"), ("slices_ms", (0.6, 1.1)), ("archs", 20), ("seed", 1), ("recipe", ShortRecipe())],
)
def test_a_folder_with_another_pool_is_refused_naming_what_is_other(tmp_path, name, other):
    train(tmp_path)
    TrainedPool(tmp_path, settings_of())
    with pytest.raises(RunError, match=rf"holds another pool, with other {name}\. Give the same options.*--out"):
        TrainedPool(tmp_path, settings_of(**{name: other}))


def test_a_network_without_finite_proxies_stays_in_the_table_without_them(tmp_path, monkeypatch):
    def picky(arch, **options):
        if arch.stages[0].mixer == "linear":
            raise MeasurementError("no finite value")
        return fake_proxies(arch)

    monkeypatch.setattr(zero_cost, "score_all", picky)
    watch = Silent()
    table = train(tmp_path, watch)
    without = [network for network in table.networks if not network.proxies]
    assert without
    assert all(network.arch.stages[0].mixer == "linear" for network in without)
    assert sum("without proxies" in note for note in watch.notes) == len(without)

    monkeypatch.setattr(zero_cost, "score_all", fake_proxies)
    assert all(network.proxies for network in train(tmp_path).networks)  # a failure is not remembered


def test_a_paper_network_that_cannot_be_measured_costs_nobody_the_pool(tmp_path, monkeypatch):
    real = FakeDevice.measure

    def picky(self, subject, protocol):
        if protocol.visits > 1:
            raise MeasurementError("took too long", "timeout")
        return real(self, subject, protocol)

    monkeypatch.setattr(FakeDevice, "measure", picky)
    watch = Silent()
    assert len(train(tmp_path, watch).networks) == ARCHS
    assert "left out: m0: took too long" in watch.notes


def test_a_lost_link_ends_it_and_no_pool_is_kept_without_the_papers_networks(tmp_path, monkeypatch):
    real = FakeDevice.measure

    def lost(self, subject, protocol):
        if protocol.visits > 1:
            raise LostLink("the board does not answer")
        return real(self, subject, protocol)

    monkeypatch.setattr(FakeDevice, "measure", lost)
    with pytest.raises(LostLink, match="does not answer"):
        train(tmp_path)
    assert not (tmp_path / "pool.json").exists()


def test_a_pool_of_which_nothing_can_be_trained_is_an_error(tmp_path, monkeypatch):
    def hopeless(*args):
        raise MeasurementError("the loss is not finite")

    monkeypatch.setattr(labels_module, "_train", hopeless)
    with pytest.raises(EvitNasError, match="no network could be trained"):
        train(tmp_path)


def test_the_settings_can_be_read_by_people(tmp_path):
    train(tmp_path)
    assert "slices_ms:\n- 0.6\n- 1.2\n" in (tmp_path / "pool.yaml").read_text()
    assert json.loads(json.dumps(settings_of().model_dump(mode="json")))["archs"] == ARCHS
