"""Starting a run, and `--resume auto`: nothing of a start that failed stands in the way."""

import os
import signal

import pytest
from support.messages import assert_one_line
from support.runs import START, Killed, assert_same_run, kill, state
from support.trainers import (
    at_step,
    small_dataset,
)

from snfnp.errors import SnfnpError, UsageError
from snfnp.training import session
from snfnp.training.trainer import Trainer


@pytest.mark.parametrize(
    "options, message",
    [
        (("--epochs", 0), "--epochs is 0"),
        (("--model", "glow"), "."),  # 5×5 images cannot be squeezed
        (("--gradient", "exact", "--lambda", 2), "--lambda only has an effect"),
        (("--checkpoint-every", "soon"), "--checkpoint-every is soon"),
        (("--resume", "later"), "invalid choice: 'later'"),
    ],
)
def test_a_start_that_is_refused_makes_no_folder(snfnp_train, tmp_path, options, message):
    with pytest.raises(SnfnpError, match=message) as caught:
        snfnp_train("--backend", "numpy", "--batch-size", 20, *options, "--out", tmp_path / "run")
    assert_one_line(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("where", ["initialise_from_data", "checkpoint"])
def test_a_run_killed_before_its_first_checkpoint_starts_again(
    snfnp_train, tmp_path, monkeypatch, where
):
    start = (*START, "--out", tmp_path / "run")
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Trainer, where, kill)
        snfnp_train(*start)
    (tmp_path / "run" / "run.lock").write_text("process 1 on elsewhere\n")
    (tmp_path / "run" / "last.safetensors.1-ab.partial").write_bytes(b"half")
    with pytest.raises(SnfnpError, match="no checkpoint|is no run folder") as caught:
        snfnp_train("--resume", "--out", tmp_path / "run")
    assert_one_line(caught.value)
    snfnp_train(*start)
    snfnp_train(*START, "--out", tmp_path / "other")
    assert_same_run(tmp_path / "run", tmp_path / "other")
    assert not list((tmp_path / "run").glob("*.partial"))


def test_one_command_starts_goes_on_and_reports_the_end(snfnp_train, tmp_path, monkeypatch, capsys):
    same = (*START, "--resume", "auto", "--out", tmp_path / "run")
    for step in (2, 8):
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
            at_step(patched, step, lambda trainer: os.kill(os.getpid(), signal.SIGTERM))
            snfnp_train(*same)
    snfnp_train(*same)
    capsys.readouterr()
    before = state(tmp_path / "run")
    snfnp_train(*same)
    out = capsys.readouterr().out
    assert "is finished: give more --epochs" in out and "best epoch" in out
    assert state(tmp_path / "run").step == before.step == 15
    snfnp_train("--resume", "--epochs", 4, "--out", tmp_path / "run")
    snfnp_train(*same)  # asks for 3 again, which is less than there is
    assert state(tmp_path / "run").step == 20
    snfnp_train(*START, "--epochs", 4, "--out", tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    "options, message",
    [
        (("--resume", "auto"), "--resume auto needs --out"),
        (("--resume",), "--resume and --rollback need --out"),
        (("--rollback",), "--resume and --rollback need --out"),
        (("--rollback", "--resume", "auto", "--out", "x"), "would go back each time"),
    ],
)
def test_what_resume_needs_is_said(snfnp_train, options, message):
    with pytest.raises(UsageError, match=message):
        snfnp_train(*options)


def test_other_images_are_refused(snfnp_train, tmp_path, monkeypatch):
    snfnp_train(*START, "--out", tmp_path / "run")
    for other in (small_dataset(80), small_dataset(side=6)):
        monkeypatch.setattr(session, "load_dataset", lambda name, folder, other=other: other)
        with pytest.raises(UsageError, match="was trained on .* images .*found"):
            snfnp_train("--resume", "--out", tmp_path / "run")
