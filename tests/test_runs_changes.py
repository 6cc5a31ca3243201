"""Going on with other settings, and back to the best checkpoint."""

import os
import shutil
import signal

import numpy as np
import pytest
from support.messages import assert_one_line
from support.runs import START, STATE, Killed, assert_same_run, kill, state
from support.trainers import (
    at_step,
    run_training,
    small_config,
    spoil,
)

from snfnp.errors import CheckpointError, SnfnpError
from snfnp.training.runs import checkpointer
from snfnp.training.runs.checkpoint import load_checkpoint
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import load_run


def test_a_resumed_run_may_change_how_it_is_trained(snfnp_train, tmp_path, capsys):
    run = tmp_path / "run"
    snfnp_train(*START, "--epochs", 1, "--out", run)
    changes = ("--lr", 0.002, "--lambda", 3, "--clip-norm", 5)
    snfnp_train("--resume", "--out", run, "--epochs", 2, *changes)
    changed = "from step 5 on: lam 3.0 (was 1.0), lr 0.002 (was 0.0001), clip_norm 5.0 (was None)"
    assert changed in capsys.readouterr().out
    snfnp_train("--resume", "--out", run, "--epochs", 3)  # they stay
    loaded = load_run(run, "last")
    assert (loaded.config.lr, loaded.config.clip_norm, loaded.checkpoint.lam) == (0.002, 5, 3)
    first, second = loaded.record["history"]
    assert (first["step"], first["rollback"]) == (5, False)
    assert first["changed"] == {
        "epochs": [1, 2], "lr": [1e-4, 0.002], "lam": [1.0, 3.0], "clip_norm": [None, 5.0],
    }  # fmt: skip
    assert (second["step"], second["changed"]) == (10, {"epochs": [2, 3]})
    assert [record["lam"] for record in loaded.folder.read_metrics()] == [1, 3, 3]


def test_a_change_is_in_force_from_that_step_on(tmp_path, monkeypatch):
    """The same numbers as of a trainer that is changed by hand."""

    def change(trainer):
        trainer.lam = 3.0
        trainer.config = small_config(lam=3.0, lr=2e-3, clip_norm=5.0)

    with monkeypatch.context() as patched, pytest.raises(CheckpointError, match="is damaged"):
        at_step(patched, 5, change)
        run_training(tmp_path / "by hand")  # its checkpoints do not agree with its configuration
    run_training(tmp_path / "run", epochs=1)
    run_training(tmp_path / "run", resume=True, lam=3.0, lr=2e-3, clip_norm=5.0)
    found = state(tmp_path / "run")
    expected = load_checkpoint(tmp_path / "by hand" / "last.safetensors", found.layout)
    for name in STATE:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.fixture
def spoiled(tmp_path, monkeypatch):
    """A run of three epochs whose best is the first, at λ = 1; the rest is at λ = 2."""
    run_training(tmp_path / "run", epochs=1)
    with monkeypatch.context() as patched:
        at_step(patched, 6, spoil)
        run_training(tmp_path / "run", resume=True, lam=2.0)
    assert load_run(tmp_path / "run").checkpoint.step == 5
    return tmp_path / "run"


def test_rollback_goes_back_to_the_best_with_its_settings(spoiled, snfnp_train, tmp_path):
    snfnp_train("--rollback", "--out", spoiled)
    run_training(tmp_path / "never", epochs=1)
    run_training(tmp_path / "never", resume=True)
    assert_same_run(spoiled, tmp_path / "never")
    event = load_run(spoiled).record["history"][-1]
    assert event == {"step": 5, "rollback": True, "changed": {"lam": [2.0, 1.0]}}


def test_rollback_takes_changes_along(spoiled, snfnp_train):
    snfnp_train("--rollback", "--out", spoiled, "--lr", 1e-5, "--lambda", 4)
    loaded = load_run(spoiled, "last")
    assert (loaded.config.lr, loaded.checkpoint.lam, loaded.checkpoint.step) == (1e-5, 4, 15)
    assert [record["lam"] for record in loaded.folder.read_metrics()] == [1, 4, 4]


def test_rollback_before_the_first_evaluation_goes_back_to_the_start(snfnp_train, tmp_path):
    whole, part = tmp_path / "whole", tmp_path / "part"
    snfnp_train(*START, "--out", whole)
    with pytest.MonkeyPatch.context() as patched, pytest.raises(KeyboardInterrupt):
        at_step(patched, 3, lambda trainer: os.kill(os.getpid(), signal.SIGTERM))
        snfnp_train(*START, "--out", part)
    assert state(part).step == 4
    snfnp_train("--rollback", "--out", part)
    assert_same_run(whole, part)


def test_rollback_without_the_best_that_there_was_is_refused(snfnp_train, spoiled):
    (spoiled / "best.safetensors").unlink()
    with pytest.raises(SnfnpError, match="there is no checkpoint .*best.safetensors") as caught:
        snfnp_train("--rollback", "--out", spoiled)
    assert_one_line(caught.value)


WRITES = [
    (checkpointer, "save_checkpoint"),
    (RunFolder, "write_metrics"),
    (RunFolder, "write_config"),
    (RunFolder, "remove_summary"),
]


@pytest.mark.parametrize("owner, name", WRITES, ids=[name for _, name in WRITES])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_crash_while_going_back_is_made_good_by_the_same_command(
    spoiled, snfnp_train, tmp_path, monkeypatch, owner, name, after
):
    again = shutil.copytree(spoiled, tmp_path / "again")
    snfnp_train("--rollback", "--out", spoiled, "--lr", 1e-5)
    original = getattr(owner, name)

    def crash(*args):
        if after:
            original(*args)
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(owner, name, crash)
        snfnp_train("--rollback", "--out", again, "--lr", 1e-5)
    plain = shutil.copytree(again, tmp_path / "plain")
    snfnp_train("--resume", "--out", plain)  # goes on as well, from wherever that was
    assert state(plain).step == 15
    snfnp_train("--rollback", "--out", again, "--lr", 1e-5)
    assert_same_run(spoiled, again)
    histories = [load_run(path).record["history"] for path in (spoiled, again)]
    assert histories[0][-1]["step"] == histories[1][-1]["step"] == 5


def test_a_summary_of_before_is_gone_while_a_run_goes_on(tmp_path, monkeypatch):
    run, _ = run_training(tmp_path / "run", epochs=1)
    assert run.summary_file.exists()
    with monkeypatch.context() as patched, pytest.raises(Killed):
        at_step(patched, 7, kill)
        run_training(tmp_path / "run", resume=True)
    assert not run.summary_file.exists()
