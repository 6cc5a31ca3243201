"""Batches of images, and a flow's inputs; see derivations/02-change-of-variables.md."""

import math

import numpy as np

from snfnp.ops.group import OperationGroup
from snfnp.ops.images.augment import augment
from snfnp.ops.random import philox
from snfnp.ops.random.philox import RandomKey


class ImageSource:
    """Images (M, H, W, C), uint8, in an order that changes with the epoch.

    They may be larger than the host's memory (a memory-mapped file): only what is taken is read.
    """

    def __init__(self, device, images):
        self._device, self._images = device, images
        self._order = np.arange(len(images))

    def reorder(self, order: np.ndarray) -> None:
        """Change the order: from now on image i is `images[order[i]]`."""
        self._order = order

    def take(self, first: int, count: int, key: RandomKey | None = None):
        """Images first, first + 1, … in the present order: device images (count, H, W, C).

        key: flip and shift them at random (`snfnp.ops.images.augment`). What is returned may be
        overwritten by the next call.
        """
        images = self._images[self._order[first : first + count]]
        return self._device.asarray(images if key is None else augment(images, key))


class Images(OperationGroup):
    def source(self, images: np.ndarray) -> ImageSource:
        """A source of batches from host images (M, H, W, C), uint8."""
        return ImageSource(self.device, images)

    def preprocess(self, images, key: RandomKey, alpha, levels, dtype):
        """Dequantise, scale, logit: images (N, ...) in [0, levels) -> x (N, ...), ldj (N,).

        v = (image + u) / levels with u ~ U[0, 1);  s = α + (1-2α)v;  x = log s - log(1-s).
        ldj = Σ [log(1-2α) - log levels - log s - log(1-s)]. All of it in double precision, since
        255 + u rounds to 256 in single precision for about 7 draws in a million. With key.first
        the images are samples first, first + 1, … of a batch, and get the noise they have there.
        """
        xp = self.xp
        noisy = images + philox.uniform(xp, key, images.shape)
        s = alpha + (1 - 2 * alpha) * (noisy / levels)
        one_minus_s = alpha + (1 - 2 * alpha) * ((levels - noisy) / levels)  # no cancellation
        log_s, log_1_s = xp.log(s), xp.log(one_minus_s)
        constant = math.log1p(-2 * alpha) - math.log(levels)
        ldj = (constant - log_s - log_1_s).reshape(len(images), -1).sum(axis=1)
        return (log_s - log_1_s).astype(dtype), ldj.astype(dtype)
