"""Search spaces: what they accept, and that every answer is a valid member."""

import random

import optuna
import pytest

from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.choices import FixedTrial
from evit_nas.errors import UsageError
from evit_nas.space import SearchSpace, resolved_space, shipped_spaces
from evit_nas.yamlio import read_yaml, validate

STAGE = {"width": {"from": 32, "to": 96, "step": 16}, "depth": [1, 2], "heads": [1, 2, 3], "q_kernels": 3}


def space_of(stage=None, **top) -> SearchSpace:
    fields = {"image_size": 64, "num_classes": 10, "stages": [STAGE, STAGE, stage or STAGE], **top}
    return validate(SearchSpace, fields, "space.yaml")


def refused(stage=None, **top) -> str:
    with pytest.raises(UsageError) as error:
        space_of(stage, **top)
    return str(error.value)


@pytest.mark.parametrize(
    ("written", "choices"),
    [
        (2, (2,)),
        ([3, 1, 2], (1, 2, 3)),
        ({"from": 1, "to": 4}, (1, 2, 3, 4)),
        ({"from": 1, "to": 6, "step": 2}, (1, 3, 5)),
    ],
)
def test_a_dimension_is_a_value_a_list_or_a_range(written, choices):
    assert space_of(STAGE | {"depth": written}).stages[2].depth == choices


def schema_takes(written) -> bool:
    jsonschema = pytest.importorskip("jsonschema")
    try:
        jsonschema.validate(written, SearchSpace.model_json_schema())
    except jsonschema.ValidationError:
        return False
    return True


@pytest.mark.parametrize("path", shipped_spaces().values(), ids=lambda path: path.stem)
def test_the_schema_takes_every_shipped_space_as_it_is_written_and_as_it_is_stored(path):
    assert schema_takes(read_yaml(path))
    assert schema_takes(SearchSpace.load(path).model_dump(mode="json"))


@pytest.mark.parametrize("written", [2, [3, 1, 2], {"from": 1, "to": 4}, {"from": 1, "to": 6, "step": 2}])
def test_the_schema_takes_a_value_a_list_and_a_range(written):
    assert schema_takes({"stages": [STAGE, STAGE, STAGE | {"depth": written}]})


@pytest.mark.parametrize("written", [0, [1, "two"], [], {"from": 1}, {"from": 1, "to": 4, "by": 2}, None])
def test_the_schema_refuses_what_the_reader_refuses(written):
    assert "depth" in refused(STAGE | {"depth": written})
    assert not schema_takes({"stages": [STAGE, STAGE, STAGE | {"depth": written}]})


def test_float_ranges_hit_their_decimals():
    assert space_of(STAGE | {"ffn_ratio": {"from": 1.0, "to": 3.0, "step": 0.5}}).stages[2].ffn_ratio == (
        1.0,
        1.5,
        2.0,
        2.5,
        3.0,
    )
    tenths = space_of(STAGE | {"ffn_ratio": {"from": 1.0, "to": 2.0, "step": 0.1}}).stages[2].ffn_ratio
    assert tenths == (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (STAGE | {"depht": 1}, ["stages[2].depht", "'depth'"]),
        ({"width": 64}, ["stages[2].depth is missing"]),
        (STAGE | {"depth": [1, 1]}, ["stages[2].depth", "repeat", "1 2 times"]),
        (STAGE | {"depth": []}, ["stages[2].depth", "at least one choice"]),
        (STAGE | {"depth": 0}, ["stages[2]", "depth 0", "greater than or equal to 1"]),
        (STAGE | {"depth": "two"}, ["stages[2]", "depth 'two'", "integer"]),
        (STAGE | {"depth": True}, ["stages[2]", "depth True", "integer"]),
        (STAGE | {"depth": {"from": 3, "to": 1}}, ["stages[2].depth", "from <= to"]),
        (STAGE | {"depth": {"from": 1, "to": 3, "step": 0}}, ["stages[2].depth", "step > 0"]),
        (STAGE | {"depth": {"low": 1, "high": 3}}, ["stages[2].depth", "from, to and"]),
        (STAGE | {"depth": {"from": 1, "to": float("inf")}}, ["stages[2].depth", "numbers"]),
        (STAGE | {"depth": {"from": 1, "to": 10**400}}, ["stages[2].depth", "numbers of ordinary size"]),
        (STAGE | {"depth": {"from": 1, "to": 10**5000}}, ["stages[2].depth", "an enormous number"]),
        (STAGE | {"ffn_ratio": {"from": 0, "to": 1e308, "step": 1e-300}}, ["stages[2].ffn_ratio", "at most 1000"]),
        (STAGE | {"width": {"from": 1, "to": 10**9}}, ["stages[2].width", "at most 1000"]),
        (STAGE | {"width": 130}, ["stages[2]", "width 130", "multiple of 8"]),
        (STAGE | {"width": [64, 80], "heads": 3}, ["stages[2]", "multiple of 48", "64 to 80"]),
        (STAGE | {"heads": 17}, ["stages[2]", "heads 17"]),
        (STAGE | {"q_kernels": [4]}, ["stages[2]", "q_kernels 4", "odd"]),
        (STAGE | {"q_kernels": [[3, 3]]}, ["stages[2]", "up to 3 heads", "[3, 3]"]),
        (STAGE | {"mixer": "sofmax"}, ["stages[2]", "mixer 'sofmax'", "softmax"]),
        (STAGE | {"mixer": ["softmax", "none"], "ffn_count": [0, 1]}, ["stages[2]", "must hold something"]),
    ],
)
def test_a_wrong_stage_is_refused_with_path_value_and_way_out(stage, words):
    message = refused(stage)
    assert "Traceback" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("top", "words"),
    [
        ({"image_size": 100}, ["image_size", "multiple of 16"]),
        ({"stages": [STAGE, STAGE]}, ["stages", "exactly 3"]),
        ({"stem_ratio": [0.1]}, ["stem_ratio", "0.25 to 2"]),
        ({"num_clases": 10}, ["num_clases", "'num_classes'"]),
    ],
)
def test_a_wrong_space_is_refused_with_path_value_and_way_out(top, words):
    message = refused(**top)
    assert all(word in message for word in words), message


def test_unknown_space_name_lists_the_shipped_ones():
    with pytest.raises(UsageError, match=r"Did you mean 'efficientvit-224'\?.*efficientvit-tiny"):
        SearchSpace.load("efficientvit-244")


def test_a_shipped_space_is_known_by_the_end_of_its_name_unless_that_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert [resolved_space(name) for name in ("tiny", "224")] == ["efficientvit-tiny", "efficientvit-224"]
    assert SearchSpace.load("tiny") == SearchSpace.load("efficientvit-tiny")
    (tmp_path / "96").write_text(shipped_spaces()["efficientvit-tiny"].read_text())
    assert resolved_space("96") == "96"
    assert SearchSpace.load("96") == SearchSpace.load("tiny")
    assert [resolved_space(name) for name in ("iny", "mine.yaml", "")] == ["iny", "mine.yaml", ""]


@pytest.mark.parametrize(
    "choices",
    [
        {"width": [32, 64, 128], "heads": [2, 3], "q_kernels": 3},
        {"width": [40, 80], "heads": [2], "q_kernels": 3},
        {"width": [40, 80], "mixer": "none"},
    ],
)
def test_a_network_whose_width_was_snapped_is_in_its_space(choices):
    plain = {"width": 32, "depth": 1}
    space = SearchSpace.model_validate({"stages": [plain, plain | choices, plain]})
    rng = random.Random(0)
    for arch in [space.smallest(), space.largest(), *(space.sample(rng) for _ in range(50))]:
        assert space.suggest(FixedTrial(space.params(arch))).key == arch.key


def test_widths_snap_to_sixteen_and_heads_within_the_range():
    stage = space_of().stages[0]
    assert [stage.snapped(w, 1) for w in (32, 48, 96)] == [32, 48, 96]
    assert [stage.snapped(w, 3) for w in (32, 64, 72, 96)] == [48, 48, 96, 96]  # multiples of 48


@pytest.mark.parametrize("name", sorted(shipped_spaces()))
class TestEveryShippedSpace:
    def test_samples_are_members_and_replay_to_the_same_network(self, name):
        space, rng = SearchSpace.load(name), random.Random(0)
        for _ in range(200):
            arch = space.sample(rng)
            params = space.params(arch)
            assert arch in space
            assert space.suggest(FixedTrial(params)).key == arch.key
            assert all(stage.width % 16 == 0 for stage in arch.stages)

    def test_an_optuna_trial_gives_the_same_network_as_its_replay(self, name):
        space = SearchSpace.load(name)
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
        for _ in range(20):
            trial = study.ask()
            arch = space.suggest(trial)
            assert space.suggest(FixedTrial(trial.params)) == arch
            assert set(trial.params) == set(space.params(arch))  # static: every dimension is always asked
            study.tell(trial, 0.0)

    def test_extremes_bound_every_sample(self, name):
        from evit_nas.network.cost import cost

        space, rng = SearchSpace.load(name), random.Random(1)
        samples, high = [cost(space.sample(rng)) for _ in range(300)], cost(space.largest()).macs
        for price in (lambda arch: cost(arch).macs, lambda arch: cost(arch).params):
            least = space.cheapest(price)
            space.params(least)  # it is in the space
            assert price(least) <= price(space.smallest())
        low = cost(space.cheapest(lambda arch: cost(arch).macs)).macs
        assert all(low <= sample.macs <= high for sample in samples)
        low = cost(space.cheapest(lambda arch: cost(arch).params)).params
        assert all(low <= sample.params for sample in samples)

    def test_same_seed_same_samples(self, name):
        space = SearchSpace.load(name)
        first, second = random.Random(3), random.Random(3)
        assert [space.sample(first) for _ in range(5)] == [space.sample(second) for _ in range(5)]

    def test_header_states_the_size(self, name):
        text = shipped_spaces()[name].read_text()
        assert f"# Points: {SearchSpace.load(name).size:.2g} " in text


@pytest.mark.parametrize("preset", PRESETS)
def test_the_default_space_spans_the_papers_networks(preset):
    space, arch = SearchSpace.load("efficientvit-224"), ArchConfig.preset(preset)
    assert space.suggest(FixedTrial(space.params(arch))).key == arch.key


def test_membership_names_what_is_outside():
    with pytest.raises(UsageError, match=r"stage1\.width = 192 is not in 32 \.\. 96"):
        space_of().params(space_of().adapted(ArchConfig.preset("m5")))


def test_hash_changes_with_the_space_only():
    assert space_of().hash == space_of().hash
    assert space_of().hash != space_of(num_classes=11).hash
