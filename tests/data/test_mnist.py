"""MNIST and Fashion-MNIST: names of files, their content, and the sample."""

import gzip
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
    put,
    refused,
)
from support.fullmnist import find_full_mnist
from support.messages import no_announcement

from snfnp.data import Dataset, load_dataset

FULL_MNIST = find_full_mnist()
needs_full_mnist = pytest.mark.skipif(
    FULL_MNIST is None, reason="the full MNIST files are neither in SNFNP_DATA_DIR nor cached"
)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("end", ["-idx3-ubyte", "-idx3-ubyte.gz", ".idx3-ubyte", ".idx3-ubyte.gz"])
def test_names_of_files(tmp_path: Path, end: str) -> None:
    files = {f"train-images{end}": idx_bytes(TRAIN), f"t10k-images{end}": idx_bytes(TEST)}
    if not end.endswith(".gz"):  # the content tells what is compressed, and not the name
        files = {name: gzip.compress(content) for name, content in files.items()}
    put(tmp_path, files)
    assert_is("mnist", load_dataset("mnist", tmp_path, report=no_announcement))


@pytest.mark.usefixtures("small")
def test_another_data_set_under_the_same_names(tmp_path: Path) -> None:
    put(tmp_path, FILES["mnist"])
    file = tmp_path / TRAIN_GZ
    refused("fashion-mnist", tmp_path, f"{file} cannot be read (it is a file of MNIST, not Fashion")
    put(tmp_path, {TRAIN_GZ: idx_bytes(FASHION[TRAIN_GZ])})
    refused("fashion-mnist", tmp_path, tmp_path / TEST_GZ, "it is a file of MNIST")
    put(tmp_path, {TEST_GZ: idx_bytes(TEST[::-1])})
    refused("fashion-mnist", tmp_path, tmp_path / TEST_GZ, "it is a file of no published data set")


# ---------------------------------------------------------------- the sample


def assert_is_the_sample(dataset: Dataset) -> None:
    assert dataset.is_sample and dataset.name == "mnist"
    assert dataset.source == "sample shipped with the package"
    for split, count in (("train", 5000), ("validation", 1000), ("test", 1000)):
        images = getattr(dataset, split)
        assert images.shape == (count, 28, 28, 1) and images.dtype == np.uint8
        assert (images.min(), images.max()) == (0, 255)


@pytest.mark.parametrize("fault", ["no mirror", "offline", "a file in the way"])
def test_the_sample_is_announced_once(fault: str, cache: Path, monkeypatch) -> None:
    reason = ["no mirror", "127.0.0.1"]
    if fault == "offline":
        monkeypatch.setenv("SNFNP_OFFLINE", "1")
        reason = ["SNFNP_OFFLINE"]
    if fault == "a file in the way":
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
    assert list(map(len, (full.train, full.validation, full.test))) == [50_000, 10_000, 10_000]
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    sample = load_dataset("mnist", report=lambda line: None)
    np.testing.assert_array_equal(sample.train, full.train[:5000])
    np.testing.assert_array_equal(sample.validation, full.validation[:1000])
    np.testing.assert_array_equal(sample.test, full.test[:1000])
