"""Two programs and one run folder: the lock, and files that are written whole."""

import os
import stat
import subprocess
import sys
import threading
import time

import pytest
from support.messages import assert_one_line
from support.runs import assert_same_run
from support.trainers import (
    at_step,
    run_training,
    small_config,
    small_dataset,
)

from snfnp.errors import UsageError
from snfnp.ops import get_ops
from snfnp.training import files
from snfnp.training.loop import train
from snfnp.training.runs import lock
from snfnp.training.runs.folder import RunFolder

HOLDER = """
import sys, time
from snfnp.training.runs.folder import RunFolder
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
                with lock.FolderLock(tmp_path / "run.lock"):
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
    path, original = tmp_path / "run.lock", lock._lock
    first, second = lock.FolderLock(path), lock.FolderLock(path)
    first.__enter__()

    def lock_late(file):
        if second._file is file and first._entered:
            first.__exit__()
        original(file)

    monkeypatch.setattr(lock, "_lock", lock_late)
    with second, pytest.raises(UsageError, match="is in use"), lock.FolderLock(path):
        pass


def test_a_folder_whose_start_lost_the_race_is_looked_at_again(tmp_path):
    late = RunFolder.create(tmp_path / "run")
    run_training(tmp_path / "run", epochs=1)
    with pytest.raises(UsageError, match="exists and holds"):
        train(small_config(), small_dataset(), get_ops("numpy"), late, report=lambda text: None)


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock, "_lock", refuse)
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
