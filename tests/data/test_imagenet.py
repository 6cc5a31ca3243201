"""ImageNet32: its archives, and the copy that is made of them."""

import io
import json
import os
import shutil
import struct
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.data_files import (
    FILES,
    IMAGENET_TEST,
    IMAGENET_TRAIN,
    assert_is,
    colour_images,
    imagenet_archives,
    png,
    png_members,
    put,
    tar_bytes,
)
from support.messages import assert_one_line, no_announcement

from snfnp.data import imagenet, load_dataset, reading
from snfnp.errors import SnfnpError

# The real counts, which the tests replace by small ones.
PUBLISHED_TRAIN, PUBLISHED_VALIDATION = imagenet.TRAIN_COUNT, imagenet.VALIDATION_COUNT
pytestmark = pytest.mark.usefixtures("small")


def load(folder: Path | None):
    return load_dataset("imagenet32", folder, report=lambda line: None)


def refused(folder: Path | None, *parts: object) -> None:
    with pytest.raises(SnfnpError) as caught:
        load(folder)
    assert_one_line(caught.value, *parts)


@pytest.fixture
def copy(cache: Path) -> Path:
    """The folder of the copy, which does not exist yet."""
    return cache / "imagenet32" / "png"


def test_published_splits() -> None:
    """Appendix A.3: 1,261,149 images for training."""
    assert PUBLISHED_TRAIN - PUBLISHED_VALIDATION == 1_261_149


def test_validation_mask() -> None:
    # Fixed for ever: a change would mix validation images into the training of resumed runs.
    np.testing.assert_array_equal(
        np.flatnonzero(imagenet.validation_mask(100)), [8, 21, 56, 63, 78]
    )


@pytest.mark.parametrize("compressed", [False, True])
def test_the_copy_is_made_once(tmp_path: Path, copy: Path, compressed: bool) -> None:
    put(tmp_path / "given", imagenet_archives(compressed))
    lines: list[str] = []
    dataset = load_dataset("imagenet32", tmp_path / "given", report=lines.append)
    assert_is("imagenet32", dataset)
    assert isinstance(dataset.train, np.memmap) and "PNG version" in dataset.source
    (line,) = lines
    assert "PNG version" in line and "\n" not in line
    assert os.listdir(copy.parent) == ["png"]
    again = load_dataset("imagenet32", tmp_path / "given", report=no_announcement)
    assert_is("imagenet32", again)
    other = tar_bytes(png_members(IMAGENET_TEST[::-1], "valid_32x32"), compressed=not compressed)
    put(tmp_path / "given", {"valid_32x32.tar": other})
    np.testing.assert_array_equal(load(tmp_path / "given").test, IMAGENET_TEST[::-1])


def test_the_copy_is_enough(tmp_path: Path, copy: Path) -> None:
    put(copy.parent, FILES["imagenet32"])
    assert_is("imagenet32", load(None))
    shutil.copytree(copy, tmp_path / "elsewhere" / "png")
    for name in FILES["imagenet32"]:
        (copy.parent / name).unlink()
        assert_is("imagenet32", load_dataset("imagenet32", report=no_announcement))
    assert_is("imagenet32", load(tmp_path / "elsewhere"))
    shutil.rmtree(copy)
    refused(None, f"no ImageNet32 in {copy.parent}")


def header_of(width: int, height: int) -> bytes:
    """A PNG file that says it has that many pixels, and has few."""
    content = png(IMAGENET_TRAIN[0])
    return content[:16] + struct.pack(">2I", width, height) + content[24:]


BAD_PNGS = {
    "larger": (png(np.zeros((64, 32, 3), np.uint8)), "no PNG file of 32 x 32"),
    "grey": (png(np.zeros((32, 32), np.uint8)), "is of type L"),
    "alpha": (png(np.zeros((32, 32, 4), np.uint8)), "is of type RGBA"),
    "cut": (png(IMAGENET_TRAIN[0])[:-100], "damaged"),
    "header cut": (png(IMAGENET_TRAIN[0])[:20], "damaged"),
    "empty": (b"", "damaged"),
    "text": (b"<html>", "damaged"),
    "flipped": (png(IMAGENET_TRAIN[0])[:300] + b"\xff" * 9 + png(IMAGENET_TRAIN[0])[309:], "damag"),
    # what the decoder warns of, and what it raises an error of its own for
    "144 million pixels": (header_of(12_000, 12_000), "no PNG file of 32 x 32"),
    "3.6 billion pixels": (header_of(60_000, 60_000), "no PNG file of 32 x 32"),
    "longer than any": (png(IMAGENET_TRAIN[0]) + bytes(1 << 16), "damaged"),
}


@pytest.mark.parametrize("content, problem", BAD_PNGS.values(), ids=BAD_PNGS.keys())
@pytest.mark.filterwarnings("error")
def test_a_bad_png(tmp_path: Path, copy: Path, content: bytes, problem: str) -> None:
    members = png_members(IMAGENET_TRAIN, "train_32x32") | {"train_32x32/0000009.png": content}
    put(tmp_path, FILES["imagenet32"] | {"train_32x32.tar": tar_bytes(members, compressed=False)})
    refused(tmp_path, f"{tmp_path / 'train_32x32.tar'}: train_32x32/0000009.png", problem, "fresh")
    assert os.listdir(copy.parent) == []


@pytest.mark.parametrize("count, found", [(22, "22 images"), (24, "more than 23 images")])
def test_a_wrong_count(tmp_path: Path, copy: Path, count: int, found: str) -> None:
    members = png_members(colour_images(count, seed=12), "train_32x32")
    put(tmp_path, FILES["imagenet32"] | {"train_32x32.tar": tar_bytes(members, compressed=False)})
    refused(tmp_path, tmp_path / "train_32x32.tar", found, "not the 23")
    assert os.listdir(copy.parent) == []


def test_a_disk_that_is_full(tmp_path: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    put(tmp_path, FILES["imagenet32"])  # 30 images of 3072 bytes: 92,160
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 92_159))
    refused(tmp_path, copy.parent, "needs 0.0 GB", "make room")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 92_160))

    def full(path: Path, count: int) -> io.BytesIO:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "_create", full)
        refused(tmp_path, copy.parent, "No space left on device")
    assert os.listdir(copy.parent) == []
    assert_is("imagenet32", load(tmp_path))


def test_an_interrupted_copy_leaves_none(tmp_path: Path, copy: Path, monkeypatch) -> None:
    def interrupted(path: Path, wanted: Callable[[str], bool], most: int):
        for index, item in enumerate(reading.read_tar(path, wanted, most)):
            if index == 9:
                raise KeyboardInterrupt
            yield item

    monkeypatch.setattr(imagenet, "read_tar", interrupted)
    put(tmp_path, FILES["imagenet32"])
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path)
    assert os.listdir(copy.parent) == []


def test_a_damaged_copy(tmp_path: Path, copy: Path) -> None:
    put(tmp_path, FILES["imagenet32"])
    load(tmp_path)
    whole, record = (copy / "train.npy").read_bytes(), (copy / "record.json").read_text()
    flipped = whole[:-1] + bytes([whole[-1] ^ 1])
    older = json.loads(record)
    del older["sha256"]
    for text in (record, json.dumps(older)):
        (copy / "record.json").write_text(text)
        for content in (whole[:-1], whole[:50], b"", (copy / "test.npy").read_bytes()):
            (copy / "train.npy").write_bytes(content)
            refused(tmp_path, copy / "train.npy", f"delete {copy}")
    (copy / "train.npy").write_bytes(flipped)
    load(tmp_path)  # an older copy has no checksum
    (copy / "record.json").write_text(record)
    refused(tmp_path, copy / "train.npy", "wrong checksum", f"delete {copy}")
    for text in ("[" * 100_000, "", "[]", "{}", "[1]" * 10**5):  # then there is no copy
        (copy / "record.json").write_text(text)
        assert_is("imagenet32", load(tmp_path))
