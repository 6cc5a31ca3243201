"""ImageNet32, from small archives in its format."""

import io
import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.data_files import (
    colour_images,
    put,
    tar_bytes,
)
from support.messages import assert_one_line, no_announcement

from snfnp.data import Dataset, files, imagenet, load_dataset
from snfnp.errors import SnfnpError, UsageError

TRAIN, TEST = colour_images(23, seed=10), colour_images(7, seed=11)
VALIDATION_COUNT = 5
# The real counts, which the tests replace by small ones.
PUBLISHED_TRAIN, PUBLISHED_VALIDATION = imagenet.TRAIN_COUNT, imagenet.VALIDATION_COUNT


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def png_members(images: np.ndarray, folder: str) -> dict[str, bytes]:
    return {f"{folder}/{index + 1:07d}.png": png(image) for index, image in enumerate(images)}


def archives(compressed: bool = False) -> dict[str, bytes]:
    return {
        "train_32x32.tar": tar_bytes(png_members(TRAIN, "train_32x32"), compressed),
        "valid_32x32.tar": tar_bytes(png_members(TEST, "valid_32x32"), compressed),
    }


@pytest.fixture(autouse=True)
def small_imagenet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imagenet, "TRAIN_COUNT", len(TRAIN))
    monkeypatch.setattr(imagenet, "TEST_COUNT", len(TEST))
    monkeypatch.setattr(imagenet, "VALIDATION_COUNT", VALIDATION_COUNT)
    monkeypatch.setattr(imagenet, "_BLOCK", 4)


def assert_is_imagenet(dataset: Dataset) -> None:
    mask = imagenet.validation_mask(len(TRAIN))
    np.testing.assert_array_equal(dataset.train, TRAIN[~mask])
    np.testing.assert_array_equal(dataset.validation, TRAIN[mask])
    np.testing.assert_array_equal(dataset.test, TEST)
    for images in (dataset.train, dataset.validation, dataset.test):
        assert isinstance(images, np.memmap)
        assert images.dtype == np.uint8
        assert not images.flags.writeable
    assert dataset.train[np.array([3, 1, 1])].shape == (3, 32, 32, 3)
    assert "PNG version" in dataset.source
    assert dataset.name == "imagenet32"
    assert not dataset.is_sample


def test_published_splits() -> None:
    """Appendix A.3: 1,261,149 images for training."""
    assert PUBLISHED_TRAIN - PUBLISHED_VALIDATION == 1_261_149


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("subfolder", ["", "imagenet32"])
def test_imagenet(tmp_path: Path, cache: Path, compressed: bool, subfolder: str) -> None:
    put(tmp_path / "given" / subfolder, archives(compressed))
    lines: list[str] = []
    dataset = load_dataset("imagenet32", tmp_path / "given", report=lines.append)
    assert_is_imagenet(dataset)
    (line,) = lines
    assert "PNG version" in line and "\n" not in line
    assert os.listdir(cache / "imagenet32") == ["png"]
    record = json.loads((cache / "imagenet32" / "png" / "record.json").read_text())
    assert (record["validation_count"], record["validation_seed"]) == (VALIDATION_COUNT, 0)
    # The copy is used from now on: nobody is told of a second one.
    again = load_dataset("imagenet32", tmp_path / "given", report=no_announcement)
    assert_is_imagenet(again)


def test_validation_mask() -> None:
    mask = imagenet.validation_mask(100)
    assert mask.sum() == VALIDATION_COUNT
    # Fixed for ever: a change would mix validation images into the training of resumed runs.
    np.testing.assert_array_equal(np.flatnonzero(mask), [8, 21, 56, 63, 78])


def test_imagenet_in_the_cache(cache: Path) -> None:
    folder = cache / "imagenet32"
    put(folder, archives())
    assert_is_imagenet(load_dataset("imagenet32", report=lambda line: None))
    for name in archives():
        (folder / name).unlink()
        assert_is_imagenet(load_dataset("imagenet32", report=no_announcement))
    shutil.rmtree(folder / "png")
    with pytest.raises(UsageError) as caught:
        load_dataset("imagenet32")
    assert_one_line(caught.value, f"no ImageNet32 in {folder}")


def test_imagenet_other_archives_make_another_copy(tmp_path: Path) -> None:
    put(tmp_path, archives())
    load_dataset("imagenet32", tmp_path, report=lambda line: None)
    other = tar_bytes(png_members(TEST[::-1], "valid_32x32"), compressed=True)
    put(tmp_path, {"valid_32x32.tar": other})
    dataset = load_dataset("imagenet32", tmp_path, report=lambda line: None)
    np.testing.assert_array_equal(dataset.test, TEST[::-1])


NPZ_FILES = [
    "Imagenet32_train_npz.zip",
    "Imagenet32_val_npz.zip",
    "train_data_batch_1.npz",
    "val_data.npz",
    "npz/record.json",
]


@pytest.mark.parametrize("name", NPZ_FILES)
@pytest.mark.parametrize("subfolder", ["", "imagenet32"])
def test_the_npz_version_is_named_and_not_read(tmp_path: Path, name: str, subfolder: str) -> None:
    put(tmp_path / subfolder, {name: b""})
    with pytest.raises(UsageError) as caught:
        load_dataset("imagenet32", tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / subfolder}: ")
    assert_one_line(caught.value, "npz version", "other likelihoods", "is not read", *archives())
    assert_one_line(caught.value, "https://github.com/tensorflow/datasets/issues/4662")


def test_the_npz_version_in_the_cache(cache: Path) -> None:
    put(cache / "imagenet32", {"npz/record.json": b"{}"})  # a copy that an older snfnp made
    with pytest.raises(UsageError) as caught:
        load_dataset("imagenet32")
    assert_one_line(caught.value, cache / "imagenet32", "npz version", *archives())


def test_the_archives_beside_the_npz_version_are_read(tmp_path: Path) -> None:
    put(tmp_path, dict.fromkeys(NPZ_FILES, b"") | archives())
    assert_is_imagenet(load_dataset("imagenet32", tmp_path, report=lambda line: None))


def test_imagenet_is_nowhere(tmp_path: Path, cache: Path) -> None:
    for data_dir, looked in ((None, cache / "imagenet32"), (tmp_path, tmp_path)):
        with pytest.raises(UsageError) as caught:
            load_dataset("imagenet32", data_dir, report=no_announcement)
        assert_one_line(caught.value, looked, "https://image-net.org", "register", "--data-dir")
        assert_one_line(caught.value, *archives())


@pytest.mark.parametrize("missing", ["train_32x32.tar", "valid_32x32.tar"])
def test_imagenet_lacks_a_file(tmp_path: Path, missing: str) -> None:
    content = archives()
    del content[missing]
    put(tmp_path, content)
    with pytest.raises(UsageError) as caught:
        load_dataset("imagenet32", tmp_path)
    assert_one_line(caught.value, f"{tmp_path}: lacks {missing} of ImageNet32")


GRAY = np.zeros((32, 32), np.uint8)
BAD_PNGS = {
    "larger": (png(np.zeros((64, 32, 3), np.uint8)), "32 x 64 of type RGB"),
    "grey": (png(GRAY), "of type L"),
    "alpha": (png(np.zeros((32, 32, 4), np.uint8)), "of type RGBA"),
    "cut": (png(TRAIN[0])[:-100], "damaged"),
    "header cut": (png(TRAIN[0])[:20], "damaged"),
    "empty": (b"", "damaged"),
    "text": (b"<html>", "damaged"),
    "flipped": (png(TRAIN[0])[:300] + b"\xff" * 9 + png(TRAIN[0])[309:], "damaged"),
}


@pytest.mark.parametrize("content, problem", BAD_PNGS.values(), ids=BAD_PNGS.keys())
def test_bad_png(tmp_path: Path, cache: Path, content: bytes, problem: str) -> None:
    members = png_members(TRAIN, "train_32x32") | {"train_32x32/0000009.png": content}
    put(tmp_path, archives() | {"train_32x32.tar": tar_bytes(members, compressed=False)})
    with pytest.raises(SnfnpError) as caught:
        load_dataset("imagenet32", tmp_path, report=lambda line: None)
    assert str(caught.value).startswith(f"{tmp_path / 'train_32x32.tar'}: train_32x32/0000009.png")
    assert_one_line(caught.value, "fresh copy")
    assert problem in str(caught.value).removeprefix(str(tmp_path))
    assert os.listdir(cache / "imagenet32") == []


@pytest.mark.parametrize("count, found", [(22, "22 images"), (24, "more than 23 images")])
def test_imagenet_wrong_count(tmp_path: Path, cache: Path, count: int, found: str) -> None:
    members = png_members(colour_images(count, seed=12), "train_32x32")
    put(tmp_path, archives() | {"train_32x32.tar": tar_bytes(members, compressed=False)})
    with pytest.raises(SnfnpError) as caught:
        load_dataset("imagenet32", tmp_path, report=lambda line: None)
    assert_one_line(caught.value, tmp_path / "train_32x32.tar", found, "not the 23")
    assert os.listdir(cache / "imagenet32") == []


def test_imagenet_does_not_fit(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 92_159))
    put(tmp_path, archives())  # 30 images of 3072 bytes: 92,160
    with pytest.raises(SnfnpError) as caught:
        load_dataset("imagenet32", tmp_path, report=no_announcement)
    assert_one_line(caught.value, cache / "imagenet32", "needs 0.0 GB", "make room")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 92_160))
    load_dataset("imagenet32", tmp_path, report=lambda line: None)


def test_imagenet_disk_runs_full(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, count: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(imagenet, "_create", full)
    put(tmp_path, archives())
    with pytest.raises(SnfnpError) as caught:
        load_dataset("imagenet32", tmp_path, report=lambda line: None)
    assert_one_line(caught.value, cache / "imagenet32", "No space left on device")
    assert os.listdir(cache / "imagenet32") == []


def test_interrupted_copy_leaves_none(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = files.read_tar

    def interrupted(path: Path, wanted: Callable[[str], bool]):
        for index, item in enumerate(original(path, wanted)):
            if index == 9:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(imagenet, "read_tar", interrupted)
    put(tmp_path, archives())
    with pytest.raises(KeyboardInterrupt):
        load_dataset("imagenet32", tmp_path, report=lambda line: None)
    assert os.listdir(cache / "imagenet32") == []
    monkeypatch.undo()


def test_damaged_copy(tmp_path: Path, cache: Path) -> None:
    put(tmp_path, archives())
    load_dataset("imagenet32", tmp_path, report=lambda line: None)
    copy = cache / "imagenet32" / "png"
    whole = (copy / "train.npy").read_bytes()
    for content in (whole[:-1], whole[:50], b""):
        (copy / "train.npy").write_bytes(content)
        with pytest.raises(SnfnpError) as caught:
            load_dataset("imagenet32", tmp_path)
        assert_one_line(caught.value, copy / "train.npy", f"delete {copy}")
    shutil.copy(copy / "test.npy", copy / "train.npy")
    with pytest.raises(SnfnpError) as caught:
        load_dataset("imagenet32", tmp_path)
    assert_one_line(caught.value, "wrong shape")
    shutil.rmtree(copy)
    assert_is_imagenet(load_dataset("imagenet32", tmp_path, report=lambda line: None))
