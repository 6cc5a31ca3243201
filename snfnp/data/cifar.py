"""CIFAR-10 (Krizhevsky, 2009), from the binary version of its archive.

Five training batches and a test batch of 10,000 records each: a byte with the label, then the
image as 3072 bytes: the red, the green and the blue plane, 32 rows of 32. The python version
holds the same images in the same order, but pickled, and is not read: unpickling runs what a file
tells it to.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from snfnp.data.files import (
    Dataset,
    NoDownloadError,
    cache_folder,
    channels_last,
    download,
    given_folder,
    is_offline,
    read_only,
    read_tar,
)
from snfnp.errors import SnfnpError, UsageError

NAME = "cifar-10"
TITLE = "CIFAR-10"
MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
ARCHIVE = "cifar-10-binary.tar.gz"
ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"  # https://www.cs.toronto.edu/~kriz/cifar.html
FOLDER = "cifar-10-batches-bin"  # what the archive unpacks to
# Those for training in order, then the test batch.
BATCHES = (*(f"data_batch_{index}.bin" for index in range(1, 6)), "test_batch.bin")
BATCH_COUNT = 10_000  # images in a batch
# Keller et al. 2021, appendix A.3: "the first 40,000 training images were used for training and
# the last 10,000 were used as a held out validation set".
VALIDATION_COUNT = 10_000

_PIXELS = 3 * 32 * 32
_CLASSES = 10
# How to tell the python version: its archive, its folder, or a batch of it.
_PYTHON_VERSION = ("cifar-10-python.tar.gz", "cifar-10-batches-py", "data_batch_1")


def load(
    name: str, data_dir: str | os.PathLike[str] | None, report: Callable[[str], None]
) -> Dataset:
    """Load CIFAR-10: what `snfnp.data.load_dataset` says; there is no stand-in to report.

    Files: cifar-10-binary.tar.gz, else the folder that it unpacks to, cifar-10-batches-bin, else
    the batches themselves. A download (170 MB) is checked against the published MD5; given files
    for their format, size and number of images.

    Returns:
        The first 40,000 training images, the last 10,000 for validation (Keller et al. 2021,
        appendix A.3) and the 10,000 test images, in memory (180 MB).
    """
    given = given_folder(data_dir, TITLE)
    if given is not None:
        root, origin = given
        places = (root / NAME, root)
        for place in places:
            found = _find(place)
            if found is not None:
                return _read(found, f"folder {place}")
        for place in places:
            if any(os.path.exists(place / entry) for entry in _PYTHON_VERSION):
                raise UsageError(
                    f"{place}: {origin} holds the python version of {TITLE}, which is not read; "
                    f"put {ARCHIVE} there, the same images, from {' or '.join(MIRRORS)}"
                )
        raise UsageError(
            f"{root}: {origin} holds no {TITLE}; put {ARCHIVE} there, or the folder that it "
            f"unpacks to ({FOLDER}), or give another folder"
        )
    folder = cache_folder(NAME)
    found, source = _find(folder), f"cache folder {folder}"
    if found is None:
        host = _download(folder)
        found, source = _find(folder), f"{host} (downloaded to {folder})"
    try:
        return _read(found, source)
    except SnfnpError as error:
        raise SnfnpError(
            f"{error} (in the cache: delete it to have it downloaded again)"
        ) from error


def _find(place: Path) -> Path | None:
    """Return the archive in a folder, or the folder of its batches."""
    if os.path.isfile(place / ARCHIVE):
        return place / ARCHIVE
    for folder in (place / FOLDER, place):
        # One batch is the folder that was meant: looking on would hide what it lacks.
        if any(os.path.isfile(folder / batch) for batch in BATCHES):
            return folder
    return None


def _download(folder: Path) -> str:
    """Download the archive; return the host."""
    try:
        if is_offline():
            raise NoDownloadError("SNFNP_OFFLINE is set and the cache does not hold it")
        return download(MIRRORS, ARCHIVE, folder, _md5_problem)
    except NoDownloadError as error:
        raise SnfnpError(
            f"no {TITLE} images in {folder} and no download ({error}); get {ARCHIVE} from "
            f"{' or '.join(MIRRORS)} and give its folder with --data-dir"
        ) from error


def _md5_problem(path: Path) -> str | None:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "md5").hexdigest()
    return None if digest == ARCHIVE_MD5 else "wrong checksum"


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """The batches at `path`, an archive or a folder, as (file name, content)."""
    if not path.is_dir():
        for member, content in read_tar(path, lambda m: PurePosixPath(m).name in BATCHES):
            yield PurePosixPath(member).name, content
        return
    for batch in BATCHES:
        if os.path.isfile(path / batch):
            try:
                yield batch, (path / batch).read_bytes()
            except OSError as error:
                raise SnfnpError(f"{path / batch}: cannot be read ({error.strerror})") from error


def _problem(records: np.ndarray) -> str | None:
    """What is wrong with a batch's bytes, as records (N, 1 + 3072); None if nothing is."""
    if len(records) != BATCH_COUNT:
        return f"holds {len(records)} images, not {BATCH_COUNT}"
    if records[:, 0].max() >= _CLASSES:
        return f"has a label {records[:, 0].max()}, so it is not CIFAR-10"
    return None


def _read(path: Path, source: str) -> Dataset:
    images = {}
    for batch, content in _contents(path):
        size = 1 + _PIXELS
        if len(content) % size:
            problem = f"has {len(content)} bytes, not whole records of {size}"
        else:
            records = np.frombuffer(content, np.uint8).reshape(-1, size)
            problem = _problem(records)
        if problem:
            raise SnfnpError(f"{path}: {batch} {problem}; replace it with a fresh copy")
        images[batch] = channels_last(records[:, 1:])
    missing = [batch for batch in BATCHES if batch not in images]
    if missing:
        raise SnfnpError(f"{path}: lacks {', '.join(missing)}; replace it with a fresh copy")
    *train, test = (images[batch] for batch in BATCHES)
    train = read_only(np.concatenate(train))
    return Dataset(
        name=NAME,
        train=train[:-VALIDATION_COUNT],
        validation=train[-VALIDATION_COUNT:],
        test=read_only(test),
        source=f"{source}, {path.name}",
        is_sample=False,
    )
