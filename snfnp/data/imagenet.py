"""ImageNet32: ImageNet downsampled to 32 x 32 (van den Oord et al., 2016, "Pixel Recurrent Neural
Networks"), as one .npy file, which `scripts/runs.md` makes of its archives.

Keller et al. 2021 used this version, of 1,281,149 images for training, 20,000 of them for
validation, and 49,999 for the test. Another data set of the same name (Chrabaszcz et al., 2017, "A
Downsampled Variant of ImageNet", in .npz files) was downsampled differently, so that likelihoods
cannot be compared.
"""

from pathlib import Path

import numpy as np

from snfnp.data.npy import open_array
from snfnp.data.published import Published
from snfnp.data.reading import FRESH, readable
from snfnp.images import selected

FILE = "imagenet32.npy"
COUNTS = (1_261_149, 20_000, 49_999)  # for training, validation and test, in this order


def _read(published: Published, files: dict[str, Path]) -> list:
    """The splits, whose images are read as needed."""
    shape = (sum(COUNTS), 32, 32, 3)
    with readable(files[FILE], FRESH):
        images = open_array(files[FILE])
        if (images.shape, images.dtype) != (shape, np.uint8):
            raise ValueError(f"{images.dtype} of shape {images.shape} is not uint8 {shape}")
    places = np.split(np.arange(len(images)), np.cumsum(COUNTS[:-1]))
    return [selected(images, some) for some in places]


IMAGENET32 = Published(
    name="imagenet32",
    title="ImageNet32",
    files={FILE: ""},  # made by a registered user
    read=_read,
    advice="register at https://image-net.org, get train_32x32.tar and valid_32x32.tar, make "
    f"{FILE} of them as scripts/runs.md says (the npz version gives other likelihoods, and is not "
    "read),",
)
