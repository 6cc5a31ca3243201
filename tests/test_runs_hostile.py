"""Run folders from somebody else: links, pipes and devices in the place of files, a full disk."""

import os
import resource
import shutil
import signal

import pytest
from support.messages import assert_one_line
from support.runs import START, assert_same_run
from support.trainers import run_training

from snfnp.cli import compare
from snfnp.errors import SnfnpError, UsageError
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import load_run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run. Not to be changed: see `copy`."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    run_training(path, backend="numpy", epochs=1)
    return path


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


@pytest.mark.parametrize("name", ["run.lock", "metrics.jsonl"])
def test_nothing_is_written_through_a_link(copy, tmp_path, name):
    """The file behind it may be anybody's."""
    victim = tmp_path / "victim"
    if name == "metrics.jsonl":
        (copy / name).rename(victim)
    else:
        victim.write_text("precious")
    before = victim.read_bytes()
    (copy / name).symlink_to(victim)
    with pytest.raises(SnfnpError, match=f"cannot write .*{name} .it is a symbolic link") as caught:
        run_training(copy, resume=True, backend="numpy", epochs=2)
    assert_one_line(caught.value)
    assert victim.read_bytes() == before


def test_a_new_run_does_not_follow_a_link_either(tmp_path):
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(UsageError, match="it is a symbolic link"):
        run_training(tmp_path / "run", backend="numpy", epochs=1)
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_linked_folder_of_events_is_left_alone(copy, tmp_path):
    events = tmp_path / "other" / "events.out.tfevents.1"
    events.parent.mkdir()
    events.write_text("precious")
    (copy / "tensorboard").symlink_to(events.parent)
    with pytest.raises(SnfnpError, match="tensorboard .it is a symbolic link") as caught:
        run_training(copy, resume=True, backend="numpy", epochs=2, tensorboard=True)
    assert_one_line(caught.value)
    assert [file.read_text() for file in events.parent.iterdir()] == ["precious"]


@pytest.fixture
def bounded():
    """A test that waits for somebody at the other end of a pipe fails."""

    def ring(*_):
        raise TimeoutError("it waits")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


WAYS = {
    "load": lambda path, name: load_run(path, name),
    "resume": lambda path, name: run_training(path, resume=True, backend="numpy", epochs=2),
    "compare": lambda path, name: compare.main([str(path)]),
}
PIPES = [
    *(("load", name) for name in ("config.json", "last.safetensors", "best.safetensors")),
    *(("resume", name) for name in ("config.json", "last.safetensors", "metrics.jsonl")),
    ("resume", "run.lock"),
    *(("compare", name) for name in ("config.json", "metrics.jsonl", "summary.json")),
]


@pytest.mark.parametrize("way, name", PIPES)
def test_a_pipe_in_the_place_of_a_file_is_refused(copy, bounded, way, name):
    (copy / name).unlink(missing_ok=True)
    os.mkfifo(copy / name)
    with pytest.raises(SnfnpError, match=f"{name} .it is no regular file") as caught:
        WAYS[way](copy, name.partition(".")[0])
    assert_one_line(caught.value)


def test_a_device_in_the_place_of_the_lock_is_refused(tmp_path):
    (tmp_path / "run.lock").symlink_to("/dev/null")
    with pytest.raises(UsageError, match="cannot write .*run.lock"):
        run_training(tmp_path, backend="numpy", epochs=1)


def test_a_lock_does_not_need_room_for_its_holders_name(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    first, second = RunFolder(tmp_path).lock, RunFolder(tmp_path).lock
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))  # no file may grow
    try:
        first.__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(UsageError, match="in use by another process"), second:
        pass
    first.__exit__()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["a" * 256, "a" * 5000, "file/run"])
def test_auto_on_a_path_that_cannot_be_is_one_line(snfnp_train, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot make") as caught:
        snfnp_train(*START, "--resume", "auto", "--out", out)
    assert_one_line(caught.value)


def test_a_link_to_a_whole_run_folder_is_one(finished, copy, tmp_path):
    (tmp_path / "link").symlink_to(copy)
    run_training(tmp_path / "link", resume=True, backend="numpy", epochs=1)
    assert_same_run(finished, tmp_path / "link")
