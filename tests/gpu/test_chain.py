"""A learned inverse of several convolutions on the device: NumPy's numbers, no wait, a graph."""

from __future__ import annotations

import numpy as np
from support.trainers import host, make_trainer

from gpu.test_training import spent_by_a_step, take_steps
from snfnp.ops import get_ops

CHAIN = {"model": "conv", "inverse_depth": 2}


def test_a_step_is_numpys(ops):
    """Gradients are sums of products through 19 layers, of which the largest entry is a measure."""
    found, expected = (
        take_steps(make_trainer(each, **CHAIN, dtype="float64"), range(2))
        for each in (ops, get_ops("numpy"))
    )
    a, b = host(found, "gradient"), host(expected, "gradient")
    assert np.abs(a - b).max() <= 1e-10 * np.abs(b).max()
    for layer, named in found.layout.views(a).items():
        if "R" in named:
            of_numpy = expected.layout.views(b)[layer]["R"]
            assert named["R"].shape[0] == 2
            assert np.abs(named["R"] - of_numpy).max() <= 1e-9 * np.abs(of_numpy).max(), layer


def test_a_graph_does_the_same_steps(ops):
    eager, graph = (
        take_steps(make_trainer(ops, **CHAIN, graph=flag), range(5)) for flag in (False, True)
    )
    assert graph._ascend.recorded
    for name in ("p", "m", "v"):
        np.testing.assert_array_equal(host(graph, name), host(eager, name))


def test_a_step_does_not_wait(ops, standin):
    """What depends on shapes alone, the numbers of walks, was copied by the first step."""
    trainer = take_steps(make_trainer(ops, **CHAIN, graph=False), range(2))
    spent = spent_by_a_step(trainer, standin)
    assert [spent[name] for name in ("syncs", "h2d", "d2h")] == [0, 0, 0]
