"""R without a gradient of its own, on the device: NumPy's numbers, no wait, a graph."""

from __future__ import annotations

import numpy as np
import pytest
from support.trainers import host, make_trainer

from gpu.test_training import images_of, spent_by_a_step, take_steps
from snfnp.beyond.least_squares import LeastSquares
from snfnp.flow import Flow
from snfnp.layers import Linear, Squeeze
from snfnp.maps import Conv2d
from snfnp.ops import get_ops


def _linear(channels: int) -> Linear:
    inverse = Conv2d((5, 5), channels)
    return Linear(Conv2d((3, 3), channels), LeastSquares(), inverse_map=inverse)


# Two convolutions in place of nine: normal equations of one block and of several.
CONVOLUTIONS = Flow((8, 8, 1), (("a", _linear(1)), ("squeeze", Squeeze()), ("b", _linear(4))))
WAYS = pytest.mark.parametrize(
    "model, changes",
    [
        ("fc", {"recipe": "least-squares"}),
        ("conv", {"recipe": "least-squares", "flow": CONVOLUTIONS}),
        ("glow", {"recipe": "least-squares"}),
    ],
    ids=("projection", "least-squares", "least-squares-1x1"),
)


@WAYS
def test_steps_are_numpys(ops, model, changes):
    found, expected = (
        take_steps(make_trainer(each, model, dtype="float64", **changes), range(2))
        for each in (ops, get_ops("numpy"))
    )
    for name in ("gradient", "m", "v", "p"):
        a, b = host(found, name), host(expected, name)
        assert np.abs(a - b).max() <= 1e-9 * np.abs(b).max(), name


@WAYS
def test_a_graph_does_the_same_steps(ops, model, changes):
    eager, graph = (
        take_steps(make_trainer(ops, model, **changes, graph=flag), range(5))
        for flag in (False, True)
    )
    assert graph._ascend.recorded
    for name in ("p", "m", "v"):
        np.testing.assert_array_equal(host(graph, name), host(eager, name))


@WAYS
def test_a_step_does_not_wait(ops, standin, model, changes):
    trainer = take_steps(make_trainer(ops, model, **changes, graph=False), range(2))
    spent = spent_by_a_step(trainer, standin)
    assert [spent[name] for name in ("syncs", "h2d", "d2h")] == [0, 0, 0]


def test_a_failed_step_leaves_r_as_it_is(ops):
    trainer = take_steps(make_trainer(ops, recipe="least-squares", graph=False), range(2))
    trainer.params["dense2"]["W"][0, 0] = np.nan
    before = host(trainer, "p")
    trainer.training_step(ops.asarray(images_of(2).reshape(-1, *trainer.flow.shape)))
    np.testing.assert_array_equal(host(trainer, "p"), before)
