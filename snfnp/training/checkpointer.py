"""The checkpoints of a run: when they are written, what they hold, how a run is resumed."""

import shlex
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from snfnp.errors import CheckpointError, DivergedError, SnfnpError, UsageError
from snfnp.training.options import TrainConfig
from snfnp.training.options.groups import interval
from snfnp.training.options.relations import FREE_LAMBDA
from snfnp.training.progress import Record
from snfnp.training.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

_LARGE_LAMBDA = 1e4  # above any of the paper's: it may be what overflows


class Checkpointer:
    """Writes a run's checkpoints, and sets its loop back to one.

    identity: the run's, in config.json and in each of its checkpoints.
    """

    def __init__(self, loop):
        self.folder, self.loop, self.trainer = loop.folder, loop, loop.trainer
        self.config = loop.trainer.config
        self.identity: str | None = None
        self._every = interval(self.config.checkpoint_every) or (0, 0)  # steps, seconds
        self._saved = (0, time.monotonic())  # step and time of the last checkpoint
        self._optimiser = type(loop.trainer.optimiser).__qualname__

    def due(self) -> bool:
        """True if `checkpoint_every` asks for one now."""
        (steps, seconds), (step, then) = self._every, self._saved
        return self.trainer.step - step >= steps or time.monotonic() - then >= seconds

    def save(self, *paths: Path) -> None:
        """Write a checkpoint to these paths. Raises DivergedError if a step failed, or left a
        number that is not finite: the square of a finite gradient may overflow in Adam's v."""
        self.loop.synchronise()  # raises if a step failed, which is not to be saved
        loop, step = self.loop, self.trainer.step
        best = loop.best and loop.best.figures
        record = {"seconds": loop.seconds, "best": best, "config": self.config.as_dict()}
        checkpoint = self.trainer.checkpoint(record | {"run": self.identity})
        if not checkpoint.is_finite():  # on all ranks alike
            what = "a parameter, a moment of Adam's or what layers keep is not finite"
            raise DivergedError(f"training diverged by step {step}: {what}", step)
        if self.trainer.world.rank == 0:
            for path in paths:
                save_checkpoint(path, checkpoint)
        self._saved = (step, time.monotonic())

    def start(self, description: dict) -> None:
        """Begin a new run, with a checkpoint of its start."""
        self.identity = uuid.uuid4().hex
        self.trainer.begin(self.loop.batches)
        if self.trainer.world.rank == 0:
            own = {"optimiser": self._optimiser, "run": self.identity}
            self.folder.write_config({**description, **own})
        self.save(self.folder.last)

    def keep(self, name: str, value) -> None:
        """Record an option that the run chose by itself."""
        self.config = replace(self.config, **{name: value})
        if self.trainer.world.rank == 0:
            _, record = self.folder.open(self.folder.path)
            record["config"][name] = value
            self.folder.write_config(record)

    def resume(self, rollback: bool, report: Callable[[str], None]) -> None:
        """Set the run back to its last checkpoint, or to its best one, and remove later metrics. If
        that is interrupted, the same command repeats it."""
        trainer, loop = self.trainer, self.loop
        record, saved = trainer.world.on_rank_zero(lambda: self._load(rollback))
        self.identity = record.get("run")
        if saved is None:
            trainer.begin(loop.batches)
        else:
            trainer.restore(saved)
            loop.seconds, best = saved.record["seconds"], saved.record["best"]
            loop.best = best and Record.of(best, loop.steps)
        trainer.world.on_rank_zero(lambda: self._update(rollback, record, saved, report))
        loop.best = trainer.world.broadcast(loop.best)

    def _load(self, rollback: bool) -> tuple[dict, Checkpoint | None]:
        """config.json, and the checkpoint to resume from; None: from the start."""
        folder = self.folder
        _, record = folder.open(folder.path)
        if (then := record.get("optimiser", "Adam")) != self._optimiser:
            found = f"{folder.path} was trained by the optimiser {then}, not by {self._optimiser}"
            raise UsageError(f"{found}: give snfnp.resume(…, optimiser=…) the same one")
        from_best = rollback and folder.best.exists()
        path = folder.best if from_best else folder.last
        saved = load_checkpoint(path, self.trainer.layout, record)
        if rollback and not from_best and saved.record["best"]:
            raise CheckpointError(f"there is no checkpoint {folder.best}: restore it, or resume")
        return record, saved if from_best or not rollback else None

    def _update(self, rollback: bool, record: dict, saved, report) -> None:
        """Rewrite the folder of the run that is resumed."""
        folder, trainer, config, loop = self.folder, self.trainer, self.config, self.loop
        step, steps, best, kept = trainer.step, loop.steps, loop.best, None
        at = best.step if best else 0
        if step > steps:
            past = f"past `epochs={config.epochs}` ({steps} steps)"
            raise UsageError(f"{folder.path} is at step {step}, {past}: give more epochs")
        with suppress(SnfnpError):  # it may be damaged, or another run's
            kept = load_checkpoint(folder.best, trainer.layout, record).step
        lost = best is not None and kept != at
        if step == steps and (best is None or lost and at < step):
            found = f"{folder.best} is not of the best evaluation of {folder.last}"
            raise CheckpointError(f"{found}: restore it, or give more `epochs` to choose another")
        if lost and at < step:
            report(f"{folder.best} is lost or damaged: the best epoch is one after step {step}")
            loop.best = None
        folder.read_metrics()  # raises before anything is written
        self.save(folder.last)
        if not folder.cut_metrics(step) and best:
            report(f"{folder.metrics_file} has lost the metrics up to step {step}")
        changed = config.changes_from(TrainConfig.from_dict(record["config"]))
        before, now = record.get("processes", 1), trainer.world.size
        if changed or rollback or before != now:
            more = {"processes": [before, now]} if before != now else {}
            event = {"step": step, "rollback": rollback, "changed": changed | more}
            record["processes"] = now
            record["history"] = [*record.get("history", []), event]
            record["config"] |= {name: value for name, (_, value) in changed.items()}
            folder.write_config(record)
        if lost and at == step:
            self.save(folder.best)  # a crash came between the two files
        if step < steps:
            folder.remove_summary()
            report(f"resumed from step {step} (epoch {step // trainer.steps_per_epoch})")
        else:
            report(f"{folder.path} is finished: give more `epochs` to train longer")
        if changed:
            words = (f"{name} {value} (was {old})" for name, (old, value) in changed.items())
            report(f"from step {step} on: {', '.join(words)}")

    def advice(self) -> str:
        """The ways to continue after a divergence, with options that work."""
        options = f"`out={shlex.quote(str(self.folder.path))}` `lr={self.config.lr / 10:g}`"
        origin = "the best evaluation saved" if self.folder.best.exists() else "the start"
        ways = [f"from {origin} with `rollback` {options}"]
        if self.trainer.log.read().failed:  # before a likelihood explodes, parameters do
            ways.insert(0, f"from step {self._saved[0]} with `resume` {options}")
        config = self.config
        free = not config.controller and all(need.holds(config) for need in FREE_LAMBDA)
        also = f"a {'larger' if config.lam < _LARGE_LAMBDA else 'smaller'} `lam` or " * free
        return f"go on {' or '.join(ways)} (or with {also}`clip_norm`)"
