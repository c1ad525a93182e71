"""Every number once: the journal is the memo, and a worker that dies takes nobody else's number with it."""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ProcessPoolExecutor, wait
from contextlib import ExitStack
from multiprocessing import get_context

import pytest

from evit_nas.accuracy import zero_cost
from evit_nas.arch import ArchConfig
from evit_nas.config import Conditions
from evit_nas.errors import MeasurementError
from evit_nas.files import Journal
from evit_nas.searching import evaluate
from evit_nas.searching.evaluate import Evaluator
from evit_nas.space import SearchSpace
from tests.fakes import FakeDevice, Powered, fake_proxies

DEADLY = "EVIT_NAS_TEST_DEADLY"


def deadly_proxies(arch: ArchConfig, *, seed: int = 0, names: object = None) -> dict[str, float]:
    """Ends the process for one architecture; takes a while for the others, so that they are still at it then."""
    if arch.key == os.environ[DEADLY]:
        os._exit(1)
    time.sleep(0.2)
    return fake_proxies(arch)


def forked(count, avoid):
    return ProcessPoolExecutor(count, mp_context=get_context("fork"))


@pytest.fixture
def archs():
    space, rng = SearchSpace.load("efficientvit-tiny"), random.Random(0)
    return [space.sample(rng) for _ in range(5)]


@pytest.fixture
def new_evaluator(tmp_path):
    def create(workers=0):
        device = FakeDevice(Conditions(device="fake"))
        return Evaluator([device], Journal(tmp_path / "measurements.jsonl"), seed=0, workers=workers)

    return create


def test_a_number_is_computed_once_across_processes(new_evaluator, archs, monkeypatch):
    FakeDevice.calls.clear()
    monkeypatch.setattr(zero_cost, "score_all", fake_proxies)
    first = new_evaluator()
    found = [(first.latencies(arch), first.latencies(arch, strict=True), first.proxies(arch)) for arch in archs]
    assert len(FakeDevice.calls) == 2 * len(archs)

    monkeypatch.setattr(zero_cost, "score_all", None)
    again = new_evaluator()
    assert [(again.latencies(a), again.latencies(a, strict=True), again.proxies(a)) for a in archs] == found
    assert len(FakeDevice.calls) == 2 * len(archs)


def test_another_machines_figure_is_not_taken_for_this_ones(new_evaluator, archs, monkeypatch):
    FakeDevice.calls.clear()
    new_evaluator().latencies(archs[0])
    monkeypatch.setattr(FakeDevice, "machine", {"processor": "another"})
    new_evaluator().latencies(archs[0])
    assert len(FakeDevice.calls) == 2


@pytest.fixture
def mortal_workers(monkeypatch):
    monkeypatch.setattr(zero_cost, "score_all", deadly_proxies)
    monkeypatch.setattr(evaluate, "worker_pool", forked)


@pytest.mark.parametrize("place", [0, 1, 3])
def test_the_architecture_that_kills_its_worker_fails_and_no_other_one(
    new_evaluator, archs, mortal_workers, monkeypatch, place
):
    """All are begun together, so that its death breaks off what others are at."""
    monkeypatch.setenv(DEADLY, archs[place].key)
    failed = []
    with new_evaluator(workers=2) as evaluator:
        for arch in archs:
            evaluator.expect(arch)
        for arch in archs:
            try:
                assert evaluator.proxies(arch) == fake_proxies(arch)
            except MeasurementError as error:
                failed.append((arch, error.kind))
    assert failed == [(archs[place], "crashed")]


def test_what_is_expected_after_a_worker_died_is_scored_all_the_same(new_evaluator, archs, mortal_workers, monkeypatch):
    monkeypatch.setenv(DEADLY, archs[0].key)
    with new_evaluator(workers=1) as evaluator:
        evaluator.expect(archs[0])
        wait(evaluator._expected.values())
        evaluator.expect(archs[1])
        assert evaluator.proxies(archs[1]) == fake_proxies(archs[1])
        with pytest.raises(MeasurementError, match="a worker died"):
            evaluator.proxies(archs[0])


class Watching(Powered):
    """Notes for each measurement whether the search was at something else meanwhile."""

    def __init__(self, conditions, expected):
        super().__init__(conditions)
        self.expected, self.beside = expected, []

    def measure(self, subject, protocol):
        self.beside.append(not all(future.done() for future in self.expected.values()))
        return super().measure(subject, protocol)


@pytest.fixture
def busy(tmp_path, archs, mortal_workers, monkeypatch):
    """Makes evaluators of a device that watches, whose worker has more to do than a moment's work."""
    monkeypatch.setenv(DEADLY, "none")
    with ExitStack() as stack:

        def create(**conditions):
            evaluator = stack.enter_context(Evaluator([], Journal(tmp_path / "measurements.jsonl"), 0, workers=1))
            evaluator.devices = [Watching(Conditions(**conditions), evaluator._expected)]
            for arch in archs:
                evaluator.expect(arch)
            return evaluator

        yield create


@pytest.mark.parametrize(
    ("conditions", "beside"),
    [({"device": "cpu"}, True), ({"device": "cpu", "threads": 2}, False), ({"device": "cuda"}, False)],
    ids=["own time", "wall clock", "GPU"],
)
def test_nothing_of_the_search_runs_beside_a_measurement_whose_clock_would_count_it(busy, archs, conditions, beside):
    evaluator = busy(**conditions)
    evaluator.latencies(archs[0])
    assert evaluator.devices[0].beside == [beside]


def test_nothing_of_the_search_draws_power_beside_a_measurement_of_energy(busy, archs):
    evaluator = busy(device="cpu")
    assert evaluator.energy_mj(archs[0]) > 0
    assert evaluator.devices[0].beside == [False]
