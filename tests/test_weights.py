"""Weights: ours, timm's and the official names, resampled attention biases, and files from strangers."""

import pickle
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import resize_rel_pos_bias_table_levit
from torch import Tensor

from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.errors import UsageError
from evit_nas.network.model import EfficientViT, build
from evit_nas.network.weights import load_weights, official_key, read_weights, timm_key, to_timm
from tests.networks import VARIANTS, lively_network, tiny_arch

StateDict = dict[str, Tensor]


def trained(arch: ArchConfig | None = None) -> EfficientViT:
    """A network whose weights differ from those of every fresh one."""
    return lively_network(arch or tiny_arch(), seed=1, images=2)


def fresh(arch: ArchConfig | None = None) -> EfficientViT:
    return build(arch or tiny_arch(), seed=2).eval()


def renamed(model: EfficientViT, name: Callable[[str], str]) -> StateDict:
    return {name(key): value for key, value in model.state_dict().items()}


def save(weights: StateDict, path: Path) -> None:
    (save_file if path.suffix == ".safetensors" else torch.save)(weights, path)


def assert_equal_weights(actual: EfficientViT, expected: EfficientViT) -> None:
    state = actual.state_dict()
    assert all(torch.equal(state[key], value) for key, value in expected.state_dict().items())


def refusal(model: EfficientViT, weights: str | Path | Mapping[str, Any]) -> str:
    """The message of `load_weights`, after a check that it left the network alone."""
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UsageError) as error:
        load_weights(model, weights)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    return str(error.value)


# Names

OFFICIAL = [
    ("stem.0.conv.weight", "patch_embed.0.c.weight"),
    ("stem.3.bn.running_var", "patch_embed.6.bn.running_var"),
    ("stages.0.blocks.0.before.0.dw.fn.conv.weight", "blocks1.0.dw0.m.c.weight"),
    ("stages.0.blocks.0.before.0.ffn.fn.expand.conv.weight", "blocks1.0.ffn0.m.pw1.c.weight"),
    ("stages.0.blocks.0.mixer.fn.heads.0.qkv.conv.weight", "blocks1.0.mixer.m.attn.qkvs.0.c.weight"),
    ("stages.0.blocks.0.mixer.fn.heads.0.q_local.bn.bias", "blocks1.0.mixer.m.attn.dws.0.bn.bias"),
    ("stages.0.blocks.0.mixer.fn.proj.conv.weight", "blocks1.0.mixer.m.attn.proj.1.c.weight"),
    ("stages.0.blocks.0.mixer.fn.bias.table", "blocks1.0.mixer.m.attn.attention_biases"),
    ("stages.1.downsample.before.dw.fn.conv.weight", "blocks2.0.0.m.c.weight"),
    ("stages.1.downsample.before.ffn.fn.expand.conv.weight", "blocks2.0.1.m.pw1.c.weight"),
    ("stages.1.downsample.expand.conv.weight", "blocks2.1.conv1.c.weight"),
    ("stages.1.downsample.reduce.bn.bias", "blocks2.1.conv2.bn.bias"),
    ("stages.1.downsample.se.reduce.weight", "blocks2.1.se.fc1.weight"),
    ("stages.1.downsample.se.expand.bias", "blocks2.1.se.fc2.bias"),
    ("stages.1.downsample.project.conv.weight", "blocks2.1.conv3.c.weight"),
    ("stages.1.downsample.after.dw.fn.conv.weight", "blocks2.2.0.m.c.weight"),
    ("stages.1.blocks.0.before.0.dw.fn.conv.weight", "blocks2.3.dw0.m.c.weight"),
    ("stages.2.blocks.2.after.0.ffn.fn.project.bn.weight", "blocks3.5.ffn1.m.pw2.bn.weight"),
    ("head.bn.running_mean", "head.bn.running_mean"),
    ("head.linear.weight", "head.l.weight"),
    ("head.linear.bias", "head.l.bias"),
]


def test_official_names() -> None:
    names = build(ArchConfig.preset("m0"), seed=0).state_dict().keys()

    assert {ours: official_key(ours) for ours in names if ours in dict(OFFICIAL)} == dict(OFFICIAL)


@pytest.mark.parametrize("name", PRESETS)
def test_timm_names_are_those_of_timm(name: str) -> None:
    theirs = timm.create_model(f"efficientvit_{name}").state_dict()
    ours = to_timm(build(ArchConfig.preset(name), seed=0))

    assert {key: value.shape for key, value in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_no_two_tensors_get_one_name(variant: dict[str, object]) -> None:
    model = build(tiny_arch(**variant), seed=0)

    for naming in (timm_key, official_key):
        assert len(renamed(model, naming)) == len(model.state_dict())


@pytest.mark.parametrize("name", PRESETS)
def test_weights_go_to_timm_and_come_back(name: str) -> None:
    ours, back = trained(ArchConfig.preset(name)), fresh(ArchConfig.preset(name))
    theirs = timm.create_model(f"efficientvit_{name}")

    theirs.load_state_dict(to_timm(ours), strict=True)
    load_weights(back, theirs.state_dict())

    assert_equal_weights(back, ours)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_load_weights_knows_three_namings(variant: dict[str, object]) -> None:
    ours = trained(tiny_arch(**variant))
    for naming in (str, timm_key, official_key):
        back = fresh(tiny_arch(**variant))

        load_weights(back, renamed(ours, naming))

        assert_equal_weights(back, ours)


@pytest.mark.parametrize(
    "changes",
    [
        {"cascade": False},
        {"heads": 1},
        {"mixer": "linear"},
        {"mixer": "none"},
        {"v_ratio": 0.5},
        {"ffn_count": 2},
        {"ffn_ratio": 3.0},
        {"merge_ratio": 2.0},
    ],
    ids=str,
)
def test_to_timm_refuses_what_timm_cannot_hold(changes: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"stages\[[01]\] is not one that timm's efficientvit_msra can hold"):
        to_timm(build(tiny_arch(**changes), seed=0))


def test_to_timm_refuses_another_stem() -> None:
    arch = tiny_arch().model_copy(update={"stem_ratio": 0.5})

    with pytest.raises(UsageError, match=r"knows only stem_ratio 1, got 0\.5"):
        to_timm(build(arch, seed=0))


# Checkpoints


@pytest.mark.parametrize("wrapper", ["model", "model_state_dict", "state_dict"])
def test_load_weights_unwraps_an_official_checkpoint(wrapper: str, tmp_path: Path) -> None:
    ours, from_file, from_dict = trained(), fresh(), fresh()
    weights = renamed(ours, official_key)
    indices = {"blocks1.0.mixer.m.attn.attention_bias_idxs": torch.zeros(16, 16, dtype=torch.int64)}
    checkpoint = {wrapper: weights | indices, "epoch": 300}
    torch.save(checkpoint, tmp_path / "official.pth")

    load_weights(from_file, tmp_path / "official.pth")
    load_weights(from_dict, checkpoint)

    assert_equal_weights(from_file, ours)
    assert_equal_weights(from_dict, ours)


class Lightning(torch.nn.Module):
    """What keeps its network as Lightning modules do."""

    def __init__(self, model: EfficientViT) -> None:
        super().__init__()
        self.model = model


WRAPPERS: dict[str, Callable[[EfficientViT], torch.nn.Module]] = {
    "data parallel": torch.nn.DataParallel,
    "compiled": torch.compile,
    "compiled, data parallel": lambda model: torch.nn.DataParallel(torch.compile(model)),
    "in a module": Lightning,
}


@pytest.mark.parametrize("naming", [str, timm_key, official_key])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_load_weights_takes_off_what_a_wrapper_puts_before_every_name(
    wrapper: str, naming: Callable[[str], str], tmp_path: Path
) -> None:
    ours, back = trained(), fresh()
    names = list(WRAPPERS[wrapper](ours).state_dict())
    prefixes = {name.removesuffix(key) for name, key in zip(names, ours.state_dict(), strict=True)}
    (prefix,) = prefixes
    assert prefix
    torch.save({"state_dict": renamed(ours, lambda key: prefix + naming(key))}, tmp_path / "wrapped.pth")

    load_weights(back, tmp_path / "wrapped.pth")

    assert_equal_weights(back, ours)


def test_a_first_part_that_not_all_names_have_is_left() -> None:
    weights = {f"module.{key}": value for key, value in trained().state_dict().items()}
    assert "(criterion.weight, module.head.bn.bias, " in refusal(
        fresh(), weights | {"criterion.weight": torch.zeros(1)}
    )


def test_a_checkpoint_of_timms_train_script_is_read(tmp_path: Path) -> None:
    ours, back = trained(), fresh()
    options = Namespace(model="evit_nas", lr=1e-3, betas=[0.9, 0.999], data_dir=None)
    state = {"epoch": 3, "arch": "evit_nas", "state_dict": ours.state_dict(), "args": options, "metric": 81.2}
    torch.save(state, tmp_path / "last.pth.tar")

    load_weights(back, tmp_path / "last.pth.tar")

    assert_equal_weights(back, ours)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
def test_load_weights_reads_files(name: str, tmp_path: Path) -> None:
    ours, back = trained(), fresh()
    save(ours.state_dict(), tmp_path / name)

    load_weights(back, str(tmp_path / name))

    assert_equal_weights(back, ours)


def test_load_weights_takes_another_precision() -> None:
    ours, back = trained().half(), fresh()

    load_weights(back, ours.state_dict())

    assert back.head.linear.weight.dtype == torch.float32
    assert_equal_weights(back, ours.float())


@pytest.mark.parametrize("naming", [str, timm_key, official_key])
def test_attention_biases_are_resampled_for_another_size(naming: Callable[[str], str]) -> None:
    ours = trained()
    larger = fresh(tiny_arch().model_copy(update={"image_size": 128}))

    load_weights(larger, renamed(ours, naming))

    tables = [name for name in ours.state_dict() if name.endswith("bias.table")]
    for name, side in zip(tables, [7, 4, 2], strict=True):
        before, after = ours.state_dict()[name], larger.state_dict()[name]
        assert torch.allclose(after.T, resize_rel_pos_bias_table_levit(before.T, (side * side, 2)), atol=1e-6)


# Wrong weights


def test_load_weights_counts_what_is_missing_and_unknown() -> None:
    weights = fresh().state_dict()
    weights["extra"] = weights.pop("head.linear.bias")

    assert refusal(fresh(), weights) == (
        "the state dict does not fit this architecture: 1 tensors are missing (head.linear.bias), "
        "1 are unknown (extra). Was it trained with another config?"
    )


def test_load_weights_names_what_is_missing_as_the_file_does() -> None:
    weights = renamed(fresh(), official_key)
    del weights["head.l.bias"]

    assert "1 tensors are missing (head.l.bias), 0 are unknown." in refusal(fresh(), weights)


def test_load_weights_refuses_the_weights_of_another_depth(tmp_path: Path) -> None:
    save(trained(tiny_arch(depth=2)).state_dict(), tmp_path / "deeper.safetensors")

    message = refusal(fresh(), tmp_path / "deeper.safetensors")

    assert "deeper.safetensors does not fit this architecture: 0 tensors are missing, " in message
    assert "are unknown (stages.0.blocks.1.after.0.dw.fn.bn.bias, " in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("head.linear.weight", (5, 64)),
        ("stem.0.conv.weight", ()),
        ("stages.0.blocks.0.mixer.fn.bias.table", ()),
        ("stages.0.blocks.0.mixer.fn.bias.table", (2,)),
        ("stages.0.blocks.0.mixer.fn.bias.table", (2, 0)),
        ("stages.0.blocks.0.mixer.fn.bias.table", (2, 15)),
        ("stages.0.blocks.0.mixer.fn.bias.table", (3, 16)),
        ("stages.0.blocks.0.mixer.fn.bias.table", (2, 4, 4)),
    ],
)
def test_load_weights_refuses_a_wrong_shape(name: str, shape: tuple[int, ...]) -> None:
    needed = tuple(fresh().state_dict()[name].shape)
    weights = trained().state_dict() | {name: torch.zeros(shape)}

    assert refusal(fresh(), weights) == (f"the state dict: {name} has shape {shape}, this architecture needs {needed}.")


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return Path.mkdir, (self.folder,)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(form: str, tmp_path: Path) -> None:
    path, folder = tmp_path / "weights.pth", tmp_path / "made by the file"
    if form == "torch":
        torch.save({"model": Hostile(folder)}, path)
    else:
        path.write_bytes(pickle.dumps(Hostile(folder), protocol=2))

    message = refusal(fresh(), path)

    rule = "code and other objects than tensors are never loaded"
    assert message == f"{path}: damaged, or not a torch file of tensors ({rule})."
    assert not folder.exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth"])
@pytest.mark.parametrize("damage", ["cut", "empty", "text", "header"])
def test_a_damaged_file_is_refused(name: str, damage: str, tmp_path: Path) -> None:
    path = tmp_path / name
    save(trained().state_dict(), path)
    whole = path.read_bytes()
    damaged = {
        "cut": whole[:-100],
        "empty": b"",
        "text": b"width: 64\n" * 10,
        "header": b"\xff" * 64 + whole[64:],
    }
    path.write_bytes(damaged[damage])

    assert refusal(fresh(), path).startswith(f"{path}: damaged, or not a ")


def test_a_torch_file_in_which_a_byte_of_a_tensor_has_changed_is_refused(tmp_path: Path) -> None:
    path, weights = tmp_path / "weights.pth", trained().state_dict()
    save(weights, path)
    content = bytearray(path.read_bytes())
    content[content.index(weights["head.linear.weight"].numpy().tobytes()) + 5] ^= 1
    path.write_bytes(content)

    assert refusal(fresh(), path).startswith(f"{path}: damaged, or not a torch file of tensors")


@pytest.mark.parametrize("name", ["none.safetensors", "none.pth", ""])
def test_a_missing_file_is_refused(name: str, tmp_path: Path) -> None:
    assert refusal(fresh(), tmp_path / name) == f"{tmp_path / name}: no such file."


STRANGE = {
    "a tensor": (torch.zeros(3), "expected a mapping of names to tensors, got Tensor."),
    "a list": ([1, 2], "expected a mapping of names to tensors, got list."),
    "a number": ({"epoch": 3}, "expected names and dense tensors of real numbers, not 'epoch'."),
    "a number as a name": ({1: torch.zeros(3)}, "expected names and dense tensors of real numbers, not 1."),
    "nested": (
        {"ema": {"a": torch.zeros(3)}},
        "expected names and dense tensors of real numbers, not 'ema'.",
    ),
    "complex": (
        {"a": torch.zeros(3, dtype=torch.complex64)},
        "expected names and dense tensors of real numbers, not 'a'.",
    ),
    "sparse": (
        {"a": torch.zeros(3).to_sparse()},
        "expected names and dense tensors of real numbers, not 'a'.",
    ),
    "meta": (
        {"a": torch.zeros(3, device="meta")},
        "expected names and dense tensors of real numbers, not 'a'.",
    ),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
@pytest.mark.parametrize(("data", "message"), STRANGE.values(), ids=STRANGE)
def test_a_file_of_something_else_is_refused(data: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "strange.pth"
    torch.save(data, path)

    with pytest.raises(UsageError) as error:
        read_weights(path)

    assert str(error.value) == f"{path}: {message}"
