"""NumPy's files, whose samples are read as needed. They are not mapped: truncating a mapped file
kills the process that reads it by a signal."""

import math
import os
from pathlib import Path

import numpy as np

from snfnp.errors import SnfnpError
from snfnp.images import StoredArray
from snfnp.paths import open_regular

_SMALL = 1 << 28  # bytes of an array that is read at once: reading it by parts takes longer


def open_array(path: str | Path) -> np.ndarray | StoredArray:
    """The array in a .npy file: in memory if it is small, or in Fortran's order; else in the file.

    Raises ValueError or OSError for a file that is no such array, or shorter than its header says.
    """
    os.close(open_regular(path, follow=True))
    with np.errstate(over="ignore"):  # of the sizes in a damaged header
        header = np.lib.format.open_memmap(path, mode="r")  # its values are not read
    if header.nbytes <= _SMALL or not header.ndim or not header.flags.c_contiguous:
        return np.load(path, allow_pickle=False)
    return StoredArray(_Rows(path, header), header.dtype, header.shape)


class _Rows:
    """rows(places): samples of a file. Raises SnfnpError once the file has changed."""

    def __init__(self, path: str | Path, header: np.memmap):
        self._path, self._file = path, open(open_regular(path, follow=True), "rb")  # noqa: SIM115
        self._shape, self._dtype, self._offset = header.shape[1:], header.dtype, header.offset
        self._size, self._state = math.prod(self._shape) * self._dtype.itemsize, self._now()

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
        if short or self._now() != self._state:  # checked after each read
            found = f"{self._path} has changed since it was opened"
            raise SnfnpError(f"{found}: restore it and continue with `resume`, or start again")
        return samples
