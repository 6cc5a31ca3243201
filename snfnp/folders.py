"""Where files are kept that can be made again, where the usual places cannot be written.

In a container the package and the home folder are often read-only, or there is no home at all.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def is_writable(folder: Path) -> bool:
    """Whether files can be put into a folder, which may still have to be made. Makes nothing."""
    if not folder.is_absolute():  # "~/.cache" of a user without a home
        return False
    while not os.path.lexists(folder):
        folder = folder.parent
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def private_folder(name: str) -> Path | None:
    """A folder in the system's temporary one, the same for every run of this user; None where
    there cannot be one.

    What is in it may be executed (Numba's kernels): one that another user made or can write is
    refused.
    """
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    try:
        root = Path(tempfile.gettempdir(), f"snfnp-{user}")
        root.mkdir(mode=0o700, exist_ok=True)
        found = root.lstat()  # of a link: that is open to others, too
        if hasattr(os, "getuid") and (found.st_uid != user or found.st_mode & 0o077):
            return None
        (root / name).mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=root / name):
            return root / name
    except OSError:
        return None
