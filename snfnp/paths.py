"""Places for files that can be made again, and files that are opened safely.

In a container the package and the home folder are often read-only, or there is no home at all.
"""

import errno
import os
import stat
import tempfile
from pathlib import Path


def open_regular(path: str | os.PathLike, flags: int = os.O_RDONLY, follow: bool = False) -> int:
    """The descriptor of a file that is no pipe and no device, and no link unless `follow`.

    Nothing waits for the other end of a pipe, no device is read without end, and nothing outside a
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


def is_writable(folder: Path) -> bool:
    """Find out if files can be put into a folder, which may not exist yet. Makes nothing."""
    if not folder.is_absolute():  # "~/.cache" of a user without a home
        return False
    while not os.path.lexists(folder):
        folder = folder.parent
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def private_folder(name: str) -> Path | None:
    """A folder in the system's temporary one, the same for every run of this user.

    Its files may be executed (Numba's kernels): None if another user made it or can write to it, or
    if there cannot be one.
    """
    user = os.getuid()
    try:
        root = Path(tempfile.gettempdir(), f"snfnp-{user}")
        root.mkdir(mode=0o700, exist_ok=True)
        status = root.lstat()  # of a link: that is open to others, too
        if status.st_uid != user or status.st_mode & 0o077:
            return None
        (root / name).mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=root / name):
            return root / name
    except OSError:
        return None
