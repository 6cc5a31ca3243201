"""One training step, and the state that steps change.

What is logged while training is a surrogate: log p_Z(z) + the data-dependent log-determinants
− λ times the reconstruction error, averaged over the batch. It leaves out every log|det W|, which
self-normalizing training never computes. Only `snfnp.likelihood` computes a likelihood.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from snfnp.checkpoint import Checkpoint
from snfnp.config import TrainConfig
from snfnp.errors import DivergedError
from snfnp.flow import Flow
from snfnp.likelihood import TRAINING_NOISE, Likelihood
from snfnp.ops import RandomKey
from snfnp.ops import numpy_steps as steps
from snfnp.optim import Adam, warmed_up
from snfnp.parameters import Layout
from snfnp.rules import Reconstruction


@dataclass(frozen=True)
class StepMetrics:
    """What steps saw (before their updates), averaged over the batch.

    surrogate: nats, no likelihood (see the module's docstring); reconstruction: Σ_k of Eq. 3;
    gradient_norm: before clipping.
    """

    surrogate: float
    reconstruction: float
    gradient_norm: float


class Trainer:
    """The state of a training run on one device: buffers, step counter, λ.

    Nothing in a step makes the host wait for the device, but for an exact gradient's look at
    whether a matrix is singular: what a step has to tell goes to a log, which `check`, `metrics`
    and `averages` read.
    """

    def __init__(self, ops, flow: Flow, config: TrainConfig, steps_per_epoch: int, say=print):
        self.ops, self.flow, self.config = ops, flow, config
        self.steps_per_epoch = steps_per_epoch
        self.adam = Adam()
        self.step = 0
        self.lam = config.lam
        initial = flow.init(config.seed)
        self.layout = Layout.of(initial)
        self.p = ops.asarray(self.layout.pack(initial, config.dtype))
        self.g, self.m, self.v = (ops.xp.zeros_like(self.p) for _ in range(3))
        self.params, self.grads = self.layout.views(self.p), self.layout.views(self.g)
        self._dials, self._log = ops.dials(), ops.asarray(steps.new_log())
        self._climb = ops.repeatable(self._climb_once, say) if config.graph else self._climb_once

    def initialise_from_data(self, images) -> None:
        """Let the first batch, device images (N, *shape), decide what depends on data (actnorm).

        Once, before the first step, with that step's noise; afterwards these are parameters like
        all others. Does nothing for a flow without such layers.
        """
        if self.flow.initialises_from_data:
            x, _ = self._preprocessed(images, 0)
            self.flow.init_from_data(self.ops, self.params, x)

    def training_step(self, images) -> None:
        """Climb Eq. 3 once on device images (N, *shape), uint8.

        On a backend that works ahead this only lines the step up; on others it is done, and
        raises DivergedError where anything is not finite (see `check`).
        """
        config = self.config
        lr = warmed_up(config.lr, self.step, self.steps_per_epoch, config.warmup_epochs)
        self._dials.set(self.step, lr, self.lam)
        self._climb(images)
        self.step += 1
        if not self.ops.works_ahead:
            self.check(lambda step: images)

    def _climb_once(self, images) -> None:
        ops, dials, log = self.ops, self._dials, self._log
        recon = self._gradient(images)
        buffers, failed = (self.p, self.g, self.m, self.v), log[steps.FAILED]
        squares = self.adam.update(
            ops, *buffers, dials.lr, dials.number, self.config.clip_norm, failed
        )
        ops.record(log, recon.total, squares, dials.lam, dials.number)

    def _gradient(self, images):
        """The gradient of Eq. 3 into the gradients' buffer; the density goes to the log."""
        ops, flow, batch, dials = self.ops, self.flow, len(images), self._dials
        x, ldj = self._preprocessed(images, dials.step)
        z, flow_ldj, caches = flow.forward(ops, self.params, x, self.config.recompute)
        ops.watch(self._log, ops.gaussian_log_density(z) + ldj + flow_ldj, dials.number)
        recon = Reconstruction(dials.lam)
        if ops.peek(self._log[steps.FAILED]):
            return recon  # nothing to climb

        dz = z * (-1 / batch)  # δ_z = ∂ log N(z; 0, I)/∂z, averaged over the batch
        dldj = ops.xp.full(batch, 1 / batch, self.p.dtype)
        flow.backward(ops, self.params, caches, dz, dldj, self.grads, recon)
        return recon

    def _preprocessed(self, images, step):
        """x and its log-Jacobian from a step's images, with the noise of that step."""
        key = RandomKey(self.config.seed, TRAINING_NOISE, step)
        return self.flow.preprocess.forward(self.ops, images, key, self.p.dtype)

    def check(self, images_of) -> None:
        """Wait for all steps so far. Raises DivergedError, naming the layer, where one went wrong.

        images_of(step): the images that step 0, 1, … saw, should that one have to be repeated.
        """
        log = self.ops.to_host(self._log)
        if not log[steps.FAILED]:
            return
        failed = int(log[steps.FAILED]) - 1
        if math.isfinite(log[steps.DENSITY]):
            if self.step != failed + 1:
                # later steps have overwritten the gradient, but not the parameters that made it
                self._dials.set(failed, 0.0, self.lam)
                self._gradient(images_of(failed))
            where = self.flow.first_nonfinite_gradient(self.ops, self.grads)
            what = f"the gradient of {where or 'all layers together'}"
        else:
            x, _ = self._preprocessed(images_of(failed), failed)
            layer = self.flow.first_nonfinite(self.ops, self.params, x)
            what = f"the output of layer {layer or 'base density'}"
        raise DivergedError(
            f"training diverged at step {failed + 1}: {what} is not finite; the last checkpoint "
            "is kept: try a smaller --lr, a larger --lambda, or --clip-norm"
        )

    def metrics(self) -> StepMetrics:
        """The figures of the last step."""
        return StepMetrics(*self.ops.to_host(self._log)[: steps.SUMS].tolist())

    def averages(self) -> StepMetrics:
        """The figures of all steps since this was last asked, averaged."""
        log = self.ops.to_host(self._log)
        averages = StepMetrics(*(log[steps.SUMS : steps.COUNT] / log[steps.COUNT]).tolist())
        self._log[steps.SUMS : steps.COUNT + 1] = 0
        return averages

    def likelihood(self) -> Likelihood:
        """An exact, immutable snapshot of the present parameters."""
        return Likelihood(self.ops, self.flow, self.layout, self.p)

    def checkpoint(self, record: dict) -> Checkpoint:
        """The state on the host."""
        p, m, v = (self.ops.to_host(a) for a in (self.p, self.m, self.v))
        return Checkpoint(self.layout, p, m, v, self.step, self.lam, self.config.seed, record)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same model."""
        for buffer, saved in ((self.p, "p"), (self.m, "m"), (self.v, "v")):
            buffer[...] = self.ops.asarray(getattr(checkpoint, saved), buffer.dtype)
        self.step, self.lam = checkpoint.step, checkpoint.lam
