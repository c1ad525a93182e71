"""Shared weights: every member of a space is a plain network whose tensors are parts of shared ones."""

import random
from itertools import chain

import pytest
import torch
from torch import nn

from evit_nas.arch import ArchConfig
from evit_nas.network import elastic as elastics
from evit_nas.network.elastic import Centre, Elastic, Lead, Piece, corners_of, pieces_of
from evit_nas.network.model import build
from evit_nas.space import SearchSpace, shipped_spaces
from tests.networks import VARIANTS, tiny_arch
from tests.test_search_spaces import covering

SPACES = sorted(shipped_spaces())

# what decides which shared tensors a member takes; everything else is a matter of how much of them
KINDS = {
    "cascade": {},
    "cascade, other values": {"v_ratio": [0.5, 1.5]},
    "cascade of three": {"heads": 3, "width": {"from": 48, "to": 144, "step": 48}},
    "parallel": {"cascade": False},
    "one head": {"heads": 1},
    "linear": {"mixer": "linear"},
    "convolutional": {"mixer": "none"},
}


def space_of(**changes) -> SearchSpace:
    """A small space in which everything that can be more or less is so."""
    stage = {
        "width": {"from": 32, "to": 96, "step": 32},
        "depth": {"from": 1, "to": 2},
        "heads": 2,
        "qk_dim": 8,  # more of it changes the scale of what is there, as it does in every attention
        "ffn_ratio": [1.0, 2.0],
        "ffn_count": [1, 2],
        "q_kernels": [3, 5],
        "merge_ratio": [2.0, 4.0],
    }
    stages = [stage | changes for _ in range(3)]
    return SearchSpace.model_validate({"image_size": 64, "num_classes": 10, "stem_ratio": [0.5, 1.0], "stages": stages})


def lively(elastic: Elastic) -> Elastic:
    """With BatchNorms that do something, and biases that differ."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in elastic.named_parameters():
            if "bn" in name or name.endswith("table"):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return elastic


def images(arch: ArchConfig, count: int = 4) -> torch.Tensor:
    height, width = arch.input_size
    shape = (count, arch.in_channels, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)


@pytest.fixture(scope="module", params=SPACES)
def shipped(request):
    """A shipped space at 64 px, where the size of the map proves nothing, and its shared weights."""
    space = SearchSpace.load(request.param).model_copy(update={"image_size": 64})
    return request.param, space, lively(Elastic(space))


def test_a_kernel_for_all_heads_and_lists_that_are_longer_than_needed_share_one_query_kernel():
    space = space_of(heads=[1, 2], q_kernels=[3, [7, 5, 3, 3]])
    assert {stage.q_kernels for stage in next(corners_of(space)).stages} == {(7, 5)}


@torch.no_grad()
def test_an_extracted_member_computes_what_it_did_with_shared_weights(shipped):
    """In single precision, which takes half the time of double: both do the same sums in the same order."""
    name, space, elastic = shipped
    for arch in covering(name):
        member = space.adapted(arch)
        x = images(member).float()
        model = elastic.extract(member)
        assert torch.allclose(model(x), elastic(member, x), rtol=0, atol=1e-6)
        assert model.stages[0].blocks[0].before[0].dw.fn.bn.weight.std() > 0.1  # it is alive


def test_every_member_finds_all_its_tensors(shipped):
    _, space, elastic = shipped
    assert_covers(elastic, space)


def test_a_stem_of_a_lower_ratio_finds_its_tensors_where_it_is_wider():
    """An eighth of 48 is 6 channels; of a half of that it would be 3, which are rounded to 8."""
    space = space_of(width=[32, 48])
    assert_covers(Elastic(space), space)


def assert_covers(elastic: Elastic, space: SearchSpace) -> None:
    shapes = {name: tuple(parameter.shape) for name, parameter in elastic.shared.items()}
    rng = random.Random(0)
    for arch in (space.sample(rng) for _ in range(200)):
        for piece in chain.from_iterable(pieces_of(arch).values()):
            taken = tuple(span.size for span in piece.spans)
            assert all(own <= whole for own, whole in zip(taken, shapes[piece.key.replace(".", "/")], strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_member_has_a_piece_for_each_parameter(variant):
    arch = tiny_arch(**VARIANTS[variant])
    sizes = {
        name: sum(torch.Size(span.size for span in piece.spans).numel() for piece in pieces)
        for name, pieces in pieces_of(arch).items()
    }
    assert sizes == {name: parameter.numel() for name, parameter in build(arch).named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_member_is_the_largest_network_with_everything_else_at_zero(kind):
    """Narrower, shallower and smaller are parts of wider, deeper and larger: the larger then computes the same."""
    space = space_of(**KINDS[kind])
    elastic, rng, largest = lively(Elastic(space)).double(), random.Random(0), space.largest()
    for arch in (space.sample(rng) for _ in range(10)):
        masked = Elastic(space, seed=None).double()
        masked._put(arch, elastic.extract(arch).state_dict())
        x = images(arch)
        expected = elastic(arch, x)
        assert torch.allclose(masked(largest, x), expected, rtol=0, atol=1e-9)
        assert expected.std() > 0.05


def test_gradients_reach_the_part_that_a_member_uses_and_no_other():
    space = space_of()
    elastic, rng = lively(Elastic(space)).double(), random.Random(1)
    for arch in (space.sample(rng) for _ in range(5)):
        elastic.zero_grad(set_to_none=True)
        elastic(arch, images(arch)).square().sum().backward()
        model = elastic.extract(arch)
        model(images(arch)).square().sum().backward()
        expected = Elastic(space, seed=None).double()
        expected._put(arch, {name: parameter.grad for name, parameter in model.named_parameters()})
        for name, parameter in elastic.shared.items():
            found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            assert torch.allclose(found, expected.shared[name], rtol=1e-9, atol=1e-9), name


def test_the_largest_network_starts_as_it_does_alone():
    space = space_of()
    largest = next(corners_of(space))
    taken, alone = Elastic(space, seed=3).extract(largest), build(largest, seed=3)
    for (name, own), (_, other) in zip(taken.named_parameters(), alone.named_parameters(), strict=True):
        assert torch.equal(own, other), name


def test_a_head_keeps_its_channels_whatever_the_width():
    """Channel i of head j is the shared channel i * h + j."""
    shared = torch.arange(12)
    narrow, wide = (Piece("", (Lead(size, heads=3),)).of(shared).flatten().tolist() for size in (6, 12))
    assert narrow == [0, 3, 1, 4, 2, 5]
    assert wide == [0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11]


def test_a_smaller_kernel_is_the_centre_of_a_larger_one():
    shared = torch.arange(25).reshape(5, 5)
    assert Piece("", (Centre(3), Centre(3))).of(shared).tolist() == [[6, 7, 8], [11, 12, 13], [16, 17, 18]]


def test_cascade_on_and_off_share_weights_and_no_norms():
    on, off = (
        {
            piece.key
            for piece in chain.from_iterable(pieces_of(tiny_arch(cascade=cascade)).values())
            if "mixer" in piece.key
        }
        for cascade in (True, False)
    )
    assert {key for key in on if ".bn." not in key} == {key for key in off if ".bn." not in key}
    assert not {key for key in on & off if ".bn." in key}


def test_attention_biases_are_spared_weight_decay():
    elastic = Elastic(space_of())
    spared = elastic.no_weight_decay()
    assert len(spared) == 2 * 2 * 3  # of two heads in two blocks of three stages
    assert spared < {name for name, _ in elastic.named_parameters()}


def test_modules_of_members_do_not_pile_up(monkeypatch):
    monkeypatch.setattr(elastics, "SKELETONS", 4)
    space, rng = space_of(), random.Random(0)
    elastic = Elastic(space)
    for arch in (space.sample(rng) for _ in range(10)):
        elastic(arch, torch.zeros(2, 3, 64, 64))
    assert len(elastic._skeletons) == 4


def test_the_extracted_network_is_its_own():
    space = space_of()
    elastic, arch = Elastic(space), space.smallest()
    model = elastic.extract(arch)
    with torch.no_grad():
        for parameter in elastic.parameters():
            parameter.zero_()
    assert any(parameter.abs().sum() > 0 for parameter in model.parameters())
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.track_running_stats and norm.running_var is not None for norm in norms)
