"""A training is a function of its settings: interrupted or not, by one process or two."""

import errno
import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from evit_nas.data.folder import FolderImages
from evit_nas.data.images import Images
from evit_nas.data.sources import open_source
from evit_nas.errors import EvitNasError, Interrupted, RunError, UsageError
from evit_nas.files import lock
from evit_nas.network.model import build
from evit_nas.network.weights import load_weights, read_weights
from evit_nas.trained import WEIGHTS, Trained
from evit_nas.training import carry, checkpoint, loop, network, records
from evit_nas.training.batches import Augmented, Batch, Mix, TrainingBatches, augmentation, epoch_order, plain_batches
from evit_nas.training.curve import write_curve
from evit_nas.training.folder import CHECKPOINT, METRICS, create, read_record
from evit_nas.training.hardware import Hardware
from evit_nas.training.network import train
from evit_nas.training.recipe import RECIPES, Recipe, load_recipe
from evit_nas.training.settings import TrainSettings
from evit_nas.training.validation import validate
from tests.networks import tiny_arch
from tests.trainings import SHADES, write_shades

SPLITS = ("training", "validation")
QUICK = {"epochs": 6, "batch_size": 16, "warmup_epochs": 1, "repeats": 1, "learning_rate": 1e-1, "clip_mode": "norm"}
LIVELY = QUICK | {"clip": 1.0, "average": 0.9, "auto_augment": "rand-m3-inc1", "smallest_crop": 0.7, "mixup": 0.1}


class Watch:
    """Keeps what it is told."""

    def __init__(self):
        self.notes, self.statuses = [], []

    def note(self, message):
        self.notes.append(message)

    def trained(self, status):
        self.statuses.append(status)


class Stopped(Watch):
    """Interrupts the training at the n-th status."""

    def __init__(self, after):
        super().__init__()
        self._after = after

    def trained(self, status):
        super().trained(status)
        if len(self.statuses) == self._after:
            raise Interrupted


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_shades(tmp_path_factory.mktemp("images"))


def settings(images, **changes) -> TrainSettings:
    recipe = load_recipe("paper", changes.pop("recipe", LIVELY))
    arch = tiny_arch().model_copy(update={"num_classes": 3})
    return TrainSettings(name="tiny", arch=arch, data=str(images), recipe_name="quick", recipe=recipe, **changes)


def begun(folder: Path, images, **changes) -> Path:
    create(folder, settings(images, **changes), "evit-nas train")
    return folder


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, images):
    """An uninterrupted training, and what it returned."""
    folder = begun(tmp_path_factory.mktemp("finished") / "a", images)
    return folder, train(folder, Watch())


def test_the_curve_shows_both_losses_and_the_accuracy(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **how: drawn.append(figure))
    train = [{"kind": "train", "epoch": 1, "step": step, "loss": 3.0 - step} for step in (1, 2)]
    val = [{"kind": "val", "epoch": epoch, "loss": 1.0 / epoch, "top1": 40.0 * epoch} for epoch in (1, 2)]
    write_curve([*train, *val], "m0", tmp_path / "curve.png")
    losses, accuracy = drawn[0].axes
    assert {line.get_label(): list(line.get_ydata()) for line in losses.lines} == {
        "training": [2.0, 1.0],
        "validation": [1.0, 0.5],
    }
    assert list(accuracy.lines[0].get_ydata()) == [40.0, 80.0]


# --- recipes ---


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_valid_and_warms_up_before_it_ends(name):
    recipe = load_recipe(name, {})
    assert 0 < recipe.warmup_epochs < recipe.epochs


def test_the_defaults_are_the_papers_recipe():
    recipe = Recipe()
    assert (recipe.epochs, recipe.weight_decay, recipe.clip, recipe.clip_mode) == (300, 0.025, 0.02, "agc")
    assert Recipe(batch_size=2048).peak_rate == pytest.approx(4e-3)
    assert Recipe(batch_size=2048).peak_rate * recipe.final_rate == pytest.approx(1e-5)


def test_the_learning_rate_follows_the_batch_size():
    assert Recipe(batch_size=512).peak_rate == 2 * Recipe(batch_size=256).peak_rate


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 15}, "multiple of 2"),
        ({"batch_size": 64, "accumulate": 64}, "multiple of 2"),
        ({"epochs": 5, "warmup_epochs": 5}, "fewer than the 5 epochs"),
        ({"epoch": 5}, "Did you mean 'epochs'"),
        ({"smoothing": float("nan")}, "smoothing"),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_field(changes, message):
    with pytest.raises(UsageError, match=message):
        load_recipe("paper", changes)


def test_a_recipe_can_be_a_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("epochs: 7\nwarmup_epochs: 1\n")
    assert load_recipe(str(tmp_path / "mine.yaml"), {"mixup": 0.5}) == Recipe(epochs=7, warmup_epochs=1, mixup=0.5)


def test_a_warm_up_in_a_file_that_is_no_number_is_refused_with_its_field(tmp_path):
    (tmp_path / "mine.yaml").write_text("warmup_epochs: five\n")
    with pytest.raises(UsageError, match="warmup_epochs"):
        load_recipe(str(tmp_path / "mine.yaml"), {"epochs": 10})


def test_an_unknown_recipe_names_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'finetune'"):
        load_recipe("fine-tune", {})


# --- batches ---


def batches(images, *, accumulate=1, rank=0, processes=1, workers=0, seed=0, **changes):
    wish = settings(images, recipe=LIVELY | {"accumulate": accumulate} | changes)
    source = open_source(wish.data, seed=0)
    transform = augmentation(wish.recipe, wish.preprocessing)
    return TrainingBatches(source.train, transform, wish.recipe, seed, rank=rank, processes=processes, workers=workers)


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_an_epoch_shows_every_image_once():
    assert sorted(epoch_order(50, seed=1, epoch=3, repeats=1)) == list(range(50))


def test_repeated_augmentation_keeps_the_length_of_the_epoch():
    order = epoch_order(50, seed=1, epoch=3, repeats=3)
    assert len(order) == 50
    assert len(set(order)) == 17  # ceil(50 / 3)
    assert max(np.bincount(order)) == 3


def test_epochs_and_seeds_differ():
    orders = [tuple(epoch_order(50, seed, epoch, 1)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


def test_a_batch_does_not_depend_on_what_came_before_it(images):
    whole = {step: batch for step, _, batch in batches(images)(epoch=1)}
    later = {step: batch for step, _, batch in batches(images)(epoch=1, first=2)}
    assert list(whole) == [0, 1, 2, 3]
    assert list(later) == [2, 3]
    assert all(same(whole[step], later[step]) for step in later)


def test_a_batch_does_not_depend_on_who_loads_it(images):
    here = [batch for _, _, batch in batches(images)(epoch=0)]
    there = [batch for _, _, batch in batches(images, workers=2)(epoch=0)]
    assert all(same(a, b) for a, b in zip(here, there, strict=True))


def test_an_image_is_augmented_anew_in_every_epoch_and_repeat(images):
    one = batches(images, repeats=4, flip=0.0)
    first = next(iter(one(epoch=0)))[2].images
    assert not torch.equal(first[0], first[1])  # the same image, twice


@pytest.mark.parametrize("policy", ["rand-m10", "rand-m10-inc1", "v0", "original", "augmix-m10"])
def test_the_strongest_augmentation_takes_any_image(policy):
    """timm asks Pillow for a posterisation to 0 bits, one image in some hundred."""
    transform = augmentation(Recipe(auto_augment=policy), settings("").preprocessing)
    ops = [op for step in transform.transforms for op in chain(getattr(step, "ops", ()), *getattr(step, "policy", ()))]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    posterising = [op for op in ops if op.name.startswith("Posterize")]
    for op in posterising:
        op.prob, op.magnitude, op.magnitude_std = 1.0, 10, 0
        assert np.ptp(np.asarray(op(image))) > 0
        op.magnitude = 0
        assert op(image).size == image.size
    assert posterising


def test_two_processes_load_what_one_does_in_two_parts(images):
    alone = {(step, part): batch for step, part, batch in batches(images, accumulate=2)(epoch=0)}
    shared = {
        (step, part): batch for rank in (0, 1) for step, part, batch in batches(images, rank=rank, processes=2)(epoch=0)
    }
    assert alone.keys() == shared.keys()
    assert all(same(alone[place], shared[place]) for place in alone)


def test_mixing_is_a_function_of_the_place(images):
    mix, batch = Mix(settings(images).recipe, 3, seed=0), next(iter(batches(images)(0)))[2]
    once, again, elsewhere = (mix(batch._replace(images=batch.images.clone()), 0, step, 0) for step in (1, 1, 2))
    assert torch.equal(once[0], again[0])
    assert not torch.equal(once[0], elsewhere[0])
    assert once[1].sum(1).allclose(torch.ones(16))


def test_a_batch_larger_than_the_data_is_refused_with_one_that_fits(images):
    with pytest.raises(UsageError, match=r"batch_size=18"):
        batches(images, batch_size=512)
    with pytest.raises(UsageError, match=r"batch_size=16"):
        batches(images, batch_size=512, accumulate=4)


def test_processes_must_divide_a_batch(images):
    with pytest.raises(UsageError, match="3 processes"):
        batches(images, processes=3)


def left_to_the_parent() -> bool:
    """Whether this process ignores what a terminal sends, and can be ended by SIGTERM."""
    ignored = all(signal.getsignal(number) is signal.SIG_IGN for number in (signal.SIGINT, signal.SIGHUP))
    return ignored and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class Told(Images):
    """Images whose label tells whether who loads them leaves signals to its parent, or of which none can be read."""

    def __init__(self, readable=True):
        super().__init__(np.zeros(300))
        self._readable = readable

    def picture(self, index):
        raise NotImplementedError

    def name(self, index):
        return f"image {index}"

    def __getitem__(self, index):
        if not self._readable:
            raise OSError("broken")
        return Image.new("RGB", (64, 64)), int(left_to_the_parent())


def test_signals_are_for_the_process_that_trains_alone():
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command line does, and forked processes inherit
    wish = settings("")
    loader = TrainingBatches(Told(), augmentation(wish.recipe, wish.preprocessing), wish.recipe, 0, workers=1)
    assert next(iter(loader(epoch=0)))[2].labels.all()
    assert next(iter(plain_batches(Told(), wish.preprocessing, range(4), workers=1)))[1].all()


@pytest.mark.parametrize("workers", [0, 1])
def test_data_that_cannot_be_read_are_named_in_one_sentence(workers):
    wish = settings("")
    transform = augmentation(wish.recipe, wish.preprocessing)
    loader = TrainingBatches(Told(readable=False), transform, wish.recipe, 0, workers=workers)
    with pytest.raises(
        EvitNasError, match=r"^100 images in a row cannot be read, from image \d+ on: check the data\.$"
    ):
        next(iter(loader(epoch=0)))


def test_an_augmentation_can_be_handed_to_a_fresh_process():
    """As processes that load images are begun where they are not forked."""
    transform = augmentation(Recipe(), settings("").preprocessing)
    assert pickle.loads(pickle.dumps(transform))(Image.new("RGB", (64, 64))).shape == (3, 64, 64)


# --- the training ---


def test_a_training_learns_and_says_what_it_left(finished, images):
    folder, trained = finished
    assert trained.top1 > 60  # three classes
    assert Trained.load(folder) == trained
    assert trained.classes == SHADES
    assert not (folder / CHECKPOINT).exists()
    assert (folder / "curve.png").stat().st_size > 10_000


def test_the_kept_weights_are_those_that_validated_best(finished, images):
    folder, trained = finished
    best = max((row for row in lines(folder) if row["kind"] == "val"), key=lambda row: (row["top1"], -row["loss"]))
    assert (trained.top1, trained.loss, trained.epoch) == (best["top1"], best["loss"], best["epoch"])
    model = build(trained.arch).eval()
    load_weights(model, folder / WEIGHTS)
    source = open_source(str(images), seed=0)
    transform = trained.preprocessing.transform()
    with torch.no_grad():
        logits = model(torch.stack([transform(source.val[i][0]) for i in range(len(source.val))]))
    assert float((logits.argmax(1).numpy() == source.val.labels).mean() * 100) == pytest.approx(trained.top1)


def test_a_training_interrupted_again_and_again_ends_as_an_uninterrupted_one(tmp_path, monkeypatch, images, finished):
    """At the first step of all, within an epoch, at its last step and at the first of the next."""
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    folder = begun(tmp_path / "b", images)
    places = []
    for after in (1, 2, 3, 2, 6):
        stopped = Stopped(after)
        with pytest.raises(Interrupted):
            train(folder, stopped)
        places.append((stopped.statuses[-1].epoch, stopped.statuses[-1].step))
    assert places == [(0, 1), (0, 2), (0, 4), (1, 1), (2, 2)]
    trained = train(folder, Watch())
    assert lines(folder) == lines(finished[0])
    weights, expected = read_weights(folder / WEIGHTS), read_weights(finished[0] / WEIGHTS)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert trained.top1 == finished[1].top1


@pytest.fixture
def long_epochs(monkeypatch):
    """The few steps of an epoch are to a line of metrics what thousands are: several looks at the loss long."""
    monkeypatch.setattr(records, "LINES_AN_EPOCH", 1)
    monkeypatch.setattr(loop, "LOOK_STEPS", 2)
    return LIVELY | {"epochs": 1, "warmup_epochs": 0}


def test_a_long_epoch_is_shown_and_saved_more_often_than_its_loss_is_written(
    tmp_path, monkeypatch, images, long_epochs
):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    whole, interrupted = (begun(tmp_path / name, images, recipe=long_epochs) for name in ("whole", "interrupted"))
    watch = Watch()
    train(whole, watch)
    assert [(status.step, status.steps) for status in watch.statuses] == [(2, 4), (4, 4)]
    assert [row["step"] for row in lines(whole) if row["kind"] == "train"] == [4]
    with pytest.raises(Interrupted):
        train(interrupted, Stopped(2))
    assert checkpoint.load_state(interrupted / CHECKPOINT)["step"] == 2
    train(interrupted, Watch())
    assert lines(interrupted) == lines(whole)


def test_a_loss_that_is_not_finite_ends_a_long_epoch_early(tmp_path, monkeypatch, images, long_epochs):
    answer, calls = loop.Criterion.__call__, []
    monkeypatch.setattr(loop.Criterion, "__call__", lambda *given: calls.append(None) or answer(*given) * math.nan)
    with pytest.raises(EvitNasError, match="the loss is nan in epoch 1"):
        train(begun(tmp_path / "b", images, recipe=long_epochs), Watch())
    assert len(calls) == 2


def test_a_checkpoint_of_an_older_version_is_gone_on_from(tmp_path, monkeypatch, images, finished):
    """Which had none between two lines of metrics, and no losses in it."""
    folder = begun(tmp_path / "b", images)
    with pytest.raises(Interrupted):
        train(folder, Stopped(5))
    state = checkpoint.load_state(folder / CHECKPOINT)
    del state["loss_sum"], state["loss_steps"]
    checkpoint.save_state(folder / CHECKPOINT, state)
    train(folder, Watch())
    assert lines(folder) == lines(finished[0])


def test_a_finished_training_costs_nothing(finished):
    watch = Watch()
    assert train(finished[0], watch) == finished[1]
    assert not watch.statuses


def test_two_seeds_differ(tmp_path, images, finished):
    folder = begun(tmp_path / "b", images, seed=1)
    with pytest.raises(Interrupted):
        train(folder, Stopped(2))
    first, other = lines(finished[0])[1]["loss"], lines(folder)[1]["loss"]
    assert first != other


def test_a_loss_that_is_not_finite_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, images):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    folder = begun(tmp_path / "b", images, recipe=LIVELY | {"learning_rate": 1e25, "clip": None, "average": 0})
    with pytest.raises(
        EvitNasError, match=r"lower rate \(--set learning_rate=3\.3e\+24\).*, with another --out: the last"
    ):
        train(folder, Watch())
    state = checkpoint.load_state(folder / CHECKPOINT)
    assert state is None or all(tensor.isfinite().all() for tensor in state["model"].values())


def test_a_checkpoint_on_a_full_disk_is_an_error_of_the_system_and_leaves_the_last_one(tmp_path, full_disk):
    path, state = tmp_path / CHECKPOINT, {"model": {"weight": torch.zeros(10_000)}, "step": 1}
    checkpoint.save_state(path, state)
    with full_disk(), pytest.raises(OSError, match="File too large"):
        checkpoint.save_state(path, state | {"step": 2})
    assert checkpoint.load_state(path)["step"] == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_loss_that_becomes_nan_on_the_way_costs_what_came_after_the_last_epoch(
    tmp_path, monkeypatch, images, finished
):
    folder, answer, calls = begun(tmp_path / "b", images), loop.Criterion.__call__, []

    def once_nan(*arguments):
        calls.append(None)
        return answer(*arguments) * (math.nan if len(calls) == 11 else 1.0)  # the third step of the third epoch

    with monkeypatch.context() as patch:
        patch.setattr(loop.Criterion, "__call__", once_nan)
        with pytest.raises(EvitNasError, match=r"tiny: the loss is nan in epoch 3\. Take a lower rate"):
            train(folder, Watch())
    state = checkpoint.load_state(folder / CHECKPOINT)
    assert (state["epoch"], state["step"]) == (2, 0)
    assert all(tensor.isfinite().all() for tensor in [*state["model"].values(), *state["average"].values()])
    assert train(folder, Watch()).top1 == finished[1].top1
    assert lines(folder) == lines(finished[0])


def test_an_average_that_is_not_finite_is_not_kept(tmp_path, monkeypatch, images):
    def blind(networks, *rest):
        found = validate(networks, *rest)
        return found | {"average": found["average"] | {"top1": 100.0, "loss": math.nan}}

    monkeypatch.setattr(loop, "validate", blind)
    trained = train(begun(tmp_path / "b", images, recipe=LIVELY | {"epochs": 2}), Watch())
    assert not trained.averaged
    assert math.isfinite(trained.loss)


@pytest.mark.parametrize("name", ["Zebra", "a light"])
def test_a_training_does_not_go_on_with_classes_of_other_names(tmp_path, images, name):
    """Their order is that of their names: what was learned of one would be shipped as another."""
    root = Path(shutil.copytree(images, tmp_path / "mine"))
    folder = begun(tmp_path / "b", root, recipe=LIVELY | {"epochs": 2})
    with pytest.raises(Interrupted):
        train(folder, Stopped(6))
    for split in ("train", "val"):
        (root / split / "light").rename(root / split / name)
    with pytest.raises(UsageError, match=rf"has other classes than when this training began: {name}, light\."):
        train(folder, Watch())
    for split in ("train", "val"):
        (root / split / name).rename(root / split / "light")
    assert train(folder, Watch()).classes == SHADES


def test_what_is_odd_about_the_data_is_said_once_as_a_training_begins(tmp_path, images):
    root = Path(shutil.copytree(images, tmp_path / "mine"))
    shutil.copy(root / "train" / "dark" / "3.png", root / "val" / "dark" / "copy.png")
    (root / "val" / "light" / "IMG_1.HEIC").write_bytes(b"ftypheic")
    folder, stopped, resumed = begun(tmp_path / "b", root, recipe=LIVELY | {"epochs": 2}), Stopped(6), Watch()
    with pytest.raises(Interrupted):
        train(folder, stopped)
    assert stopped.notes[:1] == [
        "mine: 1 of the 19 validation images are training images too, byte for byte (val/dark/copy.png is "
        "train/dark/3.png): remove one of each, or the accuracy says too much",
    ]
    train(folder, resumed)
    assert not [note for note in resumed.notes if note.startswith("mine: ")]


def test_a_full_disk_costs_the_checkpoint_but_not_the_training(tmp_path, monkeypatch, images, finished):
    def full(path, write):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    folder = begun(tmp_path / "b", images)
    working = checkpoint.write_whole
    monkeypatch.setattr(checkpoint, "write_whole", full)
    watch = Watch()

    def freed(status):
        if status.epoch == 2:
            monkeypatch.setattr(checkpoint, "write_whole", working)

    watch.trained = freed
    trained = train(folder, watch)
    assert any("No space left" in note for note in watch.notes)
    assert trained.epoch >= 3
    assert lines(folder) == lines(finished[0])


def test_a_damaged_checkpoint_says_the_way_out(tmp_path, images):
    folder = begun(tmp_path / "b", images)
    (folder / CHECKPOINT).write_bytes(b"no zip file")
    with pytest.raises(UsageError, match="Remove it to train from the start"):
        train(folder, Watch())


def test_a_checkpoint_in_which_a_byte_has_changed_is_not_gone_on_from(tmp_path, images):
    folder = begun(tmp_path / "b", images)
    with pytest.raises(Interrupted):
        train(folder, Stopped(5))
    content = bytearray((folder / CHECKPOINT).read_bytes())
    weights = checkpoint.load_state(folder / CHECKPOINT)["model"]["head.linear.weight"].numpy().tobytes()
    content[content.index(weights) + 5] ^= 1
    (folder / CHECKPOINT).write_bytes(content)
    with pytest.raises(UsageError, match=r"damaged \(ValueError: .*has changed\).*Remove it"):
        train(folder, Watch())
    assert (folder / CHECKPOINT).read_bytes() == content


def test_unreadable_images_are_named_and_left_out(tmp_path, images):
    root = tmp_path / "images"
    subprocess.run(["cp", "-r", str(images), str(root)], check=True)
    (root / "train" / "dark" / "3.png").write_bytes(b"broken")
    (root / "val" / "light" / "2.png").write_bytes(b"broken")
    watch = Watch()
    trained = train(begun(tmp_path / "b", root), watch)
    assert trained.top1 > 40
    named = [note for note in watch.notes if "could not be read" in note]
    assert [note.split(":")[0] for note in named] == [f"1 {split} images could not be read" for split in SPLITS]
    assert all(f"{name} (empty, d" in note for name, note in zip(("dark/3.png", "light/2.png"), named, strict=True))
    assert {row["images"] for row in lines(tmp_path / "b") if row["kind"] == "val"} == {17}


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_disk_that_fails_ends_the_training_and_costs_no_image(tmp_path, images, monkeypatch, split):
    read = FolderImages.__getitem__

    def failing(self, index):
        if split in self.file(index).parts and index == 3:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(self, index)

    monkeypatch.setattr(FolderImages, "__getitem__", failing)
    with pytest.raises(UsageError, match=r"cannot be read: Input/output error\. Put that right"):
        train(begun(tmp_path / "b", images), Watch())


def test_a_batch_without_a_readable_image_counts_nothing():
    """Linear attention, for one, takes no batch of none."""
    model = build(tiny_arch(mixer="linear"))
    alone = SimpleNamespace(device=torch.device("cpu"), autocast=nullcontext, reduce=lambda tensor, how: tensor)
    nothing = (torch.zeros(2, 3, 64, 64), torch.tensor([-1, -1]), torch.tensor([3, 4]))
    one = (torch.zeros(2, 3, 64, 64), torch.tensor([0, -1]), torch.tensor([-1, 6]))
    unreadable = set()
    assert validate({"it": model}, [nothing], alone, 10, unreadable) is None
    assert validate({"it": model}, [nothing, one], alone, 10, unreadable)["it"]["images"] == 1
    assert unreadable == {3, 4, 6}


def test_networks_that_are_validated_side_by_side_have_the_figures_that_each_has_alone(images):
    networks = {seed: build(settings(images).arch, seed) for seed in (0, 1)}
    alone = SimpleNamespace(device=torch.device("cpu"), autocast=nullcontext, reduce=lambda tensor, how: tensor)
    source, preprocessing = open_source(str(images), seed=0), settings(images).preprocessing
    batches = [*plain_batches(source.val, preprocessing, range(18), batch=5)]
    together = validate(networks, iter(batches), alone, 3, set())  # which can be read once
    assert together == {
        seed: validate({seed: network}, batches, alone, 3, set())[seed] for seed, network in networks.items()
    }
    assert together[0]["loss"] != together[1]["loss"]


def test_validation_decodes_an_image_once_for_the_weights_and_their_average(tmp_path, monkeypatch, images):
    read, decoded = FolderImages.__getitem__, []

    def counted(self, index):
        decoded.append(self.file(index))
        return read(self, index)

    monkeypatch.setattr(FolderImages, "__getitem__", counted)
    train(begun(tmp_path / "b", images, recipe=LIVELY | {"epochs": 1, "warmup_epochs": 0}), Watch())
    validated = [path for path in decoded if "val" in path.relative_to(images).parts]
    assert len(validated) == len(set(validated)) == 18


def test_processes_share_the_statistics_of_all_that_is_validated(tmp_path, monkeypatch, images):
    shared, validated = [], []
    monkeypatch.setattr(loop, "share_statistics", lambda model, accelerator: shared.append(model))

    def recorded(networks, *rest):
        validated.extend(networks.values())
        return validate(networks, *rest)

    for module in (loop, network):
        monkeypatch.setattr(module, "validate", recorded)
    train(begun(tmp_path / "b", images, recipe=LIVELY | {"epochs": 1, "warmup_epochs": 0}), Watch())
    assert len(validated) == 3  # the weights and their average; and the better of them on training images
    assert all(any(model is other for other in shared) for model in validated)


@pytest.mark.parametrize(("least", "most", "tried"), [(5, 2000, 18), (5, 10, 10), (30, 2000, 30)])
def test_the_trained_network_is_tried_on_a_few_training_images_which_others_load(
    tmp_path, monkeypatch, images, least, most, tried
):
    """As many as there are for validation, 18, within these bounds."""
    loaders = []

    def loading(chosen, preprocessing, indices, **how):
        loaders.append(plain_batches(chosen, preprocessing, indices, **how))
        return loaders[-1]

    monkeypatch.setattr(network, "SEEN_IMAGES", (least, most))
    monkeypatch.setattr(network, "plain_batches", loading)
    recipe = LIVELY | {"epochs": 1, "warmup_epochs": 0}
    train(begun(tmp_path / "b", images, recipe=recipe), Watch(), Hardware(workers=1))
    assert [len(loader.sampler) for loader in loaders] == [tried]
    assert all(not worker.is_alive() for loader in loaders for worker in loader._iterator._workers)


def test_what_another_process_was_just_finishing_is_not_trained_again(tmp_path, monkeypatch, images, finished):
    def after_waiting(folder):
        shutil.copytree(finished[0], folder, dirs_exist_ok=True)
        return lock(folder)

    monkeypatch.setattr(carry, "lock", after_waiting)
    watch = Watch()
    assert train(begun(tmp_path / "b", images), watch) == finished[1]
    assert not watch.statuses


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:129] . DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_says_the_way_out(tmp_path, monkeypatch, images, error):
    def full(self, *_):
        raise error

    monkeypatch.setattr(loop.TrainingRun, "_mixed", full)
    with pytest.raises(EvitNasError, match=r"batch of 16 images in 1 parts.*--set accumulate=2.*batch_size\.$"):
        train(begun(tmp_path / "b", images), Watch())


def test_a_process_that_loads_images_and_is_killed_says_the_way_out(tmp_path, monkeypatch, images):
    """As the system does where memory runs out, or a container's 64 MB of shared memory."""

    monkeypatch.setattr(Augmented, "__getitem__", lambda self, draw: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(EvitNasError, match=r"process that loads images died.*Take fewer of them: --workers 1$"):
        train(begun(tmp_path / "b", images), Watch(), Hardware(workers=2))


@pytest.mark.parametrize(("split", "counts"), [("train", "73 training and 18"), ("val", "72 training and 19")])
def test_a_training_does_not_go_on_with_other_images(tmp_path, monkeypatch, images, split, counts):
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    folder = begun(tmp_path / "b", shutil.copytree(images, tmp_path / "own"))
    with pytest.raises(Interrupted):
        train(folder, Stopped(4))
    one = next((tmp_path / "own" / split).glob("*/*"))
    shutil.copy(one, one.with_name(f"more{one.suffix}"))
    with pytest.raises(UsageError, match=f"{counts} validation images, and had 72 and 18 when"):
        train(folder, Watch())


@pytest.mark.skipif(torch.accelerator.is_available(), reason="fp16 is for the accelerator that is here")
def test_fp16_is_refused_on_a_processor(tmp_path, images):
    with pytest.raises(UsageError, match="--set precision=fp32"):
        train(begun(tmp_path / "b", images, recipe=LIVELY | {"precision": "fp16"}), Watch())


def test_a_second_process_is_refused(tmp_path, images):
    folder = begun(tmp_path / "b", images)
    with lock(folder), pytest.raises(RunError, match=f"process {os.getpid()}"):
        train(folder, Watch())


@pytest.mark.parametrize("name", [".lock", METRICS])
def test_a_folder_that_cannot_be_written_any_more_says_the_way_out(tmp_path, images, name):
    """A folder in a file's place, since root may write everywhere else."""
    folder = begun(tmp_path / "b", images)
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    with pytest.raises(RunError, match=f"^cannot write the training folder {folder}: Is a directory.*add --resume"):
        train(folder, Watch())


def test_a_folder_holds_one_training(tmp_path, images):
    folder = begun(tmp_path / "b", images)
    (folder / CHECKPOINT).touch()
    with pytest.raises(RunError, match="--resume"):
        create(folder, settings(images), "")


def test_the_record_says_everything(tmp_path, images):
    folder = begun(tmp_path / "b", images)
    record = read_record(folder)
    assert record.settings == settings(images)
    assert {"torch", "timm", "accelerate"} <= record.versions.keys()


def test_accumulated_parts_make_one_step(tmp_path, images):
    watch = Watch()
    train(begun(tmp_path / "b", images, recipe=LIVELY | {"accumulate": 2, "epochs": 2}), watch)
    assert {status.steps for status in watch.statuses} == {4}  # 72 images in batches of 16


@pytest.mark.slow
def test_two_processes_train_as_one_does_in_two_parts(tmp_path, images):
    mixups = {"plain": 0.0, "mixed": 0.8}
    for name, mixup in mixups.items():
        recipe = LIVELY | {"mixup": mixup, "cutmix": mixup, "average": 0.0, "epochs": 2}
        train(begun(tmp_path / f"{name} alone", images, recipe=recipe | {"accumulate": 2}), Watch())
        begun(tmp_path / name, images, recipe=recipe)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m"]
    folders = [str(tmp_path / name) for name in mixups]
    subprocess.run(
        [*launcher, "evit_nas", "train", *folders, "--resume", "--workers", "0", "--no-ship"],
        check=True,
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"},
    )
    for name in mixups:
        one, two = (lines(tmp_path / folder) for folder in (f"{name} alone", name))
        alone, shared = ([row["loss"] for row in rows if row["kind"] == "train"] for rows in (one, two))
        assert shared == pytest.approx(alone, rel=1e-4)
        assert one[-1]["loss"] == pytest.approx(two[-1]["loss"], rel=0.1)


TWO = """
import os, sys
from pathlib import Path
from evit_nas.training import loop
from evit_nas.training.network import train
from tests.test_train import Watch
loop.CHECKPOINT_EVERY_S, loop.LOOK_STEPS = 0.0, 1
known, saved = loop.TrainingRun._save, []
def save(self):
    known(self)
    saved.append(self)
    if len(saved) == int(sys.argv[2]):
        os._exit(0)
loop.TrainingRun._save = save
train(Path(sys.argv[1]), Watch())
"""


@pytest.mark.slow
def test_two_processes_that_go_on_in_mid_epoch_validate_as_two_that_were_not_interrupted(tmp_path, images):
    (tmp_path / "two.py").write_text(TWO)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    recipe = LIVELY | {"epochs": 1, "warmup_epochs": 0, "average": 0.9}
    for name, ends in {"whole": [0], "parts": [2, 0]}.items():  # after so many checkpoints
        begun(tmp_path / name, images, recipe=recipe)
        for end in ends:
            command = [*launcher, str(tmp_path / "two.py"), str(tmp_path / name), str(end)]
            subprocess.run(command, check=True, capture_output=True, env=environment)
    whole, parts = (lines(tmp_path / name) for name in ("whole", "parts"))
    assert [row.get("loss") for row in parts] == [row.get("loss") for row in whole]
