"""Runs that tests stop, kill and compare."""

import importlib
import json
import shlex
import shutil
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from snfnp.cli import main
from snfnp.cli import train as command
from snfnp.parameters import Layout
from snfnp.training import plots, session
from snfnp.training.runs.checkpoint import load_checkpoint, record_of
from snfnp.training.runs.folder import RunFolder
from snfnp.training.runs.load import load_run
from support.trainers import at_step, run_training, small_dataset, without_time


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run. Not to be changed: see `copy`."""
    path = tmp_path_factory.mktemp("runs") / "finished"
    run_training(path)
    return path


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


def config_json(path):
    """What a run's config.json holds."""
    return json.loads((Path(path) / "config.json").read_text())


def write_module(folder, name, text, monkeypatch):
    """Write a module of one's own, which can be imported and is not."""
    (folder / "code").mkdir()
    (folder / "code" / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(folder / "code")
    monkeypatch.setitem(sys.modules, name, None)  # what a test leaves is taken back
    del sys.modules[name]
    importlib.invalidate_caches()


def forge(path, record=None, **options):
    """Write a config.json with a right checksum: this record, or the run's with other options."""
    folder = RunFolder(path)
    if record is None:
        record = config_json(path)
        record["config"] |= options
    folder.write_config(record)


def estimator_checkpoint(path):
    """The checkpoint that `FlowDensity.save` wrote."""
    shapes = record_of(path)["shapes"].items()
    shapes = {
        layer: {name: tuple(s) for name, s in own.items()} for layer, own in shapes
    }
    return load_checkpoint(path, Layout.of(shapes, fixed=tuple(shapes)))


def arrays(checkpoint):
    return {name: getattr(checkpoint, name) for name in "pmv"} | checkpoint.state


def state(path, name="last", flow=None):
    return load_run(path, name, flow=flow).checkpoint


def assert_same_run(first, second, flow=None):
    a = state(first, flow=flow)
    b = state(second, flow=flow)
    assert a.step == b.step
    np.testing.assert_equal(arrays(a), arrays(b))
    records = [without_time(RunFolder(path).read_metrics()) for path in (first, second)]
    assert records[0] == records[1] and records[0]


class Killed(BaseException):
    """An end as sudden as kill -9: nothing of the program's catches it."""


def kill(*_, **__):
    raise Killed


@contextmanager
def stopped_at(monkeypatch, step, action=kill, error=Killed):
    """The block trains a run until right before a step, where the action ends it by that error."""
    with monkeypatch.context() as patched, pytest.raises(error):
        at_step(patched, step, action)
        yield


def around(monkeypatch, owner, name, before=kill, after=None):
    """Do something right before, or instead right after, every call; it gets the arguments."""
    original = getattr(owner, name)

    def changed(*args, **options):
        if after is None:
            before(*args)
        result = original(*args, **options)
        if after is not None:
            after(*args)
        return result

    monkeypatch.setattr(owner, name, changed)


@pytest.fixture
def advance(monkeypatch):
    """A function that puts the clock of the training time forward, by some seconds."""
    ahead = []
    clock = time.perf_counter
    monkeypatch.setattr(time, "perf_counter", lambda: clock() + sum(ahead))
    return ahead.append


@pytest.fixture
def undrawn(monkeypatch):
    """The command trains without its pictures, which take longest in a small run."""
    monkeypatch.setattr(command, "_draw", lambda *_: None)
    monkeypatch.setattr(plots, "Animation", lambda points: None)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved."""
    figures = []
    save = lambda figure, *_, **__: figures.append(figure)  # noqa: E731
    monkeypatch.setattr(plots.Figure, "savefig", save)
    return figures


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder is an empty one."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def shell(here, undrawn, monkeypatch):
    """A function that runs what is typed in an empty folder, in this process."""
    monkeypatch.setenv("SNFNP_OFFLINE", "1")
    return lambda line: main(shlex.split(line))


@pytest.fixture
def snfnp_train(undrawn, monkeypatch):
    """The command on small images, in this process: what is typed, and more words."""
    monkeypatch.setattr(session, "load_dataset", lambda name, folder: small_dataset())
    return lambda line, *words: command.main([*shlex.split(line), *map(str, words)])


SHORT = "--backend numpy --batch-size 20 --epochs 2 --warmup-epochs 0.5"
START = "--backend numpy --batch-size 20 --warmup-epochs 1 --epochs 3"
