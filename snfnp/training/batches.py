"""The training images of each step: shuffled, gathered, and changed at random if asked to."""

import numpy as np

from snfnp.context import Slice
from snfnp.likelihood import AUGMENTATION
from snfnp.ops import SINGLE_PROCESS, RandomKey, shares
from snfnp.training.options import TrainConfig


def cut(total: int, parts: int) -> list[Slice]:
    """A batch of `total` samples in `parts` slices, as even as can be, in order."""
    return [
        Slice(share.start, len(share), total, index, parts)
        for index, share in enumerate(shares(total, parts))
    ]


class Batches:
    """batches(step): device images (N, *shape), uint8, of step 0, 1, …; batches.whole(step): those
    of all ranks.

    A function of the step and the run's seed alone: steps may be asked for in any order. What is
    returned may be overwritten by the next call. world: the ranks, each of which gets a slice of
    every batch.
    """

    def __init__(self, ops, images, config: TrainConfig, shape, world=SINGLE_PROCESS):
        self._config, self._shape, self._count = config, shape, len(images)
        self._slice = cut(config.batch_size, world.size)[world.rank]
        self.steps_per_epoch = config.steps_per_epoch(len(images))
        self._source = ops.images.source(images)
        self._epoch = None

    def __call__(self, step: int):
        return self._take(step, self._slice)

    def whole(self, step: int):
        return self._take(step, cut(self._config.batch_size, 1)[0])

    def _take(self, step: int, part: Slice):
        config = self._config
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._source.reorder(epoch_order(self._count, epoch, config))
            self._epoch = epoch
        key = RandomKey(config.seed, AUGMENTATION, step, part.first) if config.augment else None
        images = self._source.take(index * config.batch_size + part.first, part.count, key)
        return images.reshape(-1, *self._shape)


class Repeated:
    """The same device images in every step, for a trainer that is timed or looked at."""

    def __init__(self, images):
        self._images = images

    def __call__(self, step: int):
        return self._images

    whole = __call__


def epoch_order(images: int, epoch: int, config: TrainConfig) -> np.ndarray:
    """The order in which an epoch (0, 1, …) visits the training images: a function of the seed."""
    if not config.shuffle:
        return np.arange(images)
    return np.random.default_rng((config.seed, epoch)).permutation(images)
