"""CIFAR-10 (Krizhevsky, 2009), from the binary version of its archive.

Five training batches and a test batch of 10,000 records each: a byte with the label, then the
image as 3072 bytes: the red, the green and the blue plane, 32 rows of 32. The python version
holds the same images in the same order, but pickled, and is not read: unpickling runs what a file
tells it to.
"""

import hashlib
import tarfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from snfnp.data.published import Published
from snfnp.data.reading import FRESH, readable
from snfnp.paths import open_regular

ARCHIVE = "cifar-10-binary.tar.gz"
# Those for training in order, then the test batch.
BATCHES = (*(f"data_batch_{index}.bin" for index in range(1, 6)), "test_batch.bin")
# Keller et al. 2021, appendix A.3: "the first 40,000 training images were used for training and
# the last 10,000 were used as a held out validation set".
COUNTS = (40_000, 10_000, 10_000)  # for training, validation and test


def _read(published: Published, files: dict[str, Path]) -> list[np.ndarray]:
    """The splits of the archive, whose MD5 is checked before it is unpacked, in memory."""
    path = files[ARCHIVE]
    with readable(path, FRESH), open(open_regular(path, follow=True), "rb") as file:
        if hashlib.file_digest(file, "md5").hexdigest() != published.files[ARCHIVE]:
            raise ValueError("its MD5 is not that of the published archive")
        file.seek(0)
        with tarfile.open(fileobj=file) as archive:
            opened: Any = archive.extractfile  # no member has another type
            batches = {PurePosixPath(m.name).name: opened(m).read() for m in archive if m.isreg()}
    content = b"".join(batches[batch] for batch in BATCHES)
    planes = np.frombuffer(content, np.uint8).reshape(sum(COUNTS), -1)[:, 1:]  # without labels
    # The three planes of each image become the last axis.
    images = np.ascontiguousarray(planes.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return np.split(images, np.cumsum(COUNTS[:-1]))


CIFAR = Published(
    name="cifar-10",
    title="CIFAR-10",
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
    files={ARCHIVE: "c32a1d4ab5d03f1284b67883e8d87530"},  # of the page at the mirror
    read=_read,
    advice=f"get {ARCHIVE}, the binary version (the python version is pickled, and not read), from "
    "https://www.cs.toronto.edu/~kriz/",
)
