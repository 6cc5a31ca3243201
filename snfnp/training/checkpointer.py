"""The checkpoints of a run: when they are written, what they hold, how a run is resumed."""

import shlex
import time
import uuid
from contextlib import suppress
from pathlib import Path

from snfnp.errors import CheckpointError, DivergedError, SnfnpError, UsageError
from snfnp.files import Json
from snfnp.step.batches import Batches
from snfnp.step.trainer import Trainer
from snfnp.training.options import TrainConfig
from snfnp.training.options.groups import interval
from snfnp.training.options.relations import FREE_LAMBDA
from snfnp.training.progress import Progress, Record, Report
from snfnp.training.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from snfnp.training.runs.folder import RunFolder

_LARGE_LAMBDA = 1e4  # above any of the paper's: it may be what overflows


class Checkpointer:
    """Writes a run's checkpoints, and restores the run from one.

    identity: the run's, in config.json and in each of its checkpoints.
    """

    def __init__(self, folder: RunFolder, trainer: Trainer, config: TrainConfig):
        self.folder = folder
        self.trainer = trainer
        self.config = config
        self.identity: str | None = None
        self._every = interval(config.checkpoint_every) or (0, 0)  # steps, seconds
        self._saved = (0, time.monotonic())  # step and time of the last checkpoint
        self._optimiser = type(trainer.optimiser).__qualname__

    def due(self) -> bool:
        """True if `checkpoint_every` asks for one now."""
        steps, seconds = self._every
        step, then = self._saved
        return self.trainer.step - step >= steps or time.monotonic() - then >= seconds

    def save(self, progress: Progress, *paths: Path) -> None:
        """Write a checkpoint to these paths, after all steps were checked.

        Raises:
            DivergedError: a number is not finite: the square of a finite gradient may overflow in
                Adam's v.
        """
        record = {
            "seconds": progress.seconds,
            "best": progress.best and progress.best.figures,
            "config": self.config.as_dict(),
            "run": self.identity,
        }
        checkpoint = Checkpoint.of(self.trainer, record)
        if not checkpoint.is_finite():
            raise DivergedError(
                f"training diverged by step {checkpoint.step}: a parameter, a moment of Adam's or "
                "what layers keep is not finite",
                checkpoint.step,
            )
        for path in paths:
            save_checkpoint(path, checkpoint)
        self._saved = (checkpoint.step, time.monotonic())

    def start(self, progress: Progress, batches: Batches, description: Json) -> None:
        """Begin a new run, with a checkpoint of its start. description: see `describe_run`."""
        self.identity = uuid.uuid4().hex
        self.trainer.begin(batches)
        identity = {"optimiser": self._optimiser, "run": self.identity}
        self.folder.write_config(description | identity)
        self.save(progress, self.folder.last)

    def resume(
        self, progress: Progress, batches: Batches, rollback: bool, report: Report
    ) -> None:
        """Restore the run from its last or best checkpoint, and remove later metrics. If that is
        interrupted, the same command repeats it.

        Args:
            progress: that of a new run, which becomes that at the checkpoint.
        """
        trainer = self.trainer
        folder = self.folder
        _, record = folder.open(folder.path)
        optimiser = record.get("optimiser", "Adam")
        if optimiser != self._optimiser:
            raise UsageError(
                f"{folder.path} was trained by the optimiser {optimiser}, not by "
                f"{self._optimiser}: give snfnp.resume(…, optimiser=…) the same one"
            )
        from_best = rollback and folder.best.exists()
        path = folder.best if from_best else folder.last
        saved = load_checkpoint(path, trainer.layout, record)
        best = saved.record["best"]
        self.identity = record.get("run")
        if from_best or not rollback:
            saved.restore(trainer)
            progress.step = saved.step
            progress.seconds = saved.record["seconds"]
            progress.best = best and Record.of(best, progress.steps)
        elif best:
            raise CheckpointError(
                f"there is no checkpoint {folder.best}: restore it, or resume"
            )
        else:  # there was no evaluation: back to the start
            trainer.begin(batches)
        self._update_folder(progress, rollback, record, report)

    def _update_folder(
        self, progress: Progress, rollback: bool, record: Json, report: Report
    ) -> None:
        """Rewrite the folder of the run that is resumed, and forget its best evaluation if the
        checkpoint of that is lost."""
        folder = self.folder
        step = progress.step
        steps = progress.steps
        best_step = progress.best.step if progress.best else 0
        if step > steps:
            raise UsageError(
                f"{folder.path} is at step {step}, past `epochs={self.config.epochs}` ({steps} "
                "steps): give more epochs"
            )
        best_saved = None
        with suppress(SnfnpError):  # it may be damaged, or another run's
            best_saved = load_checkpoint(folder.best, self.trainer.layout, record).step
        is_lost = progress.best is not None and best_saved != best_step
        # else it is evaluated there
        is_final = step == steps and not self.trainer.log.steps
        if is_final and (progress.best is None or is_lost and best_step < step):
            raise CheckpointError(
                f"{folder.best} is not of the best evaluation of {folder.last}: restore it, or "
                "give more `epochs` to choose another"
            )
        if is_lost and best_step < step:
            report(
                f"{folder.best} is lost or damaged: the best epoch is one after step {step}"
            )
            progress.best = None
        folder.read_metrics()  # raises before anything is written
        self.save(progress, folder.last)
        kept = folder.cut_metrics(step)
        if progress.best:
            progress.worse = sum(record["step"] > best_step for record in kept)
        if not kept and best_step:
            report(f"{folder.metrics_file} has lost the metrics up to step {step}")
        changes = self._record_changes(record, step, rollback)
        if is_lost and best_step == step:
            self.save(progress, folder.best)  # a crash came between the two files
        if step < steps:
            folder.remove_summary()
            report(f"resumed from step {step} (epoch {progress.epoch})")
        else:
            report(f"{folder.path} is finished: give more `epochs` to train longer")
        if changes:
            report(f"from step {step} on: {', '.join(changes)}")

    def _record_changes(self, record: Json, step: int, rollback: bool) -> list[str]:
        """Add what changes from this step on to config.json, and return it in words."""
        changed = self.config.changes_from(TrainConfig.from_dict(record["config"]))
        if changed or rollback:
            event = {"step": step, "rollback": rollback, "changed": changed}
            record.setdefault("history", []).append(event)
            record["config"] |= {name: value for name, (_, value) in changed.items()}
            self.folder.write_config(record)
        return [f"{name} {value} (was {old})" for name, (old, value) in changed.items()]

    def advice(self) -> str:
        """The ways to continue after a divergence, with options that work."""
        config = self.config
        options = f"`out={shlex.quote(str(self.folder.path))}` `lr={config.lr / 10:g}`"
        origin = (
            "the best evaluation saved" if self.folder.best.exists() else "the start"
        )
        ways = [f"from {origin} with `rollback` {options}"]
        # before a likelihood explodes, parameters do
        if self.trainer.log.read().failed:
            ways.insert(0, f"from step {self._saved[0]} with `resume` {options}")
        also = ""
        if not config.controller and all(need.holds(config) for need in FREE_LAMBDA):
            also = (
                f"a {'larger' if config.lam < _LARGE_LAMBDA else 'smaller'} `lam` or "
            )
        return f"go on {' or '.join(ways)} (or with {also}`clip_norm`)"
