"""Parameters that start from data, actnorm's and biases: alone, in a flow and in training."""

import numpy as np
import pytest
from support.trainers import SIDE, SMALL_GLOW, at_step, make_trainer, run_training, small_dataset

from snfnp.flow import Flow
from snfnp.layers import ActNorm, Linear, SmoothLeakyReLU, Squeeze
from snfnp.likelihood import TRAINING_NOISE
from snfnp.maps import Conv2d, Dense
from snfnp.ops import RandomKey, get_ops
from snfnp.parameters import Layout
from snfnp.rules import SelfNormalizing
from snfnp.training.batches import Repeated, epoch_order

N, SHAPE = 20, (3, 4, 5)


def some_images(dtype=np.float64):
    """Channels with means and standard deviations of several sizes, 1e-3 to 1e3."""
    rng = np.random.default_rng(0)
    scale = 10.0 ** np.array([-3, 0, 1, 2, 3])
    shift = scale * np.array([-2, 0, 5, 1, -1])
    return (shift + scale * rng.standard_normal((N, *SHAPE))).astype(dtype)


def per_channel(z):
    rows = z.reshape(-1, z.shape[-1]).astype(np.float64)
    return rows.mean(axis=0), rows.std(axis=0)


def initialised(ops, x):
    layer = ActNorm()
    p = {k: v.astype(x.dtype) for k, v in layer.init(None, x.shape[1:]).items()}
    return layer, layer.init_from_data(ops, p, x)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_first_batch_comes_out_with_mean_0_and_variance_1(ops, dtype):
    x = some_images(dtype)
    layer, p = initialised(ops, x)
    assert {k: v.dtype for k, v in p.items()} == {"t": dtype, "s": dtype}
    mean, std = per_channel(layer.forward(ops, p, x)[0])
    eps = np.finfo(dtype).eps
    # t is rounded (|t| up to 5 std), so are x - t and the product; s (up to 7) is rounded, and with
    # it e^s by 7 eps; log(std + 1e-8) differs from log(std) by 1e-8/std, at most 1e-5 here
    np.testing.assert_allclose(mean, 0, rtol=0, atol=20 * eps)
    np.testing.assert_allclose(std, 1, rtol=1.1e-8 / per_channel(x)[1].min() + 20 * eps)
    np.testing.assert_allclose(p["t"], per_channel(x)[0], rtol=20 * eps, atol=20 * eps)


def test_the_initialisation_returns_and_changes_nothing(ops):
    x = some_images()
    layer = ActNorm()
    p = layer.init(None, SHAPE)
    before = x.copy()
    layer.init_from_data(ops, p, x)
    np.testing.assert_array_equal(p["t"], np.zeros(5))
    np.testing.assert_array_equal(p["s"], np.zeros(5))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("value", [0.0, 1 / 3, -1e4, 1e-20])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_channel_keeps_its_scale(ops, value, dtype):
    x = some_images(dtype)
    x[..., 1] = value
    layer, p = initialised(ops, x)
    assert p["s"][1] == 0
    assert p["t"][1] == dtype(value)
    assert np.all(p["s"][[0, 2, 3, 4]] != 0)
    assert np.all(layer.forward(ops, p, x)[0][..., 1] == 0)
    _, without = initialised(ops, np.delete(x, 1, axis=-1))
    np.testing.assert_array_equal(np.delete(p["s"], 1), without["s"])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_constant_up_to_rounding_is_a_constant(ops, dtype):
    rng = np.random.default_rng(1)
    eps = np.finfo(dtype).eps
    x = some_images(dtype)
    x[..., 0] = 7 * (1 + 2 * eps * rng.standard_normal(x.shape[:-1]))
    x[..., 1] = 7 * (1 + 200 * eps * rng.standard_normal(x.shape[:-1]))  # this one does vary
    assert x[..., 0].std() > 0
    layer, p = initialised(ops, x)
    assert p["s"][0] == 0
    assert p["s"][1] < -8
    assert np.abs(layer.forward(ops, p, x)[0][..., 0]).max() < 1e-3


def test_a_batch_of_one_row_gives_no_scale(ops):
    _, p = initialised(ops, np.array([[3.0, -1.0]]))
    np.testing.assert_array_equal(p["t"], [3, -1])
    np.testing.assert_array_equal(p["s"], [0, 0])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_is_never_zeroed(ops, bad):
    x = some_images()
    x[3, 1, 1, 2] = bad
    with np.errstate(invalid="ignore"):
        _, p = initialised(ops, x)
    assert np.isnan(p["s"][2])
    assert np.isfinite(np.delete(p["s"], 2)).all()


def deep_flow():
    layers = [("squeeze", Squeeze())]
    for k in range(3):
        layers += [
            (f"actnorm{k}", ActNorm()),
            (f"mix{k}", Linear(Conv2d((1, 1), 8), SelfNormalizing(), init_kind="orthogonal")),
            (f"activation{k}", SmoothLeakyReLU(0.3)),
        ]
    return Flow((4, 6, 2), tuple(layers))


def test_every_actnorm_is_initialised_from_the_layers_before_it(ops):
    flow = deep_flow()
    layout = Layout.of(flow.parameter_shapes())
    flat = layout.pack(flow.init(0), np.float64)
    params = layout.views(flat)
    x = 3 + 2 * np.random.default_rng(0).standard_normal((N, 4, 6, 2))
    before = flat.copy()
    flow.init_from_data(ops, params, x)
    checked = 0
    for name, layer in flow.layers:
        x = layer.forward(ops, params[name], x)[0]
        if isinstance(layer, ActNorm):
            mean, std = per_channel(x)
            np.testing.assert_allclose(mean, 0, rtol=0, atol=1e-14)
            np.testing.assert_allclose(std, 1, rtol=1e-7)  # log(std + 1e-8)
            checked += 1
        else:  # what does not depend on data stays
            for key, value in layout.views(before)[name].items():
                np.testing.assert_array_equal(params[name][key], value)
    assert checked == 3


def test_a_batch_of_the_wrong_shape_is_refused(ops):
    flow = deep_flow()
    with pytest.raises(ValueError, match=r"expected \(N, 4, 6, 2\)"):
        flow.init_from_data(ops, flow.init(0), np.zeros((2, 4, 4, 2)))


GLOW = {"model": "glow-2l-4k", **SMALL_GLOW}
DATASET = small_dataset(side=8)


def test_training_starts_from_the_first_batch(tmp_path, monkeypatch):
    seen = []
    at_step(monkeypatch, 0, lambda trainer: seen.append(trainer.p.copy()))
    run_training(tmp_path / "run", DATASET, epochs=1, **GLOW)
    trainer = make_trainer(get_ops("numpy"), "glow-2l-4k", batch_size=20)
    before = trainer.p.copy()
    trainer.begin(Repeated(DATASET.train[epoch_order(100, 0, trainer.config)[:20]]))
    np.testing.assert_array_equal(seen[0], trainer.p)
    assert not np.array_equal(before, trainer.p)


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
