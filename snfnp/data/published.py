"""Published data sets: where their files are, and downloads."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from snfnp import paths
from snfnp.data.dataset import SPLITS, Dataset
from snfnp.errors import SnfnpError, UsageError
from snfnp.images import selected


@dataclass(frozen=True)
class Published:
    """A data set that is read from published files.

    Attributes:
        name: as given to `load_dataset`, and the folder's name in the cache.
        title: the name in messages.
        files: {name at the mirrors: MD5 there}.
        read: read(self, {name: path}) checks the files, and returns the images (N, H, W, C).
        counts: how many of them, in this order, are for training, validation and test.
        mirrors: base addresses, each ending in "/", in the order in which they are tried; without
            any, a person has to get the files.
        advice: how a person gets them.
        substitute: makes the data if the files cannot be downloaded.
    """

    name: str
    title: str
    files: dict[str, str]
    read: Callable[..., Any]
    counts: tuple[int, int, int]
    mirrors: tuple[str, ...] = ()
    advice: str = ""
    substitute: Callable[[], Dataset] | None = None

    def find(self, folder: Path) -> dict[str, Path]:
        """The files that a folder has, by published name; each of MNIST's has four names in use."""
        found = {}
        for name in self.files:
            dotted = name.replace("-idx", ".idx")
            for spelt in (dotted.removesuffix(".gz"), name.removesuffix(".gz"), dotted, name):
                # os.path.isfile, unlike Path.is_file, also answers for folders without access.
                if os.path.isfile(folder / spelt):
                    found[name] = folder / spelt  # the published name, if it is there
        return found

    def load(self, data_dir: str | os.PathLike[str] | None, report: Callable) -> Dataset:
        """Read the files in the given folder, or else in the cache, which downloads missing ones.

        Arguments and errors are those of `snfnp.data.load_dataset`.
        """
        if data_dir is not None:
            return self._read_given(Path(os.path.expanduser(data_dir)), "the data folder")
        if given := os.environ.get("SNFNP_DATA_DIR"):
            return self._read_given(Path(os.path.expanduser(given)), "SNFNP_DATA_DIR")
        folder = cache_folder(self.name)
        try:
            self._fill(folder)
        except SnfnpError as error:
            if self.substitute is None:
                lacks = f"no {self.title} images in {folder} and no download ({error})"
                raise SnfnpError(
                    f"{lacks}; {self._to_get()} and give their folder (`data_dir`)"
                ) from None
            dataset = self.substitute()
            counts = ", ".join(f"{len(getattr(dataset, split))} {split}" for split in SPLITS)
            used = f"using the {dataset.source} ({counts} images)"
            given = "--data-dir or SNFNP_DATA_DIR may name a folder with the full data's files"
            report(f"WARNING: NOT THE FULL {self.title}: {used}, because {error}; {given}")
            return dataset
        try:
            return self._read(self.find(folder), f"cache folder {folder}")
        except SnfnpError as error:
            remedy = " (in the cache: delete it to have it downloaded again)" * bool(self.mirrors)
            raise SnfnpError(f"{error}{remedy}") from error

    def _read(self, files: dict[str, Path], source: str) -> Dataset:
        images = self.read(self, files)
        places = np.split(np.arange(sum(self.counts)), np.cumsum(self.counts[:-1]))
        return Dataset(self.name, *(selected(images, some) for some in places), source=source)

    def _read_given(self, root: Path, origin: str) -> Dataset:
        """The images in a folder, or in its subfolder of the data set's name."""
        # A folder with some of the files is the one that was meant: the others are reported.
        place = root / self.name if self.find(root / self.name) else root
        files = self.find(place)
        if lacks := " and ".join(name for name in self.files if name not in files):
            problem = f"lacks {lacks} of {self.title}" if os.path.isdir(root) else "is no folder"
            raise UsageError(f"{place}: {origin} {problem}; {self._to_get()} and put them there")
        return self._read(files, f"folder {place}")

    def _fill(self, folder: Path) -> None:
        """Download what the cache lacks."""
        found = self.find(folder)
        for name in (name for name in self.files if name not in found):
            if not self.mirrors:
                raise SnfnpError("only registered users get the files")
            if os.environ.get("SNFNP_OFFLINE", "0") not in ("", "0"):
                raise SnfnpError("SNFNP_OFFLINE is set and the cache does not hold it")
            self._download(name, folder)

    def _download(self, name: str, folder: Path) -> None:
        """Put a file into `folder` from the first mirror that works.

        pooch renames it once its checksum is right: an interruption leaves the cache as it was.
        """
        import pooch
        import requests

        pooch.get_logger().setLevel("WARNING")
        limits = {"chunk_size": 1 << 16, "timeout": (5.0, 15.0)}  # to connect; without a byte
        fetch: Any = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), **limits)
        known, failures = f"md5:{self.files[name]}", []
        for mirror in self.mirrors:
            host = urlsplit(mirror).netloc
            try:
                pooch.retrieve(mirror + name, known, name, folder, downloader=fetch)
                return
            except requests.HTTPError as error:
                problem = f"HTTP status {getattr(error.response, 'status_code', 'unknown')}"
            except requests.RequestException:  # their texts fill lines
                problem = "connection failed"
            except ValueError:
                problem = "wrong checksum"
            except OSError as error:
                reason = f"the cache {folder} cannot be written ({error.strerror})"
                raise SnfnpError(reason) from error
            failures.append(f"{host}: {problem}")
        raise SnfnpError(f"no mirror gave {name} ({', '.join(failures)})")

    def _to_get(self) -> str:
        return self.advice or f"get {' and '.join(self.files)} from {' or '.join(self.mirrors)}"


def print_to_stderr(line: str) -> None:
    """Print one line to standard error."""
    print(line, file=sys.stderr, flush=True)


def cache_folder(name: str) -> Path:
    """The folder for downloads of data set `name` in the user's cache."""
    return paths.user_cache() / name
