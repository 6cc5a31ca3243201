"""The published data sets, in the splits of Keller et al. 2021, appendix A.3."""

import gzip
import hashlib
import tarfile
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from snfnp.data.dataset import SPLITS, Dataset
from snfnp.data.npy import open_array
from snfnp.data.published import Published
from snfnp.data.reading import FRESH, opened, readable
from snfnp.errors import UsageError
from snfnp.paths import open_regular

SAMPLE = "sample shipped with the package"
TRAIN, TEST = "train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"
_HEADER = 16  # bytes of an IDX file before its pixels (http://yann.lecun.com/exdb/mnist/)
_KNOWN = {  # the files with these SHA-256, uncompressed: both sets have the same names
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db": ("MNIST", TRAIN),
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7": ("MNIST", TEST),
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888": ("Fashion-MNIST", TRAIN),
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b": ("Fashion-MNIST", TEST),
}


def _images(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8, offset=_HEADER).reshape(-1, 28, 28, 1)


def _mnist(published: Published, files: dict[str, Path]) -> np.ndarray:
    """The images of MNIST or Fashion-MNIST (Xiao et al. 2017)."""
    images, most = [], _HEADER + 28 * 28 * sum(published.counts)
    for name in (TRAIN, TEST):
        with opened(files[name]) as stream:
            content = stream.read(most)  # a limit for damaged files
            digest = hashlib.sha256(content).hexdigest()
            title, _ = found = _KNOWN.get(digest, ("no published data set", ""))
            if found != (published.title, name):
                raise ValueError(f"it is a file of {title}, not {published.title}'s {name}")
        images.append(_images(content))
    return np.concatenate(images)


def sample(data_dir=None, report=None) -> Dataset:
    """The sample of MNIST that the package ships. Raises UsageError if a folder is given."""
    if data_dir is not None:
        raise UsageError(f"mnist-sample comes with the package: leave `data_dir={data_dir}` out")
    folder = resources.files("snfnp.data") / "sample"
    packed = [(folder / f"{split}-images.idx3-ubyte.gz").read_bytes() for split in SPLITS]
    splits = map(_images, map(gzip.decompress, packed))
    return Dataset("mnist", *splits, source=SAMPLE, is_sample=True)


MNIST = Published(
    name="mnist",
    title="MNIST",
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    files={TRAIN: "f68b3c2dcbeaaa9fbdd348bbdeb94873", TEST: "9fb629c4189551a2d022fa330f9573f3"},
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
    files={TRAIN: "8d4fb7e6c68d591d4c3dfef9ec88bf0d", TEST: "bef4ecab320f06d8554ea6380940ec79"},
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
    with readable(path, FRESH), open(open_regular(path, follow=True), "rb") as file:
        if hashlib.file_digest(file, "md5").hexdigest() != published.files[ARCHIVE]:
            raise ValueError("its MD5 is not that of the published archive")
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            member: Any = archive.extractfile  # None for a folder
            batches = {PurePosixPath(m.name).name: member(m).read() for m in archive if m.isreg()}
    records = np.frombuffer(b"".join(batches[name] for name in BATCHES), np.uint8)
    planes = records.reshape(sum(published.counts), 1 + 3 * 32 * 32)[:, 1:]
    return planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


CIFAR = Published(
    name="cifar-10",
    title="CIFAR-10",
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
    files={ARCHIVE: "c32a1d4ab5d03f1284b67883e8d87530"},  # of the page at the mirror
    counts=(40_000, 10_000, 10_000),
    read=_cifar,
    advice=f"get {ARCHIVE}, the binary version (the python version is pickled, and not read), from "
    "https://www.cs.toronto.edu/~kriz/",
)

ARRAY = "imagenet32.npy"


def _imagenet(published: Published, files: dict[str, Path]):
    """The images of ImageNet32, which are read as needed.

    The paper used the version of van den Oord et al. 2016. Likelihoods of another data set of the
    same name (Chrabaszcz et al. 2017, .npz files), downsampled differently, do not compare.
    """
    shape = (sum(published.counts), 32, 32, 3)
    with readable(files[ARRAY], FRESH):
        images = open_array(files[ARRAY])
        if (images.shape, images.dtype) != (shape, np.uint8):
            raise ValueError(f"{images.dtype} of shape {images.shape} is not uint8 {shape}")
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
