"""The user's own data: .npy, .npz and .csv files, folders of images. Nothing is ever unpickled."""

import mmap
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from snfnp.data import pictures
from snfnp.data.dataset import SPLITS, Dataset
from snfnp.data.npy import open_array
from snfnp.data.published import print_to_stderr
from snfnp.data.reading import readable
from snfnp.data.table import read_table
from snfnp.errors import UsageError, printable
from snfnp.images import StoredArray, fault, fault_of_rows, is_rows, selected, with_channels
from snfnp.paths import open_regular

HELD_OUT = "0.1"  # of the data, for validation and again for the test
_ARRAYS = "array", "arrays in memory"  # their name and their source


def load(
    path, validation=None, test=None, seed: int = 0, report: Callable = print_to_stderr, **table
) -> Dataset:
    """The data at a path, or in an array: images (N, H, W[, C]) of uint8, or rows of floats (N, D).

    validation, test: if the data do not name their splits, paths of these, or the fractions of the
    data that are held out at random, by `seed`. Raises UsageError for anything else.
    """
    splits, columns = _read(path, report, table)
    name, path = (Path(path).stem, printable(path)) if isinstance(path, str) else _ARRAYS
    fractions: dict[str, float] = {}
    for split, given in (("validation", validation), ("test", test)):
        if split in splits and given is not None:
            raise UsageError(f"{path} has {split} data already: leave `{split}` out")
        if split in splits:
            continue
        try:
            fractions[split] = float(HELD_OUT if given is None else given)
        except (ValueError, TypeError):
            splits[split] = _chosen(given, split, columns, report, table)
            continue
        if not 0 < fractions[split] < 1:
            raise UsageError(f"`{split}` is {given}: give a fraction between 0 and 1, or a path")
    train = splits["train"]
    if fractions:
        counts = [max(1, round(part * len(train))) for part in fractions.values()]
        if (left := max(len(train) - sum(counts), 0)) < 2:
            found = f"{path} has {len(train)} samples, of which {left} would be left to train on"
            raise UsageError(f"{found}: give more, or smaller fractions")
        order = np.random.default_rng((seed, len(train), 1)).permutation(len(train))
        parts = np.split(order, np.cumsum(counts))
        for split, places in zip((*fractions, "train"), parts, strict=True):
            splits[split] = selected(train, np.sort(places))
    return Dataset(name, **splits, source=path, columns=columns)


def whole(path: str, columns: tuple[str, ...] | None = None) -> np.ndarray | StoredArray:
    """All images or rows at a path, or the test split if splits are named. columns: the names of a
    table's columns to take, in this order."""
    return _chosen(path, "test", columns, print_to_stderr, {})


def _chosen(path, split: str, columns, report, table: dict) -> np.ndarray | StoredArray:
    """A split at a path, or everything there; of a table, the columns with these names."""
    is_table = str(path).lower().endswith(".csv")
    how = {**table, "columns": columns or table.get("columns")} if is_table else {}
    splits, _ = _read(path, report, how)
    return splits.get(split, splits["train"])


def _read(path, report: Callable[[str], None], table: dict) -> tuple[dict, tuple | None]:
    """{split: array} at a path ("train" if there is only one), and the names of a table's columns.
    table: options of `read_table`."""
    if not isinstance(path, str):
        with readable("the array"):
            array = path if isinstance(path, np.ndarray) else np.asarray(path)
        return {"train": _required(_unmapped(array), "the array")}, None
    place, columns = Path(path), None
    suffix = place.suffix.lower()
    if not os.path.lexists(path):
        raise UsageError(f"{path} does not exist: check the path")
    with readable(path):
        if place.is_dir():
            splits = pictures.read_folder(place, report)
        elif suffix == ".npy":
            splits = {"train": open_array(path)}
        elif suffix == ".npz":
            splits = _archive(path)
        elif suffix == ".csv":
            rows, columns = read_table(place, report, **table)
            splits = {"train": rows}
        else:
            raise UsageError(f"{path}: give a .npy, .npz or .csv file, or a folder of images")
    if "train" not in splits or not splits.keys() <= set(SPLITS):
        raise UsageError(_no_splits(path, splits))
    if table_given := [name for name, value in table.items() if value] if suffix != ".csv" else []:
        raise UsageError(f"`{table_given[0]}` is for .csv files, and {path} is none: leave it out")
    return {k: _required(array, f"{path} ({k})") for k, array in splits.items()}, columns


def _no_splits(path: str, names) -> str:
    found = f"{path} has the arrays {', '.join(names)[:80] or 'none'}"
    return f"{found}: name them train, validation and test, or give a single one"


def _archive(path: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, except labels. Names and sizes are checked before any is read."""
    with open(open_regular(path, follow=True), "rb") as stream, zipfile.ZipFile(stream) as archive:
        members = {each.filename.removesuffix(".npy"): each for each in archive.infolist()}
        members = {k: each for k, each in members.items() if not k.endswith("labels")}
        if len(members) != 1 and ("train" not in members or not members.keys() <= set(SPLITS)):
            raise UsageError(_no_splits(path, members))
        size, most = sum(each.file_size for each in members.values()), _memory()
        if size > most:
            found = f"its arrays take {size:,} bytes, and this machine has {most:,} bytes of memory"
            raise ValueError(f"{found}; a .npy file is read as needed")
        arrays = {}
        for name, member in members.items():
            with archive.open(member) as file:
                arrays[name] = np.lib.format.read_array(file, allow_pickle=False)
        return arrays if "train" in arrays else {"train": next(iter(arrays.values()))}


def _memory() -> int:
    """The bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _unmapped(array: np.ndarray) -> np.ndarray | StoredArray:
    """An array that is mapped from a .npy file, as one that is read from it (`snfnp.data.npy`)."""
    if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) and array.mode == "r":
        file = str(array.filename)
        with readable(file):
            found = open_array(file) if file.endswith(".npy") else array
        if (found.shape, found.dtype) == (array.shape, array.dtype):
            return found
    return array


def _required(array: np.ndarray | StoredArray, where: str) -> np.ndarray | StoredArray:
    """Images (N, H, W, C) or rows of floats (N, D). Raises UsageError for anything else."""
    array = with_channels(array)
    # before splits are drawn: the row numbers in messages are those of the file
    problem = fault_of_rows(array) if is_rows(array) else fault(array)
    if array.ndim not in (3, 4) and not is_rows(array):
        problem = f"{array.dtype} of shape {array.shape}; give images, uint8 (N, H, W) or "
        problem += "(N, H, W, C), or rows of floats, (N, D)"
    if problem:
        raise UsageError(f"{where}: {problem}")
    return array
