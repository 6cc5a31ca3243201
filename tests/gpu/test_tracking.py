"""What is followed of learned inverses, on the device: NumPy's numbers, the same from a graph."""

from __future__ import annotations

import numpy as np
import pytest
from support.trainers import make_trainer

from gpu.test_training import images_of
from snfnp.ops import get_ops
from snfnp.training.inspection import Inspection


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
