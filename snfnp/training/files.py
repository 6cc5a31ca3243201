"""Files that a crash leaves whole, files that something else may have damaged, a folder's lock."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from snfnp.errors import SnfnpError, UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

_PARTIAL = ".partial"


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
        _remove(temporary)
        raise SnfnpError(
            f"cannot write {path} ({error.strerror}): free some space or choose another --out"
        ) from None
    except BaseException:
        _remove(temporary)
        raise
    with suppress(OSError):  # not every file system lets a folder be made durable
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def remove_partial(path: Path) -> None:
    """What crashes left over of `path`; only where nobody else may be writing it."""
    for left in path.parent.glob(f"{path.name}.*{_PARTIAL}"):
        _remove(left)


def is_partial(path: Path) -> bool:
    return path.name.endswith(_PARTIAL)


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink(missing_ok=True)


def read_bytes(path: Path, kind: type[SnfnpError], missing: str) -> bytes:
    """A file's content. Raises `kind`: the line `missing` where there is no such file."""
    try:
        return path.read_bytes()
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


class FolderLock:
    """A lock on a folder: the operating system's, so that it ends with the process, and advisory.

    A context manager, which may be entered again while it is held. The file names its holder, and
    is removed at the end.
    """

    def __init__(self, path: Path):
        self._path, self._file, self._entered = path, None, 0

    def __enter__(self) -> FolderLock:
        if not self._entered:
            self._acquire()
        self._entered += 1
        return self

    def __exit__(self, *error) -> None:
        self._entered -= 1
        if not self._entered:
            if fcntl:  # while it is held: later, it may be another's
                _remove(self._path)
            self._file.close()
            if not fcntl:
                _remove(self._path)

    def _acquire(self) -> None:
        while True:
            try:
                self._file = open(self._path, "a+")  # noqa: SIM115
            except OSError as error:
                raise UsageError(
                    f"cannot write {self._path} ({error.strerror}): choose another --out"
                ) from None
            try:
                _lock(self._file)
            except (BlockingIOError, PermissionError):
                self._refuse()
            except OSError as error:
                print(
                    f"{self._path.parent} cannot be locked here ({error.strerror}): see to it "
                    "that no second program trains in it",
                    file=sys.stderr,
                )
            # The holder before may have removed the file after it was opened here.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._file.fileno()), os.stat(self._path)):
                    break
            self._file.close()
        self._file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        self._file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        self._file.flush()

    def _refuse(self):
        holder = ""
        for _ in range(10):  # it may have been locked this instant, and not be written yet
            self._file.seek(0)
            with suppress(OSError, ValueError):
                holder = self._file.readline(200).strip()
            if holder:
                break
            time.sleep(0.02)
        self._file.close()
        raise UsageError(
            f"{self._path.parent} is in use by {holder or 'another process'}: stop that one, or "
            "choose another --out"
        )


def _lock(file) -> None:
    """Raises BlockingIOError or PermissionError where another process holds the lock."""
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        file.seek(1 << 30)  # far behind the text, which must stay readable
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
