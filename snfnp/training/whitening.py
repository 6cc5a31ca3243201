"""The numbers of whitening layers: from the training images, and anew as activations change.

Derivation: derivations/24-stability.md.
"""

import math

import numpy as np

from snfnp.layers import Whiten
from snfnp.layers.whiten import Moments
from snfnp.likelihood import WHITENING_NOISE
from snfnp.ops import RandomKey

_EARLY = (20, 100)  # steps: activations change most at the start
_EVERY = 500
_IMAGES = 2000  # that a renewal sees


def due(step: int) -> bool:
    """Say whether what is found from activations is found anew before a step (0, 1, …)."""
    return step in _EARLY or step % _EVERY == 0


def whiten_data(trainer, images_of) -> None:
    """Set the numbers of each `Whiten` that is the flow's first layer, or whole: those of all
    images of the first epoch, with noise of their own: with that of its steps they would be whiter
    than others.

    images_of(step): this rank's images of step 0, 1, … One pass, O(D²) an image: a few seconds for
    the 50,000 images of MNIST on a core.
    """
    for place, (name, layer) in enumerate(trainer.flow.layers):
        if isinstance(layer, Whiten) and (layer.whole or not place):
            found = _numbers(trainer, place, images_of, range(trainer.steps_per_epoch))
            _put(trainer.ops, trainer.params[name], found)


def renew(trainer, images_of) -> None:
    """Renew the numbers of deeper `Whiten` layers before steps 0, 20, 100, and every 500, from 2000
    images of the steps to come, and carry the linear layer behind along: the function stays the
    same but for rounding. Costs some 10 steps, outside of the recorded one."""
    if not due(trainer.step):
        return
    ops, flow, layout = trainer.ops, trainer.flow, trainer.layout.optimised
    for place, (name, layer) in enumerate(flow.layers):
        if not place or not isinstance(layer, Whiten) or layer.whole:
            continue
        steps = range(trainer.step, trainer.step + math.ceil(_IMAGES / trainer.config.batch_size))
        new, behind = _numbers(trainer, place, images_of, steps), flow.layers[place + 1][0]
        moments = (layout.views(buffer)[behind] for buffer in (trainer.m, trainer.v))
        device = (trainer.params[name], trainer.params[behind], *moments)
        host = [{k: ops.to_host(a).astype(np.float64) for k, a in own.items()} for own in device]
        for own, values in zip(device, (new, *change_coordinates(new, *host)), strict=True):
            _put(ops, own, values)
        trainer.share(trainer.p, trainer.m, trainer.v)


def change_coordinates(new: dict, old: dict, p: dict, m: dict, v: dict) -> tuple:
    """(p, m, v) of the linear layer behind a diagonal `Whiten` whose numbers change from `old` to
    `new`; p, and Adam's m and v: float64 host arrays by name.

    With U'x + b_U' = T (U x + b_U) + t and T = U'U⁻¹ the function stays the same for W' = W T⁻¹ and
    b' = b − W' t, and the linear part of the learned inverse for R' = T R. m, an average of
    gradients, follows the chain rule, G_W' = G_W Tᵀ + G_b tᵀ and G_R' = T⁻ᵀ G_R; v, of squares, the
    same with all factors squared, as if the two terms were not correlated.
    """
    turn = new["U"] / old["U"]
    shift = new["b"] - turn * old["b"]
    w = p["W"] / turn
    p, m, v = (
        {**p, "W": w, "b": p["b"] - w @ shift},
        {**m, "W": m["W"] * turn + np.outer(m["b"], shift)},
        {**v, "W": v["W"] * turn**2 + np.outer(v["b"], shift**2)},
    )
    for own, factor in ((p, turn), (m, 1 / turn), (v, turn**-2)):
        if "R" in own:  # no optimiser moves a projected one
            own["R"] = factor[:, None] * own["R"]
    return p, m, v


def _numbers(trainer, place: int, images_of, steps) -> dict[str, np.ndarray]:
    """The numbers of the place-th layer, a `Whiten`, for its input in these steps: as the run's
    precision has them, in double precision on the host."""
    ops, flow, dtype = trainer.ops, trainer.flow, trainer.p.dtype
    moments = Moments(ops, flow.layers[place][1])
    for step in steps:
        images = images_of(step)
        part, _ = trainer.slice_of(len(images))
        key = RandomKey(trainer.config.seed, WHITENING_NOISE, step, part.first)
        x = flow.encode(ops, images, key, dtype if place else np.float64)[0]
        for name, layer in flow.layers[:place]:
            x = layer.forward(ops, trainer.params[name], x)[0]
        moments.add(x.astype(np.float64))
    if trainer.world.size > 1:
        moments.count *= trainer.world.size
        trainer.communicator.all_reduce(moments.total, moments.products)
    return {k: value.astype(dtype).astype(np.float64) for k, value in moments.whitening().items()}


def _put(ops, arrays: dict, values: dict) -> None:
    for name, value in values.items():
        arrays[name][...] = ops.asarray(value, arrays[name].dtype)
