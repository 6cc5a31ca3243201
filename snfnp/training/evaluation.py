"""Exact evaluations: of the validation data during a run, of the test data at its end."""

import math
from functools import partial

from snfnp.data import Dataset
from snfnp.errors import DivergedError
from snfnp.files import Json
from snfnp.images import evenly_spread
from snfnp.likelihood import Evaluation, Likelihood
from snfnp.ops import Array
from snfnp.step.batches import Batches, batch_of
from snfnp.step.trainer import Trainer
from snfnp.training.monitors import Monitors
from snfnp.training.options import TrainConfig
from snfnp.training.progress import Progress, Record, decimals

# The noise of every evaluation during and after training, so that epochs and runs compare.
EVALUATION_SEED = 0
_MARGIN = 8.0  # bits per dimension, at least, above the worst of a run that learns


def _explosion_threshold(baseline: float) -> float:
    """The bits per dimension above which a likelihood has exploded."""
    return baseline + max(_MARGIN, abs(baseline))


class Evaluator:
    """Evaluates the parameters of a trainer. monitors: of its learned inverses."""

    def __init__(self, trainer: Trainer, batches: Batches, config: TrainConfig):
        self._trainer = trainer
        self._batches = batches
        self._config = config
        images_of = partial(batch_of, batches)
        self.monitors = Monitors(trainer, images_of, config.track_angle or 0)
        self._of_images = trainer.flow.preprocess.of_images

    def validate(self, dataset: Dataset, progress: Progress) -> Json:
        """The figures of an epoch: the exact validation likelihood, and averages of its steps; of
        rows also the likelihood of as many training rows, since the two together show overfitting.

        Returns:
            A line of metrics.jsonl.

        Raises:
            DivergedError: a figure is not finite, or the likelihood has exploded.
        """
        trainer = self._trainer
        images = dataset.validation
        likelihood = trainer.likelihood()
        evaluation = self._evaluate(
            likelihood, images, self.monitors.watch(len(images))
        )
        figures: Json = {
            "epoch": progress.epoch,
            "step": progress.step,
            "seconds": round(progress.seconds, 3),
            "validation_nll_nats": evaluation.nll,
        }
        if self._of_images:
            figures["validation_bits_per_dimension"] = evaluation.bits_per_dimension
        figures |= trainer.averages()._asdict()
        speed = progress.steps_per_second * self._config.batch_size
        figures["samples_per_second"] = round(speed, 1)
        figures |= trainer.figures()
        for name, value in figures.items():
            if not math.isfinite(value):
                figure = (
                    name.removesuffix("_nats")
                    .replace("_", " ")
                    .replace("nll", "likelihood")
                )
                raise DivergedError(
                    f"the exact {figure} after epoch {progress.epoch} is not finite"
                )
        figures |= self.monitors.figures()
        if not self._of_images:
            rows = evenly_spread(dataset.train, len(images))
            training = self._evaluate(likelihood, rows).nll
            if math.isfinite(training):
                figures["training_nll_nats"] = training
        self._refuse_explosion(evaluation, progress, images)
        return figures

    def _refuse_explosion(
        self, evaluation: Evaluation, progress: Progress, images: Array
    ) -> None:
        """Raises DivergedError for a likelihood that is finite, but implausibly bad: above twice
        what the data take without a model (8 bits for pixels of 256 values) and twice the best
        evaluation so far, or the start's. 8 bits more are always allowed: rows in small units may
        take fewer than 0."""
        trainer = self._trainer
        bits = evaluation.bits_per_dimension
        baseline = trainer.flow.preprocess.baseline_bits
        if progress.best:
            best = progress.best.figures["validation_nll_nats"]
            baseline = max(baseline, best / (evaluation.dimension * math.log(2)))
        elif bits > _explosion_threshold(baseline):
            start = trainer.likelihood(trainer.start(self._batches))
            baseline = max(baseline, self._evaluate(start, images).bits_per_dimension)
        threshold = _explosion_threshold(baseline)
        if bits > threshold:
            unit, scale = (
                ("bits/dim", 1.0) if self._of_images else ("nats/dim", math.log(2))
            )
            raise DivergedError(
                f"the exact validation likelihood after epoch {progress.epoch} has exploded: "
                f"{bits * scale:.4g} {unit} (a run that learns has at most {threshold * scale:.4g})"
            )

    def warm_up(self, images: Array) -> None:
        """Evaluate some images with the parameters as drawn, if that compiles something; on a GPU
        also the monitors."""
        trainer = self._trainer
        if trainer.ops.device.compiles:
            images = images[: self._config.batch_size]
            likelihood = trainer.likelihood(trainer.initial_parameters())
            self._evaluate(likelihood, images, self.monitors.watch(len(images)))
            if trainer.ops.asynchronous:
                self.monitors.figures()

    def describe(self, record: Record) -> str:
        """A record in a line of at most 100 columns; the best one has a star."""
        places = decimals(self._of_images)
        bits = f" = {record.bits_per_dimension:.4f} bits/dim" if self._of_images else ""
        error = f"  error {record.reconstruction:.1e}" if record.reconstruction else ""
        unit = "img" if self._of_images else "row"
        star = "*" if record.best else " "
        return (
            f"epoch {record.epoch:4d}/{self._config.epochs} "
            f"exact validation NLL {record.nll:8.{places}f} nats{bits} {star}"
            f"{error}  {record.figures['samples_per_second']:.0f} {unit}/s"
        )

    def test(self, p: Array, images: Array) -> Evaluation:
        """The evaluation of test images at parameters p, a flat host array."""
        trainer = self._trainer
        evaluation = self._evaluate(trainer.likelihood(trainer.ops.asarray(p)), images)
        if not math.isfinite(evaluation.nll):
            raise DivergedError(
                "the exact test likelihood at the best epoch is not finite"
            )
        return evaluation

    def _evaluate(
        self, likelihood: Likelihood, images: Array, watch: Monitors | None = None
    ) -> Evaluation:
        # Users low on memory make batches smaller: evaluation, in double precision but without
        # gradients, follows them.
        at_once = 10 * self._config.batch_size
        return likelihood.evaluate(images, EVALUATION_SEED, at_once, watch)
