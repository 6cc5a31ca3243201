"""Published data sets: where their files are, downloads, and how they become images."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from snfnp import paths
from snfnp.data.dataset import Dataset
from snfnp.errors import SnfnpError, UsageError

_FAILED = ".failed"  # of the file beside a folder of the cache that says when no mirror gave it
_RETRY_AFTER = 600  # seconds from then on in which it is not tried again


@dataclass(frozen=True)
class Published:
    """A data set that is read from published files, in a way that a subclass defines.

    name: as given to `load_dataset`, and the folder's name in the cache. title: the name in
    messages. mirrors: base addresses, each ending in "/", in the order in which they are tried;
    without any, a person has to get the files. names, md5: the files' names at the mirrors, and
    their checksums there, by key. advice: how a person gets them.
    """

    name: str
    title: str
    mirrors: tuple[str, ...]
    names: dict[str, str]
    md5: dict[str, str] = field(default_factory=dict)
    advice: str = ""

    def find(self, folder: Path) -> dict[str, Path]:
        """The files that a folder has, by key."""
        paths = {key: folder / name for key, name in self.names.items()}
        # os.path.isfile, unlike Path.is_file, also answers for folders that may not be entered.
        return {key: path for key, path in paths.items() if os.path.isfile(path)}

    def read(self, files: dict[str, Path], source: str, report: Callable) -> Dataset:
        """The images in the files of all keys. Raises SnfnpError for a file that is damaged."""
        raise NotImplementedError

    def without_download(self, error: SnfnpError, report: Callable) -> Dataset:
        """The images if files could not be downloaded, for a reason that is part of a line."""
        lacks = f"no {self.title} images in {cache_folder(self.name)} and no download ({error})"
        raise SnfnpError(f"{lacks}; {self._to_get()} and give their folder (`data_dir`)")

    def load(self, data_dir: str | os.PathLike[str] | None, report: Callable) -> Dataset:
        """Read the files in the folder that was given, else in the cache, which gets them first.

        Arguments and errors are those of `snfnp.data.load_dataset`.
        """
        if data_dir is not None:
            return self._read_given(Path(os.path.expanduser(data_dir)), "the data folder", report)
        if given := os.environ.get("SNFNP_DATA_DIR"):
            return self._read_given(Path(os.path.expanduser(given)), "SNFNP_DATA_DIR", report)
        folder = cache_folder(self.name)
        try:
            hosts = self._fill(folder)
        except SnfnpError as error:
            return self.without_download(error, report)
        gave = f"{', '.join(hosts)} (downloaded to {folder})"
        source = gave if hosts else f"cache folder {folder}"
        try:
            return self.read(self.find(folder), source, report)
        except SnfnpError as error:
            remedy = " (in the cache: delete it to have it downloaded again)" * bool(self.mirrors)
            raise SnfnpError(f"{error}{remedy}") from error

    def _read_given(self, root: Path, origin: str, report: Callable) -> Dataset:
        """The images in a folder, or in its subfolder of the data set's name."""
        if not os.path.isdir(root):
            problem = "is not a folder" if os.path.exists(root) else "does not exist"
            raise UsageError(f"{root}: {origin} {problem}; give the {self.title} files' folder")
        # Half a set is the folder that was meant: its missing files are reported.
        place = root / self.name if self.find(root / self.name) else root
        files = self.find(place)
        lacks = " and ".join(name for key, name in self.names.items() if key not in files)
        if lacks:
            lacks = f"{place}: {origin} lacks {lacks} of {self.title}"
            raise UsageError(f"{lacks}; {self._to_get()} and put them there")
        return self.read(files, f"folder {place}", report)

    def _fill(self, folder: Path) -> list[str]:
        """Download what the cache lacks; return the hosts that gave it (none: nothing lacked)."""
        files = self.find(folder)
        missing = [key for key in self.names if key not in files]
        if missing and not self.mirrors:
            raise SnfnpError("registered users alone are given the files")
        if missing and os.environ.get("SNFNP_OFFLINE", "0") not in ("", "0"):
            raise SnfnpError("SNFNP_OFFLINE is set and the cache does not hold it")
        failed = folder.with_suffix(_FAILED)
        with suppress(OSError):
            ago = time.time() - failed.stat().st_mtime
            if missing and 0 <= ago < _RETRY_AFTER:
                again = f"to try again now, delete {failed}"
                raise SnfnpError(f"the download failed {ago / 60:.0f} minutes ago: {again}")
        return list(dict.fromkeys(_download(self, key, folder) for key in missing))

    def _to_get(self) -> str:
        names, mirrors = " and ".join(self.names.values()), " or ".join(self.mirrors)
        return self.advice or f"get {names} from {mirrors}"


def print_to_stderr(line: str) -> None:
    """Print one line to standard error."""
    print(line, file=sys.stderr, flush=True)


def cache_folder(name: str) -> Path:
    """The folder in the user's cache that downloads of data set `name` are kept in."""
    return paths.user_cache() / name


def _download(published: Published, key: str, folder: Path) -> str:
    """Put a file into `folder` from the first mirror that works; return that mirror's host.

    The file gets its name only once its checksum is right: an interruption at any time leaves the
    cache as it was.
    """
    try:
        import pooch
        import requests
    except ModuleNotFoundError as error:
        raise SnfnpError(f"{error.name} is not installed: python -m pip install pooch") from error
    pooch.get_logger().setLevel("WARNING")
    name, failures = published.names[key], []
    limits = {"chunk_size": 1 << 16, "timeout": (5.0, 15.0)}  # seconds to connect; without a byte
    fetch: Any = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), **limits)
    for mirror in published.mirrors:
        host, known = urlsplit(mirror).netloc, f"md5:{published.md5[key]}"
        try:
            pooch.retrieve(mirror + name, known, name, folder, downloader=fetch)
            return host
        except requests.HTTPError as error:
            problem = f"HTTP status {getattr(error.response, 'status_code', 'unknown')}"
        except requests.RequestException:  # whose texts are lines of addresses and objects
            problem = "connection failed"
        except ValueError:
            problem = "wrong checksum"
        except OSError as error:
            raise SnfnpError(f"the cache {folder} cannot be written ({error.strerror})") from error
        failures.append(f"{host}: {problem}")
    with suppress(OSError):
        folder.with_suffix(_FAILED).touch()
    raise SnfnpError(f"no mirror gave {name} ({', '.join(failures)})")
