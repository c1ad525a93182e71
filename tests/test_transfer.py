"""First weights from another network: what is matched, what stays fresh, and when the function is kept."""

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from evit_nas.arch import ArchConfig, StageConfig
from evit_nas.data.preprocessing import Preprocessing
from evit_nas.errors import UsageError
from evit_nas.network.attention import resize_bias_table
from evit_nas.network.model import EfficientViT, build
from evit_nas.network.transfer import Transfer, copy_common, start_from
from evit_nas.network.weights import official_key, timm_key
from evit_nas.trained import WEIGHTS, Trained
from tests.networks import VARIANTS, lively_network, relative_error, tiny_arch

CLASSES = tuple("abcdefghij")
BLOCK = "stages.1.blocks.0"


def arch(widths: tuple[int, int, int] = (32, 48, 64), **changes: object) -> ArchConfig:
    stages = [
        {"width": width, "depth": 1, "heads": 2, "q_kernels": [5, 3, 7, 3], "qk_dim": 8, **changes} for width in widths
    ]
    return ArchConfig(
        image_size=64, num_classes=10, stages=tuple(StageConfig.model_validate(stage) for stage in stages)
    )


def moved(source: EfficientViT, target: ArchConfig) -> tuple[EfficientViT, Transfer]:
    model = build(target, seed=2).eval()
    return model, copy_common(model, source, range(10))


def outputs(model: EfficientViT, channels: int = 3) -> Tensor:
    images = torch.randn(2, channels, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits: Tensor = model(images)
    return logits


# The function of the source


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_an_equal_architecture_starts_as_the_same_network(variant: dict[str, object]) -> None:
    source = lively_network(tiny_arch(**variant))

    model, transfer = moved(source, tiny_arch(**variant))

    assert torch.equal(outputs(model), outputs(source))
    assert {tensor.elements - tensor.size for tensor in transfer.tensors} == {0}


GROWTH = {
    "wider": ({}, {"widths": (48, 64, 96)}),
    "more heads": ({}, {"widths": (48, 72, 96), "heads": 3}),
    "more and wider heads": ({}, {"widths": (64, 112, 144), "heads": 4, "qk_dim": 16}),
    "more query channels": ({}, {"qk_dim": 12}),
    "larger kernels": ({}, {"q_kernels": [7, 7]}),
    "deeper": ({}, {"depth": 3}),
    "more local ffns": ({}, {"ffn_count": 2}),
    "wider ffns and merges": ({}, {"ffn_ratio": 3.0, "merge_ratio": 5.0}),
    "a mixer added": ({"mixer": "none"}, {}),
    "wider values": ({"v_ratio": 1.5}, {"v_ratio": 1.5, "widths": (48, 64, 96)}),
    "parallel": ({"cascade": False}, {"cascade": False, "widths": (64, 112, 144), "heads": 4}),
    "linear": ({"mixer": "linear"}, {"mixer": "linear", "widths": (48, 72, 96), "heads": 3}),
    "convolutional": ({"mixer": "none"}, {"mixer": "none", "widths": (48, 64, 96)}),
}


@pytest.mark.parametrize(("small", "large"), GROWTH.values(), ids=GROWTH)
def test_a_network_that_only_grows_starts_with_the_function_of_its_source(small: dict, large: dict) -> None:
    source = lively_network(arch(**small))

    model, _ = moved(source, arch(**small | large))

    assert relative_error(outputs(model), outputs(source)) < 1e-5


def test_every_stage_is_matched_by_its_own_number_of_heads() -> None:
    def of_heads(*widths: int) -> ArchConfig:
        plain = arch(widths)
        stages = [s.model_copy(update={"heads": n}) for s, n in zip(plain.stages, (2, 3, 4), strict=True)]
        return plain.model_copy(update={"stages": tuple(stages)})

    source = lively_network(of_heads(32, 48, 64))

    model, _ = moved(source, of_heads(48, 72, 96))

    assert relative_error(outputs(model), outputs(source)) < 1e-5


@pytest.mark.parametrize(("small", "large"), GROWTH.values(), ids=GROWTH)
def test_a_network_cut_from_its_grown_self_is_the_same_again(small: dict, large: dict) -> None:
    source = lively_network(arch(**small))
    grown, _ = moved(source, arch(**small | large))

    model, _ = moved(grown, arch(**small))

    assert relative_error(outputs(model), outputs(source)) < 1e-5


def test_new_parts_of_a_grown_network_learn() -> None:
    model, _ = moved(lively_network(arch()), arch(widths=(48, 64, 96), qk_dim=16, depth=2))

    model.train()(torch.randn(4, 3, 64, 64)).square().mean().backward()

    block = model.get_submodule(BLOCK)
    assert block.before[0].ffn.fn.project.conv.weight.grad[:24, 96:].abs().max() > 0  # old outputs, new inputs
    assert block.mixer.fn.heads[0].q_local.bn.weight.grad[8:].abs().max() > 0
    assert model.get_submodule("stages.1.blocks.1").mixer.fn.proj.bn.weight.grad.abs().max() > 0


# What is matched


def test_the_rows_of_a_head_are_those_of_its_q_k_and_v() -> None:
    source = lively_network(arch(widths=(64, 96, 128), qk_dim=16))

    model, _ = moved(source, arch())

    key = f"{BLOCK}.mixer.fn.heads.1.qkv.conv.weight"  # (2 * qk + v, head_dim, 1, 1)
    given, taken = source.state_dict()[key], model.state_dict()[key]
    assert torch.equal(taken, torch.cat([given[:8, :24], given[16:24, :24], given[32:56, :24]]))


def test_channels_are_counted_head_by_head_when_heads_shrink_together() -> None:
    source = lively_network(arch(widths=(64, 96, 128)))

    model, _ = moved(source, arch())

    key = f"{BLOCK}.after.0.dw.fn.conv.weight"  # 2 heads of 48 channels, 24 of which are left
    given, taken = source.state_dict()[key], model.state_dict()[key]
    assert torch.equal(taken, torch.cat([given[:24], given[48:72]]))


def test_channels_keep_their_order_when_heads_are_more_but_narrower() -> None:
    source = lively_network(arch(widths=(64, 96, 128)))

    model, _ = moved(source, arch(widths=(32, 48, 64), heads=4))

    key = f"{BLOCK}.after.0.dw.fn.conv.weight"
    assert torch.equal(model.state_dict()[key], source.state_dict()[key][:48])


@pytest.mark.parametrize("cascaded_first", [True, False])
def test_heads_in_a_cascade_and_heads_computed_together_take_over_from_each_other(cascaded_first: bool) -> None:
    source = lively_network(arch(cascade=cascaded_first))

    model, _ = moved(source, arch(cascade=not cascaded_first))

    cascaded, parallel = (source, model) if cascaded_first else (model, source)
    heads = [cascaded.state_dict()[f"{BLOCK}.mixer.fn.heads.{j}.qkv.conv.weight"] for j in range(2)]
    assert torch.equal(parallel.state_dict()[f"{BLOCK}.mixer.fn.qkv.conv.weight"], torch.cat(heads))


def test_the_rows_of_linear_attention_are_matched_head_by_head() -> None:
    source = lively_network(arch(mixer="linear", qk_dim=16))

    model, _ = moved(source, arch(mixer="linear", qk_dim=8))

    key = f"{BLOCK}.mixer.fn.qkv.bn.bias"  # queries of both heads, keys of both, values of both
    given, taken = source.state_dict()[key], model.state_dict()[key]
    starts = [0, 16, 32, 48]
    assert torch.equal(taken[:32], torch.cat([given[start : start + 8] for start in starts]))
    assert torch.equal(taken[32:], given[64:])


def test_one_kind_of_mixer_takes_nothing_from_another() -> None:
    _, transfer = moved(lively_network(arch()), arch(mixer="linear"))

    assert {t.elements for t in transfer.tensors if ".mixer." in t.name} == {0}


@pytest.mark.parametrize(("old", "new"), [(7, 3), (3, 7)])
def test_kernels_are_matched_by_their_centre(old: int, new: int) -> None:
    source = lively_network(arch(q_kernels=[old, old]))

    model, _ = moved(source, arch(q_kernels=[new, new]))

    key = f"{BLOCK}.mixer.fn.heads.0.q_local.conv.weight"
    given, taken = source.state_dict()[key], model.state_dict()[key]
    if new < old:
        assert torch.equal(taken, given[..., 2:5, 2:5])
    else:
        assert torch.equal(taken, torch.nn.functional.pad(given, (2, 2, 2, 2)))


def test_attention_biases_are_resampled_and_statistics_taken_over() -> None:
    source = lively_network(arch())

    model, _ = moved(source, arch().model_copy(update={"image_size": 128}))

    table = "stages.0.blocks.0.mixer.fn.bias.table"
    assert torch.equal(model.state_dict()[table], resize_bias_table(source.state_dict()[table], 7))
    for key in ("stem.2.bn.running_mean", "stages.2.downsample.reduce.bn.running_var", "head.bn.running_var"):
        assert torch.equal(model.state_dict()[key], source.state_dict()[key])


@pytest.mark.parametrize(("old", "new"), [(3, 1), (1, 3), (1, 2)])
def test_a_grey_image_gives_the_same_in_any_number_of_channels(old: int, new: int) -> None:
    source = lively_network(arch().model_copy(update={"in_channels": old}))
    model, _ = moved(source, arch().model_copy(update={"in_channels": new}))
    grey = torch.randn(2, 1, 64, 64)

    with torch.no_grad():
        before, after = (net(grey.expand(-1, channels, -1, -1)) for net, channels in ((source, old), (model, new)))

    assert relative_error(after, before) < 1e-5


def test_what_has_no_counterpart_is_left_as_it_was() -> None:
    fresh = build(arch(depth=2, mixer="linear"), seed=2).state_dict()

    model, transfer = moved(lively_network(arch()), arch(depth=2, mixer="linear"))

    left = [tensor.name for tensor in transfer.tensors if not tensor.elements]
    assert any(".mixer." in name for name in left)
    assert any(".blocks.1.before." in name for name in left)
    assert all(torch.equal(model.state_dict()[name], fresh[name]) for name in left)


# Sources


def save(model: EfficientViT, path: Path, name: Callable[[str], str] = str) -> Path:
    weights = {name(key): value.clone() for key, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(weights, path) if path.suffix == ".safetensors" else torch.save({"model": weights}, path)
    return path


def training(folder: Path, model: EfficientViT, classes: tuple[str, ...] = CLASSES) -> Path:
    save(model, folder / WEIGHTS)
    half = (0.5,) * model.arch.in_channels
    Trained(
        name="evit-1ms",
        arch=model.arch,
        classes=classes,
        preprocessing=Preprocessing(input_size=(model.arch.in_channels, 64, 64), mean=half, std=half),
        data="digits",
        data_name="digits",
        recipe={},
        init="scratch",
        seed=0,
        epoch=1,
        averaged=False,
        top1=50.0,
        loss=1.0,
        command="evit-nas train",
        versions={},
    ).save(folder)
    return folder


@pytest.mark.parametrize("naming", [timm_key, official_key])
def test_a_checkpoint_of_a_preset_is_recognised_at_another_size_and_number_of_classes(naming, tmp_path) -> None:
    preset = ArchConfig.preset("m0").model_copy(update={"image_size": 160, "num_classes": 7})
    source = lively_network(preset)
    path = save(source, tmp_path / "official.pth", naming)

    model = build(ArchConfig.preset("m0").model_copy(update={"image_size": 96, "num_classes": 10}), seed=2)
    transfer = start_from(model, path)

    whole = len(list(model.parameters())) - 2
    assert transfer.summary() == (
        f"99.9% of 2.2M parameters from m0: {whole} whole, 0 sliced, 2 fresh; classifier fresh: 10 classes instead of 7"
    )
    given, taken = source.state_dict(), model.state_dict()
    key = "stages.2.blocks.2.mixer.fn.bias.table"
    assert torch.equal(taken[key], resize_bias_table(given[key], 2))
    assert torch.equal(taken["head.bn.weight"], given["head.bn.weight"])


def test_weights_of_any_architecture_come_with_its_name_or_its_folder(tmp_path) -> None:
    source = lively_network(arch())
    alone = save(source, tmp_path / "alone.safetensors")
    (tmp_path / "net.yaml").write_text(source.arch.to_yaml())
    folder = training(tmp_path / "run", source)

    for text in (f"{tmp_path / 'net.yaml'}={alone}", folder, folder / WEIGHTS):
        model = build(arch(), seed=2).eval()
        start_from(model, text)
        assert torch.equal(outputs(model), outputs(source))
    with pytest.raises(UsageError, match=r"does not hold the weights of one of m0, .* ARCH.yaml="):
        start_from(build(arch(), seed=2), alone)


def test_a_network_of_timms_is_a_source(tmp_path) -> None:
    theirs = timm.create_model("efficientvit_m0", num_classes=10)
    torch.save(theirs.state_dict(), tmp_path / "m0.pth")
    model = build(ArchConfig.preset("m0").model_copy(update={"num_classes": 10}), seed=2)

    start_from(model, f"timm:efficientvit_m0@{tmp_path / 'm0.pth'}", classes=CLASSES)

    assert torch.equal(model.state_dict()["head.linear.weight"], theirs.state_dict()["head.linear.weight"])


def test_the_home_folder_of_nobody_is_no_source() -> None:
    with pytest.raises(UsageError, match=r"^~nobody-at-all: no such network"):
        start_from(build(arch()), "~nobody-at-all")


def test_another_kind_of_network_is_refused(tmp_path) -> None:
    torch.save(timm.create_model("test_vit", num_classes=10).state_dict(), tmp_path / "vit.pth")

    with pytest.raises(UsageError, match="must be an EfficientViT"):
        start_from(build(arch(), seed=2), f"timm:test_vit@{tmp_path / 'vit.pth'}", classes=CLASSES)


# The classifier


def test_classes_in_another_order_find_their_weights(tmp_path) -> None:
    source = lively_network(arch())
    folder = training(tmp_path / "run", source)
    model = build(arch(), seed=2).eval()

    transfer = start_from(model, folder, classes=CLASSES[::-1])

    assert transfer.classifier == ""
    # a matrix product may sum its columns in other orders
    torch.testing.assert_close(outputs(model), outputs(source).flip(1), rtol=1e-5, atol=1e-6)


def test_other_classes_get_a_fresh_classifier_and_it_is_said(tmp_path) -> None:
    folder = training(tmp_path / "run", lively_network(arch()))
    model, fresh = build(arch(), seed=2), build(arch(), seed=2)

    transfer = start_from(model, folder, classes=tuple("ABCDEFGHIJ"))

    assert transfer.summary().endswith("2 fresh; classifier fresh: the source knows other classes")
    assert torch.equal(model.head.linear.weight, fresh.head.linear.weight)
    assert not torch.equal(model.head.bn.weight, fresh.head.bn.weight)


# The report


def test_the_report_counts_what_was_taken_over_layer_by_layer() -> None:
    source = lively_network(arch())

    _, transfer = moved(source, arch(depth=2, ffn_ratio=4.0))

    rows = {row["layer"]: row for row in transfer.rows()}
    assert rows["stem"]["how"] == rows["stages.0.blocks.0.mixer"]["how"] == "whole"
    assert rows["stages.0.blocks.1.mixer"] == {
        "layer": "stages.0.blocks.1.mixer",
        "params": rows["stages.0.blocks.0.mixer"]["params"],
        "taken": 0,
        "how": "fresh",
    }
    # 32 channels, 3x3 kernels with BatchNorm, and an FFN of 64 hidden channels in place of 128
    assert rows["stages.0.blocks.0.before"] == {
        "layer": "stages.0.blocks.0.before",
        "params": 32 * (9 + 2) + 2 * 32 * 128 + 2 * 128 + 2 * 32,
        "taken": 32 * (9 + 2) + 2 * 32 * 64 + 2 * 64 + 2 * 32,
        "how": "sliced",
    }
    assert sum(row["params"] for row in rows.values()) == sum(
        p.numel() for p in build(arch(depth=2, ffn_ratio=4.0)).parameters()
    )
