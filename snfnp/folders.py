"""A place for files that can be made again, if the usual ones cannot be written.

In a container the package and the home folder are often read-only, or there is no home at all.
"""

import os
import tempfile
from pathlib import Path


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
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    try:
        root = Path(tempfile.gettempdir(), f"snfnp-{user}")
        root.mkdir(mode=0o700, exist_ok=True)
        status = root.lstat()  # of a link: that is open to others, too
        if hasattr(os, "getuid") and (status.st_uid != user or status.st_mode & 0o077):
            return None
        (root / name).mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=root / name):
            return root / name
    except OSError:
        return None
