"""Reading third-party files: gzip, tar, IDX, never more bytes than a right file has."""

import gzip
import math
import os
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from snfnp.errors import SnfnpError, UsageError
from snfnp.paths import open_regular

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 16  # bytes
_LONGEST_REASON = 120  # characters of what another library says
_LONGEST_HEADER = 1 << 20  # bytes, of a tar archive's extended headers, which hold long names


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A file's content as a stream, uncompressed if it starts with the gzip magic 1f 8b.

    The file's name plays no part, because servers and browsers uncompress files without renaming
    them. Raises SnfnpError, also for what goes wrong with the stream later: the file cannot be
    read, or its gzip data is damaged.
    """
    try:
        with open(open_regular(path, follow=True), "rb") as file:
            compressed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
            file.seek(0)
            if not compressed:
                yield file
                return
            with gzip.open(file) as stream:
                yield stream
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise damaged(path, f"the gzip data is damaged ({one_line(error)})") from error
    except OSError as error:
        raise damaged(path, f"cannot be read ({one_line(error)})") from error


@contextmanager
def readable(path: object, advice: str = "mend it, or leave it out") -> Iterator[None]:
    """Turn the error of a library for a damaged or mislabelled file into one line about it."""
    try:
        yield
    except SnfnpError:
        raise
    except Exception as error:  # each library has its own, and a few that it does not document
        problem = one_line(error)
        if "pickle" in problem or "Python objects" in problem:
            problem = "it is no array of numbers, and Python objects are never loaded"
        raise UsageError(f"{path} cannot be read ({problem}): {advice}") from None


def damaged(path: str | os.PathLike[str], problem: str) -> SnfnpError:
    """The error for a file that is not as it was published."""
    return SnfnpError(f"{path}: {problem}; replace it with a fresh copy")


def read_at_most(stream, count: int) -> bytes:
    """The next `count` bytes, or all that there are. Memory is taken for those alone."""
    parts, left = [], count
    while left and (part := stream.read(min(left, _CHUNK))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


class _Member(tarfile.TarInfo):
    """The header of a member, none of which may ask for much memory by itself."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        member = super().frombuf(buf, encoding, errors)
        if not member.isreg() and not member.isdir() and member.size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {member.size} bytes")
        return member


def read_tar(path: Path, wanted: Callable[[str], bool], most: int) -> Iterator[tuple[str, bytes]]:
    """Read the files in a tar archive, gzip-compressed or not, one after the other.

    Yields (name, content) in the order of the archive, for the members whose name (the path in the
    archive) is `wanted`; of a content longer than `most` bytes, the first `most` + 1. Nothing is
    unpacked to disk, and memory holds one file at a time: the archive is read forwards once, to its
    very end, because gzip's checksum is there. Raises SnfnpError: the archive cannot be read, is no
    tar archive, or is damaged.
    """
    try:
        with (
            opened(path) as stream,
            tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as tar,
        ):
            archive: Any = tar  # whose attribute `members` has no type
            while (member := archive.next()) is not None:
                if member.isreg() and wanted(member.name):
                    yield member.name, archive.extractfile(member).read(most + 1)
                # tarfile remembers every member: more than 1 GB for a million of them.
                archive.members.clear()
            while stream.read(_CHUNK):
                pass
    except tarfile.TarError as error:
        problem = f"the archive is damaged or no tar archive ({one_line(error)})"
        raise damaged(path, problem) from error


def idx_header(shape: tuple[int, ...]) -> bytes:
    """The bytes before an array of unsigned bytes in an IDX file, the format of MNIST.

    Two zero bytes, one for the element type, one for the number of dimensions, and each of these
    as a big-endian 32-bit integer (http://yann.lecun.com/exdb/mnist/).
    """
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape)


def read_idx(path: str | os.PathLike[str], shape: tuple[int, ...]) -> np.ndarray:
    """Read an IDX file, gzip-compressed or not: a read-only uint8 array of this shape.

    Raises SnfnpError, in one line, if the file cannot be read or is not exactly one such array.
    """
    header, size = idx_header(shape), math.prod(shape)
    with opened(path) as stream:
        start = read_at_most(stream, len(header))
        # One byte more than is right, and with it the end of the file and its checksum.
        data = read_at_most(stream, size + 1) if start == header else b""
    words = f"no IDX file of {' x '.join(map(str, shape))} unsigned bytes"
    if start != header:
        raise damaged(path, f"{words}: it starts with {start.hex(' ') or 'nothing'}")
    if len(data) != size:
        problem = "truncated" if len(data) < size else "followed by trailing bytes"
        raise damaged(path, f"{words}: they are {problem}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def one_line(error: Exception) -> str:
    """The text of another library's exception as one short line, or its kind if it has none."""
    text = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _LONGEST_REASON else f"{text[:_LONGEST_REASON]}…"
