"""Folders of images: .png and .jpg files of one size."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from snfnp.errors import Report, UsageError
from snfnp.files import open_binary, readable

SUFFIXES = (".png", ".jpg", ".jpeg")
_SPLITS = {  # {name of a folder: split}
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
_MOST = 10_000_000  # entries of a folder, which may be endless
_MOST_OTHERS = 200_000  # before the first image: a stranger's run may name a whole disk as its data


def read_folder(folder: Path, report: Report) -> dict[str, np.ndarray]:
    """{split: images} of a folder, from its folders train, validation and test, or as others call
    these, in any letter case; without them, all images are "train". `report` gets a line about what
    is left out. Raises UsageError for damaged images, and for images beside such folders."""
    splits = {}  # {folder: split}
    for name in sorted(os.listdir(folder)):
        split = _SPLITS.get(name.lower())
        if split and os.path.isdir(folder / name):
            if split in splits.values():
                raise UsageError(
                    f"{folder} has two folders of {split} images: leave one of them out"
                )
            splits[name] = split
    if splits and "train" not in splits.values():
        raise UsageError(
            f"{folder} has no folder train beside {', '.join(splits)}: add one"
        )
    files = list(_files(folder, report))
    if not splits:
        return {"train": _read(folder, files, report)}
    for file in files:
        if file.relative_to(folder).parts[0] not in splits:
            raise UsageError(
                f"{folder} has images beside its {', '.join(splits)}, such as {file}: move them "
                "into one of these, or out of it"
            )
    images = {}
    for name, split in splits.items():
        part = folder / name
        inside = [file for file in files if file.is_relative_to(part)]
        images[split] = _read(part, inside, report)
    return images


def _files(folder: Path, report: Report) -> Iterator[Path]:
    """The images in a folder and below it, on the same disk, in the order of their names."""
    entries = 0
    images = 0
    left_out = False
    others = Counter()
    for parent, folders, names in os.walk(folder):
        entries += len(names) + len(folders)
        walked = [name for name in folders if _is_walked(parent, name)]
        left_out |= len(walked) < len(folders)
        folders[:] = sorted(walked)
        for name in sorted(name for name in names if name[0] != "."):
            suffix = Path(name).suffix.lower()
            if suffix in SUFFIXES:
                images += 1
                yield Path(parent, name)
            else:
                others[suffix or "without a suffix"] += 1
        if entries > (_MOST if images else _MOST_OTHERS):
            raise UsageError(
                f"{folder} has {images:,} images ({', '.join(SUFFIXES)}) among its first "
                f"{entries:,} entries: give a folder of images"
            )
    if left_out:
        report(
            f"{folder}: hidden folders, folders of runs, links to folders, and folders on other "
            "disks are left out"
        )
    if others:
        counts = ", ".join(
            f"{count} {suffix}" for suffix, count in others.most_common(6)
        )
        report(f"{folder}: other files are left out ({counts})")


def _is_walked(parent: str, name: str) -> bool:
    path = os.path.join(parent, name)
    return not (
        name.startswith(".")
        or os.path.islink(path)
        or os.path.ismount(path)
        # a run that was trained in this folder, whose pictures are no data
        or os.path.exists(os.path.join(path, "metrics.jsonl"))
    )


def _read(folder: Path, files: list[Path], report: Report) -> np.ndarray:
    """Images (N, H, W, C) of one size: grey if all are, else with three channels, without
    transparency, and turned as their EXIF data say."""
    if not files:
        raise UsageError(
            f"{folder} has no images ({', '.join(SUFFIXES)}): check the path"
        )
    images = np.empty(0, np.uint8)
    grey = True
    animated = 0
    printed = 0
    for index, file in enumerate(files):
        with readable(file), _opened(file) as image:
            grey &= image.mode in ("1", "L", "LA")
            animated += image.format == "PNG" and getattr(image, "is_animated", False)
            printed += image.mode == "CMYK"
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        if index == 0:
            images = np.empty((len(files), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            raise UsageError(
                f"{file} is {_size(pixels)}, and {files[0]} {_size(images[0])}: bring the images "
                "to one size"
            )
        images[index] = pixels
    if animated:
        report(f"{folder}: of animations the first frame is taken ({animated})")
    if printed:
        report(
            f"{folder}: CMYK images become RGB without their colour profiles ({printed})"
        )
    return images[..., :1].copy() if grey else images


def _size(pixels: np.ndarray) -> str:
    height, width, _ = pixels.shape
    return f"{width} x {height}"


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """An image of at most 8 bits. Raises ValueError for more, which Pillow would truncate."""
    with open_binary(file) as stream, warnings.catch_warnings(action="ignore"):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        header = stream.read(25)
        stream.seek(0)
        try:
            image = Image.open(stream, formats=["PNG", "JPEG"])
        except UnidentifiedImageError:  # whose message names no file
            raise ValueError("it is not a PNG or JPEG image") from None
        with image:
            # a PNG has its bits per sample in byte 24
            depth = header[24] if image.format == "PNG" else 8
            if image.mode[0] in "IF" or depth > 8:
                raise ValueError("its pixels have more than 8 bits")
            yield image
