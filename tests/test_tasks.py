"""The generated data set: the same everywhere, and every picture shows what its label says."""

import hashlib
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from evit_nas.data import tasks
from evit_nas.data.cache import load_dataset
from evit_nas.data.tasks import CLASSES, COUNTS, SIDE, TASKS, open_procedural, render

HALF = SIDE // 2
QUARTERS = [(slice(0, HALF), slice(0, HALF)), (slice(0, HALF), slice(HALF, SIDE))]
QUARTERS += [(slice(HALF, SIDE), columns) for _, columns in QUARTERS]


def rng(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_there_are_five_skills_with_four_classes_each_and_as_many_images_of_every_class():
    source = open_procedural()
    assert source.name.startswith("procedural")
    assert source.classes == CLASSES
    assert len(set(CLASSES)) == 20
    for images, count in ((source.train, COUNTS["train"]), (source.val, COUNTS["val"])):
        assert set(np.bincount(images.labels)) == {count // 20}


def test_pictures_are_the_same_in_another_process():
    code = (
        "import hashlib; from evit_nas.data.tasks import render;"
        "print(hashlib.sha256(b''.join(render('val', i).tobytes() for i in reversed(range(40)))).hexdigest())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = b"".join(render("val", index).tobytes() for index in reversed(range(40)))
    assert printed.strip() == hashlib.sha256(here).hexdigest()


def test_no_two_pictures_are_alike_in_one_split_or_in_both():
    pictures = {render(split, index).tobytes() for split in COUNTS for index in range(60)}
    assert len(pictures) == 120


@pytest.mark.parametrize("index", range(20), ids=CLASSES)
def test_every_picture_has_three_channels_and_uses_their_range(index):
    image = render("train", index)
    assert (image.shape, image.dtype) == ((SIDE, SIDE, 3), np.uint8)
    assert image.std() > 10
    assert np.ptp(image.mean(axis=(0, 1))) < 200


@pytest.mark.parametrize("task", TASKS)
def test_the_kind_alone_changes_the_picture(task):
    make, kinds = TASKS[task]
    images = [make(rng(), kind) for kind in range(len(kinds))]
    assert all(not np.array_equal(images[a], images[b]) for a in range(4) for b in range(a))


def test_a_rotation_is_a_scene_turned_by_quarters():
    for kind in range(4):
        assert np.array_equal(np.rot90(tasks.rotation(rng(), kind), -kind), tasks.scene(rng()))


def test_a_jigsaw_has_all_pieces_of_its_scene_in_the_order_of_its_class():
    whole = tasks.scene(rng())
    inside = np.s_[1:-1, 1:-1]  # the gap covers one pixel at the edge of each piece
    seen = set()
    for kind in range(4):
        image = tasks.jigsaw(rng(), kind)
        order = tuple(
            next(i for i, piece in enumerate(QUARTERS) if np.array_equal(whole[piece][inside], image[place][inside]))
            for place in QUARTERS
        )
        assert sorted(order) == [0, 1, 2, 3]
        seen.add(order)
    assert len(seen) == 4


def test_an_occlusion_hides_the_quarter_of_its_class_and_no_other():
    whole = tasks.scene(rng())
    for kind in range(4):
        image = tasks.occlusion(rng(), kind)
        assert [not np.array_equal(image[place], whole[place]) for place in QUARTERS] == [k == kind for k in range(4)]


@pytest.mark.slow
def test_a_small_network_learns_it_in_a_few_epochs(monkeypatch):
    import torch
    from torch import nn

    monkeypatch.setattr(tasks, "COUNTS", {"train": 2000, "val": 400})
    data = load_dataset("procedural", 64)
    torch.manual_seed(0)
    widths = (3, 16, 32, 48, 64)
    blocks = [nn.Sequential(nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(widths)]
    model = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(64 * 16, len(data.classes)))
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)

    def batch(split, rows):
        images = torch.from_numpy(np.array(split.images[rows])).permute(0, 3, 1, 2)  # (B, C, H, W)
        return images / 128 - 1, torch.from_numpy(split.labels[rows])

    for epoch in range(4):
        for rows in np.random.default_rng(epoch).permutation(len(data.train)).reshape(-1, 50):
            images, labels = batch(data.train, rows)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    images, labels = batch(data.val, np.arange(len(data.val)))
    with torch.inference_mode():
        accuracy = (model.eval()(images).argmax(1) == labels).float().mean()
    assert accuracy > 0.4  # chance is 0.05
    assert accuracy < 1
