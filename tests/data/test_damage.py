"""Damaged files, in every format: each is one line that names the file, within a little memory."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.data_files import (
    FILES,
    TEST,
    TEST_GZ,
    TRAIN_GZ,
    assert_is,
    idx_bytes,
    put,
    refused,
)
from support.messages import assert_one_line

from snfnp.data import load_dataset, sets
from snfnp.errors import SnfnpError

GOOD = idx_bytes(TEST)
GOOD_GZ = gzip.compress(GOOD)
IDX = {
    "empty": (b"", "no published data set"),
    "text": (b"<html>404</html>", "no published data set"),
    "data cut": (GOOD[:-1], "no published data set"),
    "trailing byte": (GOOD + b"\0", "no published data set"),
    "gzip wrong CRC": (GOOD_GZ[:-8] + b"\0\0\0\0" + GOOD_GZ[-4:], "CRC"),
    "gzip and garbage": (GOOD_GZ + b"garbage", "gzip"),
    "gzip cut": (GOOD_GZ[:-10], "end-of-stream"),
    "data cut, then compressed": (gzip.compress(GOOD[:-1]), "no published data set"),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("content, problem", IDX.values(), ids=IDX.keys())
def test_an_idx_file(tmp_path: Path, content: bytes, problem: str) -> None:
    put(tmp_path, FILES["mnist"] | {TEST_GZ: content})
    message = refused("mnist", tmp_path, "replace it", problem)
    assert message.startswith(f"{tmp_path / TEST_GZ} cannot be read (")


@pytest.mark.usefixtures("small")
def test_any_damage_is_one_error_or_none(tmp_path: Path) -> None:
    """Cuts and changed bytes give SnfnpError or, if they do not matter, the images."""
    whole, refusals = gzip.compress(GOOD, mtime=0), 0
    contents = [whole[:end] for end in range(0, len(whole), 40)]
    for at in (*range(12), *range(12, len(whole), 40), *range(len(whole) - 8, len(whole))):
        contents += [whole[:at] + bytes([whole[at] ^ mask]) + whole[at + 1 :] for mask in (1, 0xFF)]
    for content in contents:
        put(tmp_path, FILES["mnist"] | {TEST_GZ: content})
        try:
            assert_is("mnist", load_dataset("mnist", tmp_path))
        except SnfnpError as error:
            assert_one_line(error, tmp_path / TEST_GZ)
            refusals += 1
    assert refusals >= len(contents) - 16


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("damage", [lambda whole: whole[:-3], lambda whole: whole + b"garbage"])
def test_an_archive(tmp_path: Path, damage) -> None:
    put(tmp_path, {sets.ARCHIVE: damage(FILES["cifar-10"][sets.ARCHIVE])})
    file = tmp_path / sets.ARCHIVE
    refused("cifar-10", tmp_path, f"{file} cannot be read (its MD5 is not that of the published")


# ---------------------------------------------------------------- more than may be held

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


BOMBS = {
    "IDX file": ("mnist", {TRAIN_GZ: ZEROS, TEST_GZ: b""}, "no published data set"),
    "archive": ("cifar-10", {sets.ARCHIVE: ZEROS}, "its MD5 is not that"),
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
            assert message.startswith(f"{folder / file} cannot be read (")
        put(cache / name, FILES[name] | {file: damaged})
        message = refused(name, None)
        assert ("delete it to have it downloaded" in message) == (name != "imagenet32")
        put(cache / name, FILES[name])
    load_dataset(name, report=lambda line: None)
