"""CIFAR-10: its archive, its batches, and their damage."""

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from support.data_files import CIFAR, FILES, assert_is, cifar_members, put, records, tar_bytes
from support.messages import assert_one_line, no_announcement

from snfnp.data import cifar, load_dataset
from snfnp.errors import SnfnpError

# The real counts, which the tests replace by small ones.
PUBLISHED_BATCH, PUBLISHED_VALIDATION = cifar.BATCH_COUNT, cifar.VALIDATION_COUNT


def test_published_splits() -> None:
    """Appendix A.3: 40,000 images of CIFAR-10 for training."""
    *train, test = cifar.BATCHES
    assert len(train) * PUBLISHED_BATCH - PUBLISHED_VALIDATION == 40_000
    assert [*train, test] == [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


def test_unpacked_and_uncompressed(tmp_path: Path, small: Callable) -> None:
    put(tmp_path / "unpacked", cifar_members())
    put(tmp_path / "plain", {cifar.ARCHIVE: tar_bytes(cifar_members(), compressed=False)})
    for folder in ("unpacked", f"unpacked/{cifar.FOLDER}", "plain"):
        assert_is("cifar-10", load_dataset("cifar-10", tmp_path / folder, report=no_announcement))


def test_a_missing_batch(tmp_path: Path, small: Callable) -> None:
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
    "records cut": (records(CIFAR[0])[:-1], "12291 bytes, not those of 4 records of 3073"),
    "records missing": (records(CIFAR[0][:-1]), "9219 bytes"),
    "no records": (b"", "0 bytes"),
    "one byte more": (records(CIFAR[0]) + b"\0", "more than 12292 bytes"),
    "label": (b"\x0a" + records(CIFAR[0])[1:], "label 10"),
    "text": (b"<html>", "6 bytes"),
}


@pytest.mark.parametrize("content, problem", BAD_BATCHES.values(), ids=BAD_BATCHES.keys())
def test_a_bad_batch(tmp_path: Path, small: Callable, content: bytes, problem: str) -> None:
    batch = cifar.BATCHES[1]
    members = cifar_members() | {f"{cifar.FOLDER}/{batch}": content}
    put(tmp_path / "packed", {cifar.ARCHIVE: tar_bytes(members, compressed=True)})
    put(tmp_path / "unpacked", members)
    for path in (tmp_path / "packed" / cifar.ARCHIVE, tmp_path / "unpacked" / cifar.FOLDER):
        with pytest.raises(SnfnpError) as caught:
            load_dataset("cifar-10", path.parent)
        assert str(caught.value).startswith(f"{path}: {batch} has ")
        assert_one_line(caught.value, "fresh copy")
        assert problem in str(caught.value).removeprefix(str(path))


def damaged_archives() -> dict[str, tuple[bytes, str]]:
    whole = FILES["cifar-10"][cifar.ARCHIVE]
    plain = gzip.decompress(whole)
    return {
        "cut in the trailer": (whole[:-3], "damaged"),
        "wrong CRC": (whole[:-8] + b"\0\0\0\0" + whole[-4:], "CRC"),
        "garbage after": (whole + b"garbage", "damaged"),
        "not a tar inside": (gzip.compress(b"x" * 2000), "damaged"),
        "tar cut, then compressed": (gzip.compress(plain[:20_000], 1), "damaged"),
        "one header": (gzip.compress(plain[:512] + bytes(1024), 1), "lacks data_batch_1.bin"),
    }


@pytest.mark.parametrize("case", damaged_archives())
def test_a_damaged_archive(tmp_path: Path, small: Callable, case: str) -> None:
    content, problem = damaged_archives()[case]
    put(tmp_path, {cifar.ARCHIVE: content})
    with pytest.raises(SnfnpError) as caught:
        load_dataset("cifar-10", tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / cifar.ARCHIVE}: ")
    assert_one_line(caught.value, "fresh copy", problem)
