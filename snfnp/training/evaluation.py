"""Exact evaluations: of the validation data during a run, of the test data at its end."""

import math

from snfnp.data import Dataset
from snfnp.errors import DivergedError
from snfnp.likelihood import Evaluation, Likelihood
from snfnp.training.monitors import Monitors
from snfnp.training.progress import Record

# The noise of every evaluation during and after training, so that epochs and runs compare.
EVALUATION_SEED = 0
_BITS = "validation_bits_per_dimension"
_TOLERATED = 8.0  # bits per dimension, at least, above the worst of a run that learns


def _limit(usual: float) -> float:
    """The bits per dimension of a run that has not exploded."""
    return usual + max(_TOLERATED, abs(usual))


class Evaluator:
    """Evaluates the parameters of a loop's trainer. warnings(figures): the monitors' lines."""

    def __init__(self, loop):
        self._loop, self._trainer, self._config = loop, loop.trainer, loop.trainer.config
        self._monitors = Monitors(loop.trainer, loop.batches.whole)
        self.warnings = self._monitors.warnings
        self._of_images = loop.trainer.flow.preprocess.of_images

    def validate(self, dataset: Dataset) -> dict:
        """The figures of an epoch: the exact validation likelihood, and averages of its steps; of
        rows also the likelihood of as many training rows, since the two together show overfitting.
        Raises DivergedError if any is not finite, or the likelihood has exploded.

        The ranks share the images; rank 0 alone looks at the layers.
        """
        trainer, world = self._trainer, self._trainer.world
        likelihood, images = trainer.likelihood(), dataset.validation
        evaluation = self._evaluate(likelihood, images, self._monitors.watch(len(images)))
        metrics, (step, _, epoch, seconds) = trainer.averages(), self._loop.place
        speed = self._loop.steps_per_second * self._config.batch_size
        figures = {
            "epoch": epoch,
            "step": step,
            "seconds": round(seconds, 3),
            "validation_nll_nats": evaluation.nll,
            **({_BITS: evaluation.bits_per_dimension} if self._of_images else {}),
            **vars(metrics),
            "samples_per_second": round(speed, 1),
            **trainer.figures(),
        }
        for name, value in figures.items():
            if not math.isfinite(value):
                figure = name.removesuffix("_nats").replace("_", " ").replace("nll", "likelihood")
                raise DivergedError(f"the exact {figure} after epoch {epoch} is not finite")
        if world.rank == 0:
            figures |= self._monitors.figures(likelihood)
        if not self._of_images:
            seen = self._evaluate(likelihood, dataset.train[: len(images)]).nll
            figures |= {"training_nll_nats": seen} if math.isfinite(seen) else {}
        figures = world.broadcast(figures)
        self._refuse_explosion(evaluation, epoch, images)
        return figures

    def _refuse_explosion(self, evaluation: Evaluation, epoch: int, images) -> None:
        """Raises DivergedError for a likelihood that is finite, but implausibly bad: above twice
        what the data take without a model (8 bits for pixels of 256 values) and twice the best
        evaluation so far, or the start's. 8 bits more are always allowed: rows in small units may
        take fewer than 0."""
        trainer, bits = self._trainer, evaluation.bits_per_dimension
        usual = trainer.flow.preprocess.usual_bits
        if best := self._loop.best:
            usual = max(usual, best.nll / (evaluation.dimension * math.log(2)))
        elif bits > _limit(usual):
            start = trainer.likelihood(trainer.start(self._loop.batches))
            usual = max(usual, self._evaluate(start, images).bits_per_dimension)
        if bits > (limit := _limit(usual)):
            unit, scale = ("bits/dim", 1.0) if self._of_images else ("nats/dim", math.log(2))
            found = f"the exact validation likelihood after epoch {epoch} has exploded"
            most = f"a run that learns has at most {limit * scale:.4g}"
            raise DivergedError(f"{found}: {bits * scale:.4g} {unit} ({most})")

    def warm_up(self, images) -> None:
        """Evaluate some images with the parameters as drawn, if that compiles something; on a GPU
        also the monitors."""
        trainer = self._trainer
        if trainer.ops.device.compiles:
            images = images[: self._config.batch_size]
            likelihood = trainer.likelihood(trainer.drawn())
            self._evaluate(likelihood, images, self._monitors.watch(len(images)))
            if trainer.ops.asynchronous and trainer.world.rank == 0:
                self._monitors.figures(likelihood)

    def describe(self, record: Record) -> str:
        """A record in a line; the best one has a star."""
        bits = f"= {record.bits_per_dimension:.4f} bits/dim " if self._of_images else ""
        return (
            f"epoch {record.epoch:4d}/{self._config.epochs}  "
            f"exact validation NLL {record.nll:8.2f} nats {bits}{'*' if record.best else ' '} | "
            f"surrogate {record.surrogate:.1f}, reconstruction {record.reconstruction:.2e}, "
            f"|grad| {record.gradient_norm:.1f}, "
            f"{record.figures['samples_per_second']:.0f} samples/s"
        )

    def test(self, p, images) -> Evaluation:
        """The evaluation of test images at parameters p, a flat host array."""
        trainer = self._trainer
        evaluation = self._evaluate(trainer.likelihood(trainer.ops.asarray(p)), images)
        if not math.isfinite(evaluation.nll):
            raise DivergedError("the exact test likelihood at the best epoch is not finite")
        return evaluation

    def _evaluate(self, likelihood: Likelihood, images, watch=None) -> Evaluation:
        # Users low on memory make batches smaller: evaluation, in double precision but without
        # gradients, follows them.
        at_once, world = 10 * self._config.batch_size, self._trainer.world
        how = {"at_once": at_once, "watch": watch, "world": world}
        return likelihood.evaluate(images, EVALUATION_SEED, **how)
