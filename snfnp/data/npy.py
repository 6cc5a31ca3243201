"""NumPy's files, whose samples are read when they are needed, and never mapped: where a mapped file
is cut off, the process ends by a signal, without a word."""

import math
import os
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from snfnp.errors import SnfnpError
from snfnp.images import StoredArray
from snfnp.paths import open_regular

_SMALL = 1 << 28  # bytes of an array that is read at once: reading it by parts takes longer


def open_array(path: str | Path) -> np.ndarray | StoredArray:
    """The array in a .npy file: in memory if it is small, or in Fortran's order; else in the file.

    Raises ValueError or OSError for a file that is no such array, or shorter than its header says.
    """
    file = open(open_regular(path, follow=True), "rb")  # noqa: SIM115
    try:
        version = npy.read_magic(file)
        read_header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        if version not in read_header:
            raise ValueError(f"its format {version} is not for plain numbers")
        shape, fortran, dtype = read_header[version](file)
        if dtype.hasobject:
            raise ValueError("it is no array of numbers, and Python objects are never loaded")
        size, found = math.prod(shape) * dtype.itemsize, os.path.getsize(path) - file.tell()
        if any(length < 0 for length in shape) or size > found:
            raise ValueError(f"it has {found} bytes of values, not the {size} of its header")
        if shape and size > _SMALL and not fortran:
            return StoredArray(_Rows(path, file, shape[1:], dtype), dtype, shape)
        file.seek(0)
        with file:
            return np.load(file, allow_pickle=False)
    except BaseException:
        file.close()
        raise


class _Rows:
    """rows(places): samples of a file, as long as nobody writes to it."""

    def __init__(self, path, file, shape: tuple[int, ...], dtype: np.dtype):
        self._path, self._file, self._shape, self._dtype = path, file, shape, dtype
        self._offset, self._size = file.tell(), math.prod(shape) * dtype.itemsize
        self._state = self._now()

    def __del__(self):
        self._file.close()

    def _now(self) -> tuple[int, int]:
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns

    def __call__(self, places: np.ndarray) -> np.ndarray:
        samples = np.empty((len(places), *self._shape), self._dtype)
        view, size, short = memoryview(samples.reshape(-1).view(np.uint8).data), self._size, False
        # samples that follow one another are read together
        starts = np.flatnonzero(np.diff(places, prepend=-2) != 1).tolist()
        for start, stop in zip(starts, [*starts[1:], len(places)], strict=False):
            part, first = view[start * size : stop * size], self._offset + int(places[start]) * size
            while part and (count := os.preadv(self._file.fileno(), [part], first)):
                part, first = part[count:], first + count
            short |= len(part) > 0
        if short or self._now() != self._state:  # looked at behind each read
            found = f"{self._path} has changed since it was opened"
            raise SnfnpError(f"{found}: restore it and go on with `resume`, or start again")
        return samples
