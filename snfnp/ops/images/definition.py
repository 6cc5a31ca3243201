"""Batches of images, and a flow's inputs; see derivations/03-change-of-variables.md."""

import math
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from snfnp.ops.group import Array, OperationGroup, Scalar
from snfnp.ops.random.definition import RandomKey, uniform

DRAWS = 3  # numbers that each image takes: whether to flip it, and how far to shift it each way


class ImageSource:
    """Images (M, H, W, C), uint8, in an order that changes with the epoch.

    They may be a memory-mapped file, larger than the host's memory: only what is taken is read.
    """

    def __init__(self, device: Any, images: np.ndarray):
        self._device = device
        self._images = images
        self._order = np.arange(len(images))

    def reorder(self, order: np.ndarray) -> None:
        """Change the order: from now on image i is `images[order[i]]`."""
        self._order = order

    def stage(self, first: int, count: int) -> None:
        """The host's part of `take`, which a recorded step cannot do."""

    def take(self, first: Scalar, count: int, key: RandomKey | None = None) -> Array:
        """Images first, first + 1, … in the present order: device images (count, H, W, C).

        first: as it was staged; in a recorded step it is on the device. key: flip and shift the
        images at random (`augment`). The next call may overwrite what is returned.
        """
        images = self._images[self._order[first : first + count]]
        return self._device.asarray(images if key is None else augment(images, key))


class Images(OperationGroup):
    def source(self, images: np.ndarray) -> ImageSource:
        """A source of batches from host images (M, H, W, C), uint8."""
        return ImageSource(self.device, images)

    def preprocess(
        self, images: Array, key: RandomKey, alpha: float, levels: int, dtype: DTypeLike
    ) -> tuple[Array, Array]:
        """Dequantise, scale, logit: images (N, ...) in [0, levels) -> x (N, ...), ldj (N,).

        v = (image + u) / levels with u ~ U[0, 1);  s = α + (1-2α)v;  x = log s - log(1-s).
        ldj = Σ [log(1-2α) - log levels - log s - log(1-s)]. On a CPU all of it is in double
        precision, since 255 + u rounds to 256 in single precision for about 7 draws in a million; a
        GPU keeps image + u as a whole number of 2⁻³², and computes s in `dtype`. With key.first the
        images are samples first, first + 1, … of a batch, and get the noise they have there.
        """
        xp = self.xp
        noisy = images + uniform(xp, key, images.shape)
        s = alpha + (1 - 2 * alpha) * (noisy / levels)
        # no cancellation
        one_minus_s = alpha + (1 - 2 * alpha) * ((levels - noisy) / levels)
        log_s = xp.log(s)
        log_1_s = xp.log(one_minus_s)
        constant = math.log1p(-2 * alpha) - math.log(levels)
        ldj = (constant - log_s - log_1_s).reshape(len(images), -1).sum(axis=1)
        return (log_s - log_1_s).astype(dtype), ldj.astype(dtype)


def augment(images: np.ndarray, key: RandomKey) -> np.ndarray:
    """Flip each image horizontally with probability 1/2, then shift it by -1, 0 or 1 pixels in each
    direction, with probability 1/3 each (A.3): new images (N, H, W, C) on the host. O(N H W C).

    Pixels that are shifted in repeat the border: no test image has the black line that they would
    make otherwise.
    """
    count, height, width, _ = images.shape
    u = uniform(np, key, (count, DRAWS))
    flipped = u[:, 0, None] < 0.5
    shifts = np.floor(3 * u[:, 1:, None]).astype(np.int64) - 1  # down, right
    # Row y of the result is row y - down of the image; clipping an index repeats the border.
    rows = np.clip(np.arange(height) - shifts[:, 0], 0, height - 1)
    columns = np.clip(np.arange(width) - shifts[:, 1], 0, width - 1)
    columns = np.where(flipped, width - 1 - columns, columns)
    n = np.arange(count)
    return images[n[:, None, None], rows[:, :, None], columns[:, None]]
