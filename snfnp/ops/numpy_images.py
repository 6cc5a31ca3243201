"""Where the training images of a step come from."""

from __future__ import annotations

import numpy as np

from snfnp.ops.augment import augment
from snfnp.ops.philox import RandomKey


class HostImages:
    """Images (M, H, W, C), uint8, in an order that changes with the epoch.

    The array may be larger than the memory (a memory-mapped file): only what is taken is read.
    """

    def __init__(self, ops, images):
        self._ops, self._images = ops, images
        self._order = np.arange(len(images))

    def reorder(self, order: np.ndarray) -> None:
        """From now on image i is `images[order[i]]`."""
        self._order = order

    def take(self, first: int, count: int, key: RandomKey | None = None):
        """Images first, first + 1, … in the present order: device images (count, H, W, C).

        key: flip and shift them at random (`snfnp.ops.augment`). What is returned may be
        overwritten by the next call.
        """
        images = self._images[self._order[first : first + count]]
        return self._ops.asarray(images if key is None else augment(images, key))


class ImageOps:
    """Mixed into `NumpyOps`."""

    def images(self, images: np.ndarray) -> HostImages:
        """A source of batches from host images (M, H, W, C), uint8."""
        return HostImages(self, images)
