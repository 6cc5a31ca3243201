"""A training step of any preset on random images, ready to be timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np

from snfnp.context import BackwardContext
from snfnp.ops import SINGLE_PROCESS, Communicator, RandomKey
from snfnp.training.options import TrainConfig
from snfnp.training.trainer import Trainer

BATCH, IMAGE = 100, (28, 28, 1)


def make_trainer(
    ops,
    model: str,
    gradient: str,
    shape=IMAGE,
    count=50_000,
    report=print,
    world: Communicator = SINGLE_PROCESS,
    **settings,
) -> Trainer:
    """A trainer of the preset at the paper's batch size, with a learning rate that moves little.

    For `count` images of this shape; settings: whatever else a configuration may be given.
    """
    settings = {"lr": 1e-6, "batch_size": BATCH, "backend": ops.name} | settings
    config = TrainConfig(model=model, gradient=gradient, **settings).resolve(count)
    steps = config.steps_per_epoch(count)
    return Trainer(ops, config.build_flow(shape), config, steps, report, world)


def random_images(ops, trainer: Trainer):
    """Images (BATCH, *shape) that look no special way; the time does not depend on them."""
    rng = np.random.default_rng(0)
    return ops.asarray(rng.integers(0, 256, (BATCH, *trainer.flow.shape)).astype(np.uint8))


def step_call(ops, model: str, gradient: str, **settings) -> Callable[[], object]:
    """The whole training step, as a call without arguments; settings: as in `make_trainer`."""
    trainer = make_trainer(ops, model, gradient, **settings)
    images = random_images(ops, trainer)
    return lambda: trainer.training_step(images)


def profile(ops, model: str, gradient: str, repeats: int) -> list[dict]:
    """Where a step's time goes: minimum milliseconds of each kind of layer, forward and backward,
    and of everything around the layers."""
    trainer = make_trainer(ops, model, gradient)
    images = random_images(ops, trainer)
    flow, params, grads = trainer.flow, trainer.params, trainer.grads
    weights = ops.xp.full(BATCH, 1 / BATCH, trainer.p.dtype)
    best: dict[str, float] = {}

    def timed(spent, part, call, *arguments):
        start = time.perf_counter()
        result = call(*arguments)
        spent[part] = spent.get(part, 0.0) + time.perf_counter() - start
        return result

    for _ in range(repeats):
        spent: dict[str, float] = {}
        key = RandomKey(0, 0, 0)
        x, _ = timed(spent, "preprocess", flow.encode, ops, images, key, trainer.p.dtype)
        latents, caches = [], []
        for name, layer in flow.layers:
            part = f"{type(layer).__name__} forward"
            x, _, cache = timed(spent, part, layer.forward, ops, params[name], x)
            caches.append(cache)
            if name in flow.latent_names:
                latents.append(cache["latent"])
        latents.append(x)
        timed(spent, "base density", flow.log_density, ops, latents)
        *split_off, delta = flow.latent_gradients(latents)
        ctx = BackwardContext.of(ops, weights, trainer.lam)
        for (name, layer), cache in zip(reversed(flow.layers), reversed(caches), strict=True):
            part = f"{type(layer).__name__} backward"
            dlatent = (split_off.pop(),) if name in flow.latent_names else ()
            arguments = (ctx, params[name], cache, delta, grads[name], *dlatent)
            result = timed(spent, part, layer.backward, *arguments)
            delta = result[0] if layer.learns_inverse else result
        update = partial(trainer.adam.update, out=(trainer.p, trainer.m, trainer.v))
        timed(spent, "Adam", update, ops, trainer.gradient, 1e-6, 10)
        for part, seconds in spent.items():
            best[part] = min(best.get(part, np.inf), 1e3 * seconds)
    return [{"part": part, "min ms": milliseconds} for part, milliseconds in best.items()]
