"""Checks of images and rows of numbers on entry: the likelihood of anything else would be
meaningless."""

import math
from functools import reduce
from typing import Any

import numpy as np

_AT_ONCE = 1 << 20  # numbers of a large array that are checked together
_COLOURS = (3, 4)  # channels of a colour image
_OTHER_ARRAYS = (np.ma.MaskedArray, np.matrix)  # the first hides values, * of the second is @


class StoredArray:
    """An array (N, ...) in a file: indexing, by a slice or an array of places, reads samples.

    read(places): these samples; places: the sample at each index (None: all, in order).
    """

    def __init__(self, read, dtype, shape: tuple[int, ...], places: np.ndarray | None = None):
        self._read, self.dtype = read, np.dtype(dtype)
        self._places = np.arange(shape[0]) if places is None else places
        self.shape = (len(self._places), *shape[1:])
        self.ndim, self.size = len(shape), math.prod(self.shape)
        self.nbytes = self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, places) -> np.ndarray:
        found = self._places[places]
        return self._read(np.atleast_1d(found)).reshape(*np.shape(found), *self.shape[1:])

    def select(self, places: np.ndarray) -> "StoredArray":
        """The samples at these places, without reading them."""
        return StoredArray(self._read, self.dtype, self.shape, self._places[places])

    def with_channels(self) -> "StoredArray":
        """Images (N, H, W) as (N, H, W, 1)."""
        return StoredArray(self._read, self.dtype, (*self.shape, 1), self._places)


def selected(samples, places: np.ndarray):
    """The samples at these places; those of a `StoredArray` are not read."""
    return samples.select(places) if isinstance(samples, StoredArray) else samples[places]


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


def fault(images: Any, shape: tuple[int, ...] | None = None, levels: int = 256) -> str | None:
    """The reason why something is no array (N, *shape) of integers in [0, levels), and the remedy,
    or None. shape: None for a data set's images: NumPy's, uint8, of any (H, W, C).

    Values of bytes are not read if all 256 are levels: O(1), without waiting for a device.
    """
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
    if images.ndim != 4 if shape is None else images.shape[1:] != shape:
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
    if not (low >= 0 and high < levels):
        return f"values from {low} to {high}; bring them to 0 to {levels - 1}{cast}"
    if not cast:
        return None
    remedy = f"multiply by {levels - 1}" if kind.kind in "bf" and high <= 1 else "round"
    return f"{kind} from {low} to {high}; {remedy}{cast}"


def fault_of_rows(rows: Any, shape: tuple[int, ...] | None = None) -> str | None:
    """The result of `fault` for rows (N, D) of finite numbers; shape: (D,), a model's, or None.

    Values on the host are checked; those on a device are not, without waiting for it.
    """
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
