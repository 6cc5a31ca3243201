"""The loop of every training, and `train`, which runs it in a folder. A step: `trainer.py`."""

import math
import shlex
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import astuple, replace
from typing import Any

import numpy as np

from snfnp import threads
from snfnp.data import Dataset, require_dataset
from snfnp.errors import CheckpointError, DivergedError, SnfnpError, UsageError, within_memory
from snfnp.likelihood import Likelihood
from snfnp.ops import SINGLE_PROCESS, Communicator, Ops, get_ops
from snfnp.processes.signals import Signals
from snfnp.processes.terminal import robust_output
from snfnp.training.batches import Batches
from snfnp.training.checkpointer import Checkpointer
from snfnp.training.evaluation import EVALUATION_SEED, Evaluator
from snfnp.training.files import write_json
from snfnp.training.options import TrainConfig
from snfnp.training.progress import Callbacks, ProgressLine, Record, compilations_shown, silent
from snfnp.training.runs.checkpoint import load_checkpoint
from snfnp.training.runs.description import describe_run, refuse_other_flow
from snfnp.training.runs.folder import RunFolder, path_of
from snfnp.training.trainer import Trainer

_STOP, _CHECKPOINT, _SAVE, _SHOW = 1, 2, 4, 8  # bits: what ranks request after a step


class Loop:
    """The loop of `train`, `fit` and `FlowDensity`.

    This one is in memory, and the caller says what an evaluation is:

        batches = Batches(ops, rows, config, flow.shape)
        trainer = Trainer(ops, flow, config, batches.steps_per_epoch)
        trainer.begin(batches)
        loop = Loop(trainer, batches, steps=2000, every=50, nll=lambda likelihood: …)
        loop.evaluate()  # the start may be the best, too
        with suppress(DivergedError):  # the best so far is kept
            loop.run()
        trainer.likelihood(loop.best_p)

    Args:
        trainer: begun or restored; it goes on from its step.
        batches: see `Trainer.training_step`.
        steps: at which training ends.
        every: the steps between evaluations; one more follows the last step.
        nll: nll(likelihood), the negative log-likelihood of held-out data, in nats per sample. An
            evaluation that is not finite is never the best.
        patience: stop after this many evaluations without a better one; None: never.
        callbacks: each gets the `Record` of every evaluation; one that returns True ends training.

    best: the record of the best evaluation, or None; best_p: a copy of its parameters, flat;
    seconds: spent on steps.
    """

    def __init__(
        self,
        trainer: Trainer,
        batches,
        *,
        steps: int,
        every: int,
        nll: Callable[[Likelihood], float] = lambda likelihood: math.nan,
        patience: int | None = None,
        callbacks: Callbacks = (),
    ):
        self.trainer, self.batches, self.steps, self.every = trainer, batches, steps, every
        self.nll, self.patience, self.callbacks = nll, patience, tuple(callbacks or ())
        self.best: Record | None = None
        self.best_p, self.seconds = None, 0.0
        self._counted: float | None = None  # up to when `seconds` is, while steps are taken
        self._since = (0, 0.0)  # step and seconds after the last evaluation

    def run(self) -> bool:
        """Take the remaining steps. True if a callback ended them."""
        trainer, ends = self.trainer, False
        self._start_clock()
        while trainer.step < self.steps and self._is_patient():
            trainer.training_step(self.batches)
            ends = self.after_step() or ends
            due = trainer.step % self.every == 0 or trainer.step == self.steps
            due = due or ends and trainer.step % trainer.steps_per_epoch == 0
            if due:
                with self.paused():
                    ends = self.evaluate() or ends
                if ends:
                    return True
                self._start_clock()
            self.save(evaluated=due)
        return False

    def _is_patient(self) -> bool:
        """True if a better evaluation may still come, by `patience`."""
        if self.best is None or self.patience is None:
            return True
        return self.trainer.step // self.every - self.best.step // self.every < self.patience

    def after_step(self) -> bool:
        """Called after each step. True if a callback asks for the end."""
        return False

    def evaluate(self) -> bool:
        """Evaluate, and keep the best. True if a callback asks for the end."""
        record: Any = self.measure()
        if math.isfinite(record.nll) and (self.best is None or record.nll < self.best.nll):
            record = self.best = replace(record, best=True)
        self.keep(record)
        return self.tell(record)

    def measure(self) -> Record:
        """An evaluation."""
        likelihood, averages = self.trainer.likelihood(), astuple(self.trainer.averages())
        return Record(*self.place, *averages, nll=self.nll(likelihood), likelihood=likelihood)

    def keep(self, record: Record) -> None:
        """Keep what belongs to an evaluation."""
        if record.best:
            self.best_p = self.trainer.p.copy()

    def tell(self, record: Record) -> bool:
        """Give a record to every callback. True if one of them returned True."""
        said = [callback(record) for callback in self.callbacks]
        return any(isinstance(each, (bool, np.bool_)) and bool(each) for each in said)

    def save(self, evaluated: bool) -> None:
        """Called after each step and its evaluation, to save what is due."""

    @property
    def place(self) -> tuple[int, int, int, float]:
        """The first fields of a `Record`: step, steps, epoch, seconds."""
        step = self.trainer.step
        return step, self.steps, step // self.trainer.steps_per_epoch, self.seconds

    def _start_clock(self) -> None:
        self._counted = time.perf_counter()
        self._since = (self.trainer.step, self.seconds)

    def synchronise(self) -> None:
        """Wait for all steps and count their time. Raises DivergedError if one failed."""
        self.trainer.check(self.batches)
        if self._counted is not None:
            now = time.perf_counter()
            self.seconds, self._counted = self.seconds + now - self._counted, now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """A context after all steps so far, whose time does not count as theirs."""
        self.synchronise()
        running, self._counted = self._counted is not None, None
        yield
        if running:
            self._counted = time.perf_counter()

    @property
    def steps_per_second(self) -> float:
        """The speed of the steps since the last evaluation."""
        step, seconds = self._since
        resolution = time.get_clock_info("perf_counter").resolution  # a clock may stand still
        return (self.trainer.step - step) / max(self.seconds - seconds, resolution)


class RunLoop(Loop):
    """The loop of a run in a folder, on all ranks.

    report: gets every line; append: the figures of each evaluation, for metrics.jsonl.
    """

    def __init__(self, trainer, batches, dataset, run: RunFolder, signals, report, callbacks):
        config, epoch = trainer.config, trainer.steps_per_epoch
        how = {"steps": config.epochs * epoch, "every": config.eval_every * epoch}
        how |= {"patience": config.patience, "callbacks": callbacks}
        super().__init__(trainer, batches, **how)
        self.dataset, self.folder, self.signals, self.report = dataset, run, signals, report
        self.evaluator, self.checkpoints = Evaluator(self), Checkpointer(run, self)
        self.append: Callable[[dict], None] = silent
        self._requests, self.latest = 0, None

    def warm_up(self, choose: bool) -> str:
        """Let everything be compiled and recorded before a clock runs, and threads be chosen: a
        step and an evaluation whose results are dropped. A line on that choice, or ""."""
        trainer, line = self.trainer, ""
        if trainer.step < self.steps:
            with suppress(SnfnpError):  # it will come again
                alone, prepare = choose and trainer.world.size == 1, trainer.ops.device.prepare
                line = trainer.warm_up(self.batches, lambda step: prepare(step, alone))
                self.evaluator.warm_up(self.dataset.validation)
        return line

    def run(self) -> bool:
        self.progress = ProgressLine(self, self.report)
        with closing(self.progress.bar), self.signals.defer_interrupts():
            ended = super().run()
        _, _, epoch, _ = self.place
        if ended:
            self.report(f"a callback ended training after epoch {epoch}")
        elif self.trainer.step < self.steps:
            waited = f"no better one in {self.patience} evaluations (`patience`)"
            self.report(f"stopped after epoch {epoch}, as there was {waited}")
        return ended

    def after_step(self) -> bool:
        """All ranks do what any was asked to do or has due; later requests wait for a step."""
        self.progress.bar.update(self.trainer.config.batch_size)
        requests = _STOP * self.signals.stop | _CHECKPOINT * self.signals.checkpoint
        requests |= _SAVE * self.checkpoints.due() | _SHOW * self.progress.due()
        self._requests = self.trainer.world.any(requests)
        return bool(self._requests & _SHOW) and self.tell(self.progress.show())

    def measure(self) -> Record:
        self.progress.clear()
        return Record.of(self.evaluator.validate(self.dataset), self.steps)

    def keep(self, record: Record) -> None:
        self.append(record.figures)
        self.latest = record
        self.checkpoints.save(self.folder.last, *([self.folder.best] if record.best else []))
        for line in (self.evaluator.describe(record), *self.evaluator.warnings(record.figures)):
            self.report(line)

    def tell(self, record: Record | None) -> bool:
        """On rank 0, and answered on all. Exceptions of callbacks propagate, once all is saved."""
        ends, world = False, self.trainer.world
        if self.callbacks and record and world.rank == 0:
            if record.nll is not None:  # determinants, that nobody else asks for
                more = {"likelihood": self.trainer.likelihood(), "figures": dict(record.figures)}
                record = replace(record, **more)
            try:
                ends = super().tell(record)
            except BaseException:
                self.checkpoints.save(self.folder.last)
                raise
        return bool(self.callbacks and world.any(ends))

    def save(self, evaluated: bool) -> None:
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


def train(
    config: TrainConfig,
    dataset: Dataset,
    ops: Ops | None = None,
    run: RunFolder | None = None,
    resume: bool | str = False,
    report: Callable[[str], None] | None = print,
    world: Communicator = SINGLE_PROCESS,
    optimiser=None,
    *,
    flow=None,
    callbacks: Callbacks = (),
) -> dict:
    """Train to the configured number of epochs.

    Evaluates exactly on the validation data every `eval_every` epochs and after the last one, keeps
    `best.safetensors` by that figure, and at the end evaluates the test data there. Ctrl-C or a
    termination signal writes `last.safetensors` and raises KeyboardInterrupt; SIGUSR1 writes it and
    goes on.

    Args:
        config: filled in and checked by `TrainConfig.resolve`, if it was not before.
        ops: the backend; None: the configuration's.
        run: the folder; None: a new one, as the configuration says.
        resume: True: go on from the last checkpoint; "best": from the best one, or from the start
            if there is none.
        report: gets every line; None: nothing is shown, not even a progress bar.
        world: the ranks that train together, each of which calls this; rank 0 reports and writes.
        optimiser: one of your own in Adam's place (derivations/28-write-your-own-rule.md), also
            when the run goes on.
        flow: a `Flow` or what builds one, as `TrainConfig(model=flow)`.
        callbacks: functions that each get a `Record` of every evaluation, and of a step whenever a
            progress bar shows one (without a bar, once a minute). If one returns True, the run ends
            well after the epoch; if one raises, it stops, and can go on from there.

    Returns:
        The summary, as in summary.json: the best epoch, its validation likelihood and that of the
        test data in nats per sample, and times.

    Raises:
        UsageError: another program trains in the folder, or the run goes on with other data.
        DivergedError: numbers are not finite, or the likelihood explodes; with options to go on.
    """
    require_dataset(dataset)
    callbacks = () if callbacks is None else callbacks
    if not (isinstance(callbacks, Iterable) and all(map(callable, callbacks := tuple(callbacks)))):
        raise UsageError(f"callbacks is {callbacks!r}: give a list of functions")
    if flow is not None:
        config = replace(config, model=flow)
    if dataset.name != config.data_name and not resume:  # given by the caller, not by its name
        config = replace(config, data=dataset.name)
    config = config.resolve(len(dataset.train), dataset.train.shape[1:])
    config.check_processes(world.size)
    if ops is None:
        ops = get_ops(config.backend, tf32=config.tf32, world=world, overlap=config.overlap)
    run = run or RunFolder.create(path_of(config))
    first, signals = world.rank == 0, Signals(world.rank, world.size)
    report = report if report and first else silent
    # What overflows is found at every step and told in one line, with no warning before it.
    quiet = np.errstate(over="ignore", divide="ignore", invalid="ignore")
    also = " in a new run" if resume else ""
    if config.preset.has_recomputable_layers and not config.recompute:
        also += ", or `recompute`"
    with (
        run.lock if first else nullcontext(),
        signals.ignore_sigusr1(),
        quiet,
        robust_output(),
        threads.restored(),
        within_memory(ops, "batch_size", config.batch_size, also),
    ):
        moments = dataset.moments
        if resume:
            record = world.on_rank_zero(lambda: run.open(run.path)[1])
            if line := world.on_rank_zero(lambda: run.refuse_other_images(record, dataset)):
                report(line)
            moments = run.moments(record)
            if config.threads is None and ops.device.threads:  # for the same rounding
                config = replace(config, threads=record["config"].get("threads"))
        if config.threads is not None:
            threads.limit(config.threads)
        flow = config.build_flow(dataset.train.shape[1:], moments)
        if resume and (line := refuse_other_flow(run.path, record, flow)):
            report(line)
        batches = Batches(ops, dataset.train, config, flow.shape, world)
        trainer = Trainer(ops, flow, config, batches.steps_per_epoch, report, world, optimiser)
        loop = RunLoop(trainer, batches, dataset, run, signals, report, callbacks)
        with compilations_shown(ops, report):
            if resume:
                loop.checkpoints.go_on(resume == "best", report)
            report(_introduction(config, flow, trainer, dataset, ops, run))
            chosen = loop.warm_up(choose=not resume and config.threads is None)
            if not resume:
                known = replace(config, threads=ops.device.threads)
                loop.checkpoints.start(describe_run(known, flow, dataset, ops, world.size))
        if chosen:
            report(chosen)
        try:
            metrics = nullcontext(run.append_metrics if first else silent)
            if first and config.tensorboard:
                from snfnp.beyond import tensorboard

                metrics = tensorboard.recording(run)
            with metrics as loop.append:
                loop.run()
            return loop.summarise()
        except DivergedError as error:
            step = error.step or trainer.step
            raise DivergedError(f"{error}; {loop.checkpoints.advice()}", step) from None


def _introduction(config, flow, trainer, dataset, ops, run) -> str:
    """Three lines on a run: the model and its gradient, the data and the optimiser, the folder."""
    gradient = config.gradient
    if config.rule.learns_inverse:
        control = "" if not config.controller else f" at the start, then {config.lambda_control}"
        penalty = f", μ = {config.jvp_weight:g} (Eq. 31)" if config.jvp_weight else ""
        gradient += f" ({config.objective}, λ = {trainer.lam:g}{control}{penalty})"
    elif config.gradient == "relative":
        gradient += f" (bias: {config.relative_bias})"
    schedule = ""
    if config.lr_schedule != "constant":
        schedule = f", then {config.lr_schedule} to {config.final_lr_fraction * config.lr:g}"
    count = trainer.world.size
    processes = f", {count} processes" if count > 1 else ""
    what = f"{len(dataset.train):,} training {dataset.noun} from {dataset.source}"
    return (
        f"{config.model_name}: {trainer.layout.count:,} parameters in {len(flow.layers)} layers, "
        f"{gradient} gradient, {ops.name} backend, {config.dtype}{processes}\n"
        f"{what}; {config.epochs} epochs of {trainer.steps_per_epoch} steps, "
        f"batch {config.batch_size}, lr {config.lr:g} after {config.warmup_epochs:g} warm-up "
        f"epochs{schedule}, seed {config.seed}\n"
        f"run folder {run.path}"
    )
