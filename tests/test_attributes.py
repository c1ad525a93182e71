"""What is noted on a study and its trials: by the names that runs have on disk, each written and read as its type."""

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from evit_nas.accuracy import Estimate, RungEstimate
from evit_nas.latency import Unit
from evit_nas.searching.attributes import Attribute, StudyAttributes, TrialAttributes, missing
from tests.fakes import latency_of
from tests.networks import tiny_arch

TRAINED = RungEstimate(value=70.5, method="short", slice=-1, losses=(2.0, 1.5), unfinished=0.25)
OF_TRIAL = {
    "key": "0123",
    "arch": tiny_arch(),
    "round": 3,
    "origin": "random",
    "units": {"fake": Unit(2.0, 0.01)},
    "repeat_of": 4,
    "reason": "MeasurementError: too slow",
    "estimate": Estimate(value=70.5, method="short"),
    "trained": TRAINED,
    "predicted_ms": [1.25, 2.5],
    "latencies": (latency_of(1.3), latency_of(2.4)),
}
OF_STUDY = {
    "aggregate": {"params": [1.0, 2.0]},
    "conditions": [{"machine": "imaginary"}],
    "ended": "all 12 trials are done",
    "evaluating": ("0123", 2),
    "given_up": {"0123": "took too long"},
    "images": "ab12cd",
    "judge": "a table",
    "learned": "0123456789ab",
    "references": {"m0": Estimate(value=63.2, low=62.0, high=64.0, method="table")},
    "units": {"fake": Unit(2.0, 0.01)},
}


def written(attributes, values):
    for name, value in values.items():
        setattr(attributes, name, value)
    return attributes


@pytest.mark.parametrize(("kind", "values"), [(TrialAttributes, OF_TRIAL), (StudyAttributes, OF_STUDY)])
def test_each_is_on_disk_by_the_name_that_it_always_had_and_comes_back_as_it_was(tmp_path, kind, values):
    storage = f"sqlite:///{tmp_path / 'study.db'}"
    study = optuna.create_study(storage=storage, study_name="one")
    written(kind(study if kind is StudyAttributes else study.ask()), values)
    again = optuna.load_study(storage=storage, study_name="one")
    holder = again if kind is StudyAttributes else again.trials[0]
    assert set(holder.user_attrs) == {"given up" if name == "given_up" else name for name in values}
    assert {name: getattr(kind(holder), name) for name in values} == values
    assert {name for name, one in vars(kind).items() if isinstance(one, Attribute)} == set(values)


def test_what_was_measured_besides_is_on_disk_as_an_attribute_of_each_metric():
    trial = create_trial(state=TrialState.FAIL)
    on_record = written(TrialAttributes(trial), {"figures": {"memory_mb": 80.5, "energy_mj": 3.25}})
    assert trial.user_attrs == {"memory_mb": 80.5, "energy_mj": 3.25}
    assert on_record.figures == {"memory_mb": 80.5, "energy_mj": 3.25}


def test_an_estimate_goes_on_record_without_what_its_judge_adds_for_itself():
    trial = create_trial(state=TrialState.FAIL)
    on_record = written(TrialAttributes(trial), {"estimate": TRAINED, "trained": TRAINED})
    assert trial.user_attrs["estimate"] == {"value": 70.5, "low": None, "high": None, "method": "short"}
    assert (type(on_record.estimate), on_record.trained) == (Estimate, TRAINED)


def test_what_is_not_on_record_is_absent_and_what_always_is_is_missed():
    on_record = TrialAttributes(create_trial(state=TrialState.FAIL, user_attrs={"memory_mb": None}))
    assert (on_record.latencies, on_record.measured, on_record.yardsticks, on_record.units) == ((), False, [], {})
    assert (on_record.figures, on_record.repeat_of, on_record.reason) == ({}, None, "")
    with pytest.raises(KeyError, match="key"):
        _ = on_record.key


def test_one_is_checked_when_it_is_asked_for_and_no_other_with_it():
    on_record = TrialAttributes(create_trial(state=TrialState.FAIL, user_attrs={"key": "0123", "latencies": [{}]}))
    assert (on_record.key, on_record.measured) == ("0123", True)
    with pytest.raises(ValueError, match="median_ms"):
        _ = on_record.latencies


def test_a_damaged_one_of_the_study_is_found():
    study = optuna.create_study()
    StudyAttributes(study).check()
    written(StudyAttributes(study), OF_STUDY).check()
    study.set_user_attr("given up", ["0123"])
    with pytest.raises(ValueError, match="valid dictionary"):
        StudyAttributes(study).check()


def test_the_yardsticks_are_those_of_the_latencies_but_for_old_ones():
    trial = create_trial(state=TrialState.FAIL)
    on_record = written(TrialAttributes(trial), {"latencies": (latency_of(1.3), latency_of(2.4, canary_error=None))})
    assert on_record.yardsticks == [("fake", on_record.latencies[0].unit)]


@pytest.mark.parametrize(
    ("state", "noted", "lacking"),
    [
        (TrialState.COMPLETE, {}, {"estimate", "latencies"}),
        (TrialState.COMPLETE, {"repeat_of": 0}, set()),
        (TrialState.FAIL, {}, set()),
    ],
)
def test_what_a_trial_must_have_depends_on_how_it_ended(state, noted, lacking):
    values = [0.5] if state is TrialState.COMPLETE else None
    attributes = {"key": "0123", "arch": {}, "round": 0} | noted
    assert missing(create_trial(state=state, values=values, user_attrs=attributes)) == lacking
