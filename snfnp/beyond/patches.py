"""32 x 32 patches of a few photographs: real natural images that need no download.

The photographs are those in colour, of natural scenes, that scikit-image's package holds as files
(https://scikit-image.org/docs/stable/api/skimage.data.html). Left out are the micrographs, the
retina, the drawings and test patterns, the Hubble deep field (mostly black sky), and the second
picture of the motorcycle (nearly the same as the first, so that the splits would share content).

Results on them are not comparable with those on CIFAR-10 or ImageNet32: there are five scenes
only, and the patches are smooth, being parts of large pictures.
"""

import os
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from snfnp.data.files import Dataset
from snfnp.errors import SnfnpError, UsageError

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
SIZE = 32
# Patches are cut from each photograph at its own size and at half of it. The grid's step in
# pixels of the (shrunk) photograph, by how many times it was shrunk: half a patch, so that those
# at the same scale overlap.
STEPS = {1: 16, 2: 8}
# A photograph's columns are divided among the splits before anything is cut or shrunk. This is
# the share of validation and of test each, at one and at the other end.
HELD_OUT = 0.16


def load(data_dir: str | os.PathLike[str] | None, report: Callable[[str], None]) -> Dataset:
    """Cut the patches, always the same ones. `report` gets a line that says what they are.

    No pixel of a photograph is in patches of two splits: 5,634 / 920 / 920 patches (train,
    validation, test) with scikit-image 0.26. SNFNP_DATA_DIR has no effect. Raises UsageError if
    scikit-image is not installed or `data_dir` is given, SnfnpError if a photograph is missing or
    damaged.
    """
    if data_dir is not None:
        raise UsageError(f"patches are cut from scikit-image's photographs: leave out {data_dir}")
    spec = find_spec("skimage")
    if spec is None:
        install = "python -m pip install scikit-image"
        raise UsageError(f"patches are cut from scikit-image's photographs: {install}")
    folder = Path(next(iter(spec.submodule_search_locations))) / "data"
    splits = cut_splits([_read_photograph(folder / file) for file in PHOTOGRAPHS])
    train, validation, test = map(len, splits)
    patches = f"{train} + {validation} + {test} patches of {len(PHOTOGRAPHS)} photographs from"
    patches += " scikit-image (train, validation, test)"
    results = "results are not comparable with CIFAR-10 or ImageNet32"
    report(f"WARNING: NOT A PUBLISHED DATA SET: {patches}; {results}")
    names = ", ".join(Path(file).stem for file in PHOTOGRAPHS)
    source = f"patches of {names} from scikit-image {metadata.version('scikit-image')}"
    return Dataset("patches", *splits, source=source, is_sample=True)


def _read_photograph(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        again = "python -m pip install --force-reinstall scikit-image"
        raise SnfnpError(f"{path}: missing or damaged; {again}") from error


def cut_splits(photographs: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut patches for training, validation and test from columns that the splits do not share.

    photographs: uint8 (H, W, 3) each, large enough for a patch in every share. Returns three uint8
    arrays (n, 32, 32, 3), in the order of the photographs. Validation and test change ends from one
    photograph to the next.
    """
    splits = [], [], []
    for index, photograph in enumerate(photographs):
        held_out = round(HELD_OUT * photograph.shape[1])
        first, middle, last = np.split(photograph, [held_out, -held_out], axis=1)
        regions = (middle, last, first) if index % 2 else (middle, first, last)
        for split, region in zip(splits, regions, strict=True):
            split += [_cut(_shrink(region, factor), step) for factor, step in STEPS.items()]
    train, validation, test = map(np.concatenate, splits)
    return train, validation, test


def _shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Means over squares of `factor` pixels, rounded; a rest that fills no square is left out."""
    height, width = (size // factor for size in image.shape[:2])
    squares = image[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return np.rint(squares.mean(axis=(1, 3))).astype(np.uint8)


def _cut(image: np.ndarray, step: int) -> np.ndarray:
    """All patches on a grid with that step: (n, 32, 32, 3)."""
    windows = np.lib.stride_tricks.sliding_window_view(image, (SIZE, SIZE), axis=(0, 1))
    return windows[::step, ::step].transpose(0, 1, 3, 4, 2).reshape(-1, SIZE, SIZE, 3)
