"""The IDX format, and the places that data sets are loaded from."""

import dataclasses
import gzip
import hashlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest
from fullmnist import find_full_mnist
from messages import assert_one_line, no_announcement

from snfnp.data import load_dataset, mnist
from snfnp.data.idx import read_idx, write_idx
from snfnp.errors import SnfnpError, UsageError

FULL_MNIST = find_full_mnist()
needs_full_mnist = pytest.mark.skipif(
    FULL_MNIST is None, reason="the full MNIST files are neither in SNFNP_DATA_DIR nor cached"
)

TRAIN_GZ = "train-images-idx3-ubyte.gz"
TEST_GZ = "t10k-images-idx3-ubyte.gz"
TRAIN_COUNT, VALIDATION_COUNT, TEST_COUNT = 5, 2, 3


def idx_bytes(array: np.ndarray) -> bytes:
    """Return an IDX file's bytes, built here and not by the code under test."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def random_images(count: int, seed: int, size: tuple[int, int] = (28, 28)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *size), dtype=np.uint8)


TRAIN = random_images(TRAIN_COUNT + VALIDATION_COUNT, seed=1)
TEST = random_images(TEST_COUNT, seed=2)
FASHION_TRAIN = random_images(TRAIN_COUNT + VALIDATION_COUNT, seed=3)
FASHION_TEST = random_images(TEST_COUNT, seed=4)


def put_tiny(folder: Path, train_name: str = TRAIN_GZ, test_name: str = TEST_GZ) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_idx(folder / train_name, TRAIN)
    write_idx(folder / test_name, TEST)
    return folder


def assert_tiny(dataset: mnist.Dataset) -> None:
    np.testing.assert_array_equal(dataset.train, TRAIN[:TRAIN_COUNT, ..., None])
    np.testing.assert_array_equal(dataset.validation, TRAIN[TRAIN_COUNT:, ..., None])
    np.testing.assert_array_equal(dataset.test, TEST[..., None])
    assert not dataset.is_sample


class Mirror:
    """An HTTP server on this machine; `files` maps names to bytes, `requests` logs what came."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cut_short = False
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.rsplit("/", 1)[-1]
                mirror.requests.append(name)
                body = mirror.files.get(name)
                if body is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if mirror.cut_short else body)

            def log_message(self, format: str, *args: object) -> None:
                """Keep the test's standard error clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/data/"
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self.thread.start()

    def serve_tiny(self) -> None:
        self.files[TRAIN_GZ] = gzip.compress(idx_bytes(TRAIN), 1)
        self.files[TEST_GZ] = gzip.compress(idx_bytes(TEST), 1)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def make_mirror() -> Iterator[Callable[[], Mirror]]:
    mirrors = []

    def make() -> Mirror:
        mirrors.append(Mirror())
        return mirrors[-1]

    yield make
    for mirror in mirrors:
        mirror.close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder of MNIST, which does not exist yet."""
    root = tmp_path / "cache"
    monkeypatch.setattr(pooch, "os_cache", lambda project: root / project)
    return root / "snfnp" / "mnist"


@pytest.fixture(autouse=True)
def isolated(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Keep every test off the user's cache and settings, and off the network."""
    for variable in ("SNFNP_DATA_DIR", "SNFNP_OFFLINE"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(variable, "127.0.0.1")
    # A port that is bound but does not listen refuses connections at once, and stays ours.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        for name, spec in mnist.SPECS.items():
            unreachable = dataclasses.replace(spec, mirrors=(url,))
            monkeypatch.setitem(mnist.SPECS, name, unreachable)
        yield


def digests(train: np.ndarray, test: np.ndarray) -> dict[str, str]:
    pairs = ((mnist.TRAIN_STEM, train), (mnist.TEST_STEM, test))
    return {stem: hashlib.sha256(idx_bytes(array)).hexdigest() for stem, array in pairs}


@pytest.fixture
def tiny(isolated: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace both data sets by tiny ones; the function that it gives sets MNIST's mirrors."""
    counts = {
        "train_count": TRAIN_COUNT,
        "validation_count": VALIDATION_COUNT,
        "test_count": TEST_COUNT,
    }
    for name, arrays in (
        ("mnist", (TRAIN, TEST)),
        ("fashion-mnist", (FASHION_TRAIN, FASHION_TEST)),
    ):
        spec = dataclasses.replace(mnist.SPECS[name], sha256=digests(*arrays), **counts)
        monkeypatch.setitem(mnist.SPECS, name, spec)

    def set_mirrors(*mirrors: Mirror) -> None:
        spec = dataclasses.replace(
            mnist.SPECS["mnist"], mirrors=tuple(mirror.url for mirror in mirrors)
        )
        monkeypatch.setitem(mnist.SPECS, "mnist", spec)

    return set_mirrors


# IDX files


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


# Folders that are given


def test_data_dir(tmp_path: Path, tiny: None) -> None:
    folder = put_tiny(tmp_path / "given")
    dataset = load_dataset("mnist", folder, announce=no_announcement)
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
    assert_tiny(load_dataset("mnist", str(folder), announce=no_announcement))


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
        load_dataset("mnist", tmp_path / "none", announce=no_announcement)
    assert_one_line(caught.value, tmp_path / "none", "does not exist")


def test_data_dir_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / TRAIN_GZ
    path.write_bytes(GOOD_GZ)
    with pytest.raises(UsageError) as caught:
        load_dataset("mnist", path)
    assert_one_line(caught.value, path, "is not a folder")


def test_data_dir_lacks_files(tmp_path: Path, tiny: None, cache: Path) -> None:
    put_tiny(cache)  # must not stand in for the folder that was given
    with pytest.raises(UsageError) as caught:
        load_dataset("mnist", tmp_path, announce=no_announcement)
    assert_one_line(caught.value, tmp_path, "train-images-idx3-ubyte", "t10k-images-idx3-ubyte")
    (tmp_path / "mnist").mkdir()
    write_idx(tmp_path / "mnist" / TRAIN_GZ, TRAIN)
    with pytest.raises(UsageError) as caught:
        load_dataset("mnist", tmp_path, announce=no_announcement)
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
    cache: Path,
    make_mirror: Callable[[], Mirror],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mirror = make_mirror()
    mirror.serve_tiny()
    tiny(mirror)
    given = put_tiny(tmp_path / "given")
    in_environment = put_tiny(tmp_path / "environment")
    put_tiny(cache)
    monkeypatch.setenv("SNFNP_DATA_DIR", str(in_environment))
    assert str(given) in load_dataset("mnist", given).source
    assert str(in_environment) in load_dataset("mnist").source
    monkeypatch.setenv("SNFNP_DATA_DIR", "")
    assert load_dataset("mnist").source == f"cache folder {cache}"
    assert mirror.requests == []
    (cache / TRAIN_GZ).unlink()
    (cache / TEST_GZ).unlink()
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


def test_damaged_cache(tiny: None, cache: Path) -> None:
    put_tiny(cache)
    (cache / TRAIN_GZ).write_bytes(b"")
    with pytest.raises(SnfnpError) as caught:
        load_dataset("mnist", announce=no_announcement)
    assert_one_line(caught.value, cache / TRAIN_GZ, "empty", "delete it")


# Downloads


def test_download_then_cache(
    tiny: Callable[..., None],
    cache: Path,
    make_mirror: Callable[[], Mirror],
    capfd: pytest.CaptureFixture[str],
) -> None:
    mirror = make_mirror()
    mirror.serve_tiny()
    tiny(mirror)
    assert_tiny(load_dataset("mnist", announce=no_announcement))
    assert sorted(path.name for path in cache.iterdir()) == [TEST_GZ, TRAIN_GZ]
    mirror.files.clear()
    assert_tiny(load_dataset("mnist", announce=no_announcement))
    assert mirror.requests == [TRAIN_GZ, TEST_GZ]
    assert capfd.readouterr() == ("", "")


def test_download_of_what_the_cache_lacks(
    tiny: Callable[..., None], cache: Path, make_mirror: Callable[[], Mirror]
) -> None:
    mirror = make_mirror()
    mirror.serve_tiny()
    tiny(mirror)
    put_tiny(cache)
    (cache / TEST_GZ).unlink()
    assert_tiny(load_dataset("mnist", announce=no_announcement))
    assert mirror.requests == [TEST_GZ]


def test_mirror_that_uncompresses(
    tiny: Callable[..., None], make_mirror: Callable[[], Mirror]
) -> None:
    mirror = make_mirror()
    mirror.files = {TRAIN_GZ: idx_bytes(TRAIN), TEST_GZ: idx_bytes(TEST)}
    tiny(mirror)
    assert_tiny(load_dataset("mnist", announce=no_announcement))


@pytest.mark.parametrize("fault", ["not found", "wrong images", "damaged", "web page", "cut short"])
def test_second_mirror(
    tiny: Callable[..., None], cache: Path, make_mirror: Callable[[], Mirror], fault: str
) -> None:
    bad, good = make_mirror(), make_mirror()
    good.serve_tiny()
    bad.serve_tiny()
    if fault == "not found":
        bad.files.clear()
    elif fault == "wrong images":
        bad.files[TRAIN_GZ] = gzip.compress(idx_bytes(TRAIN[::-1]))
    elif fault == "damaged":
        bad.files[TRAIN_GZ] = bad.files[TRAIN_GZ][:-100]
    elif fault == "web page":
        bad.files[TRAIN_GZ] = b"<html>please sign in</html>"
    else:
        bad.cut_short = True
    tiny(bad, good)
    dataset = load_dataset("mnist", announce=no_announcement)
    assert_tiny(dataset)
    assert TRAIN_GZ in bad.requests
    assert good.requests[0] == TRAIN_GZ
    assert good.url.split("/")[2] in dataset.source
    assert sorted(path.name for path in cache.iterdir()) == [TEST_GZ, TRAIN_GZ]


def test_unreachable_first_mirror(
    tiny: Callable[..., None],
    make_mirror: Callable[[], Mirror],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unreachable = mnist.SPECS["mnist"].mirrors
    good = make_mirror()
    good.serve_tiny()
    spec = dataclasses.replace(mnist.SPECS["mnist"], mirrors=(*unreachable, good.url))
    monkeypatch.setitem(mnist.SPECS, "mnist", spec)
    assert_tiny(load_dataset("mnist", announce=no_announcement))


@pytest.mark.parametrize("fault", ["cut short", "wrong images"])
def test_failed_download_leaves_no_file(
    tiny: Callable[..., None], cache: Path, make_mirror: Callable[[], Mirror], fault: str
) -> None:
    mirror = make_mirror()
    mirror.serve_tiny()
    if fault == "cut short":
        mirror.cut_short = True
    else:
        mirror.files[TRAIN_GZ] = mirror.files[TEST_GZ]
    tiny(mirror)
    lines: list[str] = []
    dataset = load_dataset("mnist", announce=lines.append)
    assert dataset.is_sample
    assert list(cache.iterdir()) == []
    assert len(lines) == 1
    assert ("wrong checksum" if fault == "wrong images" else "connection failed") in lines[0]


def test_interrupted_download_leaves_no_file(
    tiny: Callable[..., None], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: pooch.HTTPDownloader, url: str, output_file: str, pooch: None) -> None:
        Path(output_file).write_bytes(GOOD_GZ[:50])
        raise KeyboardInterrupt

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("mnist", announce=no_announcement)
    assert list(cache.iterdir()) == []


def test_cache_that_cannot_be_written(tiny: None, cache: Path) -> None:
    cache.parent.parent.mkdir(parents=True)
    cache.parent.write_bytes(b"a file where the cache folder should be")
    lines: list[str] = []
    assert load_dataset("mnist", announce=lines.append).is_sample
    assert len(lines) == 1
    assert f"{cache} cannot be written" in lines[0]


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


def test_sample_is_announced_once(cache: Path) -> None:
    lines: list[str] = []
    assert_is_the_sample(load_dataset("mnist", announce=lines.append))
    (line,) = lines
    assert "\n" not in line
    for part in ("WARNING", "sample", "5000", "no mirror", "127.0.0.1", "--data-dir"):
        assert part in line
    assert list(cache.iterdir()) == []


def test_sample_is_announced_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    load_dataset("mnist")
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith("WARNING: NOT THE FULL MNIST")
    assert err.count("\n") == 1


def test_offline(
    tiny: Callable[..., None],
    cache: Path,
    make_mirror: Callable[[], Mirror],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mirror = make_mirror()
    mirror.serve_tiny()
    tiny(mirror)
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    lines: list[str] = []
    assert_is_the_sample(load_dataset("mnist", announce=lines.append))
    assert len(lines) == 1
    assert "SNFNP_OFFLINE" in lines[0]
    assert mirror.requests == []
    assert not cache.exists()
    put_tiny(cache)
    assert_tiny(load_dataset("mnist", announce=no_announcement))
    monkeypatch.setenv("SNFNP_OFFLINE", "0")
    (cache / TEST_GZ).unlink()
    assert_tiny(load_dataset("mnist", announce=no_announcement))
    assert mirror.requests == [TEST_GZ]


@pytest.mark.parametrize("offline", [False, True])
def test_no_sample_of_fashion_mnist(offline: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if offline:
        monkeypatch.setenv("SNFNP_OFFLINE", "1")
    with pytest.raises(SnfnpError) as caught:
        load_dataset("fashion-mnist", announce=no_announcement)
    assert type(caught.value) is SnfnpError
    mirrors = mnist.SPECS["fashion-mnist"].mirrors
    assert_one_line(caught.value, "Fashion-MNIST", "--data-dir", *mirrors)
    assert ("SNFNP_OFFLINE" in str(caught.value)) == offline


@needs_full_mnist
def test_full_mnist_and_the_sample_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    full = load_dataset("mnist", FULL_MNIST, announce=no_announcement)
    assert not full.is_sample
    assert full.train.shape == (50_000, 28, 28, 1)
    assert full.validation.shape == (10_000, 28, 28, 1)
    assert full.test.shape == (10_000, 28, 28, 1)
    train_and_validation = np.concatenate([full.train, full.validation])[..., 0]
    assert digests(train_and_validation, full.test[..., 0]) == mnist.SPECS["mnist"].sha256
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    sample = load_dataset("mnist", announce=lambda line: None)
    np.testing.assert_array_equal(sample.train, full.train[:5000])
    np.testing.assert_array_equal(sample.validation, full.validation[:1000])
    np.testing.assert_array_equal(sample.test, full.test[:1000])
