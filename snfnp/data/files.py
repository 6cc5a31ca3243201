"""Published data sets: the places of their files, downloads, and the images they become."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from snfnp.errors import SnfnpError, UsageError


@dataclass(frozen=True, eq=False)
class Dataset:
    """The images of one data set, in three splits.

    name: as given to `load_dataset`. train, validation, test: uint8 (N, H, W, C), channel values 0
    to 255, read-only, in memory or, if that is too much, a `numpy.memmap` of a file. source: where
    the images came from, in words. is_sample: true for a small part of a published data set or a
    substitute for one, whose results cannot be compared with published ones.
    """

    name: str
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    source: str
    is_sample: bool

    def __post_init__(self):
        for split in ("train", "validation", "test"):
            images = getattr(self, split)[:]  # a view: what was given stays as it is
            images.flags.writeable = False
            object.__setattr__(self, split, images)


@dataclass(frozen=True)
class Published:
    """A data set that is read from published files, in a way that a subclass defines.

    name: as given to `load_dataset`, and the folder's name in the cache. title: the name in
    messages. mirrors: base addresses, each ending in "/", in the order in which they are tried;
    without any, a person has to get the files. names: the files' names at the mirrors, by key.
    advice: how a person gets them. unread: files of another version of the data set, and its name
    and why it is not read.
    """

    name: str
    title: str
    mirrors: tuple[str, ...]
    names: dict[str, str]
    advice: str = ""
    unread: tuple[tuple[str, ...], str] = ((), "")

    def find(self, folder: Path) -> dict[str, Path]:
        """The files that a folder has, by key."""
        paths = {key: folder / name for key, name in self.names.items()}
        # os.path.isfile, unlike Path.is_file, also answers for folders that may not be entered.
        return {key: path for key, path in paths.items() if os.path.isfile(path)}

    def problem(self, key: str, path: Path) -> str | None:
        """The fault of a file that was downloaded, in a few words, or None."""

    def read(self, files: dict[str, Path], source: str, report: Callable) -> Dataset:
        """The images in the files of all keys. Raises SnfnpError for a file that is damaged."""
        raise NotImplementedError

    def without_download(self, error: NoDownloadError, report: Callable) -> Dataset:
        """The images if the cache lacks files and they could not be downloaded."""
        folder = cache_folder(self.name)
        raise SnfnpError(
            f"no {self.title} images in {folder} and no download ({error}); {self._to_get()} and "
            "give their folder with --data-dir"
        ) from error

    def load(self, data_dir: str | os.PathLike[str] | None, report: Callable) -> Dataset:
        """Read the files in the folder that was given, else in the cache, which gets them first.

        Arguments and errors are those of `snfnp.data.load_dataset`.
        """
        if data_dir is not None or os.environ.get("SNFNP_DATA_DIR"):
            return self.read(*self._given(data_dir), report)
        folder = cache_folder(self.name)
        try:
            hosts = self._fill(folder)
        except NoDownloadError as error:
            return self.without_download(error, report)
        source = f"cache folder {folder}"
        if hosts:
            source = f"{', '.join(hosts)} (downloaded to {folder})"
        try:
            return self.read(self.find(folder), source, report)
        except SnfnpError as error:
            if not self.mirrors:
                raise
            raise SnfnpError(
                f"{error} (in the cache: delete it to have it downloaded again)"
            ) from error

    def _given(self, data_dir: str | os.PathLike[str] | None) -> tuple[dict[str, Path], str]:
        """The files in data_dir or, if that is None, SNFNP_DATA_DIR, and their folder in words."""
        origin = "the data folder" if data_dir is not None else "SNFNP_DATA_DIR"
        given = os.environ["SNFNP_DATA_DIR"] if data_dir is None else data_dir
        root = Path(os.path.expanduser(given))
        if not os.path.isdir(root):
            problem = "is not a folder" if os.path.exists(root) else "does not exist"
            raise UsageError(f"{root}: {origin} {problem}; give the {self.title} files' folder")
        places = (root / self.name, root)
        with_files = ((place, files) for place in places if (files := self.find(place)))
        # Half a set is the folder that was meant: looking on would hide what it lacks.
        place, files = next(with_files, (root, {}))
        if not files:
            self._refuse_unread(*places)
        lacks = self._missing(files)
        if lacks:
            raise UsageError(
                f"{place}: {origin} lacks {lacks} of {self.title}; {self._to_get()} and put them "
                "there, or give another folder with --data-dir"
            )
        return files, f"folder {place}"

    def _fill(self, folder: Path) -> list[str]:
        """Download what the cache lacks; return the hosts that gave it (none: nothing lacked)."""
        files = self.find(folder)
        lacks = self._missing(files)
        if not lacks:
            return []
        if not self.mirrors:
            self._refuse_unread(folder)
            raise UsageError(
                f"no {self.title} in {folder} (lacks {lacks}): {self._to_get()} and give their "
                "folder with --data-dir"
            )
        if os.environ.get("SNFNP_OFFLINE", "0") not in ("", "0"):
            raise NoDownloadError("SNFNP_OFFLINE is set and the cache does not hold it")
        missing = [key for key in self.names if key not in files]
        hosts = [_download(self, key, folder) for key in missing]
        return list(dict.fromkeys(hosts))

    def _missing(self, files: dict[str, Path]) -> str:
        return " and ".join(name for key, name in self.names.items() if key not in files)

    def _to_get(self) -> str:
        names, mirrors = " and ".join(self.names.values()), " or ".join(self.mirrors)
        return self.advice or f"get {names} from {mirrors}"

    def _refuse_unread(self, *places: Path) -> None:
        names, version = self.unread
        for place in places:
            if any(os.path.exists(place / name) for name in names):
                raise UsageError(f"{place}: holds {version}; {self._to_get()}")


class NoDownloadError(SnfnpError):
    """A download that failed; the message is the reason, as a part of a longer line."""


def print_to_stderr(line: str) -> None:
    """Print one line to standard error."""
    print(line, file=sys.stderr, flush=True)


def cache_folder(name: str) -> Path:
    """The folder in the user's cache that downloads of data set `name` are kept in."""
    # pooch and requests are imported where they are used: a machine that trains on files it has
    # needs neither
    try:
        import pooch
    except ModuleNotFoundError:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        return Path(caches, "snfnp", name)
    return Path(pooch.os_cache("snfnp")) / name


def file_digest(path: Path, kind: str) -> str:
    """The checksum of a file, "sha256" or "md5", in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _download(published: Published, key: str, folder: Path) -> str:
    """Put a file into `folder` from the first mirror that works; return that mirror's host.

    The file gets its final name only after `problem` found nothing wrong with it, so an
    interruption at any time leaves the cache as it was.
    """
    name, failures = published.names[key], []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as temporary:
            part = Path(temporary) / name
            for mirror in published.mirrors:
                host = urlsplit(mirror).netloc
                problem = _fetch(mirror + name, part) or published.problem(key, part)
                if problem is None:
                    os.replace(part, folder / name)
                    return host
                failures.append(f"{host}: {problem}")
    except OSError as error:
        raise NoDownloadError(f"the cache {folder} cannot be written ({error.strerror})") from error
    raise NoDownloadError(f"no mirror gave {name} ({', '.join(failures)})")


def _fetch(url: str, path: Path) -> str | None:
    """Download `url` to `path`; return the mirror's fault, or None.

    Raises OSError if `path` cannot be written, which is not the mirror's fault.
    """
    import pooch
    import requests

    on_terminal = sys.stderr.isatty() and find_spec("tqdm") is not None
    # Seconds to connect, and without a byte.
    fetch = pooch.HTTPDownloader(progressbar=on_terminal, chunk_size=1 << 16, timeout=(5.0, 15.0))
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
