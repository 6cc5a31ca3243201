"""The gradient of a batch, of which every process of a run computes a slice.

All that a slice needs of the others are sums: of the gradient, and of a few figures of the step.

Derivation: derivations/25-many-cores.md.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from snfnp.context import BackwardContext, Collected, Slice
from snfnp.likelihood import TRAINING_NOISE
from snfnp.ops import RandomKey, shares


class Figure(IntEnum):
    """What slices add up beside gradients, in double precision; the controllers' rows follow.

    DENSITY: the mean log-density; RECONSTRUCTION: Σ_k of Eq. 3; JACOBIAN: Σ_k of Eq. 31.
    """

    DENSITY = 0
    RECONSTRUCTION = 1
    JACOBIAN = 2


def cut(total: int, parts: int) -> list[Slice]:
    """A batch of `total` samples in `parts` slices, as even as can be, in order."""
    return [
        Slice(share.start, len(share), total, index, parts)
        for index, share in enumerate(shares(total, parts))
    ]


class Pass:
    """The forward and backward pass of one slice.

    gradient: its flat buffer, of the trainer's layout; collected: for what controllers follow.
    """

    def __init__(self, ops, flow, config, layout, part: Slice, gradient, collected=None):
        self.ops, self.flow, self.config, self.part = ops, flow, config, part
        self.gradient, self.grads = gradient, layout.views(gradient)
        self._collected = collected

    def encode(self, images, step):
        """x and its log-Jacobian from this slice's images, with the noise of that step."""
        key = RandomKey(self.config.seed, TRAINING_NOISE, step, self.part.first)
        return self.flow.encode(self.ops, images, key, self.gradient.dtype)

    def forward(self, params, images, step) -> tuple:
        """The log-densities of the slice's images (N,), without any log|det W|, and what
        `backward` needs."""
        x, ldj = self.encode(images, step)
        key = RandomKey(self.config.seed, 0, step, self.part.first)
        recompute = self.config.recompute
        latents, flow_ldj, caches = self.flow.forward(self.ops, params, x, recompute, key)
        density = self.flow.log_density(self.ops, latents) + ldj + flow_ldj
        return density, (latents, caches, key)

    def backward(self, params, states, lam, made, jacobian_error=0.0) -> BackwardContext:
        """The slice's part of the gradient of Eq. 3 into its buffer. Returns the pass's context,
        with the figures that layers added up; that of Eq. 31 starts at `jacobian_error`."""
        (latents, caches, key), part = made, self.part
        weight = self.gradient.dtype.type(1 / part.total)
        weights = self.ops.xp.full(part.count, weight, self.gradient.dtype)
        volume = part.total * np.float64(weight)
        ctx = BackwardContext(self.ops, weights, lam, states, key, self._collected, part, volume)
        ctx.jacobian_error = jacobian_error
        dlatents = self.flow.latent_gradients(latents, part.total)
        with self.ops.side_stream():
            self.flow.backward(ctx, params, caches, dlatents, self.grads)
        return ctx


class WholeBatch:
    """The gradient of Eq. 3 where nothing is cut. part: the slice that this rank has, all of it."""

    def __init__(self, trainer, samples: int):
        collected = trainer.multipliers.collected if trainer.multipliers else None
        self._trainer, self.part = trainer, cut(samples, 1)[0]
        self._pass = trainer.new_pass(self.part, collected)

    def compute(self, images, lam):
        """The gradient into the trainer's buffer, the density into its log. Returns Σ_k of Eq. 3,
        where no controller collects its terms."""
        own = self._trainer
        scalars, tally, reconstruction = own.scalars, own.tally, 0.0
        density, made = self._pass.forward(own.params, images, scalars.step)
        own.log.density(density, scalars.number)
        if not own.ops.known_on_host(own.log.failed):
            start = tally.sum if tally else 0.0
            ctx = self._pass.backward(own.params, own.states, lam, made, start)
            reconstruction = ctx.reconstruction
            if tally:
                tally.add(ctx.jacobian_error)
        return reconstruction


class SharedBatch:
    """The same where each rank (`snfnp.ops.communication`) has a slice of it."""

    def __init__(self, trainer, samples: int):
        self._trainer, world = trainer, trainer.world
        layers = trainer.multipliers.layers if trainer.multipliers else ()
        self._figures = trainer.ops.xp.zeros(len(Figure) + 2 * len(layers))
        self._rows = self._figures[len(Figure) :].reshape(-1, 2)
        collected = None
        if layers:
            rows = {layer: self._rows[k] for k, layer in enumerate(layers)}
            collected = Collected(rows, trainer.multipliers.collected.inputs)
        self.part = cut(samples, world.size)[world.rank]
        self._pass = trainer.new_pass(self.part, collected)

    def compute(self, images, lam):
        """As `WholeBatch.compute` does; images: this rank's slice of the batch."""
        own, figures, part = self._trainer, self._figures, self.part
        ops, share = own.ops, part.count / part.total
        density, made = self._pass.forward(own.params, images, own.scalars.step)
        figures[Figure.DENSITY, ...] = density.sum(dtype=np.float64) / part.total
        # Where that is not finite the step has failed, and the sum will say so to all.
        if ops.known_on_host(ops.xp.isfinite(figures[Figure.DENSITY, ...])) is not False:
            ctx = self._pass.backward(own.params, own.states, lam, made)
            figures[Figure.RECONSTRUCTION, ...] = ctx.reconstruction * share
            figures[Figure.JACOBIAN, ...] = ctx.jacobian_error
            self._rows[:, 0] *= share  # averages over the slice; beside them are sums
        own.communicator.all_reduce(own.gradient, figures)
        own.log.density(figures[: Figure.DENSITY + 1], own.scalars.number)
        if own.multipliers:
            own.multipliers.collect(self._rows)
        if own.tally:
            own.tally.add(own.tally.sum + figures[Figure.JACOBIAN, ...])
        return figures[Figure.RECONSTRUCTION, ...]
