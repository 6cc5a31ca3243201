"""Folders of images: .png and .jpg files of one size."""

import os
import stat
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from snfnp.data.reading import readable
from snfnp.errors import UsageError
from snfnp.paths import open_regular

SUFFIXES = (".png", ".jpg", ".jpeg")
_SPLITS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_MOST = 10_000_000  # entries of a folder, which may have no end
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # of EXIF: those in which width and height change


def read_folder(folder: Path, report: Callable[[str], None]) -> dict[str, np.ndarray]:
    """{split: images} of a folder: those in its folders train, validation (or val) and test, if it
    has any of these, in capitals or not; else all are "train". `report` gets a line about images in
    hidden folders, which are left out. Raises UsageError, also for images beside such folders."""
    names = {split: "" for split in _SPLITS.values()}
    with readable(folder):
        inside = sorted(name for name in os.listdir(folder) if os.path.isdir(folder / name))
    for name in inside:
        if split := _SPLITS.get(name.lower()):
            if names[split]:
                found = f"{folder} has two folders of {split} images, {names[split]} and {name}"
                raise UsageError(f"{found}: leave one of them out")
            names[split] = name
    files = list(_files(folder, report))
    named = {split: name for split, name in names.items() if name}
    if not named:
        return {"train": _read(folder, files)}
    parts = {
        split: [file for file in files if file.relative_to(folder).parts[0] == name]
        for split, name in named.items()
    }
    if rest := set(files) - {file for part in parts.values() for file in part}:
        found = f"{folder} has {len(rest)} images beside its {', '.join(named.values())}"
        raise UsageError(f"{found}, as {min(rest)}: move them into one of these, or out of it")
    return {split: _read(folder / named[split], part) for split, part in parts.items()}


def _files(folder: Path, report: Callable[[str], None]) -> Iterator[Path]:
    """The images in a folder and below it, on the same disk, in the order of their names."""
    device, seen, hidden, elsewhere = os.stat(folder).st_dev, 0, 0, 0
    for place, folders, names in os.walk(folder):
        seen += len(names) + len(folders)
        if seen > _MOST:
            raise UsageError(f"{folder} has more than {_MOST:,} entries: give a folder of images")
        images = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
        inside = Path(place).relative_to(folder).parts
        if any(part.startswith(".") for part in inside):
            hidden += len(images)
            continue
        here = [each for each in folders if _device(place, each) == device]
        elsewhere += len(folders) - len(here)
        folders[:] = sorted(here)
        yield from (Path(place, name) for name in sorted(images) if name[0] != ".")
    if elsewhere:
        report(f"{folder}: {elsewhere:,} folders that are links or on other disks are left out")
    if hidden:
        report(f"{folder}: {hidden:,} images in hidden folders are left out")


def _device(*path: str) -> int | None:
    """The disk of a folder; none of a link to one."""
    try:
        status = os.lstat(os.path.join(*path))
        return None if stat.S_ISLNK(status.st_mode) else status.st_dev
    except OSError:  # it has just been removed
        return None


def _read(folder: Path, files: list[Path]) -> np.ndarray:
    """Images (N, H, W, C) of one size: grey if all are, else with three channels, without
    transparency, and turned as their EXIF data say."""
    if not files:
        raise UsageError(f"{folder} has no images ({', '.join(SUFFIXES)}): check the path")
    sizes, modes = Counter(), set()
    for file in files:
        with readable(file), _opened(file) as image:
            turned = image.getexif().get(_ORIENTATION) in _TURNED
            sizes[image.size[::-1] if turned else image.size] += 1
            modes.add(image.mode)
    if len(sizes) > 1:
        found = [f"{count} of {wide} x {high}" for (wide, high), count in sizes.most_common(4)]
        more = " and others" * (len(sizes) > 4)
        found = f"{folder} has images of {len(sizes)} sizes ({', '.join(found)}{more})"
        raise UsageError(f"{found}: bring them to one size")
    mode = "L" if modes <= {"1", "L", "LA"} else "RGB"
    (wide, high), *_ = sizes
    with readable(folder):  # they may not fit into memory
        images = np.empty((len(files), high, wide, len(mode)), np.uint8)
    for place, file in enumerate(files):
        with readable(file), _opened(file) as image:
            pixels = np.asarray(ImageOps.exif_transpose(image).convert(mode))
            images[place] = pixels.reshape(images.shape[1:])
    return images


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """An image of at most 8 bits. Raises ValueError for more, which Pillow would cut off."""
    descriptor = open_regular(file, follow=True)
    with open(descriptor, "rb") as stream, warnings.catch_warnings(action="ignore"):
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        header = stream.read(25)
        stream.seek(0)
        if not header.startswith((b"\x89PNG\r\n", b"\xff\xd8")):
            raise ValueError("it is no PNG or JPEG file")
        with Image.open(stream, formats=["PNG", "JPEG"]) as image:
            depth = header[24] if image.format == "PNG" else 8  # in IHDR
            if image.mode[0] in "IF" or depth > 8:
                raise ValueError("its pixels have more than 8 bits")
            yield image
