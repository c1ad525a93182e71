"""Tables of trained networks: what they hold, what is refused, which truth they tell and which spaces they cover."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

import evit_nas
from evit_nas.accuracy import ShortScore, scorecard, table
from evit_nas.accuracy.coverage import MIN_NETWORKS, covers, default_method
from evit_nas.accuracy.learned import LearnedAccuracy
from evit_nas.accuracy.scorecard import score_card
from evit_nas.accuracy.table import SHIPPED_TABLE, LabelTable, TrainedNetwork, Training, shipped_tables
from evit_nas.arch import ArchConfig
from evit_nas.config import ShortRecipe
from evit_nas.errors import UsageError
from evit_nas.space import SearchSpace
from tests.networks import tiny_arch


def network(arch: ArchConfig, *losses: float, accuracies: tuple[float, ...] = (), ms: float = 1.0) -> TrainedNetwork:
    """A network with a training for each loss; by default accuracy falls by 10 points for each nat."""
    accuracies = accuracies or tuple(0.9 - loss / 10 for loss in losses)
    trainings = tuple(
        Training(seed=seed, score=ShortScore(accuracy=accuracy, cross_entropy=loss, curve=(2.0, 1.0)), seconds=1.0)
        for seed, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    )
    return TrainedNetwork(arch=arch, latency_ms=ms, proxies={"snip": 1.5}, trainings=trainings)


def table_of(*networks: TrainedNetwork) -> LabelTable:
    return LabelTable(data="digits", recipe=ShortRecipe(), device="cpu, 1 thread", networks=networks)


A, B, C = tiny_arch(), tiny_arch(depth=2), tiny_arch(ffn_ratio=3.0)


@pytest.fixture
def written(tmp_path) -> Path:
    table_of(network(A, 1.0, 2.0), network(B, 0.5)).save(tmp_path / "mine.json")
    return tmp_path / "mine.json"


def test_a_table_is_read_as_it_was_written_one_line_for_each_network(written):
    assert LabelTable.load(written) == table_of(network(A, 1.0, 2.0), network(B, 0.5))
    assert LabelTable.load(str(written)) == LabelTable.load(written)
    assert [A.model_dump_json() in line for line in written.read_text().splitlines()] == [False, True, False, False]


def test_a_table_that_cannot_be_written_is_said_so(tmp_path):
    with pytest.raises(UsageError, match=r"cannot write .*nowhere/mine\.json: No such file"):
        table_of(network(A, 1.0)).save(tmp_path / "nowhere" / "mine.json")


def test_a_table_that_is_not_there_is_said_with_those_that_are(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "shipped_tables", lambda: {"fashion-mnist-64": tmp_path})
    with pytest.raises(UsageError, match=r"cannot read the table fashion-64: No such file.* Known: fashion-mnist-64\."):
        LabelTable.load("fashion-64")
    monkeypatch.setattr(table, "shipped_tables", dict)
    with pytest.raises(UsageError, match=r"No such file or directory\. None comes with this installation\.$"):
        LabelTable.load("fashion-64")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON: Expecting value: line 1 column 1"),
        (b'{"data": "digits", "rec', "not valid JSON: Unterminated string"),
        (b"\xff\xd8\xff\xe0 a picture", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1, 2]", "must be a mapping|valid dictionary|LabelTable"),
        (b'{"name": "another tool\'s"}', "unknown field name"),
    ],
)
def test_a_file_that_is_no_table_is_one_message_that_says_why(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        LabelTable.load(path)
    assert str(caught.value).startswith(str(path))
    assert "http" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (("networks", 0, "latency_ms"), -1, r"networks\[0\]\.latency_ms: .*greater than 0, got -1"),
        (("networks", 0, "latency_ms"), math.inf, r"networks\[0\]\.latency_ms: .*finite"),
        (("networks", 1, "proxies", "snip"), math.nan, r"networks\[1\]\.proxies\.snip: .*finite"),
        (("networks", 1, "trainings"), [], r"networks\[1\]\.trainings: .*at least 1"),
        (("networks", 0, "trainings", 1, "seed"), 0, r"networks\[0\] has two trainings of the same seed"),
        (("networks", 0, "trainings", 0, "score", "accuracy"), 91.0, r"score\.accuracy: .*less than or equal to 1"),
        (("networks", 0, "trainings", 0, "score", "curve"), [math.nan], r"score\.curve\[0\]: .*finite"),
        (("networks", 0, "arch", "stages", 0, "heads"), 5, r"networks\[0\]\.arch\.stages\[0\].*divisible by heads"),
        (("networks",), [], "networks: .*at least 1"),
        (("recipe", "cycles"), [], "recipe.cycles: .*at least 1"),
        (("recipe", "epochs"), 3, "unknown field recipe.epochs"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(written, where, value, message):
    content = json.loads(written.read_text())
    inner = content
    for step in where[:-1]:
        inner = inner[step]
    inner[where[-1]] = value
    written.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=message):
        LabelTable.load(written)


def test_a_network_stands_in_a_table_once(written):
    content = json.loads(written.read_text())
    content["networks"].append(content["networks"][0])
    written.write_text(json.dumps(content))
    with pytest.raises(UsageError, match=r"networks\[2\] is networks\[0\] again: give its trainings together"):
        LabelTable.load(written)


def test_labels_are_the_accuracies_that_the_losses_stand_for():
    """The line through (1, 80), (2, 60), (3, 70): 80 - 5 loss; worked by hand."""
    found = table_of(
        network(A, 1.0, 2.0, accuracies=(0.8, 0.6)),
        network(B, 3.0, accuracies=(0.7,)),
    )
    assert found.labels() == [pytest.approx({0: 75, 1: 70}), pytest.approx({0: 65})]


def test_where_losses_do_not_fall_as_accuracies_rise_accuracies_are_the_labels():
    found = table_of(network(A, 1.0, 2.0, accuracies=(0.6, 0.7)), network(B, 3.0, accuracies=(0.8,)))
    assert found.labels() == [pytest.approx({0: 60, 1: 70}), pytest.approx({0: 80})]


@pytest.mark.filterwarnings("error")
def test_equal_losses_stand_for_the_mean_accuracy():
    found = table_of(network(A, 1.0, accuracies=(0.8,)), network(B, 1.0, accuracies=(0.6,)))
    assert found.labels() == [pytest.approx({0: 70}), pytest.approx({0: 70})]


def test_the_truth_is_the_mean_without_what_seeds_add_with_the_error_of_the_rest():
    """Ten points a nat. Seed 1 costs 10 points, 5 less for A and 5 more for B; one degree of freedom is left."""
    found = table_of(network(A, 1.0, 1.5), network(B, 2.0, 3.5), network(C, 4.0, accuracies=(0.5,)))
    means, errors = found.truth()
    effects = 4, -6  # ten apart, 0 over three trainings of seed 0 and two of seed 1
    assert means == pytest.approx([77.5 - sum(effects) / 2, 62.5 - sum(effects) / 2, 50 - effects[0]])
    sd = math.sqrt(2 * 2 * 2.5**2)
    assert errors == pytest.approx([sd / math.sqrt(2), sd / math.sqrt(2), sd])


def test_without_second_seeds_the_truth_has_no_known_error():
    means, errors = table_of(network(A, 1.0), network(B, 2.0)).truth()
    assert means == pytest.approx([80, 70])
    assert errors.tolist() == [0, 0]


def test_the_origin_says_what_was_trained_on_what():
    found = table_of(network(A, 1.0), network(B, 2.0))
    assert (
        found.origin == "2 EfficientViTs trained on digits (10k images of 10 classes) at 64 px at 50 % of their width"
    )
    mixed = found.networks[0].trainings[0].model_copy(update={"device": "a GPU", "seed": 1})
    both = found.networks[0].model_copy(update={"trainings": (*found.networks[0].trainings, mixed)})
    assert found.model_copy(update={"networks": (both,)}).origin.endswith("px at 50 % of their width, on a GPU and cpu")
    whole = found.model_copy(update={"recipe": ShortRecipe(width=1)})
    assert whole.origin == "2 EfficientViTs trained on digits (10k images of 10 classes) at 64 px"


@pytest.mark.parametrize("place", ["package/labels", "benchmarks/labels"])
def test_shipped_tables_are_found_in_the_wheel_and_in_a_checkout(tmp_path, monkeypatch, written, place):
    monkeypatch.setattr(evit_nas, "__file__", str(tmp_path / "package" / "__init__.py"))
    (tmp_path / place).mkdir(parents=True)
    written.rename(tmp_path / place / "mine.json")
    (tmp_path / place / "README.md").write_text("")
    assert shipped_tables() == {"mine": tmp_path / place / "mine.json"}
    assert LabelTable.load("mine").archs == [A, B]


def test_without_shipped_tables_there_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr(evit_nas, "__file__", str(tmp_path / "package" / "__init__.py"))
    assert shipped_tables() == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(shipped_tables()))
def test_every_shipped_table_loads_and_can_be_judged_and_learned_from(name, monkeypatch):
    for constant, value in {"FOLDS": 4, "RESAMPLES": 60}.items():
        monkeypatch.setattr(scorecard, constant, value)
    found = LabelTable.load(name)
    means, errors = found.truth()
    assert np.isfinite(means).all()
    assert (errors > 0).all()
    sizes = [row for row in score_card(found, labels=()).rows if row.kind == "size"]
    assert max(row.iso.value for row in sizes) > 0
    value, low, high = LearnedAccuracy.of_table(found).intervals(found.archs[:3])
    assert (low < value).all()
    assert (value < high).all()


def test_a_table_too_small_to_learn_from_is_refused():
    with pytest.raises(UsageError, match="at least 8 trained networks, got 2"):
        LearnedAccuracy.of_table(table_of(network(A, 1.0), network(B, 2.0)))


def spanning(space: SearchSpace, count: int = MIN_NETWORKS) -> LabelTable:
    """The smallest and the largest network of `space`, and random others."""
    rng, found = random.Random(0), {arch.key: arch for arch in (space.smallest(), space.largest())}
    while len(found) < count:
        arch = space.sample(rng)
        found[arch.key] = arch
    return table_of(*(network(arch, 1.0) for arch in found.values()))


@pytest.fixture(scope="module")
def tiny() -> SearchSpace:
    return SearchSpace.load("efficientvit-tiny")


def test_intervals_hold_the_value_and_are_in_percent(tiny):
    rng = np.random.default_rng(0)
    losses = [network(one.arch, *rng.uniform(1, 2, 2)) for one in spanning(tiny, 16).networks]
    found = table_of(*losses)
    value, low, high = LearnedAccuracy.of_table(found).intervals(found.archs)
    assert value.shape == (16,)
    assert (low < value).all()
    assert (value < high).all()
    assert (np.abs(value - 75) < 10).all()


def test_a_table_covers_a_space_whose_extremes_it_has(tiny):
    assert covers(spanning(tiny), tiny)


def test_a_table_of_few_networks_covers_nothing(tiny):
    assert not covers(spanning(tiny, MIN_NETWORKS - 1), tiny)


INSIDE = {"heads": [1, 2], "width": [176, 320], "depth": [2, 3], "ffn_ratio": [1.5, 2.0]}


def inside(tiny: SearchSpace, stage: int = 0, **more: float) -> SearchSpace:
    """A space within INSIDE, but for one more choice in a stage."""
    plain = tiny.model_dump(mode="json")
    stages = [one | INSIDE for one in plain["stages"]]
    stages[stage] |= {name: [*INSIDE[name], value] for name, value in more.items()}
    return SearchSpace.model_validate(plain | {"stages": stages})


@pytest.mark.parametrize(
    ("dimension", "value"),
    [("width", 144), ("width", 368), ("depth", 1), ("depth", 4), ("ffn_ratio", 1.25), ("ffn_ratio", 2.25)],
)
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_table_does_not_cover_a_space_that_goes_beyond_it_in_one_dimension_of_one_stage(
    tiny, stage, dimension, value
):
    found = spanning(inside(tiny))
    assert covers(found, inside(tiny))
    assert not covers(found, inside(tiny, stage, **{dimension: value}))


@pytest.mark.parametrize("width", [160, 352])
def test_a_table_covers_a_space_that_goes_a_tenth_beyond_it(tiny, width):
    assert covers(spanning(inside(tiny)), inside(tiny, width=width))


def test_the_shipped_tables_speak_where_they_can_and_else_a_predictor_learns_from_data(tmp_path, monkeypatch, tiny):
    monkeypatch.setattr(evit_nas, "__file__", str(tmp_path / "package" / "__init__.py"))
    assert default_method(tiny, data="digits") == "predictor"
    assert default_method(tiny, data=None) == "zero-cost"
    (tmp_path / "package" / "labels").mkdir(parents=True)
    spanning(tiny).save(tmp_path / "package" / "labels" / f"{SHIPPED_TABLE}.json")
    assert default_method(tiny, data=None) == "table"
    assert default_method(SearchSpace.load("efficientvit-224"), data=None) == "zero-cost"
    assert default_method(SearchSpace.load("efficientvit-224"), data="digits") == "predictor"
    assert default_method(tiny, data="digits") == "table"
