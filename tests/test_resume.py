"""A search that is killed, at any moment and however often, comes to exactly what an uninterrupted one comes to."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from evit_nas.accuracy import zero_cost
from evit_nas.arch import ArchConfig
from evit_nas.latency import DEVICES
from evit_nas.runs import Run
from evit_nas.searching import certify, evaluate, feasibility, rounds, screening
from evit_nas.searching.forecast import Forecasts
from evit_nas.searching.record import journal_of
from evit_nas.space import SearchSpace
from tests.fakes import FakeDevice, fake_proxies
from tests.searches import Died, Outcome, at_every_write, known_device, label_table, new_run, outcome, search

KILLS = 4


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    monkeypatch.setitem(DEVICES, "fake", FakeDevice)
    monkeypatch.setattr(zero_cost, "score_all", fake_proxies)
    monkeypatch.setattr(evaluate, "worker_pool", lambda count, avoid: ThreadPoolExecutor(count))
    monkeypatch.setattr(evaluate, "end", lambda pool: pool.shutdown(cancel_futures=True))
    monkeypatch.setattr(screening, "CHILDREN", 60)
    monkeypatch.setattr(screening, "GENERATIONS", 2)


@pytest.fixture(scope="module")
def zero_cost_outcome(tmp_path_factory) -> Iterator[Outcome]:
    """An uninterrupted search without workers."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setitem(DEVICES, "fake", FakeDevice)
        patch.setattr(zero_cost, "score_all", fake_proxies)
        yield search(new_run(folder / "run"))


def on_disk(folder: Path) -> dict[str, bytes]:
    """What a process finds that goes on; whether another one holds the lock is the system's to say."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# every tenth place is a sample of what CI does at each
@pytest.mark.parametrize("every", [10, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_before_or_after_any_write_a_search_goes_on_to_the_same(tmp_path, monkeypatch, every):
    """The run and the cache folder are copied there, and a search goes on from each copy."""
    for module in (certify, feasibility, rounds):
        monkeypatch.setattr(module, "PRESETS", ("m0",))  # fewer writes of the same kinds
    now = tmp_path / "now"
    begun = new_run(now / "run", trials=7, pool=4, budget_ms=1.5)  # with a round that a sampler proposes
    (now / "cache").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(now / "cache"))
    left, copies = [on_disk(now)], list[Path]()

    def copied() -> None:
        if (found := on_disk(now)) != left[-1]:
            left[:] = [found]
            copies.append(shutil.copytree(now, tmp_path / f"write {len(copies)}"))

    with at_every_write(copied):
        whole = search(begun)
    assert len(copies) >= len(whole.measured) + len(whole.trials) + len(whole.front.members)  # each of them is a write
    assert len(whole.front.members) >= 2
    assert {state.name for _, state, *_ in whole.trials} == {"COMPLETE"}
    assert len(whole.measured) == len(set(whole.measured))
    written = on_disk(begun.front_folder)
    for copy in copies[::every]:
        monkeypatch.setenv("XDG_CACHE_HOME", str(copy / "cache"))
        run = Run.open(copy / "run")
        assert search(run) == whole, copy.name
        assert on_disk(run.front_folder) == written


def mortal(monkeypatch: pytest.MonkeyPatch, lifetime: int) -> Iterator[None]:
    """From now on a process dies at its `lifetime`-th measurement or score; each turn is a new process."""
    measure, score = FakeDevice.measure, zero_cost.score_all
    while True:
        calls = itertools.count(1)

        def once(function, calls=calls):
            def called(*args, **kwargs):
                if next(calls) == lifetime:
                    raise Died
                return function(*args, **kwargs)

            return called

        monkeypatch.setattr(FakeDevice, "measure", once(measure))
        monkeypatch.setattr(zero_cost, "score_all", once(score))
        yield


def searched_by_mortals(run: Run, monkeypatch: pytest.MonkeyPatch, lifetime: int) -> tuple[Outcome, int]:
    """What comes of it in the end, and how often it died."""
    for deaths, _ in enumerate(mortal(monkeypatch, lifetime)):
        try:
            return search(run), deaths
        except Died:
            continue
    raise AssertionError


def test_a_search_that_dies_again_and_again_evaluates_the_same_in_the_same_order(
    zero_cost_outcome, tmp_path, monkeypatch
):
    found, deaths = searched_by_mortals(new_run(tmp_path / "run"), monkeypatch, 17)
    assert deaths >= 3
    assert found == zero_cost_outcome
    assert len(found.measured) == len(set(found.measured))
    assert {state.name for _, state, *_ in found.trials} == {"COMPLETE"}


def test_so_does_one_with_workers_and_they_move_nothing(zero_cost_outcome, tmp_path, monkeypatch):
    run = new_run(tmp_path / "run", workers=2)
    found, deaths = searched_by_mortals(run, monkeypatch, 17)
    assert deaths >= 3
    assert found.trials == zero_cost_outcome.trials
    assert found.front == zero_cost_outcome.front
    assert len(found.measured) == len(set(found.measured))


def test_so_does_one_that_screens_by_prediction(tmp_path, monkeypatch):
    wish = {"method": "table", "table": str(label_table(tmp_path / "table.json"))}
    found = []
    for name, lifetime in (("whole", 10_000), ("mortal", 14)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        known_device()
        run = new_run(tmp_path / f"{name} run", accuracy=wish, trials=26, budget_ms=0.6)
        with monkeypatch.context() as patch:
            found.append(searched_by_mortals(run, patch, lifetime))
    (whole, none), (interrupted, deaths) = found
    assert none == 0
    assert deaths >= 2
    assert interrupted == whole
    origins = [attributes["origin"] for *_, attributes in whole.trials]
    assert origins.count("screening") >= 8


def test_one_that_began_without_predictions_is_resumed_with_them(tmp_path, monkeypatch):
    """As one of a version that predicted later: the round it died in is proposed by a screening now."""
    known_device()
    wish = {"method": "table", "table": str(label_table(tmp_path / "table.json"))}
    run = new_run(tmp_path / "run", accuracy=wish, trials=26, budget_ms=0.6)
    with monkeypatch.context() as patch:
        patch.setattr(Forecasts, "predict_ms", lambda self, archs, units: None)
        next(mortal(patch, 20))
        with pytest.raises(Died):
            search(run)
    found = search(run)
    origins = [attributes["origin"] for *_, attributes in found.trials]
    assert len(origins) == 26
    assert origins.count("screening") >= 4
    assert found.front.members


def test_a_torn_line_of_the_journal_is_cut_off_and_kept(zero_cost_outcome, tmp_path, monkeypatch):
    run = new_run(tmp_path / "run")
    with monkeypatch.context() as patch:
        next(mortal(patch, 30))
        with pytest.raises(Died):
            search(run)
    journal = journal_of(run).path
    torn = journal.read_bytes()[:-40]
    journal.write_bytes(torn)
    assert search(run) == zero_cost_outcome
    assert journal.with_suffix(".torn").read_bytes() == torn


def test_really_killed_at_random_moments_nothing_is_lost_or_done_twice(zero_cost_outcome, tmp_path):
    run, rng = new_run(tmp_path / "run"), random.Random(0)
    journal = journal_of(run).path
    kills = 0
    while True:
        process = multiprocessing.get_context("fork").Process(target=search, args=(run,))
        process.start()
        lines = _lines(journal) + rng.randint(0, 10)  # it has come on a little, or not at all
        while process.is_alive() and (kills == KILLS or _lines(journal) < lines):
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.02))
        if not process.is_alive():
            break
        process.kill()
        process.join()
        kills += 1
    assert process.exitcode == 0
    assert kills == KILLS
    found = outcome(run)
    assert found == zero_cost_outcome
    assert len(found.measured) == len(set(found.measured))


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_finished_search_is_over_however_often_it_is_resumed(tmp_path):
    """The space is used up: no further hundred proposals, and nothing new on record."""
    fields = {"image_size": 64, "num_classes": 10}
    stage = {"width": [16, 32], "depth": 1, "heads": 1, "q_kernels": 3}
    stages = [stage, stage | {"width": 32}, stage | {"width": 32}]
    space = SearchSpace.model_validate(fields | {"stages": stages})
    run = new_run(tmp_path / "run", space=space, pool=4)
    first = search(run)
    assert search(run) == first
    assert len({ArchConfig.model_validate(attributes["arch"]).key for *_, attributes in first.trials}) == 2
