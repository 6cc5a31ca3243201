"""Reading and writing IDX files, the format in which MNIST is published.

Layout (http://yann.lecun.com/exdb/mnist/): two zero bytes, one byte for the element type, one
byte for the number of dimensions, each dimension as a big-endian 32-bit integer, then the
elements in C order. Only the element type 0x08 (unsigned byte) is supported.
"""

import gzip
import io
import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from snfnp.data.files import GZIP_MAGIC
from snfnp.errors import SnfnpError

_UNSIGNED_BYTE = 0x08
_MAX_DIMENSIONS = 255
_TOO_LARGE = 2**60  # bytes


def _bad_file(path: str | os.PathLike[str], found: str) -> SnfnpError:
    return SnfnpError(f"{path}: {found}; replace it with a fresh copy of the IDX file")


def read_content(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file, uncompressed if they start with the gzip magic 1f 8b.

    The file's name plays no part, because servers and browsers uncompress files without
    renaming them.

    Raises:
        SnfnpError: the file cannot be read, is empty, or holds damaged gzip data.
    """
    try:
        raw = Path(path).read_bytes()
    except OSError as error:
        raise _bad_file(path, f"cannot be read ({error.strerror})") from error
    if not raw:
        raise _bad_file(path, "the file is empty")
    if not raw.startswith(GZIP_MAGIC):
        return raw
    try:
        return gzip.decompress(raw)
    except EOFError as error:
        raise _bad_file(path, "the gzip data is truncated") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise _bad_file(path, "the gzip data is corrupt") from error


def parse_idx(content: bytes, path: str | os.PathLike[str]) -> np.ndarray:
    """Return the array in the uncompressed IDX bytes `content`.

    Args:
        content: a whole IDX file, uncompressed.
        path: where the bytes came from, for messages.

    Returns:
        A read-only uint8 array (it shares memory with `content`) of the shape in the header.

    Raises:
        SnfnpError: `content` is not exactly one IDX array of unsigned bytes.
    """
    if len(content) < 4:
        raise _bad_file(path, f"only {len(content)} bytes, too short for an IDX header")
    if content[:2] != b"\0\0":
        raise _bad_file(path, f"not an IDX file (starts with {content[:4].hex(' ')})")
    element_type, ndim = content[2], content[3]
    if element_type != _UNSIGNED_BYTE:
        raise _bad_file(
            path, f"IDX element type 0x{element_type:02x}, only 0x08 (unsigned byte) is supported"
        )
    if ndim == 0:
        raise _bad_file(path, "the IDX header declares no dimensions")
    start = 4 + 4 * ndim
    if len(content) < start:
        raise _bad_file(path, f"the IDX header is truncated ({len(content)} of {start} bytes)")
    shape = struct.unpack(f">{ndim}I", content[4:start])
    if math.prod(shape) >= _TOO_LARGE:
        raise _bad_file(
            path, "the data is truncated: the IDX header declares more than a file can hold"
        )
    expected = start + math.prod(shape)
    if len(content) != expected:
        problem = "truncated" if len(content) < expected else "followed by trailing bytes"
        size = " x ".join(map(str, shape)) if ndim <= 8 else f"{ndim} dimensions"
        raise _bad_file(
            path, f"the data is {problem} ({len(content)} bytes, {expected} expected for {size})"
        )
    try:
        return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
    except ValueError as error:
        # NumPy allows at most 64 dimensions and, with a zero among them, limits the others.
        raise _bad_file(path, "the IDX header declares an impossible shape") from error


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file of unsigned bytes, gzip-compressed or not.

    Returns:
        A read-only uint8 array of the shape in the header, for images (N, rows, columns).

    Raises:
        SnfnpError: the file is missing, empty, damaged, or not an IDX file of unsigned bytes.
    """
    return parse_idx(read_content(path), path)


def write_idx(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write `array` as an IDX file, gzip-compressed at level 9 if the name ends in ".gz".

    The same array always gives the same bytes (with the same zlib), because no time and no
    name are stored.

    Args:
        path: the file to write; an existing one is replaced.
        array: uint8, any shape with 1 to 255 dimensions, each below 2**32.

    Raises:
        TypeError: `array` is not uint8.
        ValueError: `array` has no dimensions.
    """
    if array.dtype != np.uint8:
        raise TypeError(f"IDX files are written from uint8 arrays, not {array.dtype}")
    if not 1 <= array.ndim <= _MAX_DIMENSIONS:
        raise ValueError(f"an IDX array has 1 to {_MAX_DIMENSIONS} dimensions, not {array.ndim}")
    header = bytes([0, 0, _UNSIGNED_BYTE, array.ndim]) + struct.pack(
        f">{array.ndim}I", *array.shape
    )
    content = header + array.tobytes()
    if os.fspath(path).endswith(".gz"):
        buffer = io.BytesIO()
        # gzip.compress lets zlib write the header, whose operating-system byte then varies.
        with gzip.GzipFile("", "wb", compresslevel=9, fileobj=buffer, mtime=0) as stream:
            stream.write(content)
        content = buffer.getvalue()
    Path(path).write_bytes(content)
