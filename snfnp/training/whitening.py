"""The numbers of whitening layers, from the training images.

Derivation: derivations/24-stability.md.
"""

import numpy as np

from snfnp.layers import Whiten
from snfnp.layers.whiten import Moments
from snfnp.likelihood import TRAINING_NOISE
from snfnp.ops import RandomKey


def whiten_data(trainer, images_of) -> None:
    """Set the numbers of the flow's first layer if it is a `Whiten`: those of all images of the
    first epoch, with the noise that its steps will draw, in double precision.

    images_of(step): this rank's images of step 0, 1, … One pass, O(D²) an image: a few seconds for
    the 50,000 images of MNIST on a core.
    """
    ops, flow, world = trainer.ops, trainer.flow, trainer.world
    name, layer = flow.layers[0]
    if not isinstance(layer, Whiten):
        return
    moments = Moments(ops, layer.features)
    for step in range(trainer.steps_per_epoch):
        images = images_of(step)
        part, _ = trainer.slice_of(len(images))
        key = RandomKey(trainer.config.seed, TRAINING_NOISE, step, part.first)
        moments.add(flow.encode(ops, images, key, np.float64)[0])
    if world.size > 1:
        moments.count *= world.size
        trainer.communicator.all_reduce(moments.total, moments.products)
    for parameter, value in moments.whitening().items():
        trainer.params[name][parameter][...] = ops.asarray(value, trainer.p.dtype)
