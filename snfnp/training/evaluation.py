"""Exact evaluations: of the validation images as a run goes on, of the test images at its end."""

import math

from snfnp import registry
from snfnp.errors import DivergedError
from snfnp.likelihood import Evaluation, Likelihood
from snfnp.training.options import TrainConfig
from snfnp.training.progress import Clock
from snfnp.training.trainer import Trainer

# The noise of every evaluation during and after training, so that epochs and runs compare.
EVALUATION_SEED = 0
_TOLERATED = 2.0  # times the bits that count as the worst of a run that learns


class Evaluator:
    """Evaluates the trainer's parameters, and keeps the best epoch so far.

    best: that epoch's record (see `validate`), or None; warnings(record): the lines that the
    monitors have to say about one.
    """

    def __init__(self, config: TrainConfig, trainer: Trainer, clock: Clock):
        self.best: dict | None = None
        self._config, self._trainer, self._clock = config, trainer, clock
        self._monitors = registry.find("monitors")(trainer, clock.whole_batch)
        self.warnings = self._monitors.warnings

    def validate(self, epoch: int, images) -> dict:
        """The record of an epoch: exact validation likelihood, and its steps' average figures.

        Raises DivergedError if any of it is not finite, or the likelihood has exploded. The
        ranks share the images; the record is rank 0's, which alone looks at the layers.
        """
        likelihood = self._trainer.likelihood()
        evaluation = self._evaluate(likelihood, images, self._monitors.watch(len(images)))
        metrics, speed = self._trainer.averages(), self._clock.steps_per_second
        record = {
            "epoch": epoch,
            "step": self._trainer.step,
            "seconds": round(self._clock.seconds, 3),
            "validation_nll_nats": evaluation.nll,
            "validation_bits_per_dimension": evaluation.bits_per_dimension,
            "surrogate": metrics.surrogate,
            "reconstruction": metrics.reconstruction,
            "gradient_norm": metrics.gradient_norm,
            "samples_per_second": round(speed * self._config.batch_size, 1),
            **self._trainer.lam_figures(),
        }
        for name, value in record.items():
            if not math.isfinite(value):
                figure = name.removesuffix("_nats").replace("_", " ").replace("nll", "likelihood")
                raise DivergedError(f"the exact {figure} after epoch {epoch} is not finite")
        world = self._trainer.world
        if world.rank == 0:
            record |= self._monitors.figures(likelihood)
        record = world.broadcast(record)
        self._refuse_explosion(record, images)
        if self.best is None or evaluation.nll < self.best["validation_nll_nats"]:
            self.best = record
        return record

    def _refuse_explosion(self, record: dict, images) -> None:
        """Raises DivergedError for a likelihood that is finite, but no model's that learns.

        The limit is twice the 8 bits that pixels of 256 values take without any model, or twice the
        best so far (the start's, if nothing was evaluated yet), whichever is more.
        """
        key = "validation_bits_per_dimension"
        bits, limit = record[key], _TOLERATED * math.log2(self._trainer.flow.preprocess.levels)
        if self.best is not None:
            limit = max(limit, _TOLERATED * self.best[key])
        elif bits > limit:
            start = self._evaluate(self._trainer.start(self._clock.whole_batch(0)), images)
            limit = max(limit, _TOLERATED * start.bits_per_dimension)
        if bits > limit:
            raise DivergedError(
                f"the exact validation likelihood after epoch {record['epoch']} has exploded: "
                f"{bits:.4g} bits/dim (a run that learns has at most {limit:.4g})"
            )

    def rehearse(self, images) -> None:
        """Evaluate some images with the first parameters, where that compiles something."""
        trainer = self._trainer
        if trainer.ops.device.compiles:
            likelihood = Likelihood(trainer.ops, trainer.flow, trainer.layout, trainer.initial())
            self._evaluate(likelihood, images[: self._config.batch_size])

    def describe(self, record: dict) -> str:
        """A record in a line; the best one has a star."""
        star = "*" if record is self.best else " "
        return (
            f"epoch {record['epoch']:4d}/{self._config.epochs}  "
            f"exact validation NLL {record['validation_nll_nats']:8.2f} nats "
            f"= {record['validation_bits_per_dimension']:.4f} bits/dim {star} | "
            f"surrogate {record['surrogate']:.1f}, reconstruction {record['reconstruction']:.2e}, "
            f"|grad| {record['gradient_norm']:.1f}, {record['samples_per_second']:.0f} samples/s"
        )

    def test(self, p, images) -> Evaluation:
        """The evaluation of test images at parameters p, a flat host array."""
        ops, flow, layout = self._trainer.ops, self._trainer.flow, self._trainer.layout
        evaluation = self._evaluate(Likelihood(ops, flow, layout, ops.asarray(p)), images)
        if not math.isfinite(evaluation.nll):
            raise DivergedError("the exact test likelihood at the best epoch is not finite")
        return evaluation

    def _evaluate(self, likelihood: Likelihood, images, watch=None) -> Evaluation:
        # People whose memory is short make batches smaller, and evaluation, in double precision
        # but without gradients, is to follow.
        at_once, world = 10 * self._config.batch_size, self._trainer.world
        return likelihood.evaluate(
            images, EVALUATION_SEED, at_once=at_once, watch=watch, world=world
        )
