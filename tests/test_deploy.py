"""Folding changes how a network is computed, never what it computes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.network.attention import CascadedGroupAttention, ParallelGroupAttention, PositionBias
from evit_nas.network.deploy import deploy_weights, fold
from evit_nas.network.layers import Residual
from tests.networks import VARIANTS, lively_network, relative_error, tiny_arch

TOLERANCE = 3e-5  # relative to the largest logit; on AVX2 1.1e-5 has been seen


def images(arch: ArchConfig, count: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, arch.in_channels, *arch.input_size, generator=generator)


@pytest.mark.parametrize("name", PRESETS)
@torch.no_grad()
def test_a_folded_preset_computes_the_same(name: str) -> None:
    arch = ArchConfig.preset(name)
    model, x = lively_network(arch), images(arch, 1)
    assert relative_error(fold(model)(x), model(x)) < TOLERANCE


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
@torch.no_grad()
def test_every_kind_of_block_folds_to_the_same(changes: dict[str, object]) -> None:
    arch = tiny_arch(**changes)
    model, x = lively_network(arch), images(arch)
    assert relative_error(fold(model)(x), model(x)) < TOLERANCE


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_nothing_foldable_is_left(changes: dict[str, object]) -> None:
    folded = fold(lively_network(tiny_arch(**changes)))
    for module in folded.modules():
        assert not isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | PositionBias)
        assert not (isinstance(module, Residual) and isinstance(module.fn, nn.Conv2d))
        if isinstance(module, CascadedGroupAttention | ParallelGroupAttention):
            assert module.scale == 1.0


def test_the_model_itself_is_untouched() -> None:
    model = lively_network(tiny_arch()).train()
    before = copy.deepcopy(model.state_dict())
    folded = fold(model)
    assert model.training
    assert not folded.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.state_dict().keys() == before.keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@torch.no_grad()
def test_a_training_model_folds_to_what_it_computes_in_eval_mode() -> None:
    arch = tiny_arch()
    model, x = lively_network(arch), images(arch)
    expected = model(x)
    assert relative_error(fold(model.train())(x), expected) < TOLERANCE


@torch.no_grad()
def test_a_network_without_classes_folds_to_its_features() -> None:
    arch = tiny_arch().model_copy(update={"num_classes": 0})
    model, x = lively_network(arch), images(arch)
    assert relative_error(fold(model)(x), model(x)) < TOLERANCE


@torch.no_grad()
def test_a_resized_network_folds_with_its_resampled_bias() -> None:
    model = lively_network(tiny_arch())
    model.set_input_size((96, 128))
    x = images(model.arch)
    assert relative_error(fold(model)(x), model(x)) < TOLERANCE


def test_deploy_weights_are_float32_even_of_a_half_precision_network() -> None:
    weights = deploy_weights(lively_network(tiny_arch()).half())
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}


def test_deploy_weights_have_the_names_of_the_folded_module() -> None:
    model = lively_network(tiny_arch(cascade=False))
    weights = deploy_weights(model)
    assert weights.keys() == fold(model).state_dict().keys()
    assert weights["stem.0.weight"].shape == (4, 3, 3, 3)
    assert weights["stages.0.blocks.0.before.0.dw.bias"].shape == (32,)
    assert weights["stages.0.blocks.0.mixer.fn.bias.value"].shape == (2, 16, 16)  # a 4x4 map at 64 px
    assert weights["head.weight"].shape == (10, 64)
