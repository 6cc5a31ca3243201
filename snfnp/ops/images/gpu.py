"""Training images on the GPU; see derivations/02-change-of-variables.md."""

import math
from typing import Any

import numpy as np

from snfnp.ops.images.definition import DRAWS, Images, ImageSource
from snfnp.ops.random.definition import RandomKey
from snfnp.ops.random.gpu import key_arguments

RESIDENT = 1 << 30  # bytes of images that may live on the device
_STAGES = 2  # batches on their way: the host fills one while the device reads the other


class GpuImages(Images):
    def source(self, images: np.ndarray) -> ImageSource:
        kind = ResidentImages if images.nbytes <= RESIDENT else StreamedImages
        return kind(self.device, images)

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


class StreamedImages(ImageSource):
    """Images that stay on the host: a batch goes through pinned memory while the host is at the
    next one. A stage is filled again once its copy is done."""

    def __init__(self, device, images: np.ndarray):
        super().__init__(device, images)
        self._stages, self._turn = [], 0

    def stage(self, first: int, count: int) -> None:
        cuda = self._device.xp.cuda
        if not self._stages or len(self._stages[0][0]) != count:
            self._stages = [self._pinned(count) for _ in range(_STAGES)]
            shape = (count, *self._images.shape[1:])
            self._batch = ResidentImages(self._device, np.zeros(shape, self._images.dtype))
            self._batch.stage(0, count)
        pinned, copied = self._stages[self._turn]
        self._turn = (self._turn + 1) % _STAGES
        copied.synchronize()
        pinned[...] = self._images[self._order[first : first + count]]
        stream = cuda.get_current_stream()
        # without a stream, some versions of CuPy wait for the copy
        self._batch._images.set(pinned, stream)
        copied.record(stream)

    def take(self, first, count: int, key: RandomKey | None = None):
        return self._batch.take(0, count, key)

    def _pinned(self, count: int):
        """A pinned array, and the event that its copy is done."""
        cuda, shape = self._device.xp.cuda, (count, *self._images.shape[1:])
        kind, size = self._images.dtype, math.prod(shape)
        memory = cuda.alloc_pinned_memory(size * kind.itemsize)
        pinned = np.frombuffer(memory, kind, size).reshape(shape)
        return pinned, cuda.Event(disable_timing=True)
