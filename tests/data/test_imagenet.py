"""ImageNet32: the copy that is made of its archives."""

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.data_files import (
    FILES,
    IMAGENET_TEST,
    assert_is,
    imagenet_archives,
    png_members,
    put,
    refused,
    tar_bytes,
)
from support.messages import no_announcement

from snfnp.data import Dataset, cifar, imagenet, load_dataset, reading

# The real counts, which the tests replace by small ones.
PUBLISHED = imagenet.TRAIN_COUNT - imagenet.VALIDATION_COUNT
PUBLISHED_CIFAR = (len(cifar.BATCHES) - 1) * cifar.BATCH_COUNT - cifar.VALIDATION_COUNT
pytestmark = pytest.mark.usefixtures("small")


def load(folder: Path | None) -> Dataset:
    return load_dataset("imagenet32", folder, report=lambda line: None)


@pytest.fixture
def copy(cache: Path) -> Path:
    """The folder of the copy, which does not exist yet."""
    return cache / "imagenet32" / "png"


def test_published_splits() -> None:
    """Appendix A.3: 1,261,149 images for training, and 40,000 of CIFAR-10."""
    assert (PUBLISHED, PUBLISHED_CIFAR) == (1_261_149, 40_000)
    assert cifar.BATCHES[::5] == ("data_batch_1.bin", "test_batch.bin")


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
    refused("imagenet32", None, f"no ImageNet32 images in {copy.parent}")


def test_a_disk_that_is_full(tmp_path: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    put(tmp_path, FILES["imagenet32"])  # 30 images of 3072 bytes: 92,160
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 92_159))
    refused("imagenet32", tmp_path, copy.parent, "it takes 0.0 GB", "make room")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 92_160))

    def full(count: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "validation_mask", full)
        refused("imagenet32", tmp_path, copy.parent, "No space left on device")
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
    for content in (whole[:-1], whole[:50], b"", (copy / "test.npy").read_bytes(), flipped):
        (copy / "train.npy").write_bytes(content)
        refused("imagenet32", tmp_path, copy / "train.npy", "wrong checksum", f"delete {copy}")
    (copy / "train.npy").unlink()
    refused("imagenet32", tmp_path, copy / "train.npy", "No such file", f"delete {copy}")
    older = json.loads(record)
    del older["sha256"]
    for text in ("[" * 100_000, "", "[]", "{}", "[1]" * 10**5, json.dumps(older)):
        (copy / "record.json").write_text(text)  # then there is no copy, and it is made again
        assert_is("imagenet32", load(tmp_path))
