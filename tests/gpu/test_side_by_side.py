"""Launches: what layers do side by side becomes fewer of them, and they fill a large GPU."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import numpy as np
import pytest
from support.operation_calls import SIZES, assert_as_defined, in_order
from support.operation_cases import OVERRIDES
from support.trainers import BATCH, gradient_of, images_of, make_trainer

from gpu.test_methods import SMALL, WAYS, assert_alike
from gpu.test_training import take_steps
from snfnp.ops.gpu.launch import Launcher
from snfnp.training.batches import Repeated, cut

LEARNED = [way for way, (changes, _) in WAYS.items() if "gradient" not in changes]


@pytest.fixture
def started(monkeypatch):
    """The launches so far: [(kernel, blocks, threads), …]."""
    found, start = [], Launcher._start

    def noted(self, kernel, dtype, blocks, threads, values):
        found.append((kernel, blocks, threads))
        start(self, kernel, dtype, blocks, threads, values)

    monkeypatch.setattr(Launcher, "_start", noted)
    return found


@pytest.mark.parametrize("way", LEARNED)
def test_the_numbers_are_those_of_one_layer_after_another(ops, monkeypatch, way):
    """Bit for bit: of steps, and of slices of a batch, of which one leaves out terms."""
    trainers, slices = [], []
    for apart in (True, False):
        with monkeypatch.context() as patched:
            if apart:
                patched.setattr(type(ops.device), "deferred", lambda device: nullcontext())
            trainer = make_trainer(ops, graph=False, side=SMALL, **WAYS[way][0])
            trainers.append(take_steps(trainer, range(2)))
            images = images_of(trainer, 0)
            parts = [(images[part.first :][: part.count], part) for part in cut(BATCH, 2)]
            slices.append([ops.to_host(gradient_of(trainer, *of)) for of in parts])
    assert_alike(*trainers)
    np.testing.assert_array_equal(*slices)


GROUPED = ["axpby", "channel_sum", "conv", "conv_weight_grad", "conv_weight_grad_sum", "residual"]
GROUPED += ["scaled_kernel"]


def test_operations_beside_themselves_are_as_defined(ops, started):
    """Of the same size, and of others, which want other numbers of threads."""

    def check(name, seed):
        for size in SIZES[seed // 2 :] + SIZES[: seed // 2]:
            call = OVERRIDES[name](np.random.default_rng(seed), np.float64, size)
            assert_as_defined(ops, name, call, in_order(ops.asarray))

    names = ["channels.sum", "conv.correlate", "conv.weight_grad"]
    for name in [*names, "linalg.axpby", "linalg.residual", "linalg.scale_into"]:
        with ops.device.deferred():
            for seed in range(4):
                ops.device.defer(object(), check, name, seed)
    assert {f"{name}_tasks" for name in GROUPED} <= {name for name, _, _ in started}
    assert not ops.to_host(ops.device.counter).any()


def test_launches_of_one_kernel_become_one(ops, started):
    """As many as fit; those of one owner keep their order; another kernel's are apart."""
    xp, device = ops.xp, ops.device
    outs = [xp.full((3, 50 * k + 1), 2.0) for k in range(30)]
    with device.deferred():
        for k, out in enumerate(outs):
            device.defer(out, ops.linalg.axpby, float(k), xp.ones_like(out), 1.0, out)
            device.defer(out, ops.linalg.axpby, 0.0, out.copy(), 3.0, out)
        device.defer(device, ops.channels.shift, outs[0], xp.ones(1))
        assert not started
    assert [name for name, _, _ in started] == ["axpby_tasks"] * 4
    assert sum(blocks for _, blocks, _ in started) == 2 * sum(-(-out.size // 256) for out in outs)
    for k, out in enumerate(outs):
        np.testing.assert_array_equal(ops.to_host(out), 3.0 * (2 + k))


def test_sums_of_several_tasks_are_each_their_own(ops, started):
    rng, found = np.random.default_rng(0), {}
    arrays = [rng.standard_normal((4000, channels)) for channels in (1, 3, 40)]

    def residual(k, array):
        found[k] = ops.linalg.residual(ops.asarray(array), ops.asarray(0 * array))
        found[-1 - k] = ops.channels.sum(ops.asarray(array))

    with ops.device.deferred():
        for k, array in enumerate(arrays):
            ops.device.defer(array, residual, k, array)
    assert [name for name, _, _ in started] == ["residual_tasks", "channel_sum_tasks"]
    assert not ops.to_host(ops.device.counter).any()
    for k, array in enumerate(arrays):
        np.testing.assert_allclose(float(found[k]), (array**2).sum() / 4000, rtol=1e-12)
        np.testing.assert_allclose(ops.to_host(found[-1 - k]), array.sum(axis=0), atol=1e-10)


def test_a_failure_is_raised_and_leaves_nothing_behind(ops):
    """A failure before the end of the block drops what was deferred."""
    threads, done, out = threading.active_count(), [], ops.xp.zeros(3)

    def launches(count):
        for _ in range(count):
            ops.linalg.axpby(1.0, ops.xp.ones(3), 1.0, out)
        done.append(count)

    def fails():
        launches(1)
        raise ZeroDivisionError("of a layer")

    with pytest.raises(ZeroDivisionError, match="of a layer"), ops.device.deferred():
        for owner, call in enumerate((lambda: launches(3), fails, lambda: launches(1))):
            ops.device.defer(owner, call)
    with pytest.raises(KeyError), ops.device.deferred():
        ops.device.defer(done, launches, 5)
        raise KeyError
    assert threading.active_count() == threads and 5 not in done and 3 not in done
    launches(2)  # outside of a block, at once
    assert done[-1] == 2


def test_calls_run_on_the_callers_stream_and_take_memory_from_its_pool(ops):
    xp, seen, pool = ops.xp, [], ops.xp.cuda.MemoryPool()
    stream = xp.cuda.Stream(non_blocking=True)

    def look():
        seen.append((xp.cuda.get_current_stream().ptr, xp.zeros(1000)))

    with stream, xp.cuda.using_allocator(pool.malloc), ops.device.deferred():
        for owner in range(2):
            ops.device.defer(owner, look)
    assert [at for at, _ in seen] == [stream.ptr] * 2 and pool.used_bytes() >= 16_000
    ops.device.synchronise()


# ---------------------------------------------------------------- the blocks of a launch


SIDE, IMAGES = 28, 100  # MNIST, and the paper's batch
MULTIPROCESSORS = 132  # of an H100
# Blocks at least: two for every multiprocessor where a kernel goes over pixels and samples, one for
# each sample where it sums over a sample, and as many as there are warps of pixels for the knots.
LEAST = {
    "adam": 2 * MULTIPROCESSORS,
    "conv": 2 * MULTIPROCESSORS,
    "conv_weight_grad": 2 * MULTIPROCESSORS,
    "spline": IMAGES,
    "spline_backward": MULTIPROCESSORS,
    "spline_knots": 3 * SIDE * SIDE // 32,
    "gaussian_log_density": IMAGES,
    "preprocess": IMAGES,
    "sum_squares": MULTIPROCESSORS // 2,
    "axpby": 2 * MULTIPROCESSORS,
    "residual": MULTIPROCESSORS // 2,
    "channel_sum": MULTIPROCESSORS // 2,
}
# What one block does in no time, or what adds up the parts of others.
FEW = {"set_scalars", "log_density", "log_step", "sum_terms", "conv_weight_grad_sum"}
FEW |= {"scaled_kernel"}


def test_a_step_fills_a_large_gpu(ops, monkeypatch):
    """With fewer blocks, one of these kernels would leave it idle, at every image size. Nothing is
    computed: launches are noted."""
    trainer = make_trainer(ops, "conv", side=SIDE, batch_size=IMAGES, graph=False)
    images, launched = ops.xp.zeros((IMAGES, SIDE, SIDE, 1), np.uint8), []
    trainer.slice_of(IMAGES)
    note = lambda self, name, dtype, blocks, **_: launched.append((name, blocks))  # noqa: E731
    monkeypatch.setattr(Launcher, "__call__", note)
    trainer.training_step(Repeated(images))
    assert {name for name, _ in launched} == LEAST.keys() | FEW
    for name, blocks in launched:
        assert name in FEW or blocks >= LEAST[name], (name, blocks)


def test_a_sum_over_all_pixels_of_one_channel_has_many_blocks(ops, started):
    array, out = ops.xp.ones((IMAGES, SIDE, SIDE, 1), np.float32), ops.xp.empty(1, np.float32)
    ops.channels.sum(array, out=out)
    ((name, blocks, _),) = started
    assert float(out[0]) == array.size
    assert name == "channel_sum" and blocks >= MULTIPROCESSORS // 2
