"""What is seen of data before anything long begins."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from evit_nas.data.look import FEW, look
from evit_nas.data.sources import open_source
from evit_nas.errors import UsageError
from tests.trainings import write_shades


@pytest.fixture
def photos(tmp_path):
    """24 + 6 pictures of 40 px in each of three classes."""
    return write_shades(tmp_path / "photos")


def seen(folder):
    return look(open_source(str(folder), seed=0))


def test_images_classes_sizes_and_colours_are_counted(photos):
    found = seen(photos)
    assert (found.train, found.val, found.classes) == (72, 18, ("dark", "light", "striped"))
    assert (found.per_class, found.val_per_class) == ((24, 24, 24), (6, 6, 6))
    assert (found.sides_px, found.side_px, found.grey, found.held_out) == ((40, 40, 40), 40, False, False)
    assert (
        str(found)
        == "photos: 72 training and 18 validation images; 3 classes, 24 training images in each; 40 px, colour"
    )


def test_the_shorter_side_counts_and_what_cannot_be_opened_is_passed_over(photos):
    for number, size in enumerate([(300, 90), (90, 300)]):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(photos / "train" / "dark" / f"{number}.png")
    (photos / "train" / "dark" / "2.png").write_bytes(b"no picture")
    found = seen(photos)
    assert found.sides_px == (40, 40, 90)
    assert "40 px (40 to 90), colour" in str(found)


def test_grey_pictures_are_told_from_colours():
    assert look(open_source("digits", seed=0)).grey


def test_a_tenth_that_is_held_out_and_what_is_left_out_are_said(photos):
    (photos / "train" / "dark" / "notes.heic").write_bytes(b"")
    shutil.rmtree(photos / "val")
    found = seen(photos / "train")
    assert found.held_out
    assert str(found).endswith("a tenth held out; left out what is no picture: 1 .heic")


def test_classes_of_a_handful_are_named(photos):
    for path in sorted((photos / "train" / "light").iterdir())[FEW - 1 :]:
        path.unlink()
    found = seen(photos)
    assert found.rare == ("light",)
    assert f"{FEW - 1} to 24 training images in each" in str(found)


def test_no_picture_at_all_can_be_opened(photos):
    for path in (photos / "train").rglob("*.png"):
        path.write_bytes(b"no picture")
    assert "none could be opened" in str(seen(photos))


def test_a_class_that_no_record_could_hold_is_refused_before_anything_is_trained(photos):
    for split in ("train", "val"):
        (photos / split / "dark").rename(photos / split / os.fsdecode(b"caf\xe9"))
    with pytest.raises(UsageError, match="must be UTF-8"):
        seen(photos)
