"""The loop of a run in a folder. A step: `trainer.py`."""

import math
import shlex
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from snfnp import threads
from snfnp.data import Dataset
from snfnp.errors import (
    CheckpointError,
    DivergedError,
    SnfnpError,
    UsageError,
    within_memory,
)
from snfnp.files import Json, write_json
from snfnp.flow import Flow
from snfnp.ops import Ops
from snfnp.processes.terminal import Signals, robust_output
from snfnp.step.batches import Batches
from snfnp.step.trainer import Trainer, take_steps
from snfnp.step.update import Optimiser
from snfnp.training.checkpointer import Checkpointer
from snfnp.training.evaluation import EVALUATION_SEED, Evaluator
from snfnp.training.options import TrainConfig
from snfnp.training.progress import (
    Callbacks,
    Progress,
    ProgressLine,
    Record,
    Report,
    compilations_shown,
    decimals,
    gradient_of,
    silent,
)
from snfnp.training.runs.checkpoint import Checkpoint, load_checkpoint
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import describe_run

# times the best epoch, from which on a worse likelihood is reported
_OVERFITTING = 1.25
# what the lines of evaluations call an error
_ERROR = "; error: Σ ‖g(f(h)) − h‖² of the learned inverses, per sample"


@dataclass(frozen=True)
class Session:
    """A run that is ready to be trained, in a locked folder (`snfnp.training.session`).

    config: resolved; rollback: whether it is resumed from the best checkpoint instead of the last,
    or None for a new run; notes: lines to report.
    """

    config: TrainConfig
    dataset: Dataset
    ops: Ops
    flow: Flow
    folder: RunFolder
    rollback: bool | None
    notes: list[str]


class RunLoop:
    """The loop of a run in a folder: steps, and evaluations between them.

    progress: how far the run is; report: gets every line.
    """

    def __init__(
        self,
        session: Session,
        report: Report,
        optimiser: Optimiser | None,
        callbacks: tuple,
    ):
        config = session.config
        ops = session.ops
        flow = session.flow
        self.config = config
        self.dataset = session.dataset
        self.folder = session.folder
        self.signals = Signals()
        self.report = report
        self.callbacks = callbacks
        self.batches = Batches(ops, session.dataset.train, config, flow.shape)
        epoch = self.batches.steps_per_epoch
        self.trainer = Trainer(ops, flow, config, epoch, report, optimiser)
        self.progress = Progress(config.epochs * epoch, epoch)
        self.every = config.eval_every * epoch  # steps between evaluations
        self.evaluator = Evaluator(self.trainer, self.batches, config)
        self.checkpoints = Checkpointer(session.folder, self.trainer, config)
        self.latest: Record | None = None

    def warm_up(self) -> None:
        """Compile the kernels and record the graph before timing starts, by one step and one
        evaluation whose results are discarded."""
        if self.progress.step < self.progress.steps:
            with suppress(SnfnpError):  # training will raise it again
                self.trainer.warm_up(self.batches, self.trainer.ops.device.prepare)
                self.evaluator.warm_up(self.dataset.validation)

    def run(self) -> None:
        """Train to the last step; if training ends early, report why."""
        self.line = ProgressLine(self.trainer, self.progress, self.report)
        with closing(self.line.bar), self.signals.defer_interrupts():
            ended = self._train()
        epoch = self.progress.epoch
        if ended:
            self.report(f"a callback ended training after epoch {epoch}")
        elif self.progress.step < self.progress.steps:
            self.report(
                f"stopped after epoch {epoch}: no improvement in {self.config.patience} "
                "evaluations (`patience`)"
            )

    def _train(self) -> bool:
        """Take the remaining steps. True if a callback ended them."""
        progress = self.progress
        progress.timed_from = progress.step, progress.seconds
        if progress.step == progress.steps and self.trainer.log.steps:
            return self.evaluate()  # `epochs` is now those that were done
        ends = False
        patience = self.config.patience or math.inf
        for step in take_steps(
            [(self.trainer, self.batches)],
            progress.steps,
            lambda: progress.worse < patience,
            self._timed,
        ):
            progress.step = step
            self.line.bar.update(self.config.batch_size)
            if self.line.due():
                self.synchronise()
                ends = self.tell(self.line.show(progress)) or ends
            due = step == progress.steps or step % self.every == 0
            if due or ends and step % progress.steps_per_epoch == 0:
                self.synchronise()
                if self.evaluate() or ends:
                    return True
                progress.timed_from = step, progress.seconds
            self.save_requested(evaluated=due)
        return False

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.progress.seconds += time.perf_counter() - start

    def synchronise(self) -> None:
        """Wait for all steps so far. Raises DivergedError if one failed."""
        with self._timed():
            self.trainer.check(self.batches)

    def save(self, *paths: Path) -> None:
        """Write a checkpoint. Raises DivergedError if a step failed, which is not to be saved."""
        self.synchronise()
        self.checkpoints.save(self.progress, *paths)

    def evaluate(self) -> bool:
        """Evaluate, save, and report. True if a callback asks for the end."""
        self.line.clear()
        progress = self.progress
        figures = self.evaluator.validate(self.dataset, progress)
        record: Any = Record.of(figures, progress.steps)
        progress.worse += 1
        paths = [self.folder.last]
        if progress.best is None or record.nll < progress.best.nll:
            paths.append(self.folder.best)
            record = replace(record, best=True)
            progress.best = record
            progress.worse = 0
        self.folder.append_metrics(figures)
        self.latest = record
        self.save(*paths)
        self.report(self.evaluator.describe(record))
        for line in self.evaluator.monitors.warnings(figures):
            self.report(line)
        return self.tell(record)

    def tell(self, record: Record) -> bool:
        """Give a record to the callbacks. True if one returned True. Exceptions propagate, after a
        checkpoint."""
        if not self.callbacks:
            return False
        # it costs determinants, which callbacks alone need
        if record.nll is not None:
            likelihood = self.trainer.likelihood()
            record = replace(
                record, likelihood=likelihood, figures=dict(record.figures)
            )
        try:
            results = [callback(record) for callback in self.callbacks]
        except BaseException:
            self.save(self.folder.last)
            raise
        return any(isinstance(each, (bool, np.bool_)) and each for each in results)

    def save_requested(self, evaluated: bool) -> None:
        """After a step and its evaluation, save what is due or asked for."""
        last = self.folder.last
        stop = self.signals.stop  # once, since a signal may come at any time
        if not evaluated and (stop or self.checkpoints.due()):
            self.save(last)
        if stop:
            out = shlex.quote(str(self.folder.path))
            self.report(
                f"interrupted at step {self.progress.step}: everything is in {last}; go on with "
                f"`resume` `out={out}` (snfnp.resume)"
            )
            raise KeyboardInterrupt

    def _load_best(self, step: int) -> Checkpoint:
        """The checkpoint of the best evaluation, which was at this step."""
        run = self.folder
        saved = load_checkpoint(run.best, self.trainer.layout, run.open(run.path)[1])
        if saved.step != step:
            raise CheckpointError(
                f"{run.best} is of step {saved.step}, but the best evaluation was at step {step}: "
                "restore it, or start a new run"
            )
        return saved

    def summarise(self) -> Json:
        """The test likelihood at the best validation epoch, reported and in summary.json."""
        dataset = self.dataset
        seconds = self.progress.seconds
        best: Any = self.progress.best
        test = self.evaluator.test(self._load_best(best.step).p, dataset.test)
        summary = {
            "best_epoch": best.epoch,
            "validation_nll_nats": best.nll,
            "test_nll_nats": test.nll,
        }
        places = decimals(dataset.of_images)
        bits = noise = ""
        if dataset.of_images:  # bits per dimension, and noise, are of bytes alone
            summary["test_bits_per_dimension"] = test.bits_per_dimension
            bits = f" = {test.bits_per_dimension:.4f} bits/dim"
            noise = f", dequantisation seed {EVALUATION_SEED}"
        summary["reconstruction"] = best.reconstruction
        summary["training_seconds"] = round(seconds, 1)
        summary["milliseconds_per_step"] = round(1e3 * seconds / self.progress.step, 2)
        write_json(self.folder.summary_file, summary)
        self.report(
            f"best epoch {best.epoch}: exact validation NLL {best.nll:.{places}f} nats, "
            f"exact test NLL {test.nll:.{places}f} nats{bits}\n"
            f"({len(dataset.test):,} test {dataset.noun}{noise}; {self.progress.step:,} steps in "
            f"{seconds:.1f} s, {summary['milliseconds_per_step']:.2f} ms per step)"
        )
        if dataset.true_nll is not None:
            above = test.nll - dataset.true_nll
            self.report(
                f"the density that these test {dataset.noun} were drawn from has "
                f"{dataset.true_nll:.4f} nats: the flow is {above:.4f} above it"
            )
        latest: Any = self.latest
        if (
            latest
            and latest.epoch > _OVERFITTING * best.epoch
            and latest.nll > best.nll
            and not dataset.of_images
        ):
            self.report(
                f"overfitting since epoch {best.epoch} ({best.nll:.{places}f} → "
                f"{latest.nll:.{places}f} nats): the best checkpoint is kept"
            )
        return summary


def train_session(
    session: Session,
    report: Report | None,
    optimiser: Optimiser | None = None,
    callbacks: Callbacks = (),
) -> Json:
    """Train a run to its end; see `snfnp.train`."""
    config = session.config
    ops = session.ops
    callbacks = () if callbacks is None else callbacks
    if not (
        isinstance(callbacks, Iterable)
        and all(map(callable, callbacks := tuple(callbacks)))
    ):
        raise UsageError(f"callbacks is {callbacks!r}: give a list of functions")
    report = report or silent
    if not callable(report):
        raise UsageError(f"report is {report!r}: give a function of a line, or None")
    if isinstance(optimiser, type):
        raise UsageError(f"optimiser is a class: give {optimiser.__name__}()")
    also = "" if session.rollback is None else " in a new run"
    if config.preset.has_recomputable_layers and not config.recompute:
        also += ", or `recompute`"
    with (
        # divergence is detected at every step and reported once
        np.errstate(all="ignore"),
        robust_output(),
        threads.limited(config.threads),
        within_memory(ops, "batch_size", config.batch_size, also),
    ):
        for note in session.notes:
            report(note)
        loop = RunLoop(session, report, optimiser, callbacks)
        checkpoints = loop.checkpoints
        with compilations_shown(ops, report):
            if session.rollback is not None:
                checkpoints.resume(
                    loop.progress, loop.batches, session.rollback, report
                )
            report(_introduction(session, loop.trainer))
            loop.warm_up()
            if session.rollback is None:
                known = replace(config, threads=ops.device.threads)
                description = describe_run(known, session.flow, session.dataset, ops)
                checkpoints.start(loop.progress, loop.batches, description)
        try:
            loop.run()
        except DivergedError as error:
            step = error.step or loop.trainer.step
            raise DivergedError(f"{error}; {checkpoints.advice()}", step) from None
        return loop.summarise()


def _introduction(session: Session, trainer: Trainer) -> str:
    """Lines on a run: the model, its gradient, the data, the optimiser, the folder, and how to read
    the lines of evaluations."""
    config = session.config
    dataset = session.dataset
    decay = "" if config.lr_schedule == "constant" else f", then {config.lr_schedule}"
    lines = [
        f"{config.model_name}: {trainer.layout.count:,} parameters in "
        f"{len(trainer.flow.layers)} layers, {config.dtype}, {trainer.ops.name} backend",
        gradient_of(config, trainer.flow),
        f"{len(dataset.train):,} training {dataset.noun} from {dataset.source}",
        f"{config.epochs} epoch{'s' if config.epochs > 1 else ''} of {trainer.steps_per_epoch} "
        f"step{'s' if trainer.steps_per_epoch > 1 else ''}, batch {config.batch_size}, "
        f"lr {config.lr:g} after {config.warmup_epochs:g} warm-up epochs{decay}, "
        f"seed {config.seed}",
    ]
    if config.warmup_epochs >= config.epochs:
        rate = config.lr * config.epochs / config.warmup_epochs
        lines.append(
            f"it ends within its warm-up, at a rate of {rate:g}: give more `epochs`, or fewer "
            "`warmup_epochs`"
        )
    error = _ERROR if trainer.flow.learned_inverses() else ""
    lines += [
        f"run folder {session.folder.path}",
        f"in the lines below: * the best so far{error}",
    ]
    return "\n".join(lines)
