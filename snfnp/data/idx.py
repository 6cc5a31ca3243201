"""Reading and writing IDX files, the format in which MNIST is published.

Layout (http://yann.lecun.com/exdb/mnist/): two zero bytes, one byte for the element type, one
byte for the number of dimensions, each dimension as a big-endian 32-bit integer, then the
elements in C order. Only the element type 0x08 (unsigned byte) is supported.
"""

from __future__ import annotations

import gzip
import io
import math
import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from snfnp.data.reading import damaged, opened, read_at_most

_MAGIC = b"\0\0\x08"  # of unsigned bytes
_MAX_DIMENSIONS = 32  # what every version of NumPy allows
_TOO_LARGE = 2**60  # bytes


def read_idx(path: str | os.PathLike[str], shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzip-compressed or not.

    Returns a read-only uint8 array of the shape in the header, for images (N, rows, columns). If
    that is not `shape`, no more than the header is read. Raises SnfnpError, in one line, if the
    file cannot be read or is not exactly one such array.
    """
    with opened(path) as stream:
        return _parse(stream, path, shape)


def parse_idx(content: bytes, path: str | os.PathLike[str]) -> np.ndarray:
    """The array in uncompressed IDX bytes; path names them in messages. Otherwise as `read_idx`."""
    return _parse(io.BytesIO(content), path, None)


def idx_header(shape: tuple[int, ...]) -> bytes:
    """The bytes of an IDX file that stand before an array of this shape."""
    return _MAGIC + struct.pack(f">B{len(shape)}I", len(shape), *shape)


def write_idx(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write `array` as an IDX file, gzip-compressed at level 9 if the name ends in ".gz".

    array: uint8, of 1 to 32 dimensions, each below 2**32; ValueError for any other. The same array
    always gives the same bytes (with the same zlib): no time and no name are stored.
    """
    if array.dtype != np.uint8 or not 1 <= array.ndim <= _MAX_DIMENSIONS:
        raise ValueError(f"no IDX file holds {array.ndim} dimensions of {array.dtype}")
    content = idx_header(array.shape) + array.tobytes()
    if os.fspath(path).endswith(".gz"):
        content = gzip.compress(content, compresslevel=9, mtime=0)
    Path(path).write_bytes(content)


def _parse(stream: BinaryIO, path, shape: tuple[int, ...] | None) -> np.ndarray:
    start = read_at_most(stream, 4)
    if start[:3] != _MAGIC or not 1 <= int.from_bytes(start[3:]) <= _MAX_DIMENSIONS:
        raise damaged(path, f"no IDX file of unsigned bytes (starts with {start.hex(' ') or '-'})")
    sizes = read_at_most(stream, 4 * start[3])
    if len(sizes) < 4 * start[3]:
        raise damaged(path, f"the IDX header is truncated ({4 + len(sizes)} bytes)")
    declared = struct.unpack(f">{start[3]}I", sizes)
    if shape is not None and declared != shape:
        words = (" x ".join(map(str, sizes[:8])) for sizes in (declared, shape))
        raise damaged(path, "holds an array of {}, not {}".format(*words))
    expected = math.prod(declared)
    if math.prod(filter(None, declared)) >= _TOO_LARGE:
        raise damaged(path, "the IDX header declares more than a file can hold")
    # One byte more than is right, and with it the end of the file and its checksum.
    data = read_at_most(stream, expected + 1)
    if len(data) != expected:
        problem = "truncated" if len(data) < expected else "followed by trailing bytes"
        raise damaged(path, f"the data is {problem} ({expected} bytes expected)")
    return np.frombuffer(data, np.uint8).reshape(declared)
