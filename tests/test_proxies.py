"""Zero-cost proxies: one contract over the whole table, and the mathematics by hand and by plain autograd."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import nn

from evit_nas.accuracy.bench import (
    BATCH,
    Bench,
    Layer,
    Segment,
    flow,
    gradients,
    lively_copy,
    positive_copy,
    run_segments,
    segments_of,
)
from evit_nas.accuracy.zero_cost import (
    PROXIES,
    agreements,
    correlation,
    entropy,
    nuclear_product,
    saliency,
    score_all,
    steadiness,
)
from evit_nas.arch import ArchConfig, StageConfig
from evit_nas.errors import MeasurementError, UsageError
from evit_nas.network.model import EfficientViT, build
from tests.networks import VARIANTS, lively, tiny_arch

SEEING = [name for name, proxy in PROXIES.items() if not proxy.is_size]  # those that look at the weights


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tests that run networks themselves should not compete with the other tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pool(count: int) -> list[ArchConfig]:
    """Small networks of many sizes and of every mixer."""
    rng = random.Random(0)
    archs = []
    for _ in range(count):
        scale, depth = rng.choice([1, 2, 3, 4]), rng.choice([1, 2, 3])
        stages = tuple(
            StageConfig(
                width=8 * scale * (index + 2),
                depth=rng.randint(1, depth),
                heads=rng.choice([1, scale]),
                qk_dim=rng.choice([8, 16]),
                ffn_ratio=rng.choice([1, 2, 3]),
                cascade=rng.random() < 0.5,
                mixer=rng.choice(["softmax", "softmax", "linear", "none"]),
            )
            for index in range(3)
        )
        archs.append(ArchConfig(image_size=64, num_classes=10, stages=stages))
    return archs


@pytest.fixture(scope="module")
def pool_scores() -> list[list[dict[str, float]]]:
    """Scores of twelve networks, for each of two seeds."""
    return [[score_all(arch, seed=seed) for arch in pool(12)] for seed in (0, 1)]


def without_attention(model: EfficientViT) -> EfficientViT:
    """A copy in which the mixers add nothing to the residual stream."""
    model = copy.deepcopy(model)
    for name, module in model.named_modules():
        if name.endswith("mixer.fn.proj.conv"):
            nn.init.zeros_(module.weight)
    return model


def test_scores_are_repeatable_to_the_bit() -> None:
    model = lively(build(tiny_arch(), seed=0))
    with torch.no_grad():
        first = score_all(model, seed=3), score_all(tiny_arch(), seed=3)
    torch.rand(1)

    assert (score_all(model, seed=3), score_all(tiny_arch(), seed=3)) == first
    assert first[0].keys() == PROXIES.keys()


def content(tensor: torch.Tensor) -> bytes:
    """To the bit."""
    return tensor.numpy().tobytes()


@pytest.mark.parametrize("name", PROXIES)
def test_score_leaves_no_mark(name: str) -> None:
    model = lively(build(tiny_arch(), seed=0))
    model.stem.train()
    model.head.requires_grad_(False)
    model.stem[0].conv.weight.grad = torch.ones(4, 3, 3, 3)

    def marks() -> list[object]:
        return [
            content(torch.get_rng_state()),
            torch.is_grad_enabled(),
            [(key, content(value)) for key, value in model.state_dict().items()],
            [(module.training, len(module._forward_hooks)) for module in model.modules()],
            [(p.requires_grad, p.grad is None or content(p.grad)) for p in model.parameters()],
        ]

    with torch.no_grad():
        before = marks()
        score_all(model, seed=3, names=[name])
        score_all(tiny_arch(), seed=3, names=[name])
        assert marks() == before


@pytest.mark.parametrize("variant", ["cascade", "parallel", "linear"])
def test_scores_see_dead_attention_unless_they_are_sizes(variant: str) -> None:
    model = build(tiny_arch(**VARIANTS[variant]), seed=0)

    alive, dead = score_all(model), score_all(without_attention(model))

    assert {name: alive[name] == dead[name] for name in PROXIES} == {n: p.is_size for n, p in PROXIES.items()}


@pytest.mark.parametrize("name", PROXIES)
def test_score_tells_the_networks_of_a_pool_apart(name: str, pool_scores: list[list[dict[str, float]]]) -> None:
    assert len({scores[name] for scores in pool_scores[0]}) >= 6


@pytest.mark.parametrize("name", PROXIES)
def test_score_ranks_a_pool_alike_for_two_seeds(name: str, pool_scores: list[list[dict[str, float]]]) -> None:
    first, second = ([scores[name] for scores in draw] for draw in pool_scores)

    assert spearmanr(first, second).statistic >= 0.9
    assert (first == second) == PROXIES[name].is_size


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_proxy_scores_every_kind_of_block(variant: str) -> None:
    scores = score_all(tiny_arch(**VARIANTS[variant]))

    assert list(scores) == list(PROXIES)
    assert all(math.isfinite(value) for value in scores.values())


def test_every_proxy_scores_odd_inputs_and_outputs() -> None:
    base = tiny_arch().model_dump()

    for changes in ({"num_classes": 0}, {"num_classes": 1}, {"image_size": [64, 96]}, {"in_channels": 1}):
        arch = ArchConfig.model_validate(base | changes)
        scores = score_all(arch)
        assert all(math.isfinite(value) for value in scores.values())
        assert scores["snip"] > 0  # the softmax of a single output has no gradient


def test_score_does_not_depend_on_the_other_proxies_asked_for() -> None:
    scores = score_all(tiny_arch(), seed=1)

    assert score_all(tiny_arch(), seed=1, names=reversed(PROXIES)) == scores
    assert all(score_all(tiny_arch(), seed=1, names=[name]) == {name: scores[name]} for name in scores)


def test_score_does_not_depend_on_the_number_of_threads() -> None:
    one = score_all(tiny_arch())
    torch.set_num_threads(2)

    assert score_all(tiny_arch()) == one
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", SEEING)
def test_a_score_that_is_not_finite_is_an_error_with_the_name_of_the_proxy(name: str) -> None:
    model = build(tiny_arch(), seed=0)
    nn.init.constant_(model.stem[0].conv.weight, math.nan)

    with pytest.raises(MeasurementError, match=f"proxy '{name}'"):
        score_all(model, names=[name])


def test_an_unknown_name_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"no proxy is called 'snap'. Did you mean 'snip'\? Known: az_"):
        score_all(tiny_arch(), names=["snap"])


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_layer_has_an_exactly_zero_gradient_once_gammas_are_1(variant: str) -> None:
    # at 64 px the last stage is one token, whose attention is 1 whatever its query and key
    arch = tiny_arch(**VARIANTS[variant]).model_copy(update={"image_size": 128})
    bench = Bench(arch, seed=0)

    assert all(grad.any() for _, grad in bench.loss_gradients)


def test_most_layers_have_an_exactly_zero_gradient_as_built() -> None:
    """The reason for lively_copy; should this fail, the initialisation has changed."""
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    links = run_segments(segments_of(build(tiny_arch(), seed=0)), images)
    dead = [not grad.any() for _, grad in gradients(links, images[:, 0, 0, :10])]

    assert sum(dead) > 0.6 * len(dead)


def two_layers() -> list[Segment]:
    """y = W2 relu(W1 x)."""
    first = torch.tensor([[1.0, -2.0], [0.0, 3.0]], requires_grad=True)
    second = torch.tensor([[2.0, -1.0]], requires_grad=True)
    return [
        Segment(lambda x: F.relu(x @ first.T), [Layer(first, heads=1)]),
        Segment(lambda x: x @ second.T, [Layer(second)]),
    ]


def test_gradients_and_saliencies_of_two_layers_by_hand() -> None:
    links = run_segments(two_layers(), torch.tensor([[1.0, 1.0]]))

    # W1 x = (-1, 3), so relu gives (0, 3) and y = -3; dy/dW2 = (0, 3); dy/dW1 = ((0, 0), (-1, -1))
    (w2, second), (w1, first) = gradients(links, torch.tensor([[1.0]]))
    assert links[-1].y.item() == -3
    assert (second.tolist(), first.tolist()) == ([[0, 3]], [[0, 0], [-1, -1]])
    assert saliency(w2.weight, second).tolist() == [[0, 3]]
    assert saliency(w1.weight, first).tolist() == [[0, 0], [0, 3]]


def bench_with_flow(segments: list[Segment], inputs: int) -> Bench:
    bench = Bench(tiny_arch(), seed=0)
    bench.__dict__["flow"] = flow(segments, torch.ones(1, inputs))
    return bench


def test_flow_scores_of_two_layers_by_hand() -> None:
    segments = two_layers()
    with torch.no_grad():
        for segment in segments:
            segment.layers[0].weight.abs_()
    bench = bench_with_flow(segments, inputs=2)

    # |W1| 1 = (3, 3) and R = 2 * 3 + 1 * 3 = 9: the flow through each layer is R
    assert PROXIES["synflow_log"].score(bench) == pytest.approx(math.log(9 + 9), rel=1e-6)
    # |W1| = ((1, 2), (0, 3)) has singular values of product det = 3 and of squares' sum 14, so their sum is
    # sqrt(14 + 2 * 3); dR/dW1 = ((2, 2), (1, 1)) has rank 1 and norm sqrt(10); the mean output is R
    assert PROXIES["dss"].score(bench) == pytest.approx(math.log((20**0.5 * 10**0.5 + 9) / 9), rel=1e-6)


@pytest.mark.parametrize("heads", [0, 1])
def test_flow_scores_go_beyond_the_range_of_floats(heads: int) -> None:
    weights = [torch.full((1, 1), 1e4, requires_grad=True) for _ in range(100)]
    segments = [Segment(lambda x, w=weight: x @ w, [Layer(weight, heads)]) for weight in weights]
    bench = bench_with_flow(segments, inputs=1)

    # R = 1e400 flows through each of the 100 layers
    assert PROXIES["synflow_log"].score(bench) == pytest.approx(100 * math.log(1e4) + math.log(100), rel=1e-6)
    assert PROXIES["dss"].score(bench) == pytest.approx(math.log(100), rel=1e-6)


def test_nuclear_product_takes_the_heads_of_a_grouped_convolution_apart() -> None:
    weight = torch.tensor([[3.0, 0], [0, -4], [1, 0], [0, 0]]).view(4, 2, 1, 1)  # nuclear norms 7 and 1
    grad = torch.tensor([[1.0, 0], [0, 1], [5, 0], [0, 5]]).view(4, 2, 1, 1)  # 2 and 10

    assert nuclear_product(weight, grad, heads=2).tolist() == pytest.approx([14, 10])


@pytest.mark.parametrize(
    ("variant", "heads"),
    [
        ("cascade", [1, 1, 1]),  # two heads' qkv, projection
        ("parallel", [2, 1]),
        ("linear", [1, 1]),
        ("cascade, wide values", [1, 1, 1]),  # the way back to the input width is no part of the attention
        ("convolutional", []),
    ],
)
def test_attention_matrices_are_qkv_head_by_head_and_the_projection(variant: str, heads: list[int]) -> None:
    model = build(tiny_arch(**VARIANTS[variant]), seed=0)
    layers = [layer for segment in segments_of(model) for layer in segment.layers]

    assert [layer.heads for layer in layers if layer.heads] == 3 * heads
    assert len(layers) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model.modules())


def test_steadiness_is_the_mean_magnitude_over_the_deviation_of_two_gradients() -> None:
    first = torch.tensor([3.0, -1, 2, 0, 4, 4])
    second = torch.tensor([1.0, 3, 2, 0, -4, 0])

    # means of |g| are 2, 2, -, -, 4 and 2, deviations 1, 2, 0, 0, 4 and 2
    assert steadiness(first, (first + second) / 2).tolist() == [2, 1, 0, 0, 1, 1]


def test_zico_sums_the_logs_of_layers_and_passes_over_those_that_do_not_deviate() -> None:
    bench = Bench(tiny_arch(), seed=0)
    layer = Layer(torch.ones(2))
    steady = torch.tensor([1.0, -2.0])
    bench.__dict__["loss_gradients"] = [(layer, steady), (layer, torch.zeros(2)), (layer, steady)]
    bench.__dict__["half_loss_gradients"] = [(layer, 1.5 * steady), (layer, torch.zeros(2)), (layer, steady)]

    assert PROXIES["zico"].score(bench) == pytest.approx(math.log(2 + 2))


def test_agreements_count_the_units_of_each_image_window_by_window() -> None:
    # two images of two windows each, one channel and two positions; then one map an image
    windows = torch.tensor([[1.0, 0], [0, 2], [3, 3], [0, 4]]).view(4, 1, 1, 2)
    maps = torch.tensor([[0.0], [5]]).view(2, 1, 1, 1)

    # on and off: 1 0 0 1, 0 in the first image and 1 1 0 1, 1 in the second
    assert agreements([windows, maps], images=2).tolist() == [[5, 3], [3, 5]]


@pytest.mark.parametrize("variant", ["cascade", "parallel", "linear", "small window"])
def test_naswot_is_the_log_determinant_of_units_compared_image_by_image(variant: str) -> None:
    bench = Bench(tiny_arch(**VARIANTS[variant]), seed=0)
    kernel = torch.zeros(BATCH, BATCH, dtype=torch.float64)
    for relu in bench.relus:
        images = [(part > 0).flatten() for part in relu.chunk(BATCH)]
        for i, a in enumerate(images):
            for j, b in enumerate(images):
                kernel[i, j] += (a == b).sum()

    assert PROXIES["naswot"].score(bench) == pytest.approx(float(kernel.slogdet().logabsdet), rel=1e-12)


def test_every_relu_of_the_network_is_seen() -> None:
    # 3 in the stem; in a block two FFNs and the attention; in a downsampling two FFNs, two of its own and the gate
    bench = Bench(tiny_arch(), seed=0)

    assert len(bench.relus) == 3 + 3 * 3 + 2 * 5
    assert all(relu.shape[0] % BATCH == 0 and (relu >= 0).all() and not relu.requires_grad for relu in bench.relus)


@pytest.mark.parametrize("variant", ["cascade", "parallel", "linear", "convolutional"])
def test_gradient_scores_equal_plain_autograd(variant: str) -> None:
    model = build(tiny_arch(**VARIANTS[variant]), seed=0)
    bench = Bench(model, seed=0)

    def total(net: nn.Module, objective: torch.Tensor) -> float:
        weights = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        grads = torch.autograd.grad(objective, weights)
        return sum((w * g).abs().sum().item() for w, g in zip(weights, grads, strict=True))

    net = lively_copy(model)
    images = torch.randn(BATCH, 3, 64, 64, generator=bench.generator(0))
    labels = torch.randint(10, (BATCH,), generator=bench.generator(1))
    by_loss = total(net, F.cross_entropy(net(images), labels))
    positive = positive_copy(model).double()
    by_flow = total(positive, positive(torch.ones(1, 3, 64, 64, dtype=torch.float64)).sum())

    assert PROXIES["snip"].score(bench) == pytest.approx(by_loss, rel=1e-3)
    assert PROXIES["synflow_log"].score(bench) == pytest.approx(math.log(by_flow), abs=1e-4)


@pytest.mark.parametrize("variant", ["cascade", "parallel", "linear", "convolutional"])
def test_zico_equals_the_mean_and_deviation_of_gradients_by_plain_autograd(variant: str) -> None:
    model = build(tiny_arch(**VARIANTS[variant]), seed=0)
    bench = Bench(model, seed=0)
    net = lively_copy(model).double()
    images = torch.randn(BATCH, 3, 64, 64, generator=bench.generator(0)).double()
    labels = torch.randint(10, (BATCH,), generator=bench.generator(1))
    weights = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    logits = net(images)
    halves = [F.cross_entropy(logits[part], labels[part]) for part in (slice(0, 8), slice(8, 16))]
    grads = zip(*(torch.autograd.grad(half, weights, retain_graph=True) for half in halves), strict=True)
    pairs = [torch.stack(pair) for pair in grads]
    ratios = [pair.abs().mean(0) / pair.std(0, correction=0) for pair in pairs]
    expected = sum(math.log(ratio[ratio.isfinite()].sum()) for ratio in ratios if ratio.isfinite().any())

    # a rounding error moves the largest ratios, those of the smallest deviations
    assert PROXIES["zico"].score(bench) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_positive_copy_is_positive_and_linear(variant: str) -> None:
    model = positive_copy(lively(build(tiny_arch(**VARIANTS[variant]), seed=0))).double()
    generator = torch.Generator().manual_seed(0)
    a, b = torch.rand(2, 1, 3, 64, 64, generator=generator, dtype=torch.float64)

    with torch.no_grad():
        torch.testing.assert_close(model(a + 2 * b), model(a) + 2 * model(b), rtol=1e-5, atol=0)
        torch.testing.assert_close(model(1e-9 * a), 1e-9 * model(a), rtol=1e-5, atol=0)  # no gate half open
        assert (model(a) > 0).all()


def test_entropy_by_hand() -> None:
    independent = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1]]).view(1, 2, 2, 2)
    copied = independent[:, :1].expand(1, 2, 2, 2)

    assert entropy(independent) == pytest.approx(math.log(2), abs=1e-6)
    assert entropy(independent + 7) == pytest.approx(math.log(2), abs=1e-6)  # a constant is no variance
    assert entropy(copied) == pytest.approx(0, abs=1e-5)
    # variances 9 and 1: shares .9 and .1
    stretched = independent * torch.tensor([3.0, 1.0]).view(1, 2, 1, 1)
    assert entropy(stretched) == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1), abs=1e-6)


def test_correlation_by_hand() -> None:
    signs = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1]]).view(1, 2, 2, 2)

    assert correlation(signs, 3 * signs).tolist() == [[3, 0], [0, 3]]
    # two inputs of a stride: each of the four positions is a channel, in the order of rows
    halved = torch.arange(4.0).view(1, 1, 2, 2)
    assert correlation(torch.full((1, 1, 1, 1), -1.0), halved).tolist() == [[0], [-1], [-2], [-3]]
    odd = torch.ones(1, 1, 3, 3)  # padded to 4 x 4: of four outputs, 4, 2, 2 and 1 have such a position
    assert correlation(torch.ones(1, 1, 2, 2), odd).flatten().tolist() == [1, 0.5, 0.5, 0.25]


def test_az_scores_of_known_features_and_pullbacks() -> None:
    bench = Bench(tiny_arch(), seed=0)
    signs = torch.tensor([[1.0, 1, -1, -1], [1, -1, 1, -1]]).view(1, 2, 2, 2)
    narrow = signs[:, :1].expand(1, 2, 2, 2)
    bench.__dict__["features"] = [signs, signs, narrow, signs]  # entropies log 2, log 2, 0, log 2
    bench.__dict__["pullbacks"] = [(signs, signs), (signs, 2 * signs)]  # spectral norms 1 and 2

    assert PROXIES["az_expressivity"].score(bench) == pytest.approx(3 * math.log(2), abs=1e-5)
    assert PROXIES["az_progressivity"].score(bench) == pytest.approx(-math.log(2), abs=1e-5)
    assert PROXIES["az_trainability"].score(bench) == pytest.approx((0 - 0.5) / 2, abs=1e-6)


def test_pullback_of_a_block_is_its_transposed_jacobian_times_the_signs() -> None:
    bench = Bench(tiny_arch(), seed=0)

    assert [feature.shape for feature in bench.features] == [link.y.shape for link in bench.links[:-1]]
    for link, (signs, pulled) in zip(bench.links[1:-1], bench.pullbacks, strict=True):
        assert set(signs.unique().tolist()) == {-1, 1}
        direction = torch.randn(link.x.shape, generator=torch.Generator().manual_seed(0))
        _, pushed = torch.autograd.functional.jvp(link.segment.run, link.x.detach(), direction)
        torch.testing.assert_close((pushed * signs).sum(), (pulled * direction).sum(), rtol=1e-2, atol=1e-1)
