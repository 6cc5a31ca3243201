"""CIFAR-10 (Krizhevsky, 2009), from the binary version of its archive.

Five training batches and a test batch of 10,000 records each: a byte with the label, then the
image as 3072 bytes: the red, the green and the blue plane, 32 rows of 32. The python version
holds the same images in the same order, but pickled, and is not read: unpickling runs what a file
tells it to.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from snfnp.data.dataset import Dataset
from snfnp.data.published import Published
from snfnp.data.reading import damaged, opened, read_at_most, read_tar

ARCHIVE = "cifar-10-binary.tar.gz"
FOLDER = "cifar-10-batches-bin"  # what the archive unpacks to
# Those for training in order, then the test batch.
BATCHES = (*(f"data_batch_{index}.bin" for index in range(1, 6)), "test_batch.bin")
BATCH_COUNT = 10_000  # images in a batch
# Keller et al. 2021, appendix A.3: "the first 40,000 training images were used for training and
# the last 10,000 were used as a held out validation set".
VALIDATION_COUNT = 10_000
_RECORD = 1 + 3 * 32 * 32  # bytes


class Cifar(Published):
    """CIFAR-10: the archive, the folder that it unpacks to, or the batches themselves.

    A download (170 MB) is checked against the published MD5; given files for their format, size and
    number of images. The images are in memory (180 MB).
    """

    def find(self, folder: Path) -> dict[str, Path]:
        """The archive in a folder, else the folder of its batches."""
        if archive := super().find(folder):
            return archive
        for place in (folder / FOLDER, folder):
            # One batch is the folder that was meant: its missing files are reported.
            if any(os.path.isfile(place / batch) for batch in BATCHES):
                return {"archive": place}
        return {}

    def read(self, files: dict[str, Path], source: str, report: Callable) -> Dataset:
        path = files["archive"]
        images = {batch: _images(path, batch, content) for batch, content in _contents(path)}
        missing = [batch for batch in BATCHES if batch not in images]
        if missing:
            raise damaged(path, f"lacks {', '.join(missing)}")
        *train, test = (images[batch] for batch in BATCHES)
        train, validation = np.split(np.concatenate(train), [-VALIDATION_COUNT])
        return Dataset(self.name, train, validation, test, f"{source}, {path.name}", False)


CIFAR = Cifar(
    name="cifar-10",
    title="CIFAR-10",
    mirrors=("https://www.cs.toronto.edu/~kriz/",),
    names={"archive": ARCHIVE},
    md5={"archive": "c32a1d4ab5d03f1284b67883e8d87530"},  # of the page at the mirror
    advice=f"get {ARCHIVE}, the binary version (the python version is pickled, and not read), or "
    f"{FOLDER}, the folder that it unpacks to, from https://www.cs.toronto.edu/~kriz/",
)


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """The batches at `path`, an archive or a folder, as (file name, content).

    A content that is too long ends one byte after the right size.
    """
    size = BATCH_COUNT * _RECORD
    if not path.is_dir():
        for member, content in read_tar(path, lambda m: PurePosixPath(m).name in BATCHES, size):
            yield PurePosixPath(member).name, content
        return
    for batch in filter(lambda batch: os.path.isfile(path / batch), BATCHES):
        with opened(path / batch) as stream:
            yield batch, read_at_most(stream, size + 1)


def _images(path: Path, batch: str, content: bytes) -> np.ndarray:
    """The images in a batch's content, uint8 (N, 32, 32, 3)."""
    size = BATCH_COUNT * _RECORD
    if len(content) != size:
        count = f"more than {size}" if len(content) > size else len(content)
        raise damaged(path, f"{batch} has {count} bytes, not {BATCH_COUNT} records of {_RECORD}")
    records = np.frombuffer(content, np.uint8).reshape(BATCH_COUNT, _RECORD)
    if records[:, 0].max() >= 10:
        raise damaged(path, f"{batch} has a label {records[:, 0].max()}, so it is not CIFAR-10")
    # The three planes of each image become the last axis.
    return np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
