"""The network: parity with timm, the interface, attention checked against its formulas, and the traps."""

import copy
import math
import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import accelerate
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evit_nas.arch import PRESETS, ArchConfig, StageConfig
from evit_nas.errors import UsageError
from evit_nas.network.attention import (
    CascadedGroupAttention,
    LinearAttention,
    ParallelGroupAttention,
    from_windows,
    resize_bias_table,
    to_windows,
)
from evit_nas.network.deploy import fold
from evit_nas.network.model import Block, EfficientViT, build
from evit_nas.network.weights import load_weights, to_timm
from tests.networks import VARIANTS, lively, lively_network, relative_error, tiny_arch

variants = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
some_variants = pytest.mark.parametrize("name", ["cascade", "parallel", "linear", "padded window"])
softmax_mixers = pytest.mark.parametrize("cascade", [True, False], ids=["cascade", "parallel"])


def images(*size: int, batch: int = 2, seed: int = 0, channels: int = 3) -> Tensor:
    height, width = size if len(size) == 2 else (size[0], size[0])
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def resized(arch: ArchConfig, image_size: Any) -> ArchConfig:
    return ArchConfig.model_validate(arch.model_dump() | {"image_size": image_size})


def tiny(seed: int = 0, **changes: Any) -> EfficientViT:
    """A small lively network."""
    return lively_network(tiny_arch(**changes), seed)


def mixers(model: nn.Module) -> Iterator[nn.Module]:
    kinds = CascadedGroupAttention | ParallelGroupAttention | LinearAttention
    return (module for module in model.modules() if isinstance(module, kinds))


def typical_error(actual: Tensor, expected: Tensor) -> float:
    """Relative root mean square difference: rounding may move a single value a lot, but not most of them."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(autouse=True)
def seeded_and_without_gradients(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every test draws the same weights; only those that ask for `gradients` record them."""
    with torch.random.fork_rng(devices=[]), torch.set_grad_enabled("gradients" in request.fixturenames):
        torch.default_generator.manual_seed(0)
        yield


@pytest.fixture
def gradients() -> None:
    """Asked for by tests that run backwards."""


# The same network as timm's


@pytest.mark.parametrize(
    ("name", "image_size"), [*((name, 224) for name in PRESETS), ("m0", 192), ("m4", 192), ("m0", 256), ("m4", 256)]
)
def test_presets_compute_what_timm_computes(name: str, image_size: int) -> None:
    ours = lively_network(resized(ArchConfig.preset(name), image_size), images=2)
    theirs = timm.create_model(f"efficientvit_{name}", img_size=image_size).eval()
    theirs.load_state_dict(to_timm(ours), strict=True)
    x = images(image_size)

    expected = theirs(x)

    assert relative_error(expected[0], expected[1]) > 0.1  # the images matter
    assert relative_error(ours(x), expected) < 5e-5  # single precision: sums are taken in another order
    assert relative_error(ours.double()(x.double()), theirs.double()(x.double())) < 1e-10


@pytest.mark.skipif(
    not hasattr(timm.models.efficientvit_msra.EfficientVitMsra, "set_input_size"),
    reason="this timm knows squares only",
)
@pytest.mark.parametrize("image_size", [(224, 320), (384, 160), (64, 512)])
def test_rectangles_compute_what_timm_computes(image_size: tuple[int, int]) -> None:
    ours = lively_network(resized(ArchConfig.preset("m1"), image_size), images=2)
    theirs = timm.create_model("efficientvit_m1", img_size=image_size).eval()
    theirs.load_state_dict(to_timm(ours), strict=True)
    x = images(*image_size)

    assert relative_error(ours(x), theirs(x)) < 1e-5


@pytest.mark.parametrize(
    ("name", "millions"),
    [("m0", 2.349), ("m1", 2.981), ("m2", 4.188), ("m3", 6.901), ("m4", 8.804), ("m5", 12.474)],
)
def test_parameter_counts_are_the_published_ones(name: str, millions: float) -> None:
    with torch.device("meta"):
        model = build(ArchConfig.preset(name))

    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 3) == millions


@pytest.mark.parametrize("name", ["m0", "m5"])
def test_interface_tells_what_timm_tells(name: str) -> None:
    ours, theirs = build(ArchConfig.preset(name), seed=0), timm.create_model(f"efficientvit_{name}")

    assert ours.feature_info == theirs.feature_info
    assert ours.num_features == theirs.num_features
    assert ours.head_hidden_size == theirs.head_hidden_size
    assert ours.num_classes == theirs.num_classes
    assert len(ours.no_weight_decay()) == len(theirs.no_weight_decay())


# Sizes


@pytest.mark.parametrize(
    "image_size", [*range(64, 513, 32), (64, 96), (96, 64), (64, 512), (512, 64), (224, 320), (160, 416)]
)
def test_forward_at_every_size(image_size: Any) -> None:
    arch = resized(tiny_arch(), image_size)
    model = lively_network(arch, images=2)
    x = images(*arch.input_size, batch=1)

    features = model.forward_features(x)

    assert features.shape == (1, 64, *arch.grids[-1])
    assert model(x).shape == (1, 10)
    assert model(x).isfinite().all()


@pytest.mark.parametrize("batch", [1, 3])
def test_images_of_a_batch_do_not_see_each_other(batch: int) -> None:
    model, x = tiny(), images(64, batch=batch)

    assert torch.allclose(model(x)[-1:], model(x[-1:]), atol=1e-5)


def test_in_channels_and_stem_ratio() -> None:
    arch = tiny_arch().model_copy(update={"in_channels": 1, "stem_ratio": 2.0})
    model = build(arch, seed=0).eval()

    assert [conv.conv.out_channels for conv in model.stem] == [8, 16, 32, 32]
    assert model(images(64, channels=1)).shape == (2, 10)


# Every kind of block


@variants
@pytest.mark.usefixtures("gradients")
def test_every_parameter_learns(variant: dict[str, object]) -> None:
    model = tiny(**variant).train()

    model(images(64)).square().mean().backward()

    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@variants
def test_fresh_blocks_are_the_identity(variant: dict[str, object]) -> None:
    model = build(tiny_arch(**variant), seed=0)
    blocks = [block for block in model.modules() if isinstance(block, Block)]
    assert len(blocks) == 3

    for training in (True, False):
        for block, stage in zip(blocks, model.arch.stages, strict=True):
            x = images(4, channels=stage.width)
            assert torch.equal(block.train(training)(x), x)


def test_fresh_weights_are_the_papers() -> None:
    model = build(ArchConfig.preset("m0"), seed=0)
    classifier = model.get_classifier()

    assert classifier.bias.abs().max() == 0
    assert classifier.weight.std() == pytest.approx(0.02, rel=0.02)
    assert all(mixer.bias.table.abs().max() == 0 for mixer in mixers(model))
    assert all(block.mixer.fn.proj.bn.weight.abs().max() == 0 for stage in model.stages for block in stage.blocks)
    assert model.stages[1].downsample.before.dw.fn.bn.weight.min() == 1
    assert all(conv.bn.weight.min() == 1 for conv in model.stem)


@pytest.mark.parametrize(
    "variant", [changes for changes in VARIANTS.values() if changes.get("mixer") != "none"], ids=str
)
def test_attention_matters_in_a_lively_network(variant: dict[str, object]) -> None:
    model, x = tiny(**variant), images(64)
    alive = model(x)

    for mixer in mixers(model):
        mixer.proj.bn.weight.zero_()

    assert relative_error(model(x), alive) > 0.01


SAME = [
    ({"heads": 1, "cascade": True}, {"heads": 1, "cascade": False}),
    ({"window": 4}, {"window": 64}),
    ({"v_ratio": 1.0}, {"v_ratio": 1.01}),
    ({"cascade": False}, {"cascade": False, "q_kernels": [5, 9]}),
    ({"mixer": "none"}, {"mixer": "none", "heads": 3, "qk_dim": 4, "v_ratio": 2}),
    ({"mixer": "linear"}, {"mixer": "linear", "window": 1, "cascade": False}),
]


@pytest.mark.parametrize(("one", "other"), SAME, ids=str)
def test_equal_keys_mean_equal_networks(one: dict[str, object], other: dict[str, object]) -> None:
    a, b, x = tiny(**one), tiny(**other), images(64)

    assert a.arch.key == b.arch.key
    assert a.state_dict().keys() == b.state_dict().keys()
    assert torch.allclose(a(x), b(x), atol=1e-6)


@pytest.mark.parametrize(("one", "other"), list(pairwise(VARIANTS)), ids=str)
def test_other_keys_mean_other_networks(one: str, other: str) -> None:
    a, b, x = tiny(**VARIANTS[one]), tiny(**VARIANTS[other]), images(64)

    assert a.arch.key != b.arch.key
    assert relative_error(a(x), b(x)) > 0.01


# Attention by its formulas


def stage(**changes: Any) -> StageConfig:
    fields = {"width": 32, "depth": 1, "heads": 4, "qk_dim": 8, "q_kernels": (3, 3, 3, 3), **changes}
    return StageConfig.model_validate(fields)


def softmax_mixer(cascade: bool, side: int = 4, **changes: Any) -> nn.Module:
    kind = CascadedGroupAttention if cascade else ParallelGroupAttention
    return lively(kind(stage(cascade=cascade, **changes), side))


def head_outputs(mixer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """What goes into the projection, head by head."""
    seen = []
    hook = mixer.proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    mixer(x)
    hook.remove()
    return seen[0].chunk(4, dim=1)


def heads_that_change(mixer: nn.Module, x: Tensor, group: int) -> list[bool]:
    """Which heads' outputs change with the input channels of head `group`."""
    other = x.clone()
    other[:, 8 * group : 8 * group + 8] += 1
    pairs = zip(head_outputs(mixer, x), head_outputs(mixer, other), strict=True)
    return [not torch.equal(before, after) for before, after in pairs]


@pytest.mark.parametrize("v_ratio", [1.0, 2.0])
@pytest.mark.parametrize("group", range(4))
def test_a_cascade_passes_each_head_on_to_the_later_ones(group: int, v_ratio: float) -> None:
    mixer, x = softmax_mixer(cascade=True, v_ratio=v_ratio), images(4, channels=32)

    changed = heads_that_change(mixer, x, group)

    assert changed == [head >= group for head in range(4)]


@pytest.mark.parametrize("group", range(4))
def test_parallel_heads_do_not_see_each_other(group: int) -> None:
    mixer, x = softmax_mixer(cascade=False), images(4, channels=32)

    changed = heads_that_change(mixer, x, group)

    assert changed == [head == group for head in range(4)]


@pytest.mark.parametrize("v_ratio", [1.0, 2.0])
def test_parallel_attention_is_softmax_attention_head_by_head(v_ratio: float) -> None:
    mixer, x = softmax_mixer(cascade=False, v_ratio=v_ratio), images(4, channels=32)
    qk, v_dim = 8, stage(v_ratio=v_ratio).v_dim
    qkv = mixer.qkv(x).chunk(4, dim=1)
    queries = mixer.q_local(torch.cat([part[:, :qk] for part in qkv], dim=1)).chunk(4, dim=1)

    for head, out in enumerate(head_outputs(mixer, x)):
        q = queries[head].flatten(2)
        k, v = qkv[head][:, qk:].flatten(2).split([qk, v_dim], dim=1)
        weights = (torch.einsum("bdn,bdm->bnm", q, k) / qk**0.5 + mixer.bias()[head]).softmax(-1)
        expected = torch.einsum("bnm,bdm->bdn", weights, v).view(2, v_dim, 4, 4).relu()
        assert torch.allclose(out, expected, atol=1e-5)


def test_linear_attention_is_the_sum_over_all_pairs() -> None:
    mixer, x = lively(LinearAttention(stage(mixer="linear", v_ratio=2.0))), images(3, 5, channels=32)
    q, k, v = mixer.qkv(x).split([32, 32, 64], dim=1)
    q, k, v = (part.reshape(2, 4, -1, 15) for part in (q, k, mixer.v_local(v)))
    similarity = torch.einsum("bhdn,bhdm->bhnm", q.relu(), k.relu())
    expected = torch.einsum("bhnm,bhdm->bhdn", similarity, v) / (similarity.sum(-1)[:, :, None] + 1e-5)

    assert torch.allclose(mixer(x), mixer.proj(expected.reshape(2, 64, 3, 5)), atol=1e-4)


def test_linear_attention_is_finite_where_nothing_is_similar() -> None:
    mixer = lively(LinearAttention(stage(mixer="linear")))
    mixer.qkv.bn.weight.zero_()
    mixer.qkv.bn.bias.fill_(-1)

    assert mixer(images(4, channels=32)).isfinite().all()


def overflowing_mixer() -> LinearAttention:
    """1024 tokens with similarities of the order of 100 * 100 add up to more than fp16 can hold (65504)."""
    mixer = lively(LinearAttention(stage(mixer="linear")))
    mixer.qkv.bn.weight.mul_(100)
    return mixer


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_linear_attention_sums_in_fp32_under_autocast(dtype: torch.dtype) -> None:
    mixer, x = overflowing_mixer(), images(32, channels=32)
    expected = mixer(x)

    with torch.autocast("cpu", dtype):
        actual = mixer(x)

    assert actual.dtype == dtype
    assert typical_error(actual, expected) < 0.03


def test_linear_attention_sums_in_fp32_in_an_fp16_network() -> None:
    mixer, x = overflowing_mixer(), images(32, channels=32)
    expected = mixer(x)

    assert typical_error(mixer.half()(x.half()), expected) < 0.03


def test_linear_attention_keeps_double_precision() -> None:
    mixer, x = lively(LinearAttention(stage(mixer="linear"))).double(), images(4, channels=32).double()

    step = mixer(x * (1 + 1e-12)) - mixer(x)

    assert 0 < step.abs().max() < 1e-9


@pytest.mark.parametrize("size", [(4, 4), (4, 6), (5, 3), (7, 7), (2, 9)])
@pytest.mark.parametrize("side", [2, 3, 4])
def test_windows_can_be_put_together_again(size: tuple[int, int], side: int) -> None:
    x = images(*size, channels=5)
    windows = to_windows(x, side)

    assert windows.shape[1:] == (5, side, side)
    assert torch.equal(windows[0], F.pad(x, (0, side, 0, side))[0, :, :side, :side])
    assert torch.equal(from_windows(windows, *size), x)


@softmax_mixers
@pytest.mark.usefixtures("gradients")
def test_attention_stays_in_its_window(cascade: bool) -> None:
    mixer = softmax_mixer(cascade, side=2)
    x = images(4, 6, channels=32).requires_grad_()

    mixer(x)[0, :, 3, 1].sum().backward()  # a token of the window of rows 2, 3 and columns 0, 1

    seen = x.grad.abs().sum((0, 1)) > 0
    expected = torch.zeros(4, 6, dtype=torch.bool)
    expected[2:, :2] = True
    assert torch.equal(seen, expected)


@softmax_mixers
def test_attention_bias_depends_on_the_distances(cascade: bool) -> None:
    bias = softmax_mixer(cascade, side=3).bias
    tokens = bias().view(4, 3, 3, 3, 3)

    assert torch.equal(tokens[:, 0, 0, 1, 2], bias.table[:, 1 * 3 + 2])
    assert torch.equal(tokens[:, 2, 2, 1, 0], bias.table[:, 1 * 3 + 2])
    assert torch.equal(tokens[:, 1, 1, 1, 1], bias.table[:, 0])


# Building


def test_build_is_a_function_of_architecture_and_seed() -> None:
    first, again, other = (build(tiny_arch(), seed).state_dict() for seed in (3, 3, 4))

    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_build_with_a_seed_leaves_random_states_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeded the GPUs"))
    torch_state, python_state = torch.get_rng_state(), random.getstate()

    build(tiny_arch(), seed=0)

    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state


def test_build_without_a_seed_draws_from_the_global_state() -> None:
    first, other = (build(tiny_arch()).state_dict() for _ in range(2))

    assert any(not torch.equal(first[key], other[key]) for key in first)


# Built without memory, then loaded


def on_meta(arch: ArchConfig) -> EfficientViT:
    with torch.device("meta"):
        return build(arch)


def assigned(arch: ArchConfig, weights: dict[str, Tensor], path: Path) -> nn.Module:
    model = on_meta(arch)
    model.load_state_dict(weights, assign=True)
    return model


def emptied(arch: ArchConfig, weights: dict[str, Tensor], path: Path) -> nn.Module:
    """Memory that holds anything: every tensor that loading forgets is found."""
    model = on_meta(arch).to_empty(device="cpu")
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.fill_(math.nan if tensor.is_floating_point() else -(2**40))
    model.load_state_dict(weights)
    return model


def loaded_by_name(arch: ArchConfig, weights: dict[str, Tensor], path: Path) -> nn.Module:
    load_weights(model := on_meta(arch), weights)
    return model


def dispatched(include_buffers: bool) -> Any:
    def load(arch: ArchConfig, weights: dict[str, Tensor], path: Path) -> nn.Module:
        save_file(weights, path / "model.safetensors")
        with accelerate.init_empty_weights(include_buffers=include_buffers):
            model = build(arch)
        return accelerate.load_checkpoint_and_dispatch(model, path, device_map={"": "cpu"})

    return load


EMPTY_STARTS = {
    "assign": assigned,
    "to_empty": emptied,
    "load_weights": loaded_by_name,
    "accelerate": dispatched(include_buffers=False),
    "accelerate, buffers too": dispatched(include_buffers=True),
}


@pytest.mark.parametrize("load", EMPTY_STARTS.values(), ids=EMPTY_STARTS)
@some_variants
def test_a_network_built_without_memory_computes_what_its_weights_say(name: str, load: Any, tmp_path: Path) -> None:
    model, x = tiny(**VARIANTS[name]), images(64)

    loaded = load(model.arch, model.state_dict(), tmp_path).eval()

    assert relative_error(loaded(x), model(x)) < 1e-5  # memory that is aligned otherwise sums otherwise


@variants
def test_every_tensor_of_a_network_is_in_its_checkpoint(variant: dict[str, object]) -> None:
    model = build(tiny_arch(**variant), seed=0)

    assert {name for name, _ in (*model.named_parameters(), *model.named_buffers())} == set(model.state_dict())


# The interface of a timm model


def test_forward_is_features_and_head() -> None:
    model, x = tiny(), images(64)
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)

    assert torch.equal(model(x), model.forward_head(features))
    assert torch.equal(pooled, features.mean((2, 3)))
    assert torch.equal(model(x), model.head(pooled))


def test_intermediates_are_those_of_feature_info() -> None:
    model = lively_network(resized(tiny_arch(), 128))
    x = images(128)

    final, maps = model.forward_intermediates(x)

    assert torch.equal(final, model.forward_features(x))
    assert torch.equal(final, maps[-1])
    for info, map_ in zip(model.feature_info, maps, strict=True):
        assert map_.shape == (2, info["num_chs"], 128 // info["reduction"], 128 // info["reduction"])
        assert model.get_submodule(info["module"]) is not None


@pytest.mark.parametrize(
    ("indices", "taken"),
    [(None, [0, 1, 2]), (1, [2]), (2, [1, 2]), (3, [0, 1, 2]), ([0, -1], [0, 2]), ([1], [1])],
)
def test_intermediates_can_be_chosen(indices: Any, taken: list[int]) -> None:
    model, x = tiny(), images(64)
    _, maps = model.forward_intermediates(x)

    chosen = model.forward_intermediates(x, indices, intermediates_only=True)

    assert len(chosen) == len(taken)
    assert all(torch.equal(map_, maps[i]) for map_, i in zip(chosen, taken, strict=True))


def test_stop_early_runs_no_later_stage() -> None:
    model, x = tiny(), images(64)
    _, maps = model.forward_intermediates(x)
    model.stages[2].register_forward_pre_hook(lambda *_: pytest.fail("stage 2 ran"))

    final, (map_,) = model.forward_intermediates(x, [1], stop_early=True)

    assert torch.equal(final, maps[1])
    assert torch.equal(map_, maps[1])


@pytest.mark.parametrize("indices", [0, 4, -1, [3], [-4], []])
def test_intermediates_that_do_not_exist_are_refused(indices: Any) -> None:
    with pytest.raises(UsageError, match="indices must be a number of last stages from 1 to 3, or stages"):
        tiny().forward_intermediates(images(64), indices)


def test_intermediates_have_one_format() -> None:
    with pytest.raises(UsageError, match="output_fmt must be 'NCHW', got 'NLC'"):
        tiny().forward_intermediates(images(64), output_fmt="NLC")


def test_reset_classifier_to_no_classes_and_back() -> None:
    model, x = tiny(), images(64)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)

    model.reset_classifier(0)
    assert torch.equal(model(x), pooled)
    assert model.arch.num_classes == model.num_classes == 0

    model.reset_classifier(0, global_pool="")
    assert torch.equal(model(x), model.forward_features(x))

    model.reset_classifier(7, global_pool="avg")
    assert model(x).shape == (2, 7)
    assert model.get_classifier().out_features == model.num_classes == model.arch.num_classes == 7


def test_reset_classifier_keeps_mode_and_type() -> None:
    model = tiny().double()

    model.reset_classifier(5)

    assert not model.head.training
    assert model(images(64).double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("num_classes", "pool", "message"),
    [
        (10, "", "a classifier needs pooled features; use global_pool='avg'"),
        (10, "max", "global_pool must be 'avg' or '', got 'max'"),
        (-1, None, "num_classes: input should be greater than or equal to 0, got -1"),
    ],
)
def test_reset_classifier_refuses_and_changes_nothing(num_classes: int, pool: Any, message: str) -> None:
    model, x = tiny(), images(64)
    before = model(x)

    with pytest.raises(UsageError, match=message):
        model.reset_classifier(num_classes, pool)

    assert torch.equal(model(x), before)
    assert model.num_classes == model.arch.num_classes == 10


def test_set_input_size_resamples_the_biases_and_returns() -> None:
    model = tiny()
    tables = [mixer.bias.table.clone() for mixer in mixers(model)]

    model.set_input_size((96, 128))
    assert model.arch.input_size == (96, 128)
    assert [mixer.side for mixer in mixers(model)] == [6, 3, 2]
    for mixer, table in zip(mixers(model), tables, strict=True):
        assert torch.equal(mixer.bias.table, resize_bias_table(table, mixer.side))
        assert mixer.bias.table.requires_grad
    assert model(images(96, 128)).shape == (2, 10)

    model.set_input_size(64)
    assert model.arch == tiny_arch()
    assert [mixer.bias.table.shape for mixer in mixers(model)] == [table.shape for table in tables]
    assert model(images(64)).isfinite().all()


def test_set_input_size_is_a_network_built_for_that_size() -> None:
    model, other = tiny(), lively_network(resized(tiny_arch(), 128), seed=1)

    model.set_input_size(128)
    model.load_state_dict(other.state_dict())

    assert torch.equal(model(images(128)), other(images(128)))


def test_set_input_size_leaves_biases_that_still_fit() -> None:
    model = lively_network(resized(tiny_arch(window=2), 128))
    parameters = [mixer.bias.table for mixer in mixers(model)]

    model.set_input_size(256)

    assert all(mixer.bias.table is table for mixer, table in zip(mixers(model), parameters, strict=True))


def test_set_input_size_refuses_and_changes_nothing() -> None:
    model, x = tiny(), images(64)
    before = model(x)

    with pytest.raises(UsageError, match="image_size: must be a multiple of 16 from 64 to 512, got 100"):
        model.set_input_size(100)

    assert torch.equal(model(x), before)


@variants
def test_only_attention_biases_are_kept_from_weight_decay(variant: dict[str, object]) -> None:
    model = tiny(**variant)
    parameters = dict(model.named_parameters())
    softmax = [mixer for mixer in mixers(model) if not isinstance(mixer, LinearAttention)]

    assert {id(parameters[name]) for name in model.no_weight_decay()} == {id(m.bias.table) for m in softmax}


@pytest.mark.parametrize(("coarse", "groups"), [(True, 5), (False, 8)])
def test_layer_groups_go_from_the_stem_to_the_head(coarse: bool, groups: int) -> None:
    model = build(ArchConfig.preset("m0"), seed=0)

    names = timm.models.group_parameters(model, model.group_matcher(coarse))

    assert sorted(name for group in names.values() for name in group) == sorted(dict(model.named_parameters()))
    assert all(name.startswith("stem.") for name in names[0])
    assert all(name.startswith("head.") for name in names[max(names)])
    assert len(names) == groups


@pytest.mark.parametrize("name", ["cascade", "linear"])
@pytest.mark.usefixtures("gradients")
def test_grad_checkpointing_changes_no_gradient_and_no_statistic(name: str) -> None:
    plain = tiny(**VARIANTS[name]).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()

    for model in (plain, saving):
        model(images(64)).square().mean().backward()

    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)
    for a, b in zip(plain.buffers(), saving.buffers(), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(plain.stem[0].bn.running_mean, tiny(**VARIANTS[name]).stem[0].bn.running_mean)


# No cache that goes stale


@softmax_mixers
def test_outputs_follow_load_state_dict_in_eval_mode(cascade: bool) -> None:
    model, other, x = tiny(cascade=cascade), tiny(seed=1, cascade=cascade), images(64)
    assert relative_error(model(x), other(x)) > 0.01

    model.load_state_dict(other.state_dict())

    assert torch.equal(model(x), other(x))


@softmax_mixers
def test_outputs_follow_a_moving_average(cascade: bool) -> None:
    model, x = tiny(cascade=cascade), images(64)
    average = copy.deepcopy(model)
    average(x)

    for mixer, other in zip(mixers(average), mixers(tiny(seed=1, cascade=cascade)), strict=True):
        mixer.bias.table.lerp_(other.bias.table, 0.5)
    rebuilt = build(model.arch, seed=2).eval()
    rebuilt.load_state_dict(average.state_dict())

    assert relative_error(average(x), model(x)) > 1e-4
    assert torch.equal(average(x), rebuilt(x))


@variants
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float16, 0.05)])
def test_outputs_follow_the_type(variant: dict[str, object], dtype: torch.dtype, tolerance: float) -> None:
    model, x = tiny(**variant), images(64)
    before = model(x)

    after = model.to(dtype)(x.to(dtype))

    assert after.dtype == dtype
    assert typical_error(after, before) < tolerance
    assert typical_error(model.float()(x), before) < tolerance


@variants
def test_autocast_stays_close(variant: dict[str, object]) -> None:
    model, x = tiny(**variant), images(64)
    expected = model(x)

    with torch.autocast("cpu", torch.bfloat16):
        actual = model(x)

    assert typical_error(actual, expected) < 0.2


# Compilers


@some_variants
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*is deprecated")
def test_jit_trace(name: str) -> None:
    model, x = tiny(**VARIANTS[name]), images(64, seed=1)

    traced = torch.jit.trace(model, images(64), check_trace=False)  # which would compare on the traced images

    assert relative_error(traced(x), model(x)) < 1e-5


@some_variants
def test_torch_export(name: str) -> None:
    model, x = tiny(**VARIANTS[name]), images(64, seed=1)

    exported = torch.export.export(model, (images(64),)).module()

    assert relative_error(exported(x), model(x)) < 1e-5


def scripted(model: nn.Module) -> nn.Module:
    return torch.jit.script(model)


def scripted_after_tracing(model: nn.Module) -> nn.Module:
    return torch.jit.script(torch.fx.symbolic_trace(model))


@pytest.mark.parametrize("compiler", [scripted, torch.fx.symbolic_trace, scripted_after_tracing])
@variants
@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_a_compiler_that_sees_no_image_keeps_every_size(variant: dict[str, object], compiler: Any) -> None:
    model = tiny(**variant)

    compiled = compiler(model)

    for x in (images(64, batch=1), images(96, 160, batch=3)):  # one window, and several that are padded
        for _ in range(2):  # the second run of TorchScript is optimised
            assert torch.allclose(compiled(x), model(x), rtol=1e-5, atol=1e-6)


@some_variants
@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_a_folded_network_can_be_scripted_and_traced(name: str) -> None:
    folded, x = fold(tiny(**VARIANTS[name])), images(96, 160)

    for compiler in (scripted, torch.fx.symbolic_trace):
        assert torch.allclose(compiler(folded)(x), folded(x), rtol=1e-5, atol=1e-6)


def test_a_symbolic_trace_still_sums_in_fp32_under_autocast() -> None:
    mixer, x = overflowing_mixer(), images(32, channels=32)
    expected, traced = mixer(x), torch.fx.symbolic_trace(mixer)

    with torch.autocast("cpu", torch.float16):
        assert typical_error(traced(x), expected) < 0.03


@pytest.mark.parametrize("name", ["padded window", "parallel"])
def test_no_tensor_of_the_graph_has_more_than_five_dimensions(name: str) -> None:
    """ncnn knows four beside the batch."""
    arch = resized(tiny_arch(**{**VARIANTS[name], "window": 3}), (96, 160))
    most = 0

    class Dimensions(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal most
            out = func(*args, **(kwargs or {}))
            most = max([most, *(tensor.ndim for tensor in tree_leaves(out) if isinstance(tensor, Tensor))])
            return out

    with Dimensions():
        fold(lively_network(arch))(images(96, 160))

    assert most == 5
