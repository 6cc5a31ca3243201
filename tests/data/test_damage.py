"""Damaged files, in every format: each is one line that names the file, within a little memory."""

import gzip
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from support.data_files import (
    CIFAR,
    FILES,
    TEST,
    TEST_GZ,
    TRAIN_GZ,
    cifar_members,
    idx_bytes,
    put,
    random_images,
    records,
    refused,
    tar_bytes,
)
from support.messages import assert_one_line, one_line

from snfnp.data import cifar, load_dataset
from snfnp.data.reading import read_idx
from snfnp.errors import SnfnpError

GOOD = idx_bytes(TEST)
GOOD_GZ = gzip.compress(GOOD)
IDX = {
    "empty": (b"", "starts with nothing"),
    "text": (b"<html>404</html>", "starts with 3c 68 74 6d"),
    "other element type": (GOOD[:2] + b"\x0d" + GOOD[3:], "starts with 00 00 0d 03"),
    "header cut": (GOOD[:10], "starts with 00 00 08 03 00 00 00 03 00 00;"),
    "data cut": (GOOD[:-1], "no IDX file of 3 x 28 x 28 unsigned bytes: they are truncated"),
    "trailing byte": (GOOD + b"\0", "trailing"),
    "larger images": (idx_bytes(random_images(3, 0, (32, 32))), "00 00 00 20 00 00 00 20"),
    "huge dimensions": (b"\0\0\x08\3" + b"\xff" * 12, "starts with 00 00 08 03 ff ff"),
    "gzip wrong CRC": (GOOD_GZ[:-8] + b"\0\0\0\0" + GOOD_GZ[-4:], "gzip data is damaged (CRC"),
    "gzip and garbage": (GOOD_GZ + b"garbage", "gzip data is damaged"),
    "data cut, then compressed": (gzip.compress(GOOD[:-1]), "truncated"),
}


@pytest.mark.parametrize("content, problem", IDX.values(), ids=IDX.keys())
def test_an_idx_file(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "bad-images"
    path.write_bytes(content)
    with pytest.raises(SnfnpError) as caught:
        read_idx(path, TEST.shape)
    start, _, rest = str(caught.value).partition(": ")
    assert start == str(path) and problem in rest and len(rest) < 200
    assert_one_line(caught.value, "replace it")


def test_what_is_no_file(tmp_path: Path) -> None:
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "pipe"):
        with one_line(SnfnpError, path, "cannot be read"):
            read_idx(path, TEST.shape)


def test_any_damage_is_one_error_or_none(tmp_path: Path) -> None:
    """Every cut and every changed byte gives SnfnpError or, if it does not matter, the array."""
    path, small = tmp_path / "images.gz", np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    whole = gzip.compress(idx_bytes(small), mtime=0)
    contents = [whole[:end] for end in range(len(whole))]
    for at, mask in np.ndindex(len(whole), 3):
        flipped = whole[at] ^ (0x01, 0x80, 0xFF)[mask]
        contents.append(whole[:at] + bytes([flipped]) + whole[at + 1 :])
    refusals = 0
    for content in contents:
        path.write_bytes(content)
        try:
            np.testing.assert_array_equal(read_idx(path, small.shape), small)
        except SnfnpError as error:
            assert_one_line(error, path)
            refusals += 1
    assert refusals >= len(whole) * 5 // 2


# ---------------------------------------------------------------- CIFAR-10

BATCHES = {
    "records cut": (records(CIFAR[0])[:-1], "has 12291 bytes, not 4 records of 3073"),
    "no records": (b"", "has 0 bytes"),
    "one byte more": (records(CIFAR[0]) + b"\0", "has more than 12292 bytes"),
    "label": (b"\x0a" + records(CIFAR[0])[1:], "has a label 10"),
    "missing": (None, ""),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("content, problem", BATCHES.values(), ids=BATCHES.keys())
def test_a_batch(tmp_path: Path, content: bytes | None, problem: str) -> None:
    batch = cifar.BATCHES[1]
    members = cifar_members() | {f"{cifar.FOLDER}/{batch}": content}
    members = {name: content for name, content in members.items() if content is not None}
    put(tmp_path / "packed", {cifar.ARCHIVE: tar_bytes(members, compressed=True)})
    put(tmp_path / "unpacked", members)
    for path in (tmp_path / "packed" / cifar.ARCHIVE, tmp_path / "unpacked" / cifar.FOLDER):
        text = f"{batch} {problem}" if content is not None else f"lacks {batch};"
        refused("cifar-10", path.parent, f"{path}: {text}", "fresh copy")


def archives() -> dict[str, tuple[bytes, str]]:
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


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("case", archives())
def test_an_archive(tmp_path: Path, case: str) -> None:
    content, problem = archives()[case]
    put(tmp_path, {cifar.ARCHIVE: content})
    assert refused("cifar-10", tmp_path, "fresh copy", problem).startswith(
        f"{tmp_path / cifar.ARCHIVE}: "
    )


# ---------------------------------------------------------------- more than may be held

GIB = 1 << 30
SCRIPT = """
import resource, sys
from snfnp.data import load_dataset
from snfnp.errors import SnfnpError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
try:
    load_dataset(sys.argv[1], sys.argv[2], report=lambda line: None)
except SnfnpError as error:
    print(error)
"""


ZEROS = gzip.compress(bytes(64 << 20), 9) * 96  # 6 GiB, in members of 64 MiB


def sparse_tar(name: str, size: int) -> bytes:
    """An archive with one GNU sparse member of that size, none of which is in the file."""
    member = tarfile.TarInfo(name)
    member.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[386:398] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)  # where a hole of no bytes begins
    header[398:410] = tarfile.itn(0, 12, tarfile.GNU_FORMAT)
    header[483:495] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(1024)


def long_tar(name: str, kind: bytes = tarfile.REGTYPE) -> dict[str, bytes]:
    """CIFAR-10 as an archive with one member of 6 GiB of zero bytes."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, 6 * GIB
    header = gzip.compress(member.tobuf(tarfile.GNU_FORMAT))
    return {cifar.ARCHIVE: header + ZEROS}


BATCH, LONG = f"{cifar.FOLDER}/{cifar.BATCHES[0]}", "a header of 6442450944 bytes"
BOMBS = {
    "IDX file": ("mnist", {TRAIN_GZ: ZEROS, TEST_GZ: b""}, "no IDX file"),
    "batch": ("cifar-10", long_tar(BATCH), "more than"),
    "sparse batch": ("cifar-10", {cifar.ARCHIVE: sparse_tar(BATCH, 10 << 40)}, "more than"),
    "name": ("cifar-10", long_tar("././@LongLink", tarfile.GNUTYPE_LONGNAME), LONG),
    "extended headers": ("cifar-10", long_tar("x", tarfile.XHDTYPE), LONG),
}


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
@pytest.mark.parametrize("name, files, problem", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb(tmp_path: Path, name: str, files: dict, problem: str) -> None:
    put(tmp_path, files)
    command = [sys.executable, "-c", SCRIPT, name, str(tmp_path)]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1 and problem in done.stdout


@pytest.mark.parametrize("name", FILES)
def test_every_file_of_every_set(name: str, tmp_path: Path, cache: Path, small) -> None:
    for file, content in FILES[name].items():
        for damaged in (b"", b"<html>404</html>" * 100, content[: len(content) // 2]):
            folder = put(tmp_path / "given", FILES[name] | {file: damaged})
            message = refused(name, folder, "replace it with a fresh copy")
            assert message.startswith(f"{folder / file}: ")
        put(cache / name, FILES[name] | {file: damaged})
        message = refused(name, None)
        assert ("delete it to have it downloaded" in message) == (name != "imagenet32")
        put(cache / name, FILES[name])
    load_dataset(name, report=lambda line: None)
