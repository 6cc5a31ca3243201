"""Launches of a step: enough blocks to fill a large GPU."""

from __future__ import annotations

import numpy as np
import pytest
from support.trainers import make_trainer

from snfnp.ops.gpu.launch import Launcher
from snfnp.step.batches import Repeated

pytestmark = pytest.mark.slow

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
FEW = {"set_scalars", "log_density", "log_step", "conv_weight_grad_sum"}


def test_a_step_fills_a_large_gpu(ops, monkeypatch):
    """With fewer blocks, one of these kernels would leave it idle, at every image size. Nothing is
    computed: launches are noted."""
    trainer = make_trainer(ops, "conv", side=SIDE, batch_size=IMAGES, graph=False)
    images = ops.xp.zeros((IMAGES, SIDE, SIDE, 1), np.uint8)
    launched = []
    note = lambda self, name, dtype, blocks, **_: launched.append((name, blocks))  # noqa: E731
    monkeypatch.setattr(Launcher, "__call__", note)
    trainer.training_step(Repeated(images))
    assert {name for name, _ in launched} == LEAST.keys() | FEW
    for name, blocks in launched:
        assert name in FEW or blocks >= LEAST[name], (name, blocks)
