"""The first run on a machine: what is said while kernels are compiled, and the warm-up."""

import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from support import processes
from support.runs import assert_same_run
from support.trainers import run_training, small_config, small_dataset

from snfnp.cli import shared
from snfnp.ops import get_ops
from snfnp.ops.gpu.launch import Launcher
from snfnp.ops.host import HostDevice
from snfnp.step.batches import Repeated
from snfnp.step.trainer import Trainer
from snfnp.training import progress
from snfnp.training.runs.folder import RunFolder
from snfnp.training.session import fit, train

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("here")]


@pytest.fixture(params=["ascend", "renew"])
def slow_ops(monkeypatch, request, advance):
    """NumPy's, with steps, or renewals before them, whose first call compiles two kernels."""
    ops = get_ops("numpy")
    watching = []
    original = getattr(Trainer, request.param)

    @contextmanager
    def compilations(begins, ends):
        watching.append((begins, ends))
        yield

    def slowly(trainer, images):
        while watching:
            begins, ends = watching.pop()
            begins()
            advance(1000)
            ends(2)
        original(trainer, images)

    ops.device.compiles = True
    ops.device.compilations = compilations
    monkeypatch.setattr(Trainer, request.param, slowly)
    return ops


def test_what_is_compiled_is_said_and_no_step_takes_its_time(slow_ops):
    said = []
    run = RunFolder("run")
    config = small_config(backend="numpy", epochs=1, out=run.path)
    summary = train(config, small_dataset(), ops=slow_ops, report=said.append)
    assert (
        said.count("compiling kernels (cached for later runs; safe to interrupt)") == 1
    )
    assert "compiled 2 kernels in 1000 s" in said
    assert summary["training_seconds"] < 1000 > run.read_metrics()[0]["seconds"]


@pytest.fixture
def compiling(monkeypatch):
    """NumPy's operations, and a function that pretends to compile kernels of 6 seconds each."""
    clock = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: clock[0])
    ops = get_ops("numpy")
    events = []

    @contextmanager
    def compilations(begins, ends):
        events.extend((begins, ends))
        yield

    def compile_kernels(count):
        begins, ends = events
        for _ in range(count):
            begins()
            clock[0] += 6
            ends(1)

    ops.device.compilations = compilations
    return ops, compile_kernels


def test_a_command_says_on_standard_error_that_it_compiles(compiling, capsys):
    """What it prints is not touched."""
    ops, compile_kernels = compiling
    with shared.busy(ops, "count", 1):
        compile_kernels(1)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("compiling kernels (cached for later runs;")
    assert err.endswith("compiled 1 kernel in 6 s\n")


def test_a_log_shows_that_compiling_goes_on(compiling):
    """One kernel after the other, as long as they take: a line every quarter of a minute."""
    ops, compile_kernels = compiling
    said = []
    with progress.compilations_shown(ops, said.append):
        compile_kernels(8)
    assert said == [
        "compiling kernels (cached for later runs; safe to interrupt)",
        "compiling: 3 kernels, 18 s so far",
        "compiling: 6 kernels, 36 s so far",
        "compiled 8 kernels in 48 s",
    ]


_KERNELS = """
import gc
from numba.core.registry import CPUDispatcher
from support.trainers import run_training, small_dataset
from snfnp.training.checkpointer import Checkpointer

def ready():
    found = (each for each in gc.get_objects() if isinstance(each, CPUDispatcher))
    return {(each.py_func.__qualname__, str(of)) for each in found for of in each.signatures}

known, saved = [], Checkpointer.save
def save(*arguments, **named):
    known.append(ready())
    saved(*arguments, **named)

Checkpointer.save = save
for model in ("fc", "conv", "glow-2l-4k"):
    known.clear()
    run_training(model, small_dataset(side=8), model=model, epochs=2, backend="numba")
    print(len(known), len(known[0]) > 3, sorted(known[-1] - known[0]))
"""


def test_nothing_is_compiled_after_the_warm_up(tmp_path):
    """From the first checkpoint, before the first step, to that after the last evaluation: what
    looks at layers once an epoch has no kernels of its own."""
    done = processes.python(_KERNELS, cwd=tmp_path, **processes.environment())
    assert done.stdout.splitlines() == ["3 True []"] * 3, done.stderr


@pytest.mark.parametrize("changes", [{}, {"lambda_control": "geco", "clip_norm": 1.0}])
def test_a_warm_up_leaves_no_trace(monkeypatch, changes):
    changes = {"backend": "numba"} | changes
    run_training("warm", **changes)
    monkeypatch.setattr(HostDevice, "prepare", lambda device, work: None)
    run_training("not", **changes)
    assert_same_run("warm", "not")


def test_a_warm_up_puts_back_what_steps_change_if_it_fails(monkeypatch):
    config = small_config(backend="numpy")
    trainer = Trainer(get_ops("numpy"), config.build_flow((5, 5, 1)), config, 5)
    before = trainer.p.copy()

    def prepare(step):
        step()
        assert (trainer.p != before).any() and trainer.log.read().last[2] > 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trainer.warm_up(Repeated(small_dataset().train[:20]), prepare)
    assert (trainer.p == before).all() and not trainer.m.any() and not trainer.v.any()
    assert trainer.step == 0 and not trainer.log.array.any()


@pytest.mark.parametrize(
    "epochs, warmup, line",
    [
        (2, 1.5, None),
        (2, 2, "it ends within its warm-up, at a rate of 0.001: give more `epochs`, "),
        (
            1,
            4,
            "it ends within its warm-up, at a rate of 0.00025: give more `epochs`, ",
        ),
        (2, None, None),  # the preset's ten are a quarter of so few
    ],
)
def test_a_run_that_ends_within_its_warm_up_says_so(tmp_path, epochs, warmup, line):
    said = []
    options = {"epochs": epochs, "warmup_epochs": warmup, "backend": "numpy"}
    train(small_config(**options, out=tmp_path), small_dataset(), report=said.append)
    found = [each for each in said[0].split("\n") if "within its warm-up" in each]
    assert found == ([f"{line}or fewer `warmup_epochs`"] if line else [])


def test_the_recipe_learns_from_some_hundred_small_images():
    """At a rate of 0.01 after an epoch of warm-up, as on MNIST, these runs explode after one epoch
    or two."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:8, :8]
    (centre, middle), radius = rng.uniform(2, 6, (2, 600, 1, 1)), rng.uniform(1, 3, 600)
    inside = (x - centre) ** 2 + (y - middle) ** 2 < radius[:, None, None] ** 2
    discs, grounds = rng.integers(0, 256, (2, 600, 1, 1, 3))
    images = np.where(inside[..., None], discs, grounds)
    images = np.clip(images + rng.normal(0, 6, images.shape), 0, 255).astype(np.uint8)
    found = []
    options = {"model": "conv", "recipe": "white", "epochs": 6, "backend": "numpy"}
    options |= {"callbacks": [lambda record: found.append(record.figures)]}
    fit(images, **options, report=None)
    nats = [each["validation_nll_nats"] for each in found if each]
    assert len(nats) == 6 and nats[-1] < nats[0] - 100 and max(nats) == nats[0]


def test_a_launcher_says_when_it_compiles(monkeypatch):
    """Once for a group of kernels and a type, before and after."""
    said = []
    module = SimpleNamespace(get_function=lambda name: name)
    runtime = SimpleNamespace(getDevice=lambda: 0)
    cupy = SimpleNamespace(
        cuda=SimpleNamespace(runtime=runtime), RawModule=lambda **options: module
    )
    launcher = Launcher(cupy)
    launcher.observer = (lambda: said.append("begins"), said.append)
    for kernel in ("adam", "adam", "log_step"):
        launcher._function(kernel, np.dtype("float32"))
    assert said[0] == "begins" and said[1] > 1 and len(said) == 2


_COMMAND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
from snfnp.cli import run_script
run_script()
"""
_TRAIN = ["train", "--model", "conv", "--out", "run"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words, number",
    [
        (["check"], signal.SIGINT),
        (_TRAIN, signal.SIGTERM),
    ],
    ids=["check", "train"],
)
def test_a_signal_ends_a_compilation_at_once(tmp_path, words, number):
    environment = processes.environment(
        NUMBA_CACHE_DIR=str(tmp_path), SNFNP_OFFLINE="1"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", _COMMAND, *words]
    process = subprocess.Popen(command, env=environment, cwd=tmp_path, **pipes)
    # the first kernel
    while process.poll() is None and not list(tmp_path.rglob("*.nbc")):
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=15)
    assert process.returncode == 130, errors
    assert "KeyboardInterrupt" not in errors
    assert not [file for file in tmp_path.glob("run/*") if file.name != "run.lock"]
    RunFolder.create("run")  # the same command starts it again
