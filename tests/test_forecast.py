"""What a search leaves unmeasured because it is predicted: nothing of the front, and the same every time."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from evit_nas.accuracy import zero_cost
from evit_nas.arch import ArchConfig
from evit_nas.config import Conditions, SearchSettings
from evit_nas.latency import DEVICES
from evit_nas.latency.operator_costs import cost_of, shipped_costs
from evit_nas.latency.operators import operators
from evit_nas.latency.predictor import MIN_SAMPLES, MIN_SAMPLES_WITH_PRIOR
from evit_nas.latency.samples import Table
from evit_nas.network.cost import cost
from evit_nas.pareto import non_dominated
from evit_nas.runs import Run
from evit_nas.searching import forecast as forecast_module
from evit_nas.searching.forecast import GIVE_UP_AFTER, REFIT_EVERY, Forecast, Forecasts
from evit_nas.searching.record import Front, Known
from evit_nas.searching.storage import for_samplers, open_study
from evit_nas.searching.study import Search
from evit_nas.space import SearchSpace
from tests.fakes import FakeDevice, fake_proxies, latency_of
from tests.searches import Died, Silent

SPACE = SearchSpace.load("efficientvit-tiny")
BUDGET_MS = 0.6  # some of what the sampler proposes misses it, some is beaten within it
TRIALS, POOL = 48, 12
KNOWN = 40  # networks measured before the search


def members(count: int) -> list[ArchConfig]:
    """Distinct random networks."""
    rng, drawn = random.Random(7), {}
    while len(drawn) < count:
        arch = SPACE.sample(rng)
        drawn[arch.key] = arch
    return list(drawn.values())


def macs_ms(arch: ArchConfig) -> float:
    return cost(arch).macs / 1e6


def shipped_ms(arch: ArchConfig) -> float:
    """Operators cost what is shipped."""
    return sum(cost_of(name, shipped_costs()) * amount for name, amount in operators(arch).items())


def erratic_ms(arch: ArchConfig) -> float:
    """Nothing about the network says how long it takes."""
    return 0.5 + int(arch.key[:6], 16) / 16**6


def teach(forecast: Forecast, archs: list[ArchConfig], ms=macs_ms) -> None:
    """As a search does: first asked, then told."""
    for arch in archs:
        forecast.predict_ms([arch])
        forecast.learn(arch, latency_of(ms(arch)))
    forecast.predict_ms(archs[:1])


def remember(archs: list[ArchConfig], factor: float = 1) -> None:
    """Puts measurements into the user's cache folder, as other runs do."""
    table = Table(FakeDevice(Conditions(device="fake")).context(), SPACE)
    for arch in archs:
        table.add(arch, latency_of(factor * macs_ms(arch)))


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice(Conditions(device="fake"))


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def forecast(device, tmp_path, notes) -> Forecast:
    return Forecast(device, SPACE, tmp_path, notes.append)


# the forecast itself


def test_nothing_is_predicted_before_enough_is_measured(forecast):
    *seen, unseen = members(MIN_SAMPLES + 1)
    assert forecast.predict_ms([unseen]) is None
    teach(forecast, seen[:-1])
    assert forecast.predict_ms([unseen]) is None
    teach(forecast, seen[-1:])
    assert forecast.predict_ms([unseen]) == pytest.approx(macs_ms(unseen), rel=0.1)
    assert 0 < forecast.band < 0.1


def test_on_a_processor_like_the_shipped_costs_fewer_are_enough(forecast):
    *seen, unseen = members(MIN_SAMPLES_WITH_PRIOR + 1)
    teach(forecast, seen[:-1], shipped_ms)
    assert forecast.predict_ms([unseen]) is None
    teach(forecast, seen[-1:], shipped_ms)
    assert forecast.predict_ms([unseen]) == pytest.approx(shipped_ms(unseen), rel=1e-3)


def test_what_cannot_be_predicted_is_not(forecast):
    *seen, unseen = members(GIVE_UP_AFTER + 1)
    teach(forecast, seen, erratic_ms)
    assert forecast.predict_ms([unseen]) is None


def test_the_user_is_told_once_that_predictions_are_good_enough(forecast, notes):
    archs = members(96)
    teach(forecast, archs[:MIN_SAMPLES])
    assert len(notes) == 1
    assert "predicted latencies on fake are off by" in notes[0]
    assert "only what may reach the front is measured" in notes[0]
    teach(forecast, archs[MIN_SAMPLES:])
    assert len(notes) == 1


def test_the_user_is_told_once_that_latencies_cannot_be_predicted(forecast, notes):
    archs = members(112)
    teach(forecast, archs[: GIVE_UP_AFTER - 1], erratic_ms)
    assert notes == []
    teach(forecast, archs[GIVE_UP_AFTER - 1 :], erratic_ms)
    assert len(notes) == 1
    assert "latencies on fake cannot be predicted well" in notes[0]
    assert "every architecture is measured" in notes[0]


def test_a_forecast_that_turns_bad_stops_predicting_and_says_so(forecast, notes):
    archs = members(128)
    teach(forecast, archs[:MIN_SAMPLES])
    teach(forecast, archs[MIN_SAMPLES:], erratic_ms)
    assert forecast.predict_ms(archs[:1]) is None
    assert [("only what may reach" in note, "cannot be predicted" in note) for note in notes] == [
        (True, False),
        (False, True),
    ]


def test_it_is_fitted_after_every_8_measurements_and_later_every_16_to_all_so_far_in_order(
    device, tmp_path, notes, monkeypatch
):
    fitted = []
    monkeypatch.setattr(forecast_module, "fit", lambda samples: fitted.append([s.arch for s in samples]))
    archs = members(100)
    teach(Forecast(device, SPACE, tmp_path, notes.append), archs)
    assert (REFIT_EVERY, GIVE_UP_AFTER) == (8, 64)
    assert fitted == [archs[:count] for count in (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96)]


def test_it_starts_from_what_was_measured_on_the_device_before(device, tmp_path, notes):
    *seen, unseen = members(MIN_SAMPLES + 1)
    remember(seen)
    other = FakeDevice(Conditions(device="fake:2"))
    assert Forecast(device, SPACE, tmp_path, notes.append).predict_ms([unseen]) is not None
    assert Forecast(other, SPACE, tmp_path, notes.append).predict_ms([unseen]) is None


def test_networks_of_another_input_say_nothing(device, tmp_path, notes):
    """Their maps have other sizes, so that a fit to them knows none of these operators."""
    large = SearchSpace.load("efficientvit-96")
    rng = random.Random(0)
    for _ in range(64):
        arch = large.sample(rng)
        Table(device.context(), arch).add(arch, latency_of(macs_ms(arch)))
    assert Forecast(device, SPACE, tmp_path, notes.append).predict_ms(members(1)) is None


def test_a_resumed_forecast_does_not_see_what_others_measured_since(device, tmp_path, notes):
    """It starts from the copy in the run folder and learns the run's own measurements again."""
    *seen, unseen = members(80)
    own, foreign = seen[:40], seen[40:]
    before = Forecast(device, SPACE, tmp_path, notes.append)
    teach(before, own)
    remember(foreign, factor=2)

    resumed = Forecast(device, SPACE, tmp_path, notes.append)
    assert resumed.predict_ms([unseen]) is None
    teach(resumed, own)
    assert resumed.predict_ms([unseen]) == before.predict_ms([unseen])
    assert resumed.band == before.band

    (tmp_path / "another run").mkdir()
    assert Forecast(device, SPACE, tmp_path / "another run", notes.append).predict_ms([unseen]) is not None


@pytest.mark.parametrize("count", [23, 24, 30, 32, 63, 64, 79, 80])
def test_a_resumed_forecast_predicts_as_one_that_was_never_interrupted(device, tmp_path, notes, count):
    *seen, unseen = members(81)
    uninterrupted, resumed = (Forecast(device, SPACE, tmp_path, notes.append) for _ in range(2))
    teach(uninterrupted, seen[:count], shipped_ms)
    for arch in seen[:count]:
        resumed.learn(arch, latency_of(shipped_ms(arch)))
    expected = uninterrupted.predict_ms([unseen])
    assert resumed.predict_ms([unseen]) == expected
    assert (expected is None) == (count < MIN_SAMPLES_WITH_PRIOR)
    assert resumed.band == uninterrupted.band


# in a search


@dataclass
class Outcome:
    """What a finished search did."""

    run: Run
    front: Front
    known: Known
    notes: list[str]

    @property
    def evaluated(self) -> list[str]:
        return list(self.known.by_key)

    @property
    def measured(self) -> list[str]:
        return list(self.known.candidates)

    @property
    def predicted_ms(self) -> list[list[float] | None]:
        return [trial.user_attrs["predicted_ms"] for trial in self.known.by_key.values()]


def new_run(folder: Path, **settings) -> Run:
    target = {"conditions": {"device": "fake"}, "budget_ms": BUDGET_MS}
    fields = {"space_name": "x", "space": SPACE, "targets": [target], "trials": TRIALS, "pool": POOL}
    fields |= {"front_size": 1000} | settings  # nothing is thinned out
    return Run.create(folder / "run", SearchSettings.model_validate(fields), {}, "evit-nas search")


def search(run: Run) -> Outcome:
    watcher = Silent()
    front = Search(run, watcher).run()
    with open_study(run) as study:
        return Outcome(run, front, Known(study), watcher.notes)


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    monkeypatch.setitem(DEVICES, "fake", FakeDevice)
    monkeypatch.setattr(zero_cost, "score_all", fake_proxies)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Outcome:
    """An uninterrupted search on a device that is known well enough from the first trial on."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setitem(DEVICES, "fake", FakeDevice)
        patch.setattr(zero_cost, "score_all", fake_proxies)
        remember(members(KNOWN))
        return search(new_run(folder))


def test_a_search_measures_fewer_architectures_than_it_evaluates(whole):
    assert len(whole.evaluated) == TRIALS
    assert len(whole.measured) < 0.75 * TRIALS
    assert sum("only what may reach the front is measured" in note for note in whole.notes) == 1


def test_nothing_that_was_evaluated_and_left_unmeasured_belongs_to_the_front(whole):
    """The device is exact, so the front of everything evaluated can be told without measuring."""
    archs = [ArchConfig.model_validate(trial.user_attrs["arch"]) for trial in whole.known.by_key.values()]
    scores = [trial.values[0] for trial in whole.known.by_key.values()]
    points = np.array([(-score, macs_ms(arch)) for score, arch in zip(scores, archs, strict=True)])
    feasible = points[:, 1] * 1.01 <= BUDGET_MS  # with the uncertainty that the fake device claims
    kept = non_dominated(points[feasible])
    best = {arch.key for arch, keep in zip(np.array(archs, dtype=object)[feasible], kept, strict=True) if keep}
    assert best == {member.arch.key for member in whole.front.members}


def test_every_member_of_the_front_is_measured_and_certified(whole):
    assert whole.front.members
    for member in whole.front.members:
        assert member.certified
        assert member.arch.key in whole.measured
        assert member.latency.median_ms == pytest.approx(macs_ms(member.arch))


def test_a_trial_tells_whether_its_latency_was_measured_or_predicted(whole):
    for key, trial in whole.known.by_key.items():
        arch, attributes = ArchConfig.model_validate(trial.user_attrs["arch"]), trial.user_attrs
        if key in whole.measured:
            assert trial.values[1] == attributes["latencies"][0]["median_ms"] == pytest.approx(macs_ms(arch))
        else:
            assert attributes["latencies"] == []
            assert [trial.values[1]] == attributes["predicted_ms"]
            assert trial.values[1] != macs_ms(arch)
        assert for_samplers(trial).constraints == {"latency_ms": pytest.approx(trial.values[1] / BUDGET_MS - 1)}


def test_the_front_is_that_of_a_search_which_measures_everything(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(Forecasts, "predict_ms", lambda self, archs, units: None)
    found = search(new_run(tmp_path))
    assert found.measured == found.evaluated == whole.evaluated
    assert [member.arch.key for member in found.front.members] == [m.arch.key for m in whole.front.members]


def test_an_interrupted_search_resumes_to_the_same_decisions_with_a_grown_cache(whole, tmp_path, monkeypatch):
    """It dies right after a network of the sampler's was left unmeasured; then others measure on the same device."""
    unmeasured = [number for number, key in enumerate(whole.evaluated) if key not in whole.measured]
    deadly = whole.evaluated[next(number for number in unmeasured if number > POOL) + 1]

    def dies(arch, *, seed=0, names=None):
        if arch.key == deadly:
            raise Died
        return fake_proxies(arch, seed=seed)

    remember(members(KNOWN))
    run = new_run(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(zero_cost, "score_all", dies)
        with pytest.raises(Died):
            search(run)
    remember(members(64), factor=3)
    resumed = search(run)
    assert resumed.evaluated == whole.evaluated
    assert resumed.measured == whole.measured
    assert resumed.predicted_ms == whole.predicted_ms
    assert [member.arch.key for member in resumed.front.members] == [m.arch.key for m in whole.front.members]


def test_a_budget_on_the_90th_percentile_measures_everything(tmp_path):
    remember(members(KNOWN))
    found = search(new_run(tmp_path, budget_stat="p90", trials=24))
    assert found.measured == found.evaluated
