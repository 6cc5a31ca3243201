"""The training data of each step: shuffled, gathered and, with `augment`, augmented."""

from typing import Any, Protocol

import numpy as np

from snfnp.likelihood import AUGMENTATION
from snfnp.ops import Array, Ops, RandomKey, Shape
from snfnp.step.settings import Settings


class BatchSource(Protocol):
    """The batches of a trainer: device images or rows, which the next call may overwrite.

    A step takes its batch in two parts, of which the second can be recorded in a graph.
    """

    def stage(self, step: int, /) -> int:
        """Prepare the samples of step 0, 1, … on the host. Returns the index of the first one in
        the epoch's order."""
        ...

    def take(self, step: Any, first: Any, /) -> Array:
        """The samples that were staged. step, first: numbers, or arrays of shape () on a device."""
        ...


def batch_of(batches: BatchSource, step: int) -> Array:
    """The samples of a step."""
    return batches.take(step, batches.stage(step))


class Batches:
    """Batches of a data set, which depend on the step and the run's seed alone (`BatchSource`).

    Args:
        images: uint8 (M, H, W, C), or rows (M, D), on the host.
        config: batch_size, seed, shuffle and augment count.
        shape: of a sample.
    """

    def __init__(self, ops: Ops, images: Any, config: Settings, shape: Shape):
        self._config = config
        self._shape = shape
        self._count = len(images)
        self._source = ops.images.source(images)
        self._epoch = -1
        self.steps_per_epoch = len(images) // config.batch_size

    def stage(self, step: int) -> int:
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._source.reorder(epoch_order(self._count, epoch, self._config))
            self._epoch = epoch
        first = index * self._config.batch_size
        self._source.stage(first, self._config.batch_size)
        return first

    def take(self, step: Any, first: Any) -> Array:
        key = None
        if self._config.augment:
            key = RandomKey(self._config.seed, AUGMENTATION, step)
        images = self._source.take(first, self._config.batch_size, key)
        return images.reshape(-1, *self._shape)


class Repeated:
    """One and the same device array in each step, for a trainer that is timed or inspected."""

    def __init__(self, images: Array):
        self._images = images

    def stage(self, step: int) -> int:
        return 0

    def take(self, step: Any, first: Any) -> Array:
        return self._images


def epoch_order(count: int, epoch: int, config: Settings) -> np.ndarray:
    """The order in which epoch 0, 1, … visits `count` training samples."""
    if not config.shuffle:
        return np.arange(count)
    return np.random.default_rng((config.seed, epoch)).permutation(count)
