"""A training step of any preset on random images, ready to be timed."""

import numpy as np

from snfnp.training.options import TrainConfig
from snfnp.training.trainer import Trainer

BATCH, IMAGE = 100, (28, 28, 1)


def make_trainer(
    ops, model, gradient, shape=IMAGE, count=50_000, report=print, **settings
) -> Trainer:
    """A trainer of the preset for `count` images of this shape, at the paper's batch size and a
    small learning rate; settings: other fields of a configuration."""
    settings = {"lr": 1e-6, "batch_size": BATCH, "backend": ops.name} | settings
    config = TrainConfig(model=model, gradient=gradient, **settings).resolve(count)
    steps = config.steps_per_epoch(count)
    return Trainer(ops, config.build_flow(shape), config, steps, report)


def random_images(ops, trainer: Trainer):
    """A batch of random images (N, *shape): the time of a step does not depend on them."""
    rng, size = np.random.default_rng(0), (trainer.config.batch_size, *trainer.flow.shape)
    return ops.asarray(rng.integers(0, 256, size).astype(np.uint8))
