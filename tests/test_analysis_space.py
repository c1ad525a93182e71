"""From importance to a narrower space: shares computed by hand, and files that a search takes."""

from __future__ import annotations

import pytest

from evit_nas.analysis.results import Channels, Kind
from evit_nas.analysis.suggest import kept, narrowed, suggest_space
from evit_nas.errors import UsageError
from evit_nas.space import SearchSpace, shipped_spaces
from tests.networks import tiny_arch


def part(kind: Kind, stage: int, *importance: float) -> Channels:
    return Channels(name=f"stages.{stage}.{kind}", kind=kind, stage=stage, importance=importance)


def shares(channels: list[Channels], cut: float) -> dict[tuple[str, int], float]:
    return {(row.kind, row.stage): row.share for row in kept(channels, cut)}


class TestCut:
    def test_one_threshold_goes_over_all_stages_and_kinds(self):
        channels = [part("q", 0, 9, 8, 7, 1), part("ffn", 0, 2, 6, 3, 4), part("v", 2, 0.5, 0.6)]
        assert shares(channels, 0.5) == {("q", 0): 0.75, ("ffn", 0): 0.5, ("v", 2): 0.0}
        assert shares(channels, 0.2) == {("q", 0): 1.0, ("ffn", 0): 1.0, ("v", 2): 0.0}

    def test_a_channel_of_importance_0_is_cut_first(self):
        assert shares([part("k", 0, 0.0, 0.1), part("ffn", 1, 0.2, 0.3, 0.4, 0.5)], 1 / 6) == {
            ("k", 0): 0.5,
            ("ffn", 1): 1.0,
        }

    def test_widths_are_cut_among_themselves(self):
        channels = [part("width", 0, 900, 800), part("width", 1, 100, 200), part("ffn", 0, 1, 2)]
        assert shares(channels, 0.5) == {("width", 0): 1.0, ("width", 1): 0.0, ("ffn", 0): 0.5}

    def test_the_same_share_of_all_is_cut_whatever_the_parts(self):
        channels = [part("q", 0, *range(7)), part("v", 1, *range(3, 9)), part("projection", 2, *range(11))]
        for cut in (0.1, 0.4, 0.9):
            left = sum(round(row.share * row.channels) for row in kept(channels, cut))
            assert left == 24 - round(24 * cut)

    @pytest.mark.parametrize("cut", [0.0, 1.0, -0.1])
    def test_a_share_outside_0_to_1_is_refused(self, cut):
        with pytest.raises(UsageError, match="between 0 and 1, got"):
            kept([part("q", 0, 1)], cut)


class TestNarrowed:
    @pytest.mark.parametrize(
        ("value", "ratio", "left"),
        [
            (16, 1.0, (8, 16, 24, 32)),
            (16, 0.92, (8, 16, 24, 32)),  # nearly as it is
            (16, 0.8, (8, 16)),
            (16, 0.0, (8, 16)),  # no further than the network itself, however little stays
            (16, 1.2, (16, 24, 32)),
            (16, 2.0, (16, 24, 32)),
            (20, 0.5, (8, 16, 24)),  # rounded outward
            (20, 1.5, (16, 24, 32)),
            (64, 0.5, (8, 16, 24, 32)),  # all of it lies below
            (64, 1.5, (32,)),
            (4, 0.5, (8,)),
        ],
    )
    def test_bounds_move_to_the_networks_own_value(self, value, ratio, left):
        assert narrowed((8, 16, 24, 32), value, ratio) == left


class TestSuggestion:
    channels = (  # of the inner ones half are cut: 1 is below the threshold, 9 above
        part("q", 0, 9, 9, 9),
        part("k", 0, 9, 9, 9),
        part("v", 1, 1, 1, 1, 9),
        part("ffn", 2, 1, 1, 1, 1, 1, 9),
        part("width", 0, 9, 9),
        part("width", 2, 1, 1, 1, 9),
        part("width", 1, 9, 1),
    )

    arch = tiny_arch(qk_dim=16)  # ffn_ratio 2, v_ratio 1, widths 32, 48, 64

    def test_each_narrowing_has_its_reason(self):
        found = suggest_space("tiny", self.arch, self.channels, SearchSpace.load("efficientvit-96"))
        assert [(each.stage, each.field, each.after) for each in found.narrowings] == [
            (0, "qk_dim", (16, 24)),
            (2, "width", (64, 80, 96)),  # up to 64, and on to 96 for 3 heads
            (2, "ffn_ratio", (1.0, 1.5, 2.0)),
        ]
        text = found.to_yaml()
        assert "# Narrowed by the importance of the channels of tiny; 3 dimensions changed." in text
        assert (
            "    # ffn_ratio: 1.0 .. 3.0 step 0.5 became 1.0 .. 2.0 step 0.5: 17% of its ffn channels stay where 50% "
            "of all do: no more than its 2 is supported\n    ffn_ratio: [1.0, 1.5, 2.0]\n"
        ) in text
        assert "100% of its q/k channels stay where 50% of all do: no less than its 16 is supported" in text

    def test_the_clearest_reasons_come_first(self):
        space = SearchSpace.load("efficientvit-96")
        found = [suggest_space("tiny", self.arch, self.channels, space, most=most).narrowings for most in (1, 2, 3)]
        assert [[each.field for each in one] for one in found] == [
            ["qk_dim"],  # twice as much as of all; the ffn keeps a third
            ["qk_dim", "ffn_ratio"],
            ["qk_dim", "width", "ffn_ratio"],
        ]

    def test_the_file_is_the_space_and_a_part_of_the_one_before(self, tmp_path):
        for name in shipped_spaces():
            space = SearchSpace.load(name)
            found = suggest_space("tiny", tiny_arch(), self.channels, space)
            path = tmp_path / f"{name}.yaml"
            path.write_text(found.to_yaml())
            assert SearchSpace.load(path) == found.space
            for narrow, wide in zip(found.space.stages, space.stages, strict=True):
                for field, choices in narrow:
                    assert set(choices) <= set(getattr(wide, field))

    def test_a_width_that_every_number_of_heads_can_have_is_never_narrowed_away(self):
        plain = SearchSpace.load("efficientvit-96").model_dump(mode="json")
        plain["stages"][0] |= {"width": [32, 48, 64, 80, 96], "heads": [1, 3]}
        space = SearchSpace.model_validate(plain)
        found = suggest_space(
            "tiny",
            tiny_arch(width=48, heads=3, q_kernels=[3, 3, 3]),
            [part("width", 0, 1, 1), part("width", 1, 9, 9)],
            space,
        )
        assert found.space.stages[0].width == (32, 48)  # 32 alone is no multiple of 3 heads

    def test_without_importance_there_is_nothing_to_go_by(self):
        with pytest.raises(UsageError, match="needs data it knows"):
            suggest_space("tiny", tiny_arch(), [], SearchSpace.load("efficientvit-96"))


def test_a_part_that_does_nothing_is_the_fault_of_the_image_and_narrows_nothing():
    space, channels = SearchSpace.load("efficientvit-tiny"), [part("ffn", 0, 5, 6), part("ffn", 1, 5, 6)]
    idle = [part("q", 2, 0.0, 0.0), part("k", 2, 0.0, 0.0)]
    assert suggest_space("a", tiny_arch(), [*channels, *idle], space) == suggest_space(
        "a", tiny_arch(), channels, space
    )
