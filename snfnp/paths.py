"""Folders for caches, and files that are opened safely. In a container, the package and the home
folder are often read-only, or there is no home."""

import errno
import os
import stat
import tempfile
from pathlib import Path


def open_regular(path: str | os.PathLike, flags: int = os.O_RDONLY, follow: bool = False) -> int:
    """The descriptor of a file that is no pipe and no device, and no link unless `follow`.

    So nothing waits for the other end of a pipe or reads an endless device, and nothing outside a
    run's folder is written through a link. Raises OSError.
    """
    if not follow and os.path.islink(path):
        raise OSError(errno.ELOOP, "it is a symbolic link", str(path))
    if os.path.exists(path):
        _require_regular(os.stat(path).st_mode, path)  # opening a device may act on it
    descriptor = os.open(path, flags | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW), 0o666)
    try:
        _require_regular(os.fstat(descriptor).st_mode, path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(mode: int, path) -> None:
    if not stat.S_ISREG(mode):
        why = os.strerror(errno.EISDIR) if stat.S_ISDIR(mode) else "it is no regular file"
        raise OSError(errno.EINVAL, why, str(path))


def user_cache() -> Path:
    """The folder of this package in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "snfnp")


def private_folder(name: str) -> Path | None:
    """This user's folder of that name in the system's temporary folder.

    None if it belongs to another user, is open to others, or cannot be made: its files may be
    executed (Numba's kernels).
    """
    user = os.getuid()
    try:
        root = Path(tempfile.gettempdir(), f"snfnp-{user}")
        root.mkdir(mode=0o700, exist_ok=True)
        status = root.lstat()  # of a link itself, which is open to others
        if status.st_uid != user or status.st_mode & 0o077:
            return None
        (root / name).mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=root / name):
            return root / name
    except OSError:
        return None
