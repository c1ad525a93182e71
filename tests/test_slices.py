"""Pools in latency slices: as many in each, in turns, all within the slice by measurement."""

from __future__ import annotations

import random

import pytest

from evit_nas.config import Conditions
from evit_nas.errors import EvitNasError, LostLink, MeasurementError
from evit_nas.latency.samples import Table
from evit_nas.network.cost import cost
from evit_nas.searching.labelling import slices
from evit_nas.searching.labelling.slices import TOLERANCE, slice_of, sliced_pool
from evit_nas.space import SearchSpace
from tests.fakes import FakeDevice, latency_of

SPACE = SearchSpace.load("efficientvit-tiny")
SLICES_MS = (0.6, 1.2)


@pytest.fixture
def device() -> FakeDevice:
    FakeDevice.calls.clear()
    return FakeDevice(Conditions(device="fake"))


def drawn(device, slices_ms=SLICES_MS, count=7, seed=0, note=lambda message: None, step=lambda done: None):
    return sliced_pool(device, SPACE, slices_ms, count, seed, step, note)


def known(device, count=40):
    rng, table = random.Random(7), Table(device.context(), SPACE)
    for _ in range(count):
        arch = SPACE.sample(rng)
        table.add(arch, latency_of(cost(arch).macs / 1e6))


@pytest.mark.parametrize(
    ("latency_ms", "found"), [(5.0, 5.0), (5.49, 5.0), (4.51, 5.0), (5.51, None), (4.49, None), (10.9, 10.0)]
)
def test_a_slice_reaches_a_tenth_either_way(latency_ms, found):
    assert slice_of(latency_ms, (5.0, 10.0)) == found


def test_where_slices_overlap_the_nearest_middle_counts():
    assert slice_of(5.2, (5.0, 5.5)) == 5.0
    assert slice_of(5.3, (5.0, 5.5)) == 5.5


def test_a_slice_that_is_named_twice_is_one(device):
    twice = drawn(device, slices_ms=(SLICES_MS[0], SLICES_MS[0]), count=6)
    assert len(twice) == 6


def test_slices_are_filled_evenly_and_take_turns(device):
    steps = []
    pool = drawn(device, step=steps.append)
    assert [sliced.slice_ms for sliced in pool] == [0.6, 1.2, 0.6, 1.2, 0.6, 1.2, 0.6]
    assert steps == [1, 2, 3, 4, 5, 6, 7]
    for sliced in pool:
        assert sliced.latency.median_ms == pytest.approx(cost(sliced.arch).macs / 1e6)
        assert abs(sliced.latency.median_ms / sliced.slice_ms - 1) <= TOLERANCE
    assert len({sliced.arch.key for sliced in pool}) == 7


def test_the_same_seed_draws_the_same(device, tmp_path, monkeypatch):
    pools = []
    for number, seed in enumerate((1, 1, 2)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(number)))
        pools.append([sliced.arch.key for sliced in drawn(device, seed=seed)])
    assert pools[0] == pools[1]
    assert pools[0] != pools[2]


def test_what_was_measured_on_the_device_before_saves_measurements(device):
    unknowing = len(drawn(device)) and len(device.calls)
    known(device)
    device.calls.clear()
    drawn(device, seed=1)
    assert len(device.calls) < min(unknowing, 20)


def test_what_an_interrupted_call_found_is_kept_and_the_rest_is_drawn(device):
    kept = []

    def stop_at_five(sliced):
        kept.append(sliced)
        if len(kept) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sliced_pool(device, SPACE, SLICES_MS, 7, 0, lambda done: None, print, keep=stop_at_five)
    pool = sliced_pool(device, SPACE, SLICES_MS, 7, 0, lambda done: None, print, before=kept)
    assert [sliced.slice_ms for sliced in pool] == [0.6, 1.2, 0.6, 1.2, 0.6, 1.2, 0.6]
    assert {sliced.arch.key for sliced in kept} < {sliced.arch.key for sliced in pool}
    assert len({sliced.arch.key for sliced in pool}) == 7


def test_it_learns_from_its_own_measurements_on_a_noisy_machine_too(device, monkeypatch):
    """Noisy measurements do not enter the table that other runs read."""
    real, fitted = FakeDevice.measure, []
    fit = slices.fit

    def noisy(self, subject, protocol):
        latency, samples = real(self, subject, protocol)
        return latency.model_copy(update={"noise": "others at work"}), samples

    monkeypatch.setattr(FakeDevice, "measure", noisy)
    monkeypatch.setattr(slices, "fit", lambda samples: fitted.append(len(samples)) or fit(samples))
    drawn(device, count=12)
    assert max(fitted) >= 32


def test_what_cannot_be_measured_is_left_out_with_a_note(device, monkeypatch):
    real, notes = FakeDevice.measure, []

    def picky(self, subject, protocol):
        if subject.stages[0].mixer == "linear":
            raise MeasurementError("no such operator")
        return real(self, subject, protocol)

    monkeypatch.setattr(FakeDevice, "measure", picky)
    pool = drawn(device, note=notes.append)
    assert all(sliced.arch.stages[0].mixer != "linear" for sliced in pool)
    assert notes
    assert all("left out" in note and "no such operator" in note for note in notes)


def test_a_lost_link_is_nobodys_fault_and_ends_it(device, monkeypatch):
    def lost(self, subject, protocol):
        raise LostLink("the board does not answer")

    monkeypatch.setattr(FakeDevice, "measure", lost)
    with pytest.raises(LostLink, match="does not answer"):
        drawn(device)


@pytest.mark.parametrize("predicted", [True, False])
def test_a_slice_that_the_space_cannot_fill_is_an_error_that_says_how_many_it_found(device, monkeypatch, predicted):
    """Soon: no measurement is spent on what is predicted to lie elsewhere, and few where nothing is predicted."""
    monkeypatch.setattr(slices, "MAX_DRAWS", 1500)
    if predicted:
        known(device)
    else:
        monkeypatch.setattr(slices, "fit", lambda samples: None)
    with pytest.raises(EvitNasError, match=r"on fake: found .*0 of 3 at 50 ms\. Ask for fewer.*--space"):
        drawn(device, slices_ms=(0.6, 50.0))
    assert len(device.calls) < 40
