"""One training step, in the order in which things happen.

What is logged while training is a surrogate: log p_Z(z) + the data-dependent log-determinants
− λ times the reconstruction error, averaged over the batch. It leaves out every log|det W|, which
self-normalizing training never computes. Only `snfnp.likelihood` computes a likelihood.

A batch may be cut into slices, one for every process (rank). All that a slice needs of the others
are sums: of the gradient, and of a few figures.

Derivation: derivations/03-self-normalizing.md and 25-many-cores.md.
"""

import numpy as np

from snfnp import registry
from snfnp.context import BackwardContext, Slice
from snfnp.flow import Flow
from snfnp.likelihood import TRAINING_NOISE
from snfnp.ops import SINGLE_PROCESS, RandomKey, shares
from snfnp.ops.step.log import StepLog
from snfnp.parameters import Layout
from snfnp.training.adam import Adam
from snfnp.training.followers import make_followers
from snfnp.training.options import TrainConfig

_DENSITY, _RECONSTRUCTION, _FIGURES = 0, 1, 2  # places in `sums`; the followers' come after these


def cut(total: int, parts: int) -> list[Slice]:
    """A batch of `total` samples in `parts` slices, as even as can be, in order."""
    return [
        Slice(share.start, len(share), total, index, parts)
        for index, share in enumerate(shares(total, parts))
    ]


class TrainingStep:
    """The arrays of a run on one device, all of them at fixed addresses, and the step itself.

    p, gradient, m, v: the parameters, their gradient and Adam's moments, flat (`Layout`), the last
    three of what the optimiser moves. params, grads: p and gradient by layer and name; scalars: the
    step's number, learning rate and λ; log: figures of steps (`snfnp.ops.step.log`); multipliers:
    λ's controllers, or None; coordinates: those that Adam ascends in, or None; followers: these and
    others (`snfnp.training.followers`); state, states: their state, flat and by name. world: the
    ranks that train together; communicator: the one that sums arrays of the device over them.
    optimiser: what `update`s the parameters, `Adam` or one of your own
    (derivations/28-write-your-own-rule.md).
    """

    def __init__(self, ops, flow: Flow, config: TrainConfig, world=SINGLE_PROCESS, optimiser=None):
        self.ops, self.flow, self.config, self.world = ops, flow, config, world
        self.communicator = ops.device.communicator(world)
        self.optimiser = optimiser or Adam()
        self.layout = layout = flow.layout
        self.p = self.initial()
        moved = self.p[: layout.fixed]
        self.gradient, self.m, self.v = (ops.xp.zeros_like(moved) for _ in range(3))
        self.params = layout.views(self.p)
        self.grads = layout.optimised.views(self.gradient)
        self.log, self.scalars = StepLog(ops.step), ops.step.scalars()

        followers = make_followers(ops, flow, config)
        self.multipliers, *_, self.coordinates = followers
        self.followers = [follower for follower in followers if follower]
        shapes = {k: v for follower in self.followers for k, v in follower.state_shapes.items()}
        self.state_layout = Layout.of(shapes)
        self.state = ops.xp.zeros(self.state_layout.size)
        self.states = self.state_layout.views(self.state)
        self.sums = ops.xp.zeros(_FIGURES + sum(follower.sums for follower in self.followers))
        start = _FIGURES
        for follower in self.followers:
            follower.attach(self.states, self.sums[start : start + follower.sums])
            start += follower.sums
        self._noise = registry.find("noise") if config.objective == "variational" else None
        self._part = self._weights = None
        self.slice_of(config.batch_size // world.size)

    def initial(self):
        """The parameters that the run starts from, flat."""
        drawn = self.flow.init(self.config.seed)
        return self.ops.asarray(self.layout.pack(drawn, self.config.dtype))

    def slice_of(self, samples: int) -> tuple[Slice, object]:
        """This rank's slice of a batch, with so many samples, and their weights 1/N (samples,).

        Called before a step is recorded, too: the weights are kept, outside of a graph's memory.
        """
        if self._part is None or self._part.count != samples:
            self._part = cut(samples * self.world.size, self.world.size)[self.world.rank]
            self._weights = self.ops.xp.full(samples, 1 / self._part.total, self.p.dtype)
        return self._part, self._weights

    def encode(self, images, step, part: Slice):
        """x and its log-Jacobian from a slice of the images of a step, with that step's noise."""
        key = RandomKey(self.config.seed, TRAINING_NOISE, step, part.first)
        return self.flow.encode(self.ops, images, key, self.p.dtype)

    def ascend(self, images) -> None:
        """Ascend Eq. 3 once, on this rank's device images (n, *shape), uint8, of a batch of N.

        If the density is not finite the step has failed: the log keeps its number, and nothing is
        updated from then on. If the host knows without waiting, it skips the backward pass.
        """
        ops, flow, config, log, scalars = self.ops, self.flow, self.config, self.log, self.scalars
        part, weights = self.slice_of(len(images))
        samples, share = part.total, part.count / part.total

        # Encode: dequantisation noise, scale and logit (A.3).
        x, log_jacobian = self.encode(images, scalars.step, part)

        # Forward: log p_Z(z) and the log-determinants that depend on x (Eq. 6), no log|det W|.
        key = RandomKey(config.seed, 0, scalars.step, part.first)
        noise = self._noise and self._noise(ops, flow, self.params, key)
        latents, ldj, caches = flow.forward(ops, self.params, x, config.recompute, noise)
        terms = flow.log_density(ops, latents), log_jacobian, ldj
        density = ops.channels.total([term for term in terms if not isinstance(term, int)])
        log.density(density, scalars.number)

        # Backward: the gradients of Eq. 3, each layer's error.
        measured = {}
        if not ops.known_on_host(log.failed):
            weight = self.p.dtype.type(1 / samples)
            volume, factor = samples * np.float64(weight), scalars.error_factor(samples)
            ctx = BackwardContext(ops, weights, volume, factor, key, part)
            factors = {}
            for follower in self.followers:
                factors |= follower.error_factors(samples)
            deltas = flow.latent_gradients(latents, samples)
            with ops.side_stream():
                given = (self.params, caches, deltas, self.grads, factors, flow.learns_from)
                _, measured = flow.backward(ctx, *given)
        errors = [result.error for result in measured.values() if result.error is not None]
        reconstruction = ops.channels.total(errors) if errors else 0.0  # Σ_k of Eq. 3
        for follower in self.followers:
            follower.collect(measured, share)

        # All-reduce: gradients of slices add up, and so do figures.
        if self.world.size > 1:
            self.sums[_DENSITY] = density.sum(dtype=np.float64) / samples
            self.sums[_RECONSTRUCTION] = reconstruction * share
            self.communicator.all_reduce(self.gradient, self.sums)
            log.density(self.sums[:_RECONSTRUCTION], scalars.number)
            reconstruction = self.sums[_RECONSTRUCTION, ...]

        # Adam or another optimiser.
        gradient = self.gradient
        p = moved = self.p[: self.layout.fixed]
        if self.coordinates:
            gradient, moved = self.coordinates.enter(gradient)
        given = (scalars.lr, scalars.number, config.clip_norm, log.failed)
        squares = self.optimiser.update(ops, gradient, *given, out=(moved, self.m, self.v))
        if self.coordinates:
            self.coordinates.leave(p)

        # Followers: λ of the next step, the mean of Eq. 31.
        figures = reconstruction, scalars.lam
        for follower in self.followers:
            figures = follower.update(figures, samples, squares, log.failed)

        # Log.
        log.step(figures[0], squares, figures[1], scalars.number)
