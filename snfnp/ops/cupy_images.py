"""Training images on the device: whole where they fit, through pinned memory where they do not."""

from __future__ import annotations

import numpy as np

from snfnp.ops.philox import RandomKey

RESIDENT = 1 << 30  # bytes of images that may live on the device
_STAGES = 2  # batches on their way: the host fills one while the device reads the other


class _Gathering:
    """Images (M, H, W, C) on the device, taken in an order that is there as well."""

    def __init__(self, ops, shape):
        self._ops, self._shape = ops, shape
        self._taken = None

    def _gather(self, images, order, first, count, key):
        """Into an array that the next call overwrites: one place, so that a graph may read it."""
        if self._taken is None or len(self._taken) != count:
            self._taken = self._ops.empty((count, *self._shape), np.uint8)
        change, words = (0, (None, 0, 0, 0)) if key is None else (1, self._ops.key_words(key))
        arguments = (images, order, first, self._taken, change, *words, *self._shape)
        self._ops.launch("gather", np.float32, count, *arguments)
        return self._taken


class ResidentImages(_Gathering):
    """All images on the device, as bytes."""

    def __init__(self, ops, images: np.ndarray):
        super().__init__(ops, images.shape[1:])
        self._images = ops.asarray(images)
        self._order = ops.asarray(np.arange(len(images)))

    def reorder(self, order: np.ndarray) -> None:
        self._order = self._ops.asarray(order, np.int64)

    def take(self, first: int, count: int, key: RandomKey | None = None):
        return self._gather(self._images, self._order, first, count, key)


class StreamedImages(_Gathering):
    """Images that stay on the host (a memory-mapped file); a batch at a time goes over.

    The host copies a batch into pinned memory, from where it goes to the device while the host
    is at the next one. A stage is filled again only once its copy is done.
    """

    def __init__(self, ops, images: np.ndarray):
        super().__init__(ops, images.shape[1:])
        self._images, self._order = images, np.arange(len(images))
        self._stages: list = []
        self._turn = 0

    def reorder(self, order: np.ndarray) -> None:
        self._order = order

    def take(self, first: int, count: int, key: RandomKey | None = None):
        cuda = self._ops.xp.cuda
        if not self._stages or len(self._stages[0][0]) != count:
            self._stages = [self._stage(count) for _ in range(_STAGES)]
            self._identity = self._ops.asarray(np.arange(count))
        pinned, device, copied = self._stages[self._turn]
        self._turn = (self._turn + 1) % _STAGES
        copied.synchronize()
        pinned[...] = self._images[self._order[first : first + count]]
        stream = cuda.get_current_stream()
        device.set(pinned, stream)  # not every version of CuPy goes on before the copy without it
        copied.record(stream)
        return self._gather(device, self._identity, 0, count, key)

    def _stage(self, count: int):
        """A pinned array, its copy on the device, and the event that the copy is done."""
        cupy, shape = self._ops.xp, (count, *self._shape)
        size = int(np.prod(shape))
        memory = cupy.cuda.alloc_pinned_memory(size)
        pinned = np.frombuffer(memory, np.uint8, size).reshape(shape)
        return pinned, cupy.empty(shape, np.uint8), cupy.cuda.Event(disable_timing=True)


class CudaImageOps:
    """Mixed into `CupyOps`; overrides `ImageOps`."""

    def images(self, images: np.ndarray) -> ResidentImages | StreamedImages:
        return (ResidentImages if images.nbytes <= RESIDENT else StreamedImages)(self, images)
