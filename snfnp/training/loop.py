"""The loop of a run in a folder. A step: `trainer.py`."""

import math
import shlex
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from snfnp import threads
from snfnp.data import Dataset
from snfnp.errors import CheckpointError, DivergedError, SnfnpError, UsageError, within_memory
from snfnp.files import write_json
from snfnp.flow import Flow
from snfnp.ops import Communicator, Ops
from snfnp.processes.terminal import Signals, robust_output
from snfnp.training.batches import Batches
from snfnp.training.checkpointer import Checkpointer
from snfnp.training.evaluation import EVALUATION_SEED, Evaluator
from snfnp.training.options import TrainConfig
from snfnp.training.progress import Callbacks, ProgressLine, Record, compilations_shown, silent
from snfnp.training.runs.checkpoint import load_checkpoint
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import describe_run
from snfnp.training.trainer import Trainer, take_steps

_STOP, _CHECKPOINT, _SAVE, _SHOW = 1, 2, 4, 8  # bits: what ranks request after a step
# On a GPU steps between evaluations take so many seconds, and so many times an evaluation.
_BETWEEN, _EVALUATIONS = 2.0, 10


class Session(NamedTuple):
    """A run that is ready to be trained, in a locked folder (`snfnp.training.session`).

    config: resolved; resume: False for a new run, True from the last checkpoint, "best" from the
    best one; notes: lines to report; world: the ranks that train together.
    """

    config: TrainConfig
    dataset: Dataset
    ops: Ops
    flow: Flow
    folder: RunFolder
    resume: bool | str
    notes: list[str]
    world: Communicator


class RunLoop:
    """The loop of a run in a folder, on all ranks: steps, and evaluations between them.

    best: the record of the best evaluation, or None; seconds: spent on steps; report: gets every
    line.
    """

    def __init__(self, session: Session, signals: Signals, report, optimiser, callbacks):
        config, dataset, ops, flow, self.folder, _, _, world = session
        self.batches = Batches(ops, dataset.train, config, flow.shape, world)
        epoch = self.batches.steps_per_epoch
        self.trainer = Trainer(ops, flow, config, epoch, report, world, optimiser)
        self.steps, self.every = config.epochs * epoch, (config.eval_every or 1) * epoch
        self.seconds = 0.0
        self._since = (0, 0.0)  # step and seconds after the last evaluation
        self.patience, self.callbacks = config.patience, callbacks
        self.best: Record | None = None
        self.dataset, self.signals, self.report = dataset, signals, report
        self.evaluator, self.checkpoints = Evaluator(self), Checkpointer(self)
        self._requests, self.latest = 0, None
        self._spaced, self._evaluation = config.eval_every is not None, 0.0

    def warm_up(self) -> None:
        """Let everything be compiled and recorded before a clock runs: a step and an evaluation
        whose results are dropped."""
        if self.trainer.step < self.steps:
            with suppress(SnfnpError):  # training will raise it again
                self.trainer.warm_up(self.batches, self.trainer.ops.device.prepare)
                self.evaluator.warm_up(self.dataset.validation)
                if not self._spaced:
                    self._evaluation = self.evaluator.seconds(self.dataset.validation)

    def run(self) -> None:
        """Take the remaining steps, and report why if they are not all of them."""
        self.progress = ProgressLine(self, self.report)
        with closing(self.progress.bar), self.signals.defer_interrupts():
            ended = self._train()
        _, _, epoch, _ = self.place
        if ended:
            self.report(f"a callback ended training after epoch {epoch}")
        elif self.trainer.step < self.steps:
            waited = f"no better one in {self.patience} evaluations (`patience`)"
            self.report(f"stopped after epoch {epoch}, as there was {waited}")

    def _train(self) -> bool:
        """Take the remaining steps. True if a callback ended them."""
        trainer, ends = self.trainer, False
        self._since = trainer.step, self.seconds
        trainings = [(trainer, self.batches)]
        for step in take_steps(trainings, self.steps, self.is_patient, self._timed):
            ends = self.after_step() or ends
            if not self._spaced and step % trainer.steps_per_epoch == 0:
                self._space()
            due = step % self.every == 0 or step == self.steps
            if due := due or ends and step % trainer.steps_per_epoch == 0:
                self.synchronise()
                if self.evaluate() or ends:
                    return True
                self._since = step, self.seconds
            self.save(evaluated=due)
        return False

    @property
    def place(self) -> tuple[int, int, int, float]:
        """The first fields of a `Record`: step, steps, epoch, seconds."""
        step = self.trainer.step
        return step, self.steps, step // self.trainer.steps_per_epoch, self.seconds

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start

    def synchronise(self) -> None:
        """Wait for all steps so far. Raises DivergedError if one failed."""
        with self._timed():
            self.trainer.check(self.batches)

    @property
    def steps_per_second(self) -> float:
        """The speed of the steps since the last evaluation."""
        step, seconds = self._since
        resolution = time.get_clock_info("perf_counter").resolution  # a clock may stand still
        return (self.trainer.step - step) / max(self.seconds - seconds, resolution)

    def is_patient(self) -> bool:
        """True if a better evaluation may still come, by `patience`."""
        if self.best is None or self.patience is None or not self._spaced:
            return True
        return self.trainer.step // self.every - self.best.step // self.every < self.patience

    def after_step(self) -> bool:
        """All ranks do what any of them was asked to do or has due; later requests wait a step."""
        self.progress.bar.update(self.trainer.config.batch_size)
        requests = _STOP * self.signals.stop | _CHECKPOINT * self.signals.checkpoint
        requests |= _SAVE * self.checkpoints.due() | _SHOW * self.progress.due()
        self._requests = self.trainer.world.any(requests)
        return bool(self._requests & _SHOW) and self.tell(self.progress.show())

    def evaluate(self) -> bool:
        """Evaluate, save, and report. True if a callback asks for the end."""
        self.progress.clear()
        record: Any = Record.of(self.evaluator.validate(self.dataset), self.steps)
        if self.best is None or record.nll < self.best.nll:
            record = self.best = replace(record, best=True)
        if self.trainer.world.rank == 0:
            self.folder.append_metrics(record.figures)
        self.latest = record
        self.checkpoints.save(self.folder.last, *([self.folder.best] if record.best else []))
        for line in (self.evaluator.describe(record), *self.evaluator.warnings(record.figures)):
            self.report(line)
        return self.tell(record)

    def _space(self) -> None:
        """Choose how many epochs apart evaluations are, from what the steps so far and an
        evaluation took: on a GPU an evaluation may take longer than an epoch. The choice is kept in
        config.json, so that the run evaluates at the same epochs when it is resumed or repeated."""
        self.synchronise()
        epoch, world = self.trainer.steps_per_epoch, self.trainer.world
        seconds = max(_BETWEEN, _EVALUATIONS * self._evaluation)
        epochs = math.ceil(seconds * self.steps_per_second / epoch)
        epochs = world.broadcast(min(epochs, self.trainer.config.epochs))
        self._spaced, self.every = True, epochs * epoch
        self.checkpoints.keep("eval_every", epochs)
        took = f"an evaluation takes about {self._evaluation:.2g} s"
        took += f", an epoch {epoch / self.steps_per_second:.2g} s"
        every = "after every epoch" if epochs == 1 else f"every {epochs} epochs"
        self.report(f"exact evaluations {every}, as {took} (`eval_every`)")

    def tell(self, record: Record | None) -> bool:
        """Give a record to the callbacks, on rank 0. True on all ranks if one returned True.
        Exceptions propagate, after a checkpoint."""
        ends, world = False, self.trainer.world
        if self.callbacks and record and world.rank == 0:
            if record.nll is not None:  # it costs determinants, which callbacks alone need
                more = {"likelihood": self.trainer.likelihood(), "figures": dict(record.figures)}
                record = replace(record, **more)
            try:
                said = [callback(record) for callback in self.callbacks]
            except BaseException:
                self.checkpoints.save(self.folder.last)
                raise
            ends = any(isinstance(each, (bool, np.bool_)) and bool(each) for each in said)
        return bool(self.callbacks and world.any(ends))

    def save(self, evaluated: bool) -> None:
        """After each step and its evaluation, save what is due."""
        last, step = self.folder.last, self.trainer.step
        if not evaluated and self._requests & (_SAVE | _CHECKPOINT | _STOP):
            self.checkpoints.save(last)
        if self._requests & _CHECKPOINT:
            self.progress.clear()
            self.report(f"checkpoint at step {step}: {last}")
            self.signals.checkpoint = False
        if self._requests & _STOP:
            out = shlex.quote(str(self.folder.path))
            advice = f"go on with `resume` `out={out}` (snfnp.resume)"
            self.report(f"interrupted at step {step}: everything is in {last}; {advice}")
            raise KeyboardInterrupt

    def summarise(self) -> dict:
        """The test likelihood at the best validation epoch, reported and in summary.json."""
        run, trainer, dataset = self.folder, self.trainer, self.dataset
        best: Any = self.best

        def load_best():
            saved = load_checkpoint(run.best, trainer.layout, run.open(run.path)[1])
            if saved.step != best.step:
                found = f"of step {saved.step}, but the best evaluation was at step {best.step}"
                raise CheckpointError(f"{run.best} is {found}: restore it, or start a new run")
            return saved

        test = self.evaluator.test(trainer.world.on_rank_zero(load_best).p, dataset.test)
        images = dataset.of_images  # bits per dimension, and noise, are of bytes alone
        summary = {
            "best_epoch": best.epoch,
            "validation_nll_nats": best.nll,
            "test_nll_nats": test.nll,
            **({"test_bits_per_dimension": test.bits_per_dimension} if images else {}),
            "reconstruction": best.reconstruction,
            "training_seconds": round(self.seconds, 1),
            "milliseconds_per_step": round(1e3 * self.seconds / trainer.step, 2),
        }
        if trainer.world.rank == 0:
            write_json(run.summary_file, summary)
        bits = f" = {test.bits_per_dimension:.4f} bits/dim" if images else ""
        noise = f", dequantisation seed {EVALUATION_SEED}" if images else ""
        tested = f"exact test NLL {test.nll:.2f} nats{bits}"
        self.report(
            f"best epoch {best.epoch}: exact validation NLL {best.nll:.2f} nats, "
            f"{tested} ({len(dataset.test)} test {dataset.noun}{noise})\n{trainer.step} steps in "
            f"{self.seconds:.1f} s, {summary['milliseconds_per_step']:.2f} ms per step"
        )
        latest = self.latest
        if not images and latest and latest.epoch > 1.25 * best.epoch and latest.nll > best.nll:
            lost = f"from {best.nll:.2f} to {latest.nll:.2f} nats"
            self.report(f"it overfits after epoch {best.epoch}, {lost}: the best one is kept")
        return summary


def train_session(
    session: Session, report=print, optimiser=None, callbacks: Callbacks = ()
) -> dict:
    """Train a run to its end; see `snfnp.train`."""
    config, dataset, ops, flow, _, resume, notes, world = session
    callbacks = () if callbacks is None else callbacks
    if not (isinstance(callbacks, Iterable) and all(map(callable, callbacks := tuple(callbacks)))):
        raise UsageError(f"callbacks is {callbacks!r}: give a list of functions")
    first, signals = world.rank == 0, Signals(world.rank, world.size)
    report = report if report and first else silent
    # What overflows is found at every step and told in one line, with no warning before it.
    quiet = np.errstate(all="ignore")
    also = " in a new run" if resume else ""
    if config.preset.has_recomputable_layers and not config.recompute:
        also += ", or `recompute`"
    with (
        signals.ignore_sigusr1(),
        quiet,
        robust_output(),
        threads.limited(config.threads),
        within_memory(ops, "batch_size", config.batch_size, also),
    ):
        for note in notes:
            report(note)
        loop = RunLoop(session, signals, report, optimiser, callbacks)
        with compilations_shown(ops, report):
            if resume:
                loop.checkpoints.resume(resume == "best", report)
            report(_introduction(session, loop.trainer))
            loop.warm_up()
            if not resume:
                known = replace(config, threads=ops.device.threads)
                loop.checkpoints.start(describe_run(known, flow, dataset, ops, world.size))
        try:
            loop.run()
            return loop.summarise()
        except DivergedError as error:
            step = error.step or loop.trainer.step
            raise DivergedError(f"{error}; {loop.checkpoints.advice()}", step) from None


def _introduction(session: Session, trainer: Trainer) -> str:
    """Three lines on a run: the model and its gradient, the data and the optimiser, the folder."""
    config, dataset, size = session.config, session.dataset, trainer.layout.count
    steps, ranks = trainer.steps_per_epoch, trainer.world.size
    how = f" ({config.objective}, λ = {config.lam:g})" if config.rule.learns_inverse else ""
    falls = "" if config.lr_schedule == "constant" else f", then {config.lr_schedule}"
    return (
        f"{config.model_name}: {size:,} parameters in {len(trainer.flow.layers)} layers, "
        f"{config.gradient} gradient{how}, {trainer.ops.name} backend, {config.dtype}"
        f"{f', {ranks} processes' if ranks > 1 else ''}\n"
        f"{len(dataset.train):,} training {dataset.noun} from {dataset.source}; {config.epochs} "
        f"epochs of {steps} steps, batch {config.batch_size}, lr {config.lr:g} after "
        f"{config.warmup_epochs:g} warm-up epochs{falls}, seed {config.seed}\n"
        f"run folder {session.folder.path}"
    )
