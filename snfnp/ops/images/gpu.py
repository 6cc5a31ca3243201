"""Training images on the GPU; see derivations/02-change-of-variables.md."""

import math

import numpy as np

from snfnp.ops.images.definition import DRAWS, Images, ImageSource
from snfnp.ops.random.gpu import key_arguments
from snfnp.ops.random.philox import RandomKey

RESIDENT = 1 << 30  # bytes of images that may live on the device
_STAGES = 2  # batches on their way: the host fills one while the device reads the other


class GpuImages(Images):
    def source(self, images: np.ndarray) -> ImageSource:
        if images.dtype != np.uint8:
            return super().source(images)
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


class _Gathering(ImageSource):
    """Images (M, H, W, C) on the device, taken in an order that is there as well."""

    _taken = None

    def _gather(self, images, order, first, count, key):
        """Into an array that the next call overwrites: one place, so that a graph may read it."""
        device, shape = self._device, images.shape[1:]
        if self._taken is None or len(self._taken) != count:
            self._taken = device.empty((count, *shape), np.uint8)
        words = key_arguments(RandomKey(0, 0) if key is None else key, (count, DRAWS))
        arrays = {"images": images, "order": order, "first": first, "out": self._taken}
        sizes = dict(zip(("height", "width", "channels"), shape, strict=True))
        sizes |= {"change": key is not None}
        device.launch("gather", np.float32, count, **arrays, **words, **sizes)
        return self._taken


class ResidentImages(_Gathering):
    """All images on the device, as bytes."""

    def __init__(self, device, images: np.ndarray):
        super().__init__(device, device.asarray(images[:]))
        self.reorder(self._order)

    def reorder(self, order: np.ndarray) -> None:
        self._order = self._device.asarray(order, np.int64)

    def take(self, first: int, count: int, key: RandomKey | None = None):
        return self._gather(self._images, self._order, first, count, key)


class StreamedImages(_Gathering):
    """Images that stay on the host: a batch is copied into pinned memory, from where it goes to the
    device while the host is at the next one. A stage is filled again once its copy is done."""

    def __init__(self, device, images: np.ndarray):
        super().__init__(device, images)
        self._stages, self._turn = [], 0

    def take(self, first: int, count: int, key: RandomKey | None = None):
        cuda = self._device.xp.cuda
        if not self._stages or len(self._stages[0][0]) != count:
            self._stages = [self._stage(count) for _ in range(_STAGES)]
            self._identity = self._device.asarray(np.arange(count))
        pinned, copy, copied = self._stages[self._turn]
        self._turn = (self._turn + 1) % _STAGES
        copied.synchronize()
        pinned[...] = self._images[self._order[first : first + count]]
        stream = cuda.get_current_stream()
        copy.set(pinned, stream)  # without a stream, some versions of CuPy wait for the copy
        copied.record(stream)
        return self._gather(copy, self._identity, 0, count, key)

    def _stage(self, count: int):
        """A pinned array, its copy on the device, and the event that the copy is done."""
        cupy, shape = self._device.xp, (count, *self._images.shape[1:])
        size = math.prod(shape)
        pinned = np.frombuffer(cupy.cuda.alloc_pinned_memory(size), np.uint8, size).reshape(shape)
        return pinned, cupy.empty(shape, np.uint8), cupy.cuda.Event(disable_timing=True)
