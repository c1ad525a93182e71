"""timm's users find every architecture under the name evit_nas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import evit_nas
from evit_nas.arch import ArchConfig
from evit_nas.errors import UsageError
from evit_nas.network.weights import load_weights
from tests.networks import VARIANTS, lively_network, tiny_arch

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def create(**arguments: object) -> torch.nn.Module:
    return timm.create_model("evit_nas", **arguments).eval()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The weights of a lively `tiny_arch`."""
    save_file(lively_network(tiny_arch()).state_dict(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_importing_the_package_imports_neither_timm_nor_torch() -> None:
    code = "import sys, evit_nas; sys.exit(bool({'timm', 'torch', 'onnx', 'numpy'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_model_is_known_where_timm_was_imported_first() -> None:
    code = "import timm, evit_nas; import sys; sys.exit(not timm.is_model('evit_nas'))"
    assert subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code]).returncode == 0


def test_an_architecture_comes_as_a_file_a_mapping_a_value_or_a_preset(tmp_path: Path) -> None:
    arch = tiny_arch()
    (tmp_path / "net.yaml").write_text(arch.to_yaml())
    for form in (tmp_path / "net.yaml", str(tmp_path / "net.yaml"), arch.model_dump(mode="json"), arch):
        assert create(arch=form).arch == arch
    assert create(arch="m1").arch == ArchConfig.preset("m1")


def test_classes_channels_and_size_replace_those_of_the_architecture() -> None:
    model = create(arch="m0", num_classes=7, in_chans=1, img_size=(64, 96))
    assert model(torch.zeros(2, 1, 64, 96)).shape == (2, 7)
    assert (model.arch.num_classes, model.arch.in_channels, model.arch.input_size) == (7, 1, (64, 96))


def test_without_classes_pooled_features_come_out_and_without_pooling_the_map() -> None:
    assert create(arch=tiny_arch(), num_classes=0)(IMAGES).shape == (2, 64)
    assert create(arch=tiny_arch(), num_classes=0, global_pool="")(IMAGES).shape == (2, 64, 1, 1)


def test_timm_resolves_the_images_that_the_network_takes() -> None:
    arch = ArchConfig.model_validate(tiny_arch().model_dump() | {"in_channels": 1, "image_size": [64, 96]})
    config = timm.data.resolve_model_data_config(create(arch=arch))
    assert config["input_size"] == (1, 64, 96)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs arch: a preset"),
        ({"arch": "m9"}, "needs arch: a preset"),
        ({"arch": "gone.yaml"}, "gone.yaml: no such file"),
        ({"arch": {"stage": []}}, "Did you mean 'stages'"),
        ({"arch": "m0", "num_clases": 3}, "no argument 'num_clases'. Did you mean 'num_classes'"),
        ({"arch": "m0", "drop_path_rate": 0.1}, "leave drop_path_rate out"),
        ({"arch": "m0", "img_size": 100}, "image_size: must be a multiple of 16"),
        ({"arch": "m0", "global_pool": "max"}, "global_pool must be 'avg' or ''"),
        ({"arch": "m0", "features_only": True, "out_indices": (0, 3)}, "stages from -3 to 2"),
        ({"arch": "m0", "pretrained_cfg": "in1k"}, "no weights called 'in1k'"),
    ],
)
def test_a_wrong_argument_is_refused_with_what_is_allowed(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        create(**arguments)


def test_an_unknown_argument_is_a_type_error_too() -> None:
    with pytest.raises(TypeError, match="Did you mean 'feature_cls'"):
        create(arch="m0", features_cls="list")


def test_the_description_tells_the_shapes_that_timm_asks_for(tmp_path: Path, checkpoint: Path) -> None:
    arch = ArchConfig.model_validate(tiny_arch().model_dump() | {"image_size": [128, 192]})
    model = create(arch=arch)
    assert model.default_cfg["pool_size"] == model.forward_features(torch.zeros(1, 3, 128, 192)).shape[2:] == (2, 3)
    overlay = {"file": str(checkpoint), "input_size": (3, 64, 64), "num_classes": 10}
    assert create(arch=tiny_arch(), pretrained=True, pretrained_cfg_overlay=overlay).default_cfg["pool_size"] == (1, 1)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_parameters_are_made_where_and_as_they_are_wanted(device: str) -> None:
    model = create(arch=tiny_arch(), device=device, dtype=torch.float64)
    tensors = [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]
    assert {(tensor.device.type, tensor.dtype) for tensor in tensors} == {(device, torch.float64)}


def test_settings_that_timms_scripts_always_pass_are_accepted() -> None:
    model = create(arch=tiny_arch(), drop_rate=0.0, drop_path_rate=None, drop_block_rate=None, global_pool=None)
    assert model.arch == tiny_arch()


@pytest.mark.parametrize("variant", VARIANTS)
def test_feature_maps_are_those_of_the_stages_with_their_strides(variant: str) -> None:
    arch = tiny_arch(**VARIANTS[variant])
    features = create(arch=arch, features_only=True)
    maps = features(IMAGES)
    assert features.feature_info.reduction() == [16, 32, 64]
    assert features.feature_info.channels() == [feature.shape[1] for feature in maps] == [32, 48, 64]
    assert [64 // feature.shape[2] for feature in maps] == [16, 32, 64]
    whole = create(arch=arch)
    whole.load_state_dict(features.model.state_dict(), strict=False)
    for feature, expected in zip(maps, whole.forward_intermediates(IMAGES)[1], strict=True):
        torch.testing.assert_close(feature, expected)


@pytest.mark.parametrize("extractor", ["getter", "list", "dict", "hook", "fx"])
@pytest.mark.parametrize("variant", ["cascade", "linear", "padded window"])
def test_every_extractor_of_timm_finds_the_same_maps(variant: str, extractor: str, tmp_path: Path) -> None:
    expected = lively_network(tiny_arch(**VARIANTS[variant]))
    save_file(expected.state_dict(), tmp_path / "model.safetensors")
    overlay = {"file": str(tmp_path / "model.safetensors"), "input_size": (3, 64, 64), "num_classes": 10}
    arguments = {"arch": expected.arch, "features_only": True, "pretrained": True, "pretrained_cfg_overlay": overlay}
    for chosen in ({"feature_cls": extractor}, {"feature_cfg": {"feature_cls": extractor, "out_indices": (0, 2)}}):
        maps = create(**arguments, **chosen)(IMAGES)
        numbers = chosen.get("feature_cfg", {}).get("out_indices", (0, 1, 2))
        wanted = expected.forward_intermediates(IMAGES, list(numbers), intermediates_only=True)
        for actual, map_ in zip(maps.values() if isinstance(maps, dict) else maps, wanted, strict=True):
            torch.testing.assert_close(actual, map_)


@pytest.mark.filterwarnings("ignore:.*is deprecated")
def test_features_can_be_scripted() -> None:
    features = create(arch=tiny_arch(), features_only=True, out_indices=(0, 1))
    for actual, expected in zip(torch.jit.script(features)(IMAGES), features(IMAGES), strict=True):
        torch.testing.assert_close(actual, expected)


def test_features_leave_out_the_stages_after_the_last_one_asked_for() -> None:
    features = create(arch=tiny_arch(), features_only=True, out_indices=(0, 1))
    assert features.feature_info.reduction() == [16, 32]
    assert [feature.shape[1] for feature in features(IMAGES)] == [32, 48]
    assert not [name for name, _ in features.named_parameters() if name.startswith(("model.stages.2", "model.head"))]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("variant", ["cascade", "parallel", "linear", "convolutional"])
@pytest.mark.parametrize("size", [(96, 160), (333, 500), (250, 1300), (65, 31)])
def test_features_of_any_image_keep_their_strides(size: tuple[int, int], variant: str, training: bool) -> None:
    """As detectors and segmenters feed them: one image, of any size; sizes are rounded up."""
    features = create(arch=tiny_arch(**VARIANTS[variant]), features_only=True).train(training)
    maps = features(torch.randn(1, 3, *size))
    assert [tuple(feature.shape[2:]) for feature in maps] == [
        tuple(-(-side // stride) for side in size) for stride in (16, 32, 64)
    ]
    assert all(feature.isfinite().all() for feature in maps)


def test_a_checkpoint_path_is_loaded(checkpoint: Path) -> None:
    expected = lively_network(tiny_arch())(IMAGES)
    torch.testing.assert_close(create(arch=tiny_arch(), checkpoint_path=checkpoint)(IMAGES), expected)


def test_weights_fit_another_size_number_of_classes_and_channels(checkpoint: Path) -> None:
    overlay = {"file": str(checkpoint), "input_size": (3, 64, 64), "num_classes": 10}
    arguments = {"arch": tiny_arch(), "pretrained": True, "pretrained_cfg_overlay": overlay}

    larger = create(**arguments, img_size=224)
    expected = lively_network(tiny_arch())
    load_weights(own := create(arch=tiny_arch(), img_size=224), checkpoint)
    images = torch.randn(1, 3, 224, 224)
    torch.testing.assert_close(larger(images), own(images))

    gray = create(**arguments, in_chans=1)
    torch.testing.assert_close(gray.stem[0].conv.weight, expected.stem[0].conv.weight.sum(1, keepdim=True))

    other = create(**arguments, num_classes=3)
    assert other(IMAGES).shape == (2, 3)
    torch.testing.assert_close(other.forward_features(IMAGES), expected.forward_features(IMAGES))

    features = create(**arguments, features_only=True)
    torch.testing.assert_close(features(IMAGES)[2], expected.forward_features(IMAGES))


def test_a_script_runs_with_the_model_registered_and_its_own_arguments(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("NAME = 'evit_nas'\n")
    (tmp_path / "script.py").write_text(
        "import sys, timm, beside\nassert __name__ == '__main__'\nprint(timm.is_model(beside.NAME), *sys.argv[1:])\n"
    )
    command = [sys.executable, "-m", "evit_nas.timm_entry", str(tmp_path / "script.py"), "--model", "m0"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=Path(evit_nas.__file__).parents[1])
    assert ended.stdout == "True --model m0\n", ended.stderr
