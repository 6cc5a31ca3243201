"""ImageNet32: ImageNet downsampled to 32 x 32, of which two versions are published.

png: one tar archive of PNG files per split (van den Oord et al., 2016, "Pixel Recurrent Neural
     Networks"), 1,281,149 and 49,999 images. By its count this is the version of Keller et al.
     2021, appendix A.3: 20,000 images for validation leave their 1,261,149 for training.
npz: batches of NumPy arrays (Chrabaszcz et al., 2017, "A Downsampled Variant of ImageNet"),
     1,281,167 and 50,000 images.

They were downsampled differently, so likelihoods on one cannot be compared with those on the
other; `Dataset.source` says which one was read.

Training images need 3.9 GB. They are copied once into uncompressed .npy files in the user's
cache, image by image or batch by batch, and mapped into memory from there.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from snfnp.data.files import Dataset, cache_folder, given_folder, one_line
from snfnp.data.imagenet_files import (
    NPY_ERRORS,
    NPZ_TEST,
    NPZ_TRAIN,
    read_npz_files,
    read_png_archives,
)
from snfnp.errors import SnfnpError, UsageError
from snfnp.ops.philox import RandomKey, words

NAME = "imagenet32"
TITLE = "ImageNet32"
VALIDATION_COUNT = 20_000  # Keller et al. 2021, appendix A.3
VALIDATION_SEED = 0  # of the random choice of those images; changing it changes every result

_SHAPE = (32, 32, 3)
_BYTES = 32 * 32 * 3
_RECORD = "record.json"


@dataclass(frozen=True)
class Version:
    """One published version.

    Attributes:
        title: the name for people.
        train_files: sets of file names, each of which holds all training images.
        test_files: likewise for the official validation images, which are the test split.
        train_count: images in the training files, before the validation split is taken out.
        test_count: images in the test files.
        read: yields the images of such files in blocks, uint8 (n, 32, 32, 3).
    """

    title: str
    train_files: tuple[tuple[str, ...], ...]
    test_files: tuple[tuple[str, ...], ...]
    train_count: int
    test_count: int
    read: Callable[[list[Path]], Iterator[np.ndarray]]


VERSIONS = {
    "png": Version(
        title="PNG version (van den Oord et al. 2016)",
        train_files=(("train_32x32.tar",),),
        test_files=(("valid_32x32.tar",),),
        train_count=1_281_149,
        test_count=49_999,
        read=read_png_archives,
    ),
    "npz": Version(
        title="npz version (Chrabaszcz et al. 2017)",
        train_files=(("Imagenet32_train_npz.zip",), NPZ_TRAIN),
        test_files=(("Imagenet32_val_npz.zip",), NPZ_TEST),
        train_count=1_281_167,
        test_count=50_000,
        read=read_npz_files,
    ),
}


def load(
    name: str, data_dir: str | os.PathLike[str] | None, announce: Callable[[str], None]
) -> Dataset:
    """Load ImageNet32: what `snfnp.data.load_dataset` says, but it is never downloaded.

    image-net.org gives its files to registered users only, so there is no stable address to
    download from. Files: train_32x32.tar and valid_32x32.tar (the PNG version), or
    Imagenet32_train_npz.zip and Imagenet32_val_npz.zip or the batches in them,
    train_data_batch_1.npz to train_data_batch_10.npz and val_data.npz (the npz version). They
    are copied once into the user's cache (4.1 GB, minutes), and may be deleted after that if
    they too were in the cache. `announce` is called before copying.

    Returns:
        The official validation images as the test split, 20,000 random training images
        (VALIDATION_SEED) for validation, the rest for training, in the order of the archive;
        all three read-only `numpy.memmap`s.

    Raises:
        UsageError: the files are lacking, or both versions are there.
        SnfnpError: a file is damaged, has the wrong number of images, or its copy does not fit.
    """
    cache = cache_folder(NAME)
    given = given_folder(data_dir, TITLE)
    places = [cache] if given is None else [given[0] / NAME, given[0]]
    for place in places:
        found = {key: _find_files(version, place) for key, version in VERSIONS.items()}
        complete = {key: files for key, files in found.items() if not files.missing}
        if given is None:
            # The copies are enough, should the archives be gone.
            complete |= {
                key: _Files([], [], [])
                for key in VERSIONS
                if key not in complete and _read_record(cache / key) is not None
            }
        if len(complete) > 1:
            raise UsageError(
                f"{place}: holds both versions of {TITLE}, which give different likelihoods; keep "
                "one of them there, or give the folder of one with --data-dir"
            )
        for key, files in complete.items():
            return _open(key, _copy(key, files, cache / key, announce), place)
        for files in found.values():
            if files.train or files.test:
                raise UsageError(f"{place}: lacks {', '.join(files.missing)} of {TITLE}")
    looked = places[-1] if given is None else f"{given[0]} ({given[1]})"
    raise UsageError(
        f"no {TITLE} in {looked}: register at https://image-net.org/download-images, get "
        "train_32x32.tar and valid_32x32.tar (PNG) or Imagenet32_train_npz.zip and "
        "Imagenet32_val_npz.zip (npz; the two give different likelihoods), and give their folder "
        "with --data-dir"
    )


@dataclass(frozen=True)
class _Files:
    train: list[Path]
    test: list[Path]
    missing: list[str]

    @property
    def sizes(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in [*self.train, *self.test]}


def _find_files(version: Version, place: Path) -> _Files:
    """Which files of a version a folder holds: of each split, the set that lacks the least."""
    splits, missing = [], []
    for alternatives in (version.train_files, version.test_files):
        present = [[n for n in names if os.path.isfile(place / n)] for names in alternatives]
        complete = [len(p) == len(names) for p, names in zip(present, alternatives, strict=True)]
        # The first that is complete; else the one of which something is there; else the first.
        best = complete.index(True) if any(complete) else present.index(max(present, key=len))
        splits.append([place / name for name in present[best]])
        missing += [name for name in alternatives[best] if name not in present[best]]
    return _Files(*splits, missing)


def _read_record(folder: Path) -> dict | None:
    """What the copy in a folder was made from; None if there is none of the present split."""
    try:
        record = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
        split = record["validation_count"], record["validation_seed"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if split == (VALIDATION_COUNT, VALIDATION_SEED) else None


def _copy(key: str, files: _Files, folder: Path, announce: Callable[[str], None]) -> Path:
    """Make the uncompressed copy of a version unless it is there; return its folder.

    The copy appears under its name only when it is whole, so an interruption at any time leaves
    none.
    """
    record = _read_record(folder)
    if record is not None and (not files.train or record.get("files") == files.sizes):
        return folder
    version = VERSIONS[key]
    needed = (version.train_count + version.test_count) * _BYTES
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if free < needed:
            raise SnfnpError(
                f"{folder.parent}: the uncompressed copy of {TITLE} needs {needed / 1e9:.1f} GB "
                f"and {free / 1e9:.1f} GB are free; make room there"
            )
        announce(
            f"copying {TITLE}, {version.title}, once into {folder} ({needed / 1e9:.1f} GB "
            "uncompressed); this takes minutes"
        )
        with tempfile.TemporaryDirectory(prefix=".copy-", dir=folder.parent) as temporary:
            part = Path(temporary) / key
            part.mkdir()
            _write_splits(version, files, part)
            record = {
                "version": version.title,
                "files": files.sizes,
                "validation_count": VALIDATION_COUNT,
                "validation_seed": VALIDATION_SEED,
            }
            (part / _RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            if folder.exists():
                os.replace(folder, Path(temporary) / "outdated")
            os.replace(part, folder)
    except OSError as error:
        raise SnfnpError(
            f"{folder}: the uncompressed copy of {TITLE} cannot be written ({error.strerror})"
        ) from error
    return folder


def validation_mask(count: int) -> np.ndarray:
    """Which of `count` training images are for validation: bool (count,), always the same.

    The VALIDATION_COUNT images with the smallest of `count` random numbers, a choice without
    replacement that no version of NumPy changes.
    """
    order = np.argsort(words(np, RandomKey(VALIDATION_SEED, 0), count), kind="stable")
    mask = np.zeros(count, bool)
    mask[order[:VALIDATION_COUNT]] = True
    return mask


def _write_splits(version: Version, files: _Files, folder: Path) -> None:
    mask = validation_mask(version.train_count)
    total = version.train_count + version.test_count
    with tqdm(total=total, unit="img", unit_scale=True, disable=None, dynamic_ncols=True) as bar:
        with (
            _create(folder / "train.npy", version.train_count - VALIDATION_COUNT) as train,
            _create(folder / "validation.npy", VALIDATION_COUNT) as validation,
        ):
            start = 0
            for images in _blocks(version, files.train, version.train_count):
                chosen = mask[start : start + len(images)]
                train.write(images[~chosen].tobytes())
                validation.write(images[chosen].tobytes())
                start += len(images)
                bar.update(len(images))
        with _create(folder / "test.npy", version.test_count) as test:
            for images in _blocks(version, files.test, version.test_count):
                test.write(images.tobytes())
                bar.update(len(images))


def _create(path: Path, count: int) -> BinaryIO:
    """Start an .npy file of `count` images, which are to be written as plain bytes.

    Not through a memory map: a disk that runs full would then end the process by a signal.
    """
    file = open(path, "wb")  # noqa: SIM115, the caller closes it
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, *_SHAPE)}
    np.lib.format.write_array_header_1_0(file, header)
    return file


def _blocks(version: Version, paths: list[Path], count: int) -> Iterator[np.ndarray]:
    """The images of files in blocks, `count` in all.

    Raises:
        SnfnpError: there are more or fewer.
    """
    read = 0
    for images in version.read(paths):
        read += len(images)
        if read > count:
            break
        yield images
    if read != count:
        names = paths[0] if len(paths) == 1 else f"{paths[0]} and the batches after it"
        found = f"more than {count:,}" if read > count else f"{read:,}"
        raise SnfnpError(
            f"{names}: {found} images, not the {count:,} of the {version.title}; replace with a "
            "fresh copy"
        )


def _open(key: str, folder: Path, place: Path) -> Dataset:
    version = VERSIONS[key]
    counts = {
        "train": version.train_count - VALIDATION_COUNT,
        "validation": VALIDATION_COUNT,
        "test": version.test_count,
    }
    splits = {}
    for split, count in counts.items():
        path = folder / f"{split}.npy"
        try:
            splits[split] = np.load(path, mmap_mode="r", allow_pickle=False)
            problem = None if splits[split].shape == (count, *_SHAPE) else "wrong shape"
        except (OSError, *NPY_ERRORS) as error:
            problem = one_line(error)
        if problem:
            raise SnfnpError(
                f"{path}: the copy is damaged ({problem}); delete {folder} to have it made again"
            )
    return Dataset(
        name=NAME,
        **splits,
        source=f"{TITLE}, {version.title}, folder {place}, through the copy in {folder}",
        is_sample=False,
    )
