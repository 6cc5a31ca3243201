"""The training data of each step: shuffled, gathered and, with `augment`, augmented."""

import numpy as np

from snfnp.context import Slice
from snfnp.likelihood import AUGMENTATION
from snfnp.ops import SINGLE_PROCESS, RandomKey, shares
from snfnp.training.options import TrainConfig


def cut(total: int, parts: int) -> list[Slice]:
    """A batch of `total` samples in `parts` slices, as even as possible, in order."""
    return [
        Slice(share.start, len(share), total, index, parts)
        for index, share in enumerate(shares(total, parts))
    ]


class Batches:
    """batches(step): this rank's device images (n, *shape), uint8, of step 0, 1, …, which depend on
    the step and the run's seed alone; batches.whole(step): those of all ranks. The next call may
    overwrite them. A step takes its batch in two parts, of which the second can be recorded:
    `stage(step)` on the host, and then `staged(scalars)`.
    """

    def __init__(self, ops, images, config: TrainConfig, shape, world=SINGLE_PROCESS):
        self._config, self._shape, self._images = config, shape, len(images)
        self._slice = cut(config.batch_size, world.size)[world.rank]
        self.count = self._slice.count
        self.steps_per_epoch = config.steps_per_epoch(len(images))
        self._source = ops.images.source(images)
        self._epoch = None

    def __call__(self, step: int):
        return self._take(step, self.stage(step), self._slice)

    def whole(self, step: int):
        (part,) = cut(self._config.batch_size, 1)
        return self._take(step, self.stage(step, part), part)

    def staged(self, scalars):
        """The images that were staged. scalars: the step's `StepScalars`."""
        return self._take(scalars.step, scalars.first, self._slice)

    def stage(self, step: int, part: Slice | None = None) -> int:
        """Prepare the images of a step; returns the place of the first in the epoch's order."""
        part, (epoch, index) = part or self._slice, divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._source.reorder(epoch_order(self._images, epoch, self._config))
            self._epoch = epoch
        first = index * self._config.batch_size + part.first
        self._source.stage(first, part.count)
        return first

    def _take(self, step, first, part: Slice):
        seed = self._config.seed
        key = RandomKey(seed, AUGMENTATION, step, part.first) if self._config.augment else None
        return self._source.take(first, part.count, key).reshape(-1, *self._shape)


class Repeated:
    """Batches of one and the same device array, for a trainer that is timed or inspected."""

    def __init__(self, images):
        self._images, self.count = images, len(images)

    def __call__(self, step: int):
        return self._images

    whole = __call__

    def stage(self, step: int) -> int:
        return 0

    def staged(self, scalars):
        return self._images


def epoch_order(images: int, epoch: int, config: TrainConfig) -> np.ndarray:
    """The order in which epoch 0, 1, … visits the training images."""
    if not config.shuffle:
        return np.arange(images)
    return np.random.default_rng((config.seed, epoch)).permutation(images)
