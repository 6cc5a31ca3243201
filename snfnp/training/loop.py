"""The loop of every training, and `train`, which runs it in a folder. A step is in `trainer.py`."""

import math
import shlex
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from dataclasses import astuple, replace

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
from snfnp.training.progress import (
    Callbacks,
    Clock,
    ProgressLine,
    Record,
    compilations_shown,
    silent,
)
from snfnp.training.runs.checkpoint import load_checkpoint
from snfnp.training.runs.description import describe_run, refuse_other_flow
from snfnp.training.runs.folder import RunFolder, path_of
from snfnp.training.trainer import Trainer

_STOP, _CHECKPOINT, _SAVE, _SHOW = 1, 2, 4, 8  # bits: what ranks request after a step


class Loop:
    """The loop of `train`, `fit` and `FlowDensity`: a step, perhaps an evaluation, and again.

    This one is all in memory, and the caller says what an evaluation is:

        batches = Batches(ops, rows, config, flow.shape)
        trainer = Trainer(ops, flow, config, batches.steps_per_epoch)
        trainer.begin(batches)
        loop = Loop(trainer, batches, steps=2000, every=50, nll=lambda likelihood: …)
        loop.evaluate()  # the start, too, may be the best
        with suppress(DivergedError):  # the best one so far is what counts
            loop.run()
        trainer.likelihood(loop.best_p)

    Args:
        trainer: begun or restored; it goes on from its step.
        batches: see `Trainer.training_step`.
        steps: at which training ends.
        every: the steps between evaluations; one more follows the last step.
        nll: nll(likelihood), the exact negative log-likelihood of what is held out, in nats per
            sample: the less the better, and if it is not finite never the best.
        patience: stop after so many evaluations without a better one; None: never.
        callbacks: each gets the `Record` of every evaluation; one that returns True ends training.

    best: the record of the best evaluation, or None; best_p: a copy of its parameters, flat.
    """

    def __init__(
        self,
        trainer: Trainer,
        batches,
        *,
        steps: int,
        every: int,
        nll: Callable[[Likelihood], float] | None = None,
        patience: int | None = None,
        callbacks: Callbacks = (),
        clock: Clock | None = None,
    ):
        self.trainer, self.batches, self.steps, self.every = trainer, batches, steps, every
        self.nll, self.patience, self.callbacks = nll, patience, tuple(callbacks or ())
        self.clock = clock or Clock(trainer, batches)
        self.best: Record | None = None
        self.best_p = None

    def run(self) -> bool:
        """Take the remaining steps. True if a callback ended them."""
        trainer, ends = self.trainer, False
        self.clock.start()
        while trainer.step < self.steps and self._is_patient():
            trainer.training_step(self.batches)
            ends = self.after_step() or ends
            due = trainer.step % self.every == 0 or trainer.step == self.steps
            due = due or ends and trainer.step % trainer.steps_per_epoch == 0
            if due:
                with self.clock.paused():
                    ends = self.evaluate() or ends
                if ends:
                    return True
                self.clock.start()
            self.save(evaluated=due)
        return False

    def _is_patient(self) -> bool:
        """Whether a better evaluation may still come, by `patience`."""
        best = self.best_step
        if best is None or self.patience is None:
            return True
        return self.trainer.step // self.every - best // self.every < self.patience

    @property
    def best_step(self) -> int | None:
        """The step of the best evaluation."""
        return self.best and self.best.step

    @property
    def place(self) -> tuple[int, int, int, float]:
        """The first fields of a `Record`: step, of how many, epoch, seconds."""
        step = self.trainer.step
        return step, self.steps, step // self.trainer.steps_per_epoch, self.clock.seconds

    def after_step(self) -> bool:
        """Called after each step; True if a callback asks for the end."""
        return False

    def evaluate(self) -> bool:
        """Evaluate, and keep the best; True if a callback asks for the end."""
        trainer = self.trainer
        likelihood = trainer.likelihood()
        nats = self.nll(likelihood)
        best = math.isfinite(nats) and not (self.best and self.best.nats <= nats)
        figures = astuple(trainer.averages())
        record = Record(*self.place, *figures, nats=nats, best=best, likelihood=likelihood)
        if best:
            self.best, self.best_p = replace(record, likelihood=None), trainer.p.copy()
        return self.tell(record)

    def save(self, evaluated: bool) -> None:
        """Called after each step and its evaluation."""

    def tell(self, record: Record | None) -> bool:
        """Give a record to every callback; True if one of them returned True."""
        said = [callback(record) for callback in self.callbacks]
        return any(isinstance(each, (bool, np.bool_)) and bool(each) for each in said)


class _RunLoop(Loop):
    """The loop of a run in a folder: with checkpoints, signals and a progress bar, on all ranks.

    report: gets lines; keep: the record of each evaluation, for metrics.jsonl.
    """

    def __init__(self, checkpoints: Checkpointer, dataset, signals, report, keep, callbacks):
        self.checkpoints, self.evaluator = checkpoints, checkpoints.evaluator
        trainer, config = checkpoints.trainer, checkpoints.config
        self.run_folder, self.dataset, self.signals = checkpoints.folder, dataset, signals
        self.report, self.keep, self.requests = report, keep, 0
        epoch = trainer.steps_per_epoch
        how = {"steps": config.epochs * epoch, "every": config.eval_every * epoch}
        how |= {"patience": config.patience, "callbacks": callbacks, "clock": checkpoints.clock}
        super().__init__(trainer, checkpoints.batches, **how)
        self.progress = ProgressLine(trainer, self.clock, self.steps, report)

    @property
    def best_step(self) -> int | None:
        return self.evaluator.best and self.evaluator.best["step"]

    def run(self) -> bool:
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
        self.requests = self.trainer.world.any(requests)
        return bool(self.requests & _SHOW) and self.tell(self.progress.show(self.place))

    def evaluate(self) -> bool:
        self.progress.clear()
        _, steps, epoch, _ = self.place
        record, run = self.evaluator.validate(epoch, self.dataset.validation), self.run_folder
        best = record is self.evaluator.best
        self.keep(record)
        self.checkpoints.save(run.last, *([run.best] if best else []))
        for line in (self.evaluator.describe(record), *self.evaluator.warnings(record)):
            self.report(line)
        return self.tell(Record.of(record, steps, best))

    def save(self, evaluated: bool) -> None:
        run, step = self.run_folder, self.trainer.step
        if not evaluated and self.requests & (_SAVE | _CHECKPOINT | _STOP):
            self.checkpoints.save(run.last)
        if self.requests & _CHECKPOINT:
            self.progress.clear()
            self.report(f"checkpoint at step {step}: {run.last}")
            self.signals.checkpoint = False
        if self.requests & _STOP:
            advice = f"go on with `resume` `out={shlex.quote(str(run.path))}` (snfnp.resume)"
            self.report(f"interrupted at step {step}: everything is in {run.last}; {advice}")
            raise KeyboardInterrupt

    def tell(self, record: Record | None) -> bool:
        """On rank 0, and answered on all. What a callback raises goes on from here, once everything
        is saved."""
        ends, world = False, self.trainer.world
        if self.callbacks and record and world.rank == 0:
            if record.nats is not None:  # determinants, that nobody else asks for
                record = replace(record, likelihood=self.trainer.likelihood())
            try:
                ends = super().tell(record)
            except BaseException:
                self.checkpoints.save(self.run_folder.last)
                raise
        return bool(self.callbacks and world.any(ends))


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
    """Train to the configured number of epochs and return the summary that it also writes.

    config: `TrainConfig.resolve` fills it in and checks it, also one that was resolved before and
    has changed since; ops, run: None makes them, as it says. Evaluates exactly on the validation
    images every `eval_every` epochs and after the last one, keeps `best.safetensors` by that
    figure, and at the end reports the test likelihood there. resume: go on from the last
    checkpoint; "best": from the best one, or from the start if there is none yet. report:
    gets every line; None: nothing is shown, not even a bar. world: the ranks that train together,
    each of which calls this; rank 0 alone reports and writes. optimiser: one of your own in Adam's
    place (derivations/28-write-your-own-rule.md); a run goes on with its own. flow: the model
    instead of config.model, as `TrainConfig(model=flow)`. callbacks: each gets a `Record` of every
    evaluation, and of a step whenever a progress bar shows one (without a bar, once a minute); one
    that returns True ends the run well, after the epoch; what it raises stops the run, which can go
    on from there.

    An interruption (Ctrl-C or a termination signal) writes `last.safetensors` and raises
    KeyboardInterrupt; SIGUSR1 writes it and goes on. Raises UsageError if another program trains
    in the folder or a run goes on with other images, DivergedError, with the options to go on
    with, if numbers are not finite or the likelihood explodes.
    """
    require_dataset(dataset)
    if callable(callbacks) or not all(map(callable, callbacks := tuple(callbacks or ()))):
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
        clock = Clock(trainer, batches)
        evaluator = Evaluator(trainer, batches, clock)
        checkpoints = Checkpointer(run, trainer, batches, clock, evaluator)
        with compilations_shown(ops, report):
            if resume:
                checkpoints.go_on(resume == "best", report)
            report(_introduction(config, flow, trainer, dataset, ops, run))
            choose = not resume and config.threads is None
            chosen = _warm_up(trainer, evaluator, batches, dataset, choose)
            if not resume:
                known = replace(config, threads=ops.device.threads)
                checkpoints.start(describe_run(known, flow, dataset, ops, world.size))
        if chosen:
            report(chosen)
        try:
            metrics = nullcontext(run.append_metrics if first else silent)
            if first and config.tensorboard:
                from snfnp.beyond import tensorboard

                metrics = tensorboard.recording(run)
            with metrics as keep:
                _RunLoop(checkpoints, dataset, signals, report, keep, callbacks).run()
            return _summarise(run, dataset, trainer, clock, evaluator, report)
        except DivergedError as error:
            step = error.step or trainer.step
            raise DivergedError(f"{error}; {checkpoints.advice()}", step) from None


def _warm_up(trainer, evaluator, batches, dataset, choose: bool) -> str:
    """Let everything be compiled and recorded before a clock runs, and threads be chosen: a step
    and an evaluation that leave no trace. A line on that choice, or ""."""
    chosen, alone = "", choose and trainer.world.size == 1
    if trainer.step < trainer.config.epochs * trainer.steps_per_epoch:
        with suppress(SnfnpError):
            prepare = trainer.ops.device.prepare
            chosen = trainer.warm_up(batches, lambda step: prepare(step, alone))
            evaluator.warm_up(dataset.validation)
    return chosen


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


def _summarise(run: RunFolder, dataset: Dataset, trainer: Trainer, clock, evaluator, report):
    """The test likelihood at the best validation epoch, reported and in summary.json."""
    best, world = evaluator.best, trainer.world

    def load_best():
        saved = load_checkpoint(run.best, trainer.layout, run.open(run.path)[1])
        if saved.step != best["step"]:
            found = f"of step {saved.step}, but the best evaluation was at step {best['step']}"
            raise CheckpointError(f"{run.best} is {found}: restore it, or start a new run")
        return saved

    test = evaluator.test(world.on_rank_zero(load_best).p, dataset.test)
    images = dataset.of_images  # bits per dimension, and noise, are of bytes alone
    summary = {
        "best_epoch": best["epoch"],
        "validation_nll_nats": best["validation_nll_nats"],
        "test_nll_nats": test.nll,
        **({"test_bits_per_dimension": test.bits_per_dimension} if images else {}),
        "reconstruction": best["reconstruction"],
        "training_seconds": round(clock.seconds, 1),
        "milliseconds_per_step": round(1e3 * clock.seconds / trainer.step, 2),
    }
    if world.rank == 0:
        write_json(run.summary_file, summary)
    bits = f" = {test.bits_per_dimension:.4f} bits/dim" if images else ""
    noise = f", dequantisation seed {EVALUATION_SEED}" if images else ""
    chosen = f"exact validation NLL {summary['validation_nll_nats']:.2f} nats"
    tested = f"exact test NLL {test.nll:.2f} nats{bits} ({test.images} test {dataset.noun}{noise})"
    speed = f"{summary['milliseconds_per_step']:.2f} ms per step"
    steps = f"{trainer.step} steps in {clock.seconds:.1f} s, {speed}"
    report(f"best epoch {summary['best_epoch']}: {chosen}, {tested}\n{steps}")
    return summary
