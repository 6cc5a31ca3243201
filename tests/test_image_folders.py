"""Folders of images: their splits, what is left out, and how images are read."""

import os

import numpy as np
import pytest
from PIL import Image
from support.data_files import COLOUR, GREY, picture
from support.messages import one_line

import snfnp
from snfnp.data import load_whole, own_data, pictures
from snfnp.errors import UsageError


def test_folders_of_other_disks_are_left_out(tmp_path, monkeypatch):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.png").touch()
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    with one_line(UsageError, tmp_path, "has no images"):
        snfnp.load_dataset(str(tmp_path))


NAMES = [
    ("Train", "VAL", "test"),
    ("training", "valid", "testing"),
    ("train", "dev", "Test"),
]


@pytest.mark.parametrize("names", NAMES)
def test_splits_are_found_in_capitals_and_by_their_other_names(names, tmp_path):
    for count, name in enumerate(names, start=2):
        for index in range(count):
            picture(tmp_path / name / f"{index}.png", GREY[10 * count + index])
    data = snfnp.load_dataset(tmp_path)
    assert [len(split) for split in (data.train, data.validation, data.test)] == [
        2,
        3,
        4,
    ]
    np.testing.assert_array_equal(data.validation[..., 0], GREY[30:33])
    (tmp_path / "validation").mkdir()
    with one_line(
        UsageError, "has two folders of validation images: leave one of them out"
    ):
        snfnp.load_dataset(str(tmp_path))


@pytest.mark.parametrize("name", ["a.png", "more/a.png"])
def test_images_beside_splits_are_an_error(name, tmp_path):
    picture(tmp_path / "train" / "a.png", GREY[0])
    picture(tmp_path / name, GREY[0])
    with one_line(
        UsageError, "has images beside its train, such as", name, "move them into"
    ):
        snfnp.load_dataset(str(tmp_path))


@pytest.mark.parametrize("images, limit", [(0, "_MOST_OTHERS"), (1, "_MOST")])
def test_a_folder_is_not_walked_without_end(tmp_path, monkeypatch, images, limit):
    """A stranger's run may name any folder as its data."""
    monkeypatch.setattr(pictures, limit, 20)
    for number in range(images):
        (tmp_path / f"{number}.png").touch()
    for number in range(30):
        (tmp_path / f"{number:02}" / "below").mkdir(parents=True)
    count = f"has {images} images (.png, .jpg, .jpeg) among its first {30 + images} ent"
    with one_line(UsageError, tmp_path, count):
        own_data(str(tmp_path))
    (tmp_path / "dev").mkdir()
    monkeypatch.setattr(os, "walk", lambda folder: pytest.fail("it was walked"))
    with one_line(UsageError, f"{tmp_path} has no folder train beside dev: add one"):
        own_data(str(tmp_path))


def hidden(folder):
    picture(folder / ".thumbs" / "small" / "a.png", GREY[0, :2, :2])
    picture(folder / ".b.png", GREY[0, :2, :2])
    picture(folder / "runs" / "here" / "curves.png", GREY[0, :2, :2])
    (folder / "runs" / "here" / "metrics.jsonl").touch()


def other_formats(folder):
    for name in (
        "a.webp",
        "b.WEBP",
        "a.gif",
        "a.bmp",
        "a.tiff",
        "a.ppm",
        ".a.gif",
        "README",
    ):
        picture(folder / name, GREY[0], format="PPM")


def frames(folder):
    first, *others = [Image.fromarray(image) for image in GREY[:3]]
    first.save(folder / "0.png", save_all=True, append_images=others)


FOLDERS = (
    "hidden folders, folders of runs, links to folders, and folders on other disks are "
    "left out"
)
KINDS = "2 .webp, 1 without a suffix, 1 .bmp, 1 .gif, 1 .ppm, 1 .tiff"
LEFT_OUT = {
    FOLDERS: hidden,
    f"other files are left out ({KINDS})": other_formats,
    "of animations the first frame is taken (1)": frames,
    "CMYK images become RGB without their colour profiles (1)": lambda folder: (
        Image.fromarray(COLOUR).convert("CMYK").save(folder / "8.jpg")
    ),
}


@pytest.mark.parametrize("line", LEFT_OUT)
def test_what_is_left_out_of_a_folder_is_one_line(line, tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "_MOST_OTHERS", 8)  # before an image
    for index in range(9):
        picture(tmp_path / f"{index}.png", GREY[index])
    LEFT_OUT[line](tmp_path)
    lines = []
    images = pictures.read_folder(tmp_path, lines.append)["train"]
    assert lines == [f"{tmp_path}: {line}"] and len(images) == 9 + ("CMYK" in line)
    np.testing.assert_array_equal(images[1, ..., 0], GREY[1])


def test_linked_folders_are_left_out(tmp_path):
    for index in range(9):
        picture(tmp_path / "train" / f"{index}.png", GREY[index])
    (tmp_path / "train" / "again").symlink_to(tmp_path / "train")
    lines = []
    assert len(snfnp.load_dataset(tmp_path, report=lines.append).train) == 7
    assert lines == [f"{tmp_path}: {FOLDERS}"]


def test_transparent_colours_of_a_palette_are_read_without_a_warning(tmp_path, recwarn):
    (tmp_path / "images").mkdir()
    image = Image.fromarray(GREY[0]).convert("P")
    image.save(tmp_path / "images" / "a.png", transparency=bytes(range(256)))
    assert load_whole(str(tmp_path / "images")).shape == (1, 4, 6, 3)
    assert not recwarn.list


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_data_say(orientation, tmp_path):
    """Orientation 6: the first row becomes the right-hand column."""
    # Image.Transpose
    inverse = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    smooth = np.add.outer(np.arange(16) * 9, np.arange(24) * 3).astype(np.uint8)
    shown = Image.fromarray(smooth)
    stored = shown if inverse is None else shown.transpose(inverse)
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        stored.save(tmp_path / "images" / name, exif=exif, quality=95)
    picture(tmp_path / "images" / "c.png", smooth)
    images = load_whole(str(tmp_path / "images"))
    assert images.shape == (3, 16, 24, 1)
    assert np.abs(images[0].astype(int) - images[2]).max() < 8
