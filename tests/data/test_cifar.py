"""CIFAR-10, from small files in its format."""

import gzip
import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from support.data_files import colour_images, planes, put, serve, tar_bytes
from support.messages import assert_one_line, no_announcement

from snfnp.data import Dataset, cifar, load_dataset
from snfnp.errors import SnfnpError, UsageError

COUNT = 4  # images in a batch of the small CIFAR-10
CIFAR = [colour_images(COUNT, seed) for seed in range(6)]  # five training batches, the test batch
ADDRESS = cifar.MIRRORS[0] + cifar.ARCHIVE
# The real counts, which the tests replace by small ones.
PUBLISHED_BATCH, PUBLISHED_VALIDATION = cifar.BATCH_COUNT, cifar.VALIDATION_COUNT


def records(images: np.ndarray) -> bytes:
    labels = np.arange(len(images), dtype=np.uint8)[:, None] % 10
    return np.hstack([labels, planes(images)]).tobytes()


def cifar_members() -> dict[str, bytes]:
    batches = zip(cifar.BATCHES, map(records, CIFAR), strict=True)
    members = {f"{cifar.FOLDER}/{name}": content for name, content in batches}
    return members | {f"{cifar.FOLDER}/readme.html": b"<html>"}


@pytest.fixture(autouse=True)
def no_network(isolated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, {})


@pytest.fixture
def small_cifar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar, "BATCH_COUNT", COUNT)
    monkeypatch.setattr(cifar, "VALIDATION_COUNT", COUNT)


def assert_is_cifar(dataset: Dataset) -> None:
    np.testing.assert_array_equal(dataset.train, np.concatenate(CIFAR[:4]), strict=True)
    np.testing.assert_array_equal(dataset.validation, CIFAR[4], strict=True)
    np.testing.assert_array_equal(dataset.test, CIFAR[5], strict=True)
    assert dataset.name == "cifar-10"
    assert not dataset.is_sample
    for images in (dataset.train, dataset.validation, dataset.test):
        assert not images.flags.writeable


def test_published_splits() -> None:
    """Appendix A.3: 40,000 images of CIFAR-10 for training."""
    *train, test = cifar.BATCHES
    assert len(train) * PUBLISHED_BATCH - PUBLISHED_VALIDATION == 40_000
    assert [*train, test] == [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


@pytest.mark.parametrize("subfolder", ["", "cifar-10"])
def test_archive(tmp_path: Path, small_cifar: None, subfolder: str) -> None:
    archive = tar_bytes(cifar_members(), compressed=True)
    put(tmp_path / "given" / subfolder, {cifar.ARCHIVE: archive})
    dataset = load_dataset("cifar-10", tmp_path / "given", report=no_announcement)
    assert_is_cifar(dataset)
    assert str(tmp_path / "given" / subfolder) in dataset.source
    assert cifar.ARCHIVE in dataset.source


def test_unpacked(tmp_path: Path, small_cifar: None, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, cifar_members())
    assert_is_cifar(load_dataset("cifar-10", tmp_path))
    assert_is_cifar(load_dataset("cifar-10", tmp_path / cifar.FOLDER))
    monkeypatch.setenv("SNFNP_DATA_DIR", str(tmp_path))
    assert_is_cifar(load_dataset("cifar-10"))


def test_it_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError) as caught:
        load_dataset("cifar-10", tmp_path)
    assert_one_line(caught.value, tmp_path, cifar.ARCHIVE, cifar.FOLDER)
    with pytest.raises(UsageError) as caught:
        load_dataset("cifar-10", tmp_path / "none")
    assert_one_line(caught.value, "does not exist")
    with pytest.raises(SnfnpError) as caught:
        load_dataset("cifar-10")
    assert_one_line(
        caught.value, "connection failed", cifar.ARCHIVE, "www.cs.toronto.edu", "--data-dir"
    )
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    with pytest.raises(SnfnpError) as caught:
        load_dataset("cifar-10")
    assert_one_line(caught.value, "SNFNP_OFFLINE", "www.cs.toronto.edu", "--data-dir")


@pytest.mark.parametrize(
    "name",
    ["cifar-10-python.tar.gz", "cifar-10-batches-py/data_batch_1", "data_batch_1"],
)
@pytest.mark.parametrize("subfolder", ["", "cifar-10"])
def test_the_python_version_is_named_and_not_read(tmp_path: Path, name: str, subfolder: str):
    put(tmp_path / subfolder, {name: b"\x80\x02}."})
    with pytest.raises(UsageError) as caught:
        load_dataset("cifar-10", tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / subfolder}: ")
    assert_one_line(caught.value, "python version", "is not read", ADDRESS.rpartition("/")[0])
    assert_one_line(caught.value, cifar.ARCHIVE)


def test_the_binary_version_beside_the_python_version_is_read(
    tmp_path: Path, small_cifar: None
) -> None:
    put(tmp_path, {"cifar-10/cifar-10-python.tar.gz": b""} | cifar_members())
    assert_is_cifar(load_dataset("cifar-10", tmp_path))


@pytest.fixture
def published(small_cifar: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The small archive by address, with its checksum in place of the published one."""
    archive = tar_bytes(cifar_members(), compressed=True)
    monkeypatch.setattr(cifar, "ARCHIVE_MD5", hashlib.md5(archive).hexdigest())
    return {ADDRESS: archive}


def test_download_then_cache(
    cache: Path, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = serve(monkeypatch, published)
    put(cache / "cifar-10", {"cifar-10-python.tar.gz": b"what an older snfnp downloaded"})
    first = load_dataset("cifar-10", report=no_announcement)
    assert_is_cifar(first)
    assert "www.cs.toronto.edu" in first.source
    second = load_dataset("cifar-10", report=no_announcement)
    assert_is_cifar(second)
    assert second.source == f"cache folder {cache / 'cifar-10'}, {cifar.ARCHIVE}"
    assert asked == [ADDRESS]
    (cache / "cifar-10" / cifar.ARCHIVE).write_bytes(b"")
    with pytest.raises(SnfnpError) as caught:
        load_dataset("cifar-10")
    assert_one_line(caught.value, cifar.ARCHIVE, "delete it")


@pytest.mark.parametrize("fault", ["web page", "one byte more, which gzip would not mind"])
def test_wrong_checksum(
    cache: Path, published: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    page = b"<html>please sign in</html>"
    serve(monkeypatch, {ADDRESS: page if fault == "web page" else published[ADDRESS] + b"\0"})
    with pytest.raises(SnfnpError) as caught:
        load_dataset("cifar-10")
    assert_one_line(caught.value, "wrong checksum", "--data-dir")
    assert os.listdir(cache / "cifar-10") == []


def test_missing_batch(tmp_path: Path, small_cifar: None) -> None:
    members = cifar_members()
    missing = cifar.BATCHES[2]
    del members[f"{cifar.FOLDER}/{missing}"]
    put(tmp_path / "unpacked", members)
    put(tmp_path / "packed", {cifar.ARCHIVE: tar_bytes(members, compressed=True)})
    for folder in ("unpacked", "packed"):
        with pytest.raises(SnfnpError) as caught:
            load_dataset("cifar-10", tmp_path / folder)
        assert_one_line(caught.value, tmp_path / folder, f"lacks {missing};")


BAD_BATCHES = {
    "records cut": (records(CIFAR[0])[:-1], "not whole records of 3073"),
    "records missing": (records(CIFAR[0][:-1]), "holds 3 images, not 4"),
    "no records": (b"", "holds 0 images, not 4"),
    "one record more": (records(CIFAR[0]) + records(CIFAR[0][:1]), "holds 5 images, not 4"),
    "label": (b"\x0a" + records(CIFAR[0])[1:], "label 10"),
    "text": (b"<html>", "not whole records of 3073"),
}


@pytest.mark.parametrize("content, problem", BAD_BATCHES.values(), ids=BAD_BATCHES.keys())
def test_bad_batch(tmp_path: Path, small_cifar: None, content: bytes, problem: str) -> None:
    members = cifar_members()
    batch = cifar.BATCHES[1]
    members[f"{cifar.FOLDER}/{batch}"] = content
    put(tmp_path, {cifar.ARCHIVE: tar_bytes(members, compressed=True)})
    with pytest.raises(SnfnpError) as caught:
        load_dataset("cifar-10", tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / cifar.ARCHIVE}: {batch} ")
    assert_one_line(caught.value, "fresh copy")
    assert problem in str(caught.value).removeprefix(str(tmp_path))


def damage_archives() -> dict[str, tuple[bytes, str]]:
    whole = tar_bytes(cifar_members(), compressed=True)
    plain = gzip.decompress(whole)
    return {
        "empty": (b"", "damaged"),
        "text": (b"<html>404</html>" * 100, "damaged"),
        "cut": (whole[: len(whole) // 2], "damaged"),
        "cut in the trailer": (whole[:-3], "damaged"),
        "wrong CRC": (whole[:-8] + b"\0\0\0\0" + whole[-4:], "CRC"),
        "garbage after": (whole + b"garbage", "damaged"),
        "not a tar inside": (gzip.compress(b"x" * 2000), "damaged"),
        "tar cut, then compressed": (gzip.compress(plain[:20_000], 1), "damaged"),
        "one header": (gzip.compress(plain[:512] + bytes(1024), 1), "lacks data_batch_1.bin"),
    }


@pytest.mark.parametrize("case", damage_archives())
def test_damaged_archive(tmp_path: Path, small_cifar: None, case: str) -> None:
    content, problem = damage_archives()[case]
    put(tmp_path, {cifar.ARCHIVE: content})
    with pytest.raises(SnfnpError) as caught:
        load_dataset("cifar-10", tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / cifar.ARCHIVE}: ")
    assert_one_line(caught.value, "fresh copy", problem)


def test_archive_that_is_not_compressed(tmp_path: Path, small_cifar: None) -> None:
    put(tmp_path, {cifar.ARCHIVE: tar_bytes(cifar_members(), compressed=False)})
    assert_is_cifar(load_dataset("cifar-10", tmp_path))
