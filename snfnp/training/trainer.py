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

from snfnp.context import Slice
from snfnp.errors import CheckpointError, DivergedError
from snfnp.flow import Flow
from snfnp.likelihood import Likelihood
from snfnp.ops import ALONE, Communicator
from snfnp.parameters import Layout
from snfnp.training.adam import Adam, warmed_up
from snfnp.training.control import Multipliers
from snfnp.training.log_dets import RunningLogDets
from snfnp.training.options import TrainConfig
from snfnp.training.probes import Tally
from snfnp.training.runs.checkpoint import Checkpoint
from snfnp.training.slices import Pass, SharedBatch, WholeBatch, cut


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
    report: gets a line where the step cannot be recorded as a graph. world: the ranks that train
    together, each with a trainer of its own and a slice of every batch; communicator: what sums
    arrays of the device over them.

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
        world: Communicator = ALONE,
    ):
        self.ops, self.flow, self.config, self.world = ops, flow, config, world
        self.communicator = ops.device.communicator(self.world)
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
        self.log_dets: RunningLogDets | None = None
        self.tally = Tally() if config.jvp_weight else None
        followed = [
            each.state_shapes for each in (self.multipliers, self.log_dets, self.tally) if each
        ]
        self.state_layout = Layout.of(reduce(or_, followed, flow.state_shapes()))
        self.state = ops.xp.zeros(self.state_layout.size)
        self.states = self.state_layout.views(self.state)
        if self.multipliers:
            self.multipliers.attach(self.states)
        if self.log_dets:
            self.log_dets.attach(self.states, self.p)
            self.log_dets.anchor(self.likelihood().log_dets)
        if self.tally:
            self.tally.attach(self.states)
        self.log, self.scalars = ops.step.new_log(), ops.step.scalars()
        self._batches: dict[int, WholeBatch | SharedBatch] = {}  # by the samples of this rank
        self._ascend = self._ascend_once
        if config.graph:
            self._ascend = ops.device.capture(self._ascend_once, report, self.communicator)

    def initialise_from_data(self, images) -> None:
        """Let the first batch, device images (N, *shape), decide what depends on data (`Flow`'s
        `init_from_data`).

        Once, before the first step, with that step's noise; afterwards these are parameters like
        all others. Does nothing for a flow without such layers.
        """
        self._initialise_from_data(self.params, images)
        if self.world.size > 1:  # the same everywhere to the last bit, whatever machines they are
            self.p[...] = self.ops.asarray(self.world.broadcast(self.ops.to_host(self.p)))

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
        self.scalars.set(self.step, lr, self.lam)
        self._batch_of(len(images))  # what it keeps is not to lie in a graph's memory
        self._ascend(images)
        self.step += 1
        if not self.ops.asynchronous:
            self.check(lambda step: images)

    def _ascend_once(self, images) -> None:
        scalars, log = self.scalars, self.log
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
            samples = len(images) * self.world.size
            reconstruction, lam = self.multipliers.update(samples, squares, log.failed)
        log.step(reconstruction, squares, lam, scalars.number)

    def _compute_gradient(self, images):
        """The gradient of Eq. 3 into the gradient's buffer, and the density into the log.

        Returns Σ_k of Eq. 3, where no controller collects its terms.
        """
        lam = self.multipliers.lam if self.multipliers else self.scalars.lam
        return self._batch_of(len(images)).compute(images, lam)

    def _batch_of(self, samples: int) -> WholeBatch | SharedBatch:
        """What computes the gradient of a batch of which this rank has so many samples."""
        if samples not in self._batches:
            if self.world.size == 1:
                made = WholeBatch(self, samples)
            else:
                made = SharedBatch(self, samples * self.world.size)
            self._batches[samples] = made
        return self._batches[samples]

    def new_pass(self, part: Slice, collected=None) -> Pass:
        """The pass of one slice of the batch."""
        gradient = self.gradient
        return Pass(self.ops, self.flow, self.config, self.layout, part, gradient, collected)

    def _encode(self, images, step, part: Slice | None = None):
        """x and its log-Jacobian from the images of a step, with the noise of that step. part:
        which slice of the batch they are; None: all of it."""
        return self.new_pass(part or cut(len(images), 1)[0]).encode(images, step)

    # ---------------------------------------------------------------- a step that fails

    def check(self, images_of) -> None:
        """Wait for all steps so far. Raises DivergedError, naming the layer, where one failed.

        A step fails where its mean log-density or its gradient's norm is not finite. The log
        (`log.density`, `log.step`) then keeps the number of the first such step, and from there
        on records nothing, and Adam leaves the parameters as they are. On an asynchronous backend
        it also does in the failed step itself, which is repeated here with the same parameters
        and noise to find where its numbers went wrong. On the others this is called right after
        that step, whose gradient is still there.

        images_of(step): the images that this rank saw in step 0, 1, … All ranks call this after
        the same step.
        """
        reading = self.log.read()
        if not reading.failed:
            return
        failed = reading.failed - 1
        if reading.density_finite:
            if self.step != failed + 1:  # later steps have overwritten the gradient
                self.scalars.set(failed, 0.0, self.lam)
                self._compute_gradient(images_of(failed))
            where = self.flow.first_nonfinite_gradient(self.ops, self.grads)
            what = f"the gradient of {where or 'all layers together'}"
        else:
            images = images_of(failed)
            x, _ = self._encode(images, failed, self._batch_of(len(images)).part)
            layer = self.flow.first_nonfinite(self.ops, self.params, x)
            layer = next(filter(None, self.world.gather(layer)), None)  # perhaps another's slice
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
        tally = self.tally.figures(self.ops) if self.tally else {}
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
