"""The controllers of λ on the device: NumPy's numbers, no wait, the same from a graph."""

from __future__ import annotations

import numpy as np
import pytest
from support.trainers import host, make_trainer

from gpu.test_training import images_of, spent_by_a_step, take_steps
from snfnp.ops import get_ops

FAST = {"tolerance": 1e-5, "lambda_rate": 20.0}


@pytest.mark.parametrize(
    "kind, model, sharing",
    [("geco", "fc", "flow"), ("mdmm", "fc", "layer"), ("mdmm", "conv", "layer")],
)
def test_controlled_steps_are_numpys(ops, kind, model, sharing):
    changes = {"lambda_control": kind, "lambda_sharing": sharing, "dtype": "float64", **FAST}
    found, expected = (
        take_steps(make_trainer(each, model, **changes), range(3))
        for each in (ops, get_ops("numpy"))
    )
    a, b = host(found, "state"), host(expected, "state")
    # two steps of Adam before the last errors, which are small differences of large numbers
    np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-12)
    assert found.lam_figures()["lam"] != 1.0


@pytest.mark.parametrize("kind, sharing", [("geco", "layer"), ("mdmm", "flow")])
def test_a_graph_controls_as_plain_steps_do(ops, kind, sharing):
    changes = {"lambda_control": kind, "lambda_sharing": sharing, **FAST}
    eager, graph = (
        take_steps(make_trainer(ops, graph=flag, **changes), range(6)) for flag in (False, True)
    )
    assert graph._ascend.recorded
    for name in ("p", "m", "v", "state"):
        np.testing.assert_array_equal(host(graph, name), host(eager, name))
    assert graph.metrics() == eager.metrics()
    assert graph.lam_figures() == eager.lam_figures()
    checkpoint = graph.checkpoint({})
    take_steps(graph, range(6, 8))
    graph.restore(checkpoint)
    take_steps(graph, range(6, 9))
    take_steps(eager, range(6, 9))
    np.testing.assert_array_equal(host(graph, "state"), host(eager, "state"))
    np.testing.assert_array_equal(host(graph, "p"), host(eager, "p"))


@pytest.mark.parametrize("constraint, most", [("absolute", 1), ("relative", 2)])
def test_a_controlled_step_neither_waits_nor_launches_much_more(ops, standin, constraint, most):
    """One launch for all layers, one for each λ, and one for each ‖h‖²."""
    launches = []
    for control in ({}, {"lambda_control": "geco", "constraint": constraint, "tolerance": 1e-3}):
        trainer = take_steps(make_trainer(ops, graph=False, **control), range(2))
        spent = spent_by_a_step(trainer, standin)
        assert (spent["syncs"], spent["h2d"], spent["d2h"]) == (0, 0, 0)
        launches.append(spent["launches"])
    print(f"{constraint}: {launches[1] - launches[0]} launches more")
    assert launches[1] - launches[0] <= 2 * most + 1


@pytest.mark.parametrize("graph", [True, False])
def test_a_step_that_fails_leaves_lambda_as_it_was(ops, graph):
    trainer = take_steps(make_trainer(ops, graph=graph, lambda_control="mdmm", **FAST), range(4))
    before = host(trainer, "state")
    trainer.params["dense1"]["R"].reshape(-1)[:1] = np.inf
    for step in range(4, 7):
        trainer.training_step(ops.asarray(images_of(step).reshape(-1, *trainer.flow.shape)))
    with pytest.raises(Exception, match=r"step 5: the gradient of dense1\.[WR] is not finite"):
        trainer.check(lambda step: ops.asarray(images_of(step).reshape(-1, *trainer.flow.shape)))
    np.testing.assert_array_equal(host(trainer, "state"), before)
