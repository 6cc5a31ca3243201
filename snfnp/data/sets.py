"""The published data sets, in the splits of Keller et al. 2021, appendix A.3: where their files are
found, and how they are downloaded and read."""

import gzip
import hashlib
import os
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from snfnp.data.dataset import SPLITS, Dataset
from snfnp.errors import Report, SnfnpError, UsageError
from snfnp.files import StrPath, open_binary, readable, user_cache
from snfnp.images import open_array

SAMPLE = "sample shipped with the package"
TRAIN = "train-images-idx3-ubyte.gz"
TEST = "t10k-images-idx3-ubyte.gz"
_FRESH = "replace it with a fresh copy"
_GZIP_MAGIC = b"\x1f\x8b"
# bytes of an IDX file before its pixels (http://yann.lecun.com/exdb/mnist/)
_HEADER = 16
_KNOWN = {  # the files with these SHA-256, uncompressed: both sets have the same names
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db": (
        "MNIST",
        TRAIN,
    ),
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7": ("MNIST", TEST),
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888": (
        "Fashion-MNIST",
        TRAIN,
    ),
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b": (
        "Fashion-MNIST",
        TEST,
    ),
}


@dataclass(frozen=True)
class Published:
    """A data set that is read from published files.

    Attributes:
        name: as given to `load_dataset`, and the folder's name in the cache.
        title: the name in messages.
        files: {name at the mirrors: MD5 there}.
        read: read(self, {name: path}) checks the files, and returns the images (N, H, W, C).
        counts: how many of them, in this order, are for training, validation and test.
        mirrors: base addresses, each ending in "/", in the order in which they are tried; without
            any, the user has to get the files.
        advice: how the user gets them.
        substitute: makes the data if the files cannot be downloaded.
    """

    name: str
    title: str
    files: dict[str, str]
    read: Callable[..., Any]
    counts: tuple[int, int, int]
    mirrors: tuple[str, ...] = ()
    advice: str = ""
    substitute: Callable[[], Dataset] | None = None

    def find(self, folder: Path) -> dict[str, Path]:
        """The files that a folder has, by published name; each of MNIST's has four names in use."""
        paths = {}
        for name in self.files:
            dotted = name.replace("-idx", ".idx")
            for spelling in (
                dotted.removesuffix(".gz"),
                name.removesuffix(".gz"),
                dotted,
                name,
            ):
                # os.path.isfile, unlike Path.is_file, also answers for folders without access.
                if os.path.isfile(folder / spelling):
                    # the published name, if it is there
                    paths[name] = folder / spelling
        return paths

    def load(self, data_dir: StrPath | None, report: Report) -> Dataset:
        """Read the files in the given folder, or else in the cache, which downloads missing ones.

        Arguments and errors are those of `snfnp.data.load_dataset`.
        """
        environment = os.environ.get("SNFNP_DATA_DIR") or None
        for option, path in (("`data_dir`", data_dir), ("SNFNP_DATA_DIR", environment)):
            if path is not None:
                return self._read_from(option, Path(os.path.expanduser(path)))
        folder = user_cache() / self.name
        try:
            cached = self.find(folder)
            for name in self.files:
                if name not in cached:
                    self._download(name, folder)
        except SnfnpError as error:
            if self.substitute is None:
                raise SnfnpError(
                    f"no {self.title} images in {folder} and no download ({error}): "
                    f"{self._to_get()} and give their folder with `data_dir`"
                ) from None
            dataset = self.substitute()
            counts = ", ".join(
                f"{len(getattr(dataset, split))} {split}" for split in SPLITS
            )
            report(
                f"WARNING: NOT THE FULL {self.title}: using the {dataset.source} ({counts} "
                f"images), because {error}; --data-dir or SNFNP_DATA_DIR may name a folder with "
                "the full data's files"
            )
            return dataset
        try:
            return self._read(self.find(folder), f"cache folder {folder}")
        except SnfnpError as error:
            remedy = " (in the cache: delete it to have it downloaded again)" * bool(
                self.mirrors
            )
            raise SnfnpError(f"{error}{remedy}") from error

    def _read(self, files: dict[str, Path], source: str) -> Dataset:
        splits = np.split(self.read(self, files), np.cumsum(self.counts[:-1]))
        return Dataset(self.name, *splits, source=source)

    def _read_from(self, option: str, root: Path) -> Dataset:
        """The images in a folder, or in its subfolder of the data set's name."""
        # A folder with some of the files is the one that was meant: the others are reported.
        folder = root / self.name if self.find(root / self.name) else root
        files = self.find(folder)
        missing = [name for name in self.files if name not in files]
        if missing and not os.path.isdir(root):
            raise UsageError(
                f"{option} is {folder}, which is not a folder: {self._to_get()} and give the "
                "folder that holds the files"
            )
        if missing:
            raise UsageError(
                f"{option} is {folder}, which lacks {' and '.join(missing)} of {self.title}: "
                f"{self._to_get()} and put the files there"
            )
        return self._read(files, f"folder {folder}")

    def _download(self, name: str, folder: Path) -> None:
        """Put a file into `folder` from the first mirror that works.

        pooch renames it once its checksum is right: an interruption leaves the cache as it was.
        """
        if not self.mirrors:
            raise SnfnpError("only registered users get the files")
        if os.environ.get("SNFNP_OFFLINE", "0") not in ("", "0"):
            raise SnfnpError("SNFNP_OFFLINE is set and the cache does not hold it")
        import pooch
        import requests

        pooch.get_logger().setLevel("WARNING")
        fetch: Any = pooch.HTTPDownloader(
            progressbar=sys.stderr.isatty(),
            chunk_size=65_536,
            timeout=(5.0, 15.0),  # seconds to connect, and without a byte
        )
        known = f"md5:{self.files[name]}"
        failures = []
        for mirror in self.mirrors:
            host = urlsplit(mirror).netloc
            try:
                pooch.retrieve(mirror + name, known, name, folder, downloader=fetch)
                return
            except requests.HTTPError as error:
                problem = (
                    f"HTTP status {getattr(error.response, 'status_code', 'unknown')}"
                )
            except requests.RequestException:  # their texts fill lines
                problem = "connection failed"
            except ValueError:
                problem = "wrong checksum"
            except OSError as error:
                raise SnfnpError(
                    f"the cache {folder} cannot be written ({error.strerror})"
                ) from error
            failures.append(f"{host}: {problem}")
        raise SnfnpError(f"no mirror gave {name} ({', '.join(failures)})")

    def _to_get(self) -> str:
        return (
            self.advice
            or f"get {' and '.join(self.files)} from {' or '.join(self.mirrors)}"
        )


def _images(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8, offset=_HEADER).reshape(-1, 28, 28, 1)


def _mnist(published: Published, files: dict[str, Path]) -> np.ndarray:
    """The images of MNIST or Fashion-MNIST (Xiao et al. 2017)."""
    images = []
    most = _HEADER + 28 * 28 * sum(published.counts)
    for name, path in files.items():
        with readable(path, _FRESH), open_binary(path) as file:
            # servers and browsers uncompress files without renaming them
            compressed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            file.seek(0)
            stream = gzip.GzipFile(fileobj=file) if compressed else file
            content = stream.read(most)  # a limit for damaged files
            digest = hashlib.sha256(content).hexdigest()
            known = _KNOWN.get(digest, ("no published data set", ""))
            if known != (published.title, name):
                raise ValueError(
                    f"it is a file of {known[0]}, not {published.title}'s {name}"
                )
        images.append(_images(content))
    return np.concatenate(images)


def sample(data_dir: object = None, report: object = None) -> Dataset:
    """The sample of MNIST that the package ships."""
    folder = resources.files("snfnp.data") / "sample"
    packed = [
        (folder / f"{split}-images.idx3-ubyte.gz").read_bytes() for split in SPLITS
    ]
    splits = map(_images, map(gzip.decompress, packed))
    return Dataset("mnist", *splits, source=SAMPLE, is_sample=True)


MNIST = Published(
    name="mnist",
    title="MNIST",
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    files={
        TRAIN: "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        TEST: "9fb629c4189551a2d022fa330f9573f3",
    },
    counts=(50_000, 10_000, 10_000),
    read=_mnist,
    substitute=sample,
)
FASHION_MNIST = Published(
    name="fashion-mnist",
    title="Fashion-MNIST",
    mirrors=(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    files={
        TRAIN: "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        TEST: "bef4ecab320f06d8554ea6380940ec79",
    },
    counts=MNIST.counts,
    read=_mnist,
)

ARCHIVE = "cifar-10-binary.tar.gz"
# The training batches in order, then the test batch.
BATCHES = (*(f"data_batch_{index}.bin" for index in range(1, 6)), "test_batch.bin")


def _cifar(published: Published, files: dict[str, Path]) -> np.ndarray:
    """The images of CIFAR-10 (Krizhevsky 2009). A record is a byte with the label, then the red,
    the green and the blue plane of an image. The archive is unpacked in memory, if its MD5 is
    right."""
    path = files[ARCHIVE]
    with readable(path, _FRESH), open_binary(path) as file:
        if hashlib.file_digest(file, "md5").hexdigest() != published.files[ARCHIVE]:
            raise ValueError("its MD5 is not that of the published archive")
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            member: Any = archive.extractfile  # None for a folder
            batches = {
                PurePosixPath(m.name).name: member(m).read()
                for m in archive
                if m.isreg()
            }
    records = np.frombuffer(b"".join(batches[name] for name in BATCHES), np.uint8)
    planes = records.reshape(sum(published.counts), 1 + 3 * 32 * 32)[:, 1:]
    return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


CIFAR = Published(
    name="cifar-10",
    title="CIFAR-10",
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
    files={ARCHIVE: "c32a1d4ab5d03f1284b67883e8d87530"},  # as the mirror's page says
    counts=(40_000, 10_000, 10_000),
    read=_cifar,
    advice=f"get {ARCHIVE}, the binary version (the python version is pickled, and not read), from "
    "https://www.cs.toronto.edu/~kriz/",
)

ARRAY = "imagenet32.npy"


def _imagenet(published: Published, files: dict[str, Path]) -> np.ndarray:
    """The images of ImageNet32.

    The paper used the version of van den Oord et al. 2016. Likelihoods of another data set of the
    same name (Chrabaszcz et al. 2017, .npz files), downsampled differently, do not compare.
    """
    shape = (sum(published.counts), 32, 32, 3)
    with readable(files[ARRAY], _FRESH):
        images = open_array(files[ARRAY])
        if (images.shape, images.dtype) != (shape, np.uint8):
            raise ValueError(
                f"{images.dtype} of shape {images.shape} is not uint8 {shape}"
            )
    return images


IMAGENET32 = Published(
    name="imagenet32",
    title="ImageNet32",
    files={ARRAY: ""},  # made by a registered user
    counts=(1_261_149, 20_000, 49_999),
    read=_imagenet,
    advice="register at https://image-net.org, get train_32x32.tar and valid_32x32.tar, make "
    f"{ARRAY} of them as scripts/runs.md says (the npz version gives other likelihoods, and is not "
    "read),",
)
