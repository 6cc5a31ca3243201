"""When a run's checkpoints are written, and how it goes on from one."""

from __future__ import annotations

import shlex
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from snfnp.errors import CheckpointError, UsageError
from snfnp.training.checkpoint import load_checkpoint, save_checkpoint
from snfnp.training.config import TrainConfig
from snfnp.training.evaluation import Evaluator
from snfnp.training.progress import Clock
from snfnp.training.run import RunFolder
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

    def save(self, path: Path) -> None:
        """Write a checkpoint. Waits for all steps; raises DivergedError where one failed."""
        self.clock.settle()  # a failed step is not to be saved
        record = {
            "seconds": self.clock.seconds,
            "best": self.evaluator.best,
            "config": self.config.as_dict(),
            "run": self._identity,
            "metrics": self.run.metrics_mark(),
        }
        save_checkpoint(path, self.trainer.checkpoint(record))
        self._saved = (self.trainer.step, time.monotonic())
        self.clock.skip()

    # ---------------------------------------------------------------- starting, and going on

    def start(self, description: dict) -> None:
        """A new run. From here on there is always something to go back to."""
        self.run.refuse_started()  # another program may have, before this one had the lock
        self.run.remove_partial()
        self._identity = uuid.uuid4().hex
        self.trainer.initialise_from_data(self.clock.images_of(0))
        self.run.write_config({**description, "run": self._identity})
        self.save(self.run.last)

    def resume(self, rollback: bool, report: Callable[[str], None]) -> None:
        """Go on from the last checkpoint, or back to the best one, and drop later metrics.

        What is crossed by a crash in here is done again by the next `--resume`.
        """
        run, trainer = self.run, self.trainer
        _, described = run.open(run.path)
        self._identity = described.get("run")
        run.remove_partial()
        mark = self._restore(rollback, described)
        steps = self.config.epochs * trainer.steps_per_epoch
        if trainer.step > steps:
            raise UsageError(
                f"{run.path} is at step {trainer.step}, past --epochs {self.config.epochs} "
                f"({steps} steps): give more epochs"
            )
        trainer.lam = self.config.lam
        lost = run.cut_metrics(trainer.step, mark)
        if lost:
            report(lost)
        changed = self.config.changes_from(TrainConfig.from_dict(described["config"]))
        if changed or rollback:
            self.save(run.last)
            event = {"step": trainer.step, "rollback": rollback, "changed": changed}
            described["history"] = [*described.get("history", []), event]
            described["config"] |= {name: now for name, (_, now) in changed.items()}
            run.write_config(described)
        if changed:
            words = ", ".join(f"{name} {old} → {new}" for name, (old, new) in changed.items())
            report(f"changed from step {trainer.step} on: {words}")
        best = self.evaluator.best
        if best is not None and best["step"] == trainer.step:
            self.save(run.best)  # a crash may have come between the two files
        if trainer.step < steps:
            run.summary_file.unlink(missing_ok=True)  # it will be another
        else:
            report(f"{run.path} is finished: give more --epochs to train longer")
        self._saved = (trainer.step, time.monotonic())

    def _restore(self, rollback: bool, described: dict) -> list | None:
        """Set everything back; the mark of the metrics then (`RunFolder.cut_metrics`)."""
        run, trainer = self.run, self.trainer
        if rollback and not run.best.exists():
            if run.read_metrics():
                raise CheckpointError(f"there is no checkpoint {run.best}: restore it, or --resume")
            trainer.initialise_from_data(self.clock.images_of(0))
            return None
        if not run.last.exists() and not run.best.exists():
            raise CheckpointError(
                f"there is no checkpoint {run.last}: start the run again, without --resume"
            )
        source = run.best if rollback else run.last
        saved = load_checkpoint(source, trainer.layout, described)
        trainer.restore(saved)
        self.clock.seconds = saved.record["seconds"]
        self.evaluator.best = saved.record["best"]
        return saved.record.get("metrics")

    def advice(self) -> str:
        """How to go on after a divergence: options that then work."""
        options = f"--out {shlex.quote(str(self.run.path))} --lr {self.config.lr / 10:g}"
        best = self.evaluator.best
        where = f"the best evaluation (step {best['step']})" if best else "the start"
        ways = [f"from {where} with --rollback {options}"]
        if self.trainer.log.read().failed:  # before a likelihood explodes, parameters do
            ways.insert(0, f"from step {self._saved[0]} with --resume {options}")
        also = "a larger --lambda or " if self.config.rule.learns_inverse else ""
        return f"go on {', or '.join(ways)} (or with {also}--clip-norm)"
