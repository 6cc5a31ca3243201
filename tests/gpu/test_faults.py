"""Faults in the midst of a step, plain or recorded: it can be repeated, and nothing stays."""

from __future__ import annotations

import gc
import os
import signal
import threading
from itertools import count

import numpy as np
import pytest
from support.trainers import batches_of, host, make_trainer, take_steps

from snfnp.ops.gpu.launch import Launcher

STEPS = 5
PLAIN, RECORDED = 1, 2  # steps: the second plain one, and the one that is recorded


def fails(ops):
    raise RuntimeError("CUDA_ERROR_LAUNCH_FAILED: no such launch")


def interrupted(ops):
    raise KeyboardInterrupt


def interrupted_by_a_signal(ops):
    os.kill(os.getpid(), signal.SIGINT)


def out_of_memory(ops):
    raise ops.xp.cuda.memory.OutOfMemoryError(1 << 40, 0, 0)


def waits(ops):
    """Which a plain step may, and a recorded one must not."""
    ops.to_host(ops.device.counters)


FAULTS = (fails, interrupted, interrupted_by_a_signal, out_of_memory, waits)


def training(ops, said, **changes):
    """A trainer before its first step, and its batches."""
    trainer = make_trainer(ops, "fc", side=4, report=said.append, **changes)
    batches = batches_of(trainer)
    trainer.begin(batches)
    return trainer, batches


def assert_nothing_stays(ops, trainer, expected, said):
    """The bits of steps without a graph; a recording, or one line."""
    for name in ("p", "m", "v"):
        np.testing.assert_array_equal(host(trainer, name), host(expected, name))
    assert trainer.metrics() == expected.metrics()
    assert bool(trainer._ascend._recording.graph) != bool(said) and len(said) < 2
    assert all("cannot be recorded as a CUDA graph" in line for line in said)
    assert gc.isenabled()
    assert not ops.to_host(ops.device.counters).any()


@pytest.fixture
def expected(ops):
    return take_steps(make_trainer(ops, "fc", graph=False, side=4), range(STEPS))


@pytest.mark.parametrize("launch", [2, 12])
@pytest.mark.parametrize("at", [PLAIN, RECORDED])
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_step_is_repeated_after_a_fault(
    ops, monkeypatch, expected, fault, at, launch
):
    said = []
    launches = count(1)
    start = Launcher._start
    trainer, batches = training(ops, said)
    faults = []

    def faulty(self, *of):
        if trainer.step == at and next(launches) == launch:
            faults.append(launch)
            fault(ops)
        start(self, *of)

    monkeypatch.setattr(Launcher, "_start", faulty)
    threads = threading.active_count()
    while trainer.step < STEPS:
        try:
            trainer.training_step(batches)
        except (RuntimeError, KeyboardInterrupt, MemoryError):
            assert trainer.step == at
    assert len(faults) == 1 and threading.active_count() == threads
    assert bool(said) == (at == RECORDED and fault in (fails, out_of_memory, waits))
    assert_nothing_stays(ops, trainer, expected, said)


@pytest.mark.parametrize("name", ["begin_capture", "end_capture"])
def test_a_capture_that_fails_leaves_plain_steps(ops, monkeypatch, expected, name):
    said = []
    trainer, batches = training(ops, said)
    kind = type(trainer._ascend._recording.stream)
    method = getattr(kind, name)

    def faulty(stream, *of):
        if name == "end_capture":
            method(stream, *of)
        raise RuntimeError("cudaErrorStreamCaptureInvalidated")

    monkeypatch.setattr(kind, name, faulty)
    for _ in range(STEPS):
        trainer.training_step(batches)
    monkeypatch.undo()
    assert said
    assert_nothing_stays(ops, trainer, expected, said)
