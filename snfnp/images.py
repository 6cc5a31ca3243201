"""Images and rows of numbers on entry: arrays in files, and checks, since the likelihood of other
data would be meaningless."""

import copy
import math
import os
import weakref
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

from snfnp.errors import SnfnpError
from snfnp.files import open_regular

_AT_ONCE = 1 << 20  # numbers of a large array that are checked together
_COLOURS = (3, 4)  # channels of a colour image
_OTHER_ARRAYS = (np.ma.MaskedArray, np.matrix)  # the first hides values, * of the second is @
_SMALL = 1 << 28  # bytes of an array that is read at once: reading it by parts takes longer


class StoredArray:
    """An array (N, ...) in a .npy file: indexing, by a slice or an array of places, reads samples.

    They are not mapped: truncating a mapped file kills the process that reads it by a signal.
    """

    def __init__(self, path: str | Path, header: np.memmap):
        descriptor = open_regular(path, follow=True)
        self._path, self._file = path, open(descriptor, "rb", closefd=False)  # noqa: SIM115
        weakref.finalize(self._file, os.close, descriptor)
        self._offset, self._sample, self._state = header.offset, header.shape[1:], self._now()
        self.dtype, self.shape, self._places = header.dtype, header.shape, np.arange(len(header))

    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: math.prod(self.shape))
    nbytes = property(lambda self: self.size * self.dtype.itemsize)

    def __len__(self) -> int:
        return len(self._places)

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def __getitem__(self, places) -> np.ndarray:
        """Raises SnfnpError once the file has changed."""
        places, form = self._places[places], np.shape(self._places[places])
        places = np.atleast_1d(places)
        samples = np.empty((len(places), *self._sample), self.dtype)
        content = memoryview(samples.reshape(-1).view(np.uint8).data)
        size, short = math.prod(self._sample) * self.dtype.itemsize, False
        # samples that follow one another are read together
        starts = np.flatnonzero(np.diff(places, prepend=-2) != 1).tolist()
        for start, stop in zip(starts, [*starts[1:], len(places)], strict=False):
            part, at = content[start * size : stop * size], self._offset + int(places[start]) * size
            while part and (count := os.preadv(self._file.fileno(), [part], at)):
                part, at = part[count:], at + count
            short |= len(part) > 0
        if short or self._now() != self._state:  # checked after each read
            found = f"{self._path} has changed since it was opened"
            raise SnfnpError(f"{found}: restore it and continue with `resume`, or start again")
        return samples.reshape(*form, *self.shape[1:])

    def select(self, places: np.ndarray) -> "StoredArray":
        """The samples at these places, without reading them."""
        some = copy.copy(self)
        some._places = self._places[places]
        some.shape = (len(some), *self.shape[1:])
        return some

    def with_channels(self) -> "StoredArray":
        """Images (N, H, W) as (N, H, W, 1)."""
        images = copy.copy(self)
        images.shape = (*self.shape, 1)
        return images


def open_array(path: str | Path) -> np.ndarray | StoredArray:
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


def selected(samples, places: np.ndarray):
    """The samples at these places; those of a `StoredArray` are not read."""
    return samples.select(places) if isinstance(samples, StoredArray) else samples[places]


def evenly_spread(samples: Any, count: int) -> Any:
    """`count` samples, or all if there are fewer, at even distances: the first samples of a file
    that is sorted are no sample of it."""
    if count >= len(samples):
        return samples
    return selected(samples, np.arange(count) * len(samples) // count)


def with_channels(images, shape: tuple[int, ...] | None = None):
    """Images (N, H, W) as (N, H, W, 1), anything else unchanged. shape: (H, W, 1), a model's."""
    if getattr(images, "ndim", 0) != 3:
        return images
    if _is_one_colour_image(images) if shape is None else (*images.shape[1:], 1) != shape:
        return images
    stored = isinstance(images, StoredArray)
    return images.with_channels() if stored else images[..., np.newaxis]


def _is_one_colour_image(images) -> bool:
    """True if an array of three axes is (H, W, C) rather than (N, H, W)."""
    return images.ndim == 3 and images.shape[-1] in _COLOURS and images.shape[1] > max(_COLOURS)


def parts(samples):
    """(place of the first sample, samples) for consecutive parts of an array (N, ...)."""
    count = max(1, _AT_ONCE // max(1, math.prod(samples.shape[1:])))
    for first in range(0, len(samples), count):
        yield first, samples[first : first + count]


def is_rows(samples) -> bool:
    """True for rows of floats, (N, D)."""
    array = isinstance(samples, (np.ndarray, StoredArray))
    return array and samples.ndim == 2 and samples.dtype.kind == "f"


def _fault_of_type(samples: Any, kinds) -> str | None:
    """The reason why something is no array of numbers of one of these kinds, or None."""
    kind: Any = getattr(samples, "dtype", None)
    array = isinstance(kind, np.dtype) and not isinstance(samples, _OTHER_ARRAYS)
    if not array or not isinstance(samples, kinds):
        return f"{type(samples).__name__} instead of numbers"
    return None if kind.kind in "buif" else f"{kind} instead of numbers"


def fault(
    images: Any, shape: tuple[int, ...] | None = None, levels: int | None = 256
) -> str | None:
    """The reason why something is no array (N, *shape) of integers in [0, levels), and the remedy,
    or None. shape: None for samples of a data set: uint8 images of any (H, W, C), or rows of
    floats, on the host; levels: None for rows (N, D) of finite numbers.

    Values of bytes are not read if all 256 are levels: O(1), without waiting for a device. Rows on
    a device are not read either.
    """
    if levels is None or shape is None and is_rows(images):
        return _fault_of_rows(images, shape)
    wanted = f"({', '.join(map(str, ('N', *(shape or 'HWC'))))})"
    if found := _fault_of_type(images, (np.ndarray, StoredArray) if shape is None else object):
        rows = ", or of floats, (N, D)" if shape is None else ""
        return f"{found}; give a NumPy array of uint8, {wanted}{rows}"
    kind = images.dtype
    found = f"shape {images.shape}"
    if shape is None and _is_one_colour_image(images):
        return f"{found} is one image (H, W, C) without an axis of samples; give images[np.newaxis]"
    if images.ndim == 3 and shape in (None, (*images.shape[1:], 1)):
        return f"{found} lacks the channel axis; give images[..., np.newaxis]"
    if shape is None and images.ndim != 4:
        return f"{kind} of {found} is not {wanted}; give images of that shape, or rows of floats"
    if shape is not None and images.shape[1:] != shape:
        return f"{found} is not {wanted}; give images of that shape"
    if images.size == 0:
        return f"{found} has no pixels; give at least one image"
    if shape is None and images.shape[1] in (1, *_COLOURS) and min(images.shape[2:]) > 4:
        return f"{found} has the channels on axis 1; give images.transpose(0, 2, 3, 1)"
    if kind == np.uint8 and levels == 256:
        return None
    lows, highs = zip(*((part.min(), part.max()) for _, part in parts(images)), strict=True)
    low, high = reduce(np.minimum, lows), reduce(np.maximum, highs)
    cast = "" if shape is not None and kind.kind in "ui" else " and cast to uint8"
    extent = f"from {low:.4g} to {high:.4g}" if kind.kind == "f" else f"from {low} to {high}"
    if not (low >= 0 and high < levels):
        return f"values {extent}; bring them to 0 to {levels - 1}{cast}"
    if not cast:
        return None
    remedy = f"multiply by {levels - 1}" if kind.kind in "bf" and high <= 1 else "round"
    return f"{kind} {extent}; {remedy}{cast}"


def _fault_of_rows(rows: Any, shape: tuple[int, ...] | None) -> str | None:
    wanted = f"(N, {shape[0] if shape else 'D'})"
    if found := _fault_of_type(rows, object):
        return f"{found}; give an array of floats, {wanted}"
    if len(rows.shape) != 2 or shape not in (None, rows.shape[1:]):
        return f"shape {rows.shape} is not {wanted}; give rows of that length"
    if 0 in rows.shape:
        return f"shape {rows.shape} has no numbers; give at least one row"
    for first, part in parts(rows) if isinstance(rows, (np.ndarray, StoredArray)) else ():
        if not (finite := np.isfinite(part)).all():
            row, column = np.argwhere(~finite)[0]
            where = f"{part[row, column]} in row {first + row}, column {column} (from 0)"
            return f"{where}; leave such rows out, or fill them in"
    return None
