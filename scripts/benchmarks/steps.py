"""A training step of any preset on random images, ready to be timed, and the least that it has to
do: floating-point operations, and Adam's bytes."""

import math

import numpy as np

from snfnp.flow import Flow
from snfnp.layers import AffineCoupling, Linear
from snfnp.step.trainer import Trainer
from snfnp.training.options import TrainConfig

BATCH = 100
IMAGE = (28, 28, 1)
# Products of one linear layer's step, forward and backward. The exact rule's inverse is no product.
PRODUCTS = {"self-normalizing": 6, "relative": 4, "exact": 3}
# of a parameter in single precision: reads g, p, m and v, writes p, m and v
ADAM_BYTES = 28


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
    rng = np.random.default_rng(0)
    size = (trainer.config.batch_size, *trainer.flow.shape)
    return ops.asarray(rng.integers(0, 256, size).astype(np.uint8))


def operations(flow: Flow, batch: int, gradient: str = "self-normalizing") -> int:
    """Floating-point operations of all products in one step on a batch.

    The products of the linear layers, and those of the couplings' networks: forward, and twice that
    backward. Elementwise and repeated work does not count; zeros at a border do.
    """
    total = 0
    for _, layer, shape in flow.with_shapes():
        if isinstance(layer, Linear):
            pixels = math.prod(shape[:-1])
            total += PRODUCTS[gradient] * pixels * math.prod(layer.map.weight_shape)
        if isinstance(layer, AffineCoupling):
            height, width, channels = shape
            hidden = layer.width
            per_pixel = hidden**2 + 9 * (channels // 2) * hidden + 9 * hidden * channels
            total += 3 * height * width * per_pixel
    return 2 * batch * total
