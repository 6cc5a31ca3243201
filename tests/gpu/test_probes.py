"""Eq. 31 and the probe rule on the device: NumPy's numbers, no wait, the same from a graph."""

from __future__ import annotations

import numpy as np
import pytest
from support.trainers import host, make_trainer

from gpu.test_training import spent_by_a_step, take_steps
from snfnp.ops import get_ops

PENALTY = {"jvp_weight": 0.3, "jvp_probes": 2}
PROBE = {"gradient": "probe", "probes": 2}


@pytest.mark.parametrize("model, changes", [("fc", PENALTY), ("fc", PROBE), ("conv", PENALTY)])
def test_steps_are_numpys(ops, model, changes):
    found, expected = (
        take_steps(make_trainer(each, model, dtype="float64", **changes), range(2))
        for each in (ops, get_ops("numpy"))
    )
    for name in ("p", "gradient", "state"):
        a, b = host(found, name), host(expected, name)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10 * np.abs(b).max(initial=1e-30))


@pytest.mark.parametrize("changes", [PENALTY | {"lambda_control": "geco"}, PROBE], ids=str)
def test_a_graph_draws_as_plain_steps_do(ops, changes):
    """New probes in every step, though the step was recorded once."""
    eager, graph = (
        take_steps(make_trainer(ops, graph=flag, **changes), range(5)) for flag in (False, True)
    )
    assert graph._ascend.recorded
    for name in ("p", "m", "v", "state"):
        np.testing.assert_array_equal(host(graph, name), host(eager, name))
    assert graph.metrics() == eager.metrics()
    assert graph.lam_figures() == eager.lam_figures()


@pytest.mark.parametrize("changes, most", [(PENALTY, 17), (PROBE, 18)], ids=["Eq. 31", "probes"])
def test_a_step_neither_waits_nor_launches_much_more(ops, standin, changes, most):
    """Of two layers, each: the signs, their rows beside those of two or three arrays, at two
    launches each, and their factors; the product T(W)ν of Eq. 31 alone, and four for its mean."""
    found = []
    for change in ({}, changes):
        trainer = take_steps(make_trainer(ops, graph=False, **change), range(2))
        found.append(spent_by_a_step(trainer, standin))
        assert (found[-1]["syncs"], found[-1]["h2d"], found[-1]["d2h"]) == (0, 0, 0)
    print(found)
    assert found[1]["launches"] - found[0]["launches"] <= most
