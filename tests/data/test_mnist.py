"""MNIST and Fashion-MNIST: names of files, their content, and the sample."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.data_files import (
    FASHION,
    FILES,
    TEST,
    TEST_GZ,
    TRAIN,
    TRAIN_GZ,
    assert_is,
    idx_bytes,
    mnist_digests,
    put,
    random_images,
)
from support.fullmnist import find_full_mnist
from support.messages import assert_one_line, no_announcement

from snfnp.data import Dataset, load_dataset, mnist
from snfnp.data.idx import write_idx
from snfnp.errors import SnfnpError

FULL_MNIST = find_full_mnist()
needs_full_mnist = pytest.mark.skipif(
    FULL_MNIST is None, reason="the full MNIST files are neither in SNFNP_DATA_DIR nor cached"
)


@pytest.mark.parametrize("end", ["-idx3-ubyte", "-idx3-ubyte.gz", ".idx3-ubyte", ".idx3-ubyte.gz"])
def test_names_of_files(tmp_path: Path, small: Callable, end: str) -> None:
    for stem, images in (("train-images", TRAIN), ("t10k-images", TEST)):
        write_idx(tmp_path / f"{stem}{end}", images)
    assert_is("mnist", load_dataset("mnist", tmp_path, report=no_announcement))


def test_given_files_have_no_checksum(tmp_path: Path, small: Callable) -> None:
    put(tmp_path, FILES["mnist"])
    write_idx(tmp_path / TEST_GZ, TEST[::-1])
    dataset = load_dataset("mnist", tmp_path)
    np.testing.assert_array_equal(dataset.test, TEST[::-1, ..., None])


@pytest.mark.parametrize(
    "file_name, images, found",
    [
        (TRAIN_GZ, TRAIN[:-1], "6 x 28 x 28, not 7 x 28 x 28"),
        (TEST_GZ, random_images(3, seed=5, size=(32, 32)), "3 x 32 x 32, not 3 x 28 x 28"),
        (TEST_GZ, TEST[0], "28 x 28, not 3 x 28 x 28"),
    ],
)
def test_a_wrong_count_or_size(
    tmp_path: Path, small: Callable, file_name: str, images: np.ndarray, found: str
) -> None:
    put(tmp_path, FILES["mnist"])
    write_idx(tmp_path / file_name, images)
    with pytest.raises(SnfnpError) as caught:
        load_dataset("mnist", tmp_path)
    assert_one_line(caught.value, tmp_path / file_name, f"array of {found}")


def test_another_data_set_under_the_same_names(tmp_path: Path, small: Callable) -> None:
    put(tmp_path, FILES["mnist"])
    with pytest.raises(SnfnpError) as caught:
        load_dataset("fashion-mnist", tmp_path)
    assert_one_line(caught.value, tmp_path / TRAIN_GZ, "is a file of MNIST, not of Fashion-MNIST")
    put(tmp_path, {TRAIN_GZ: gzip.compress(idx_bytes(FASHION[TRAIN_GZ]))})
    with pytest.raises(SnfnpError) as caught:
        load_dataset("fashion-mnist", tmp_path)
    assert_one_line(caught.value, tmp_path / TEST_GZ, "choose the data set mnist")


# ---------------------------------------------------------------- the sample


def assert_is_the_sample(dataset: Dataset) -> None:
    assert dataset.is_sample and dataset.name == "mnist"
    assert dataset.source == "sample shipped with the package"
    for split, count in (("train", 5000), ("validation", 1000), ("test", 1000)):
        images = getattr(dataset, split)
        assert images.shape == (count, 28, 28, 1) and images.dtype == np.uint8
        assert (images.min(), images.max()) == (0, 255)


@pytest.mark.parametrize("fault", ["no mirror", "offline", "a file in the cache's place"])
def test_the_sample_is_announced_once(fault: str, cache: Path, monkeypatch) -> None:
    reason = ["no mirror", "127.0.0.1"]
    if fault == "offline":
        monkeypatch.setenv("SNFNP_OFFLINE", "1")
        reason = ["SNFNP_OFFLINE"]
    if fault == "a file in the cache's place":
        put(cache.parent, {cache.name: b""})
        reason = [f"{cache / 'mnist'} cannot be written"]
    lines: list[str] = []
    assert_is_the_sample(load_dataset("mnist", report=lines.append))
    (line,) = lines
    assert "\n" not in line
    for part in ("WARNING: NOT THE FULL MNIST", "sample", "5000 train", "--data-dir", *reason):
        assert part in line
    assert not (cache / "mnist").exists() or not list((cache / "mnist").iterdir())


def test_the_sample_is_announced_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    load_dataset("mnist")
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("WARNING: NOT THE FULL MNIST") and err.count("\n") == 1


@needs_full_mnist
def test_full_mnist_and_the_sample_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    full = load_dataset("mnist", FULL_MNIST, report=no_announcement)
    assert not full.is_sample
    assert [len(images) for images in (full.train, full.validation, full.test)] == [
        *(50_000, 10_000, 10_000)
    ]
    train_and_validation = np.concatenate([full.train, full.validation])[..., 0]
    assert mnist_digests(train_and_validation, full.test[..., 0]) == mnist.SPECS["mnist"].sha256
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    sample = load_dataset("mnist", report=lambda line: None)
    np.testing.assert_array_equal(sample.train, full.train[:5000])
    np.testing.assert_array_equal(sample.validation, full.validation[:1000])
    np.testing.assert_array_equal(sample.test, full.test[:1000])
