"""The IDX format: what is written is read back, and damage is one line."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from support.data_files import TEST, idx_bytes
from support.messages import assert_one_line

from snfnp.data.idx import read_idx, write_idx
from snfnp.errors import SnfnpError


@pytest.mark.parametrize("name", ["a.idx", "a.idx.gz"])
@pytest.mark.parametrize("shape", [(7,), (3, 28, 28), (2, 3, 4, 5), (0, 28, 28)])
def test_round_trip(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    write_idx(tmp_path / name, array)
    np.testing.assert_array_equal(read_idx(tmp_path / name, shape), array, strict=True)


def test_the_bytes_that_are_written(tmp_path: Path) -> None:
    write_idx(tmp_path / "plain", TEST)
    assert (tmp_path / "plain").read_bytes() == idx_bytes(TEST)
    write_idx(tmp_path / "one.gz", TEST)
    write_idx(tmp_path / "two.gz", np.asfortranarray(TEST))
    compressed = (tmp_path / "one.gz").read_bytes()
    assert compressed == (tmp_path / "two.gz").read_bytes()
    assert compressed[:8] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00"  # no name stored, time 0
    assert gzip.decompress(compressed) == idx_bytes(TEST)
    for array in (np.zeros((2, 2)), np.uint8(3)):
        with pytest.raises(ValueError, match="no IDX file holds"):
            write_idx(tmp_path / "a", array)
    assert not (tmp_path / "a").exists()


def test_gzip_is_told_by_content_and_not_by_name(tmp_path: Path) -> None:
    (tmp_path / "plain.gz").write_bytes(idx_bytes(TEST))
    (tmp_path / "compressed").write_bytes(gzip.compress(idx_bytes(TEST)))
    np.testing.assert_array_equal(read_idx(tmp_path / "plain.gz"), TEST)
    np.testing.assert_array_equal(read_idx(tmp_path / "compressed"), TEST)


GOOD = idx_bytes(TEST)
GOOD_GZ = gzip.compress(GOOD)
BAD_FILES = {
    "empty": (b"", "no IDX file"),
    "empty gzip member": (gzip.compress(b""), "no IDX file"),
    "short": (GOOD[:3], "no IDX file"),
    "text": (b"<html>404</html>", "starts with 3c 68 74 6d"),
    "other element type": (GOOD[:2] + b"\x0d" + GOOD[3:], "starts with 00 00 0d 03"),
    "no dimensions": (b"\0\0\x08\0", "starts with 00 00 08 00"),
    "255 dimensions": (b"\0\0\x08\xff" + b"\0\0\0\1" * 255, "starts with 00 00 08 ff"),
    "header cut": (GOOD[:10], "header is truncated (10 bytes)"),
    "data cut": (GOOD[:-1], "the data is truncated (2352 bytes expected)"),
    "no data": (GOOD[:16], "truncated"),
    "trailing byte": (GOOD + b"\0", "trailing"),
    "huge dimensions": (b"\0\0\x08\3" + b"\xff" * 12, "more than a file can hold"),
    "huge dimensions and a zero": (b"\0\0\x08\4" + b"\xff" * 12 + bytes(4), "more than a file"),
    "large dimensions": (b"\0\0\x08\1" + b"\xff" * 4, "truncated (4294967295 bytes"),
    "gzip cut": (GOOD_GZ[:-20], "gzip data is damaged"),
    "gzip header cut": (GOOD_GZ[:5], "gzip data is damaged"),
    "gzip trailer cut": (GOOD_GZ[:-1], "gzip data is damaged"),
    "gzip wrong CRC": (GOOD_GZ[:-8] + b"\0\0\0\0" + GOOD_GZ[-4:], "gzip data is damaged (CRC"),
    "gzip wrong method": (GOOD_GZ[:2] + b"\x07" + GOOD_GZ[3:], "gzip data is damaged"),
    "gzip wrong block": (GOOD_GZ[:10] + b"\xff" * 20 + GOOD_GZ[30:], "gzip data is damaged"),
    "gzip and garbage": (GOOD_GZ + b"garbage", "gzip data is damaged"),
    "data cut, then compressed": (gzip.compress(GOOD[:-1]), "the data is truncated"),
}


@pytest.mark.parametrize("content, problem", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "bad-images"
    path.write_bytes(content)
    with pytest.raises(SnfnpError) as caught:
        read_idx(path)
    assert_one_line(caught.value, "replace it")
    # The path holds this test's name, and so the case's: look for the problem after it.
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value).removeprefix(str(path))
    assert len(str(caught.value).removeprefix(str(path))) < 200


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(SnfnpError) as caught:
            read_idx(path)
        assert_one_line(caught.value, path, "cannot be read")


def test_any_damage_is_one_error_or_none(tmp_path: Path) -> None:
    """Every cut and every changed byte gives SnfnpError or, if it does not matter, the array."""
    path = tmp_path / "images.gz"
    small = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    whole = gzip.compress(idx_bytes(small), mtime=0)
    cuts = [whole[:end] for end in range(len(whole))]
    flips = [
        whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :]
        for at in range(len(whole))
        for mask in (0x01, 0x80, 0xFF)
    ]
    refused = 0
    for content in cuts + flips:
        path.write_bytes(content)
        try:
            back = read_idx(path)
        except SnfnpError as error:
            assert_one_line(error, path)
            refused += 1
        else:
            np.testing.assert_array_equal(back, small)
    assert refused >= len(cuts) + len(flips) // 2
