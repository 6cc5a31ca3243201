"""Reading third-party files, which may hold anything: each failure is one line that names one."""

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from snfnp.errors import SnfnpError, UsageError
from snfnp.paths import open_regular

FRESH = "replace it with a fresh copy"  # advice about a published file
_GZIP_MAGIC = b"\x1f\x8b"
_LONGEST_REASON = 120  # characters of what another library says


@contextmanager
def readable(path: object, advice: str = "mend it, or leave it out") -> Iterator[None]:
    """Turn any error of a library about a damaged or mislabelled file into one line."""
    try:
        yield
    except SnfnpError:
        raise
    except Exception as error:  # each library has its own, and a few that it does not document
        found = getattr(error, "strerror", None) or " ".join(str(error).split())
        found = found or type(error).__name__
        if "pickle" in found or "Python objects" in found:
            found = "it is no array of numbers, and Python objects are never loaded"
        if len(found) > _LONGEST_REASON:
            found = f"{found[:_LONGEST_REASON]}…"
        raise UsageError(f"{path} cannot be read ({found}): {advice}") from None


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A published file's content as a stream, uncompressed if it starts with gzip's magic number:
    servers and browsers uncompress files without renaming them."""
    with readable(path, FRESH), open(open_regular(path, follow=True), "rb") as file:
        compressed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        file.seek(0)
        yield gzip.GzipFile(fileobj=file) if compressed else file
