"""The training step as a CUDA graph: the same numbers, in order, and its memory given back."""

from __future__ import annotations

import gc
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from support.arrays import normal, pixels
from support.trainers import BATCH, host, make_trainer

from gpu.standin import run_alone
from gpu.test_training import take_steps
from snfnp.errors import BackendError
from snfnp.ops import RandomKey, get_ops
from snfnp.ops.gpu.cublas import Cublas

pytestmark = pytest.mark.slow


def test_a_graph_runs_in_order_with_what_its_callers_start(ops):
    """On two streams, which unlike the default one wait for no other by themselves: plain calls and
    replays come after what their caller did, before what it does next, and one after another."""
    xp = ops.xp
    total = xp.zeros(())
    seen = xp.zeros(8)

    def step(images):
        total[...] = 2 * total + images.sum()

    graph = ops.device.capture(step)
    images = xp.empty((300, 300))
    callers = [xp.cuda.Stream(non_blocking=True) for _ in range(2)]
    ops.device.synchronise()
    for number in range(8):
        with callers[number >= 5]:
            if number < 5:
                images.fill(number)
            graph(images)
            # the second caller waits for replays, not for what the first did then
            if number != 4:
                seen[number] = total
    ops.device.synchronise()
    expected = [0]
    for number in range(1, 8):
        expected.append(2 * expected[-1] + 90_000 * min(number, 4))
    expected[4] = 0
    assert graph._recording.graph and ops.to_host(seen).tolist() == expected


def test_another_batch_size_is_recorded_again(ops):
    eager, graph = (make_trainer(ops, graph=flag) for flag in (False, True))
    for trainer in (eager, graph):
        take_steps(trainer, range(4))
    first = graph._ascend._recording.graph
    for trainer in (eager, graph):
        take_steps(trainer, range(4, 8), batch=BATCH - 2)
    assert first and graph._ascend._recording.graph not in (None, first)
    assert_array_equal(host(graph, "p"), host(eager, "p"))


def test_a_step_that_cannot_be_recorded_runs_without_a_graph_and_reports_why(ops):
    """The exact gradient asks whether a matrix is singular: the host has to wait."""
    reports = []
    eager = take_steps(make_trainer(ops, "fc", "exact", graph=False), range(5))
    graph = take_steps(
        make_trainer(ops, "fc", "exact", report=reports.append), range(5)
    )
    (line,) = reports
    assert "cannot be recorded as a CUDA graph" in line
    assert "\n" not in line
    assert_array_equal(host(graph, "p"), host(eager, "p"))
    recording = graph._ascend._recording
    assert not recording.graph and recording.pool.total_bytes() == 0


def test_nothing_is_collected_while_a_step_is_recorded(ops):
    """CUDA objects that Python's collector frees could spoil the recording."""
    collected = []

    def note(phase, info):
        collected.append(graph._recording.stream.is_capturing())

    def step(images):
        for _ in range(5000):
            cycle = []
            cycle.append(cycle)
        total[...] = images.sum()

    images = ops.xp.ones((3, 4))
    total = ops.xp.zeros(())
    graph = ops.device.capture(step)
    gc.callbacks.append(note)
    try:
        for _ in range(4):
            graph(images)
    finally:
        gc.callbacks.remove(note)
    assert graph._recording.graph and float(total) == 12
    assert collected and not any(collected)
    assert gc.isenabled()


def test_a_recorded_draw_is_that_of_the_same_samples_in_every_step(ops):
    """key.first is a constant of the recording, and the step is not."""
    images = pixels(9, 7)
    number, x, nu = ops.asarray(np.zeros(1, np.uint64)), *ops.xp.empty((2, 4, 7))

    def draw(images):
        key = RandomKey(5, 1, number.reshape(()), first=5)
        x[...] = ops.images.preprocess(images, key, 1e-6, 256, np.float64)[0]
        nu[...] = ops.random.normal(key, (4, 7), np.float64)

    part = ops.asarray(images[5:])
    whole = ops.asarray(images)
    graph = ops.device.capture(draw)
    for step in range(5):
        number[...] = step
        ops.device.synchronise()
        graph(part)
        ops.device.synchronise()
        key = RandomKey(5, 1, step)
        expected = ops.images.preprocess(whole, key, 1e-6, 256, np.float64)[0][5:]
        assert_array_equal(*map(ops.to_host, (x, expected)))
        expected = ops.random.normal(key, (9, 7), np.float64)[5:]
        assert_array_equal(*map(ops.to_host, (nu, expected)))
    assert graph._recording.graph


def test_a_graphs_pool_is_empty_when_its_trainer_goes(ops):
    """By the pool's own count: the device's is also other tests', and on a GPU the driver's."""
    trainer = take_steps(make_trainer(ops, "conv", side=4), range(4))
    pool = trainer._ascend._recording.pool
    assert pool.total_bytes() > 0
    trainer._ascend._recording.restart(None)  # as for another batch size
    assert pool.total_bytes() == 0
    take_steps(trainer, range(4, 8), batch=BATCH - 2)
    assert pool.total_bytes() > 0
    del trainer
    gc.collect()
    assert pool.total_bytes() == 0


def test_a_cublas_handle_is_set_up_once_for_a_stream_and_destroyed(ops, monkeypatch):
    """cublasSetStream would take the workspace away, and each call costs time."""
    called = []
    set_stream = Cublas._set_stream

    def noted(products, stream):
        called.append(stream)
        set_stream(products, stream)

    products = Cublas(ops.xp, tf32=False)
    monkeypatch.setattr(Cublas, "_set_stream", noted)
    a = ops.xp.ones((3, 3))
    streams = [ops.xp.cuda.Stream(non_blocking=True) for _ in range(2)]
    for stream in (streams[0], streams[0], streams[1], streams[0]):
        with stream:
            products.gemm(a, a, ops.xp.empty((3, 3)))
    assert called == [streams[index].ptr for index in (0, 1, 0)]
    destroyed = []
    handle = products._handle.value

    class Library:
        def cublasDestroy_v2(self, handle):
            destroyed.append((handle.value, ops.xp.cuda.runtime.getDevice()))

    finalizer = next(
        each for each in weakref.finalize._registry if each.peek()[0] is products
    )
    _, destroy, (device, library, of), _ = finalizer.detach()
    weakref.finalize(products, destroy, device, Library(), of)
    del products
    assert destroyed == [(handle, 0)]
    destroy(device, library, of)


def test_a_backend_refuses_another_device(ops, monkeypatch):
    a = ops.xp.ones((3, 3))
    for part in (ops.device.launch, ops.device.cublas):
        monkeypatch.setattr(part._guard, "id", 1)
    graph = ops.device.capture(print)
    monkeypatch.setattr(graph._guard, "id", 1)
    for use in (
        lambda: ops.linalg.axpby(1.0, a, 1.0, a.copy()),
        lambda: ops.linalg.matmul(a, a),
        lambda: graph(a),
    ):
        with pytest.raises(
            BackendError, match="made on GPU 1, and GPU 0 is the current one"
        ):
            use()


def test_a_backend_refuses_another_thread(ops):
    """Counters and cuBLAS's workspace are for one launch after another."""
    a = ops.xp.ones((3, 3))
    graph = ops.device.capture(print)
    found = []
    uses = (
        lambda: ops.linalg.axpby(1.0, a, 1.0, a.copy()),
        lambda: ops.linalg.matmul(a, a),
        lambda: graph(a),
        lambda: get_ops("cupy").linalg.matmul(a, a),  # one of its own
    )

    def run():
        for use in uses:
            try:
                found.append(ops.to_host(use()).tolist())
            except BackendError as error:
                found.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    *refused, product = found
    assert all(
        "in another thread: make one in every thread" in line for line in refused
    )
    assert len(refused) == 3 and product == [[3.0] * 3] * 3


_PER_THREAD = """
import numpy as np
from support.trainers import host, make_trainer, take_steps
from snfnp.ops import get_ops
ops = get_ops("cupy")
stream = ops.xp.cuda.get_current_stream()
found = [host(take_steps(make_trainer(ops, side=4, graph=g), range(5)), "p") for g in (True, False)]
print(stream.ptr, np.array_equal(*found), np.isfinite(found).all())
"""


def test_the_default_stream_may_be_the_threads_own():
    """Of one thread, whose launches are in order on it: pointer 2."""
    assert (
        run_alone(_PER_THREAD, CUPY_CUDA_PER_THREAD_DEFAULT_STREAM="1")
        == "2 True True\n"
    )


def test_constants_are_not_in_a_graphs_pool(ops):
    device = ops.device
    pool = ops.xp.cuda.MemoryPool()
    with ops.xp.cuda.using_allocator(pool.malloc):
        made = device.constant(normal(7))
    assert made.shape == (7,) and pool.total_bytes() == 0


def test_a_recording_may_need_new_memory_and_new_constants(ops):
    """CuPy's pool breaks ties by host addresses: a recorded call may need one more block."""
    said = []
    calls = []
    table = normal(11)
    total = ops.xp.zeros(())

    def step(images):
        calls.append(None)
        if len(calls) == 3:  # the recorded call
            ops.xp.empty(1 << 20)
            total[...] = ops.device.constant(table).sum() + images.sum()
        else:
            total[...] = images.sum()

    graph = ops.device.capture(step, said.append)
    images = ops.xp.empty((3, 4))
    for number in range(5):
        images[...] = number
        graph(images)
    assert graph._recording.graph and not said and len(calls) == 3
    assert_allclose(float(total), 48 + table.sum(), rtol=1e-12)


def test_a_recording_whose_pool_returned_memory_is_not_used(ops, standin):
    """If memory runs out, CuPy returns free blocks, some of which the recording may have used."""
    said = []
    total = ops.xp.zeros(())

    def step(images):
        total[...] = ops.xp.zeros(1 << 20).sum() + images.sum()
        if ops.xp.cuda.get_current_stream().is_capturing():
            graph._recording.pool.free_all_blocks()

    graph = ops.device.capture(step, said.append)
    images = ops.xp.ones(3)
    for _ in range(4):
        graph(images)
    assert (
        not graph._recording.graph
        and "its pool ran out of memory" in said[0]
        and float(total) == 3
    )


def test_memory_is_given_back_after_the_last_use(ops):
    """The graph's own stream and the last replay's are waited for first."""
    graph = ops.device.capture(lambda images: None)
    order = []
    graph(ops.xp.ones(3))
    for name in ("stream", "done"):
        note = SimpleNamespace(synchronize=lambda name=name: order.append(name))
        setattr(graph._recording, name, note)
    graph._recording.pool = SimpleNamespace(
        free_all_blocks=lambda: order.append("pool")
    )
    del graph
    gc.collect()
    assert order == ["stream", "done", "pool"]


def test_replays_need_no_more_memory(ops):
    """By the pools' own count: the whole device's free memory is also the driver's, which may
    take some for itself at any time, and other programs'."""
    trainer = take_steps(make_trainer(ops), range(5))
    pools = (ops.xp.get_default_memory_pool(), trainer._ascend._recording.pool)
    before = [pool.total_bytes() for pool in pools]
    take_steps(trainer, range(5, 15))
    assert [pool.total_bytes() for pool in pools] == before
