"""Training: one step, the loop over epochs, evaluation, checkpoints.

What is logged while training is a surrogate: log p_Z(z) + the data-dependent log-determinants
− λ times the reconstruction error, averaged over the batch. It leaves out every log|det W|, which
self-normalizing training never computes. Only `snfnp.likelihood` computes a likelihood.
"""

from __future__ import annotations

import math
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from snfnp.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from snfnp.config import TrainConfig
from snfnp.data import Dataset, augment
from snfnp.errors import DivergedError, UsageError
from snfnp.flow import Flow
from snfnp.likelihood import AUGMENTATION, TRAINING_NOISE, Likelihood
from snfnp.ops import RandomKey
from snfnp.optim import Adam, warmed_up
from snfnp.parameters import Layout
from snfnp.rules import Reconstruction
from snfnp.runs import RunFolder, describe_run, epoch_order

# The noise of every evaluation during and after training, so that epochs and runs compare.
EVALUATION_SEED = 0
_SHOW_EVERY = 10  # steps between updates of the progress bar's figures


@dataclass(frozen=True)
class StepMetrics:
    """What one step saw (before its update), averaged over the batch.

    surrogate: nats, no likelihood (see the module's docstring); reconstruction: Σ_k of Eq. 3;
    gradient_norm: before clipping.
    """

    surrogate: float
    reconstruction: float
    gradient_norm: float


class Trainer:
    """The state of a training run on one device: buffers, step counter, λ."""

    def __init__(self, ops, flow: Flow, config: TrainConfig, steps_per_epoch: int):
        self.ops, self.flow, self.config = ops, flow, config
        self.steps_per_epoch = steps_per_epoch
        self.adam = Adam()
        self.step = 0
        self.lam = config.lam
        initial = flow.init(config.seed)
        self.layout = Layout.of(initial)
        self.p = ops.asarray(self.layout.pack(initial, config.dtype))
        self.g, self.m, self.v = (ops.xp.zeros_like(self.p) for _ in range(3))
        self._view_buffers()

    def _view_buffers(self) -> None:
        self.params, self.grads = self.layout.views(self.p), self.layout.views(self.g)

    def initialise_from_data(self, images) -> None:
        """Let the first batch, device images (N, *shape), decide what depends on data (actnorm).

        Once, before the first step, with that step's noise; afterwards these are parameters like
        all others. Does nothing for a flow without such layers.
        """
        if self.flow.initialises_from_data:
            key = RandomKey(self.config.seed, TRAINING_NOISE, 0)
            x, _ = self.flow.preprocess.forward(self.ops, images, key, self.p.dtype)
            self.flow.init_from_data(self.ops, self.params, x)

    def training_step(self, images) -> StepMetrics:
        """Climb Eq. 3 once on device images (N, *shape), uint8.

        Raises DivergedError, naming the layer, where anything is not finite; the parameters are
        then no longer to be used.
        """
        ops, flow, batch = self.ops, self.flow, len(images)
        key = RandomKey(self.config.seed, TRAINING_NOISE, self.step)
        x, ldj = flow.preprocess.forward(ops, images, key, self.p.dtype)
        z, flow_ldj, caches = flow.forward(ops, self.params, x, self.config.recompute)
        log_density = float((ops.gaussian_log_density(z) + ldj + flow_ldj).mean())
        if not math.isfinite(log_density):
            layer = flow.first_nonfinite(ops, self.params, x) or "base density"
            raise self._diverged(f"the output of layer {layer}")

        recon = Reconstruction(self.lam)
        dz = z * (-1 / batch)  # δ_z = ∂ log N(z; 0, I)/∂z, averaged over the batch
        dldj = ops.xp.full(batch, 1 / batch, self.p.dtype)
        flow.backward(ops, self.params, caches, dz, dldj, self.grads, recon)
        config = self.config
        lr = warmed_up(config.lr, self.step, self.steps_per_epoch, config.warmup_epochs)
        norm = self.adam.update(
            ops, self.p, self.g, self.m, self.v, lr, self.step + 1, config.clip_norm
        )
        if not math.isfinite(norm):
            where = flow.first_nonfinite_gradient(ops, self.grads) or "all layers together"
            raise self._diverged(f"the gradient of {where}")
        self.step += 1
        reconstruction = float(recon.total())
        return StepMetrics(log_density - self.lam * reconstruction, reconstruction, norm)

    def likelihood(self) -> Likelihood:
        """An exact, immutable snapshot of the present parameters."""
        return Likelihood(self.ops, self.flow, self.layout, self.p)

    def checkpoint(self, record: dict) -> Checkpoint:
        """The state on the host."""
        p, m, v = (self.ops.to_host(a) for a in (self.p, self.m, self.v))
        return Checkpoint(self.layout, p, m, v, self.step, self.lam, self.config.seed, record)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint of the same model."""
        dtype = self.p.dtype
        self.p, self.m, self.v = (
            self.ops.asarray(a, dtype) for a in (checkpoint.p, checkpoint.m, checkpoint.v)
        )
        self.step, self.lam = checkpoint.step, checkpoint.lam
        self._view_buffers()

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"training diverged at step {self.step + 1}: {what} is not finite; the last checkpoint "
            "is kept: try a smaller --lr, a larger --lambda, or --clip-norm"
        )


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
    steps_per_epoch = config.steps_per_epoch(len(dataset.train))
    trainer = Trainer(ops, flow, config, steps_per_epoch)
    progress = _Progress(run, config, trainer, say)

    def batch(step: int, order):
        """Device images (N, *shape) of a step; the host's array may be larger than its memory."""
        first = step % steps_per_epoch * config.batch_size
        images = dataset.train[order[first : first + config.batch_size]]
        if config.augment:
            images = augment(images, RandomKey(config.seed, AUGMENTATION, step))
        return ops.asarray(images.reshape(-1, *flow.shape))

    if resume:
        progress.resume()
    else:
        trainer.initialise_from_data(batch(0, epoch_order(len(dataset.train), 0, config)))
        run.write_config(describe_run(config, flow, trainer.layout, dataset, ops))
        progress.save_last()  # from here on there is always something to go back to
    say(_introduction(config, flow, trainer, dataset, ops, run))

    total = config.epochs * steps_per_epoch
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
        order, order_epoch = None, None
        while trainer.step < total:
            epoch = trainer.step // steps_per_epoch
            if epoch != order_epoch:
                order, order_epoch = epoch_order(len(dataset.train), epoch, config), epoch
            started = time.perf_counter()
            metrics = trainer.training_step(batch(trainer.step, order))
            progress.count(metrics, time.perf_counter() - started)
            bar.update(config.batch_size)
            if trainer.step % _SHOW_EVERY == 0:
                bar.set_postfix_str(
                    f"surrogate {metrics.surrogate:.1f}, recon {metrics.reconstruction:.2e}, "
                    f"|grad| {metrics.gradient_norm:.1f}"
                )
            if trainer.step % steps_per_epoch == 0:
                done = trainer.step // steps_per_epoch
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

    def __init__(self, run: RunFolder, config: TrainConfig, trainer: Trainer, say):
        self.run, self.config, self.trainer, self.say = run, config, trainer, say
        self.seconds = 0.0  # of training steps alone, evaluations not counted
        self.best: dict | None = None
        self._recent: list[StepMetrics] = []
        self._recent_seconds = 0.0

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

    def count(self, metrics: StepMetrics, seconds: float) -> None:
        self._recent.append(metrics)
        self.seconds += seconds
        self._recent_seconds += seconds

    def save_last(self) -> None:
        save_checkpoint(self.run.last, self.trainer.checkpoint(self._record()))

    def evaluate(self, epoch: int, validation) -> None:
        """Exact validation likelihood of the present parameters: a line, a record, checkpoints."""
        evaluation = self.trainer.likelihood().evaluate(validation, EVALUATION_SEED)
        if not math.isfinite(evaluation.nll):
            raise DivergedError(
                f"the exact validation likelihood after epoch {epoch} is not finite; the last "
                "checkpoint is kept: try a smaller --lr, a larger --lambda, or --clip-norm"
            )
        surrogate, reconstruction, norm = np.mean(
            [(m.surrogate, m.reconstruction, m.gradient_norm) for m in self._recent], axis=0
        )
        speed = len(self._recent) * self.config.batch_size / self._recent_seconds
        record = {
            "epoch": epoch,
            "step": self.trainer.step,
            "seconds": round(self.seconds, 3),
            "validation_nll_nats": evaluation.nll,
            "validation_bits_per_dimension": evaluation.bits_per_dimension,
            "surrogate": surrogate,
            "reconstruction": reconstruction,
            "gradient_norm": norm,
            "samples_per_second": round(speed, 1),
            "lam": self.trainer.lam,
        }
        self.run.append_metrics(record)
        self._recent, self._recent_seconds = [], 0.0
        is_best = self.best is None or evaluation.nll < self.best["validation_nll_nats"]
        if is_best:
            self.best = record
            save_checkpoint(self.run.best, self.trainer.checkpoint(self._record()))
        self.save_last()
        self.say(
            f"epoch {epoch:4d}/{self.config.epochs}  "
            f"exact validation NLL {evaluation.nll:8.2f} nats "
            f"= {evaluation.bits_per_dimension:.4f} bits/dim{' *' if is_best else '  '} | "
            f"surrogate {surrogate:.1f}, reconstruction {reconstruction:.2e}, |grad| {norm:.1f}, "
            f"{speed:.0f} samples/s"
        )

    def finish(self, dataset: Dataset) -> dict:
        """The test likelihood at the best validation epoch, and the summary."""
        best = load_checkpoint(self.run.best, self.trainer.layout)
        flat = self.trainer.ops.asarray(best.p)
        likelihood = Likelihood(self.trainer.ops, self.trainer.flow, self.trainer.layout, flat)
        test = likelihood.evaluate(dataset.test, EVALUATION_SEED)
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
