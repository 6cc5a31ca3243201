"""Reading the archives of ImageNet32 (see `snfnp.data.imagenet`) block by block."""

import io
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from PIL import Image

from snfnp.data.files import channels_last, one_line, read_tar
from snfnp.errors import SnfnpError

NPZ_TRAIN = tuple(f"train_data_batch_{index}.npz" for index in range(1, 11))
NPZ_TEST = ("val_data.npz",)

# What NumPy raises for a damaged .npy header or too little data after it.
NPY_ERRORS = (ValueError, EOFError, SyntaxError, tokenize.TokenError)
# What zipfile raises for damaged archives, and for kinds of them that it cannot read.
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError)

_BLOCK = 4096  # images
_BYTES = 32 * 32 * 3
_LARGEST = 1_281_167  # images in a batch, at the very most


def read_png_archives(paths: list[Path]) -> Iterator[np.ndarray]:
    """The images in tar archives of PNG files, in the archives' order.

    Yields:
        uint8 (n, 32, 32, 3).

    Raises:
        SnfnpError: an archive or an image is damaged, or an image is of another size or type.
    """
    block = []
    for path in paths:
        for member, content in read_tar(path, lambda m: PurePosixPath(m).suffix == ".png"):
            block.append(_decode_png(content, f"{path}: {member}"))
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


def read_npz_files(paths: list[Path]) -> Iterator[np.ndarray]:
    """The images in npz batches, or in zip archives of such batches.

    Memory holds one batch at a time: 0.4 GB for those of the training images.

    Yields:
        uint8 (n, 32, 32, 3).

    Raises:
        SnfnpError: a file is damaged, lacks a batch, or holds something else.
    """
    for path in paths:
        try:
            with open(path, "rb") as file:
                if path.suffix == ".npz":
                    yield from _read_batch(file, str(path))
                else:
                    yield from _read_zip_of_batches(file, path)
        except OSError as error:
            raise SnfnpError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_zip_of_batches(file: BinaryIO, path: Path) -> Iterator[np.ndarray]:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise SnfnpError(
            f"{path}: damaged or no zip archive; replace it with a fresh copy"
        ) from error
    with archive:
        members = {PurePosixPath(name).name: name for name in archive.namelist()}
        batches = NPZ_TEST if NPZ_TEST[0] in members else NPZ_TRAIN
        missing = [batch for batch in batches if batch not in members]
        if missing:
            raise SnfnpError(f"{path}: lacks {', '.join(missing)}; replace it with a fresh copy")
        for batch in batches:
            where = f"{path}: {batch}"
            try:
                member = archive.open(members[batch])
            except _ZIP_ERRORS as error:
                raise _damaged_batch(where, error) from error
            with member:
                yield from _read_batch(member, where)


def _read_batch(file: BinaryIO, where: str) -> Iterator[np.ndarray]:
    """The images in an npz file: its array "data", uint8 (N, 3072). The rest is not read."""
    try:
        with zipfile.ZipFile(file) as archive, archive.open("data.npy") as data:
            # The header first: a damaged one could ask for any amount of memory.
            version = np.lib.format.read_magic(data)
            if version == (1, 0):
                shape, _, dtype = np.lib.format.read_array_header_1_0(data)
            else:
                shape, _, dtype = np.lib.format.read_array_header_2_0(data)
            expected_size = len(shape) == 2 and shape[1] == _BYTES and shape[0] <= _LARGEST
            if not expected_size or dtype != np.uint8:
                found = " x ".join(map(str, shape))
                raise SnfnpError(
                    f"{where}: data is {dtype} of {found}, not uint8 of N x {_BYTES}; replace it "
                    "with a fresh copy"
                )
            data.seek(0)
            images = np.lib.format.read_array(data, allow_pickle=False)
    except KeyError as error:
        raise SnfnpError(f"{where}: has no array data; replace it with a fresh copy") from error
    except (*_ZIP_ERRORS, *NPY_ERRORS) as error:
        raise _damaged_batch(where, error) from error
    for start in range(0, len(images), _BLOCK):
        yield channels_last(images[start : start + _BLOCK])


def _damaged_batch(where: str, error: Exception) -> SnfnpError:
    return SnfnpError(
        f"{where}: damaged or no npz file ({one_line(error)}); replace it with a fresh copy"
    )
