"""What is followed of learned inverses, on the device: NumPy's numbers, the same from a graph."""

from __future__ import annotations

import numpy as np
import pytest
from support.trainers import host, make_trainer

from gpu.test_training import images_of, take_steps
from snfnp.ops import get_ops
from snfnp.training.inspection import Inspection


@pytest.mark.parametrize("model", ["fc", "conv"])
def test_a_graph_follows_log_determinants_as_plain_steps_do(ops, model):
    eager, graph = (
        take_steps(make_trainer(ops, model, graph=flag, track_log_det=True), range(5))
        for flag in (False, True)
    )
    assert graph._ascend.recorded
    for name in ("p", "state"):
        np.testing.assert_array_equal(host(graph, name), host(eager, name))
    assert graph.estimated_nll() == eager.estimated_nll()
    exact = graph.likelihood().log_dets
    assert sum(map(abs, graph.log_dets.anchor(exact).values())) > 0
    assert graph.log_dets.total() == pytest.approx(sum(exact.values()), rel=1e-12)


def test_followed_log_determinants_are_numpys(ops):
    found, expected = (
        take_steps(make_trainer(each, "conv", track_log_det=True, dtype="float64"), range(2))
        for each in (ops, get_ops("numpy"))
    )
    a, b = host(found, "state"), host(expected, "state")
    np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("model", ["fc", "conv"])
def test_monitors_and_refined_samples_are_numpys(ops, model):
    figures, drawn = [], []
    for each in (ops, get_ops("numpy")):
        trainer = make_trainer(each, model, dtype="float64")
        images = np.concatenate([images_of(step) for step in range(30)])
        images = images.reshape(-1, *trainer.flow.shape)
        batch = each.asarray(images[:6])
        inspection = Inspection(trainer, lambda step, batch=batch: batch)
        likelihood = trainer.likelihood()
        likelihood.evaluate(images, 0, at_once=70, watch=inspection.watch(len(images)))
        figures.append(inspection.figures(likelihood)["layers"])
        drawn.append(likelihood.sample(3, seed=0, refined=True))
    found, expected = figures
    for name, own in expected.items():
        assert found[name] == pytest.approx(own, rel=1e-6, abs=1e-12)
    assert np.mean(drawn[0] != drawn[1]) < 0.01
