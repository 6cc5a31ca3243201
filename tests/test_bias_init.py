"""Biases that start from data (`--bias-init data`): alone, in a flow and in training."""

import numpy as np
import pytest
from support.trainers import SIDE, make_trainer

from snfnp.layers import Linear
from snfnp.likelihood import TRAINING_NOISE
from snfnp.maps import Dense
from snfnp.ops import RandomKey, get_ops
from snfnp.training.batches import Repeated

CASES = [("fc", None), ("fc", "exact"), ("conv", None), ("conv", "exact")]


def random_batch(images=12, side=SIDE):
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (images, side, side, 1)).astype(np.uint8)


def means_of_linear_outputs(trainer, images):
    """The largest |mean| per feature or channel of every linear layer's output, over its size."""
    key = RandomKey(0, TRAINING_NOISE, 0)
    x, _ = trainer.flow.encode(trainer.ops, images, key, trainer.p.dtype)
    found = []
    for name, layer in trainer.flow.layers:
        x = layer.forward(trainer.ops, trainer.params[name], x)[0]
        if isinstance(layer, Linear):
            rows = x.reshape(-1, x.shape[-1])
            found.append(np.abs(rows.mean(axis=0)).max() / np.abs(rows).max())
    return found


@pytest.mark.parametrize("model, gradient", CASES)
def test_every_linear_layers_first_batch_comes_out_with_mean_0(ops, model, gradient):
    trainer = make_trainer(ops, model, gradient, dtype="float64", bias_init="data")
    others = trainer.layout.views(trainer.p.copy())
    images = random_batch()
    before = means_of_linear_outputs(trainer, images)
    trainer.begin(Repeated(images))
    after = means_of_linear_outputs(trainer, images)
    assert min(before) > 1e-3  # without it they are far from 0
    assert max(after) < 1e-13  # a mean of some hundred rounded numbers
    for name, parameters in trainer.params.items():
        for key, value in parameters.items():
            changed = not np.array_equal(value, others[name][key])
            assert changed == (key == "b" and "spline" not in name), (name, key)


def test_the_bias_has_the_batchs_precision_and_its_mean_the_double():
    x = np.full((4096, 3), 1e4, np.float32) + np.arange(4096, dtype=np.float32)[:, None] / 64
    layer = Linear(Dense(3), bias_init="data")
    p = {"W": np.eye(3, dtype=np.float32), "b": np.zeros(3, np.float32)}
    b = layer.init_from_data(get_ops("numpy"), p, x)["b"]
    assert b.dtype == np.float32
    np.testing.assert_array_equal(b, np.float32(-x.astype(np.float64).mean(axis=0)))
