"""Images and rows of numbers on entry: arrays in files, and checks, since the likelihood of other
data would be meaningless."""

import copy
import math
import os
import weakref
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from snfnp.errors import SnfnpError
from snfnp.files import open_regular

_AT_ONCE = 1 << 20  # numbers of a large array that are checked together
_COLOURS = (3, 4)  # channels of a colour image
# the first hides values, * of the second is @
_OTHER_ARRAYS = (np.ma.MaskedArray, np.matrix)
# bytes of an array that is read at once: reading it by parts takes longer
_SMALL = 1 << 28


class StoredArray:
    """An array (N, ...) in a .npy file: indexing, by a slice or an array of indices, reads samples.

    They are not mapped: truncating a mapped file kills the process that reads it by a signal.
    """

    def __init__(self, path: str | Path, header: np.memmap):
        descriptor = open_regular(path, follow=True)
        self._path = path
        self._file = open(descriptor, "rb", closefd=False)  # noqa: SIM115
        weakref.finalize(self._file, os.close, descriptor)
        self._offset = header.offset
        self._sample: tuple[int, ...] = header.shape[1:]
        self._state = self._now()
        self._indices = np.arange(len(header))
        self.dtype = header.dtype
        self.shape: tuple[int, ...] = header.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._indices)

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def __getitem__(self, chosen: Any) -> np.ndarray:
        """Raises SnfnpError once the file has changed."""
        form = np.shape(self._indices[chosen])
        indices = np.atleast_1d(self._indices[chosen])
        samples = np.empty((len(indices), *self._sample), self.dtype)
        content = memoryview(samples.reshape(-1).view(np.uint8).data)
        size = math.prod(self._sample) * self.dtype.itemsize
        short = False
        # samples that follow one another are read together
        starts = np.flatnonzero(np.diff(indices, prepend=-2) != 1).tolist()
        # no start of no samples
        for start, stop in zip(starts, [*starts[1:], len(indices)], strict=False):
            part = content[start * size : stop * size]
            offset = self._offset + int(indices[start]) * size
            while part and (count := os.preadv(self._file.fileno(), [part], offset)):
                part = part[count:]
                offset += count
            short |= len(part) > 0
        if short or self._now() != self._state:  # checked after each read
            raise SnfnpError(
                f"{self._path} has changed since it was opened: "
                "restore it and continue with `resume`, or start again"
            )
        return samples.reshape(*form, *self.shape[1:])

    def select(self, indices: np.ndarray) -> "StoredArray":
        """The samples of these indices, without reading them."""
        some = copy.copy(self)
        some._indices = self._indices[indices]
        some.shape = (len(some), *self.shape[1:])
        return some

    def with_channels(self) -> "StoredArray":
        """Images (N, H, W) as (N, H, W, 1)."""
        images = copy.copy(self)
        images.shape = (*self.shape, 1)
        return images


Samples = np.ndarray | StoredArray


def open_array(path: str | Path) -> Samples:
    """The array in a .npy file: in memory if it is small, or in Fortran's order; else in the file.

    Raises ValueError or OSError for a file that is no such array, or shorter or longer than its
    header says.
    """
    os.close(open_regular(path, follow=True))
    with np.errstate(over="ignore"):  # of the sizes in a damaged header
        header = np.lib.format.open_memmap(path, mode="r")  # its values are not read
    if more := os.path.getsize(path) - header.offset - header.nbytes:
        raise ValueError(f"{more:,} bytes follow the array that its header describes")
    if header.nbytes <= _SMALL or not header.ndim or not header.flags.c_contiguous:
        return np.load(path, allow_pickle=False)
    return StoredArray(path, header)


def selected(samples: Samples, indices: np.ndarray) -> Samples:
    """The samples of these indices; those of a `StoredArray` are not read."""
    return (
        samples.select(indices)
        if isinstance(samples, StoredArray)
        else samples[indices]
    )


def evenly_spread(samples: Any, count: int) -> Any:
    """`count` samples, or all if there are fewer, at even distances: the first samples of a file
    that is sorted are no sample of it."""
    if count >= len(samples):
        return samples
    return selected(samples, np.arange(count) * len(samples) // count)


def with_channels(images: Any, shape: tuple[int, ...] | None = None) -> Any:
    """Images (N, H, W) as (N, H, W, 1), anything else unchanged. shape: (H, W, 1), a model's."""
    if getattr(images, "ndim", 0) != 3:
        return images
    if (
        _is_one_colour_image(images)
        if shape is None
        else (*images.shape[1:], 1) != shape
    ):
        return images
    stored = isinstance(images, StoredArray)
    return images.with_channels() if stored else images[..., np.newaxis]


def _is_one_colour_image(images: Any) -> bool:
    """True if an array of three axes is (H, W, C) rather than (N, H, W)."""
    return (
        images.ndim == 3
        and images.shape[-1] in _COLOURS
        and images.shape[1] > max(_COLOURS)
    )


def parts(samples: Samples) -> Iterator[tuple[int, np.ndarray]]:
    """(index of the first sample, samples) for consecutive parts of an array (N, ...)."""
    count = max(1, _AT_ONCE // max(1, math.prod(samples.shape[1:])))
    for first in range(0, len(samples), count):
        yield first, samples[first : first + count]


def is_rows(samples: Any) -> bool:
    """True for rows of floats, (N, D)."""
    return (
        isinstance(samples, Samples) and samples.ndim == 2 and samples.dtype.kind == "f"
    )


def fault(
    images: Any, shape: tuple[int, ...] | None = None, levels: int | None = 256
) -> str | None:
    """The reason why something is no array (N, *shape) of integers in [0, levels), and the remedy,
    or None.

    Values of bytes are not read if all 256 are levels: O(1), without waiting for a device. Rows on
    a device are not read either.

    Args:
        images: images or rows, or anything else.
        shape: of an image (H, W, C) or a row (D,); None for samples of a data set: uint8 images of
            any size, or rows of floats, on the host.
        levels: of images; None for rows (N, D) of finite numbers.
    """
    if levels is None or shape is None and is_rows(images):
        return _fault_of_rows(images, shape)
    wanted = f"({', '.join(map(str, ('N', *(shape or 'HWC'))))})"
    if problem := _fault_of_type(images, on_host=shape is None):
        rows = ", or of floats, (N, D)" if shape is None else ""
        return f"{problem}; give a NumPy array of uint8, {wanted}{rows}"
    if problem := _fault_of_shape(images, shape, wanted):
        return problem
    if images.dtype == np.uint8 and levels == 256:
        return None
    extremes = [(part.min(), part.max()) for _, part in parts(images)]
    low = reduce(np.minimum, [low for low, _ in extremes])
    high = reduce(np.maximum, [high for _, high in extremes])
    real = images.dtype.kind == "f"
    cast = (
        "" if shape is not None and images.dtype.kind in "ui" else " and cast to uint8"
    )
    extent = f"from {low:.4g} to {high:.4g}" if real else f"from {low} to {high}"
    if not (low >= 0 and high < levels):
        return f"values {extent}; bring them to 0 to {levels - 1}{cast}"
    if not cast:
        return None
    fraction = images.dtype.kind in "bf" and high <= 1
    remedy = f"multiply by {levels - 1}" if fraction else "round"
    return f"{images.dtype} {extent}; {remedy}{cast}"


def _fault_of_type(samples: Any, on_host: bool) -> str | None:
    """The reason why something is no array of numbers, or None; on_host: nor one of a device."""
    dtype: Any = getattr(samples, "dtype", None)
    is_array = isinstance(dtype, np.dtype) and not isinstance(samples, _OTHER_ARRAYS)
    if not is_array or on_host and not isinstance(samples, Samples):
        return f"{type(samples).__name__} instead of numbers"
    return None if dtype.kind in "buif" else f"{dtype} instead of numbers"


def _fault_of_shape(
    images: Any, shape: tuple[int, ...] | None, wanted: str
) -> str | None:
    message = f"shape {images.shape}"
    if shape is None and _is_one_colour_image(images):
        advice = "give images[np.newaxis]"
        return f"{message} is one image (H, W, C) without an axis of samples; {advice}"
    if images.ndim == 3 and shape in (None, (*images.shape[1:], 1)):
        return f"{message} lacks the channel axis; give images[..., np.newaxis]"
    if shape is None and images.ndim != 4:
        advice = "give images of that shape, or rows of floats"
        return f"{images.dtype} of {message} is not {wanted}; {advice}"
    if shape is not None and images.shape[1:] != shape:
        return f"{message} is not {wanted}; give images of that shape"
    if images.size == 0:
        return f"{message} has no pixels; give at least one image"
    if (
        shape is None
        and images.shape[1] in (1, *_COLOURS)
        and min(images.shape[2:]) > 4
    ):
        return (
            f"{message} has the channels on axis 1; give images.transpose(0, 2, 3, 1)"
        )
    return None


def _fault_of_rows(rows: Any, shape: tuple[int, ...] | None) -> str | None:
    wanted = f"(N, {shape[0] if shape else 'D'})"
    if problem := _fault_of_type(rows, on_host=False):
        return f"{problem}; give an array of floats, {wanted}"
    if len(rows.shape) != 2 or shape not in (None, rows.shape[1:]):
        return f"shape {rows.shape} is not {wanted}; give rows of that length"
    if 0 in rows.shape:
        return f"shape {rows.shape} has no numbers; give at least one row"
    if not isinstance(rows, Samples):  # on a device
        return None
    for first, part in parts(rows):
        finite = np.isfinite(part)
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            message = (
                f"{part[row, column]} in row {first + row}, column {column} (from 0)"
            )
            return f"{message}; leave such rows out, or fill them in"
    return None
