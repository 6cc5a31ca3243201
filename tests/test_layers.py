"""Layers on every backend, beyond `snfnp.gradcheck.check_layer`: precision, NaN, where they start.

A new layer needs one line in `snfnp.gradcheck.catalogue`; `test_gradcheck_linear.py` runs it.
"""

import inspect
import math

import numpy as np
import pytest
from numpy.random import default_rng
from numpy.testing import assert_allclose, assert_array_equal
from support.arrays import assert_near, cast, normal
from support.gradients import layer_backward, moved
from support.messages import one_line
from support.trainers import (
    SMALL_GLOW,
    at_step,
    images_of,
    make_trainer,
    run_training,
    small_dataset,
)

from snfnp.errors import UsageError
from snfnp.flow import Flow
from snfnp.gradcheck.catalogue import catalogue
from snfnp.layers import (
    ActNorm,
    AffineCoupling,
    CausalConv2d,
    ConvExponential,
    Layer,
    Linear,
    RationalQuadraticSpline,
    SmoothLeakyReLU,
    Squeeze,
)
from snfnp.likelihood import TRAINING_NOISE
from snfnp.maps import Conv2d, Dense
from snfnp.ops import RandomKey, get_ops
from snfnp.parameters import Layout
from snfnp.rules import Exact, SelfNormalizing
from snfnp.step.batches import Repeated, epoch_order

EVERY_LAYER = [
    pytest.param((*check.run.args, check.run.keywords), id=check.name)
    for check in catalogue()
    if check.kind == "layer"
]
N = 20
each_precision = pytest.mark.parametrize("dtype", [np.float32, np.float64])
SHAPE = (3, 4, 5)


@pytest.mark.parametrize("member", ["forward", "inverse", "backward"])
def test_a_layer_without_a_required_member_says_so(member):
    arguments = inspect.signature(getattr(Layer, member)).parameters
    with pytest.raises(NotImplementedError):
        getattr(Layer(), member)(*[None] * (len(arguments) - 1))


class Point:
    """A layer away from its start, inputs x, and what weighs its outputs."""

    def __init__(self, layer, shape, settings):
        self.layer = layer
        rng = default_rng(1)
        self.params = moved(layer.init(rng, shape), rng)
        rng = default_rng(3)
        self.x = settings.get("x", rng.standard_normal((5, *shape))).copy()
        shapes = [layer.output_shape(shape), layer.latent_shape(shape)]
        self.deltas = [
            rng.standard_normal((len(self.x), *each)) for each in shapes if each
        ]
        self.dldj = rng.standard_normal(len(self.x))

    def results(self, ops, dtype=np.float64):
        """All that the layer computes, by name, in a precision."""
        layer = self.layer
        p = cast(self.params, dtype)
        z, ldj, cache = layer.forward(ops, p, self.x.astype(dtype))
        deltas = [delta.astype(dtype) for delta in self.deltas]
        weights = {"dldj": self.dldj.astype(dtype), "lam": 0.7}
        dx, grads, _ = layer_backward(ops, layer, p, cache, *deltas, **weights)
        latents = [z, cache["latent"]] if len(deltas) == 2 else [z]
        found = {"z": z, "dx": dx, **grads, "latent": latents[-1]}
        if np.ndim(ldj):
            found["ldj"] = ldj
        if layer.learns_inverse or not isinstance(layer, Linear):
            found["inverse"] = layer.inverse(ops, p, *latents)
        return found | {"exact inverse": layer.exact_inverse(ops, p, *latents)}


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("of", EVERY_LAYER)
@each_precision
def test_nan_reaches_every_result_of_its_sample_and_of_no_other(of, ops, dtype):
    """And every gradient: it is never zeroed. Only actnorm's ldj does not depend on x."""
    point = Point(*of)
    samples = np.arange(len(point.x)) == 1
    for array in (point.x, *point.deltas):
        array[1] = np.nan
    found = point.results(ops, dtype)
    assert {value.dtype for value in found.values()} == {np.dtype(dtype)}
    for name in found.keys() & {"z", "latent", "dx", "inverse", "exact inverse"}:
        spoilt = np.isnan(found[name]).reshape(len(samples), -1)
        assert_array_equal(spoilt.all(axis=1), samples, name)
        assert_array_equal(spoilt.any(axis=1), samples, name)
    if "ldj" in found and ActNorm() not in (
        point.layer,
        getattr(point.layer, "coupling", None),
    ):
        assert_array_equal(np.isnan(found["ldj"]), samples)
    assert all(
        np.isnan(found[name]).any() for name in point.params.keys() & found.keys()
    )


# ---------------------------------------------------------------- where parameters start

# The layer, a sample's shape, those of the parameters, the standard deviation of their noise (A.3:
# Xavier's, of gain 0.01, for kernels), and where in a kernel it is added to the identity.
STARTS = {
    "dense": (
        Linear(Dense(300)),
        (300,),
        {"W": (300, 300), "R": (300, 300), "b": (300,)},
        dict.fromkeys("WR", 0.01 * (2 / 600) ** 0.5),
        (),
    ),
    "identity": (
        Linear(Dense(3), Exact(), bias=False, init_kind="identity"),
        (3,),
        {"W": (3, 3)},
        {},
        (),
    ),
    "causal": (
        CausalConv2d(40),
        (3, 3, 40),
        {"W": (2, 2, 40, 40), "b": (40,)},
        {"W": 0.01 * (2 / 320) ** 0.5},
        (1, 1),
    ),
    "exponential": (
        ConvExponential(16),
        (7, 7, 16),
        {"W": (3, 3, 16, 16)},
        {"W": 0.01 * (2 / 288) ** 0.5},
        None,
    ),
    "coupling": (
        AffineCoupling(4),
        (14, 14, 4),
        {"w1": (3, 3, 2, 512), "b1": (512,), "w2": (512, 512), "b2": (512,)}
        | {"w3": (3, 3, 512, 4), "b3": (4,), "logs": (4,)},
        {"w1": 0.05, "w2": 0.05},
        None,
    ),
    "spline": (
        RationalQuadraticSpline(),
        (200,),
        {"widths": (200, 5), "heights": (200, 5), "slopes": (200, 4)},
        {"widths": 0.01, "heights": 0.01, "slopes": 0.01},
        None,
    ),
}


@pytest.mark.parametrize("name", STARTS)
def test_where_parameters_start(name):
    layer, shape, shapes, deviations, centre = STARTS[name]
    params = layer.init(default_rng(0), shape)
    assert {k: v.dtype for k, v in params.items()} == dict.fromkeys(shapes, float)
    assert {k: v.shape for k, v in params.items()} == shapes
    for key, value in params.items():
        noise = value.copy()
        if centre is not None and value.ndim > 1:
            noise[centre] -= np.eye(len(noise[centre]))
        drawn = noise[noise != 0]  # a causal kernel has zeros, below its diagonal
        assert (drawn.size > 0) == (key in deviations)
        if key in deviations:  # whose own standard error is about σ / √(2n)
            error = abs(drawn.std() / deviations[key] - 1)
            assert error < 5 / math.sqrt(2 * drawn.size), key
    if name == "causal":
        assert_array_equal(np.tril(params["W"][1, 1], -1), 0)
    if name == "dense":
        assert_array_equal(params["R"], params["W"].T)
        assert not np.shares_memory(params["R"], params["W"])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rule", [SelfNormalizing(), Exact()], ids=str)
@pytest.mark.parametrize("map", [Dense(6), Conv2d((1, 1), 6)], ids=str)
def test_an_orthogonal_start_is_exactly_invertible(map, rule, bias, ops):
    """By R = flip(W) = W⁻¹, where one is learned."""
    layer = Linear(map, rule, bias=bias, init_kind="orthogonal")
    shape = (6,) if isinstance(map, Dense) else (3, 2, 6)
    params = layer.init(default_rng(0), shape)
    q = params["W"].reshape(6, 6)
    # sums of 6 products of columns known to a few eps
    rounding = 6 * 10 * np.finfo(float).eps
    assert_near(q @ q.T, np.eye(6), rounding)
    assert abs(layer.log_det(ops, params, shape)) < 6 * rounding
    if bias:
        params["b"] += 1
    x = normal(4, *shape, seed=1)
    z, _, _ = layer.forward(ops, params, x)
    assert_near(layer.inverse(ops, params, z), x, 4 * rounding)
    if layer.learns_inverse:
        params["R"] = params["W"]  # the transpose matters, and not to the exact inverse
        assert np.max(np.abs(layer.inverse(ops, params, z) - x)) > 0.1
        assert_near(layer.exact_inverse(ops, params, z), x, 4 * rounding)


def test_an_orthogonal_start_is_random_and_uniform():
    """The Haar measure: E Q = 0 and E Q² = 1/C for each entry, and both determinants. The signs
    that `qr` chooses are not random: with reflections the diagonal has one sign."""
    size = 3
    draws = 4000
    layer = Linear(Conv2d((1, 1), size), Exact(), init_kind="orthogonal")
    rng = default_rng(0)
    q = np.array([layer.init(rng, (1, 1, size))["W"][0, 0] for _ in range(draws)])
    # E q⁴ = 3/(C(C + 2)) bounds the variance of q²; five standard errors each
    variance = 3 / (size * (size + 2)) - 1 / size**2
    assert np.max(np.abs(q.mean(axis=0))) < 5 * np.sqrt(1 / size / draws)
    assert np.max(np.abs((q**2).mean(axis=0) - 1 / size)) < 5 * np.sqrt(
        variance / draws
    )
    assert abs(np.linalg.det(q).mean()) < 5 / np.sqrt(draws)
    unfixed = np.array(
        [np.linalg.qr(rng.standard_normal((size, size)))[0] for _ in range(draws)]
    )
    assert np.max(np.abs(unfixed.mean(axis=0))) > 5 * np.sqrt(1 / size / draws)


def test_a_larger_kernel_starts_at_a_rotation_plus_noise():
    size = 16
    gain = 0.01
    layer = Linear(
        Conv2d((5, 5), size), SelfNormalizing(), init_kind="orthogonal", gain=gain
    )
    params = layer.init(default_rng(0), (8, 8, size))
    w = params["W"]
    xavier = gain * np.sqrt(2 / (2 * 25 * size))
    others = np.delete(w.reshape(25, size, size), 12, axis=0)
    assert abs(others.std() - xavier) < 5 * xavier / np.sqrt(2 * others.size)
    # Q + noise: Q Qᵀ moves by the noise twice, a sum of C products of standard deviation σ/√C each
    centre = w[2, 2]
    assert np.max(np.abs(centre @ centre.T - np.eye(size))) < 2 * 5 * xavier
    assert_array_equal(params["R"], layer.map.flip(w))


# ---------------------------------------------------------------- parameters that start from data


def some_images(dtype=np.float64):
    """Channels with means and standard deviations of several sizes, 1e-3 to 1e3."""
    rng = default_rng(0)
    scale = 10.0 ** np.array([-3, 0, 1, 2, 3])
    shift = scale * np.array([-2, 0, 5, 1, -1])
    return (shift + scale * rng.standard_normal((N, *SHAPE))).astype(dtype)


def per_channel(z):
    rows = z.reshape(-1, z.shape[-1]).astype(np.float64)
    return rows.mean(axis=0), rows.std(axis=0)


def initialised(ops, x):
    """An actnorm layer and the parameters that it takes from x, neither of which it changes."""
    layer = ActNorm()
    before = x.copy()
    p = cast(layer.init(None, x.shape[1:]), x.dtype)
    found = layer.init_from_data(ops, p, x)
    assert not p["t"].any() and not p["s"].any()
    assert_array_equal(x, before)
    return layer, found


@each_precision
def test_the_first_batch_comes_out_with_mean_0_and_variance_1(ops, dtype):
    x = some_images(dtype)
    layer, p = initialised(ops, x)
    assert {k: v.dtype for k, v in p.items()} == {"t": dtype, "s": dtype}
    mean, std = per_channel(layer.forward(ops, p, x)[0])
    eps = np.finfo(dtype).eps
    # t is rounded (|t| up to 5 std), so are x - t and the product; s (up to 7) is rounded, and with
    # it e^s by 7 eps; log(std + 1e-8) differs from log(std) by 1e-8/std, at most 1e-5 here
    assert_near(mean, 0, 20 * eps)
    assert_allclose(std, 1, rtol=1.1e-8 / per_channel(x)[1].min() + 20 * eps)
    assert_allclose(p["t"], per_channel(x)[0], rtol=20 * eps, atol=20 * eps)


@pytest.mark.parametrize("value", [0.0, 1 / 3, -1e4, 1e-20])
@each_precision
def test_a_constant_channel_keeps_its_scale(ops, value, dtype):
    x = some_images(dtype)
    x[..., 1] = value
    layer, p = initialised(ops, x)
    assert p["s"][1] == 0
    assert p["t"][1] == dtype(value)
    assert np.all(p["s"][[0, 2, 3, 4]] != 0)
    assert np.all(layer.forward(ops, p, x)[0][..., 1] == 0)
    _, without = initialised(ops, np.delete(x, 1, axis=-1))
    assert_array_equal(np.delete(p["s"], 1), without["s"])
    row = np.array([[3, -1]], dtype)  # of one row, every channel is constant
    _, p = initialised(ops, row)
    assert_array_equal(np.stack([p["t"], p["s"]]), [row[0], [0, 0]])


@each_precision
def test_a_constant_up_to_rounding_is_a_constant(ops, dtype):
    rng = default_rng(1)
    eps = np.finfo(dtype).eps
    x = some_images(dtype)
    x[..., 0] = 7 * (1 + 2 * eps * rng.standard_normal(x.shape[:-1]))
    # this one does vary
    x[..., 1] = 7 * (1 + 200 * eps * rng.standard_normal(x.shape[:-1]))
    assert x[..., 0].std() > 0
    layer, p = initialised(ops, x)
    assert p["s"][0] == 0
    assert p["s"][1] < -8
    assert np.abs(layer.forward(ops, p, x)[0][..., 0]).max() < 1e-3


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_batch_that_is_not_finite_gives_no_finite_scale(ops, bad):
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
            (
                f"mix{k}",
                Linear(Conv2d((1, 1), 8), SelfNormalizing(), init_kind="orthogonal"),
            ),
            (f"activation{k}", SmoothLeakyReLU(0.3)),
        ]
    return Flow((4, 6, 2), tuple(layers))


def test_every_actnorm_is_initialised_from_the_layers_before_it(ops):
    flow = deep_flow()
    layout = Layout.of(flow.parameter_shapes())
    flat = layout.pack(flow.init(0), np.float64)
    params = layout.views(flat)
    x = 3 + 2 * normal(N, 4, 6, 2)
    before = flat.copy()
    flow.init_from_data(ops, params, x)
    checked = 0
    for name, layer in flow.layers:
        x = layer.forward(ops, params[name], x)[0]
        if isinstance(layer, ActNorm):
            mean, std = per_channel(x)
            assert_near(mean, 0, 1e-14)
            assert_allclose(std, 1, rtol=1e-7)  # log(std + 1e-8)
            checked += 1
        else:  # what does not depend on data stays
            for key, value in layout.views(before)[name].items():
                assert_array_equal(params[name][key], value)
    assert checked == 3


def test_a_batch_of_the_wrong_shape_is_refused(ops):
    flow = deep_flow()
    with one_line(UsageError, match=r"shape \(2, 4, 4, 2\): give \(N, 4, 6, 2\)"):
        flow.init_from_data(ops, flow.init(0), np.zeros((2, 4, 4, 2)))


def test_training_starts_from_the_first_batch(tmp_path, monkeypatch):
    seen = []
    data = small_dataset(side=8)
    at_step(monkeypatch, 0, lambda trainer: seen.append(trainer.p.copy()))
    run_training(tmp_path / "run", data, epochs=1, model="glow-2l-4k", **SMALL_GLOW)
    trainer = make_trainer(get_ops("numpy"), "glow-2l-4k", batch_size=20)
    before = trainer.p.copy()
    trainer.begin(Repeated(data.train[epoch_order(100, 0, trainer.config)[:20]]))
    assert_array_equal(seen[0], trainer.p)
    assert not np.array_equal(before, trainer.p)


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


@pytest.mark.parametrize("model", ["fc", "conv"])
@pytest.mark.parametrize("gradient", [None, "exact"])
def test_every_linear_layers_first_batch_comes_out_with_mean_0(ops, model, gradient):
    trainer = make_trainer(ops, model, gradient, dtype="float64", bias_init="data")
    others = trainer.layout.views(trainer.p.copy())
    images = images_of(trainer, 3, batch=12)
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
    x = (
        np.full((4096, 3), 1e4, np.float32)
        + np.arange(4096, dtype=np.float32)[:, None] / 64
    )
    layer = Linear(Dense(3), bias_init="data")
    p = {"W": np.eye(3, dtype=np.float32), "b": np.zeros(3, np.float32)}
    b = layer.init_from_data(get_ops("numpy"), p, x)["b"]
    assert b.dtype == np.float32
    assert_array_equal(b, np.float32(-x.astype(np.float64).mean(axis=0)))
