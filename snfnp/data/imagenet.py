"""ImageNet32: ImageNet downsampled to 32 x 32 (van den Oord et al., 2016, "Pixel Recurrent Neural
Networks"), as one tar archive of PNG files per split: 1,281,149 and 49,999 images.

Keller et al. 2021 used this version: their code reads these archives, and 20,000 images for
validation leave the 1,261,149 for training of their appendix A.3. Another data set of the same
name, in npz files (Chrabaszcz et al., 2017, "A Downsampled Variant of ImageNet", 1,281,167 and
50,000 images), was downsampled differently, so that likelihoods cannot be compared, and is not
read.

The archives are copied once into uncompressed .npy files in the user's cache (4.1 GB, minutes), and
mapped into memory from there.
"""

import io
import json
import os
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain, repeat
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from snfnp.data.files import SPLITS, Dataset, Published, cache_folder, file_digest
from snfnp.data.reading import damaged, one_line, opened, read_at_most, read_tar
from snfnp.errors import SnfnpError
from snfnp.ops.random.philox import RandomKey, words

VERSION = "PNG version (van den Oord et al. 2016)"
TRAIN_ARCHIVE, TEST_ARCHIVE = "train_32x32.tar", "valid_32x32.tar"
TRAIN_COUNT = 1_281_149  # images in the archive, before those for validation are taken out
TEST_COUNT = 49_999
VALIDATION_COUNT = 20_000  # Keller et al. 2021, appendix A.3
VALIDATION_SEED = 0  # of the random choice of those images; changing it changes every result

_SHAPE = (32, 32, 3)
_MOST = 1 << 16  # bytes of a PNG file, whose pixels alone have 3072, and of a record
_COPY, _RECORD = "png", "record.json"


class ImageNet32(Published):
    """ImageNet32, which is given to registered users only: two archives, or the copy of them.

    Archives in the cache may be deleted once they are copied. The official validation images are
    the test split, 20,000 random training images (VALIDATION_SEED) those for validation, the rest
    for training, in the order of the archive; all three are read-only `numpy.memmap`s.
    """

    def find(self, folder: Path) -> dict[str, Path]:
        """The archives in a folder; the copy in it is enough, should one of them be gone."""
        archives, copy = super().find(folder), folder / _COPY
        if len(archives) < 2 and _read_record(copy):
            return {"train": copy, "test": copy}
        return archives

    def read(self, files: dict[str, Path], source: str, report: Callable) -> Dataset:
        copy, splits = files["train"], {}
        if not copy.is_dir():
            copy = cache_folder(self.name) / _COPY
            sizes = {path.name: path.stat().st_size for path in files.values()}
            if _read_record(copy).get("files") != sizes:
                _make_copy(copy, files, sizes, report)
            source = f"{source}, through the copy in {copy}"
        for split, digest in _read_record(copy)["sha256"].items():  # some seconds
            path = copy / f"{split}.npy"
            try:
                if file_digest(path, "sha256") != digest:
                    raise ValueError("wrong checksum")
                splits[split] = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                problem = f"the copy is damaged ({one_line(error)})"
                raise SnfnpError(f"{path}: {problem}; delete {copy} to make it again") from error
        source = f"{self.title}, {VERSION}, {source}"
        return Dataset(self.name, **splits, source=source, is_sample=False)


IMAGENET32 = ImageNet32(
    name="imagenet32",
    title="ImageNet32",
    mirrors=(),
    names={"train": TRAIN_ARCHIVE, "test": TEST_ARCHIVE},
    # image-net.org no longer has the PNG version; the thread compares the two data sets and says
    # where copies of it are.
    advice=f"register at https://image-net.org, get {TRAIN_ARCHIVE} and {TEST_ARCHIVE}, the "
    f"{VERSION}, which the paper used (https://github.com/tensorflow/datasets/issues/4662 says "
    "where; the npz version gives other likelihoods, and is not read),",
)


def validation_mask(count: int) -> np.ndarray:
    """A mask of the training images that are for validation: bool (count,), always the same.

    The VALIDATION_COUNT images with the smallest of `count` random numbers, a choice without
    replacement that no version of NumPy changes.
    """
    order = np.argsort(words(np, RandomKey(VALIDATION_SEED, 0), count), kind="stable")
    mask = np.zeros(count, bool)
    mask[order[:VALIDATION_COUNT]] = True
    return mask


def _read_record(folder: Path) -> dict:
    """The record of the copy in a folder; empty if there is no copy with the present split."""
    try:
        with opened(folder / _RECORD) as file:
            record = json.loads(read_at_most(file, _MOST))
        split = record["validation_count"], record["validation_seed"], set(record["sha256"])
    except (SnfnpError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return record if split == (VALIDATION_COUNT, VALIDATION_SEED, set(SPLITS)) else {}


def _make_copy(folder: Path, files: dict[str, Path], sizes: dict, report: Callable) -> None:
    """Write the uncompressed copy of the archives.

    It appears under its name only when it is whole, so an interruption at any time leaves none.
    """
    needed, parent = (TRAIN_COUNT + TEST_COUNT) * int(np.prod(_SHAPE)), folder.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(parent).free < needed:
            raise OSError(0, f"it takes {needed / 1e9:.1f} GB: make room there")
        report(f"copying ImageNet32, {VERSION}, once into {folder}; this takes minutes")
        with tempfile.TemporaryDirectory(prefix=".copy-", dir=parent) as temporary:
            part = Path(temporary) / folder.name
            part.mkdir()
            _write_splits(files, part)
            record = {
                "version": VERSION,
                "files": sizes,
                "validation_count": VALIDATION_COUNT,
                "validation_seed": VALIDATION_SEED,
                "sha256": {split: file_digest(part / f"{split}.npy", "sha256") for split in SPLITS},
            }
            (part / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            if folder.exists():
                os.replace(folder, Path(temporary) / "outdated")
            os.replace(part, folder)
    except OSError as error:
        problem = f"the copy of ImageNet32 cannot be written ({error.strerror})"
        raise SnfnpError(f"{folder}: {problem}") from error


def _write_splits(files: dict[str, Path], folder: Path) -> None:
    """Write the splits as .npy files, the pixels as plain bytes.

    Not through a memory map: a disk that runs full would then end the process by a signal.
    """
    counts = (TRAIN_COUNT - VALIDATION_COUNT, VALIDATION_COUNT, TEST_COUNT)
    images = chain(_images(files["train"], TRAIN_COUNT), _images(files["test"], TEST_COUNT))
    places = chain(validation_mask(TRAIN_COUNT).astype(int), repeat(2))  # of each, in SPLITS
    with ExitStack() as stack:
        splits = []
        for split, count in zip(SPLITS, counts, strict=True):
            splits.append(stack.enter_context(open(folder / f"{split}.npy", "wb")))
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *_SHAPE)}
            np.lib.format.write_array_header_1_0(splits[-1], header)
        total = TRAIN_COUNT + TEST_COUNT
        for pixels in tqdm(images, total=total, unit="img", unit_scale=True, disable=None):
            splits[next(places)].write(pixels.tobytes())


def _images(archive: Path, count: int) -> Iterator[np.ndarray]:
    """The `count` PNG images in a tar archive, in its order, each uint8 (32, 32, 3).

    Raises SnfnpError if there are more or fewer, or one is damaged, of another size or type.
    """
    read = 0
    for member, content in read_tar(archive, lambda name: name.endswith(".png"), _MOST):
        read += 1
        if read > count:
            break
        try:
            # Before the decoder takes memory: the size stands in these bytes of every PNG file.
            if len(content) > _MOST or content[16:24] != struct.pack(">2I", *_SHAPE[:2]):
                raise ValueError("too long, or of another size")
            with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
                mode, pixels = image.mode, np.asarray(image)
        except (OSError, SyntaxError, ValueError, EOFError, zlib.error) as error:
            problem = f"{member} is damaged or no PNG file of 32 x 32 pixels"
            raise damaged(archive, problem) from error
        if mode != "RGB":
            raise damaged(archive, f"{member} is of type {mode}, not RGB")
        yield pixels
    if read != count:
        there = f"more than {count:,}" if read > count else f"{read:,}"
        raise damaged(archive, f"{there} images, not the {count:,} of the {VERSION}")
