"""Going on with a run: its options, the checkpoint it goes on from, and its folder."""

from __future__ import annotations

from collections.abc import Callable

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
    world = checkpoints.trainer.world
    record, saved, checkpoints.identity = world.on_rank_zero(lambda: _load(checkpoints, rollback))
    _restore(checkpoints, saved)
    world.on_rank_zero(lambda: _update_folder(checkpoints, rollback, record, saved, report))
    checkpoints.evaluator.best = world.broadcast(checkpoints.evaluator.best)


def _load(checkpoints: Checkpointer, rollback: bool) -> tuple:
    """config.json, the checkpoint to go on from (None: from the start), and the run's identity."""
    folder = checkpoints.folder
    _, record = folder.open(folder.path)
    folder.remove_partial()
    if rollback and not folder.best.exists():
        if folder.read_metrics():
            raise CheckpointError(f"there is no checkpoint {folder.best}: restore it, or --resume")
        return record, None, record.get("run")
    if not folder.has_checkpoint():
        raise CheckpointError(
            f"there is no checkpoint {folder.last}: start the run again, without --resume"
        )
    path = folder.best if rollback else folder.last
    return record, load_checkpoint(path, checkpoints.trainer.layout, record), record.get("run")


def _restore(checkpoints: Checkpointer, saved: Checkpoint | None) -> None:
    """Set everything back on this rank."""
    trainer, clock = checkpoints.trainer, checkpoints.clock
    if saved is None:
        trainer.initialise_from_data(clock.whole_batch(0))
    else:
        trainer.restore(saved)
        clock.seconds = saved.record["seconds"]
        checkpoints.evaluator.best = saved.record["best"]
    trainer.lam = checkpoints.config.lam


def _update_folder(
    checkpoints: Checkpointer, rollback: bool, record: dict, saved: Checkpoint | None, report
) -> None:
    """Make the folder one of a run that goes on from here."""
    folder, trainer, config = checkpoints.folder, checkpoints.trainer, checkpoints.config
    evaluator, best = checkpoints.evaluator, checkpoints.evaluator.best
    step, steps = trainer.step, config.epochs * trainer.steps_per_epoch
    if step > steps:
        raise UsageError(
            f"{folder.path} is at step {step}, past --epochs {config.epochs} ({steps} steps): "
            "give more epochs"
        )
    lost = best is not None and not _is_best(checkpoints, best["step"], record)
    if step == steps and (best is None or lost and best["step"] < step):
        raise CheckpointError(
            f"{folder.best} is not of the best evaluation of {folder.last}: restore it, or give "
            "more --epochs to choose another"
        )
    if lost and best["step"] < step:
        report(f"{folder.best} is lost or damaged: the best epoch is one after step {step}")
        evaluator.best = None
    metrics = _metrics_at(folder, step, saved, report)
    checkpoints.save(folder.last, metrics)
    if metrics != folder.metrics():
        folder.write_metrics(metrics)
    changed = config.changes_from(TrainConfig.from_dict(record["config"]))
    _record_changes(folder, record, changed, step, rollback, trainer.world.size)
    if lost and best["step"] == step:
        checkpoints.save(folder.best)  # a crash came between the two files
    if step < steps:
        folder.remove_summary()
    else:
        report(f"{folder.path} is finished: give more --epochs to train longer")
    if changed:
        words = ", ".join(f"{name} {now} (was {old})" for name, (old, now) in changed.items())
        report(f"from step {step} on: {words}")


def _metrics_at(folder: RunFolder, step: int, saved: Checkpoint | None, report) -> bytes:
    """The metrics up to the step of a checkpoint, as it records them."""
    digest = saved.record["metrics"] if saved else metrics_digest(b"")
    if digest[0] and not folder.metrics_file.exists():
        report(f"{folder.metrics_file} is missing: the metrics up to step {step} are lost")
        return b""
    return folder.metrics_at(step, digest)


def _record_changes(
    folder: RunFolder, record: dict, changed: dict, step: int, rollback: bool, processes: int
) -> None:
    """Note in config.json's history how the run goes on, if other than before."""
    before = record.get("processes", 1)
    if not (changed or rollback or processes != before):
        return
    more = {"processes": [before, processes]} if processes != before else {}
    event = {"step": step, "rollback": rollback, "changed": changed | more}
    record["processes"] = processes
    record["history"] = [*record.get("history", []), event]
    record["config"] |= {name: now for name, (_, now) in changed.items()}
    folder.write_config(record)


def _is_best(checkpoints: Checkpointer, step: int, record: dict) -> bool:
    """Say whether best.safetensors is whole, this run's, and of this step."""
    path, layout = checkpoints.folder.best, checkpoints.trainer.layout
    try:
        return load_checkpoint(path, layout, record).step == step
    except SnfnpError:
        return False
