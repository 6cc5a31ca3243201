"""CIFAR-10 (Krizhevsky, 2009) in the two forms in which it is published.

Both hold five training batches and a test batch of 10,000 images, each image as 3072 bytes: the
red, the green and the blue plane, 32 rows of 32. The python version pickles a dictionary per
batch, whose entry b"data" is the array (10000, 3072); the binary version writes a byte with the
label before each image.
"""

import hashlib
import io
import os
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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
TRAIN_BATCHES = 5
BATCH_COUNT = 10_000  # images in a batch
# Keller et al. 2021, appendix A.3: "the first 40,000 training images were used for training and
# the last 10,000 were used as a held out validation set".
VALIDATION_COUNT = 10_000

_PIXELS = 3 * 32 * 32
_CLASSES = 10


class _BadBatchError(Exception):
    """What is wrong with a batch; the message is put into a line with the file's name."""


@dataclass(frozen=True)
class Form:
    """One published form: file names, checksum, and how a batch's bytes become (N, 3072)."""

    archive: str
    md5: str
    folder: str
    suffix: str
    parse: Callable[[bytes], np.ndarray]

    @property
    def batches(self) -> list[str]:
        """The batches' file names: those for training in order, then the test batch."""
        train = [f"data_batch_{index}" for index in range(1, TRAIN_BATCHES + 1)]
        return [name + self.suffix for name in [*train, "test_batch"]]


class _PickledType:
    """Stands for numpy.dtype in a pickle: remembers what it was made of."""

    def __init__(self, code: bytes, *_):
        self.code = code

    def __setstate__(self, state: tuple):
        """Byte order and the like, which an array of bytes does not have."""


class _PickledArray:
    """Stands for an array in a pickle: remembers its state, (version, shape, type, order, data)."""

    def __init__(self, *_):
        self.state = None

    def __setstate__(self, state: tuple):
        self.state = state

    def to_numpy(self) -> np.ndarray:
        _, shape, dtype, is_fortran, data = self.state
        if dtype.code != b"u1":
            raise pickle.UnpicklingError(f"an array of type {dtype.code!r}")
        # Read-only, and sharing memory with `data`; refuses a shape that does not fit the bytes.
        return np.frombuffer(data, np.uint8).reshape(shape, order="F" if is_fortran else "C")


class _BatchUnpickler(pickle.Unpickler):
    """Builds plain containers and stand-ins for arrays; any other class or function is refused.

    Plain `pickle.load` runs whatever functions a file names. NumPy's own classes are not let in
    either: they trust the states that a file gives them, and a damaged one can crash the process.
    """

    _STAND_INS = {
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy", "dtype"): _PickledType,
        ("numpy", "ndarray"): None,  # just an argument of _reconstruct
    }

    def find_class(self, module: str, name: str):
        try:
            return self._STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}") from None


def _parse_pickle(content: bytes) -> np.ndarray:
    try:
        # The batches were written by Python 2: their strings are bytes.
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
        data = batch.get(b"data") if isinstance(batch, dict) else None
        if isinstance(data, _PickledArray):
            return data.to_numpy()
    except pickle.UnpicklingError as error:
        raise _BadBatchError(f"is damaged or not a CIFAR-10 batch ({error})") from error
    except Exception as error:  # pickle promises no particular exceptions for damaged data
        raise _BadBatchError(
            f"is damaged or not a CIFAR-10 batch ({type(error).__name__})"
        ) from error
    raise _BadBatchError("has no array b'data'")


def _parse_records(content: bytes) -> np.ndarray:
    if len(content) % (1 + _PIXELS):
        raise _BadBatchError(f"has {len(content)} bytes, not whole records of {1 + _PIXELS}")
    records = np.frombuffer(content, np.uint8).reshape(-1, 1 + _PIXELS)
    if records.size and records[:, 0].max() >= _CLASSES:
        raise _BadBatchError(f"has a label {records[:, 0].max()}, so it is not CIFAR-10")
    return records[:, 1:]


# In the order in which they are looked for and downloaded. The MD5s are those of
# https://www.cs.toronto.edu/~kriz/cifar.html.
FORMS = (
    Form(
        archive="cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        suffix="",
        parse=_parse_pickle,
    ),
    Form(
        archive="cifar-10-binary.tar.gz",
        md5="c32a1d4ab5d03f1284b67883e8d87530",
        folder="cifar-10-batches-bin",
        suffix=".bin",
        parse=_parse_records,
    ),
)


def load(
    name: str, data_dir: str | os.PathLike[str] | None, announce: Callable[[str], None]
) -> Dataset:
    """Load CIFAR-10: what `snfnp.data.load_dataset` says; there is no stand-in to announce.

    Files: cifar-10-python.tar.gz or cifar-10-binary.tar.gz, else the folders that they unpack to,
    cifar-10-batches-py or cifar-10-batches-bin, else the batches themselves. Downloads (170 MB)
    are checked against the published MD5; given files for their format, size and number of
    images.

    Returns:
        The first 40,000 training images, the last 10,000 for validation (Keller et al. 2021,
        appendix A.3) and the 10,000 test images, in memory (180 MB).
    """
    given = given_folder(data_dir, TITLE)
    if given is not None:
        root, origin = given
        for place in (root / NAME, root):
            found = _find(place)
            if found is not None:
                return _read(*found, f"folder {place}")
        raise UsageError(
            f"{root}: {origin} holds no {TITLE}; put {_archives()} there, or the folder that it "
            f"unpacks to ({' or '.join(form.folder for form in FORMS)}), or give another folder"
        )
    folder = cache_folder(NAME)
    found, source = _find(folder), f"cache folder {folder}"
    if found is None:
        host = _download(folder)
        found, source = _find(folder), f"{host} (downloaded to {folder})"
    try:
        return _read(*found, source)
    except SnfnpError as error:
        raise SnfnpError(
            f"{error} (in the cache: delete it to have it downloaded again)"
        ) from error


def _archives() -> str:
    return " or ".join(form.archive for form in FORMS)


def _find(place: Path) -> tuple[Form, Path] | None:
    """Return the first form in a folder, and its archive or the folder of its batches."""
    for form in FORMS:
        if os.path.isfile(place / form.archive):
            return form, place / form.archive
    for form in FORMS:
        for folder in (place / form.folder, place):
            # One batch is the folder that was meant: looking on would hide what it lacks.
            if any(os.path.isfile(folder / batch) for batch in form.batches):
                return form, folder
    return None


def _download(folder: Path) -> str:
    """Download the first form that can be had; return the host."""
    if is_offline():
        reason = "SNFNP_OFFLINE is set and the cache does not hold it"
    else:
        reasons = []
        for form in FORMS:
            try:
                return download(
                    MIRRORS, form.archive, folder, lambda path, form=form: _md5_problem(path, form)
                )
            except NoDownloadError as error:
                reasons.append(str(error))
        reason = "; ".join(dict.fromkeys(reasons))
    raise SnfnpError(
        f"no {TITLE} images in {folder} and no download ({reason}); get {_archives()} from "
        f"{' or '.join(MIRRORS)} and give its folder with --data-dir"
    )


def _md5_problem(path: Path, form: Form) -> str | None:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "md5").hexdigest()
    return None if digest == form.md5 else "wrong checksum"


def _contents(form: Form, path: Path) -> Iterator[tuple[str, bytes]]:
    """The batches at `path`, an archive or a folder, as (file name, content)."""
    if not path.is_dir():
        for member, content in read_tar(path, lambda m: PurePosixPath(m).name in form.batches):
            yield PurePosixPath(member).name, content
        return
    for batch in form.batches:
        if os.path.isfile(path / batch):
            try:
                yield batch, (path / batch).read_bytes()
            except OSError as error:
                raise SnfnpError(f"{path / batch}: cannot be read ({error.strerror})") from error


def _read(form: Form, path: Path, source: str) -> Dataset:
    images = {}
    for batch, content in _contents(form, path):
        try:
            planes = form.parse(content)
            if planes.shape != (BATCH_COUNT, _PIXELS):
                found = " x ".join(map(str, planes.shape))
                raise _BadBatchError(f"holds {found} values, not {BATCH_COUNT} x {_PIXELS}")
        except _BadBatchError as error:
            raise SnfnpError(f"{path}: {batch} {error}; replace it with a fresh copy") from error
        images[batch] = channels_last(planes)
    missing = [batch for batch in form.batches if batch not in images]
    if missing:
        raise SnfnpError(f"{path}: lacks {', '.join(missing)}; replace it with a fresh copy")
    *train, test = (images[batch] for batch in form.batches)
    train = read_only(np.concatenate(train))
    return Dataset(
        name=NAME,
        train=train[:-VALIDATION_COUNT],
        validation=train[-VALIDATION_COUNT:],
        test=read_only(test),
        source=f"{source}, {path.name}",
        is_sample=False,
    )
