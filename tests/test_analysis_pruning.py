"""A trained network cut to a part of itself: the order of importance changes no answer, and the best are kept."""

from __future__ import annotations

import pytest
import torch

from evit_nas.analysis import analyze
from evit_nas.analysis.channels import parts
from evit_nas.analysis.pruning import by_importance, prune_to, write_start
from evit_nas.analysis.results import Channels
from evit_nas.analysis.taylor import importance
from evit_nas.arch import ArchConfig
from evit_nas.errors import UsageError
from evit_nas.evaluation import evaluate
from evit_nas.network.model import EfficientViT, build
from evit_nas.network.saved import open_saved
from evit_nas.network.transfer import copy_common, start_from
from tests.networks import VARIANTS, lively_network, relative_error, tiny_arch
from tests.trainings import finished

LARGE = {"width": 64, "heads": 2, "qk_dim": 16, "q_kernels": [5, 5], "window": 3}
SMALL = {"width": 32, "heads": 2, "qk_dim": 8, "q_kernels": [5, 3], "window": 2, "ffn_ratio": 1.5}


def arch_of(fields: dict[str, object], size: int = 64, **changes: object) -> ArchConfig:
    stage = {"depth": 1} | fields | changes
    return ArchConfig.model_validate({"image_size": size, "num_classes": 10, "stages": [stage] * 3})


def scored(model: EfficientViT, seed: int = 0) -> list[Channels]:
    """Random importance of every channel, of the right shape."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for part in parts(model):
        path, rows = part.places[0]
        layer = model.get_submodule(path.replace("v_local", "v_local.fn"))
        size = len(range(getattr(layer, "conv", layer).out_channels)[rows])
        scores = torch.rand(size, generator=generator).tolist()
        found.append(Channels(name=part.name, kind=part.kind, stage=part.stage, importance=scores))
    return found


def images(count: int = 4, side: int = 64) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module", params=VARIANTS.values(), ids=VARIANTS.keys())
def variant(request):
    return lively_network(tiny_arch(**request.param), images=2)


def test_the_order_of_importance_changes_no_answer(variant):
    ordered = by_importance(variant, {part.name: torch.tensor(part.importance) for part in scored(variant)})
    with torch.no_grad():
        assert relative_error(ordered(images()), variant(images())) < 1e-4
    before = variant.state_dict()
    moved = [name for name, value in ordered.state_dict().items() if not torch.equal(value, before[name])]
    assert len(moved) > 0.7 * len(before)


def test_a_network_cut_to_itself_gives_the_same_answers(variant):
    itself = prune_to(variant, variant.arch, scored(variant))
    with torch.no_grad():
        assert relative_error(itself(images()), variant(images())) < 1e-4


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"cascade": False},
        {"mixer": "linear"},
        {"mixer": "none"},
        {"v_ratio": 0.5},
        {"heads": 1},
        {"cascade": False, "v_ratio": 1.5},
    ],
    ids=str,
)
def test_channels_that_nothing_reads_and_that_matter_least_are_cut_without_a_trace(changes):
    """A small network inside a large one, its channels scattered: cutting finds it again."""
    small = lively_network(arch_of(SMALL | {"window": 3, "q_kernels": [5, 5]} | changes))
    large = lively_network(arch_of(LARGE | changes), seed=1)
    with torch.no_grad():
        for parameter in large.parameters():  # what is not part of the small network says nothing
            parameter.zero_()
    copy_common(large, small, range(10))
    scrambled = by_importance(large, {part.name: torch.tensor(part.importance) for part in scored(large, seed=3)})
    with torch.no_grad():
        assert relative_error(scrambled(images()), small(images())) < 1e-4
    channels, _ = importance(scrambled, [(images(), torch.arange(4))])
    pruned = prune_to(scrambled, small.arch, channels)
    with torch.no_grad():
        assert relative_error(pruned(images()), small(images())) < 1e-3


def test_the_least_important_blocks_go_and_the_others_keep_their_order():
    model = lively_network(arch_of(SMALL, depth=3))
    channels = [
        part.model_copy(update={"importance": tuple(0.01 * x for x in part.importance)})
        if ".1.blocks.0." in part.name
        else part
        for part in scored(model)
    ]
    pruned = prune_to(model, arch_of(SMALL, depth=2), channels)
    kept = by_importance(model, {part.name: torch.tensor(part.importance) for part in channels}).stages[1].blocks
    for block, origin in zip(pruned.stages[1].blocks, (kept[1], kept[2]), strict=True):
        assert torch.equal(block.after[0].dw.fn.conv.weight, origin.after[0].dw.fn.conv.weight)


def test_a_smaller_input_and_smaller_kernels_are_resampled():
    model = lively_network(arch_of(LARGE, size=128))
    pruned = prune_to(model, arch_of(SMALL, size=96), scored(model))
    assert pruned.arch == arch_of(SMALL, size=96)
    with torch.no_grad():
        assert torch.isfinite(pruned(images(side=96))).all()


def test_the_network_itself_is_left_as_it_is():
    model = lively_network(arch_of(LARGE, depth=2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prune_to(model, arch_of(SMALL), scored(model))
    assert model.arch == arch_of(LARGE, depth=2)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 80}, r"stages\[0\].width must be at most 64, got 80"),
        ({"depth": 2}, r"stages\[0\].depth must be at most 1, got 2"),
        ({"heads": 1}, r"stages\[0\].heads must be 2, got 1"),
        ({"mixer": "linear"}, r"stages\[0\].mixer must be softmax, got linear"),
        ({"cascade": False}, r"stages\[0\].cascade must be True, got False"),
        ({"ffn_count": 2}, r"stages\[0\].ffn_count must be 1, got 2"),
        ({"v_ratio": 0.5}, r"stages\[0\].v_ratio must be 1.0 in this cascade, got 0.5"),
        ({"merge_ratio": 8.0, "width": 48}, r"stages\[1\].merge_dim must be at most 256, got 384"),
    ],
)
def test_what_is_not_a_part_of_the_network_is_refused(changes, message):
    model = lively_network(arch_of(LARGE))
    with pytest.raises(UsageError, match=message):
        prune_to(model, arch_of(LARGE | changes), scored(model))


def test_a_wider_stem_and_other_classes_are_refused():
    model = lively_network(arch_of(LARGE))
    wide = ArchConfig.model_validate(arch_of(SMALL).model_dump() | {"stem_ratio": 2.0, "num_classes": 7})
    with pytest.raises(UsageError, match=r"num_classes must be 10, got 7") as caught:
        prune_to(model, wide, scored(model))
    wider = ArchConfig.model_validate(arch_of(LARGE).model_dump() | {"stem_ratio": 2.0})
    assert "stem" not in str(caught.value)
    with pytest.raises(UsageError, match="the stem must be at most"):
        prune_to(model, wider, scored(model))


def test_what_is_written_is_a_start_for_trainings(tmp_path):
    training = finished(tmp_path / "tiny")
    channels = analyze(str(training), "digits", images=64).channels
    smaller = tiny_arch(ffn_ratio=1.75)
    wanted = ArchConfig.model_validate(smaller.model_dump() | {"image_size": 96, "num_classes": 1000})
    weights = write_start(str(training), wanted, channels, 64, tmp_path / "start")
    model = open_saved(str(weights)).model
    assert model.arch.stages == wanted.stages
    assert (model.arch.image_size, model.arch.in_channels, model.arch.num_classes) == (64, 1, 10)  # the network's own
    fresh = build(model.arch, seed=3)
    assert start_from(fresh, weights).summary().startswith("100.0% of")
    found = evaluate([str(training), str(weights)], "digits", like=str(training), workers=0)
    assert found[1].top1 > 80  # an eighth of the FFNs' channels is cut: those that matter least


def test_without_importance_nothing_is_cut():
    model = lively_network(arch_of(LARGE))
    with pytest.raises(UsageError, match="needs data of its own classes"):
        prune_to(model, arch_of(SMALL), [])
