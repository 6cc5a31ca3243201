"""Small data files in the published formats, and places that give them."""

import gzip
import hashlib
import io
import struct
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pooch
import pytest
import requests

from snfnp.data import Dataset, mnist
from snfnp.data.idx import write_idx

TRAIN_GZ = "train-images-idx3-ubyte.gz"
TEST_GZ = "t10k-images-idx3-ubyte.gz"
TRAIN_COUNT, VALIDATION_COUNT, TEST_COUNT = 5, 2, 3


def idx_bytes(array: np.ndarray) -> bytes:
    """Return an IDX file's bytes, built here and not by the code under test."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def random_images(count: int, seed: int, size: tuple[int, int] = (28, 28)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *size), dtype=np.uint8)


def colour_images(count: int, seed: int) -> np.ndarray:
    return random_images(count, seed, size=(32, 32, 3))


# Tiny MNIST and Fashion-MNIST.
TRAIN = random_images(TRAIN_COUNT + VALIDATION_COUNT, seed=1)
TEST = random_images(TEST_COUNT, seed=2)
FASHION_TRAIN = random_images(TRAIN_COUNT + VALIDATION_COUNT, seed=3)
FASHION_TEST = random_images(TEST_COUNT, seed=4)


def put_tiny(folder: Path, train_name: str = TRAIN_GZ, test_name: str = TEST_GZ) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_idx(folder / train_name, TRAIN)
    write_idx(folder / test_name, TEST)
    return folder


def assert_tiny(dataset: Dataset) -> None:
    np.testing.assert_array_equal(dataset.train, TRAIN[:TRAIN_COUNT, ..., None])
    np.testing.assert_array_equal(dataset.validation, TRAIN[TRAIN_COUNT:, ..., None])
    np.testing.assert_array_equal(dataset.test, TEST[..., None])
    assert not dataset.is_sample


def mnist_digests(train: np.ndarray, test: np.ndarray) -> dict[str, str]:
    """SHA-256 of the IDX files of two arrays, by stem."""
    pairs = ((mnist.TRAIN_STEM, train), (mnist.TEST_STEM, test))
    return {stem: hashlib.sha256(idx_bytes(array)).hexdigest() for stem, array in pairs}


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


def planes(images: np.ndarray) -> np.ndarray:
    """(N, 3072): the red, the green, the blue plane, as the published files hold them."""
    return np.stack(
        [images[..., channel].reshape(len(images), -1) for channel in range(3)], 1
    ).reshape(len(images), -1)


def serve(monkeypatch: pytest.MonkeyPatch, content: dict[str, bytes]) -> list[str]:
    """Replace the downloader: `content` maps addresses to bytes. Returns the log of addresses."""
    asked = []

    def fetch(self: pooch.HTTPDownloader, url: str, output_file: str, pooch: None) -> None:
        asked.append(url)
        if url not in content:
            raise requests.ConnectionError
        Path(output_file).write_bytes(content[url])

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", fetch)
    return asked


def tar_bytes(members: dict[str, bytes], compressed: bool) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if compressed else "w") as archive:
        folders = {name.rpartition("/")[0] for name in members}
        for folder in sorted(folders):
            info = tarfile.TarInfo(folder)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def put(folder: Path, members: dict[str, bytes]) -> None:
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
