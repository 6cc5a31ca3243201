"""The IDX format: what is written is read back, and damage is one line."""

import gzip
from pathlib import Path

import numpy as np
import pytest
from support.data_files import (
    TEST,
    idx_bytes,
)
from support.messages import assert_one_line

from snfnp.data.idx import read_idx, write_idx
from snfnp.errors import SnfnpError


@pytest.mark.parametrize("name", ["a.idx", "a.idx.gz"])
@pytest.mark.parametrize("shape", [(7,), (3, 28, 28), (2, 3, 4, 5), (0, 28, 28)])
def test_idx_round_trip(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    write_idx(tmp_path / name, array)
    back = read_idx(tmp_path / name)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, array, strict=True)


def test_write_idx_bytes(tmp_path: Path) -> None:
    write_idx(tmp_path / "plain", TEST)
    assert (tmp_path / "plain").read_bytes() == idx_bytes(TEST)
    write_idx(tmp_path / "one.gz", TEST)
    write_idx(tmp_path / "two.gz", np.asfortranarray(TEST))
    compressed = (tmp_path / "one.gz").read_bytes()
    assert compressed == (tmp_path / "two.gz").read_bytes()
    assert compressed[:8] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00"  # no name stored, time 0
    assert gzip.decompress(compressed) == idx_bytes(TEST)


def test_gzip_is_told_by_content_and_not_by_name(tmp_path: Path) -> None:
    (tmp_path / "plain.gz").write_bytes(idx_bytes(TEST))
    (tmp_path / "compressed").write_bytes(gzip.compress(idx_bytes(TEST)))
    np.testing.assert_array_equal(read_idx(tmp_path / "plain.gz"), TEST)
    np.testing.assert_array_equal(read_idx(tmp_path / "compressed"), TEST)


def test_write_idx_refuses_other_arrays(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="float64"):
        write_idx(tmp_path / "a", np.zeros((2, 2)))
    with pytest.raises(ValueError, match="not 0"):
        write_idx(tmp_path / "a", np.uint8(3))
    assert not (tmp_path / "a").exists()


GOOD = idx_bytes(TEST)
GOOD_GZ = gzip.compress(GOOD)
BAD_FILES = {
    "empty": (b"", "empty"),
    "empty gzip member": (gzip.compress(b""), "0 bytes"),
    "short": (GOOD[:3], "too short"),
    "text": (b"<html>404</html>", "not an IDX file"),
    "other element type": (GOOD[:2] + b"\x0d" + GOOD[3:], "0x0d"),
    "no dimensions": (b"\0\0\x08\0", "no dimensions"),
    "header cut": (GOOD[:10], "header is truncated"),
    "data cut": (GOOD[:-1], "truncated"),
    "no data": (GOOD[:16], "truncated"),
    "trailing byte": (GOOD + b"\0", "trailing"),
    "huge dimensions": (b"\0\0\x08\3" + b"\xff" * 12, "truncated"),
    "nothing but dimensions": (b"\0\0\x08\xff" + b"\xff" * 1020, "more than a file can hold"),
    "255 dimensions": (b"\0\0\x08\xff" + b"\0\0\0\1" * 255, "expected for 255 dimensions"),
    "too many dimensions": (b"\0\0\x08\x41" + b"\0\0\0\1" * 65 + b"x", "impossible shape"),
    "huge dimensions and a zero": (b"\0\0\x08\4" + b"\xff" * 12 + bytes(4), "impossible shape"),
    "gzip cut": (GOOD_GZ[:-20], "gzip data is truncated"),
    "gzip header cut": (GOOD_GZ[:5], "gzip data is truncated"),
    "gzip trailer cut": (GOOD_GZ[:-1], "gzip data is truncated"),
    "gzip wrong CRC": (GOOD_GZ[:-8] + b"\0\0\0\0" + GOOD_GZ[-4:], "gzip data is corrupt"),
    "gzip wrong method": (GOOD_GZ[:2] + b"\x07" + GOOD_GZ[3:], "gzip data is corrupt"),
    "gzip wrong block": (GOOD_GZ[:10] + b"\xff" * 20 + GOOD_GZ[30:], "gzip data is corrupt"),
    "gzip and garbage": (GOOD_GZ + b"garbage", "gzip data is corrupt"),
    "data cut, then compressed": (gzip.compress(GOOD[:-1]), "data is truncated"),
}


@pytest.mark.parametrize("content, problem", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_bad_idx_file(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "bad-images"
    path.write_bytes(content)
    with pytest.raises(SnfnpError) as caught:
        read_idx(path)
    assert type(caught.value) is SnfnpError
    assert_one_line(caught.value, "replace it")
    # The path holds this test's name, and so the case's: look for the problem after it.
    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value).removeprefix(str(path))
    assert len(str(caught.value).removeprefix(str(path))) < 200


def test_missing_idx_file(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(SnfnpError) as caught:
            read_idx(path)
        assert_one_line(caught.value, path, "cannot be read")


def test_any_damage_is_one_error_or_none(tmp_path: Path) -> None:
    """Every cut and every changed byte gives SnfnpError or, where it does not matter, TEST."""
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
