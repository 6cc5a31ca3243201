"""When a run's checkpoints are written, and how it goes on from one."""

from __future__ import annotations

import shlex
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from snfnp.errors import CheckpointError, SnfnpError, UsageError
from snfnp.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from snfnp.training.config import TrainConfig
from snfnp.training.evaluation import Evaluator
from snfnp.training.options import FREE_LAMBDA
from snfnp.training.progress import Clock
from snfnp.training.run import RunFolder, mark_of
from snfnp.training.trainer import Trainer


class Checkpointer:
    """What a run keeps to go on from, and going on from it."""

    def __init__(
        self,
        run: RunFolder,
        config: TrainConfig,
        trainer: Trainer,
        clock: Clock,
        evaluator: Evaluator,
    ):
        self.run, self.config, self.trainer = run, config, trainer
        self.clock, self.evaluator = clock, evaluator
        self._identity: str | None = None  # of the run, in config.json and in all its checkpoints
        self._saved = (0, time.monotonic())  # step and time of the last checkpoint

    # ---------------------------------------------------------------- writing

    def due(self) -> bool:
        """Whether `--checkpoint-every` asks for one now."""
        steps, seconds = self.config.checkpoint_interval
        step, then = self._saved
        return self.trainer.step - step >= steps or time.monotonic() - then >= seconds

    def save(self, path: Path, metrics: bytes | None = None) -> None:
        """Write a checkpoint. Waits for all steps; raises DivergedError where one failed.

        metrics: those that belong to it, where they are not those of now.
        """
        self.clock.settle()  # a failed step is not to be saved
        if self.trainer.world.rank == 0:
            record = {
                "seconds": self.clock.seconds,
                "best": self.evaluator.best,
                "config": self.config.as_dict(),
                "run": self._identity,
                "metrics": mark_of(self.run.metrics() if metrics is None else metrics),
            }
            save_checkpoint(path, self.trainer.checkpoint(record))
        self._saved = (self.trainer.step, time.monotonic())
        self.clock.skip()

    # ---------------------------------------------------------------- starting, and going on

    def start(self, description: dict) -> None:
        """A new run. From here on there is always something to go back to."""

        def folder() -> None:
            self.run.refuse_started()  # another program may have, before this one had the lock
            self.run.remove_partial()
            self._identity = uuid.uuid4().hex

        self.trainer.world.on_rank_zero(folder)
        self.trainer.initialise_from_data(self.clock.whole_batch(0))
        if self.trainer.world.rank == 0:
            self.run.write_config({**description, "run": self._identity})
        self.save(self.run.last)

    def resume(self, rollback: bool, report: Callable[[str], None]) -> None:
        """Go on from the last checkpoint, or back to the best one, and drop later metrics.

        After a crash at any point in here, the same command repeats all of it.
        """
        world = self.trainer.world
        described, saved = world.on_rank_zero(lambda: self._load(rollback))
        self._restore(saved)
        world.on_rank_zero(lambda: self._go_on(rollback, described, saved, report))
        self.evaluator.best = world.broadcast(self.evaluator.best)

    def _load(self, rollback: bool) -> tuple:
        """config.json and the checkpoint to go on from; None: from the start."""
        run = self.run
        _, described = run.open(run.path)
        self._identity = described.get("run")
        run.remove_partial()
        if rollback and not run.best.exists():
            if run.read_metrics():
                raise CheckpointError(f"there is no checkpoint {run.best}: restore it, or --resume")
            return described, None
        if not run.last.exists() and not run.best.exists():
            raise CheckpointError(
                f"there is no checkpoint {run.last}: start the run again, without --resume"
            )
        source = run.best if rollback else run.last
        return described, load_checkpoint(source, self.trainer.layout, described)

    def _restore(self, saved: Checkpoint | None) -> None:
        """Set everything back on this rank."""
        if saved is None:
            self.trainer.initialise_from_data(self.clock.whole_batch(0))
        else:
            self.trainer.restore(saved)
            self.clock.seconds = saved.record["seconds"]
            self.evaluator.best = saved.record["best"]
        self.trainer.lam = self.config.lam

    def _go_on(self, rollback: bool, described: dict, saved: Checkpoint | None, report) -> None:
        """Make the folder one of a run that goes on from here."""
        run, trainer = self.run, self.trainer
        mark = saved.record.get("metrics") if saved else None
        step, steps = trainer.step, self.config.epochs * trainer.steps_per_epoch
        if step > steps:
            raise UsageError(
                f"{run.path} is at step {step}, past --epochs {self.config.epochs} ({steps} "
                "steps): give more epochs"
            )
        best = self.evaluator.best
        lost = best is not None and not self._is_best(best["step"], described)
        if step == steps and (best is None or lost and best["step"] < step):
            raise CheckpointError(
                f"{run.best} is not of the best evaluation of {run.last}: restore it, or give "
                "more --epochs to choose another"
            )
        if lost and best["step"] < step:
            report(f"{run.best} is lost or damaged: the best epoch is one after step {step}")
            self.evaluator.best = None
        if mark and mark[0] and not run.metrics_file.exists():
            report(f"{run.metrics_file} is missing: the metrics up to step {step} are lost")
            mark = mark_of(b"")
        metrics = run.metrics_at(step, mark)

        changed = self.config.changes_from(TrainConfig.from_dict(described["config"]))
        processes, now = described.get("processes", 1), trainer.world.size
        self.save(run.last, metrics)
        if metrics != run.metrics():
            run.write_metrics(metrics)
        if changed or rollback or processes != now:
            other = {"processes": [processes, now]} if processes != now else {}
            event = {"step": step, "rollback": rollback, "changed": changed | other}
            described["processes"] = now
            described["history"] = [*described.get("history", []), event]
            described["config"] |= {name: now for name, (_, now) in changed.items()}
            run.write_config(described)
        if lost and best["step"] == step:
            self.save(run.best)  # a crash came between the two files
        if step < steps:
            run.remove_summary()
        else:
            report(f"{run.path} is finished: give more --epochs to train longer")
        if changed:
            words = ", ".join(f"{name} {now} (was {old})" for name, (old, now) in changed.items())
            report(f"from step {step} on: {words}")

    def _is_best(self, step: int, described: dict) -> bool:
        """Whether best.safetensors is whole, this run's, and of this step."""
        try:
            return load_checkpoint(self.run.best, self.trainer.layout, described).step == step
        except SnfnpError:
            return False

    def advice(self) -> str:
        """How to go on after a divergence: options that then work."""
        options = f"--out {shlex.quote(str(self.run.path))} --lr {self.config.lr / 10:g}"
        best = self.evaluator.best
        where = f"the best evaluation (step {best['step']})" if best else "the start"
        ways = [f"from {where} with --rollback {options}"]
        if self.trainer.log.read().failed:  # before a likelihood explodes, parameters do
            ways.insert(0, f"from step {self._saved[0]} with --resume {options}")
        config = self.config
        free = not config.controller and all(holds(config) for holds, _ in FREE_LAMBDA)
        also = "a larger --lambda or " if free else ""
        return f"go on {' or '.join(ways)} (or with {also}--clip-norm)"
