"""A run's training: its steps, its state in checkpoints, and what becomes of a step that fails.

Derivation: derivations/13-actnorm-and-1x1.md.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from snfnp.errors import CheckpointError, DivergedError
from snfnp.likelihood import Likelihood
from snfnp.ops import SINGLE_PROCESS
from snfnp.training.adam import learning_rate
from snfnp.training.runs.checkpoint import Checkpoint
from snfnp.training.step import TrainingStep, cut

_EARLY, _EVERY = (20, 100), 500  # steps of a renewal: activations change most at the start


@dataclass(frozen=True)
class StepMetrics:
    """Figures of steps (before their updates), averaged over the batch.

    surrogate: nats, no likelihood (see `snfnp.training.step`); reconstruction: Σ_k of Eq. 3;
    gradient_norm: before clipping.
    """

    surrogate: float
    reconstruction: float
    gradient_norm: float


class Trainer(TrainingStep):
    """The training of a run on one device: its arrays (`TrainingStep`), step counter and λ.

    step: steps done; lam: λ, or its first value if `multipliers` control it. report:
    gets a line if the step cannot be recorded as a graph. world: the ranks that train together,
    each with a trainer of its own and a slice of every batch.

    The host does not wait for the device during a step (an exact gradient does, to see whether a
    matrix is singular). A step that failed is therefore found later, in the log: see `check`.
    """

    def __init__(
        self, ops, flow, config, steps_per_epoch, report=print, world=SINGLE_PROCESS, optimiser=None
    ):
        super().__init__(ops, flow, config, world, optimiser)
        self.steps_per_epoch = steps_per_epoch
        self.step, self.lam = 0, config.lam
        self._ascend = self.ascend
        if config.graph:
            self._ascend = ops.device.capture(self.ascend, report, self.communicator)

    def begin(self, batches) -> None:
        """Set what depends on the training images (`Batches`), before the first step."""
        for follower in self.followers:
            follower.start(self, batches)
        self.initialise_from_data(batches.whole(0))

    def initialise_from_data(self, images) -> None:
        """Set the parameters that depend on data (`Flow.init_from_data`) from the first batch,
        device images (N, *shape), with that step's noise. One forward pass."""
        self._initialise_from_data(self.params, images)
        self.share(self.p)

    def share(self, *buffers) -> None:
        """Put the bits of rank 0 into every rank's buffers: the machines may differ."""
        for buffer in buffers if self.world.size > 1 else ():
            buffer[...] = self.ops.asarray(self.world.broadcast(self.ops.to_host(buffer)))

    def start(self, images) -> Likelihood:
        """An exact snapshot of what the run started from; images: those of its first step."""
        p, fixed = self.initial(), slice(self.layout.fixed, None)
        p[fixed] = self.p[fixed]
        self._initialise_from_data(self.layout.views(p), images)
        return self.likelihood(p)

    def _initialise_from_data(self, params, images) -> None:
        x, _ = self.encode(images, 0, cut(len(images), 1)[0])
        self.flow.init_from_data(self.ops, params, x)

    @contextmanager
    def rehearsal(self, images) -> Iterator[Callable[[], None]]:
        """A context with a function that takes the next step, on these images, again and again.

        It leaves no trace: at the end everything that steps go on from is as it was. No check.
        """
        arrays = (self.p, self.m, self.v, self.state, self.log.array)
        kept = [array.copy() for array in arrays]
        try:
            yield lambda: self._take(images)
        finally:
            for array, values in zip(arrays, kept, strict=True):
                array[...] = values

    def renew(self, images_of) -> None:
        """Find anew what followers have from activations, before steps 0, 20, 100 and every 500,
        outside of a recorded step. images_of(step): this rank's images of step 0, 1, …"""
        if self.step in _EARLY or self.step % _EVERY == 0:
            for follower in self.followers:
                follower.renew(self, images_of)

    def training_step(self, images) -> None:
        """Ascend Eq. 3 once, on device images (N, *shape), uint8.

        On an asynchronous backend this returns before the step is done; on others it raises
        DivergedError if anything is not finite (see `check`).
        """
        self._take(images)
        self.step += 1
        if not self.ops.asynchronous:
            self.check(lambda step: images)

    def _take(self, images) -> None:
        lr = learning_rate(self.config, self.step, self.steps_per_epoch)
        self.scalars.set(self.step, lr, self.lam, self.slice_of(len(images))[0].total)
        self._ascend(images)

    def check(self, images_of) -> None:
        """Wait for all steps so far. Raises DivergedError, naming the layer, if one failed.

        A step fails if its mean log-density or its gradient's norm is not finite. The log then
        keeps its number and records nothing more, and Adam leaves the parameters as they are. On an
        asynchronous backend the failed step is repeated here, with the same parameters and noise,
        to find where its numbers went wrong; on the others its gradient is still there.

        images_of(step): the images that this rank saw in step 0, 1, … All ranks call this after
        the same step.
        """
        reading = self.log.read()
        if not reading.failed:
            return
        failed = reading.failed - 1
        if math.isfinite(reading.density):  # then it is the gradient's failure
            if self.step != failed + 1:  # later steps have overwritten the gradient
                self.scalars.set(failed, 0.0, self.lam)
                self.ascend(images_of(failed))
            where = self.flow.first_nonfinite_gradient(self.ops, self.grads)
            what = f"the gradient of {where or 'all layers together'}"
        else:
            images = images_of(failed)
            x, _ = self.encode(images, failed, self.slice_of(len(images))[0])
            layer = self.flow.first_nonfinite(self.ops, self.params, x)
            layer = next(filter(None, self.world.gather(layer)), None)  # perhaps in another slice
            what = f"the output of layer {layer or 'base density'}"
        message = f"training diverged at step {failed + 1}: {what} is not finite"
        raise DivergedError(message, failed + 1)

    def metrics(self) -> StepMetrics:
        """The figures of the last step."""
        return StepMetrics(*self.log.read().last)

    def averages(self) -> StepMetrics:
        """The figures of all steps since the last call, averaged."""
        reading = self.log.read()
        self.log.clear_averages()
        return StepMetrics(*reading.averages)

    def lam_figures(self) -> dict[str, float]:
        """λ and the figures of all followers, for a line of metrics."""
        figures = {} if self.multipliers else {"lam": self.lam}
        for follower in self.followers:
            figures |= follower.figures()
        return figures

    def lam_by_layer(self) -> dict[str, float]:
        """{layer: λ} of every layer that learns its inverse, as it is now."""
        if self.multipliers:
            return self.multipliers.lam
        return dict.fromkeys(self.flow.learned_inverses(), float(self.lam))

    def likelihood(self, p=None) -> Likelihood:
        """An exact, immutable snapshot of the present parameters, or of others, flat."""
        p, dtype = self.p if p is None else p, self.config.eval_dtype
        return Likelihood(self.ops, self.flow, self.layout, p, dtype)

    def checkpoint(self, record: dict) -> Checkpoint:
        """The state on the host."""
        p, m, v, state = map(self.ops.to_host, (self.p, self.m, self.v, self.state))
        log = (record, self.log.sums, self.state_layout, state)
        return Checkpoint(self.layout, p, m, v, self.step, self.lam, self.config.seed, *log)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same model, in the middle of an epoch too."""
        saved, own = checkpoint.state_layout, self.state_layout
        then, kept = (sorted((e.key, e.shape) for e in each.entries) for each in (saved, own))
        if then != kept:
            found = "of another version or other options (it keeps other values from step to step)"
            raise CheckpointError(f"the checkpoint is {found}: give the run that it was made by")
        for buffer, name in ((self.p, "p"), (self.m, "m"), (self.v, "v")):
            buffer[...] = self.ops.asarray(getattr(checkpoint, name), buffer.dtype)
        views = saved.views(checkpoint.state)
        for entry in own.entries:
            value = self.ops.asarray(views[entry.layer][entry.name])
            self.states[entry.layer][entry.name][...] = value
        self.step, self.lam = checkpoint.step, checkpoint.lam
        self.log.restore(checkpoint.sums)
