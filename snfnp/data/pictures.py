"""Folders of images: .png and .jpg files of one size."""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from snfnp.errors import UsageError
from snfnp.files import open_regular, readable

SUFFIXES = (".png", ".jpg", ".jpeg")
_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
_SPLITS = {name: split for split, names in _NAMES.items() for name in names}
_MOST = 10_000_000  # entries of a folder, which may be endless
_MOST_OTHERS = 200_000  # before the first image: a stranger's run may name a whole disk as its data


def read_folder(folder: Path, report: Callable[[str], None]) -> dict[str, np.ndarray]:
    """{split: images} of a folder, from its folders train, validation and test, or as others call
    these, in any letter case; without them, all images are "train". `report` gets a line about what
    is left out. Raises UsageError for damaged images, and for images beside such folders."""
    named = {}  # {folder: split}
    for name in sorted(name for name in os.listdir(folder) if os.path.isdir(folder / name)):
        if split := _SPLITS.get(name.lower()):
            if split in named.values():
                raise UsageError(
                    f"{folder} has two folders of {split} images: leave one of them out"
                )
            named[name] = split
    if named and "train" not in named.values():
        raise UsageError(f"{folder} has no folder train beside {', '.join(named)}: add one")
    files = list(_files(folder, report))
    if not named:
        return {"train": _read(folder, files, report)}
    parts = {name: [] for name in named}
    for file in files:
        name = file.relative_to(folder).parts[0]
        if name not in named:
            found = f"{folder} has images beside its {', '.join(named)}, such as {file}"
            raise UsageError(f"{found}: move them into one of these, or out of it")
        parts[name].append(file)
    return {split: _read(folder / name, parts[name], report) for name, split in named.items()}


def _files(folder: Path, report: Callable[[str], None]) -> Iterator[Path]:
    """The images in a folder and below it, on the same disk, in the order of their names."""
    seen, images, left_out, others = 0, 0, False, Counter()
    for place, folders, names in os.walk(folder):
        seen += len(names) + len(folders)
        if seen > _MOST:
            raise UsageError(f"{folder} has more than {_MOST:,} entries: give a folder of images")
        if not images and seen > _MOST_OTHERS:
            found = (
                f"{folder} has no images ({', '.join(SUFFIXES)}) among its first {seen:,} entries"
            )
            raise UsageError(f"{found}: give a folder of images")
        paths = {name: os.path.join(place, name) for name in folders if name[0] != "."}
        here = [k for k, at in paths.items() if not (os.path.islink(at) or os.path.ismount(at))]
        left_out |= len(here) < len(folders)
        folders[:] = sorted(here)
        for name in sorted(name for name in names if name[0] != "."):
            suffix = Path(name).suffix.lower()
            if suffix in SUFFIXES:
                images += 1
                yield Path(place, name)
            else:
                others[suffix or "without a suffix"] += 1
    if left_out:
        found = "hidden folders, links to folders, and folders on other disks"
        report(f"{folder}: {found} are left out")
    if others:
        found = ", ".join(f"{number} {suffix}" for suffix, number in others.most_common(6))
        report(f"{folder}: other files are left out ({found})")


def _read(folder: Path, files: list[Path], report: Callable[[str], None]) -> np.ndarray:
    """Images (N, H, W, C) of one size: grey if all are, else with three channels, without
    transparency, and turned as their EXIF data say."""
    if not files:
        raise UsageError(f"{folder} has no images ({', '.join(SUFFIXES)}): check the path")
    images: np.ndarray = np.empty(0, np.uint8)
    grey, animated, printed = True, 0, 0
    for place, file in enumerate(files):
        with readable(file), _opened(file) as image:
            grey &= image.mode in ("1", "L", "LA")
            animated += image.format == "PNG" and getattr(image, "is_animated", False)
            printed += image.mode == "CMYK"
            pixels = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        if place == 0:
            images = np.empty((len(files), *pixels.shape), np.uint8)
        if pixels.shape != images.shape[1:]:
            (high, wide), (first_high, first_wide) = pixels.shape[:2], images.shape[1:3]
            found = f"{file} is {wide} x {high}, and {files[0]} {first_wide} x {first_high}"
            raise UsageError(f"{found}: bring the images to one size")
        images[place] = pixels
    if animated:
        report(f"{folder}: of animations the first frame is taken ({animated})")
    if printed:
        report(f"{folder}: CMYK images become RGB without their colour profiles ({printed})")
    return images[..., :1].copy() if grey else images


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """An image of at most 8 bits. Raises ValueError for more, which Pillow would truncate."""
    with (
        open(open_regular(file, follow=True), "rb") as stream,
        warnings.catch_warnings(action="ignore"),
    ):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        header = stream.read(25)
        stream.seek(0)
        try:
            image = Image.open(stream, formats=["PNG", "JPEG"])
        except UnidentifiedImageError:  # it names the stream
            raise ValueError("it is not a PNG or JPEG image") from None
        with image:
            depth = header[24] if image.format == "PNG" else 8  # in IHDR
            if image.mode[0] in "IF" or depth > 8:
                raise ValueError("its pixels have more than 8 bits")
            yield image
