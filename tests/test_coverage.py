"""Which search spaces a table of trained networks speaks for: those whose choices its networks have made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from evit_nas.accuracy.coverage import covers, default_method
from evit_nas.accuracy.table import SHIPPED_TABLE, LabelTable
from evit_nas.space import SearchSpace

DEFAULT = SearchSpace.load("efficientvit-224").model_dump(mode="json")


@pytest.fixture(scope="module")
def shipped() -> LabelTable:
    return LabelTable.load(SHIPPED_TABLE)


def with_stages(**fields: Any) -> SearchSpace:
    """The default space with other choices in every stage."""
    return SearchSpace.model_validate(DEFAULT | {"stages": [stage | fields for stage in DEFAULT["stages"]]})


def test_the_shipped_table_is_what_the_default_space_is_judged_by(shipped):
    assert covers(shipped, SearchSpace.model_validate(DEFAULT))
    assert default_method(SearchSpace.model_validate(DEFAULT), data=None) == "table"


@pytest.mark.parametrize(
    "fields",
    [
        {"mixer": ["softmax"]},
        {"mixer": ["linear"]},
        {"heads": [2, 3]},
        {"qk_dim": 16},
        {"v_ratio": 1.0},
        {"ffn_ratio": [1.5, 2.0]},
        {"cascade": False},
        {"q_kernels": [[7, 5, 5, 3]]},
        {"window": 7},
        {"merge_ratio": [2.5, 3.5]},
        {"mixer": ["linear"], "q_kernels": [15], "window": 3, "cascade": True},  # of which linear attention has none
    ],
)
def test_narrower_spaces_are_covered(shipped, fields):
    assert covers(shipped, with_stages(**fields))


@pytest.mark.parametrize("image_size", [64, 96, 512, [224, 256]])
def test_a_space_for_images_of_another_size_is_not_covered(shipped, image_size):
    assert not covers(shipped, SearchSpace.model_validate(DEFAULT | {"image_size": image_size}))


@pytest.mark.parametrize(
    "fields",
    [
        {"heads": [4, 8], "q_kernels": [5]},
        {"qk_dim": [16, 32]},
        {"qk_dim": [4, 8]},
        {"v_ratio": [1.0, 2.0]},
        {"q_kernels": [5, 11]},
        {"q_kernels": [[11, 5, 3, 3]]},
        {"window": [3, 7]},
        {"mixer": ["softmax", "none"]},
        {"ffn_count": [1, 2]},
        {"ffn_count": [2, 3, 4]},
        {"merge_ratio": [4.0, 6.0]},
    ],
)
def test_a_space_with_a_choice_that_no_network_made_is_not_covered(shipped, fields):
    assert not covers(shipped, with_stages(**fields))


def test_a_slimmer_stem_than_any_seen_is_not_covered(shipped):
    assert not covers(shipped, SearchSpace.model_validate(DEFAULT | {"stem_ratio": [0.25, 1.0]}))


def without(table: LabelTable, kind: Callable[[Any], bool]) -> LabelTable:
    """`table` less the networks whose first stage is of a kind."""
    return table.model_copy(
        update={"networks": tuple(network for network in table.networks if not kind(network.arch.stages[0]))}
    )


def test_a_mixer_or_a_cascade_must_have_been_seen_in_that_very_stage(shipped):
    assert not covers(without(shipped, lambda stage: stage.mixer == "none"), SearchSpace.model_validate(DEFAULT))
    assert not covers(without(shipped, lambda stage: stage.cascaded), SearchSpace.model_validate(DEFAULT))
