"""ImageNet32: ImageNet downsampled to 32 x 32 (van den Oord et al., 2016, "Pixel Recurrent Neural
Networks"), as one tar archive of PNG files per split: 1,281,149 and 49,999 images.

Keller et al. 2021 used this version: their code reads these archives, and 20,000 images for
validation leave the 1,261,149 for training of their appendix A.3. Another data set of the same
name, in npz files (Chrabaszcz et al., 2017, "A Downsampled Variant of ImageNet", 1,281,167 and
50,000 images), was downsampled differently, so that likelihoods cannot be compared, and is not
read.

The archives are copied once into an uncompressed .npy file in the user's cache (4.1 GB, minutes),
and read from there as they are needed. Behind its last image is the SHA-256 of them all, with which
they are compared each time (4.1 GB are read, seconds); a copy by an earlier version has none.
"""

import hashlib
import io
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from snfnp.data.dataset import Dataset
from snfnp.data.npy import open_array
from snfnp.data.published import Published, cache_folder
from snfnp.data.reading import damaged, one_line, read_tar
from snfnp.errors import SnfnpError
from snfnp.images import parts
from snfnp.ops.random.philox import RandomKey, words

VERSION = "PNG version (van den Oord et al. 2016)"
TRAIN_ARCHIVE, TEST_ARCHIVE = "train_32x32.tar", "valid_32x32.tar"
TRAIN_COUNT = 1_281_149  # images in the archive, before those for validation are taken out
TEST_COUNT = 49_999
VALIDATION_COUNT = 20_000  # Keller et al. 2021, appendix A.3
VALIDATION_SEED = 0  # of the random choice of those images; changing it changes every result

_SHAPE = (32, 32, 3)
_MOST = 1 << 16  # bytes of a PNG file, whose pixels alone have 3072


class ImageNet32(Published):
    """ImageNet32, which is given to registered users only: two archives, or the copy of them.

    Archives in the cache may be deleted once they are copied. The official validation images are
    the test split, 20,000 random training images (VALIDATION_SEED) those for validation, the rest
    for training, in the order of the archive.
    """

    def find(self, folder: Path) -> dict[str, Path]:
        """The archives in a folder; the copy in it is enough, should one of them be gone."""
        archives, copies = super().find(folder), sorted(folder.glob("png-*.npy"))
        return dict.fromkeys(self.names, copies[-1]) if len(archives) < 2 and copies else archives

    def read(self, files: dict[str, Path], source: str, report: Callable) -> Dataset:
        copy = files["train"]
        if copy.suffix != ".npy":
            # Archives of other sizes are other archives, and have a copy of their own.
            train, test = (files[key].stat().st_size for key in self.names)
            copy = cache_folder(self.name) / f"png-{train}-{test}.npy"
            if not copy.exists():
                _make_copy(copy, files, report)
            source = f"{source}, through the copy {copy}"
        try:
            images = open_array(copy)
            if images.shape != (TRAIN_COUNT + TEST_COUNT, *_SHAPE):
                raise ValueError(f"its shape is {images.shape}")
            with open(copy, "rb") as file:
                np.lib.format.read_magic(file)
                np.lib.format.read_array_header_1_0(file)
                file.seek(images.nbytes, os.SEEK_CUR)
                if kept := file.read(64):
                    digest = hashlib.sha256()
                    for _, part in parts(images):
                        digest.update(part)
                    if kept != digest.digest():
                        raise ValueError("its checksum differs")
        except (OSError, ValueError, EOFError) as error:
            problem = f"the copy is damaged ({one_line(error)})"
            raise SnfnpError(f"{copy}: {problem}; delete it to make it again") from error
        places = np.arange(len(images))
        places = np.split(places, [TRAIN_COUNT - VALIDATION_COUNT, TRAIN_COUNT])
        splits = map(images.select, places)
        return Dataset(self.name, *splits, f"{self.title}, {VERSION}, {source}", is_sample=False)


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
    return np.isin(np.arange(count), order[:VALIDATION_COUNT])


def _make_copy(copy: Path, files: dict[str, Path], report: Callable) -> None:
    """Write the images of the archives uncompressed: for training, validation and test.

    It appears under its name only when it is whole, so an interruption at any time leaves none. Not
    through a memory map: a disk that runs full would then end the process by a signal.
    """
    shape, held_out = (TRAIN_COUNT + TEST_COUNT, *_SHAPE), []
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    digest = hashlib.sha256()
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        report(f"copying ImageNet32, {VERSION}, once into {copy}; this takes minutes")
        with tempfile.TemporaryDirectory(prefix=".copy-", dir=copy.parent) as temporary:
            part = Path(temporary) / copy.name
            with open(part, "wb") as file:

                def write(pixels: np.ndarray) -> None:
                    file.write(pixels.tobytes())
                    digest.update(pixels.tobytes())

                np.lib.format.write_array_header_1_0(file, header)
                train = tqdm(_images(files["train"], TRAIN_COUNT), total=TRAIN_COUNT, disable=None)
                for pixels, held in zip(train, validation_mask(TRAIN_COUNT), strict=True):
                    (held_out.append if held else write)(pixels)  # 61 MB are held in all
                for pixels in chain(held_out, _images(files["test"], TEST_COUNT)):
                    write(pixels)
                file.write(digest.digest())
            os.replace(part, copy)
    except OSError as error:
        raise SnfnpError(f"{copy}: the copy cannot be written ({error.strerror})") from error


def _images(archive: Path, count: int) -> Iterator[np.ndarray]:
    """The `count` PNG images in a tar archive, in its order, each uint8 (32, 32, 3).

    Raises SnfnpError if there are more or fewer, or one is damaged, of another size or type.
    """
    read, members = 0, read_tar(archive, lambda name: name.endswith(".png"), _MOST)
    for read, (member, content) in enumerate(members, start=1):
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
