"""The variational objective on the device: NumPy's numbers, no wait, the same from a graph."""

from __future__ import annotations

import numpy as np
import pytest
from support.trainers import host, make_trainer

from gpu.test_training import spent_by_a_step, take_steps
from snfnp.ops import get_ops

NOISY = {"objective": "variational", "sigma": 0.4}


@pytest.mark.parametrize("model", ["fc", "conv"])
def test_noisy_steps_are_numpys(ops, model):
    found, expected = (
        take_steps(make_trainer(each, model, dtype="float64", **NOISY), range(3))
        for each in (ops, get_ops("numpy"))
    )
    for name in ("gradient", "m", "v", "p"):
        a, b = host(found, name), host(expected, name)
        assert np.abs(a - b).max() <= 1e-9 * np.abs(b).max(), name


def test_a_graph_draws_new_noise_in_every_step(ops):
    eager, graph = (
        take_steps(make_trainer(ops, graph=flag, **NOISY), range(5)) for flag in (False, True)
    )
    assert graph._ascend.recorded
    for name in ("p", "m", "v"):
        np.testing.assert_array_equal(host(graph, name), host(eager, name))
    assert graph.metrics() == eager.metrics()


def test_noise_costs_neither_waits_nor_copies(ops, standin):
    trainer = take_steps(make_trainer(ops, graph=False, **NOISY), range(2))
    spent = spent_by_a_step(trainer, standin)
    assert (spent["syncs"], spent["h2d"], spent["d2h"]) == (0, 0, 0)
