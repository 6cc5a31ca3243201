"""The training images of each step: shuffled, gathered, and changed at random if asked to."""

from __future__ import annotations

import numpy as np

from snfnp.likelihood import AUGMENTATION
from snfnp.ops import RandomKey
from snfnp.training.config import TrainConfig


class Batches:
    """batches(step): device images (batch size, *shape), uint8, of step 0, 1, …

    A function of the step and the run's seed alone: steps may be asked for in any order. What it
    returns may be overwritten by the next call.
    """

    def __init__(self, ops, images, config: TrainConfig, shape):
        self._config, self._shape, self._count = config, shape, len(images)
        self.steps_per_epoch = config.steps_per_epoch(len(images))
        self._source = ops.images.source(images)
        self._epoch = None

    def __call__(self, step: int):
        config = self._config
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._source.reorder(epoch_order(self._count, epoch, config))
            self._epoch = epoch
        key = RandomKey(config.seed, AUGMENTATION, step) if config.augment else None
        images = self._source.take(index * config.batch_size, config.batch_size, key)
        return images.reshape(-1, *self._shape)


def epoch_order(images: int, epoch: int, config: TrainConfig) -> np.ndarray:
    """The order in which an epoch (0, 1, …) visits the training images: a function of the seed."""
    if not config.shuffle:
        return np.arange(images)
    return np.random.default_rng((config.seed, epoch)).permutation(images)
