"""Training images on the GPU; see derivations/03-change-of-variables.md."""

import math
from typing import Any

import numpy as np

from snfnp.errors import UsageError
from snfnp.ops.images.definition import DRAWS, Images, ImageSource
from snfnp.ops.random.definition import RandomKey
from snfnp.ops.random.gpu import key_arguments


class GpuImages(Images):
    def source(self, images: np.ndarray) -> ImageSource:
        needed, free = images.nbytes, self.device.free_memory()
        if needed > free / 2:
            found = f"the training images or rows take {needed / 2**30:.1f} GiB"
            limit = f"more than half of the {free / 2**30:.1f} GiB that are free on the GPU"
            raise UsageError(f"{found}, {limit}: train on fewer of them, or with backend numba")
        return ResidentImages(self.device, images)

    def preprocess(self, images, key: RandomKey, alpha, levels, dtype):
        if images.dtype != np.uint8:
            return super().preprocess(images, key, alpha, levels, dtype)
        device = self.device
        x, ldj = device.empty(images.shape, dtype), device.empty(len(images), dtype)
        constant = math.log1p(-2 * alpha) - math.log(levels)
        numbers = {"alpha": alpha, "levels": levels, "constant": constant}
        numbers |= {"dimension": math.prod(images.shape[1:])}
        arguments = {"images": images, "x": x, "ldj": ldj, **key_arguments(key, images.shape)}
        device.launch("preprocess", dtype, len(images), **arguments, **numbers)
        return x, ldj


class ResidentImages(ImageSource):
    """All images, or rows of numbers, on the device, and their order. Arrays stay at their
    addresses, so that a recorded step can take a batch."""

    def __init__(self, device, images: np.ndarray):
        super().__init__(device, device.asarray(images[:]))
        self._order = device.asarray(self._order, np.int64)
        self._taken: Any = None
        one = images[:1]
        # what `gather` moves are bytes: those of a row are the channels of one pixel
        self._shape = one.shape[1:] if one.dtype == np.uint8 else (1, 1, one.nbytes)

    def reorder(self, order: np.ndarray) -> None:
        self._order[...] = self._device.asarray(order, np.int64)

    def stage(self, first: int, count: int) -> None:
        if self._taken is None or len(self._taken) != count:
            self._taken = self._device.empty((count, *self._images.shape[1:]), self._images.dtype)

    def take(self, first, count: int, key: RandomKey | None = None):
        images, out = (array.view(np.uint8) for array in (self._images, self._taken))
        words = key_arguments(RandomKey(0, 0) if key is None else key, (count, DRAWS))
        arrays = {"images": images, "order": self._order, "out": out, "first": first}
        sizes = dict(zip(("height", "width", "channels"), self._shape, strict=True))
        sizes |= {"change": key is not None}
        self._device.launch("gather", np.float32, count, **arrays, **words, **sizes)
        return self._taken
