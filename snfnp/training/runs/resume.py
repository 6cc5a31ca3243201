"""Going on with a run: its options, the checkpoint it goes on from, and its folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from snfnp.errors import CheckpointError, SnfnpError, UsageError
from snfnp.training.options import TrainConfig
from snfnp.training.runs.checkpoint import Checkpoint, load_checkpoint
from snfnp.training.runs.checkpointer import Checkpointer
from snfnp.training.runs.folder import RunFolder, metrics_digest


def resumed_config(
    folder: RunFolder, changes: dict, rollback: bool = False, keep_longer: bool = False
) -> TrainConfig:
    """The configuration with which a run goes on.

    changes: options that are others from now on; rollback: with the optimiser's settings of the
    best checkpoint, if there is one; keep_longer: fewer epochs than the run was extended to
    since are not asked for. Raises UsageError if that would not be the same run.
    """
    _, record = folder.open(folder.path)
    config = TrainConfig.from_dict(record["config"])
    if rollback and folder.best.exists():
        layout = config.build_flow(folder.data(record)[1]).layout
        best = load_checkpoint(folder.best, layout, record)
        config = config.with_optimiser_of(best.record["config"])
    if keep_longer and "epochs" in changes:
        changes = {**changes, "epochs": max(changes["epochs"], config.epochs or 0)}
    return config.resumed(changes, folder.path)


def go_on(checkpoints: Checkpointer, rollback: bool, report: Callable[[str], None]) -> None:
    """Set a run back to its last checkpoint, or to its best one, and drop later metrics.

    After a crash at any point in here, the same command repeats all of it. Raises
    CheckpointError if there is nothing to go on from.
    """
    trainer, clock = checkpoints.trainer, checkpoints.clock
    record, saved = trainer.world.on_rank_zero(lambda: _load(checkpoints, rollback))
    checkpoints.identity = record.get("run")
    if saved is None:
        trainer.initialise_from_data(clock.whole_batch(0))
    else:
        trainer.restore(saved)
        clock.seconds = saved.record["seconds"]
        checkpoints.evaluator.best = saved.record["best"]
    trainer.lam = checkpoints.config.lam
    trainer.world.on_rank_zero(lambda: _update(checkpoints, rollback, record, saved, report))
    checkpoints.evaluator.best = trainer.world.broadcast(checkpoints.evaluator.best)


def _load(checkpoints: Checkpointer, rollback: bool) -> tuple[dict, Checkpoint | None]:
    """config.json, and the checkpoint to go on from; None: from the start."""
    folder = checkpoints.folder
    _, record = folder.open(folder.path)
    folder.remove_partial()
    if rollback and not folder.best.exists():
        if folder.read_metrics():
            raise CheckpointError(f"there is no checkpoint {folder.best}: restore it, or --resume")
        return record, None
    if not folder.has_checkpoint():
        raise CheckpointError(
            f"there is no checkpoint {folder.last}: start the run again, without --resume"
        )
    path = folder.best if rollback else folder.last
    return record, load_checkpoint(path, checkpoints.trainer.layout, record)


def _update(checkpoints: Checkpointer, rollback: bool, record: dict, saved, report) -> None:
    """Make the folder one of a run that goes on from here."""
    folder, trainer, config = checkpoints.folder, checkpoints.trainer, checkpoints.config
    step, steps = trainer.step, config.epochs * trainer.steps_per_epoch
    best, kept = checkpoints.evaluator.best, None
    if step > steps:
        raise UsageError(
            f"{folder.path} is at step {step}, past --epochs {config.epochs} ({steps} steps): "
            "give more epochs"
        )
    with suppress(SnfnpError):  # it may be damaged, or another run's
        kept = load_checkpoint(folder.best, trainer.layout, record).step
    lost = best is not None and kept != best["step"]
    if step == steps and (best is None or lost and best["step"] < step):
        raise CheckpointError(
            f"{folder.best} is not of the best evaluation of {folder.last}: restore it, or give "
            "more --epochs to choose another"
        )
    if lost and best["step"] < step:
        report(f"{folder.best} is lost or damaged: the best epoch is one after step {step}")
        checkpoints.evaluator.best = None
    length, digest = saved.record["metrics"] if saved else metrics_digest(b"")
    if length and not folder.metrics_file.exists():
        report(f"{folder.metrics_file} is missing: the metrics up to step {step} are lost")
        length, digest = metrics_digest(b"")
    metrics = folder.metrics()[:length]
    if metrics_digest(metrics) != [length, digest]:
        raise SnfnpError(
            f"{folder.metrics_file} is damaged (not what it was at step {step}): restore it, or "
            "delete it to go on without"
        )
    checkpoints.save(folder.last, metrics)
    if metrics != folder.metrics():
        folder.write_metrics(metrics)
    changed = config.changes_from(TrainConfig.from_dict(record["config"]))
    before, now = record.get("processes", 1), trainer.world.size
    if changed or rollback or before != now:
        more = {"processes": [before, now]} if before != now else {}
        event = {"step": step, "rollback": rollback, "changed": changed | more}
        record["processes"] = now
        record["history"] = [*record.get("history", []), event]
        record["config"] |= {name: value for name, (_, value) in changed.items()}
        folder.write_config(record)
    if lost and best["step"] == step:
        checkpoints.save(folder.best)  # a crash came between the two files
    if step < steps:
        folder.remove_summary()
    else:
        report(f"{folder.path} is finished: give more --epochs to train longer")
    if changed:
        words = ", ".join(f"{name} {now} (was {old})" for name, (old, now) in changed.items())
        report(f"from step {step} on: {words}")
