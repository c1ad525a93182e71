"""The study of attention's share: equal latency on a device whose figures are known, shares counted by hand."""

from __future__ import annotations

import os

import pytest

from evit_nas.accuracy.short import ShortTraining
from evit_nas.analysis import proportion
from evit_nas.analysis.proportion import TOLERANCE, Variant, attention_share, matched, study, variants, widened
from evit_nas.arch import ArchConfig
from evit_nas.config import Conditions, ShortRecipe
from evit_nas.errors import EvitNasError, RunError, UsageError
from evit_nas.files import lock
from evit_nas.latency import Protocol, Unit
from tests.fakes import FakeDevice, latency_of
from tests.networks import tiny_arch
from tests.searches import Silent

BASE = ArchConfig.preset("m0")
RECIPE = ShortRecipe(images=40, cycles=(1,), batch_size=20)


@pytest.fixture
def device():
    FakeDevice.calls.clear()
    return FakeDevice(Conditions(device="fake"))


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({"ffn_count": 0}, 1),
        ({"ffn_count": 1}, 1 / 3),
        ({"ffn_count": 2}, 1 / 5),
        ({"ffn_count": 3, "depth": 4}, 1 / 7),
        ({"mixer": "none"}, 0),
    ],
)
def test_the_share_counts_layers(changes, share):
    assert attention_share(tiny_arch(**changes)) == pytest.approx(share)


def test_stages_count_by_their_depth():
    stages = [stage.model_dump() for stage in tiny_arch().stages]
    stages[0] |= {"mixer": "none", "depth": 3}
    assert attention_share(ArchConfig.model_validate(tiny_arch().model_dump() | {"stages": stages})) == 2 / (2 + 10)


def test_variants_differ_in_ffns_and_in_the_stages_that_attend_and_in_nothing_else():
    found = dict(variants(BASE))
    assert len(found) == 10  # without FFNs every stage must attend
    assert sorted({round(attention_share(arch), 3) for arch in found.values()})[-1] == 1
    plain = {"ffn_count": 1, "mixer": "softmax"}
    for arch in found.values():
        assert [stage.model_copy(update=plain) for stage in arch.stages] == list(BASE.stages)
    assert found["1 FFN a side, attention in 1, 2, 3"] == BASE
    assert [stage.mixer for stage in found["2 FFNs a side, attention in 3"].stages] == ["none", "none", "softmax"]


@pytest.mark.parametrize("plain", [[0], [1], [0, 2]])
def test_stages_without_attention_stay_so_and_keep_an_ffn(plain):
    stages = [stage.model_dump() for stage in BASE.stages]
    for index in plain:
        stages[index]["mixer"] = "none"
    found = [arch for _, arch in variants(ArchConfig.model_validate(BASE.model_dump() | {"stages": stages}))]
    assert len(found) == 3 * (3 - len(plain))
    assert all(arch.stages[index].mixer == "none" for arch in found for index in plain)


def test_a_network_without_attention_is_refused_before_anything_is_made(tmp_path, device):
    with pytest.raises(UsageError, match="no stage of the network has attention"):
        study(tmp_path / "s", tiny_arch(mixer="none"), "digits", device, Silent(), recipe=RECIPE)
    assert device.calls == []
    assert not (tmp_path / "s").exists()


def test_every_variant_is_brought_to_the_latency_of_the_network(device):
    target_ms = device.measure(BASE, Protocol())[0].median_ms
    for _, arch in variants(BASE):
        found, latency = matched(device, arch, target_ms)
        assert abs(latency.median_ms / target_ms - 1) <= TOLERANCE
        assert attention_share(found) == attention_share(arch)


def test_a_network_that_no_width_brings_near_is_not_matched(device):
    assert matched(device, BASE, 1e4) is None
    assert matched(device, BASE, 0.01) is None


def test_widths_stay_multiples_of_16_and_of_the_heads():
    for factor in (0.3, 0.77, 1.9):
        for stage in widened(ArchConfig.preset("m2"), (factor, 1.0, factor)).stages:
            assert stage.width % 16 == stage.width % stage.heads == 0


@pytest.fixture
def trainings(monkeypatch):
    """Trainings that answer at once: half of the share of attention is right; `dies` is a key that cannot be."""
    seen: list[tuple[str, int]] = []

    def run(self: ShortTraining, arch: ArchConfig, seed: int, **how: object) -> object:
        from evit_nas.accuracy import ShortScore

        seen.append((arch.key, seed))
        return ShortScore(accuracy=attention_share(arch) / 2, cross_entropy=1.0, curve=(1.0,))

    monkeypatch.setattr(ShortTraining, "run", run)
    return seen


@pytest.fixture
def here(monkeypatch):
    """Trains in this process."""
    from concurrent.futures import ThreadPoolExecutor

    from evit_nas.searching.labelling import labels

    monkeypatch.setattr(labels, "worker_pool", ThreadPoolExecutor)
    monkeypatch.setattr(labels, "end", lambda pool: pool.shutdown())


def test_a_study_trains_each_variant_once_and_goes_on_where_it_was(tmp_path, device, trainings, here):
    gray = ArchConfig.model_validate(BASE.model_dump() | {"num_classes": 10})
    first = study(tmp_path / "s", gray, "digits", device, Silent(), recipe=RECIPE)
    assert len(trainings) == len(first.points) == 10
    assert [point.mean for point in first.points] == pytest.approx([50 * p.variant.share for p in first.points])
    assert sorted(point.variant.share for point in first.points) == [point.variant.share for point in first.points]

    measured = len(device.calls)
    again = study(tmp_path / "s", gray, "digits", device, Silent(), recipe=RECIPE, seeds=(0, 1))
    assert len(device.calls) == measured
    assert len(trainings) == 20
    assert all(len(point.accuracy) == 2 for point in again.points)
    assert study(tmp_path / "s", gray, "digits", device, Silent(), recipe=RECIPE, seeds=(0, 1), workers=0) == again


def test_a_study_that_is_interrupted_while_it_measures_goes_on(tmp_path, device, trainings, here, monkeypatch):
    tries = []

    def matched_until_it_is_stopped(*asked: object) -> object:
        tries.append(asked[1])
        if len(tries) == 5:
            raise KeyboardInterrupt
        return matched(*asked)

    monkeypatch.setattr(proportion, "matched", matched_until_it_is_stopped)
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, BASE, "digits", device, Silent(), recipe=RECIPE)
    assert len(study(tmp_path, BASE, "digits", device, Silent(), recipe=RECIPE).points) == 10
    assert len(tries) == 4 + 1 + 6


def test_a_study_that_goes_on_matches_by_the_yardstick_that_it_began_with(tmp_path, trainings, here, monkeypatch):
    class Learning(FakeDevice):
        quiet_ms = 1.0

        def measure(self, subject, protocol):
            latency, samples = super().measure(subject, protocol)
            return latency.by(Unit(self.quiet_ms, 0.04)), samples

    device = Learning(Conditions(device="fake"))
    tries = []

    def matched_until_a_better_one_is_known(*asked: object) -> object:
        tries.append(asked)
        if len(tries) == 5:
            raise KeyboardInterrupt
        return matched(*asked)

    monkeypatch.setattr(proportion, "matched", matched_until_a_better_one_is_known)
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path, BASE, "digits", device, Silent(), recipe=RECIPE)
    monkeypatch.setattr(Learning, "quiet_ms", 0.8)
    found = study(tmp_path, BASE, "digits", device, Silent(), recipe=RECIPE)
    assert len(found.points) == 10
    assert {point.variant.latency.canary_ms for point in found.points} == {1.0}
    assert all(abs(p.variant.latency.median_ms / found.target_ms - 1) <= TOLERANCE for p in found.points)


def test_the_folder_of_another_network_is_refused(tmp_path, device, trainings, here):
    study(tmp_path, BASE, "digits", device, Silent(), recipe=RECIPE)
    with pytest.raises(UsageError, match="study of another network or device"):
        study(tmp_path, ArchConfig.preset("m1"), "digits", device, Silent(), recipe=RECIPE)


def test_two_processes_do_not_write_one_folder(tmp_path, device):
    with lock(tmp_path), pytest.raises(RunError, match=rf"is being written by process {os.getpid()} on .*Wait for it"):
        study(tmp_path, BASE, "digits", device, Silent(), recipe=RECIPE)


def test_without_workers_nothing_is_begun_measured_or_trained(tmp_path, device, monkeypatch):
    with pytest.raises(UsageError, match=r"typo holds no study .* Begin it with --workers 1"):
        study(tmp_path / "typo", BASE, "digits", device, Silent(), recipe=RECIPE, workers=0)
    assert not (tmp_path / "typo").exists()
    assert device.calls == []

    answers = iter([matched(device, BASE, 3.0)])
    monkeypatch.setattr(proportion, "matched", lambda *_: next(answers))
    with pytest.raises(StopIteration):  # the study ends with the first variant
        study(tmp_path, BASE, "digits", device, Silent(), recipe=RECIPE)
    measured = len(device.calls)
    with pytest.raises(EvitNasError, match="none of the variants is trained yet"):
        study(tmp_path, BASE, "digits", device, Silent(), recipe=RECIPE, workers=0)
    assert len(device.calls) == measured


def test_a_place_that_cannot_be_written_is_refused(tmp_path, device):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*study: Not a directory\. Choose another with --out"):
        study(tmp_path / "file" / "study", BASE, "digits", device, Silent(), recipe=RECIPE)


def test_variants_out_of_reach_are_named(tmp_path, device, trainings, here, monkeypatch):
    monkeypatch.setattr(proportion, "WIDEST", 0.26)
    watch = Silent()
    with pytest.raises(EvitNasError):
        study(tmp_path, BASE, "digits", device, watch, recipe=RECIPE)
    assert sum("no width of it comes within 5%" in line for line in watch.notes) == 10


def test_a_variant_travels_through_json():
    one = Variant(name="x", arch=BASE, latency=latency_of(3.0))
    assert Variant.model_validate_json(one.model_dump_json()) == one
