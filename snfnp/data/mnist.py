"""MNIST and Fashion-MNIST, and the sample of MNIST that the package ships.

Their files, of the same names, are IDX files (http://yann.lecun.com/exdb/mnist/): after a header,
a byte for each pixel. What is read has the SHA-256 of the published file, uncompressed.
"""

import gzip
import hashlib
from importlib import resources
from pathlib import Path

import numpy as np

from snfnp.data.dataset import SPLITS, Dataset
from snfnp.data.published import Published
from snfnp.data.reading import opened
from snfnp.errors import UsageError

SAMPLE = "sample shipped with the package"  # its source, in words
TRAIN, TEST = "train-images-idx3-ubyte.gz", "t10k-images-idx3-ubyte.gz"
COUNTS = (50_000, 10_000, 10_000)  # for training, validation and test (Keller et al. 2021, A.3)
_HEADER = 16  # bytes
_KNOWN = {  # the files with these SHA-256
    "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db": ("MNIST", TRAIN),
    "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7": ("MNIST", TEST),
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888": ("Fashion-MNIST", TRAIN),
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b": ("Fashion-MNIST", TEST),
}


def _images(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8, offset=_HEADER).reshape(-1, 28, 28, 1)


def _read(published: Published, files: dict[str, Path]) -> list:
    """The splits of a training and a test file."""
    images, most = [], _HEADER + 28 * 28 * sum(COUNTS[:2])
    for name in (TRAIN, TEST):
        with opened(files[name]) as stream:
            content = stream.read(most + 1)  # never without end
            digest = hashlib.sha256(content).hexdigest()
            title, _ = found = _KNOWN.get(digest, ("no published data set", ""))
            if found != (published.title, name):
                raise ValueError(f"it is a file of {title}, not {published.title}'s {name}")
        images.append(_images(content))
    return [*np.split(images[0], [COUNTS[0]]), images[1]]


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
    read=_read,
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
    read=_read,
)
