"""ImageNet32: ImageNet downsampled to 32 x 32 (van den Oord et al., 2016, "Pixel Recurrent Neural
Networks"), as one tar archive of PNG files per split: 1,281,149 and 49,999 images.

Keller et al. 2021 used this version: their code reads these archives, and 20,000 images for
validation leave the 1,261,149 for training of their appendix A.3. Another data set of the same
name, in npz files (Chrabaszcz et al., 2017, "A Downsampled Variant of ImageNet", 1,281,167 and
50,000 images), was downsampled differently, so that likelihoods cannot be compared, and is not
read.

Training images need 3.9 GB. They are copied once into uncompressed .npy files in the user's
cache, block by block, and mapped into memory from there.
"""

import io
import json
import os
import shutil
import tempfile
import tokenize
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from PIL import Image
from tqdm import tqdm

from snfnp.data.files import Dataset, cache_folder, given_folder, one_line, read_tar
from snfnp.errors import SnfnpError, UsageError
from snfnp.ops.random.philox import RandomKey, words

NAME = "imagenet32"
TITLE = "ImageNet32"
VERSION = "PNG version (van den Oord et al. 2016)"
TRAIN_ARCHIVE, TEST_ARCHIVE = "train_32x32.tar", "valid_32x32.tar"
TRAIN_COUNT = 1_281_149  # images in the archive, before those for validation are taken out
TEST_COUNT = 49_999
VALIDATION_COUNT = 20_000  # Keller et al. 2021, appendix A.3
VALIDATION_SEED = 0  # of the random choice of those images; changing it changes every result

_SHAPE = (32, 32, 3)
_BYTES = 32 * 32 * 3
_BLOCK = 4096  # images
_COPY = "png"  # the copy's folder in the cache
_RECORD = "record.json"
# image-net.org no longer has the PNG version; this thread compares the two data sets and says where
# copies of it are.
_WHERE = "https://github.com/tensorflow/datasets/issues/4662"
# How to tell the npz files: their archives, a batch of them, or a copy made by an older snfnp.
_NPZ_FILES = (
    "Imagenet32_train_npz.zip",
    "Imagenet32_val_npz.zip",
    "train_data_batch_1.npz",
    "val_data.npz",
    "npz",
)
# What NumPy raises for a damaged .npy header or too little data after it.
_NPY_ERRORS = (ValueError, EOFError, SyntaxError, tokenize.TokenError)


def load(
    name: str, data_dir: str | os.PathLike[str] | None, report: Callable[[str], None]
) -> Dataset:
    """Load ImageNet32: what `snfnp.data.load_dataset` says, but it is never downloaded.

    ImageNet is given to registered users only. Files: train_32x32.tar and valid_32x32.tar. They
    are copied once into the user's cache (4.1 GB, minutes), and may be deleted after that if they
    too were in the cache. `report` is called before copying.

    Returns:
        The official validation images as the test split, 20,000 random training images
        (VALIDATION_SEED) for validation, the rest for training, in the order of the archive;
        all three read-only `numpy.memmap`s.

    Raises:
        UsageError: the files are lacking.
        SnfnpError: a file is damaged, has the wrong number of images, or its copy does not fit.
    """
    cache = cache_folder(NAME)
    copy = cache / _COPY
    given = given_folder(data_dir, TITLE)
    places = [cache] if given is None else [given[0] / NAME, given[0]]
    for place in places:
        archives = (TRAIN_ARCHIVE, TEST_ARCHIVE)
        missing = [name for name in archives if not os.path.isfile(place / name)]
        if not missing:
            _copy(place, copy, report)
        # The copy is enough, should the archives in the cache be gone.
        if not missing or (given is None and _read_record(copy) is not None):
            return _open(copy, place)
        if len(missing) == 1:
            raise UsageError(f"{place}: lacks {missing[0]} of {TITLE}")
    advice = f"get {TRAIN_ARCHIVE} and {TEST_ARCHIVE}, the {VERSION}, which the paper used"
    for place in places:
        if any(os.path.exists(place / entry) for entry in _NPZ_FILES):
            raise UsageError(
                f"{place}: holds the npz version of {TITLE} (Chrabaszcz et al. 2017), which gives "
                f"other likelihoods and is not read: {advice}; {_WHERE} says where"
            )
    looked = places[-1] if given is None else f"{given[0]} ({given[1]})"
    raise UsageError(
        f"no {TITLE} in {looked}: register at https://image-net.org, {advice} ({_WHERE} says "
        "where), and give their folder with --data-dir"
    )


def _read_record(folder: Path) -> dict | None:
    """What the copy in a folder was made from; None if there is none of the present split."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        split = record["validation_count"], record["validation_seed"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if split == (VALIDATION_COUNT, VALIDATION_SEED) else None


def _copy(place: Path, folder: Path, report: Callable[[str], None]) -> None:
    """Make `folder`, the uncompressed copy of the archives in `place`, unless it is there.

    The copy appears under its name only when it is whole, so an interruption at any time leaves
    none.
    """
    sizes = {name: (place / name).stat().st_size for name in (TRAIN_ARCHIVE, TEST_ARCHIVE)}
    record = _read_record(folder)
    if record is not None and record.get("files") == sizes:
        return
    needed = (TRAIN_COUNT + TEST_COUNT) * _BYTES
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if free < needed:
            raise SnfnpError(
                f"{folder.parent}: the uncompressed copy of {TITLE} needs {needed / 1e9:.1f} GB "
                f"and {free / 1e9:.1f} GB are free; make room there"
            )
        report(
            f"copying {TITLE}, {VERSION}, once into {folder} ({needed / 1e9:.1f} GB "
            "uncompressed); this takes minutes"
        )
        with tempfile.TemporaryDirectory(prefix=".copy-", dir=folder.parent) as temporary:
            part = Path(temporary) / folder.name
            part.mkdir()
            _write_splits(place, part)
            record = {
                "version": VERSION,
                "files": sizes,
                "validation_count": VALIDATION_COUNT,
                "validation_seed": VALIDATION_SEED,
            }
            (part / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            if folder.exists():
                os.replace(folder, Path(temporary) / "outdated")
            os.replace(part, folder)
    except OSError as error:
        raise SnfnpError(
            f"{folder}: the uncompressed copy of {TITLE} cannot be written ({error.strerror})"
        ) from error


def validation_mask(count: int) -> np.ndarray:
    """Which of `count` training images are for validation: bool (count,), always the same.

    The VALIDATION_COUNT images with the smallest of `count` random numbers, a choice without
    replacement that no version of NumPy changes.
    """
    order = np.argsort(words(np, RandomKey(VALIDATION_SEED, 0), count), kind="stable")
    mask = np.zeros(count, bool)
    mask[order[:VALIDATION_COUNT]] = True
    return mask


def _write_splits(place: Path, folder: Path) -> None:
    mask = validation_mask(TRAIN_COUNT)
    total = TRAIN_COUNT + TEST_COUNT
    with tqdm(total=total, unit="img", unit_scale=True, disable=None, dynamic_ncols=True) as bar:
        with (
            _create(folder / "train.npy", TRAIN_COUNT - VALIDATION_COUNT) as train,
            _create(folder / "validation.npy", VALIDATION_COUNT) as validation,
        ):
            start = 0
            for images in _counted_blocks(place / TRAIN_ARCHIVE, TRAIN_COUNT):
                chosen = mask[start : start + len(images)]
                train.write(images[~chosen].tobytes())
                validation.write(images[chosen].tobytes())
                start += len(images)
                bar.update(len(images))
        with _create(folder / "test.npy", TEST_COUNT) as test:
            for images in _counted_blocks(place / TEST_ARCHIVE, TEST_COUNT):
                test.write(images.tobytes())
                bar.update(len(images))


def _create(path: Path, count: int) -> BinaryIO:
    """Start an .npy file of `count` images, which are to be written as plain bytes.

    Not through a memory map: a disk that runs full would then end the process by a signal.
    """
    file = open(path, "wb")  # noqa: SIM115, the caller closes it
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *_SHAPE)}
    np.lib.format.write_array_header_1_0(file, header)
    return file


def _counted_blocks(archive: Path, count: int) -> Iterator[np.ndarray]:
    """The blocks of an archive, `count` images in all.

    Raises:
        SnfnpError: there are more or fewer.
    """
    read = 0
    for images in _blocks(archive):
        read += len(images)
        if read > count:
            break
        yield images
    if read != count:
        found = f"more than {count:,}" if read > count else f"{read:,}"
        raise SnfnpError(
            f"{archive}: {found} images, not the {count:,} of the {VERSION}; replace with a "
            "fresh copy"
        )


def _blocks(archive: Path) -> Iterator[np.ndarray]:
    """The PNG images in a tar archive, in its order, as uint8 (n, 32, 32, 3).

    Raises:
        SnfnpError: the archive or an image is damaged, or an image is of another size or type.
    """
    block = []
    for member, content in read_tar(archive, lambda m: PurePosixPath(m).suffix == ".png"):
        block.append(_decode_png(content, f"{archive}: {member}"))
        if len(block) == _BLOCK:
            yield np.stack(block)
            block.clear()
    if block:
        yield np.stack(block)


def _decode_png(content: bytes, where: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.size != (32, 32) or image.mode != "RGB":
                width, height = image.size
                raise SnfnpError(
                    f"{where} is {width} x {height} of type {image.mode}, not 32 x 32 of type RGB; "
                    "replace the archive with a fresh copy"
                )
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
        raise SnfnpError(
            f"{where} is damaged or no PNG file; replace the archive with a fresh copy"
        ) from error


def _open(folder: Path, place: Path) -> Dataset:
    counts = {
        "train": TRAIN_COUNT - VALIDATION_COUNT,
        "validation": VALIDATION_COUNT,
        "test": TEST_COUNT,
    }
    splits = {}
    for split, count in counts.items():
        path = folder / f"{split}.npy"
        try:
            splits[split] = np.load(path, mmap_mode="r", allow_pickle=False)
            problem = None if splits[split].shape == (count, *_SHAPE) else "wrong shape"
        except (OSError, *_NPY_ERRORS) as error:
            problem = one_line(error)
        if problem:
            raise SnfnpError(
                f"{path}: the copy is damaged ({problem}); delete {folder} to have it made again"
            )
    return Dataset(
        name=NAME,
        **splits,
        source=f"{TITLE}, {VERSION}, folder {place}, through the copy in {folder}",
        is_sample=False,
    )
