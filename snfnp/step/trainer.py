"""A training on one device: its arrays, and a step, in the order in which things happen.

A step logs a surrogate: log p_Z(z) + the data-dependent log-determinants − λ times the
reconstruction error, averaged over the batch, without any log|det W|, which self-normalizing
training never computes. Only `snfnp.likelihood` computes a likelihood.

Derivation: derivations/05-self-normalizing.md and 13-actnorm-and-1x1.md.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import numpy as np

from snfnp.context import BackwardContext
from snfnp.errors import DivergedError
from snfnp.flow import Flow
from snfnp.likelihood import SMOOTHING, TRAINING_NOISE, Likelihood
from snfnp.ops import Array, Ops, RandomKey
from snfnp.ops.step.definition import StepLog, StepMetrics
from snfnp.step.batches import BatchSource, batch_of
from snfnp.step.coordinates import statistics, white_states
from snfnp.step.settings import Settings
from snfnp.step.update import (
    Adam,
    ControlledMultipliers,
    Multipliers,
    Optimiser,
    TrainingState,
    learning_rate,
)

# steps of a renewal: activations change most at the start
_EARLY, _EVERY = ((20, 100), 500)


class Trainer:
    """The training of a flow on one device.

        trainer = Trainer(ops, flow, config, batches.steps_per_epoch)
        trainer.begin(batches)
        trainer.training_step(batches)

    All arrays stay at their addresses. p: the parameters, flat (`Layout`); gradient, m, v: their
    gradient and Adam's moments, of what the optimiser moves; params, grads: p and gradient by layer
    and name. step: steps done. scalars: the step's number and learning rate; log: its figures.
    states: `TrainingState`s, of which multipliers has λ; state: their values by key.

    Args:
        config: a resolved `TrainConfig`, or another object with these settings.
        steps_per_epoch: for the learning rate's schedule.
        report: gets a line if the step cannot be recorded as a graph.
        optimiser: `Adam`, or one of your own (derivations/18-write-your-own-rule.md).

    The host does not wait for the device during a step, except for an exact gradient, which looks
    whether a matrix is singular: `check` finds a failed step later, in the log.
    """

    def __init__(
        self,
        ops: Ops,
        flow: Flow,
        config: Settings,
        steps_per_epoch: int,
        report: Callable[[str], object] = print,
        optimiser: Optimiser | None = None,
    ):
        self.ops = ops
        self.flow = flow
        self.config = config
        self.steps_per_epoch = steps_per_epoch
        self.step = 0
        self.layout = flow.layout
        self.p = self.initial_parameters()
        self._moved = self.p[: self.layout.fixed]
        self.gradient = ops.xp.zeros_like(self._moved)
        self.m = ops.xp.zeros_like(self._moved)
        self.v = ops.xp.zeros_like(self._moved)
        self.params = self.layout.views(self.p)
        self.grads = self.layout.optimised.views(self.gradient)
        self.log = StepLog(ops.device)
        self.scalars = ops.step.scalars()

        self.optimiser = optimiser or Adam()
        self.multipliers = Multipliers(flow, config.lam)
        if config.controller:
            self.multipliers = ControlledMultipliers(
                ops, flow, config.lam, config.controller
            )
        self.states: list[TrainingState] = [self.multipliers]
        if config.jvp_weight:
            from snfnp.beyond.training import JacobianMean

            self.states.append(JacobianMean(ops))
        whitening, self.coordinates = white_states(ops, flow, config, self.optimiser)
        self.states += filter(None, (whitening, self.coordinates))
        self._update = (
            self.coordinates.ascend if self.coordinates else self.optimiser.update
        )
        self.state = {state.key: state.values for state in self.states if state.key}

        self._noise: Any = None  # what adds noise in a step's forward pass
        if config.objective == "variational":
            from snfnp.beyond.training import Noise

            self._noise = Noise
        self._ascend = self._ascend_staged
        if config.graph:
            self._ascend = ops.device.capture(self._ascend, report)

    def initial_parameters(self) -> Array:
        """Parameters as the seed draws them, flat."""
        drawn = self.flow.init(self.config.seed)
        return self.ops.asarray(self.layout.pack(drawn, self.config.dtype))

    def encode(self, images: Array, step: Any) -> tuple[Array, Array]:
        """x and its log-Jacobian from the images of a step, with that step's noise."""
        key = RandomKey(self.config.seed, TRAINING_NOISE, step)
        x, log_jacobian = self.flow.preprocessed(self.ops, images, key, self.p.dtype)
        if self.config.noise:
            key = RandomKey(self.config.seed, SMOOTHING, step)
            normal = self.ops.random.normal(key, x.shape, x.dtype)
            x = x + x.dtype.type(self.config.noise) * normal
        return x, log_jacobian

    def ascend(self, images: Array) -> None:
        """Ascend Eq. 3 once.

        If the density is not finite the step has failed: the log keeps its number, and nothing is
        updated from then on. A host that knows skips the backward pass.

        Args:
            images: device images (N, *shape), uint8, or rows.
        """
        ops = self.ops
        flow = self.flow
        config = self.config
        scalars = self.scalars
        log = self.log.array
        failed = self.log.failed
        samples = len(images)

        # Encode: dequantisation noise, scale and logit (A.3).
        x, log_jacobian = self.encode(images, scalars.step)

        # Forward: log p_Z(z) and the log-determinants that depend on x (Eq. 6), no log|det W|.
        key = RandomKey(config.seed, 0, scalars.step)
        noise = self._noise and self._noise(ops, flow, self.params, key)
        latents, ldj, caches = flow.forward(
            ops, self.params, x, config.recompute, noise
        )
        terms = flow.log_density(ops, latents), log_jacobian, ldj
        terms = [term for term in terms if not isinstance(term, int)]
        ops.step.log_density(ops.channels.total(terms), scalars.number, log)

        # Backward: the gradients of Eq. 3, each layer's error.
        measured = {}
        if not ops.known_on_host(failed):
            weight = self.p.dtype.type(1 / samples)
            weights = ops.constant(np.full(samples, weight), weight.dtype)
            volume = samples * np.float64(weight)
            # each layer's λ is in `error_factors`
            ctx = BackwardContext(ops, weights, volume, 0.0, key)
            _, measured = flow.backward(
                ctx,
                self.params,
                caches,
                flow.latent_gradients(latents),
                self.grads,
                self.multipliers.error_factors(samples),
                flow.first_trainable,
            )
        errors = [result.error for result in measured.values()]

        # Adam or another optimiser.
        squares = self._update(
            ops,
            self.gradient,
            scalars.lr,
            scalars.number,
            config.clip_norm,
            failed,
            out=(self._moved, self.m, self.v),
        )

        # Training states: λ of the next step, the mean of Eq. 31.
        figures = errors, self.multipliers.initial
        for state in self.states:
            figures = state.update(figures, measured, samples, squares, failed)

        # Log.
        errors, lam = figures
        ops.step.log_step(errors, squares, lam, scalars.number, log)

    def begin(self, batches: BatchSource) -> None:
        """Set the parameters to those of the start."""
        self.p[...] = self.start(batches)

    def start(self, batches: BatchSource) -> Array:
        """The parameters of the start, flat: drawn by the seed; those that depend on data, layer by
        layer, from the first batch, or for a `Whiten` layer from the first epoch."""
        p = self.initial_parameters()
        params = self.layout.views(p)
        images = batch_of(batches, 0)
        # a run has seen all of them before
        self.flow.require_images(images)
        x, _ = self.encode(images, 0)
        self.flow.init_from_data(
            self.ops, params, x, partial(statistics, self, params, batches)
        )
        return p

    def warm_up(
        self, batches: BatchSource, prepare: Callable[[Callable[[], None]], None]
    ) -> None:
        """Compile and record a step by prepare(step), and restore everything that it changes."""
        arrays = (self.p, self.m, self.v, *self.state.values(), self.log.array)
        copies = [array.copy() for array in arrays]
        try:
            self.renew(batches)
            prepare(lambda: self._take(batches))
        finally:
            for array, values in zip(arrays, copies, strict=True):
                array[...] = values

    def training_step(self, batches: BatchSource) -> None:
        """Take the next step: ascend Eq. 3 once, on its batch.

        Before steps 0, 20, 100 and every 500, training states first re-estimate what depends on
        activations. On an asynchronous backend this returns before the step is done; on others it
        raises DivergedError if anything is not finite (`check`).

        Args:
            batches: `Batches` of a data set, or another source of samples.
        """
        self.renew(batches)
        self._take(batches)
        self.step += 1
        if not self.ops.asynchronous:
            self.check(batches)

    def renew(self, batches: BatchSource) -> None:
        """Renew the training states if it is time to (`training_step`)."""
        if self.step in _EARLY or self.step % _EVERY == 0:
            for state in self.states:
                state.renew(self, batches)

    def _take(self, batches: BatchSource) -> None:
        first = batches.stage(self.step)
        lr = learning_rate(self.config, self.step, self.steps_per_epoch)
        self.scalars.set(self.step, lr, first)
        self._ascend(batches)

    def _ascend_staged(self, batches: BatchSource) -> None:
        self.ascend(batches.take(self.scalars.step, self.scalars.first))

    def check(self, batches: BatchSource) -> None:
        """Wait for all steps so far. Raises DivergedError, naming the layer, if one failed.

        A step fails if its mean log-density or its gradient's norm is not finite. If later steps
        were queued, it is repeated here, with the same parameters and noise, to find the layer.
        """
        if not self.ops.to_host(self.log.failed):
            return
        reading = self.log.read()
        failed = reading.failed - 1
        if math.isfinite(reading.density):  # so it was the gradient that failed
            if self.step != failed + 1:  # later steps have overwritten the gradient
                self.scalars.set(failed, 0.0)
                self.ascend(batch_of(batches, failed))
            parameter = self.flow.first_nonfinite_gradient(self.ops, self.grads)
            what = f"the gradient of {parameter or 'all layers together'}"
        else:
            x, _ = self.encode(batch_of(batches, failed), failed)
            layer = self.flow.first_nonfinite(self.ops, self.params, x)
            # if all are finite, squares of the latents overflow
            what = layer or "the base density"
        raise DivergedError(
            f"training diverged at step {failed + 1}: {what} is not finite", failed + 1
        )

    def metrics(self) -> StepMetrics:
        """The figures of the last step."""
        return self.log.read().last

    def averages(self) -> StepMetrics:
        """The figures of all steps since the last call, averaged."""
        reading = self.log.read()
        self.log.clear_averages()
        return reading.averages

    def figures(self) -> dict[str, float]:
        """The figures of all training states, λ first, for a line of metrics."""
        return {
            name: value
            for state in self.states
            for name, value in state.figures().items()
        }

    def likelihood(self, p: Array | None = None) -> Likelihood:
        """An exact, immutable snapshot of the present parameters, or of others, flat."""
        p = self.p if p is None else p
        return Likelihood(self.ops, self.flow, p, self.config.eval_dtype)


def take_steps(
    trainings: Sequence[tuple[Trainer, BatchSource]],
    last: int,
    wanted: Callable[[], bool] = lambda: True,
    clock: Callable[[], AbstractContextManager] = nullcontext,
) -> Iterator[int]:
    """The loop of every training: take steps up to `last`, as long as they are wanted().

    Args:
        trainings: trainers with their batches, which take each step side by side.
        clock: clock() is a context for a step.

    Yields:
        The number of steps done, after each.
    """
    first, _ = trainings[0]
    while first.step < last and wanted():
        with clock():
            for trainer, batches in trainings:
                trainer.training_step(batches)
        yield first.step
