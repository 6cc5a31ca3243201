"""Signals, checkpoints between evaluations, kills: a resumed run repeats an uninterrupted one."""

import os
import signal
import time

import pytest
from support.runs import Killed, assert_same_run, kill, state
from support.trainers import (
    at_step,
    run_training,
)

from snfnp.training.runs import checkpointer
from snfnp.training.runs.folder import RunFolder
from snfnp.training.trainer import Trainer


@pytest.fixture
def saved_steps(monkeypatch):
    """The steps at which last.safetensors is written."""
    steps, original = [], checkpointer.save_checkpoint

    def noted(path, checkpoint):
        if path.name == "last.safetensors":
            steps.append(checkpoint.step)
        return original(path, checkpoint)

    monkeypatch.setattr(checkpointer, "save_checkpoint", noted)
    return steps


def test_sigusr1_writes_a_checkpoint_and_training_goes_on(tmp_path, monkeypatch, saved_steps):
    said = []
    at_step(monkeypatch, 7, lambda trainer: os.kill(os.getpid(), signal.SIGUSR1))
    run_training(tmp_path / "run", report=said.append)
    assert saved_steps == [0, 5, 8, 10, 15]
    assert any("checkpoint at step 8" in line for line in said)


def test_sigusr1_ends_no_run_that_is_not_taking_steps(tmp_path, monkeypatch):
    original, sent = Trainer.initialise_from_data, []

    def signalled(trainer, images):
        os.kill(os.getpid(), signal.SIGUSR1)
        sent.append(1)
        return original(trainer, images)

    before = signal.signal(signal.SIGUSR1, lambda *args: pytest.fail("the run was ended"))
    try:
        monkeypatch.setattr(Trainer, "initialise_from_data", signalled)
        run_training(tmp_path / "run", epochs=1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert sent


def test_a_second_sigterm_does_not_cut_off_the_checkpoint(tmp_path, monkeypatch):
    def twice(trainer):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    at_step(monkeypatch, 7, twice)
    with pytest.raises(KeyboardInterrupt):
        run_training(tmp_path / "run")
    assert state(tmp_path / "run").step == 8


@pytest.mark.parametrize(
    "every, steps",
    [
        ("3", [0, 3, 5, 8, 10, 13, 15]),
        ("1000", [0, 5, 10, 15]),
        ("10m", [0, 5, 10, 15]),
        ("0.000001m", list(range(16))),
    ],
)
def test_checkpoints_come_between_evaluations(tmp_path, saved_steps, every, steps):
    run_training(tmp_path / "run", checkpoint_every=every)
    assert saved_steps == steps


@pytest.mark.parametrize("changes", [{}, {"clip_norm": 5.0}, {"gradient": "exact"}])
@pytest.mark.parametrize("step", [1, 7, 8, 14])
def test_a_kill_in_mid_epoch_changes_no_number(tmp_path, monkeypatch, changes, step):
    """Neither parameters nor metrics, whose averages are of the whole epoch."""
    run_training(tmp_path / "whole", **changes)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        at_step(patched, step, kill)
        run_training(tmp_path / "part", checkpoint_every="2", **changes)
    assert step - state(tmp_path / "part").step < 2
    run_training(tmp_path / "part", resume=True, **changes)
    assert_same_run(tmp_path / "whole", tmp_path / "part")


@pytest.mark.parametrize("name", ["append_metrics", "last.safetensors", "best.safetensors"])
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_kill_between_the_files_of_an_evaluation_changes_no_number(
    tmp_path, monkeypatch, name, epoch
):
    run_training(tmp_path / "whole")
    original, append = checkpointer.save_checkpoint, RunFolder.append_metrics

    def save(path, checkpoint):
        original(path, checkpoint)
        if path.name == name and checkpoint.step == 5 * epoch:
            raise Killed

    def append_and_die(run, record):
        append(run, record)
        if record["epoch"] == epoch:
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(checkpointer, "save_checkpoint", save)
        if name == "append_metrics":
            patched.setattr(RunFolder, name, append_and_die)
        run_training(tmp_path / "part")
    run_training(tmp_path / "part", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "part")
    best = [state(tmp_path / path, "best").step for path in ("whole", "part")]
    assert best[0] == best[1]


def test_time_spent_on_checkpoints_is_not_training_time(tmp_path, monkeypatch):
    original = checkpointer.save_checkpoint

    def slow(path, checkpoint):
        time.sleep(0.1)
        return original(path, checkpoint)

    monkeypatch.setattr(checkpointer, "save_checkpoint", slow)
    run, _ = run_training(tmp_path / "run", epochs=1, checkpoint_every="1", backend="numpy")
    assert run.read_metrics()[0]["seconds"] < 0.2
