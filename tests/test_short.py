"""Short training: a function of architecture and seed, whatever interrupts it, and what it is fed."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from evit_nas.accuracy import ShortScore, short
from evit_nas.accuracy.short import Batches, ShortTraining, _groups, shifted
from evit_nas.arch import ArchConfig
from evit_nas.config import ShortRecipe
from evit_nas.data.dataset import Dataset, Split
from evit_nas.errors import MeasurementError, UsageError
from evit_nas.network.model import build
from tests.networks import tiny_arch

RECIPE = ShortRecipe(images=12, cycles=(1, 2), batch_size=6)
SEED = 3


class Killed(BaseException):
    """Stands for a process that ends here and now: nothing may catch it."""


def split(count: int, channels: int = 1, side: int = 64) -> Split:
    """Noise, dark in the first class, grey in the second and bright in the third."""
    labels = np.arange(count) % 3
    noise = np.random.default_rng(count).integers(0, 60, (count, side, side, channels))
    return Split((noise + 90 * labels[:, None, None, None]).astype(np.uint8), labels)


def dataset(train: int = 12, channels: int = 1) -> Dataset:
    return Dataset("made up", ("dark", "grey", "bright"), split(train, channels), split(9, channels), {}, "0")


@lru_cache
def training(recipe: ShortRecipe = RECIPE, channels: int = 1) -> ShortTraining:
    return ShortTraining(dataset(channels=channels), recipe)


@lru_cache
def uninterrupted(rung: int | None = None) -> ShortScore:
    return training().run(tiny_arch(), SEED, rung=rung)


def killed_after(epoch: int, checkpoint: Path) -> None:
    def step(done: int) -> None:
        if done == epoch:
            raise Killed

    with pytest.raises(Killed):
        training().run(tiny_arch(), SEED, checkpoint=checkpoint, step=step)


def test_equal_seeds_give_equal_scores_and_others_do_not():
    assert training().run(tiny_arch(), SEED) == uninterrupted()
    assert training().run(tiny_arch(), SEED + 1).curve != uninterrupted().curve


def test_training_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    training().run(tiny_arch(), SEED, rung=0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_a_killed_training_goes_on_to_the_score_of_an_uninterrupted_one(tmp_path, epoch):
    killed_after(epoch, tmp_path / "a.pt")
    (tmp_path / "a.partial").write_bytes(b"killed while it wrote")
    epochs = []
    score = training().run(tiny_arch(), SEED, checkpoint=tmp_path / "a.pt", step=epochs.append)
    assert score == uninterrupted()
    assert epochs == list(range(epoch + 1, 4))


def test_a_promoted_network_goes_on_to_the_score_of_one_trained_straight_to_the_rung(tmp_path):
    epochs = []
    first = training().run(tiny_arch(), SEED, rung=0, checkpoint=tmp_path / "a.pt", step=epochs.append)
    second = training().run(tiny_arch(), SEED, rung=1, checkpoint=tmp_path / "a.pt", step=epochs.append)
    assert first == uninterrupted(rung=0)
    assert second == uninterrupted(rung=1)
    assert epochs == [1, 2, 3]
    assert len(first.curve) == 1
    assert second.curve[:1] == first.curve


def test_a_checkpoint_that_is_past_the_rung_is_not_mistaken_for_it(tmp_path):
    killed_after(2, tmp_path / "a.pt")
    assert training().run(tiny_arch(), SEED, rung=0, checkpoint=tmp_path / "a.pt") == uninterrupted(rung=0)


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one_whole(tmp_path, monkeypatch):
    killed_after(1, tmp_path / "a.pt")
    whole = (tmp_path / "a.pt").read_bytes()

    def torn(state: object, file: object) -> None:
        file.write(whole[:100])
        raise Killed

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(Killed):
        training().run(tiny_arch(), SEED, checkpoint=tmp_path / "a.pt")
    assert (tmp_path / "a.pt").read_bytes() == whole


def test_a_rung_that_the_recipe_does_not_have_is_refused():
    with pytest.raises(ValueError, match="a rung must be from 0 to 1, got 2"):
        training().run(tiny_arch(), SEED, rung=2)


def test_a_loss_that_is_not_finite_is_a_failed_measurement_and_leaves_no_checkpoint_of_it(tmp_path):
    recipe = RECIPE.model_copy(update={"learning_rate": 1e30, "warmup": 0.0})
    with pytest.raises(MeasurementError, match=f"training of {tiny_arch().key} diverged in epoch 1: its loss is nan"):
        training(recipe).run(tiny_arch(), SEED, checkpoint=tmp_path / "a.pt")
    assert not list(tmp_path.iterdir())


def test_weights_that_the_last_step_ruined_are_a_failed_measurement_too():
    one_step = RECIPE.model_copy(
        update={"learning_rate": 1e38, "warmup": 0.0, "cycles": (1,), "batch_size": RECIPE.images}
    )
    with pytest.raises(MeasurementError, match="diverged in epoch 1"):
        training(one_step).run(tiny_arch(), SEED)


def test_it_learns_what_can_be_learned_and_its_scores_say_so():
    recipe = ShortRecipe(images=48, cycles=(8,), batch_size=8, learning_rate=1e-2, weight_decay=0)
    score = ShortTraining(dataset(train=48), recipe).run(tiny_arch(), SEED)
    assert score.accuracy == 1
    assert score.cross_entropy < 0.5
    assert score.curve[-1] < score.curve[0]


def test_products_in_bf16_learn_the_same():
    """As on a GPU; its sums and weights stay in fp32."""
    recipe = ShortRecipe(images=48, cycles=(8,), batch_size=8, learning_rate=1e-2, weight_decay=0)
    full, half = (ShortTraining(dataset(train=48), recipe, bf16=bf16).run(tiny_arch(), SEED) for bf16 in (False, True))
    assert half.accuracy == 1
    assert half.curve != full.curve
    assert half.curve[0] == pytest.approx(full.curve[0], rel=0.1)


def test_a_training_takes_the_gpu_with_the_most_free_memory_and_says_its_name(monkeypatch):
    assert short.device_name(torch.device("cpu")) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: ([4, 9, 1][index], 10))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    assert short.training_device() == torch.device("cuda", 1)
    assert short.device_name(short.training_device()) == "GPU 1"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert short.training_device() == torch.device("cpu")


def test_a_checkpoint_of_another_device_is_not_gone_on_with(tmp_path, monkeypatch):
    checkpoint = tmp_path / "a.pt"
    with monkeypatch.context() as patch:
        patch.setattr(short, "device_name", lambda device: "a GPU")
        killed_after(2, checkpoint)
    epochs = []
    assert training().run(tiny_arch(), SEED, checkpoint=checkpoint, step=epochs.append) == uninterrupted()
    assert epochs == [1, 2, 3]


@pytest.mark.parametrize(
    "change", [{"accuracy": 1.1}, {"cross_entropy": math.nan}, {"curve": ()}, {"curve": (math.inf,)}]
)
def test_a_score_that_no_training_can_come_to_is_refused(change):
    with pytest.raises(ValidationError):
        ShortScore.model_validate({"accuracy": 0.5, "cross_entropy": 1, "curve": (1,)} | change)


def test_grey_images_do_for_a_network_that_takes_colours_and_not_the_other_way_round():
    assert tiny_arch().in_channels == 3
    training().run(tiny_arch(), SEED, rung=0)
    grey = tiny_arch().model_copy(update={"in_channels": 1})
    with pytest.raises(UsageError, match=r"images have 3 channels, but the networks take 1: set in_channels: 3"):
        training(channels=3).run(grey, SEED)


def test_fewer_images_than_classes_are_refused():
    with pytest.raises(UsageError, match="at least one image of each of the 3 classes"):
        ShortTraining(dataset(), RECIPE.model_copy(update={"images": 2}))


def test_at_full_width_only_the_task_changes():
    full = training(RECIPE.model_copy(update={"width": 1.0}))
    assert full.fitted(tiny_arch()) == tiny_arch().model_copy(update={"num_classes": 3})


def test_at_half_the_width_every_preset_keeps_its_shape():
    for name in ("m0", "m1", "m2", "m3", "m4", "m5"):
        arch = ArchConfig.preset(name)
        narrow = training().fitted(arch)
        assert narrow.image_size == RECIPE.image_size
        for stage, before in zip(narrow.stages, arch.stages, strict=True):
            changed = {"width": stage.width, "qk_dim": stage.qk_dim}
            assert before.model_copy(update=changed) == stage
            assert stage.qk_dim == before.qk_dim / 2
            assert abs(stage.width - before.width / 2) <= math.lcm(16, before.heads) / 2


def test_equal_networks_are_trained_at_equal_widths():
    """Without attention the heads mean nothing, and must not decide what a narrower width is rounded to."""
    few, many = tiny_arch(mixer="none", heads=1), tiny_arch(mixer="none", heads=5)
    assert few.key == many.key
    assert training().fitted(few).key == training().fitted(many).key


def test_weight_decay_is_for_matrices_and_kernels_alone():
    model = build(tiny_arch(), seed=0)
    decayed, spared = _groups(model, RECIPE)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (RECIPE.weight_decay, 0)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [{names[id(parameter)] for parameter in group["params"]} for group in (decayed, spared)]
    assert found[0] | found[1] == set(names.values())
    assert not found[0] & found[1]
    assert all(parameter.ndim > 1 for parameter in decayed["params"])
    assert model.no_weight_decay() <= found[1]
    assert all("bias" in name or dict(model.named_parameters())[name].ndim == 1 for name in found[1])


def numbered(count: int, side: int = 4) -> Split:
    """Images that are black but for their number."""
    return Split(np.full((count, side, side, 1), np.arange(count)[:, None, None, None], np.uint8), np.arange(count))


PLAIN = ShortRecipe(batch_size=4, shift=0, flip=False)


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own():
    batches = Batches.of(numbered(12))
    orders = [
        [int(label) for _, labels in batches.epoch(PLAIN, seed, epoch, 1) for label in labels]
        for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    assert orders[0] == orders[1]
    assert all(sorted(order) == list(range(12)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_images_stay_with_their_labels():
    batches = Batches.of(numbered(12))
    for images, labels in batches.epoch(PLAIN, 0, 0, 3):
        assert images.shape == (4, 3, 4, 4)
        shown = (images * batches.std + batches.mean) * 255
        assert torch.equal(shown.round(), labels.view(-1, 1, 1, 1).expand(-1, 3, 4, 4))


def test_a_last_image_that_would_be_alone_in_its_batch_is_left_out():
    sizes = [len(labels) for _, labels in Batches.of(numbered(9)).epoch(PLAIN, 0, 0, 1)]
    assert sizes == [4, 4]


def test_images_are_read_where_they_are_mapped_and_without_a_warning(tmp_path, recwarn):
    """Every worker would have a copy of the 50,000 that ImageNet is validated on: 0.6 GB at 64 px."""
    np.save(tmp_path / "images.npy", split(60, channels=3).images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    batches = Batches.of(Split(mapped, np.zeros(60, dtype=np.int64)))
    assert batches.images.data_ptr() == mapped.ctypes.data
    assert torch.equal(batches.images, torch.from_numpy(mapped.copy()).permute(0, 3, 1, 2))
    assert not recwarn.list


def test_images_are_normalised_channel_by_channel_and_validation_as_training_is():
    train = Batches.of(split(60, channels=3))
    pixels = train.normalised(train.images, 3)
    assert pixels.mean(dim=(0, 2, 3)) == pytest.approx(torch.zeros(3), abs=1e-4)
    assert pixels.std(dim=(0, 2, 3)) == pytest.approx(torch.ones(3), abs=1e-4)
    val = Batches.of(numbered(3, side=64), like=train)
    assert torch.equal(val.mean, train.mean)
    assert torch.equal(val.std, train.std)


def test_augmented_images_are_mirrored_and_moved_and_nothing_else():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 10, 10, 1), dtype=np.uint8)
    batches = Batches.of(Split(np.repeat(image, 200, axis=0), np.zeros(200, dtype=np.int64)))
    recipe = ShortRecipe(image_size=64, batch_size=200, shift=1 / 64)
    ((images, _),) = batches.epoch(recipe, 0, 0, 1)
    found = {tuple(one.flatten().tolist()) for one in (images * batches.std + batches.mean).mul(255).round().int()}
    padded = {
        mirrored: np.pad(image[0, :, :: -1 if mirrored else 1, 0], 1, mode="edge").astype(int)
        for mirrored in (False, True)
    }
    allowed = {
        tuple(padded[mirrored][y : y + 10, x : x + 10].ravel().tolist())
        for mirrored in (False, True)
        for y in range(3)
        for x in range(3)
    }
    assert found == allowed


def test_shifts_reach_as_far_as_they_may_and_repeat_the_edge():
    ramp = torch.arange(5).view(1, 1, 1, 5).expand(300, 1, 5, 5).to(torch.uint8)
    moved = shifted(ramp, 2, torch.Generator().manual_seed(0))
    rows = {tuple(one[0, 0].tolist()) for one in moved}
    assert rows == {(0, 0, 0, 1, 2), (0, 0, 1, 2, 3), (0, 1, 2, 3, 4), (1, 2, 3, 4, 4), (2, 3, 4, 4, 4)}
