"""The ImageNet estimate: near published figures, better than trivial guesses, wide or silent where it knows little."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evit_nas.accuracy.anchor import PUBLISHED, imagenet_estimate, leave_one_out
from evit_nas.arch import PRESETS, ArchConfig
from evit_nas.network.cost import cost
from tests.networks import tiny_arch


def changed(name: str, **fields: object) -> ArchConfig:
    """A preset with fields of all its stages changed."""
    arch = ArchConfig.preset(name)
    return arch.model_copy(update={"stages": tuple(stage.model_copy(update=fields) for stage in arch.stages)})


def width(arch: ArchConfig) -> float:
    found = imagenet_estimate(arch)
    assert found
    return found.high - found.low


@pytest.mark.parametrize("name", PRESETS)
def test_the_papers_networks_are_estimated_near_their_published_top1(name):
    found = imagenet_estimate(ArchConfig.preset(name))
    assert found
    assert found.top1 == pytest.approx(PUBLISHED[name], abs=1.0)
    assert found.low < found.top1 < found.high


def rms(errors: object) -> float:
    return math.sqrt(float(np.mean(np.square(errors))))


def test_left_out_presets_are_estimated_better_than_by_trivial_guesses():
    top1 = np.array([PUBLISHED[name] for name in PRESETS])
    log_macs = np.log([cost(ArchConfig.preset(name)).macs for name in PRESETS])
    mean, line, nearest = [], [], []
    for i in range(len(PRESETS)):
        others = np.arange(len(PRESETS)) != i
        mean.append(top1[others].mean() - top1[i])
        line.append(np.polyval(np.polyfit(log_macs[others], top1[others], 1), log_macs[i]) - top1[i])
        nearest.append(top1[others][np.abs(log_macs[others] - log_macs[i]).argmin()] - top1[i])
    ours = rms(list(leave_one_out().values()))
    assert ours < 0.8
    assert ours < 0.8 * min(rms(mean), rms(line), rms(nearest))


@pytest.mark.parametrize("fields", [{"depth": 4}, {"width": 400}])
def test_a_larger_network_is_estimated_higher(fields):
    m3 = ArchConfig.preset("m3")
    larger = m3.model_copy(update={"stages": (*m3.stages[:2], m3.stages[2].model_copy(update=fields))})
    base, found = imagenet_estimate(m3), imagenet_estimate(larger)
    assert base
    assert found
    assert found.top1 > base.top1


def test_leaving_the_papers_design_widens_the_interval_choice_by_choice():
    assert width(ArchConfig.preset("m4")) < width(changed("m4", mixer="linear"))
    assert width(changed("m4", mixer="linear")) < width(changed("m4", mixer="linear", ffn_ratio=1.5))
    assert width(changed("m4", v_ratio=0.5)) > 2.5
    assert width(ArchConfig.preset("m4").model_copy(update={"stem_ratio": 0.5})) > 2.5
    assert width(changed("m4", window=5)) > 1.5 * width(ArchConfig.preset("m4"))


def test_turning_the_cascade_off_costs_what_the_paper_found():
    with_cascade, without = imagenet_estimate(changed("m4")), imagenet_estimate(changed("m4", cascade=False))
    assert with_cascade
    assert without
    assert with_cascade.top1 - without.top1 == pytest.approx(1.5, abs=0.3)  # a few weights change besides
    for no_cascade_to_lose in ({"heads": 1, "cascade": False}, {"mixer": "linear"}):
        found = imagenet_estimate(changed("m4", **no_cascade_to_lose))
        assert found
        assert found.top1 == pytest.approx(with_cascade.top1, abs=0.7)


def test_what_the_network_does_not_use_changes_nothing():
    linear = changed("m4", mixer="linear")
    assert imagenet_estimate(linear) == imagenet_estimate(
        linear.model_copy(
            update={"stages": tuple(stage.model_copy(update={"cascade": False}) for stage in linear.stages)}
        )
    )


def test_a_window_larger_than_the_map_is_the_papers():
    m4 = ArchConfig.preset("m4")
    last = m4.stages[2].model_copy(update={"window": 4})  # its map has 4 x 4 tokens
    assert imagenet_estimate(m4.model_copy(update={"stages": (*m4.stages[:2], last)})) == imagenet_estimate(m4)


def test_sizes_far_outside_get_a_wider_interval_and_then_no_estimate():
    def scaled(step: int) -> ArchConfig:
        stages = ArchConfig.preset("m5").stages
        return ArchConfig(stages=tuple(s.model_copy(update={"width": s.width + step * s.heads * 8}) for s in stages))

    assert width(scaled(4)) > width(scaled(0))
    assert imagenet_estimate(scaled(12)) is None


def test_other_tasks_get_no_estimate():
    m0 = ArchConfig.preset("m0")
    assert imagenet_estimate(tiny_arch()) is None
    for field, value in (("image_size", 256), ("num_classes", 100), ("in_channels", 1)):
        assert imagenet_estimate(m0.model_copy(update={field: value})) is None


def test_the_text_says_that_it_is_an_estimate():
    assert str(imagenet_estimate(ArchConfig.preset("m4"))) == "about 74 % (74 to 75), estimated"
