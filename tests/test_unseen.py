"""Networks are judged on a folder as a whole, but for the very images that they were trained on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from evit_nas.data.sources import open_source
from evit_nas.evaluation.unseen import unseen
from evit_nas.trained import Trained
from tests.trainings import TRAINED

PER_CLASS = 20


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A folder of 40 images in two classes, without a split of its own."""
    return pictures(tmp_path / "pets", 0)


def pictures(folder: Path, first: int) -> Path:
    """Writes 40 pictures that no other folder has, unless it has the same `first`."""
    shades = iter(range(first, 256))
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(PER_CLASS):
            Image.new("L", (8, 8), next(shades)).save(folder / name / f"{number}.png")
    return folder


def trained_on(data: Path | str, **changes: object) -> Trained:
    fields = {"data": str(data), "data_name": Path(data).name, "classes": ("cat", "dog")}
    return TRAINED.model_copy(update=fields | changes)


def judged_on(data: Path, *trainings: Trained) -> tuple[set[str], str]:
    """Names of the images, and what is said of them."""
    images, said = unseen(open_source(str(data), 0), trainings)
    return {images.name(index) for index in range(len(images))}, said


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.png")}


def held_out(folder: Path) -> set[str]:
    val = open_source(str(folder), 0).val
    return {val.name(index) for index in range(len(val))}


def test_of_a_folder_that_a_tenth_was_held_out_of_for_training_that_tenth_is_taken(whole: Path) -> None:
    assert len(held_out(whole)) == 4
    assert judged_on(whole, trained_on(whole))[0] == held_out(whole)


def test_it_is_the_same_folder_by_whatever_way_and_name(whole: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "link").symlink_to(whole)
    monkeypatch.chdir(tmp_path)
    for training in (trained_on("link"), trained_on("pets", data_name="other"), trained_on("./pets")):
        assert judged_on(tmp_path / "link", training)[0] == held_out(whole)


def test_they_are_the_images_that_the_training_validated_on_even_if_one_is_in_the_folder_twice(
    whole: Path,
) -> None:
    val = sorted(held_out(whole))
    shutil.copy(whole / min(names(whole) - set(val)), whole / val[0])
    found, said = judged_on(whole, trained_on(whole))
    assert (found, said) == (set(val), "4 of its 40 images are taken, the tenth that its training held out")


def test_another_folder_of_the_same_name_is_taken_whole(whole: Path, tmp_path: Path) -> None:
    new = pictures(tmp_path / "new" / "pets", 100)
    assert judged_on(new, trained_on(whole)) == (names(new), "all of its 40 images are taken")


def test_a_copy_of_the_folder_is_known_by_its_pictures(whole: Path, tmp_path: Path) -> None:
    found, said = judged_on(shutil.copytree(whole, tmp_path / "copy"), trained_on(whole))
    assert found == held_out(whole)
    assert said == "4 of its 40 images are taken, those that no network here was trained on"


def test_a_network_without_a_record_and_one_of_other_data_leave_the_folder_whole(whole: Path) -> None:
    assert judged_on(whole)[0] == names(whole)
    assert judged_on(whole, trained_on("digits", classes=tuple("0123456789")))[0] == names(whole)
    assert judged_on(whole, trained_on("/gone/cars"))[0] == names(whole)


def test_what_any_of_several_networks_was_trained_on_is_left_out_for_all(whole: Path, tmp_path: Path) -> None:
    other = pictures(tmp_path / "other", 50)
    trainings = (trained_on(other), trained_on(pictures(tmp_path / "third", 100)), trained_on(whole))
    mixed = shutil.copytree(whole, tmp_path / "mixed")
    shutil.copytree(other / "cat", mixed / "cat" / "other")
    cats = {name.replace("cat/", "cat/other/") for name in held_out(other) if name.startswith("cat/")}
    for order in (trainings, trainings[::-1]):
        assert judged_on(whole, *order)[0] == held_out(whole)
        assert judged_on(mixed, *order)[0] == held_out(whole) | cats


def test_the_training_set_of_data_without_validation_images_is_known_by_its_files(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "data" / "train")
    training = trained_on(tmp_path / "data")
    assert judged_on(tmp_path / "data" / "train", training)[0] == held_out(tmp_path / "data" / "train")


def test_new_images_beside_those_of_a_training_are_all_that_is_taken(whole: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "mixed" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 200).save(tmp_path / "mixed" / name / "new.png")
        for file in (whole / name).iterdir():
            os.link(file, tmp_path / "mixed" / name / file.name)
    found, said = judged_on(tmp_path / "mixed", trained_on(whole))
    assert found == {"cat/new.png", "dog/new.png"} | held_out(whole)
    assert said == "6 of its 42 images are taken, those that no network here was trained on"


def test_where_all_was_trained_on_all_is_taken_and_the_doubt_is_said(whole: Path, tmp_path: Path) -> None:
    split = tmp_path / "split"
    train, val = pictures(split / "train", 50), pictures(split / "val", 100)
    found, said = judged_on(train, trained_on(split))
    assert (found, said.endswith("a network was trained on them: top-1 says too much")) == (names(train), True)
    assert judged_on(val, trained_on(split)) == (names(val), "all of its 40 images are taken")


@pytest.mark.parametrize("lost", ["gone", "has other classes"])
def test_where_the_data_of_a_training_are_lost_the_name_decides_and_it_is_said(
    lost: str, whole: Path, tmp_path: Path
) -> None:
    data = tmp_path / "old" / "pets"
    if lost != "gone":
        shutil.copytree(whole, data)
        (data / "dog").rename(data / "wolf")
    found, said = judged_on(whole, trained_on(data))
    assert found == held_out(whole)
    assert said.startswith("4 of its 40 images are taken, the tenth that a training holds out, for a network was ")
    moved = shutil.copytree(whole, tmp_path / "animals")
    assert judged_on(moved, trained_on(data))[0] == names(moved)


def test_data_with_a_split_of_their_own_are_judged_by_it(whole: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        shutil.copytree(whole, tmp_path / "split" / split)
    found, said = judged_on(tmp_path / "split")
    assert (len(found), said) == (40, "")
    assert all(name.startswith("val/") for name in found)
