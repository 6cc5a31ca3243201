"""Data of one's own: .npy, .npz and .csv files, folders of images. Nothing is ever unpickled."""

import zipfile
import zlib
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from snfnp.data.dataset import SPLITS, Dataset
from snfnp.data.reading import one_line
from snfnp.data.table import read_table
from snfnp.errors import UsageError
from snfnp.images import Mapped, fault, fault_of_rows, is_rows

HELD_OUT = "0.1"  # of the data, for validation and again for the test
_PICTURES = (".png", ".jpg", ".jpeg")
_DAMAGED = (OSError, ValueError, EOFError, SyntaxError, NotImplementedError, zlib.error)
_DAMAGED += (zipfile.BadZipFile, Image.DecompressionBombError)


def load(path, validation=None, test=None, seed: int = 0) -> Dataset:
    """The data at a path, or in an array: images (N, H, W[, C]) of uint8, or rows of floats (N, D).

    validation, test: others, or the fraction of the data, drawn by `seed`, that is held
    out, unless the data name their splits. A .npy file is mapped, and read as it is needed.
    Raises UsageError for what is none of this.
    """
    splits, fractions, named = _read(path), {}, isinstance(path, str)
    name, path = (Path(path).stem, path) if named else ("array", "arrays in memory")
    for split, given in (("validation", validation), ("test", test)):
        if split in splits and given is not None:
            raise UsageError(f"{path} has {split} data already: leave `{split}` out")
        if split in splits:
            continue
        try:
            fractions[split] = float(HELD_OUT if given is None else given)
        except (ValueError, TypeError):
            others = _read(given)
            splits[split] = others.get(split, others["train"])
            continue
        if not 0 < fractions[split] < 1:
            raise UsageError(f"`{split}` is {given}: give a fraction between 0 and 1, or a path")
    train = splits["train"]
    if fractions:
        counts = {split: max(1, round(part * len(train))) for split, part in fractions.items()}
        left = max(len(train) - sum(counts.values()), 0)
        if left < 2:
            found = f"{path} has {len(train)} samples, of which {left} would be left to train on"
            raise UsageError(f"{found}: give more, or smaller fractions")
        order, first = np.random.default_rng((seed, len(train), 1)).permutation(len(train)), 0
        for split, count in {**counts, "train": left}.items():
            places, first = np.sort(order[first : first + count]), first + count
            mapped = isinstance(train, np.memmap)
            splits[split] = Mapped(train, places) if mapped else train[places]
    return Dataset(name, **splits, source=path)


def whole(path: str):
    """All images or rows at a path, as `load` reads them; if splits are named, those of the test.
    Raises UsageError for what is none of this."""
    splits = _read(path)
    return splits.get("test", splits["train"])


def _read(path) -> dict:
    """{split: array} at a path; a single array is "train"."""
    if not isinstance(path, str):
        with _explained("the array"):  # which may be mapped from a file
            array = path if isinstance(path, np.ndarray) else np.asarray(path)
        return {"train": _required(array, "the array")}
    place = Path(path)
    suffix = place.suffix.lower()
    if place.is_dir():
        named = [split for split in SPLITS if (place / split).is_dir()]
        splits = {split: _pictures(place / split) for split in named} or {"train": _pictures(place)}
    elif not place.exists():
        raise UsageError(f"{path} does not exist: check the path")
    elif suffix == ".npy":
        with _explained(path):
            splits = {"train": np.load(place, mmap_mode="r", allow_pickle=False)}
    elif suffix == ".npz":
        with _explained(path), np.load(place, allow_pickle=False) as file:
            splits = {name: file[name] for name in file.files if not name.endswith("labels")}
        if len(splits) == 1:
            splits = {"train": next(iter(splits.values()))}
    elif suffix == ".csv":
        with _explained(path):
            splits = {"train": read_table(place)}
    else:
        raise UsageError(f"{path}: give a .npy, .npz or .csv file, or a folder of images")
    if "train" not in splits or not splits.keys() <= set(SPLITS):
        found = f"{path} has the arrays {', '.join(splits) or 'none'}"
        raise UsageError(f"{found}: name them train, validation and test, or give a single one")
    return {split: _required(array, f"{path} ({split})") for split, array in splits.items()}


def _required(array: np.ndarray, where: str) -> np.ndarray:
    """Images (N, H, W, C) or rows of floats (N, D), whose values `Dataset` checks."""
    if array.ndim == 3:
        array = array[..., np.newaxis]
    # before splits are drawn, in which rows have other numbers
    problem = fault_of_rows(array) if is_rows(array) else fault(array)
    if array.ndim != 4 and not is_rows(array):
        problem = f"{array.dtype} of shape {array.shape}; give images, uint8 (N, H, W) or "
        problem += "(N, H, W, C), or rows of floats, (N, D)"
    if problem:
        raise UsageError(f"{where}: {problem}")
    return array


def _pictures(folder: Path) -> np.ndarray:
    """All images in a folder and below it, in the order of their names, (N, H, W, C): grey if all
    are, else with three channels, without transparency."""
    files = [each for each in folder.rglob("[!.]*") if each.suffix.lower() in _PICTURES]
    files.sort()
    if not files:
        raise UsageError(f"{folder} has no images ({', '.join(_PICTURES)}): check the path")
    sizes, modes = Counter(), set()
    for file in files:
        with _explained(file), Image.open(file) as image:
            sizes[image.size] += 1
            modes.add(image.mode)
            if image.mode[0] in "IF":
                raise ValueError("its pixels have more than 8 bits")
    if len(sizes) > 1:
        found = [f"{count} of {wide} x {high}" for (wide, high), count in sizes.most_common(4)]
        more = " and others" * (len(sizes) > 4)
        found = f"{folder} has images of {len(sizes)} sizes ({', '.join(found)}{more})"
        raise UsageError(f"{found}: bring them to one size")
    mode = "L" if modes <= {"1", "L", "LA"} else "RGB"
    (wide, high), *_ = sizes
    images = np.empty((len(files), high, wide, len(mode)), np.uint8)
    for place, file in enumerate(files):
        with _explained(file), Image.open(file) as image:
            images[place] = np.asarray(image.convert(mode)).reshape(images.shape[1:])
    return images


@contextmanager
def _explained(path):
    """Errors of readers become a line about this file."""
    try:
        yield
    except _DAMAGED as error:
        problem = one_line(error)
        if "pickle" in problem or "Python objects" in problem:
            problem = "it is no array of numbers, and Python objects are never loaded"
        raise UsageError(f"{path} cannot be read ({problem}): mend it, or leave it out") from None
