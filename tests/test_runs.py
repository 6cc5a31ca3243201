"""A run that is stopped, locked, changed or goes wrong: nothing is lost, and it goes on."""

import dataclasses
import math
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from support.messages import assert_one_line
from support.trainers import (
    at_step,
    run_training,
    small_config,
    small_dataset,
    spoil,
    without_time,
)

from snfnp.cli import train as command
from snfnp.errors import CheckpointError, DivergedError, SnfnpError, UsageError
from snfnp.flow import Flow
from snfnp.likelihood import Likelihood
from snfnp.ops import get_ops
from snfnp.training import checkpointer, files
from snfnp.training.checkpoint import load_checkpoint
from snfnp.training.load import load_run
from snfnp.training.loop import train
from snfnp.training.run import RunFolder
from snfnp.training.trainer import Trainer

STATE = ("p", "m", "v")


def state(path, name="last"):
    return load_run(path, name).checkpoint


def assert_same_run(first, second):
    a, b = state(first), state(second)
    assert (a.step, a.lam, a.seed) == (b.step, b.lam, b.seed)
    for name in STATE:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert_same_metrics(first, second)


def assert_same_metrics(first, second):
    records = [without_time(RunFolder(path).read_metrics()) for path in (first, second)]
    assert records[0] == records[1] and records[0]


class Killed(BaseException):
    """As sudden as kill -9: nothing of the program's catches it."""


def kill(*_, **__):
    raise Killed


@pytest.fixture
def snfnp_train(monkeypatch):
    """The command on small images, in this process."""
    monkeypatch.setattr(command, "load_dataset", lambda name, folder: small_dataset())
    monkeypatch.setattr(command, "_draw", lambda *args: None)

    def run(*arguments):
        command.main([*map(str, arguments)])

    return run


START = ("--backend", "numpy", "--batch-size", 20, "--warmup-epochs", 1, "--epochs", 3)


# ---------------------------------------------------------------- the lock


HOLDER = """
import sys, time
from snfnp.training.run import RunFolder
with RunFolder(sys.argv[1]).lock:
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has locked a folder."""
    (tmp_path / "run").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_trainer_is_told_who_is_the_first_and_its_death_is_enough(tmp_path, holder):
    path = tmp_path / "run"
    with pytest.raises(UsageError) as caught:
        run_training(path)
    assert_one_line(caught.value, path, "is in use by process", holder.pid, os.uname().nodename)
    assert {file.name for file in path.iterdir()} == {"run.lock"}
    holder.kill()
    holder.wait()
    assert (path / "run.lock").exists()
    run_training(path, epochs=1)
    assert not (path / "run.lock").exists()


@pytest.mark.parametrize("how", [{"resume": True}, {"resume": "best"}, {}])
def test_a_trainer_keeps_others_out_from_its_first_step_to_its_last(tmp_path, monkeypatch, how):
    refused = []

    def intrude(trainer):
        with pytest.raises(UsageError, match="in use|exists") as caught:
            run_training(tmp_path / "run", **how)
        refused.append(str(caught.value))

    run_training(tmp_path / "alone")
    with monkeypatch.context() as patched:
        at_step(patched, 7, intrude)
        run_training(tmp_path / "run")
    assert len(refused) == 1
    assert_same_run(tmp_path / "alone", tmp_path / "run")


def in_threads(count, work):
    errors = []

    def guarded():
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def test_of_a_race_for_a_new_folder_one_wins(tmp_path):
    together, done, won = threading.Barrier(8), threading.Barrier(8), []

    def race():
        together.wait()
        try:
            run = RunFolder.create(tmp_path / "run")
            with run.lock:
                won.append(run)
                done.wait()
        except UsageError:
            done.wait()
            raise

    errors = in_threads(8, race)
    assert len(won) == 1 and len(errors) == 7
    assert all(isinstance(error, UsageError) for error in errors)


def test_a_lock_that_is_given_back_is_never_held_twice(tmp_path):
    """Its file is removed, which must not let two in that opened it before and after."""
    held, taken, until = [], [], time.monotonic() + 1

    def work():
        while time.monotonic() < until:
            try:
                with files.FolderLock(tmp_path / "run.lock"):
                    held.append(1)
                    assert len(held) == 1
                    taken.append(1)
                    held.pop()
            except UsageError:
                pass

    assert not in_threads(4, work)
    assert len(taken) > 20


def test_a_lock_on_a_file_that_was_just_removed_is_none(tmp_path, monkeypatch):
    """The holder gives it back between another's opening and locking of the file."""
    path, original = tmp_path / "run.lock", files._lock
    first, second = files.FolderLock(path), files.FolderLock(path)
    first.__enter__()

    def lock_late(file):
        if second._file is file and first._entered:
            first.__exit__()
        original(file)

    monkeypatch.setattr(files, "_lock", lock_late)
    with second, pytest.raises(UsageError, match="is in use"), files.FolderLock(path):
        pass


def test_a_folder_whose_start_lost_the_race_is_looked_at_again(tmp_path):
    late = RunFolder.create(tmp_path / "run")
    run_training(tmp_path / "run", epochs=1)
    with pytest.raises(UsageError, match="exists and holds"):
        train(small_config(), small_dataset(), get_ops("numpy"), late, report=lambda text: None)


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(files, "_lock", refuse)
    run_training(tmp_path / "run", epochs=1)
    assert "cannot be locked here (Function not implemented)" in capsys.readouterr().err


def test_two_writers_of_a_file_never_share_a_temporary_one(tmp_path):
    path, contents = tmp_path / "file", [bytes([n]) * 200_000 for n in range(4)]
    files.write_atomically(path, contents[0])
    left = list(contents)

    def write():
        content = left.pop()
        for _ in range(20):
            files.write_atomically(path, content)
            assert path.read_bytes() in contents

    assert not in_threads(4, write)
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_durable_under_its_name(tmp_path, monkeypatch):
    """After a power failure too: the content before it is renamed, the folder after that."""
    done, fsync, replace = [], os.fsync, os.replace

    def noted_fsync(number):
        done.append("folder" if stat.S_ISDIR(os.fstat(number).st_mode) else "file")
        fsync(number)

    def noted_replace(*paths):
        done.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    files.write_atomically(tmp_path / "file", b"content")
    assert done == ["file", "rename", "folder"]


# ---------------------------------------------------------------- starting


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


# ---------------------------------------------------------------- --resume auto


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
        monkeypatch.setattr(command, "load_dataset", lambda name, folder, other=other: other)
        with pytest.raises(UsageError, match="was trained on .* images .*found"):
            snfnp_train("--resume", "--out", tmp_path / "run")


# ---------------------------------------------------------------- changes, and back to the best


def test_a_resumed_run_may_change_how_it_is_trained(snfnp_train, tmp_path, capsys):
    run = tmp_path / "run"
    snfnp_train(*START, "--epochs", 1, "--out", run)
    changes = ("--lr", 0.002, "--lambda", 3, "--clip-norm", 5)
    snfnp_train("--resume", "--out", run, "--epochs", 2, *changes)
    assert "from step 5 on: epochs 2 (was 1), lr 0.002 (was 0.0001)," in capsys.readouterr().out
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


# ---------------------------------------------------------------- divergence


def ways_on(error):
    """The options that an error's advice names."""
    return [shlex.split(found) for found in re.findall(r"--r\w+ --out .*? --lr \S+", str(error))]


@pytest.mark.parametrize("step, where", [(2, "the start"), (8, r"the best evaluation \(step 5\)")])
def test_every_way_on_after_a_nan_can_be_gone(
    snfnp_train, tmp_path, monkeypatch, capsys, step, where
):
    path = tmp_path / "a run"  # a shell needs quotes

    def poison(trainer):
        trainer.params["dense1"]["W"].flat[0] = np.nan

    with monkeypatch.context() as patched, pytest.raises(DivergedError, match=where) as caught:
        at_step(patched, step, poison)
        snfnp_train(*START, "--lr", 0.01, "--out", path)
    assert_one_line(caught.value, f"diverged at step {step + 1}", "--clip-norm", "--lambda")
    ways = ways_on(caught.value)
    assert [way[0] for way in ways] == ["--resume", "--rollback"]
    kept = shutil.copytree(path, tmp_path / "kept")
    for way in ways:
        shutil.rmtree(path)
        shutil.copytree(kept, path)
        snfnp_train(*way)
        assert state(path).step == 15 and load_run(path, "last").config.lr == 0.001


def test_a_likelihood_that_explodes_while_finite_is_never_called_done(snfnp_train, tmp_path):
    """fc, λ = 0.01, lr = 1, which ended at 5e10 bits/dim with status 0."""
    path, way = tmp_path / "run", (*START, "--lambda", 0.01, "--lr", 1, "--out", tmp_path / "run")
    for attempt in range(8):
        try:
            snfnp_train(*way)
            break
        except DivergedError as error:
            assert_one_line(error, "exploded" if attempt == 0 else "")
            assert not (path / "summary.json").exists()
            way = ways_on(error)[-1]
            assert way[0] == "--rollback"
    assert attempt > 0 and state(path).step == 15
    assert RunFolder(path).read_metrics()[-1]["validation_bits_per_dimension"] < 16


def test_worse_than_twice_the_best_and_the_pixels_is_an_explosion(tmp_path, monkeypatch):
    def blow_up(trainer):
        trainer.params["dense1"]["W"][...] *= 100

    at_step(monkeypatch, 12, blow_up)
    with pytest.raises(DivergedError, match="epoch 3 has exploded") as caught:
        run_training(tmp_path / "run", lr=1e-6)
    assert "best evaluation (step" in str(caught.value)
    assert [way[0] for way in ways_on(caught.value)] == ["--rollback"]


def test_a_start_far_from_the_images_is_no_explosion(tmp_path, monkeypatch):
    original = Flow.init

    def far(flow, seed):
        drawn = original(flow, seed)
        drawn["dense1"]["W"] *= 10
        return drawn

    monkeypatch.setattr(Flow, "init", far)
    run, _ = run_training(tmp_path / "run", lr=1e-7, epochs=1)
    assert run.read_metrics()[0]["validation_bits_per_dimension"] > 32


@pytest.mark.parametrize("name", ["surrogate", "reconstruction", "gradient_norm"])
def test_figures_that_are_not_finite_stop_a_run(tmp_path, monkeypatch, name):
    original = Trainer.averages

    def spoiled_averages(trainer):
        return dataclasses.replace(original(trainer), **{name: float("nan")})

    monkeypatch.setattr(Trainer, "averages", spoiled_averages)
    with pytest.raises(DivergedError, match=f"{name.replace('_', ' ')} after epoch 1 is not fin"):
        run_training(tmp_path / "run")
    assert not RunFolder(tmp_path / "run").metrics_file.exists()


def test_a_test_likelihood_that_is_not_finite_is_never_called_done(tmp_path, monkeypatch):
    original, calls = Likelihood.evaluate, []

    def evaluate(likelihood, *args, **options):
        found = original(likelihood, *args, **options)
        calls.append(found)
        return dataclasses.replace(found, ledger={"x": math.nan}) if len(calls) == 4 else found

    monkeypatch.setattr(Likelihood, "evaluate", evaluate)
    with pytest.raises(DivergedError, match="exact test likelihood at the best epoch is not fin"):
        run_training(tmp_path / "run")
    assert len(calls) == 4 and not RunFolder(tmp_path / "run").summary_file.exists()


def test_the_test_figure_is_never_that_of_another_epoch_than_the_best(tmp_path, monkeypatch):
    run, _ = run_training(tmp_path / "run", epochs=1)
    older = run.best.read_bytes()
    original = checkpointer.save_checkpoint

    def save(path, checkpoint):
        original(path, checkpoint)
        if path.name == "best.safetensors":
            path.write_bytes(older)

    monkeypatch.setattr(checkpointer, "save_checkpoint", save)
    with pytest.raises(CheckpointError, match="is of step 5, but the best evaluation was at"):
        run_training(tmp_path / "run", resume=True)


# ---------------------------------------------------------------- signals, checkpoints in between


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
