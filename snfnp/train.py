"""Training: the loop over epochs, evaluation, checkpoints. The step itself is in `trainer.py`."""

from __future__ import annotations

import math
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm

from snfnp.batches import Batches
from snfnp.checkpoint import load_checkpoint, save_checkpoint
from snfnp.config import TrainConfig
from snfnp.data import Dataset
from snfnp.errors import DivergedError, UsageError
from snfnp.likelihood import Likelihood
from snfnp.runs import RunFolder, describe_run
from snfnp.trainer import Trainer

# The noise of every evaluation during and after training, so that epochs and runs compare.
EVALUATION_SEED = 0
_SHOW_EVERY = 0.25  # seconds between updates of the progress bar's figures


def train(
    config: TrainConfig, dataset: Dataset, ops, run: RunFolder, resume: bool = False, say=print
) -> dict:
    """Train to the configured number of epochs and return the summary that it also writes.

    Evaluates exactly on the validation images every `eval_every` epochs and after the last one,
    keeps `best.safetensors` by that figure, and at the end reports the test images at it. An
    interruption (Ctrl-C or a termination signal) writes `last.safetensors` and raises
    KeyboardInterrupt.
    """
    flow = config.build_flow(dataset.train.shape[1:])
    batches = Batches(ops, dataset.train, config, flow.shape)
    trainer = Trainer(ops, flow, config, batches.steps_per_epoch, say)
    progress = _Progress(run, config, trainer, batches, say)

    if resume:
        progress.resume()
    else:
        trainer.initialise_from_data(batches(0))
        run.write_config(describe_run(config, flow, trainer.layout, dataset, ops))
        progress.save_last()  # from here on there is always something to go back to
    say(_introduction(config, flow, trainer, dataset, ops, run))

    total = config.epochs * batches.steps_per_epoch
    with (
        tqdm(
            total=total * config.batch_size,
            initial=trainer.step * config.batch_size,
            unit="img",
            unit_scale=True,
            disable=None,  # no bar where the output is not a terminal
            dynamic_ncols=True,
        ) as bar,
        _stop_between_steps() as stop,
    ):
        progress.start()
        while trainer.step < total:
            trainer.training_step(batches(trainer.step))
            bar.update(config.batch_size)
            if progress.due():
                bar.set_postfix_str(progress.figures())
            if trainer.step % batches.steps_per_epoch == 0:
                done = trainer.step // batches.steps_per_epoch
                if done % config.eval_every == 0 or trainer.step == total:
                    bar.clear()
                    progress.evaluate(done, dataset.validation)
            if stop.requested:
                progress.save_last()
                say(
                    f"interrupted at step {trainer.step}: everything is in {run.last}; go on with "
                    f"--resume --out {run.path}"
                )
                raise KeyboardInterrupt
    return progress.finish(dataset)


class _Progress:
    """Evaluations, best epoch, checkpoints: what a run remembers between its steps."""

    def __init__(self, run: RunFolder, config: TrainConfig, trainer: Trainer, batches, say):
        self.run, self.config, self.trainer, self.say = run, config, trainer, say
        self._batches = batches
        self.seconds = 0.0  # of training steps alone, evaluations not counted
        self.best: dict | None = None
        self._started = None  # since when time is spent on steps; None: it is not
        self._shown = 0.0
        self._since = (0, 0.0)  # step and seconds at the last evaluation

    def start(self) -> None:
        """From now on time is spent on steps."""
        self._started = self._shown = time.perf_counter()
        self._since = (self.trainer.step, self.seconds)

    def due(self) -> bool:
        """Whether it is time to look at the figures: a look waits for the device."""
        return time.perf_counter() - self._shown >= _SHOW_EVERY

    def figures(self) -> str:
        """What a progress bar shows. Raises DivergedError."""
        self._settle()
        self._shown = time.perf_counter()
        metrics = self.trainer.metrics()
        return (
            f"surrogate {metrics.surrogate:.1f}, recon {metrics.reconstruction:.2e}, "
            f"|grad| {metrics.gradient_norm:.1f}"
        )

    def _settle(self) -> None:
        """Wait for all steps, count their time, and raise DivergedError where one went wrong."""
        self.trainer.check(self._batches)
        if self._started is not None:
            now = time.perf_counter()
            self.seconds += now - self._started
            self._started = now

    def resume(self) -> None:
        checkpoint = load_checkpoint(self.run.last, self.trainer.layout)
        self.trainer.restore(checkpoint)
        self.seconds, self.best = checkpoint.record["seconds"], checkpoint.record["best"]
        self.run.read_metrics(up_to_step=checkpoint.step)
        total = self.config.epochs * self.trainer.steps_per_epoch
        if self.trainer.step > total:
            raise UsageError(
                f"{self.run.path} is at step {self.trainer.step}, past --epochs "
                f"{self.config.epochs} ({total} steps): give more epochs"
            )

    def save_last(self) -> None:
        self._settle()
        save_checkpoint(self.run.last, self.trainer.checkpoint(self._record()))

    def evaluate(self, epoch: int, validation) -> None:
        """Exact validation likelihood of the present parameters: a line, a record, checkpoints."""
        self._settle()
        self._started = None
        evaluation = self.trainer.likelihood().evaluate(
            validation, EVALUATION_SEED, at_once=self._at_once
        )
        if not math.isfinite(evaluation.nll):
            raise DivergedError(
                f"the exact validation likelihood after epoch {epoch} is not finite; the last "
                "checkpoint is kept: try a smaller --lr, a larger --lambda, or --clip-norm"
            )
        metrics, (step, seconds) = self.trainer.averages(), self._since
        speed = (self.trainer.step - step) * self.config.batch_size / (self.seconds - seconds)
        record = {
            "epoch": epoch,
            "step": self.trainer.step,
            "seconds": round(self.seconds, 3),
            "validation_nll_nats": evaluation.nll,
            "validation_bits_per_dimension": evaluation.bits_per_dimension,
            "surrogate": metrics.surrogate,
            "reconstruction": metrics.reconstruction,
            "gradient_norm": metrics.gradient_norm,
            "samples_per_second": round(speed, 1),
            "lam": self.trainer.lam,
        }
        self.run.append_metrics(record)
        is_best = self.best is None or evaluation.nll < self.best["validation_nll_nats"]
        if is_best:
            self.best = record
            save_checkpoint(self.run.best, self.trainer.checkpoint(self._record()))
        self.save_last()
        self.say(
            f"epoch {epoch:4d}/{self.config.epochs}  "
            f"exact validation NLL {evaluation.nll:8.2f} nats "
            f"= {evaluation.bits_per_dimension:.4f} bits/dim{' *' if is_best else '  '} | "
            f"surrogate {metrics.surrogate:.1f}, reconstruction {metrics.reconstruction:.2e}, "
            f"|grad| {metrics.gradient_norm:.1f}, {speed:.0f} samples/s"
        )
        self.start()

    def finish(self, dataset: Dataset) -> dict:
        """The test likelihood at the best validation epoch, and the summary."""
        best = load_checkpoint(self.run.best, self.trainer.layout)
        flat = self.trainer.ops.asarray(best.p)
        likelihood = Likelihood(self.trainer.ops, self.trainer.flow, self.trainer.layout, flat)
        test = likelihood.evaluate(dataset.test, EVALUATION_SEED, at_once=self._at_once)
        summary = {
            "best_epoch": self.best["epoch"],
            "validation_nll_nats": self.best["validation_nll_nats"],
            "test_nll_nats": test.nll,
            "test_bits_per_dimension": test.bits_per_dimension,
            "reconstruction": self.best["reconstruction"],
            "training_seconds": round(self.seconds, 1),
            "milliseconds_per_step": round(1e3 * self.seconds / self.trainer.step, 2),
        }
        self.run.write_summary(summary)
        self.say(
            f"best epoch {summary['best_epoch']}: exact validation NLL "
            f"{summary['validation_nll_nats']:.2f} nats, exact test NLL {test.nll:.2f} nats = "
            f"{test.bits_per_dimension:.4f} bits/dim ({test.images} test images, dequantisation "
            f"seed {EVALUATION_SEED})\n"
            f"{self.trainer.step} steps in {self.seconds:.1f} s, "
            f"{summary['milliseconds_per_step']:.2f} ms per step"
        )
        return summary

    @property
    def _at_once(self) -> int:
        """Images that an evaluation takes at once: where memory is short, people make batches
        smaller, and evaluation, in double precision but without gradients, is to follow."""
        return 10 * self.config.batch_size

    def _record(self) -> dict:
        return {"seconds": self.seconds, "best": self.best, "config": self.config.as_dict()}


@dataclass
class _Stop:
    requested: bool = False


@contextmanager
def _stop_between_steps():
    """Ctrl-C and termination wait for the step in progress: an update is never half done.

    A second Ctrl-C acts at once.
    """
    stop = _Stop()

    def request(signum, frame):
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        print("\nstopping after this step …", file=sys.stderr)

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, request) for number in signals]
    try:
        yield stop
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _introduction(config, flow, trainer, dataset, ops, run) -> str:
    how = config.gradient
    if config.gradient == "self-normalizing":
        how += f" ({config.objective}, λ = {trainer.lam:g})"
    elif config.gradient == "relative":
        how += f" (bias: {config.relative_bias})"
    return (
        f"{config.model_name}: {trainer.layout.count:,} parameters in {len(flow.layers)} layers, "
        f"{how} gradient, {ops.name} backend, {config.dtype}\n"
        f"{len(dataset.train):,} training images from {dataset.source}; {config.epochs} epochs of "
        f"{trainer.steps_per_epoch} steps, batch {config.batch_size}, lr {config.lr:g} after "
        f"{config.warmup_epochs:g} warm-up epochs, seed {config.seed}\n"
        f"run folder {run.path}" + (f"\n({ops.start_note})" if ops.start_note else "")
    )
