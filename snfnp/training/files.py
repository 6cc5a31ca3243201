"""Files that a crash leaves whole, and files that something else may have damaged."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

from snfnp.errors import SnfnpError

_PARTIAL = ".partial"
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)  # for the other end of a pipe
_BINARY = getattr(os, "O_BINARY", 0)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a whole file beside its place, make it durable, and rename it into place.

    The name beside is unique: two writers never share a file. After a crash it may be left over.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{_PARTIAL}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        remove(temporary)
        raise SnfnpError(
            f"cannot write {path} ({error.strerror}): free some space or choose another --out"
        ) from None
    except BaseException:
        remove(temporary)
        raise
    with suppress(OSError):  # not every file system lets a folder be made durable
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_partial(path: Path) -> None:
    """Remove what crashes left of `path`; only if nobody else may be writing it."""
    for partial in path.parent.glob(f"{path.name}.*{_PARTIAL}"):
        remove(partial)


def is_partial(path: Path) -> bool:
    """Say whether a file is one that a crash left half written."""
    return path.name.endswith(_PARTIAL)


def remove(path: Path) -> None:
    """Remove a file if there is one and it can be removed."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def open_regular(path: Path, flags: int, follow: bool = False) -> int:
    """The descriptor of a file that is no pipe and no device, and no link unless `follow`.

    Whatever is put in the place of a run's file, nothing outside the folder is written, and
    nothing waits for somebody at the other end of a pipe. Raises OSError.
    """
    flags |= _NO_WAIT | _BINARY | (0 if follow else _NO_LINK)
    linked = OSError(errno.ELOOP, "it is a symbolic link", str(path))
    if not follow and os.path.islink(path):  # a system may have no flag for it
        raise linked
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise linked if error.errno == errno.ELOOP else error from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        folder = os.strerror(errno.EISDIR)
        raise OSError(
            errno.EINVAL, folder if stat.S_ISDIR(mode) else "it is no regular file", str(path)
        )
    return descriptor


def read_bytes(path: Path, kind: type[SnfnpError], missing: str) -> bytes:
    """A file's content. Raises `kind` with the line `missing` if there is no such file."""
    try:
        with open(open_regular(path, os.O_RDONLY, follow=True), "rb") as file:
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        raise kind(missing) from None
    except OSError as error:
        raise SnfnpError(f"cannot read {path} ({error.strerror}): restore it") from None


def parse_json(content: bytes) -> dict:
    """A JSON object of finite numbers. Raises ValueError, with a short reason, for all else."""
    try:
        value = json.loads(content.decode(), parse_constant=_refuse, parse_float=_finite)
    except RecursionError:
        raise ValueError("too deep") from None
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def _finite(text: str) -> float:
    value = float(text)
    return value if abs(value) < float("inf") else _refuse(text)


def _refuse(text: str):
    raise ValueError(f"{text} is no finite number")
