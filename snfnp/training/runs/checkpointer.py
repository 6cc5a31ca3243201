"""The checkpoints of a run that trains: when they are written, and what is in them."""

from __future__ import annotations

import shlex
import time
import uuid
from pathlib import Path

from snfnp.errors import DivergedError
from snfnp.training.options import TrainConfig
from snfnp.training.options.option import interval
from snfnp.training.options.rules import FREE_LAMBDA
from snfnp.training.progress import Clock
from snfnp.training.runs.checkpoint import save_checkpoint
from snfnp.training.runs.folder import RunFolder, metrics_digest
from snfnp.training.trainer import Trainer


class Checkpointer:
    """Everything that a run keeps to go on from; identity: the run's, in config.json and in all of
    its checkpoints."""

    def __init__(
        self, folder: RunFolder, config: TrainConfig, trainer: Trainer, clock: Clock, evaluator
    ):
        self.folder, self.config, self.trainer = folder, config, trainer
        self.clock, self.evaluator = clock, evaluator
        self.identity: str | None = None
        self._saved = (0, time.monotonic())  # step and time of the last checkpoint

    def due(self) -> bool:
        """Say whether `--checkpoint-every` asks for one now."""
        steps, seconds = interval(self.config.checkpoint_every)
        step, then = self._saved
        return self.trainer.step - step >= steps or time.monotonic() - then >= seconds

    def save(self, path: Path, metrics: bytes | None = None) -> None:
        """Write a checkpoint. Waits for all steps; raises DivergedError if one failed, or if they
        left what could not be loaded: the square of a finite gradient may overflow in Adam's v.

        metrics: those that belong to it, if they are not those of now.
        """
        self.clock.settle()  # a failed step is not to be saved
        checkpoint, step = self.trainer.checkpoint({}), self.trainer.step
        if not checkpoint.is_sound():  # on all ranks alike
            what = "a parameter, a moment of Adam's or what layers keep is not finite"
            raise DivergedError(f"training diverged by step {step}: {what}", step)
        if self.trainer.world.rank == 0:
            checkpoint.record = {
                "seconds": self.clock.seconds,
                "best": self.evaluator.best,
                "config": self.config.as_dict(),
                "run": self.identity,
                "metrics": metrics_digest(self.folder.metrics() if metrics is None else metrics),
            }
            save_checkpoint(path, checkpoint)
        self._saved = (step, time.monotonic())
        self.clock.skip()

    def start(self, description: dict) -> None:
        """Begin a new run. From here on there is always something to go back to."""

        def claim() -> None:
            self.folder.refuse_started()  # another program may have, before this one had the lock
            self.folder.remove_partial()
            self.identity = uuid.uuid4().hex

        self.trainer.world.on_rank_zero(claim)
        self.trainer.initialise_from_data(self.clock.whole_batch(0))
        if self.trainer.world.rank == 0:
            self.folder.write_config({**description, "run": self.identity})
        self.save(self.folder.last)

    def advice(self) -> str:
        """The ways to go on after a divergence, with options that then work."""
        options = f"--out {shlex.quote(str(self.folder.path))} --lr {self.config.lr / 10:g}"
        best = self.evaluator.best
        origin = f"the best evaluation (step {best['step']})" if best else "the start"
        ways = [f"from {origin} with --rollback {options}"]
        if self.trainer.log.read().failed:  # before a likelihood explodes, parameters do
            ways.insert(0, f"from step {self._saved[0]} with --resume {options}")
        config = self.config
        free = not config.controller and all(need.holds(config) for need in FREE_LAMBDA)
        also = "a larger --lambda or " if free else ""
        return f"go on {' or '.join(ways)} (or with {also}--clip-norm)"
