"""A lock on a run's folder, so that no two programs train in it."""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from snfnp.errors import UsageError
from snfnp.training import files

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt


class FolderLock:
    """A lock of the operating system, which ends with the process that holds it, and is advisory.

    A context manager, which may be entered again while it is held. The file names its holder, and
    is removed at the end.

    Not the package `filelock`: it has no place for the holder's name, which a second user is to be
    told; it takes a pipe for a lock; and on a file system without locks it leaves a file that
    outlives a crash and then keeps everybody out.
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
                files.remove(self._path)
            self._file.close()
            if not fcntl:
                files.remove(self._path)

    def _acquire(self) -> None:
        while True:
            with files.explained(f"write {self._path}", "choose another --out", UsageError):
                descriptor = files.open_regular(self._path, os.O_RDWR | os.O_CREAT)
            self._file = open(descriptor, "r+b", buffering=0)  # noqa: SIM115
            try:
                _lock(self._file)
            except (BlockingIOError, PermissionError):
                holder = self._holder()
                self._file.close()
                raise UsageError(
                    f"{self._path.parent} is in use by {holder or 'another process'}: stop that "
                    "one, or choose another --out"
                ) from None
            except OSError as error:
                print(
                    f"{self._path.parent} cannot be locked here ({error.strerror}): see to it "
                    "that no second program trains in it",
                    file=sys.stderr,
                )
            # The holder before may have removed the file after it was opened here.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.lstat(self._path)):
                    break
            self._file.close()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        name = f"process {os.getpid()} on {socket.gethostname()} since {since}\n"
        with suppress(OSError):  # a full disk: the lock holds without the name
            self._file.truncate(0)
            self._file.write(name.encode())

    def _holder(self) -> str:
        """The name in the file; "": nothing can be read."""
        for _ in range(10):  # it may have been locked this instant, and not be written yet
            self._file.seek(0)
            with suppress(OSError, ValueError):
                holder = self._file.read(200).decode().partition("\n")[0].strip()
                if holder:
                    return holder
            time.sleep(0.02)
        return ""


def _lock(file) -> None:
    """Raises BlockingIOError or PermissionError if another process holds the lock."""
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    else:
        file.seek(1 << 30)  # far behind the text, which must stay readable
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        file.seek(0)
