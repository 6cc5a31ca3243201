"""Small data files in the published formats, places that give them, and the full MNIST."""

import dataclasses
import gzip
import hashlib
import io
import os
import struct
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import snfnp.data
from snfnp.data import sets
from snfnp.errors import SnfnpError
from snfnp.files import user_cache
from support.arrays import pixels
from support.messages import one_line

# Rows whose columns differ in size, and images, grey and coloured.
ROWS = np.random.default_rng(0).normal((5.0, -3e4), (0.1, 4e3), (200, 2))
GREY = pixels(60, 4, 6)
COLOUR = np.stack(GREY[:3], axis=-1)
TRAIN_GZ = "train-images-idx3-ubyte.gz"
TEST_GZ = "t10k-images-idx3-ubyte.gz"


def idx_bytes(array):
    """An IDX file's bytes, built here and not by the code under test."""
    return (
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        + array.tobytes()
    )


def picture(path, array, **options):
    """An image file in a folder, which is made; options: of `Image.save`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def tar_bytes(members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name.rpartition("/")[0] or ".")
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def put(folder, members):
    for name, content in members.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# Small data sets: MNIST and Fashion-MNIST of 5 + 2 and 3 images, CIFAR-10 in batches of 4,
# ImageNet32 of 18 + 5 and 7.
TRAIN = pixels(7, 28, 28, seed=1)
TEST = pixels(3, 28, 28, seed=2)
FASHION = {TRAIN_GZ: pixels(7, 28, 28, seed=3), TEST_GZ: pixels(3, 28, 28, seed=4)}
# five training batches, the test batch
CIFAR = [pixels(4, 32, 32, 3, seed=seed) for seed in range(6)]
IMAGENET = pixels(30, 32, 32, 3, seed=10)


def records(images):
    """A batch of CIFAR-10: a label, and the red, the green and the blue plane of each image."""
    planes = np.stack(
        [images[..., channel].reshape(len(images), -1) for channel in range(3)], 1
    )
    labels = np.arange(len(images), dtype=np.uint8)[:, None] % 10
    return np.hstack([labels, planes.reshape(len(images), -1)]).tobytes()


def image_bytes(image, form="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, form)
    return buffer.getvalue()


BATCHES = {
    f"cifar-10-batches-bin/{name}": records(batch)
    for name, batch in zip(sets.BATCHES, CIFAR, strict=True)
}
BATCHES["cifar-10-batches-bin/readme.html"] = b"<html>"
np.save(STORED := io.BytesIO(), IMAGENET)
FILES = {
    "mnist": {
        TRAIN_GZ: gzip.compress(idx_bytes(TRAIN)),
        TEST_GZ: gzip.compress(idx_bytes(TEST)),
    },
    "fashion-mnist": {
        name: gzip.compress(idx_bytes(images)) for name, images in FASHION.items()
    },
    "cifar-10": {sets.ARCHIVE: tar_bytes(BATCHES)},
    "imagenet32": {sets.ARRAY: STORED.getvalue()},
}
SPLITS = {
    "mnist": (TRAIN[:5, ..., None], TRAIN[5:, ..., None], TEST[..., None]),
    "fashion-mnist": tuple(
        images[..., None]
        for images in (*np.split(FASHION[TRAIN_GZ], [5]), FASHION[TEST_GZ])
    ),
    "cifar-10": (np.concatenate(CIFAR[:4]), CIFAR[4], CIFAR[5]),
    "imagenet32": tuple(np.split(IMAGENET, [18, 23])),
}


def assert_is(name, dataset):
    """The small data set of that name, read-only."""
    assert dataset.name == name and not dataset.is_sample
    for split, images in zip(
        ("train", "validation", "test"), SPLITS[name], strict=True
    ):
        found = getattr(dataset, split)
        np.testing.assert_array_equal(found[:], images)
        assert found.dtype == np.uint8 and (
            name == "imagenet32" or not found.flags.writeable
        )


def refused(name, folder, *parts, kind=SnfnpError):
    """The error, one line with those parts, of a data set that cannot be loaded."""
    with one_line(kind, *parts) as caught:
        snfnp.data.load_dataset(name, folder, report=lambda line: None)
    return str(caught.value)


def use_small_sets(monkeypatch, mirrors):
    """Replace the published data sets by the small ones, to be had at these addresses."""
    for published in (sets.MNIST, sets.FASHION_MNIST, sets.CIFAR, sets.IMAGENET32):
        name = published.name
        counts = tuple(map(len, SPLITS[published.name]))
        md5 = {
            file: hashlib.md5(content).hexdigest()
            for file, content in FILES[name].items()
        }
        small = {"mirrors": mirrors.get(name, ()), "files": md5, "counts": counts}
        published = dataclasses.replace(published, **small)
        monkeypatch.setitem(snfnp.data.LOADERS, name, published.load)
        for file, content in FILES[name].items() if "mnist" in name else ():
            digest = hashlib.sha256(gzip.decompress(content)).hexdigest()
            monkeypatch.setitem(sets._KNOWN, digest, (published.title, file))


class Mirror:
    """An HTTP server on this machine; `files` maps names to bytes, `requests` logs what came."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.cut_short = False
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
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

            def log_message(self, format, *args):
                """Keep the test's standard error clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/data/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def find_full_mnist():
    """A folder with both MNIST image files, or None; nothing is downloaded.

    Looked at, in order: SNFNP_DATA_DIR (its subfolder "mnist" first), the user's cache, and
    shared/data/mnist beside the checkout.
    """
    given = Path(os.environ.get("SNFNP_DATA_DIR") or "none").expanduser()
    shared = Path(__file__).resolve().parents[3] / "shared" / "data" / "mnist"
    places = (given / "mnist", given, user_cache() / "mnist", shared)
    return next((place for place in places if len(sets.MNIST.find(place)) == 2), None)


FULL_MNIST = find_full_mnist()
needs_full_mnist = pytest.mark.skipif(
    FULL_MNIST is None,
    reason="the full MNIST files are neither in SNFNP_DATA_DIR nor cached",
)
