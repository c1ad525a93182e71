"""Charts as values: where things stand, and ticks that people can read."""

from __future__ import annotations

import pytest

from evit_nas.report.charts import Axis, Chart, Point, Series, Tick, linear, logarithmic, named


def texts(axis: Axis) -> list[str]:
    return [tick.text for tick in axis.ticks]


def test_a_logarithmic_axis_has_equal_room_for_equal_ratios():
    axis = logarithmic("ms", [0.5, 8.0])
    assert axis.at(2.0) - axis.at(1.0) == pytest.approx(axis.at(4.0) - axis.at(2.0))
    assert 0 < axis.at(0.5) < axis.at(8.0) < 100


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.4, 12.0], ["0.5", "0.7", "1", "1.5", "2", "3", "5", "7", "10"]),
        ([0.9, 3.2], ["1", "1.5", "2", "3"]),
        ([1.02, 1.08], ["1.02", "1.04", "1.06", "1.08"]),
    ],
)
def test_a_logarithmic_axis_names_round_values(values, ticks):
    assert texts(logarithmic("ms", values)) == ticks


def test_ticks_between_go_first_where_enough_others_remain():
    wide, short = logarithmic("ms", [0.4, 12.0]), logarithmic("ms", [0.9, 3.2])
    assert [tick.text for tick in wide.ticks if not tick.minor] == ["0.5", "1", "2", "5", "10"]
    assert not any(tick.minor for tick in short.ticks)


@pytest.mark.parametrize("axis", [linear("", [3.0]), linear("", [0.0]), logarithmic("", [3.0]), logarithmic("", [1.0])])
def test_a_single_value_has_an_axis_around_it(axis):
    value = next(v for v in (3.0, 1.0, 0.0) if axis.low < v < axis.high)
    assert 0 < axis.at(value) < 100
    assert len(axis.ticks) >= 2


def test_an_axis_from_zero_begins_there_and_whole_numbers_stay_whole():
    assert linear("", [0.3, 0.9], zero=True).at(0.0) == 0
    assert texts(linear("", [1, 3], whole=True)) == ["1", "2", "3"]
    assert texts(linear("", [0.0, 1.0], form=".0%")) == ["0%", "20%", "40%", "60%", "80%", "100%"]


def test_names_stand_at_their_places():
    axis = named("", ["a", "b"])
    assert axis.ticks == [Tick(0, "a"), Tick(1, "b")]
    assert 0 < axis.at(0) < axis.at(1) < 100


def test_up_is_more():
    chart = Chart("", linear("", [0, 10]), linear("", [0, 10]), [Series("", "front", [Point(1, 9)])])
    assert chart.across(9) > chart.across(1)
    assert chart.down(9) < chart.down(1)
