"""Training: the loop over steps and epochs. A step is in `trainer.py`."""

import shlex
from collections.abc import Callable
from contextlib import closing, nullcontext, suppress
from dataclasses import replace
from functools import partial

import numpy as np

from snfnp import registry, threads
from snfnp.data import Dataset, require_dataset
from snfnp.errors import CheckpointError, DivergedError, SnfnpError, UsageError
from snfnp.ops import SINGLE_PROCESS, Communicator, Ops, get_ops
from snfnp.processes.signals import Signals
from snfnp.processes.terminal import plain_output
from snfnp.training.batches import Batches
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
from snfnp.training.runs.checkpointer import Checkpointer
from snfnp.training.runs.description import describe_run, refuse_other_flow
from snfnp.training.runs.folder import RunFolder, path_of
from snfnp.training.trainer import Trainer

_STOP, _CHECKPOINT, _SAVE, _SHOW = 1, 2, 4, 8  # bits: what ranks request after a step


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
    if callable(callbacks) or not all(map(callable, callbacks := tuple(callbacks))):
        raise UsageError(f"callbacks is {callbacks!r}: give a list of functions")
    if flow is not None:
        config = replace(config, model=flow)
    if dataset.source == Dataset.source and not resume:  # what is called mnist otherwise
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
    with (
        run.lock if first else nullcontext(),
        signals.ends_no_process(),
        quiet,
        plain_output(),
        threads.restored(),
    ):
        moments = dataset.moments if dataset.noun == "rows" else None
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
        evaluator = Evaluator(trainer, clock)
        checkpoints = Checkpointer(run, trainer, clock, evaluator)
        with compilations_shown(ops, report):
            if resume:
                checkpoints.go_on(resume == "best", report)
            report(_introduction(config, flow, trainer, dataset, ops, run))
            chosen = _rehearse(
                trainer, evaluator, batches, dataset, choose=not resume and config.threads is None
            )
            if not resume:
                known = replace(config, threads=ops.device.threads)
                checkpoints.start(describe_run(known, flow, dataset, ops, world.size))
        if chosen:
            report(chosen)
        try:
            metrics = nullcontext(run.append_metrics if first else silent)
            if first and config.tensorboard:
                metrics = registry.find("event-files")(run)
            with metrics as keep:
                how = (signals, report, keep, partial(_tell, callbacks, checkpoints))
                _take_steps(dataset, batches, evaluator, checkpoints, *how)
            return _summarise(run, dataset, trainer, clock, evaluator, report)
        except DivergedError as error:
            step = error.step or trainer.step
            raise DivergedError(f"{error}; {checkpoints.advice()}", step) from None


def _rehearse(trainer, evaluator, batches, dataset, choose: bool) -> str:
    """Let everything be compiled and recorded before a clock runs, and threads be chosen: a step
    and an evaluation that leave no trace. A line on that choice, or ""."""
    chosen = ""
    if trainer.step < trainer.config.epochs * trainer.steps_per_epoch:
        with suppress(SnfnpError):
            with trainer.rehearsal(batches(trainer.step)) as step:
                trainer.renew(batches)
                chosen = trainer.ops.device.prepare(step, choose and trainer.world.size == 1)
            evaluator.rehearse(dataset.validation)
    return chosen


def _tell(callbacks: tuple, checkpoints: Checkpointer, record: Record | None) -> bool:
    """Give a record to every callback, on rank 0; say, on all, whether one of them returned True.
    What one raises goes on from here, once everything is saved."""
    ends, world = False, checkpoints.trainer.world
    if callbacks and record and world.rank == 0:
        if record.nats is not None:  # determinants, that nobody else asks for
            record = replace(record, likelihood=checkpoints.trainer.likelihood())
        try:
            said = [callback(record) for callback in callbacks]
            ends = any(isinstance(each, (bool, np.bool_)) and each for each in said)
        except BaseException:
            checkpoints.save(checkpoints.folder.last)
            raise
    return bool(callbacks and world.any(ends))


def _is_patient(config: TrainConfig, best: dict | None, epoch: int) -> bool:
    """Say whether a better evaluation may still come, by `--patience`."""
    if best is None or config.patience is None:
        return True
    return epoch // config.eval_every - best["epoch"] // config.eval_every < config.patience


def _take_steps(dataset, batches, evaluator, checkpoints, signals, report, keep, tell) -> None:
    """The remaining steps, with checkpoints and evaluations; keep: gets every record of these;
    tell: gives one to the callbacks."""
    run, config, trainer = checkpoints.folder, checkpoints.config, checkpoints.trainer
    clock, steps = checkpoints.clock, config.epochs * batches.steps_per_epoch
    progress = ProgressLine(trainer, clock, steps, report)
    epoch, ends = trainer.step // batches.steps_per_epoch, False
    with closing(progress.bar), signals.stops_between_steps():
        clock.start()
        while trainer.step < steps and _is_patient(config, evaluator.best, epoch):
            trainer.renew(batches)
            trainer.training_step(batches(trainer.step))
            progress.bar.update(config.batch_size)
            # All ranks do what any was asked to do or has due; later requests wait for a step.
            requests = _STOP * signals.stop | _CHECKPOINT * signals.checkpoint
            requests |= _SAVE * checkpoints.due() | _SHOW * progress.due()
            requests = trainer.world.any(requests)
            epoch, rest = divmod(trainer.step, batches.steps_per_epoch)
            if requests & _SHOW:
                ends = tell(progress.show(epoch)) or ends
            due = epoch % config.eval_every == 0 or trainer.step == steps or ends
            if rest == 0 and due:
                progress.clear()
                clock.stop()
                record = evaluator.validate(epoch, dataset.validation)
                keep(record)
                checkpoints.save(run.last, *([run.best] if record is evaluator.best else []))
                for line in (evaluator.describe(record), *evaluator.warnings(record)):
                    report(line)
                if tell(Record.of(record, steps, record is evaluator.best)) or ends:
                    report(f"a callback ended training after epoch {epoch}")
                    return
                clock.start()
            elif requests & (_SAVE | _CHECKPOINT | _STOP):
                checkpoints.save(run.last)
            if requests & _CHECKPOINT:
                progress.clear()
                report(f"checkpoint at step {trainer.step}: {run.last}")
                signals.checkpoint = False
            if requests & _STOP:
                advice = f"go on with `resume` `out={shlex.quote(str(run.path))}` (snfnp.resume)"
                report(f"interrupted at step {trainer.step}: everything is in {run.last}; {advice}")
                raise KeyboardInterrupt
    if trainer.step < steps:
        waited = f"no better one in {config.patience} evaluations (`patience`)"
        report(f"stopped after epoch {epoch}, as there was {waited}")


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
    images = dataset.noun == "images"  # bits per dimension, and noise, are of bytes alone
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
