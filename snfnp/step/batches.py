"""The training data of each step: shuffled, gathered and, with `augment`, augmented."""

from typing import Any, Protocol

import numpy as np

from snfnp.context import Slice
from snfnp.likelihood import AUGMENTATION
from snfnp.ops import SINGLE_PROCESS, Array, Communicator, Ops, RandomKey, Shape, shares
from snfnp.step.settings import Settings


class BatchSource(Protocol):
    """The batches of a trainer: device images or rows, which the next call may overwrite.

    A step takes its batch in two parts, of which the second can be recorded in a graph.
    """

    def stage(self, step: int, /) -> tuple[int, int]:
        """Prepare this rank's samples of step 0, 1, … on the host. Returns the index of the first
        one in the epoch's order, and their number."""
        ...

    def take(self, step: Any, first: Any, /) -> Array:
        """The samples that were staged. step, first: numbers, or arrays of shape () on a device."""
        ...

    def whole(self, step: int, /) -> Array:
        """The samples of all ranks."""
        ...


def batch_of(batches: BatchSource, step: int) -> Array:
    """This rank's samples of a step."""
    first, _ = batches.stage(step)
    return batches.take(step, first)


def cut(total: int, parts: int) -> list[Slice]:
    """A batch of `total` samples in `parts` slices, as even as possible, in order."""
    return [
        Slice(share.start, len(share), total, index, parts)
        for index, share in enumerate(shares(total, parts))
    ]


class Batches:
    """Batches of a data set, which depend on the step and the run's seed alone (`BatchSource`).

    Args:
        images: uint8 (M, H, W, C), or rows (M, D), on the host.
        config: batch_size, seed, shuffle and augment count.
        shape: of a sample.
        world: the ranks, each of which gets a slice of every batch.
    """

    def __init__(
        self,
        ops: Ops,
        images: Any,
        config: Settings,
        shape: Shape,
        world: Communicator = SINGLE_PROCESS,
    ):
        self._config = config
        self._shape = shape
        self._count = len(images)
        self._slice = cut(config.batch_size, world.size)[world.rank]
        self._source = ops.images.source(images)
        self._epoch: int | None = None
        self.steps_per_epoch = len(images) // config.batch_size

    def stage(self, step: int) -> tuple[int, int]:
        return self._stage(step, self._slice), self._slice.count

    def take(self, step: Any, first: Any) -> Array:
        return self._take(step, first, self._slice)

    def whole(self, step: int) -> Array:
        size = self._config.batch_size
        whole = Slice(0, size, size)
        return self._take(step, self._stage(step, whole), whole)

    def _stage(self, step: int, part: Slice) -> int:
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._source.reorder(epoch_order(self._count, epoch, self._config))
            self._epoch = epoch
        first = index * self._config.batch_size + part.first
        self._source.stage(first, part.count)
        return first

    def _take(self, step: Any, first: Any, part: Slice) -> Array:
        key = None
        if self._config.augment:
            key = RandomKey(self._config.seed, AUGMENTATION, step, part.first)
        return self._source.take(first, part.count, key).reshape(-1, *self._shape)


class Repeated:
    """One and the same device array in each step, for a trainer that is timed or inspected."""

    def __init__(self, images: Array):
        self._images = images

    def stage(self, step: int) -> tuple[int, int]:
        return 0, len(self._images)

    def take(self, step: Any, first: Any) -> Array:
        return self._images

    def whole(self, step: int) -> Array:
        return self._images


def epoch_order(count: int, epoch: int, config: Settings) -> np.ndarray:
    """The order in which epoch 0, 1, … visits `count` training samples."""
    if not config.shuffle:
        return np.arange(count)
    return np.random.default_rng((config.seed, epoch)).permutation(count)
