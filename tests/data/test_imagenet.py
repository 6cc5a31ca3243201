"""ImageNet32: the copy that is made of its archives."""

import os
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
from snfnp.images import StoredArray

# The real counts, which the tests replace by small ones.
PUBLISHED = imagenet.TRAIN_COUNT - imagenet.VALIDATION_COUNT
PUBLISHED_CIFAR = (len(cifar.BATCHES) - 1) * cifar.BATCH_COUNT - cifar.VALIDATION_COUNT
pytestmark = pytest.mark.usefixtures("small")


def load(folder: Path | None) -> Dataset:
    return load_dataset("imagenet32", folder, report=lambda line: None)


@pytest.fixture
def copy(cache: Path) -> Path:
    """The copy of the small archives, which does not exist yet."""
    sizes = map(len, FILES["imagenet32"].values())
    return cache / "imagenet32" / f"png-{'-'.join(map(str, sizes))}.npy"


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
    assert isinstance(dataset.train, StoredArray) and "PNG version" in dataset.source
    (line,) = lines
    assert "PNG version" in line and "\n" not in line
    assert len(os.listdir(copy.parent)) == 1
    again = load_dataset("imagenet32", tmp_path / "given", report=no_announcement)
    assert_is("imagenet32", again)
    other = tar_bytes(png_members(IMAGENET_TEST[::-1], "valid_32x32"), compressed=not compressed)
    put(tmp_path / "given", {"valid_32x32.tar": other})
    np.testing.assert_array_equal(load(tmp_path / "given").test[:], IMAGENET_TEST[::-1])


def test_the_copy_is_enough(tmp_path: Path, copy: Path) -> None:
    put(copy.parent, FILES["imagenet32"])
    assert_is("imagenet32", load(None))
    put(tmp_path / "elsewhere", {copy.name: copy.read_bytes()})
    for name in FILES["imagenet32"]:
        (copy.parent / name).unlink()
        assert_is("imagenet32", load_dataset("imagenet32", report=no_announcement))
    assert_is("imagenet32", load(tmp_path / "elsewhere"))
    copy.unlink()
    refused("imagenet32", None, f"no ImageNet32 images in {copy.parent}")


def test_a_disk_that_is_full(tmp_path: Path, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, FILES["imagenet32"])

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
    whole = copy.read_bytes()
    flipped = whole[:200] + bytes([whole[200] ^ 1]) + whole[201:]  # in one pixel
    for content in (whole[:-1], whole[:50], b"", whole.replace(b"(30,", b"(29,"), flipped):
        copy.write_bytes(content)
        refused("imagenet32", tmp_path, f"{copy}: the copy is damaged", "delete it to make it")
    copy.write_bytes(whole[:-32])  # an earlier version's, without a checksum
    assert_is("imagenet32", load(tmp_path))
    copy.unlink()
    assert_is("imagenet32", load(tmp_path))
