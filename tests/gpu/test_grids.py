"""Blocks that the kernels of the 9-layer flow are given: a large GPU has room for more.

Nothing is computed: launches are noted, with what they would be given, at the paper's sizes.
"""

from __future__ import annotations

import numpy as np
import pytest
from support.trainers import make_trainer

from snfnp.ops.gpu.launch import Launcher
from snfnp.training.batches import Repeated

SIDE, BATCH = 28, 100  # MNIST, and the paper's batch
MULTIPROCESSORS = 132  # of an H100
# Blocks at least: two for every multiprocessor where a kernel goes over pixels and samples, one for
# each sample where it sums over a sample, and as many as there are warps of pixels for the knots.
LEAST = {
    "adam": 2 * MULTIPROCESSORS,
    "conv": 2 * MULTIPROCESSORS,
    "conv_weight_grad": 2 * MULTIPROCESSORS,
    "spline": BATCH,
    "spline_backward": MULTIPROCESSORS,
    "spline_knots": 3 * SIDE * SIDE // 32,
    "gaussian_log_density": BATCH,
    "preprocess": BATCH,
    "sum_squares": MULTIPROCESSORS // 2,
    "axpby": 2 * MULTIPROCESSORS,
    "residual": MULTIPROCESSORS // 2,
    "channel_sum": MULTIPROCESSORS // 2,
}
# What one block does in no time, or what adds up the parts of others.
SMALL = {"set_scalars", "log_density", "log_step", "sum_terms", "conv_weight_grad_sum"}
SMALL |= {"scaled_kernel"}


@pytest.fixture
def launches(ops, monkeypatch):
    """[(kernel, blocks, threads of a block)] of one training step."""
    trainer = make_trainer(ops, "conv", side=SIDE, batch_size=BATCH, graph=False)
    noted = []

    def note(self, name, dtype, blocks, threads=256, **arguments):
        noted.append((name, blocks, threads))

    images = ops.xp.zeros((BATCH, SIDE, SIDE, 1), np.uint8)
    trainer.slice_of(BATCH)
    monkeypatch.setattr(Launcher, "__call__", note)
    trainer.training_step(Repeated(images))
    return noted


def test_a_step_fills_a_large_gpu(launches):
    """With fewer blocks, one of these kernels would leave it idle, at every image size."""
    names = {name for name, _, _ in launches}
    assert names == LEAST.keys() | SMALL
    for name, blocks, threads in launches:
        assert name in SMALL or blocks >= LEAST[name], (name, blocks, threads)


def test_a_sum_over_all_pixels_of_one_channel_has_many_blocks(ops, monkeypatch):
    noted = []
    array = ops.xp.ones((BATCH, SIDE, SIDE, 1), np.float32)
    launch = Launcher.__call__

    def note(self, name, dtype, blocks, **arguments):
        noted.append((name, blocks))
        return launch(self, name, dtype, blocks, **arguments)

    monkeypatch.setattr(Launcher, "__call__", note)
    out = ops.xp.empty(1, np.float32)
    ops.channels.sum(array, out=out)
    assert float(out[0]) == array.size
    ((name, blocks),) = noted
    assert name == "channel_sum" and blocks >= MULTIPROCESSORS // 2
