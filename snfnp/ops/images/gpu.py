"""Training images on the GPU; see derivations/03-change-of-variables.md."""

import math
from typing import Any

import numpy as np

from snfnp.errors import UsageError
from snfnp.ops.images.definition import DRAWS, Images, ImageSource
from snfnp.ops.random.definition import RandomKey
from snfnp.ops.random.gpu import key_arguments


class GpuImages(Images):
    def source(self, images):
        free = self.device.free_memory()
        if images.nbytes > free / 2:
            raise UsageError(
                f"the training images or rows take {images.nbytes / 2**30:.1f} GiB, "
                f"more than half of the {free / 2**30:.1f} GiB that are free on the GPU: "
                "train on fewer of them, or with backend numba"
            )
        return ResidentImages(self.device, images)

    def preprocess(self, images, key, alpha, levels, dtype):
        if images.dtype != np.uint8:
            return super().preprocess(images, key, alpha, levels, dtype)
        x = self.device.empty(images.shape, dtype)
        ldj = self.device.empty(len(images), dtype)
        self.device.launch(
            "preprocess",
            dtype,
            len(images),
            images=images,
            x=x,
            ldj=ldj,
            **key_arguments(key, images.shape),
            alpha=alpha,
            levels=levels,
            constant=math.log1p(-2 * alpha) - math.log(levels),
            dimension=math.prod(images.shape[1:]),
        )
        return x, ldj


class ResidentImages(ImageSource):
    """All images, or rows of numbers, on the device, and their order. Arrays stay at their
    addresses, so that a recorded step can take a batch."""

    def __init__(self, device, images: np.ndarray):
        super().__init__(device, device.asarray(images[:]))
        self._order = device.asarray(self._order, np.int64)
        self._taken: Any = None
        # what `gather` moves are bytes: those of a row are the channels of one pixel
        self._shape = (
            images.shape[1:] if images.dtype == np.uint8 else (1, 1, images[:1].nbytes)
        )

    def reorder(self, order):
        self._order[...] = self._device.asarray(order, np.int64)

    def stage(self, first, count):
        if self._taken is None or len(self._taken) != count:
            self._taken = self._device.empty(
                (count, *self._images.shape[1:]), self._images.dtype
            )

    def take(self, first, count, key=None):
        height, width, channels = self._shape
        self._device.launch(
            "gather",
            np.float32,
            count,
            images=self._images.view(np.uint8),
            out=self._taken.view(np.uint8),
            order=self._order,
            first=first,
            change=key is not None,
            height=height,
            width=width,
            channels=channels,
            **key_arguments(key or RandomKey(0, 0), (count, DRAWS)),
        )
        return self._taken
