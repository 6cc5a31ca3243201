"""Data sets: MNIST, Fashion-MNIST, CIFAR-10, ImageNet32, 2-D toy densities, the user's own.

The user's own data are .npy and .npz files, tables (.csv, .tsv, .txt, also with .gz), folders of
images, and arrays. Nothing is ever unpickled.
"""

import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile

from snfnp.data import pictures, sets, toy
from snfnp.data.dataset import SPLITS, Dataset, require_dataset
from snfnp.data.table import is_table, read_table
from snfnp.errors import Report, UsageError, printable, require_whole, suggestion
from snfnp.files import StrPath, open_binary, readable
from snfnp.images import fault, open_array, with_channels

__all__ = [
    "DATA_SETS",
    "PUBLISHED",
    "SPLITS",
    "Dataset",
    "load_dataset",
    "require_dataset",
    "HELD_OUT",
    "load_whole",
    "own_data",
]
Names = tuple[str, ...] | None  # of the columns of a table

# {name: a function (data_dir or None, report) -> Dataset}
PUBLISHED = {
    published.name: published.load
    for published in (sets.MNIST, sets.FASHION_MNIST, sets.CIFAR, sets.IMAGENET32)
}
LOADERS = {
    **PUBLISHED,
    "mnist-sample": sets.sample,
    **{name: partial(toy.load, name) for name in toy.DENSITIES},
}
DATA_SETS = tuple(LOADERS)
HELD_OUT = "0.1"  # the share of a user's data for validation, and as much for the test


def print_to_stderr(line: str) -> None:
    """Print one line to standard error."""
    print(line, file=sys.stderr, flush=True)


def load_dataset(
    name: StrPath = "mnist",
    data_dir: StrPath | None = None,
    *,
    report: Report = print_to_stderr,
    validation: str | None = None,
    test: str | None = None,
    seed: int = 0,
    header: bool | None = None,
    columns: str | Sequence[str | int] | None = None,
    drop_incomplete: bool = False,
) -> Dataset:
    """Load a published data set, or the images or rows at a path.

    The files of a published set come from `data_dir` (its subfolder `name`, or the folder itself);
    else from the folder in the environment variable SNFNP_DATA_DIR, likewise; else from the user's
    cache, which downloads missing files unless SNFNP_OFFLINE is set. If there is no MNIST, the
    sample that the package ships takes its place.

    Args:
        name: one of DATA_SETS, or the path of a .npy or .npz file, of a table (.csv, .tsv
            or .txt, also with .gz), or of a folder of images.
        data_dir: the folder with a published set's files.
        report: gets a line if the sample replaces the full data, or if samples are left out.
        validation, test: for a path without such splits, other paths or the fractions that are held
            out (a tenth each).
        seed: of the random choice of the samples that are held out.
        header, columns, drop_incomplete: of a table (see `snfnp.data.table.read_table`).

    Returns:
        The data in three splits.

    Raises:
        UsageError: `name` is neither of these, a file is damaged, or a folder lacks files.
        SnfnpError: the files were found nowhere.
    """
    table = {
        "header": header,
        "columns": columns,
        "drop_incomplete": drop_incomplete,
    }
    path = _as_text(name)
    if not isinstance(path, str):
        raise UsageError(
            f"load_dataset takes a name or a path, not {type(path).__name__}: give arrays to "
            "snfnp.fit or snfnp.Dataset"
        )
    suffix = os.path.splitext(path)[1]
    if path in LOADERS or suffix or os.sep in path or os.path.lexists(path):
        if path not in PUBLISHED:
            refuse_options(path, "published data sets", data_dir=data_dir)
        if path in LOADERS:
            refuse_options(
                path, "own data", validation=validation, test=test, seed=seed, **table
            )
            return LOADERS[path](data_dir, report)
        return own_data(path, validation, test, seed, report, **table)
    raise UsageError(
        f"{path!r} is neither a data set nor a path{suggestion(path, LOADERS)}: use one of "
        f"{', '.join(DATA_SETS)}, or the path of your data (`data`)"
    )


def own_data(
    source: Any,
    validation: Any = None,
    test: Any = None,
    seed: int = 0,
    report: Report = print_to_stderr,
    **table: Any,
) -> Dataset:
    """The data at a path, or in an array: images (N, H, W[, C]) of uint8, or rows of floats (N, D).

    Args:
        source: a path or an array.
        validation, test: if the data do not name their splits, paths or arrays of these, or the
            fractions of the data that are held out at random.
        seed: of the random choice of the samples that are held out.
        report: gets a line if samples are left out.
        table: options for a table, as for `load_dataset`.

    Raises:
        UsageError: for anything else.
    """
    source = _as_text(source)
    splits, columns = _read(source, report, table)
    name = "array"
    shown = "arrays in memory"
    if isinstance(source, str):
        name = Path(source).stem
        shown = printable(source)
    fractions = {}
    for split, value in (("validation", validation), ("test", test)):
        if split in splits:
            if value is not None:
                raise UsageError(
                    f"{shown} has {split} data already: leave `{split}` out"
                )
            continue
        try:
            fraction = float(HELD_OUT if value is None else value)
        except (ValueError, TypeError):
            splits[split] = _chosen(_as_text(value), split, columns, report, table)
            continue
        if not 0 < fraction < 1:
            raise UsageError(
                f"`{split}` is {value}: give a fraction between 0 and 1, or a path"
            )
        fractions[split] = fraction
    if fractions:
        splits |= _held_out(splits["train"], fractions, seed, shown)
    return Dataset(name, **splits, source=shown, columns=columns)


def _held_out(
    samples: np.ndarray, fractions: dict[str, float], seed: int, source: str
) -> dict[str, np.ndarray]:
    """Samples in splits at random: fractions, and the rest for training."""
    total = len(samples)
    counts = [max(1, round(fraction * total)) for fraction in fractions.values()]
    left = max(total - sum(counts), 0)
    if left < 2:
        raise UsageError(
            f"of the samples of {source} ({total}), {left} would be left to train on: give more, "
            "or smaller fractions"
        )
    require_whole(None, 0, seed=seed)
    order = np.random.default_rng((seed, total, 1)).permutation(total)
    indices = np.split(order, np.cumsum(counts))
    return {
        split: samples[np.sort(part)]
        for split, part in zip((*fractions, "train"), indices, strict=True)
    }


def _as_text(path: Any) -> Any:
    """A path object as text, anything else as it is."""
    return os.fspath(path) if isinstance(path, os.PathLike) else path


def load_whole(name: str, data_dir: StrPath | None = None, **table: Any) -> np.ndarray:
    """The test data of the data set of this name; or everything at a path, of named splits the test
    split. table: as for `load_dataset`."""
    if name in LOADERS or data_dir is not None:
        return load_dataset(name, data_dir).test
    return _chosen(name, "test", None, print_to_stderr, table)


def _chosen(
    source: Any, split: str, columns: Names, report: Report, table: dict[str, Any]
) -> np.ndarray:
    """A split of a source, or everything there; of a table, the columns with these names."""
    options = (
        table | {"columns": columns or table.get("columns")} if is_table(source) else {}
    )
    splits, _ = _read(source, report, options)
    return splits.get(split, splits["train"])


def _read(
    source: Any, report: Report, table: dict[str, Any]
) -> tuple[dict[str, Any], Names]:
    """{split: array} at a path or of an array ("train" if there is only one), and the names of a
    table's columns. table: options of `read_table`."""
    if not isinstance(source, str):
        with readable("the array"):
            array = np.asanyarray(source)
        return {"train": _required(array, "the array")}, None
    path = Path(source)
    columns = None
    if not os.path.lexists(path):
        hint = "" if source in LOADERS else suggestion(source, LOADERS)
        raise UsageError(
            f"{source} does not exist{hint}: check it, or give the path of your data (`data`)"
        )
    with readable(source):
        if path.is_dir():
            splits = pictures.read_folder(path, report)
        elif path.suffix.lower() == ".npy":
            splits = {"train": open_array(source)}
        elif path.suffix.lower() == ".npz":
            splits = _archive(source)
        elif is_table(path):
            rows, columns = read_table(path, report, **table)
            splits = {"train": rows}
        else:
            raise UsageError(
                f"{source}: give a .npy, .npz, .csv, .tsv or .txt file, or a folder of images"
            )
    if not is_table(path):
        refuse_options(source, "tables", **table)
    for split, array in splits.items():
        splits[split] = _required(array, f"{source} ({split})")
    return splits, columns


def refuse_options(source: str, kind: str, **options: Any) -> None:
    """Refuse options for another kind of data."""
    for option, value in options.items():
        if value:
            raise UsageError(
                f"`{option}` is for {kind}, and {source} is none: leave it out"
            )


def _archive(path: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, except labels. Names and sizes are checked before any is read."""
    with open_binary(path) as stream, NpzFile(stream) as archive:
        names = [name for name in archive.files if not name.endswith("labels")]
        if len(names) != 1 and ("train" not in names or not set(names) <= set(SPLITS)):
            raise UsageError(
                f"{path} has the arrays {', '.join(names)[:80] or 'none'}: name them train, "
                "validation and test, or give a single one"
            )
        if len(set(names)) < len(names):
            raise UsageError(
                f"{path} has several arrays of one name: name each split once"
            )
        content: Any = archive.zip
        size = sum(entry.file_size for entry in content.infolist())
        most = _memory()
        if size > most:
            raise ValueError(
                f"its arrays take {size:,} bytes, and the memory has {most:,}"
            )
        return {name if len(names) > 1 else "train": archive[name] for name in names}


def _memory() -> int:
    """The bytes of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _required(array: np.ndarray, name: str) -> np.ndarray:
    """Images (N, H, W, C) or rows of floats (N, D), of whole numbers too. Raises UsageError, in
    which the array has a name, for anything else."""
    array = with_channels(array)
    if isinstance(array, np.ndarray) and array.ndim == 2 and array.dtype.kind in "bui":
        array = array.astype(np.float64)
    # before splits are drawn: the row numbers in messages are those of the file
    if problem := fault(array):
        raise UsageError(f"{name}: {problem}")
    return array
