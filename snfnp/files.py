"""Files that are opened safely, that a crash leaves whole, and that may be damaged; the lock of a
folder; folders for caches.

In a container, the package and the home folder are often read-only, or there is no home.
"""

import errno
import fcntl
import io
import json
import math
import os
import secrets
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from snfnp.errors import SnfnpError, UsageError

_LONGEST_REASON = 120  # characters of what a library says
_NO_NUMBERS = "it is no array of numbers, and Python objects are never loaded"
# {part of a message of NumPy's: words in place of it}, since NumPy advises to unpickle
_OTHER_WORDS = {
    "Header info length": "its header is too long for an array of numbers",
    "pickle": _NO_NUMBERS,
    "Python objects": _NO_NUMBERS,
}
Json = dict[str, Any]  # a JSON object
StrPath = str | os.PathLike[str]
LONGEST = 1 << 30  # bytes: more than the metrics of any run
ADVICE = "free some space or choose another folder (`out`)"
# the end of the name of a file that a crash may leave half written
PARTIAL = ".partial"


def open_regular(path: StrPath, flags: int = os.O_RDONLY) -> int:
    """The descriptor of a file that is no pipe and no device, and if it is to be written no link.

    So nothing waits for the other end of a pipe or reads an endless device, and nothing outside a
    run's folder is written through a link. Raises OSError.
    """
    follow = flags == os.O_RDONLY
    if not follow and os.path.islink(path):
        raise OSError(errno.ELOOP, "it is a symbolic link", str(path))
    if os.path.exists(path):
        _require_regular(os.stat(path).st_mode, path)  # opening a device may act on it
    descriptor = os.open(
        path, flags | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW), 0o666
    )
    try:
        _require_regular(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def open_binary(path: StrPath) -> Any:
    """A regular file, or what a link to one stands for, open to be read. Raises OSError."""
    return open(open_regular(path), "rb")


def _require_regular(mode: int, path: StrPath) -> None:
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(path))


def user_cache() -> Path:
    """The folder of this package in the user's cache."""
    return Path(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "snfnp"
    )


def private_folder(name: str) -> Path | None:
    """This user's folder of that name in the system's temporary folder.

    None if it belongs to another user, is open to others, or cannot be made: its files may be
    executed (Numba's kernels).
    """
    user = os.getuid()
    try:
        root = Path(tempfile.gettempdir(), f"snfnp-{user}")
        root.mkdir(mode=0o700, exist_ok=True)
        status = root.lstat()  # if it is a link, this is the link's: open to others
        if status.st_uid != user or status.st_mode & 0o077:
            return None
        folder = root / name
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        return None


@contextmanager
def explained(
    action: str, advice: str, kind: type[SnfnpError] = SnfnpError
) -> Iterator[None]:
    """Raise `kind` for an OSError: a line that says what cannot be done, why, and what to do."""
    try:
        yield
    except OSError as error:
        raise kind(f"cannot {action} ({error.strerror}): {advice}") from None


@contextmanager
def readable(
    path: object,
    advice: str = "mend it, or leave it out",
    kind: type[SnfnpError] = UsageError,
    problem: str = "cannot be read",
) -> Iterator[None]:
    """Raise `kind` for any error of a library about a damaged or mislabelled file: one line."""
    try:
        yield
    except kind:
        raise
    # every library raises errors of its own, and a few that it does not document
    except Exception as error:
        if isinstance(error, MemoryError) and kind is not UsageError:
            raise  # the size of a user's file is what its header claims, that of a run's is right
        reason = (
            getattr(error, "strerror", None)
            or " ".join(str(error).split())
            or type(error).__name__
        )
        reason = next(
            (words for part, words in _OTHER_WORDS.items() if part in reason), reason
        )
        if len(reason) > _LONGEST_REASON:
            reason = f"{reason[:_LONGEST_REASON]}…"
        raise kind(f"{path} {problem} ({reason}): {advice}") from None


def write_atomically(
    path: Path, content: bytes | bytearray, advice: str = ADVICE
) -> None:
    """Write a temporary file in the same folder, make it durable, and rename it. Its name is
    unique; a crash may leave it behind. advice: where it cannot be written."""
    temporary = path.with_name(
        f"{path.name}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL}"
    )
    try:
        with explained(f"write {path}", advice):
            if path.exists():
                _require_regular(os.stat(path).st_mode, path)
            with open(temporary, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        remove(temporary)
        raise
    with suppress(OSError):  # some file systems cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_by(path: Path, write: Callable[..., Any], **options: Any) -> None:
    """Write atomically what write(file, **options) writes."""
    content = io.BytesIO()
    write(content, **options)
    write_atomically(path, content.getvalue())


def write_json(path: Path, content: Any, indent: int = 2, **options: Any) -> None:
    """Write JSON atomically; options: of `json.dumps`."""
    write_atomically(
        path, (json.dumps(content, indent=indent, **options) + "\n").encode()
    )


def remove(path: Path) -> None:
    """Remove a file if there is one and it can be removed."""
    with suppress(OSError):
        path.unlink(missing_ok=True)


def read_bytes(
    path: Path,
    kind: type[SnfnpError],
    missing: str,
    most: int = LONGEST,
    whole: bool = True,
) -> bytes:
    """A file's content of at most so many bytes; if not `whole`, the first ones of a longer file.
    Raises `kind` with the line `missing` if there is no such file, SnfnpError if it is unreadable.
    """
    with explained(f"read {path}", "restore it"):
        try:
            with open_binary(path) as file:
                size = os.fstat(file.fileno()).st_size
                if whole and size > most:  # a hole of any size takes no room on a disk
                    raise OSError(
                        errno.EFBIG,
                        f"it has {size:,} bytes, and one of a run's at most {most:,}",
                    )
                return file.read(min(size, most))
        except (FileNotFoundError, NotADirectoryError):
            raise kind(missing) from None


def read_json(
    path: Path, make: Callable[[Any], Any], advice: str, kind: type = dict
) -> Any:
    """make(what is in a JSON file), None if there is no such file. Raises SnfnpError, with the
    advice, if it is no JSON, or `make` raises any exception."""
    if not os.path.exists(path):
        return None
    content = read_bytes(path, SnfnpError, f"{path} is gone")
    with readable(path, advice, SnfnpError, "is damaged"):
        return make(parse_json(content, kind))


def parse_json(content: bytes, kind: type = dict) -> Any:
    """A JSON object (or a list) of finite numbers. Raises ValueError for anything else."""
    try:
        value = json.loads(
            content.decode(), parse_constant=_finite, parse_float=_finite
        )
    except RecursionError:
        raise ValueError("too deep") from None
    if not isinstance(value, kind):
        raise ValueError(f"not a JSON {'object' if kind is dict else 'list'}")
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is no finite number")
    return value


@contextmanager
def folder_lock(path: Path) -> Iterator[None]:
    """A context that holds an advisory lock of the operating system, which ends with the process.

    The file names its holder and is removed at the end. (`filelock` names no holder, and where
    there are no locks its file keeps everybody out after a crash.) Raises UsageError if another
    process has it.
    """
    file = _locked(path)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    with suppress(OSError):  # a full disk: the lock holds without the name
        file.truncate(0)
        file.write(
            f"process {os.getpid()} on {socket.gethostname()} since {since}\n".encode()
        )
    try:
        yield
    finally:
        remove(path)  # while it is held: later, it may be another's
        file.close()


def _locked(path: Path) -> Any:
    """The open file of a lock that this process now has."""
    while True:
        with explained(f"write {path}", "choose another folder (`out`)", UsageError):
            descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
        file = open(descriptor, "r+b", buffering=0)  # noqa: SIM115
        try:
            _lock(file)
        except (BlockingIOError, PermissionError):
            with file:
                holder = (
                    file.read(200).decode(errors="replace").partition("\n")[0].strip()
                )
            raise UsageError(
                f"{path.parent} is in use by {holder or 'another process'}: "
                "stop it, or choose another folder (`out`)"
            ) from None
        except OSError as error:
            print(
                f"{path.parent} cannot be locked here ({error.strerror}): see that no second "
                "program trains in it",
                file=sys.stderr,
            )
        # A holder before may have removed the file since it was opened here.
        with suppress(FileNotFoundError):
            if os.path.samestat(status := os.fstat(descriptor), os.lstat(path)):
                if status.st_nlink == 1:
                    return file
                # a snapshot by hard links has it, too, which nobody holds
                os.remove(path)
        file.close()


def _lock(file: Any) -> None:
    """Raises BlockingIOError or PermissionError if another process holds the lock."""
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
