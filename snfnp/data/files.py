"""What the data sets share: the images in three splits, where they are looked for, downloads."""

import gzip
import os
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from snfnp.errors import SnfnpError, UsageError

GZIP_MAGIC = b"\x1f\x8b"
PLANES = (3, 32, 32)  # a colour image in the published files: one plane per channel

_CONNECT_TIMEOUT = 5.0  # seconds
_READ_TIMEOUT = 15.0  # seconds without a byte
_CHUNK = 1 << 16  # bytes


@dataclass(frozen=True, eq=False)
class Dataset:
    """The images of one data set, in three splits.

    Attributes:
        name: as given to `load_dataset`.
        train: uint8 (N, H, W, C), channel values 0 to 255, read-only; likewise the next two.
            Either in memory or, if that is too much, a `numpy.memmap` of a file.
        validation: uint8 (N, H, W, C).
        test: uint8 (N, H, W, C).
        source: where the images came from, in words.
        is_sample: whether they only stand in for a full data set: the sample that the package
            ships, or patches of a few photographs.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    source: str
    is_sample: bool


class NoDownloadError(SnfnpError):
    """The cache could not be filled; the message is the reason, as a part of a longer line."""


def print_to_stderr(line: str) -> None:
    """Print one line to standard error."""
    print(line, file=sys.stderr, flush=True)


def cache_folder(name: str) -> Path:
    """Return the folder in the user's cache that downloads of data set `name` are kept in."""
    # pooch and requests are imported where they are used: a machine that trains on files it has
    # needs neither
    try:
        import pooch
    except ModuleNotFoundError:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        return Path(caches, "snfnp", name)
    return Path(pooch.os_cache("snfnp")) / name


def given_folder(data_dir: str | os.PathLike[str] | None, title: str) -> tuple[Path, str] | None:
    """Return the folder that was given and what gave it, for messages; None if none was.

    Args:
        data_dir: the folder given as an argument, which goes before SNFNP_DATA_DIR, or None.
        title: what messages call the data set.

    Raises:
        UsageError: it is not a folder.
    """
    origin = "the data folder"
    if data_dir is None:
        data_dir, origin = os.environ.get("SNFNP_DATA_DIR"), "SNFNP_DATA_DIR"
        if not data_dir:
            return None
    root = Path(os.path.expanduser(data_dir))
    if not os.path.isdir(root):
        problem = "is not a folder" if os.path.exists(root) else "does not exist"
        raise UsageError(f"{root}: {origin} {problem}; give a folder that holds the {title} files")
    return root, origin


def is_offline() -> bool:
    """Return whether downloads are forbidden: SNFNP_OFFLINE is set to anything but "0"."""
    return os.environ.get("SNFNP_OFFLINE", "0") not in ("", "0")


def download(
    mirrors: tuple[str, ...],
    file_name: str,
    folder: Path,
    find_problem: Callable[[Path], str | None],
) -> str:
    """Put a file into `folder` from the first mirror that works; return that mirror's host.

    The file gets its final name only after `find_problem` found nothing wrong with it, so an
    interruption at any time leaves the cache as it was.

    Args:
        mirrors: base addresses, each ending in "/", in the order in which they are tried.
        file_name: the file's name, at the mirrors and in the folder.
        folder: made if it does not exist.
        find_problem: what is wrong with a file that was downloaded, None if nothing is.

    Raises:
        NoDownloadError: no mirror gave it, or it cannot be written.
    """
    failures = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
            part = Path(temporary) / file_name
            for mirror in mirrors:
                host = urlsplit(mirror).netloc
                problem = _fetch(mirror + file_name, part) or find_problem(part)
                if problem is None:
                    os.replace(part, folder / file_name)
                    return host
                failures.append(f"{host}: {problem}")
    except OSError as error:
        raise NoDownloadError(f"the cache {folder} cannot be written ({error.strerror})") from error
    raise NoDownloadError(f"no mirror gave {file_name} ({', '.join(failures)})")


def _fetch(url: str, path: Path) -> str | None:
    """Download `url` to `path`; return what is wrong with the mirror, or None if nothing is.

    Raises:
        OSError: `path` cannot be written, which is not the mirror's fault.
    """
    import pooch
    import requests

    on_terminal = sys.stderr.isatty() and find_spec("tqdm") is not None
    fetch = pooch.HTTPDownloader(
        progressbar=on_terminal, chunk_size=_CHUNK, timeout=(_CONNECT_TIMEOUT, _READ_TIMEOUT)
    )
    try:
        fetch(url, str(path), None)
    except requests.HTTPError as error:
        return f"HTTP status {error.response.status_code}"
    except requests.Timeout:
        return "timed out"
    except requests.RequestException:
        # The exceptions' own texts nest several lines of addresses and objects.
        return "connection failed"
    return None


def read_tar(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Read the files in a tar archive, gzip-compressed or not, one after the other.

    Nothing is unpacked to disk, and memory holds one file at a time: the archive is read forwards
    once, to its very end, because gzip's checksum is there.

    Args:
        path: the archive.
        wanted: whether a file of this name (its path in the archive) is to be read.

    Yields:
        (name, content) in the order of the archive.

    Raises:
        SnfnpError: the archive cannot be read, is not a tar archive, or is damaged.
    """
    try:
        with open(path, "rb") as file:
            compressed = file.read(len(GZIP_MAGIC)) == GZIP_MAGIC
        with (
            (gzip.open if compressed else open)(path, "rb") as stream,
            tarfile.open(fileobj=stream, mode="r|") as archive,
        ):
            while (member := archive.next()) is not None:
                if member.isreg() and wanted(member.name):
                    yield member.name, archive.extractfile(member).read()
                # tarfile remembers every member: more than 1 GB for a million of them.
                archive.members.clear()
            while stream.read(_CHUNK):
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SnfnpError(
            f"{path}: the archive is damaged or no tar archive ({one_line(error)}); replace it "
            "with a fresh copy"
        ) from error
    except OSError as error:
        raise SnfnpError(f"{path}: cannot be read ({error.strerror})") from error


def one_line(error: Exception) -> str:
    """Return the text of another library's exception as one line, or its kind if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def channels_last(planes: np.ndarray) -> np.ndarray:
    """Return images (N, 3072) of three planes, red, green and blue, as (N, 32, 32, 3), a copy."""
    return np.ascontiguousarray(planes.reshape(-1, *PLANES).transpose(0, 2, 3, 1))


def read_only(images: np.ndarray) -> np.ndarray:
    """Forbid writing to `images`, and return them."""
    images.flags.writeable = False
    return images
