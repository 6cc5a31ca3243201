"""Files that want more memory than what they may hold: each is one line, within a small limit."""

import gzip
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from support.data_files import FILES, put

from snfnp.data import cifar
from snfnp.data.idx import read_idx
from snfnp.errors import SnfnpError

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


def repeated_zeros(count: int) -> bytes:
    """gzip data of `count` zero bytes, in as many members of 64 MiB as that takes."""
    return gzip.compress(bytes(64 << 20), 9) * (count >> 26)


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


def long_tar(name: str, count: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """gzip data of an archive with one member of `count` zero bytes."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, count
    return gzip.compress(member.tobuf(tarfile.GNU_FORMAT)) + repeated_zeros(count)


BATCH = f"{cifar.FOLDER}/{cifar.BATCHES[0]}"
BOMBS = {
    "an IDX file of 6 GiB": (
        "mnist",
        {name: repeated_zeros(6 * GIB) if "train" in name else b"" for name in FILES["mnist"]},
        "no IDX file",
    ),
    "a batch of 6 GiB": ("cifar-10", {cifar.ARCHIVE: long_tar(BATCH, 6 * GIB)}, "more than"),
    "a sparse batch": ("cifar-10", {cifar.ARCHIVE: sparse_tar(BATCH, 10 << 40)}, "more than"),
    "a sparse PNG": (
        "imagenet32",
        {"train_32x32.tar": sparse_tar("0.png", 8 << 30), "valid_32x32.tar": b""},
        "0.png is damaged or no PNG",
    ),
    "a name of 6 GiB": (
        "cifar-10",
        {cifar.ARCHIVE: long_tar("././@LongLink", 6 * GIB, tarfile.GNUTYPE_LONGNAME)},
        "a header of 6442450944 bytes",
    ),
    "extended headers of 6 GiB": (
        "cifar-10",
        {cifar.ARCHIVE: long_tar("x", 6 * GIB, tarfile.XHDTYPE)},
        "a header of 6442450944 bytes",
    ),
}


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
@pytest.mark.parametrize("name, files, problem", BOMBS.values(), ids=BOMBS.keys())
def test_a_bomb_is_one_line(tmp_path: Path, name: str, files: dict, problem: str) -> None:
    put(tmp_path, files)
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, name, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1 and problem in done.stdout


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no FIFOs")
def test_a_fifo_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "images")
    with pytest.raises(SnfnpError, match="cannot be read"):
        read_idx(tmp_path / "images")
