"""One training step, and the state that steps change.

What is logged while training is a surrogate: log p_Z(z) + the data-dependent log-determinants
− λ times the reconstruction error, averaged over the batch. It leaves out every log|det W|, which
self-normalizing training never computes. Only `snfnp.likelihood` computes a likelihood.

Derivation: derivations/03-self-normalizing.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import or_

from snfnp.context import BackwardContext
from snfnp.errors import CheckpointError, DivergedError
from snfnp.flow import Flow
from snfnp.likelihood import TRAINING_NOISE, Likelihood
from snfnp.ops import RandomKey
from snfnp.parameters import Layout
from snfnp.training.adam import Adam, warmed_up
from snfnp.training.checkpoint import Checkpoint
from snfnp.training.config import TrainConfig
from snfnp.training.control import Multipliers
from snfnp.training.log_dets import RunningLogDets
from snfnp.training.probes import Tally


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
    """The state of a training run on one device: flat buffers, step counter, λ and its control.

    p, gradient, m, v: the parameters, their gradient and Adam's moments (without what rules find by
    themselves, `Layer.assigns`, whose next values are in gradient); params, grads: p and
    gradient by layer and name; state, states: what else layers keep from step to step, in double
    precision, flat and by layer and name; step: steps done; log: what they saw
    (`snfnp.ops.step.log`); lam: λ, or where `multipliers` control it, what they started from;
    log_dets: the running log-determinants, or None.
    report: gets a line where the step cannot be recorded as a graph.

    The host does not wait for the device during a step (an exact gradient does, to see whether a
    matrix is singular). So a step that fails is found in the log: see `check`.
    """

    def __init__(
        self,
        ops,
        flow: Flow,
        config: TrainConfig,
        steps_per_epoch: int,
        report: Callable[[str], None] = print,
    ):
        self.ops, self.flow, self.config = ops, flow, config
        self.steps_per_epoch = steps_per_epoch
        self.adam = Adam()
        self.step = 0
        self.lam = config.lam
        self.layout = flow.layout
        self.p = self._initial()
        self.gradient = ops.xp.zeros_like(self.p)
        # what the optimiser moves, and what rules find by themselves: its next values lie where
        # the gradient of the rest does
        climbing = self.layout.climbing.size
        self._climbing, self._assigned = slice(0, climbing), slice(climbing, None)
        self.m, self.v = (ops.xp.zeros_like(self.p[self._climbing]) for _ in range(2))
        self.params, self.grads = self.layout.views(self.p), self.layout.views(self.gradient)
        self.multipliers = Multipliers(ops, flow, config) if config.controller else None
        self.log_dets = RunningLogDets(ops, flow, self.layout) if config.track_log_det else None
        self._tally = Tally() if config.jvp_weight else None
        followed = [
            each.state_shapes for each in (self.multipliers, self.log_dets, self._tally) if each
        ]
        self.state_layout = Layout.of(reduce(or_, followed, flow.state_shapes()))
        self.state = ops.xp.zeros(self.state_layout.size)
        self.states = self.state_layout.views(self.state)
        if self.multipliers:
            self.multipliers.attach(self.states)
        if self.log_dets:
            self.log_dets.attach(self.states, self.p)
            self.log_dets.anchor(self.likelihood().log_dets)
        if self._tally:
            self._tally.attach(self.states)
        self.log, self._scalars = ops.step.new_log(), ops.step.scalars()
        self._ascend = self._ascend_once
        if config.graph:
            self._ascend = ops.device.capture(self._ascend_once, report)

    def initialise_from_data(self, images) -> None:
        """Let the first batch, device images (N, *shape), decide what depends on data (`Flow`'s
        `init_from_data`).

        Once, before the first step, with that step's noise; afterwards these are parameters like
        all others. Does nothing for a flow without such layers.
        """
        self._initialise_from_data(self.params, images)

    def start(self, images) -> Likelihood:
        """An exact snapshot of what the run started from; images: those of its first step."""
        p = self._initial()
        self._initialise_from_data(self.layout.views(p), images)
        return Likelihood(self.ops, self.flow, self.layout, p)

    def _initial(self):
        drawn = self.flow.init(self.config.seed)
        return self.ops.asarray(self.layout.pack(drawn, self.config.dtype))

    def _initialise_from_data(self, params, images) -> None:
        if self.flow.initialises_from_data:
            x, _ = self._encode(images, 0)
            self.flow.init_from_data(self.ops, params, x)

    # ---------------------------------------------------------------- the step

    def training_step(self, images) -> None:
        """Ascend Eq. 3 once, on device images (N, *shape), uint8.

        On an asynchronous backend this returns before the step is done; on others it raises
        DivergedError where anything is not finite (see `check`).
        """
        config = self.config
        lr = warmed_up(config.lr, self.step, self.steps_per_epoch, config.warmup_epochs)
        self._scalars.set(self.step, lr, self.lam)
        self._ascend(images)
        self.step += 1
        if not self.ops.asynchronous:
            self.check(lambda step: images)

    def _ascend_once(self, images) -> None:
        scalars, log = self._scalars, self.log
        climbing, assigned = self._climbing, self._assigned
        if self.log_dets:
            self.log_dets.before(self.p)
        reconstruction = self._compute_gradient(images)
        failed = log.failed
        if self.layout.assigned:
            unsound = self.ops.step.unsound(self.gradient[assigned])
            failed = failed + unsound
        squares = self.adam.update(
            self.ops,
            self.gradient[climbing],
            scalars.lr,
            scalars.number,
            self.config.clip_norm,
            failed,
            out=(self.p[climbing], self.m, self.v),
        )
        if self.layout.assigned:
            squares = squares + unsound
            self.ops.step.assign(self.gradient[assigned], squares, failed, out=self.p[assigned])
        if self.log_dets:
            self.log_dets.after(self.params)
        lam = scalars.lam
        if self.multipliers:
            reconstruction, lam = self.multipliers.update(len(images), squares, log.failed)
        log.step(reconstruction, squares, lam, scalars.number)

    def _compute_gradient(self, images):
        """The gradient of Eq. 3 into the gradient's buffer, and the density into the log.

        Returns Σ_k of Eq. 3, where no controller collects its terms.
        """
        ops, flow, scalars, batch = self.ops, self.flow, self._scalars, len(images)
        lam, collected = scalars.lam, None
        if self.multipliers:
            lam, collected = self.multipliers.lam, self.multipliers.collected
        x, ldj = self._encode(images, scalars.step)
        key = RandomKey(self.config.seed, 0, scalars.step)
        latents, flow_ldj, caches = flow.forward(ops, self.params, x, self.config.recompute, key)
        self.log.density(flow.log_density(ops, latents) + ldj + flow_ldj, scalars.number)
        weights = ops.xp.full(batch, 1 / batch, self.p.dtype)
        ctx = BackwardContext(ops, weights, lam, self.states, key, collected)
        if self._tally:
            ctx.jacobian_error = self._tally.sum
        if not ops.peek(self.log.failed):
            flow.backward(ctx, self.params, caches, flow.latent_gradients(latents), self.grads)
        if self._tally:
            self._tally.add(ctx.jacobian_error)
        return ctx.reconstruction

    def _encode(self, images, step):
        """x and its log-Jacobian from a step's images, with the noise of that step."""
        key = RandomKey(self.config.seed, TRAINING_NOISE, step)
        return self.flow.encode(self.ops, images, key, self.p.dtype)

    # ---------------------------------------------------------------- a step that fails

    def check(self, images_of) -> None:
        """Wait for all steps so far. Raises DivergedError, naming the layer, where one failed.

        A step fails where its mean log-density or its gradient's norm is not finite. The log
        (`log.density`, `log.step`) then keeps the number of the first such step, and from there
        on records nothing, and Adam leaves the parameters as they are. On an asynchronous backend
        it also does in the failed step itself, which is repeated here with the same parameters
        and noise to find where its numbers went wrong. On the others this is called right after
        that step, whose gradient is still there.

        images_of(step): the images that step 0, 1, … saw.
        """
        reading = self.log.read()
        if not reading.failed:
            return
        failed = reading.failed - 1
        if reading.density_finite:
            if self.step != failed + 1:  # later steps have overwritten the gradient
                self._scalars.set(failed, 0.0, self.lam)
                self._compute_gradient(images_of(failed))
            where = self.flow.first_nonfinite_gradient(self.ops, self.grads)
            what = f"the gradient of {where or 'all layers together'}"
        else:
            x, _ = self._encode(images_of(failed), failed)
            layer = self.flow.first_nonfinite(self.ops, self.params, x)
            what = f"the output of layer {layer or 'base density'}"
        message = f"training diverged at step {failed + 1}: {what} is not finite"
        raise DivergedError(message, failed + 1)

    # ---------------------------------------------------------------- what became of it

    def metrics(self) -> StepMetrics:
        """The figures of the last step."""
        return StepMetrics(*self.log.read().last)

    def estimated_nll(self) -> float | None:
        """An estimate of the negative log-likelihood of the last step's images in nats, no exact
        one: with `log_dets`, which drift; None without them."""
        return -(self.log.read().density + self.log_dets.total()) if self.log_dets else None

    def averages(self) -> StepMetrics:
        """The figures of all steps since this was last asked, averaged."""
        reading = self.log.read()
        self.log.clear_averages()
        return StepMetrics(*reading.averages)

    def lam_figures(self) -> dict[str, float]:
        """λ, for a line of metrics; where it is controlled, with the constraint's averages since
        this was last asked; and the average of Eq. 31, where it is part of the gradient."""
        tally = self._tally.figures(self.ops) if self._tally else {}
        return (self.multipliers.figures() if self.multipliers else {"lam": self.lam}) | tally

    def likelihood(self) -> Likelihood:
        """An exact, immutable snapshot of the present parameters."""
        return Likelihood(self.ops, self.flow, self.layout, self.p)

    def checkpoint(self, record: dict) -> Checkpoint:
        """The state on the host."""
        p, m, v, state = map(self.ops.to_host, (self.p, self.m, self.v, self.state))
        return Checkpoint(
            *(self.layout, p, m, v, self.step, self.lam, self.config.seed, record, self.log.sums),
            *(self.state_layout, state),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same model, in the middle of an epoch too."""
        for buffer, saved in ((self.p, "p"), (self.m, "m"), (self.v, "v")):
            buffer[...] = self.ops.asarray(getattr(checkpoint, saved), buffer.dtype)
        self._restore_state(checkpoint)
        self.step, self.lam = checkpoint.step, checkpoint.lam
        self.log.restore(checkpoint.sums)

    def _restore_state(self, checkpoint: Checkpoint) -> None:
        saved = {entry.key: entry for entry in checkpoint.state_layout.entries}
        own = self.state_layout.entries
        shapes = ({entry.key: entry.shape for entry in each} for each in (saved.values(), own))
        if len({tuple(sorted(each.items())) for each in shapes}) > 1:
            raise CheckpointError(
                "the checkpoint is of a run with other options (its layers keep other values from "
                "step to step): give the run that it was made by"
            )
        for entry in own:
            then = checkpoint.state[saved[entry.key].start : saved[entry.key].stop]
            self.state[entry.start : entry.stop] = self.ops.asarray(then)
