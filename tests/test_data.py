"""Data sets: one contract for every kind of source, what becomes of odd pictures, and a cache that is never half."""

import errno
import fcntl
import gzip
import io
import multiprocessing
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import threading
import tracemalloc
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, features

from evit_nas.data import cache, copies, images, tasks
from evit_nas.data.cache import kept_dataset, load_dataset
from evit_nas.data.dataset import Split
from evit_nas.data.folder import FolderImages
from evit_nas.data.images import Images, plain
from evit_nas.data.once import opened_once
from evit_nas.data.preprocessing import Preprocessing
from evit_nas.data.sources import open_source
from evit_nas.errors import EvitNasError, Interrupted, UsageError
from evit_nas.workers import worker_pool

SIDE = 16
DIGITS = 10  # torchvision knows no other number of classes for its MNIST


@pytest.fixture(autouse=True)
def _few_procedural_images(monkeypatch):
    monkeypatch.setattr(tasks, "COUNTS", {"train": 60, "val": 20})


def idx_folder(folder: Path, *, gzipped: bool = False, train: int = 60, val: int = 20) -> Path:
    """A folder of IDX files with random pictures of 8 x 8 pixels and ten classes in turn."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split, count in (("train", train), ("t10k", val)):
        pixels, labels = rng.integers(0, 256, (count, 8, 8)), np.arange(count) % DIGITS
        for kind, values in (("images-idx3-ubyte", pixels), ("labels-idx1-ubyte", labels)):
            shape = b"".join(size.to_bytes(4, "big") for size in values.shape)
            content = bytes([0, 0, 8, values.ndim]) + shape + values.astype(np.uint8).tobytes()
            if gzipped:
                (folder / f"{split}-{kind}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / f"{split}-{kind}").write_bytes(content)
    return folder


def picture(seed: int = 0, size: tuple[int, int] = (24, 20)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def class_folders(folder: Path, count: int, classes: tuple[str, ...] = ("bus", "car", "tram"), seed: int = 0) -> Path:
    """`count` coloured PNGs in a folder for each class."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture(seed + 100 * label + number).save(folder / name / f"{number:02}.png")
    return folder


def split_folder(folder: Path, validation: str = "val") -> Path:
    class_folders(folder / "train", 6)
    class_folders(folder / validation, 2, seed=1000)
    return folder


def png(image: Image.Image, length: int | None = None) -> bytes:
    """A PNG file, or the first `length` bytes of it."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()[:length]


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(pixels: np.ndarray) -> bytes:
    """An uncompressed TIFF of one strip, (H, W) or (H, W, bands), of any type of pixels."""
    height, width, bands = (*pixels.shape, 1)[:3]
    form, colours = {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind], 2 if bands > 2 else 1
    values = {256: width, 257: height, 258: 8 * pixels.itemsize, 259: 1, 262: colours, 273: 8, 277: bands, 278: height}
    values |= {279: pixels.nbytes, 339: form}
    entries = {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items()}
    data = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    if bands > 1:  # one number for each band, which stand behind the directory
        place = 8 + len(data) + 2 + 12 * len(entries) + 4
        for number, tag in enumerate((258, 339)):
            entries[tag] = struct.pack("<HHII", tag, 3, bands, place + number * 2 * bands)
    directory = struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + b"\0" * 4
    many = struct.pack(f"<{2 * bands}H", *[values[258]] * bands, *[form] * bands) if bands > 1 else b""
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + many


SOURCES = {
    "idx": lambda place: str(idx_folder(place / "mine")),
    "idx, gzipped": lambda place: str(idx_folder(place / "mine", gzipped=True)),
    "classes": lambda place: str(class_folders(place / "mine", 12)),
    "train and val": lambda place: str(split_folder(place / "mine")),
    "torch": lambda place: f"torch/mnist@{idx_folder(place / 'mine' / 'MNIST' / 'raw').parents[1]}",
    "digits": lambda place: "digits",
    "procedural": lambda place: "procedural",
}
NAMES = {"torch": "torch-mnist", "digits": "digits", "procedural": "procedural"}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_becomes_squares_of_one_size_with_every_class_in_both_splits(kind, tmp_path):
    data = load_dataset(SOURCES[kind](tmp_path), SIDE)
    assert data.name == NAMES.get(kind, "mine")
    assert not data.skipped
    for split in (data.train, data.val):
        assert isinstance(split.images, np.memmap)
        assert split.images.dtype == np.uint8
        assert split.images.shape[:3] == (len(split), SIDE, SIDE)
        assert split.images.shape[3] == (1 if kind.startswith(("idx", "torch", "digits")) else 3)
        assert split.images.std(axis=(1, 2, 3)).min() > 0  # no picture is blank
        assert split.labels.dtype == np.int64
        assert set(split.labels) == set(range(len(data.classes)))


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_is_decoded_once_for_each_size(kind, tmp_path):
    notes: list[str] = []
    text = SOURCES[kind](tmp_path)
    first, again, larger = (load_dataset(text, side, note=notes.append) for side in (SIDE, SIDE, 2 * SIDE))
    assert [note.split(":")[0].split(" to ")[1] for note in notes] == [f"{SIDE} px", f"{2 * SIDE} px"]
    assert np.array_equal(first.train.images, again.train.images)
    assert first.digest == again.digest != larger.digest


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_also_gives_rgb_images_and_labels_one_by_one(kind, tmp_path):
    images = open_source(SOURCES[kind](tmp_path), 0).train
    image, label = images[3]
    assert (image.mode, label) == ("RGB", int(images.labels[3]))


def test_idx_pixels_and_labels_arrive_in_their_order(tmp_path):
    folder = idx_folder(tmp_path / "mine", gzipped=True)
    data = load_dataset(str(folder), 8)  # the size they have: nothing is resized
    stored = np.frombuffer(gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    assert np.array_equal(data.train.images.ravel(), stored)
    assert data.train.labels[:11].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_the_same_data_have_the_same_digest_wherever_they_lie(tmp_path):
    plain_files, gzipped = idx_folder(tmp_path / "a"), idx_folder(tmp_path / "b", gzipped=True)
    relabelled = idx_folder(tmp_path / "c")
    labels = relabelled / "t10k-labels-idx1-ubyte"
    labels.write_bytes(labels.read_bytes()[:-2] + b"\x09\x08")  # they were 8 and 9
    digests = [load_dataset(str(folder), SIDE).digest for folder in (plain_files, gzipped, relabelled)]
    assert digests[0] == digests[1] != digests[2]


# ---- subsets


def split_of(sizes: list[int]) -> Split:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return Split(np.arange(len(labels), dtype=np.uint8).reshape(-1, 1, 1, 1), labels)


@pytest.mark.parametrize(
    ("sizes", "count", "expected"),
    [
        ([10, 10, 10], 9, [3, 3, 3]),
        ([10, 10, 10], 11, [4, 4, 3]),
        ([2, 10, 10], 12, [2, 5, 5]),  # the first class runs out
        ([2, 3, 4], 9, [2, 3, 4]),
        ([5, 0, 5], 4, [2, 0, 2]),  # a class without images asks for none
    ],
)
def test_a_subset_is_as_balanced_as_its_classes_allow(sizes, count, expected):
    assert np.bincount(split_of(sizes).subset(count, seed=1).labels, minlength=len(sizes)).tolist() == expected


def test_a_subset_depends_on_the_seed_keeps_the_order_and_grows():
    split = split_of([20, 20, 20])
    chosen, again, other, larger = (
        split.subset(count, seed).images.ravel().tolist() for count, seed in ((12, 1), (12, 1), (12, 2), (30, 1))
    )
    assert chosen == again != other
    assert chosen == sorted(chosen)
    assert set(chosen) < set(larger)


def test_a_subset_keeps_images_and_labels_together():
    split = split_of([7, 7, 7])
    subset = split.subset(10, 0)
    assert np.array_equal(subset.labels, split.labels[subset.images.ravel()])


@pytest.mark.parametrize("count", [0, 2, 31])
def test_a_subset_that_cannot_be_is_refused_with_the_limits(count):
    with pytest.raises(UsageError, match=f"each of the 3 classes and at most all 30 images, got {count}"):
        split_of([10, 10, 10]).subset(count, 0)


@pytest.mark.parametrize("kind", ["classes", "digits"])
def test_a_tenth_of_each_class_is_held_out_by_the_seed(kind, tmp_path):
    text = SOURCES[kind](tmp_path)
    first, again, other = (open_source(text, seed) for seed in (1, 1, 2))
    names, val_names = ([images.name(i) for i in range(len(images))] for images in (first.train, first.val))
    assert not set(names) & set(val_names)
    shares = np.bincount(first.val.labels) / (np.bincount(first.train.labels) + np.bincount(first.val.labels))
    assert np.all((shares > 0.08) & (shares <= 0.1))
    assert val_names == [again.val.name(i) for i in range(len(again.val))]
    assert val_names != [other.val.name(i) for i in range(len(other.val))]


def names_of(images: Images) -> set[str]:
    return {images.name(index) for index in range(len(images))}


@pytest.mark.parametrize("label", ["bus", "car", "tram"])
def test_no_image_that_was_trained_on_is_held_out_when_one_is_added(label, tmp_path):
    folder = class_folders(tmp_path / "mine", 24)
    before = open_source(str(folder), 0)
    picture(999).save(folder / label / "new.png")
    after = open_source(str(folder), 0)
    assert not names_of(before.train) & names_of(after.val)
    assert len(names_of(before.val) - names_of(after.val)) <= 1  # the new one may have taken a place


def test_an_image_that_is_removed_moves_at_most_one_other(tmp_path):
    folder = class_folders(tmp_path / "mine", 65)
    before = open_source(str(folder), 0)
    (folder / "bus" / "11.png").unlink()
    after = open_source(str(folder), 0)
    assert len(names_of(before.train) & names_of(after.val)) <= 1


# ---- once for a command


def test_within_a_command_a_folder_is_looked_through_once_for_each_split(tmp_path, walks):
    folder = str(class_folders(tmp_path / "mine", 12))
    with opened_once():
        first, again, other = (open_source(folder, seed) for seed in (0, 0, 1))
    assert first is again
    assert first is not other
    assert walks == ["mine", "mine"]


def test_the_next_command_sees_what_has_come_since(tmp_path):
    folder = class_folders(tmp_path / "mine", 12)
    counts = []
    for number in range(2):
        with opened_once():
            counts.append(len(open_source(str(folder), 0).whole))
        picture(number).save(folder / "bus" / f"new-{number}.png")
    assert counts == [36, 37]


def test_a_command_within_a_command_sees_what_that_has_seen(tmp_path, walks):
    folder = str(class_folders(tmp_path / "mine", 12))
    with opened_once():
        with opened_once():
            open_source(folder, 0)
        open_source(folder, 0)
    assert walks == ["mine"]


# ---- odd pictures


def test_unreadable_images_are_skipped_by_name_and_said_each_time(tmp_path):
    folder = split_folder(tmp_path / "mine")
    (folder / "train" / "bus" / "03.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    whole = (folder / "val" / "car" / "01.png").read_bytes()
    (folder / "val" / "car" / "01.png").write_bytes(whole[: len(whole) // 2])
    notes: list[str] = []
    for _ in range(2):
        data = load_dataset(str(folder), SIDE, note=notes.append)
        assert list(data.skipped) == ["train/bus/03.png", "val/car/01.png"]
        assert re.search(r"train/bus/03\.png \(.*\), val/car/01\.png \(image file is truncated.*\)", notes[-1])
    assert np.bincount(data.train.labels).tolist() == [5, 6, 6]
    assert np.bincount(data.val.labels).tolist() == [2, 1, 2]
    assert len(data.train.images) == 17


def test_a_link_that_leads_nowhere_is_an_unreadable_image(tmp_path):
    folder = split_folder(tmp_path / "mine")
    (folder / "train" / "bus" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    assert load_dataset(str(folder), SIDE).skipped == {"train/bus/lost.png": "a link that leads nowhere"}
    picture().save(tmp_path / "nowhere.png")
    assert not load_dataset(str(folder), SIDE).skipped


def test_names_that_are_not_utf_8_are_taken_and_shown_as_far_as_possible(tmp_path):
    folder = split_folder(tmp_path / "mine")
    for split in ("train", "val"):
        bus = folder / split / "bus"
        bus.rename(folder / split / os.fsdecode(b"b\xfcs"))
    (folder / "train" / "car" / os.fsdecode(b"\xff.png")).write_bytes(b"no picture")
    for _ in range(2):
        data = load_dataset(str(folder), SIDE)
        assert len(data.train.labels) == 18
        assert list(data.skipped) == ["train/car/\ufffd.png"]


@pytest.mark.parametrize("place", [(Image, "open"), (cache, "to_square")], ids=["opening", "decoding"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
def test_a_failing_disk_or_system_costs_no_image(number, place, tmp_path, monkeypatch):
    folder = split_folder(tmp_path / "mine")

    def fails(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(*place, fails)
        assert re.search(
            rf"mine: train/bus/00\.png cannot be read: {os.strerror(number)}\. Put that right", refusal(folder)
        )
    data = load_dataset(str(folder), SIDE)
    assert not data.skipped
    assert len(data.train.labels) == 18


def test_a_header_that_points_to_before_the_file_is_the_images_own_fault(tmp_path, monkeypatch):
    folder, decode, calls = split_folder(tmp_path / "mine"), cache.to_square, []

    def fails_once(*args: object) -> np.ndarray:
        calls.append(args)
        if len(calls) == 1:
            raise OSError(errno.EINVAL, "Invalid argument")
        return decode(*args)

    monkeypatch.setattr(cache, "to_square", fails_once)
    assert load_dataset(str(folder), SIDE).skipped == {"train/bus/00.png": "[Errno 22] Invalid argument"}


def test_a_class_without_a_readable_image_is_an_error(tmp_path):
    folder = split_folder(tmp_path / "mine")
    for path in (folder / "val" / "tram").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(UsageError, match="every class must have a readable val image, 'tram' has none"):
        load_dataset(str(folder), SIDE)


@pytest.mark.parametrize(("odd", "channels"), [(None, 1), ("RGB", 3), ("P", 3)])
def test_gray_pictures_have_one_channel_until_one_has_colour(odd, channels, tmp_path):
    folder = split_folder(tmp_path / "mine")
    for path in folder.rglob("*.png"):
        Image.open(path).convert("LA").save(path)
    if odd:
        picture().convert(odd).save(folder / "val" / "tram" / "00.png")
    assert load_dataset(str(folder), SIDE).val.images.shape[-1] == channels


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_every_mode_becomes_gray_or_rgb(mode):
    image = Image.new("RGB", (4, 4), "white").convert(mode)
    gray = mode in ("1", "L", "LA")
    assert plain(image).mode == ("L" if gray else "RGB")
    assert plain(image).getpixel((0, 0)) == (255 if gray else (255, 255, 255))


def test_sixteen_bits_become_eight(tmp_path):
    Image.fromarray(np.array([[0, 257, 32896, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(plain(Image.open(tmp_path / "deep.png"))).tolist() == [[0, 1, 128, 255]]


def test_a_camera_held_sideways_is_turned_upright(tmp_path):
    image = Image.new("RGB", (8, 4), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # the row 0 of the file is the right side of the picture
    image.save(tmp_path / "turned.png", exif=exif)
    upright = plain(Image.open(tmp_path / "turned.png"))
    assert upright.size == (4, 8)
    assert upright.getpixel((3, 0)) == (255, 255, 255)


@pytest.mark.parametrize("orientation", [None, 1])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "MPO"])
def test_a_picture_that_is_upright_is_not_copied_once_it_is_decoded(kind, orientation, tmp_path, monkeypatch):
    """A photograph of 4000 x 3000 pixels takes as long to copy twice as half of its decoding does."""
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    (tmp_path / "bus").mkdir()
    picture().save(tmp_path / "bus" / "upright.png", kind, exif=exif)
    with Image.open(tmp_path / "bus" / "upright.png") as stored:
        pixels = np.asarray(stored.convert("RGB"))
    copied = []
    monkeypatch.setattr(Image.Image, "copy", copied.append)
    image, _ = FolderImages(tmp_path, [tmp_path / "bus" / "upright.png"], np.zeros(1))[0]
    (tmp_path / "bus" / "upright.png").unlink()  # it has been read
    assert np.array_equal(np.asarray(image), pixels)
    assert not copied


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II\x2b\0\x08\0\0\0", b"Exif\0\0" + b"\0" * 40])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
def test_a_damaged_exif_block_costs_no_picture(kind, exif, tmp_path):
    picture().save(tmp_path / "odd", kind, exif=exif)
    assert plain(Image.open(tmp_path / "odd")).size == picture().size


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("across", [True, False])
def test_the_centre_is_kept_whole_at_the_shorter_side(across, suffix, tmp_path):
    pixels = np.zeros((60, 180), np.uint8)
    pixels[:, 60:120] = 255
    Image.fromarray(pixels if across else pixels.T).save(tmp_path / f"long.{suffix}")
    square = cache.to_square(Image.open(tmp_path / f"long.{suffix}"), 20, "L")
    assert square.shape == (20, 20, 1)
    assert square[1:-1, 1:-1].min() > 250  # the edges are blended with what was cut off
    assert square.mean() > 245


@pytest.mark.parametrize("channels", [1, 3])
def test_the_way_to_an_input_can_be_handed_to_another_process(channels):
    steps = Preprocessing(input_size=(channels, 32, 32), mean=(0.5,) * channels, std=(0.5,) * channels)
    transform = steps.transform()
    assert torch.equal(pickle.loads(pickle.dumps(transform))(picture()), transform(picture()))


def inputs_of(size: tuple[int, int], way: Preprocessing) -> tuple[torch.Tensor, torch.Tensor]:
    """An image of smooth colours as a network gets it, and as timm's transform alone would have it."""
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    colours = np.stack([np.sin(rows / 9), np.cos(columns / 7), np.sin((rows + columns) / 11)], axis=-1)
    image = Image.fromarray(((colours + 1) * 127).astype(np.uint8))
    transform = way.transform()
    return transform(image), transform.args[0](image)


@pytest.mark.parametrize("size", [(40, 640), (641, 40), (1200, 40), (40, 2001)])
def test_a_strip_is_cut_to_what_its_centre_crop_can_see(size):
    way = Preprocessing(input_size=(3, 32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)
    ours, whole = inputs_of(size, way)
    assert torch.equal(ours, whole) if max(size) <= 640 else torch.allclose(ours, whole, atol=0.05)


@pytest.mark.parametrize(("size", "resized"), [((1, 60_000), (1, 16)), ((60_000, 3), (48, 3)), ((50, 40), (50, 40))])
def test_no_strip_is_resized_as_a_whole(size, resized, monkeypatch):
    monkeypatch.setattr("timm.data.create_transform", lambda *args, **settings: lambda image: image.size)
    way = Preprocessing(input_size=(3, 224, 224), mean=(0.0,) * 3, std=(1.0,) * 3)
    assert way.transform()(Image.new("RGB", size)) == resized


def test_shrinking_is_antialiased():
    checks = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8))
    square = cache.to_square(checks, 16, "L")
    assert square.min() > 100  # without a filter each pixel would stay black or white
    assert square.max() < 155


UNKNOWN = "empty, damaged, or of a kind that Pillow does not read, as with many bands"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", UNKNOWN),
        (b"<html>404 Not Found</html>", UNKNOWN),
        (png(Image.fromarray(np.zeros((50, 50), np.uint8)), length=60), "image file is truncated"),
        (png(Image.new("1", (13_500, 13_500))), r"beyond Pillow's limit of 178,956,970 pixels: shrink it"),
        (tiff(np.zeros((9, 9), np.float32)), "floating-point pixels, whose range is not known"),
        (tiff(np.zeros((9, 9, 5), np.uint8)), UNKNOWN),  # of a satellite
    ],
    ids=["empty", "no picture", "cut off", "beyond the limit", "floating point", "five bands"],
)
def test_why_an_image_cannot_be_read_is_said(content, why, tmp_path):
    folder = split_folder(tmp_path / "mine")
    (folder / "train" / "bus" / "odd.png").write_bytes(content)
    notes: list[str] = []
    skipped = load_dataset(str(folder), SIDE, note=notes.append).skipped
    assert list(skipped) == ["train/bus/odd.png"]
    assert re.match(why, skipped["train/bus/odd.png"])
    assert f"train/bus/odd.png ({skipped['train/bus/odd.png']})" in notes[-1]
    unreadable = open_source(str(folder), 0).train
    assert re.fullmatch(
        rf"train/bus/odd\.png \({re.escape(skipped['train/bus/odd.png'])}\), train/bus/00\.png \(.*again\)",
        cache.why_unreadable(unreadable, [6, 0]),
    )


def test_what_pillow_warns_of_is_said_once_and_with_a_name(tmp_path, monkeypatch, recwarn):
    folder = split_folder(tmp_path / "mine")
    monkeypatch.setattr(images, "WARNED", {})
    for name in ("a", "b"):
        Image.new("1", (9_500, 9_500)).save(folder / "train" / "bus" / f"{name}.png")
    assert not load_dataset(str(folder), SIDE).skipped
    (said,) = recwarn.list
    assert str(said.message).startswith("train/bus/a.png: Image size (90250000 pixels) exceeds limit")


def test_a_palette_with_transparency_is_read_without_a_warning(tmp_path, recwarn):
    picture().convert("P").save(tmp_path / "see-through.png", transparency=bytes(range(256)))
    with Image.open(tmp_path / "see-through.png") as image:
        pixels = np.asarray(plain(image))
    assert not recwarn.list
    with Image.open(tmp_path / "see-through.png") as image:
        assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (np.array([[0, 4095]], np.uint16), "16-bit pixels that stay below 8192 keep fewer than 32 of 256 grey levels"),
        (np.array([[0, 8192]], np.uint16), None),
        (np.array([[0, 0]], np.uint16), None),  # black is black
        (np.array([[-1000, 3000]], np.int32), "pixels below 0 or above 65535 are cut off there"),
        (np.array([[0, 70_000]], np.int32), "pixels below 0 or above 65535 are cut off there"),
    ],
    ids=["12 of 16 bits", "14 bits", "black", "Hounsfield units", "32 bits"],
)
def test_deep_pixels_that_lose_their_grey_levels_are_said(pixels, said, tmp_path, recwarn):
    (tmp_path / "deep.tif").write_bytes(tiff(pixels))
    plain(Image.open(tmp_path / "deep.tif"))
    assert [str(warning.message)[: len(said or "")] for warning in recwarn.list] == ([said] if said else [])


KINDS = {"jfif": "JPEG", "JPG": "JPEG", "Jpeg": "JPEG", "jp2": "JPEG2000", "avif": "AVIF", "webp": "WEBP", "mpo": "MPO"}


@pytest.mark.parametrize("suffix", KINDS)
def test_pictures_have_many_suffixes_in_any_case(suffix, tmp_path):
    folder = class_folders(tmp_path / "mine", 3)
    if not features.check({"avif": "avif", "jp2": "jpg_2000", "webp": "webp"}.get(suffix, "jpg")):
        pytest.skip(f"this Pillow reads no {suffix}")
    picture(5).save(folder / "bus" / f"one.{suffix}", KINDS[suffix])
    data = load_dataset(str(folder), SIDE)
    assert not data.skipped
    assert len(data.train) + len(data.val) == 10


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert np.asarray(plain(Image.open(tmp_path / "moving.gif"))).min() == 255


# ---- what lies in a folder


def test_a_folder_of_a_million_pictures_is_a_few_bytes_for_each(tmp_path):
    """Processes that load images would each come to a copy of what Python counts references in."""

    def paths() -> list[Path]:
        return [
            tmp_path / "train" / f"n{label:08}" / f"{number:05}.JPEG" for label in range(20) for number in range(500)
        ]

    tracemalloc.start()
    images = FolderImages(tmp_path, paths(), np.repeat(np.arange(20), 500))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / len(images) < 64
    assert list(images.files()) == paths()
    assert images.name(501) == "train/n00000001/00001.JPEG"


@pytest.mark.parametrize("name", ["Straße 1.png", os.fsdecode(b"caf\xe9.png"), "a\nb.png", "x" * 200 + ".png"])
def test_files_of_any_name_are_found_again(name, tmp_path):
    folder = class_folders(tmp_path / "mine", 2)
    picture(7).save(folder / "bus" / name)
    images = open_source(str(folder), 0).whole
    (index,) = (index for index in range(len(images)) if images.file(index).name == name)
    assert np.array_equal(np.asarray(images[index][0]), np.asarray(picture(7)))


SYSTEM = (".ipynb_checkpoints", ".thumbnails", "@eaDir", "__MACOSX", "#recycle", "lost+found")


@pytest.mark.parametrize("name", SYSTEM)
@pytest.mark.parametrize("place", ["", "bus", "bus/deeper"])
def test_what_systems_hide_in_a_folder_is_no_data(name, place, tmp_path):
    folder = class_folders(tmp_path / "mine", 12)
    (folder / "bus" / "deeper").mkdir()
    before = open_source(str(folder), 0)
    copy = folder / place / name / "more" / "00-checkpoint.png"
    copy.parent.mkdir(parents=True)
    shutil.copy(folder / "bus" / "00.png", copy)
    (folder / "bus" / "Thumbs.db").write_text("")
    after = open_source(str(folder), 0)
    assert after.classes == before.classes
    assert (names_of(after.train), names_of(after.val)) == (names_of(before.train), names_of(before.val))
    assert not after.remarks


def test_linked_folders_are_followed_but_none_twice_and_none_back(tmp_path):
    folder = class_folders(tmp_path / "mine", 12)
    class_folders(tmp_path / "store", 5, ("more", "tandem"))
    for name, target in {"a": "../../store/more", "b": "../../store/more", "loop": ".", "up": "..", "far": "/"}.items():
        (folder / "bus" / name).symlink_to(target)
    (folder / "everything").symlink_to(".")
    (folder / "tandem").symlink_to(tmp_path / "store" / "tandem")
    source = open_source(str(folder), 0)
    assert source.classes == ("bus", "car", "tandem", "tram")
    names = names_of(source.train) | names_of(source.val)
    assert len(names) == len(source.train) + len(source.val) == 12 + 5 + 12 + 5 + 12
    assert {name for name in names if "/a/" in name} == {f"bus/a/{number:02}.png" for number in range(5)}


def test_files_that_are_no_pictures_are_counted(tmp_path):
    folder = split_folder(tmp_path / "mine")
    for number in range(3):
        (folder / "train" / "bus" / f"IMG_{number}.HEIC").write_bytes(b"ftypheic")
    (folder / "val" / "car" / "1.xml").write_text("<annotation/>")
    notes: list[str] = []
    load_dataset(str(folder), SIDE, note=notes.append)
    assert notes[-1] == "mine: left out what is no picture: 3 .heic, 1 .xml"


COPIES = {"val/bus/again.png": "train/bus/03.png", "val/tram/wrong.png": "train/car/05.png"}


def test_training_images_among_those_for_validation_are_named(tmp_path):
    folder = split_folder(tmp_path / "mine")
    for copy, original in COPIES.items():
        shutil.copy(folder / original, folder / copy)
    for empty in ("train/bus/empty.png", "val/bus/empty.png"):
        (folder / empty).write_bytes(b"")
    similar = bytearray((folder / "train/bus/00.png").read_bytes())  # as long, and another picture
    similar[-20] ^= 1
    (folder / "val/bus/similar.png").write_bytes(similar)
    notes: list[str] = []
    load_dataset(str(folder), SIDE, note=notes.append)
    assert (
        "mine: 2 of the 10 validation images are training images too, byte for byte (val/bus/again.png is "
        "train/bus/03.png, val/tram/wrong.png is train/car/05.png): remove one of each, or the accuracy says too much"
    ) in notes


def test_no_copies_are_looked_for_where_that_would_take_long(tmp_path, monkeypatch):
    folder = split_folder(tmp_path / "mine")
    for copy, original in COPIES.items():
        shutil.copy(folder / original, folder / copy)
    source = open_source(str(folder), 0)
    found = copies.copies(source.train, source.val)
    assert {source.val.name(copy): source.train.name(original) for copy, original in found.items()} == COPIES
    monkeypatch.setattr(copies, "LIMIT", 1000)
    assert not copies.copies(source.train, source.val)


def test_links_are_copies_without_a_look_into_them(tmp_path, monkeypatch):
    folder = split_folder(tmp_path / "mine")
    os.link(folder / "train/bus/03.png", folder / "val/bus/again.png")
    (folder / "val/tram/wrong.png").symlink_to(folder / "train/car/05.png")
    monkeypatch.setattr(copies, "LIMIT", 0)
    source = open_source(str(folder), 0)
    found = copies.copies(source.train, source.val)
    assert {source.val.name(copy): source.train.name(original) for copy, original in found.items()} == COPIES


@pytest.mark.parametrize("name", ["train", "Training"])
@pytest.mark.parametrize("beside", ["nothing", "test without classes", "empty val", "labels"])
def test_of_training_images_alone_a_tenth_is_held_out(name, beside, tmp_path):
    folder = tmp_path / "mine"
    class_folders(folder / name, 12)
    if beside == "test without classes":
        (folder / "test").mkdir()
        picture().save(folder / "test" / "1.png")
    elif beside == "empty val":
        (folder / "val").mkdir()
    elif beside == "labels":
        (folder / "labels").mkdir()
        (folder / "labels" / "1.txt").write_text("0 0.5 0.5 1 1")
    source, alone = open_source(str(folder), 0), open_source(str(folder / name), 0)
    assert (source.name, source.classes) == ("mine", ("bus", "car", "tram"))
    assert (names_of(source.val), names_of(source.train)) == (names_of(alone.val), names_of(alone.train))
    left_out = {"test without classes": "test", "empty val": "val"}.get(beside)
    said = f"{folder / left_out} has no folder for each class and is left out" if left_out else None
    assert source.remarks == ((said,) if said else ())


def test_a_class_may_be_called_train(tmp_path):
    folder = class_folders(tmp_path / "mine", 12, ("bus", "car", "train"))
    assert open_source(str(folder), 0).classes == ("bus", "car", "train")
    shutil.move(folder / "train", folder / "moved")
    class_folders(folder / "train", 3, ("diesel", "steam"))
    assert re.search(
        "train holds folders as a training set does, but what bus, car, moved beside it are", refusal(folder)
    )


def test_a_part_of_unknown_name_beside_train_is_not_left_out_in_silence(tmp_path):
    class_folders(tmp_path / "mine" / "train", 12)
    class_folders(tmp_path / "mine" / "holdout", 3)
    assert re.search(
        "what holdout beside it are for is not known. Name .*/mine/train instead", refusal(tmp_path / "mine")
    )


@pytest.mark.parametrize("name", ["New York", "10", "猫", "thé vert", "it's"])
def test_a_class_has_any_name_in_either_form_of_unicode(name, tmp_path):
    folder = tmp_path / "mine"
    class_folders(folder / "train", 3, ("bus", unicodedata.normalize("NFC", name)))
    class_folders(folder / "val", 3, ("bus", unicodedata.normalize("NFD", name)))  # as macOS packs it
    source = open_source(str(folder), 0)
    assert set(source.classes) == {"bus", unicodedata.normalize("NFC", name)}
    assert (len(source.train), len(source.val)) == (6, 6)


def test_a_copy_of_the_data_in_themselves_is_no_class(tmp_path):
    folder = class_folders(tmp_path / "mine", 4)
    class_folders(folder / "mine", 4)
    assert re.search(
        r"mine/mine: a class must hold pictures, this one holds bus, car, tram, which are classes beside it",
        refusal(folder),
    )


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (("train/1.png", "train/_classes.csv", "valid/2.png"), r"train: .*not read from files such as _classes\.csv"),
        (("train/1.png", "test/2.png", "train.csv"), r"train: must hold a folder of pictures for each"),
        (("images/1.png", "result.json"), r"found images\. Labels are not read from files such as result\.json"),
        (("images/train/1.png", "labels/train/1.txt"), r"labels: a class must have pictures .*found 1 \.txt"),
        (("pets/cat/1.png", "pets/dog/1.png"), r"found pets\. Did you mean .*/mine/pets\?"),
        (("val/cat/1.png", "val/dog/1.png"), r"found val\. Did you mean .*/mine/val\?"),
        (("mri/1.dcm", "ct/1.png", "ct/2.png"), r"mri: a class must have pictures .*found 1 \.dcm\. Convert them"),
    ],
    ids=["Roboflow's table", "Kaggle's table", "Label Studio", "YOLO", "zip in a folder", "only val", "DICOM"],
)
def test_other_layouts_are_refused_with_what_to_do(layout, message, tmp_path):
    for name in layout:
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        picture().save(path) if path.suffix == ".png" else path.write_text("")
    assert re.search(message, refusal(tmp_path / "mine"))


# ---- the cache


def damaged(file: Path, how: str) -> None:
    whole = file.read_bytes()
    file.unlink()  # who has mapped it keeps what it was
    if how == "missing":
        return
    if how == "other":  # a whole file, but not of this entry
        file.write_bytes(b"[]" if file.suffix == ".json" else npy(np.zeros((3, 2))))
    else:
        file.write_bytes({"empty": b"", "cut off": whole[:-1], "noise": b"\x93NUMPY\x01\x00v\x00{'desc"}[how])


@pytest.mark.parametrize("how", ["missing", "empty", "cut off", "noise", "other"])
@pytest.mark.parametrize("name", ["meta.json", "train-images.npy", "train-labels.npy", "val-images.npy"])
def test_a_damaged_entry_is_decoded_again(name, how, tmp_path):
    folder, notes = idx_folder(tmp_path / "mine"), []
    whole = load_dataset(str(folder), SIDE)
    damaged(Path(whole.train.images.filename).with_name(name), how)
    for _ in range(2):
        again = load_dataset(str(folder), SIDE, note=notes.append)
        assert again.digest == whole.digest
        assert np.array_equal(again.train.images, whole.train.images)
        assert np.array_equal(again.val.labels, whole.val.labels)
    assert sum("decoding" in note for note in notes) == 1


def test_channels_that_do_not_fit_are_refused_before_any_training(tmp_path):
    colours, grey = split_folder(tmp_path / "mine"), idx_folder(tmp_path / "grey")
    with pytest.raises(UsageError, match="the images have 3 channels, but the networks take 4: set in_channels: 3 in"):
        load_dataset(str(colours), SIDE, channels=4)
    assert load_dataset(str(colours), SIDE, channels=3).train.images.shape[3] == 3
    assert load_dataset(str(grey), SIDE, channels=4).train.images.shape[3] == 1  # repeated four times


def test_labels_of_other_classes_are_a_damage(tmp_path):
    folder = idx_folder(tmp_path / "mine")
    whole = load_dataset(str(folder), SIDE)
    Path(whole.train.images.filename).with_name("val-labels.npy").write_bytes(npy(whole.val.labels + 1))
    assert np.array_equal(load_dataset(str(folder), SIDE).val.labels, whole.val.labels)


def change(folder: Path, how: str) -> None:
    image = folder / "train" / "bus" / "00.png"
    if how == "added":
        picture(999).save(image.with_name("new.png"))
    elif how == "removed":
        image.unlink()
    elif how == "renamed":
        image.with_name("05.png").rename(folder / "train" / "car" / "+.png")  # still next in the order of all files
    else:
        picture(999).save(image)


@pytest.mark.parametrize("how", ["added", "removed", "renamed", "written over"])
def test_a_changed_folder_is_decoded_anew(how, tmp_path):
    folder = split_folder(tmp_path / "mine")
    before = load_dataset(str(folder), SIDE)
    change(folder, how)
    after = load_dataset(str(folder), SIDE)
    assert after.digest != before.digest
    assert len(after.train) - len(before.train) == {"added": 1, "removed": -1}.get(how, 0)


def test_of_each_picture_size_and_time_are_asked_for_once_and_by_who_decodes_alone(tmp_path, monkeypatch):
    """Millions of them may lie on a network drive, and trainings never ask."""
    folder, asked = split_folder(tmp_path / "mine"), []
    load_dataset(str(folder), SIDE)
    stat = os.stat

    def counted(path, **options):
        if str(path).endswith(".png"):
            asked.append(str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", counted)
    open_source(str(folder), 0)
    assert not asked
    load_dataset(str(folder), SIDE)
    assert len(asked) == len(set(asked)) == 24


def test_a_picture_that_has_gone_since_its_folder_was_read_is_named(tmp_path):
    folder = split_folder(tmp_path / "mine")
    source = open_source(str(folder), 0)
    (folder / "val" / "car" / "01.png").unlink()
    with pytest.raises(UsageError, match=r"val/car/01\.png cannot be read: No such file"):
        source.stamp()


def test_what_lies_beside_a_set_of_torchvisions_is_none_of_its_data(tmp_path):
    text, notes = SOURCES["torch"](tmp_path), []
    first = load_dataset(text, SIDE, note=notes.append)
    (tmp_path / "mine" / "notes.txt").write_text("bought milk")
    load_dataset(text, SIDE, note=notes.append)
    assert sum("decoding" in note for note in notes) == 1
    shutil.rmtree(tmp_path / "mine" / "MNIST")
    idx_folder(tmp_path / "mine" / "MNIST" / "raw", train=70)
    assert len(load_dataset(text, SIDE).train) == len(first.train) + 10


def test_what_was_decoded_is_found_by_its_digest_without_a_look_at_where_it_came_from(tmp_path, walks):
    folder = split_folder(tmp_path / "mine")
    whole, other = load_dataset(str(folder), SIDE), load_dataset("digits", SIDE)
    shutil.rmtree(folder)
    kept = kept_dataset(whole.digest, SIDE)
    assert (kept.name, kept.classes, kept.digest) == (whole.name, whole.classes, whole.digest)
    for split in ("train", "val"):
        assert np.array_equal(getattr(kept, split).images, getattr(whole, split).images)
        assert np.array_equal(getattr(kept, split).labels, getattr(whole, split).labels)
    assert kept_dataset(other.digest, SIDE).name == "digits"
    assert kept_dataset(whole.digest, 2 * SIDE) is None
    assert walks == ["mine"]


@pytest.mark.parametrize("how", ["missing", "empty", "cut off", "noise", "other"])
@pytest.mark.parametrize("name", ["meta.json", "train-images.npy", "val-labels.npy"])
def test_what_is_damaged_is_not_found_by_its_digest(name, how, tmp_path):
    whole = load_dataset(str(idx_folder(tmp_path / "mine")), SIDE)
    damaged(Path(whole.train.images.filename).with_name(name), how)
    assert kept_dataset(whole.digest, SIDE) is None


def test_what_another_process_is_replacing_is_not_found_by_its_digest(tmp_path, monkeypatch):
    """Or images of the one data set would get labels of the other."""
    folder = split_folder(tmp_path / "mine")
    whole, map_split = load_dataset(str(folder), SIDE), cache._map

    def replaced(*arguments):
        monkeypatch.setattr(cache, "_map", map_split)
        change(folder, "written over")
        load_dataset(str(folder), SIDE)
        return map_split(*arguments)

    monkeypatch.setattr(cache, "_map", replaced)
    assert kept_dataset(whole.digest, SIDE) is None


def test_who_still_reads_the_old_data_is_not_disturbed(tmp_path):
    folder = split_folder(tmp_path / "mine")
    old = load_dataset(str(folder), SIDE).train.images
    pixels = old.copy()
    change(folder, "written over")
    load_dataset(str(folder), SIDE)
    assert np.array_equal(old, pixels)


def run_python(code: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


KILLED = """
import os, signal, sys
from evit_nas.data import cache
from evit_nas.data.cache import load_dataset
decode, calls = cache.to_square, []
def to_square(*arguments):
    calls.append(None)
    if len(calls) == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(*arguments)
cache.to_square = to_square
load_dataset(sys.argv[1], 16)
"""


def test_a_decode_that_was_killed_leaves_nothing_that_is_believed(tmp_path, monkeypatch):
    folder = split_folder(tmp_path / "mine")
    with run_python(KILLED, str(folder)) as process:
        assert process.wait() == -signal.SIGKILL
    places = list((Path(os.environ["XDG_CACHE_HOME"]) / "evit-nas" / "data").iterdir())
    assert any(path.suffix == ".partial" for path in places)

    data = load_dataset(str(folder), SIDE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert data.digest == load_dataset(str(folder), SIDE).digest
    assert (len(data.train), len(data.val)) == (18, 6)
    assert not any(path.exists() for path in places if path.suffix == ".partial")


@pytest.fixture
def shared_out(monkeypatch):
    """Even few images are decoded by several processes, four at a time; the pools that were made."""
    pools = []

    def counted(count, **options):
        pools.append(worker_pool(count, **options))
        return pools[-1]

    monkeypatch.setattr(cache, "_FEW", 0)
    monkeypatch.setattr(cache, "_PART", 4)
    monkeypatch.setattr(cache, "worker_pool", counted)
    return pools


def test_several_processes_decode_to_the_same_bytes(tmp_path, monkeypatch, shared_out):
    folder = split_folder(tmp_path / "mine")
    (folder / "train" / "car" / "03.png").write_bytes(b"no picture")
    alone = load_dataset(str(folder), SIDE)
    assert not shared_out
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    together = load_dataset(str(folder), SIDE, workers=2)
    assert len(shared_out) == 2  # one for each split
    assert together.digest == alone.digest
    assert together.skipped == alone.skipped
    assert list(together.skipped) == ["train/car/03.png"]
    for split in ("train", "val"):
        assert np.array_equal(getattr(together, split).images, getattr(alone, split).images)
        assert np.array_equal(getattr(together, split).labels, getattr(alone, split).labels)


def test_what_several_processes_are_warned_of_is_said_once_and_with_a_name(
    tmp_path, monkeypatch, recwarn, capfd, shared_out
):
    folder = split_folder(tmp_path / "mine")
    monkeypatch.setattr(images, "WARNED", {})
    for name in ("bus/00", "car/01", "tram/02", "tram/05"):
        (folder / "train" / f"{name}.png").write_bytes(tiff(np.array([[0, 4095]], np.uint16)))
    load_dataset(str(folder), SIDE, workers=2)
    assert capfd.readouterr().err == ""  # the processes say nothing themselves
    (said,) = recwarn.list
    assert str(said.message).startswith("train/bus/00.png: 16-bit pixels that stay below 8192")


def test_how_many_are_decoded_is_told(tmp_path):
    told = []
    load_dataset(str(split_folder(tmp_path / "mine")), SIDE, step=lambda *so_far: told.append(so_far))
    assert told == [("decoding mine", done, 24) for done in range(1, 25)]


def test_an_interrupted_decode_leaves_no_process(tmp_path, shared_out):
    def interrupt(*_):
        raise Interrupted

    folder = split_folder(tmp_path / "mine")
    with pytest.raises(Interrupted) as raised:  # which holds on to all that was going on
        load_dataset(str(folder), SIDE, step=interrupt, workers=2)
    assert raised.traceback
    assert not multiprocessing.active_children()
    assert len(load_dataset(str(folder), SIDE).train) == 18


def test_a_process_that_died_over_its_images_is_said(tmp_path, shared_out, monkeypatch):
    def kill(*_):
        for process in multiprocessing.active_children():
            process.kill()

    monkeypatch.setattr(cache, "_PART", 1)
    folder = class_folders(tmp_path / "mine", 400, ("bus", "car"))
    with pytest.raises(EvitNasError, match=r"a process that decodes images died.* with fewer --workers"):
        load_dataset(str(folder), SIDE, step=kill, workers=2)
    assert not multiprocessing.active_children()


def test_an_entry_half_removed_is_not_believed(tmp_path):
    folder = idx_folder(tmp_path / "mine")
    whole = load_dataset(str(folder), SIDE)
    images = Path(whole.train.images.filename)
    (images.parent / "meta.json").unlink()
    images.unlink()
    assert np.array_equal(load_dataset(str(folder), SIDE).train.images, whole.train.images)


def test_of_two_processes_one_decodes_and_both_get_the_same(tmp_path):
    folder = str(class_folders(tmp_path / "mine", 40))
    load = "load_dataset(sys.argv[1], 16, note=print)"
    code = f"import sys; from evit_nas.data.cache import load_dataset; print({load}.digest)"
    both = [run_python(code, folder) for _ in range(2)]
    printed = [process.communicate()[0].splitlines() for process in both]
    assert printed[0][-1] == printed[1][-1] == load_dataset(folder, SIDE).digest
    assert sum("decoding" in line for lines in printed for line in lines) == 1


def test_waiting_for_another_process_is_said(tmp_path):
    folder = idx_folder(tmp_path / "mine")
    load_dataset(str(folder), SIDE)
    (lock_file,) = (Path(os.environ["XDG_CACHE_HOME"]) / "evit-nas" / "data").glob("mine*.lock")
    waiting, found = threading.Event(), []

    def load() -> None:
        found.append(load_dataset(str(folder), SIDE, note=lambda message: waiting.set()))

    with lock_file.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=load, daemon=True)
        thread.start()
        assert waiting.wait(60)
        assert not found
    thread.join(60)
    assert len(found) == 1


def test_a_cache_that_cannot_be_written_is_said_so(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("evit_nas.data.cache.cache_folder", lambda: tmp_path / "file")
    with pytest.raises(UsageError, match="Choose another place with XDG_CACHE_HOME"):
        load_dataset("digits", SIDE)


# ---- what is refused


def refusal(text: object) -> str:
    """What the error says: such data are refused."""
    with pytest.raises(UsageError) as error:
        load_dataset(str(text), SIDE)
    return str(error.value)


def test_a_folder_goes_before_a_set_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(open_source("digits", seed=0).classes) == 10
    class_folders(tmp_path / "digits", 12)
    assert len(open_source("digits", seed=0).classes) < 10


@pytest.mark.parametrize("gzipped", [True, False])
def test_a_broken_idx_file_is_named_with_what_it_must_hold(gzipped, tmp_path):
    folder = idx_folder(tmp_path / "mine", gzipped=gzipped)
    path = folder / f"train-images-idx3-ubyte{'.gz' if gzipped else ''}"
    content = gzip.decompress(path.read_bytes()) if gzipped else path.read_bytes()
    pack = gzip.compress if gzipped else bytes

    path.write_bytes(pack(content[:-7]))
    assert re.search(rf"{path.name}: must hold 60 x 8 x 8 = 3840 bytes after its header, got 3833", refusal(folder))
    path.write_bytes(pack(content[:9]))
    assert re.search(
        rf"{path.name}: must start with the bytes 00 00 08 03 and 3 sizes of 4 bytes each, got 00 00 08 03 .*3c 00\.",
        refusal(folder),
    )
    path.write_bytes(pack(b"\0\0\x08\x01" + content[4:]))
    assert re.search(rf"{path.name}: must start with the bytes 00 00 08 03 .*, got 00 00 08 01", refusal(folder))
    path.write_bytes(pack(b""))
    assert re.search(path.name, refusal(folder))
    path.unlink()
    assert re.search(r"must have the file train-images-idx3-ubyte \(or train-images-idx3-ubyte\.gz\)", refusal(folder))


def test_a_torn_gzip_file_is_named(tmp_path):
    folder = idx_folder(tmp_path / "mine", gzipped=True)
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:100])
    assert re.search(r"t10k-images-idx3-ubyte\.gz: cannot be read .*Copy it again", refusal(folder))
    path.write_bytes(b"not gzip at all")
    assert re.search(r"t10k-images-idx3-ubyte\.gz: cannot be read", refusal(folder))


def test_idx_labels_must_be_as_many_as_images_and_known_from_training(tmp_path):
    folder, shorter = idx_folder(tmp_path / "mine"), idx_folder(tmp_path / "shorter", train=59)
    few = idx_folder(tmp_path / "few", train=9)
    (shorter / "train-labels-idx1-ubyte").replace(folder / "train-labels-idx1-ubyte")
    assert re.search("must hold equally many, got 60 and 59", refusal(folder))
    assert re.search("t10k-labels-idx1-ubyte: label 9 must be among the training labels", refusal(few))


def test_a_class_folder_must_have_pictures_and_a_second_class_beside_it(tmp_path):
    assert re.search(r"at least two classes, found bus\. Other", refusal(class_folders(tmp_path / "one", 3, ("bus",))))
    (tmp_path / "none").mkdir()
    assert re.search("at least two classes, found none", refusal(tmp_path / "none"))
    empty = class_folders(tmp_path / "empty", 3)
    (empty / "zeppelin").mkdir()
    (empty / "zeppelin" / "readme.txt").write_text("soon")
    assert re.search(r"zeppelin: a class must have pictures \(.*\.png.*\), found 1 \.txt\. Convert", refusal(empty))
    assert re.search(
        "class 'bus' must have at least 2 images, .*, got 1", refusal(class_folders(tmp_path / "single", 1))
    )


def test_train_and_val_must_have_the_same_classes(tmp_path):
    folder = split_folder(tmp_path / "mine", "validation")
    (folder / "validation" / "car").rename(folder / "validation" / "cart")
    assert re.search("train and validation must have the same classes, but 'car' is in one only", refusal(folder))


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        *(("train", name) for name in ("val", "valid", "validation", "test", "Val", "TEST")),
        ("Train", "Validation"),
        ("Training", "Testing"),
        ("training", "testing"),
    ],
)
def test_each_name_of_the_two_folders_is_known_in_any_case(train, validation, tmp_path):
    folder = split_folder(tmp_path / "mine", validation)
    (folder / "train").rename(folder / train)
    source = open_source(str(folder), 0)
    assert source.classes == ("bus", "car", "tram")
    assert (len(source.train), len(source.val)) == (18, 6)


@pytest.mark.parametrize("validation", ["val", "valid", "Validation"])
def test_test_images_are_kept_for_the_user_where_there_are_others_to_validate_on(validation, tmp_path):
    folder = split_folder(tmp_path / "mine", validation)
    class_folders(folder / "test", 3)
    assert {Path(name).parts[0] for name in names_of(open_source(str(folder), 0).val)} == {validation}


def test_parts_of_a_data_set_are_not_taken_for_classes(tmp_path):
    folder = tmp_path / "mine"
    for part in ("fold1", "fold2"):
        class_folders(folder / part, 2)
    assert re.search(
        "its fold1, fold2 look like parts .* each has the folders bus, car, tram .* Call two of them train",
        refusal(folder),
    )
    picture().save(folder / "fold1" / "cover.png")
    assert open_source(str(folder), 0).classes == ("fold1", "fold2")


def test_a_class_may_keep_its_pictures_in_a_folder_of_its_own(tmp_path):
    for name in ("bus", "car"):
        class_folders(tmp_path / "mine" / name, 2, ("images",))
    assert open_source(str(tmp_path / "mine"), 0).classes == ("bus", "car")


def test_a_name_that_is_none_is_refused_with_the_nearest_one_and_the_forms(tmp_path):
    (tmp_path / "flowers").mkdir()
    assert re.search("no such data. Did you mean 'digits'", refusal("digit"))
    assert re.search(f"Did you mean '{tmp_path / 'flowers'}'", refusal(tmp_path / "flower" / "train"))
    assert re.search("Data can be a folder train/CLASS.*torch/NAME@FOLDER", refusal("tfds/cifar10"))
    (tmp_path / "archive.zip").write_text("")
    assert re.search("must be a folder or a name, not a file", refusal(tmp_path / "archive.zip"))


def test_what_timm_cannot_open_here_is_refused_with_how_to_get_it(tmp_path):
    assert re.search(
        rf"on this machine already.*create_dataset.*{tmp_path}.*download=True", refusal(f"torch/cifar10@{tmp_path}")
    )
    assert re.search("cifar11", refusal(f"torch/cifar11@{tmp_path}"))
    assert re.search("give the folder itself, photos:", refusal("torch/image_folder@photos"))
    assert re.search(
        r"on this machine already.*datasets\.load_dataset\('nobody/nothing'\)", refusal("hfds/nobody/nothing")
    )


def test_a_folder_of_nobody_or_without_rights_is_refused_with_its_path(tmp_path, monkeypatch):
    assert re.search("~nobody-at-all/x: no such data: Could not determine home directory", refusal("~nobody-at-all/x"))
    folder = class_folders(tmp_path / "mine", 3)

    def denied(path: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", denied)  # of a class
        assert re.search(f"{folder}: {folder / 'bus'} cannot be read: Permission denied", refusal(folder))
    monkeypatch.setattr(Path, "is_dir", denied)
    assert re.search(f"{folder}: {folder} cannot be read: Permission denied", refusal(folder))


def test_links_in_a_circle_are_refused(tmp_path):
    (tmp_path / "round").symlink_to(tmp_path / "round")
    assert re.search("round: no such data", refusal(tmp_path / "round"))


def test_an_image_size_must_be_positive():
    with pytest.raises(UsageError, match="image_size must be at least 1 pixel, got 0"):
        load_dataset("digits", 0)
