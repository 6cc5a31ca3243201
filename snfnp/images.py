"""Checks of images and of rows of numbers, wherever they enter: of anything else a likelihood would
be no likelihood."""

import math

import numpy as np

_AT_ONCE = 1 << 20  # numbers of a large array that are looked at together


class Mapped:
    """Samples index[0], index[1], … of an array (M, ...) that is mapped from a file. Only what is
    asked for, by a slice or an array of places, is read."""

    def __init__(self, array: np.ndarray, index: np.ndarray):
        self._array, self._index = array, index
        self.dtype, self.shape = array.dtype, (len(index), *array.shape[1:])
        self.ndim, self.size = array.ndim, math.prod(self.shape)
        self.nbytes = self.size * array.itemsize

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, places) -> np.ndarray:
        return self._array[self._index[places]]


def parts(samples):
    """(place of the first, some samples) of an array (N, ...) in order: never a copy of all."""
    count = max(1, _AT_ONCE // max(1, math.prod(samples.shape[1:])))
    for first in range(0, len(samples), count):
        yield first, samples[first : first + count]


def is_rows(samples) -> bool:
    """Say whether these are rows of floats, (N, D), and no images."""
    array = isinstance(samples, (np.ndarray, Mapped))
    return array and samples.ndim == 2 and samples.dtype.kind == "f"


def fault(images, shape: tuple[int, ...] | None = None, levels: int = 256) -> str | None:
    """The reason why something is no array (N, *shape) of integers in [0, levels), and the remedy;
    None if it is that. shape: None for a data set's: any (H, W, C), NumPy's and uint8.

    Bytes need no look at their values if all 256 are levels: O(1), and no device is waited for.
    """
    kind, wanted = getattr(images, "dtype", None), ", ".join(map(str, ("N", *(shape or "HWC"))))
    kinds = (np.ndarray, Mapped) if shape is None else object
    taken = isinstance(images, kinds) and not isinstance(images, np.ma.MaskedArray)  # hides values
    array = isinstance(kind, np.dtype) and taken
    if not array or kind.kind not in "buif":
        found = kind if array else type(images).__name__
        rows = ", or of floats, (N, D)" if shape is None else ""
        return f"{found} instead of numbers; give a NumPy array of uint8, ({wanted}){rows}"
    found = f"shape {images.shape}"
    if images.ndim == 3 and shape in (None, (*images.shape[1:], 1)):
        return f"{found} lacks the channel axis; give images[..., np.newaxis]"
    if images.ndim != 4 if shape is None else images.shape[1:] != shape:
        return f"{found} is not ({wanted}); give images of that shape"
    if images.size == 0:
        return f"{found} has no pixels; give at least one image"
    if kind == np.uint8 and levels == 256:
        return None
    low, high = images.min(), images.max()
    cast = "" if shape is not None and kind.kind in "ui" else " and cast to uint8"
    if not (low >= 0 and high < levels):
        return f"values from {low} to {high}; bring them to 0 to {levels - 1}{cast}"
    if not cast:
        return None
    remedy = f"multiply by {levels - 1}" if kind.kind in "bf" and high <= 1 else "round"
    return f"{kind} from {low} to {high}; {remedy}{cast}"


def fault_of_rows(rows, shape: tuple[int, ...] | None = None) -> str | None:
    """A twin of `fault` for rows (N, D) of finite numbers; shape: (D,), a model's, or None.

    Rows on the host are looked at, in parts; for others, no device is waited for.
    """
    kind, wanted = getattr(rows, "dtype", None), f"(N, {shape[0] if shape else 'D'})"
    array = isinstance(kind, np.dtype) and not isinstance(rows, np.ma.MaskedArray)  # hides values
    if not array or kind.kind not in "buif":
        found = kind if array else type(rows).__name__
        return f"{found} instead of numbers; give an array of floats, {wanted}"
    if len(rows.shape) != 2 or shape not in (None, rows.shape[1:]):
        return f"shape {rows.shape} is not {wanted}; give rows of that length"
    if 0 in rows.shape:
        return f"shape {rows.shape} has no numbers; give at least one row"
    for first, part in parts(rows) if isinstance(rows, (np.ndarray, Mapped)) else ():
        if not (finite := np.isfinite(part)).all():
            row, column = np.argwhere(~finite)[0]
            where = f"{part[row, column]} in row {first + row}, column {column} (from 0)"
            return f"{where}; leave such rows out, or fill them in"
    return None
