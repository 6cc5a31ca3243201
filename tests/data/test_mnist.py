"""MNIST and Fashion-MNIST: folders that are given, the order of the places, and the sample."""

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.data_files import (
    FASHION_TEST,
    FASHION_TRAIN,
    TEST,
    TEST_COUNT,
    TEST_GZ,
    TRAIN,
    TRAIN_GZ,
    Mirror,
    assert_tiny,
    idx_bytes,
    mnist_digests,
    put_tiny,
    random_images,
)
from support.fullmnist import find_full_mnist
from support.messages import assert_one_line, no_announcement

from snfnp.data import load_dataset, mnist
from snfnp.data.idx import write_idx
from snfnp.errors import SnfnpError, UsageError

FULL_MNIST = find_full_mnist()
needs_full_mnist = pytest.mark.skipif(
    FULL_MNIST is None, reason="the full MNIST files are neither in SNFNP_DATA_DIR nor cached"
)
GOOD_GZ = gzip.compress(idx_bytes(TEST))


# Folders that are given


def test_data_dir(tmp_path: Path, tiny: None) -> None:
    folder = put_tiny(tmp_path / "given")
    dataset = load_dataset("mnist", folder, report=no_announcement)
    assert_tiny(dataset)
    assert dataset.name == "mnist"
    assert str(folder) in dataset.source
    for images in (dataset.train, dataset.validation, dataset.test):
        assert images.dtype == np.uint8
        assert images.shape[1:] == (28, 28, 1)
        assert not images.flags.writeable


@pytest.mark.parametrize("end", ["-idx3-ubyte", "-idx3-ubyte.gz", ".idx3-ubyte", ".idx3-ubyte.gz"])
def test_data_dir_names(tmp_path: Path, tiny: None, end: str) -> None:
    folder = put_tiny(tmp_path / "given", f"train-images{end}", f"t10k-images{end}")
    assert_tiny(load_dataset("mnist", str(folder), report=no_announcement))


def test_data_dir_subfolder_comes_first(tmp_path: Path, tiny: None) -> None:
    put_tiny(tmp_path / "given" / "mnist")
    write_idx(tmp_path / "given" / TRAIN_GZ, np.zeros_like(TRAIN))
    write_idx(tmp_path / "given" / TEST_GZ, np.zeros_like(TEST))
    assert_tiny(load_dataset("mnist", tmp_path / "given"))


def test_data_dir_in_home(tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    put_tiny(tmp_path / "images")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert_tiny(load_dataset("mnist", "~/images"))


def test_data_dir_is_not_checksummed(tmp_path: Path, tiny: None) -> None:
    folder = put_tiny(tmp_path / "variant")
    write_idx(folder / TEST_GZ, TEST[::-1])
    dataset = load_dataset("mnist", folder)
    np.testing.assert_array_equal(dataset.test, TEST[::-1, ..., None])


def test_data_dir_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_dataset("mnist", tmp_path / "none", report=no_announcement)
    assert_one_line(caught.value, tmp_path / "none", "does not exist")


def test_data_dir_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / TRAIN_GZ
    path.write_bytes(GOOD_GZ)
    with pytest.raises(UsageError) as caught:
        load_dataset("mnist", path)
    assert_one_line(caught.value, path, "is not a folder")


def test_data_dir_lacks_files(tmp_path: Path, tiny: None, mnist_cache: Path) -> None:
    put_tiny(mnist_cache)  # must not stand in for the folder that was given
    with pytest.raises(UsageError) as caught:
        load_dataset("mnist", tmp_path, report=no_announcement)
    assert_one_line(caught.value, tmp_path, "train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
    (tmp_path / "mnist").mkdir()
    write_idx(tmp_path / "mnist" / TRAIN_GZ, TRAIN)
    with pytest.raises(UsageError) as caught:
        load_dataset("mnist", tmp_path, report=no_announcement)
    assert_one_line(caught.value, tmp_path / "mnist", "lacks t10k-images-idx3-ubyte[.gz];")


@pytest.mark.parametrize(
    "file_name, images, found",
    [
        (TRAIN_GZ, TRAIN[:-1], "6 x 28 x 28"),
        (TEST_GZ, random_images(TEST_COUNT, seed=5, size=(32, 32)), "3 x 32 x 32"),
        (TEST_GZ, TEST[0], "28 x 28,"),
    ],
)
def test_wrong_count_or_size(
    tmp_path: Path, tiny: None, file_name: str, images: np.ndarray, found: str
) -> None:
    folder = put_tiny(tmp_path / "given")
    write_idx(folder / file_name, images)
    with pytest.raises(SnfnpError) as caught:
        load_dataset("mnist", folder)
    assert_one_line(caught.value, folder / file_name, f"array of {found}", "full MNIST files")


def test_damaged_file_in_data_dir(tmp_path: Path, tiny: None) -> None:
    folder = put_tiny(tmp_path / "given")
    (folder / TEST_GZ).write_bytes(GOOD_GZ[:-9])
    with pytest.raises(SnfnpError) as caught:
        load_dataset("mnist", folder)
    assert_one_line(caught.value, folder / TEST_GZ, "truncated")


def test_other_data_set_under_the_same_names(tmp_path: Path, tiny: None) -> None:
    folder = put_tiny(tmp_path / "given")
    with pytest.raises(SnfnpError) as caught:
        load_dataset("fashion-mnist", folder)
    assert_one_line(caught.value, folder / TRAIN_GZ, "is a file of MNIST, not of Fashion-MNIST")


def test_unknown_name() -> None:
    with pytest.raises(UsageError) as caught:
        load_dataset("cifar10")
    assert_one_line(caught.value, "cifar10", "mnist, fashion-mnist")


# Search order


def test_search_order(
    tmp_path: Path,
    tiny: Callable[..., None],
    mnist_cache: Path,
    make_mirror: Callable[[], Mirror],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mirror = make_mirror()
    mirror.serve_tiny()
    tiny(mirror)
    given = put_tiny(tmp_path / "given")
    in_environment = put_tiny(tmp_path / "environment")
    put_tiny(mnist_cache)
    monkeypatch.setenv("SNFNP_DATA_DIR", str(in_environment))
    assert str(given) in load_dataset("mnist", given).source
    assert str(in_environment) in load_dataset("mnist").source
    monkeypatch.setenv("SNFNP_DATA_DIR", "")
    assert load_dataset("mnist").source == f"cache folder {mnist_cache}"
    assert mirror.requests == []
    (mnist_cache / TRAIN_GZ).unlink()
    (mnist_cache / TEST_GZ).unlink()
    assert mirror.url.split("/")[2] in load_dataset("mnist").source
    assert mirror.requests == [TRAIN_GZ, TEST_GZ]


def test_environment_folder_is_named_in_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SNFNP_DATA_DIR", str(tmp_path / "none"))
    with pytest.raises(UsageError) as caught:
        load_dataset("mnist")
    assert_one_line(caught.value, tmp_path / "none", "SNFNP_DATA_DIR")


def test_environment_folder_holds_several(
    tmp_path: Path, tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_tiny(tmp_path / "mnist")
    fashion = tmp_path / "fashion-mnist"
    fashion.mkdir()
    write_idx(fashion / TRAIN_GZ, FASHION_TRAIN)
    write_idx(fashion / TEST_GZ, FASHION_TEST)
    monkeypatch.setenv("SNFNP_DATA_DIR", str(tmp_path))
    assert_tiny(load_dataset("mnist"))
    dataset = load_dataset("fashion-mnist")
    assert dataset.name == "fashion-mnist"
    np.testing.assert_array_equal(dataset.test, FASHION_TEST[..., None])


def test_damaged_cache(tiny: None, mnist_cache: Path) -> None:
    put_tiny(mnist_cache)
    (mnist_cache / TRAIN_GZ).write_bytes(b"")
    with pytest.raises(SnfnpError) as caught:
        load_dataset("mnist", report=no_announcement)
    assert_one_line(caught.value, mnist_cache / TRAIN_GZ, "empty", "delete it")


# The sample


def assert_is_the_sample(dataset: mnist.Dataset) -> None:
    assert dataset.is_sample
    assert dataset.source == "sample shipped with the package"
    assert dataset.train.shape == (5000, 28, 28, 1)
    assert dataset.validation.shape == (1000, 28, 28, 1)
    assert dataset.test.shape == (1000, 28, 28, 1)
    for images in (dataset.train, dataset.validation, dataset.test):
        assert images.dtype == np.uint8
        assert (images.min(), images.max()) == (0, 255)


def test_sample_is_announced_once(mnist_cache: Path) -> None:
    lines: list[str] = []
    assert_is_the_sample(load_dataset("mnist", report=lines.append))
    (line,) = lines
    assert "\n" not in line
    for part in ("WARNING", "sample", "5000", "no mirror", "127.0.0.1", "--data-dir"):
        assert part in line
    assert list(mnist_cache.iterdir()) == []


def test_sample_is_announced_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    load_dataset("mnist")
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("WARNING: NOT THE FULL MNIST")
    assert err.count("\n") == 1


def test_offline(
    tiny: Callable[..., None],
    mnist_cache: Path,
    make_mirror: Callable[[], Mirror],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mirror = make_mirror()
    mirror.serve_tiny()
    tiny(mirror)
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    lines: list[str] = []
    assert_is_the_sample(load_dataset("mnist", report=lines.append))
    assert len(lines) == 1
    assert "SNFNP_OFFLINE" in lines[0]
    assert mirror.requests == []
    assert not mnist_cache.exists()
    put_tiny(mnist_cache)
    assert_tiny(load_dataset("mnist", report=no_announcement))
    monkeypatch.setenv("SNFNP_OFFLINE", "0")
    (mnist_cache / TEST_GZ).unlink()
    assert_tiny(load_dataset("mnist", report=no_announcement))
    assert mirror.requests == [TEST_GZ]


@pytest.mark.parametrize("offline", [False, True])
def test_no_sample_of_fashion_mnist(offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if offline:
        monkeypatch.setenv("SNFNP_OFFLINE", "1")
    with pytest.raises(SnfnpError) as caught:
        load_dataset("fashion-mnist", report=no_announcement)
    assert type(caught.value) is SnfnpError
    mirrors = mnist.SPECS["fashion-mnist"].mirrors
    assert_one_line(caught.value, "Fashion-MNIST", "--data-dir", *mirrors)
    assert ("SNFNP_OFFLINE" in str(caught.value)) == offline


@needs_full_mnist
def test_full_mnist_and_the_sample_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    full = load_dataset("mnist", FULL_MNIST, report=no_announcement)
    assert not full.is_sample
    assert full.train.shape == (50_000, 28, 28, 1)
    assert full.validation.shape == (10_000, 28, 28, 1)
    assert full.test.shape == (10_000, 28, 28, 1)
    train_and_validation = np.concatenate([full.train, full.validation])[..., 0]
    assert mnist_digests(train_and_validation, full.test[..., 0]) == mnist.SPECS["mnist"].sha256
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    sample = load_dataset("mnist", report=lambda line: None)
    np.testing.assert_array_equal(sample.train, full.train[:5000])
    np.testing.assert_array_equal(sample.validation, full.validation[:1000])
    np.testing.assert_array_equal(sample.test, full.test[:1000])
