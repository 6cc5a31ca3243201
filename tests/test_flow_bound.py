"""The variational bound of a flow as a whole, and its gradient end to end (A.4)."""

import numpy as np
import pytest
from support.gradients import moved
from support.strict_ops import strict_ops
from test_rules import RTOL, log_normal, mean_log_likelihood, two_layers
from test_variational import SIGMA, D, unwritten, variational_flow

from snfnp.beyond.chain import Chain
from snfnp.beyond.variational_bound import flow_bound
from snfnp.flow import Flow
from snfnp.gradcheck import as_matrix, check_gradient
from snfnp.layers import ActNorm, Linear, RationalQuadraticSpline, Squeeze
from snfnp.maps import Conv2d, Dense
from snfnp.ops import get_ops
from snfnp.rules import SelfNormalizing


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def spline_flow():
    """Of every kind of layer that has a Jacobian-vector product."""
    layers = (
        ("conv1", Linear(Conv2d((3, 3), 1), inverse_map=Conv2d((5, 5), 1))),
        ("spline", RationalQuadraticSpline(bound=4.0)),
        ("conv2", Linear(Conv2d((3, 3), 1), inverse_map=Chain(Conv2d((3, 3), 1), 2))),
        ("squeeze", Squeeze()),
        ("actnorm", ActNorm()),
        ("mix", Linear(Conv2d((1, 1), 4), bias=False)),
    )
    return Flow((4, 2, 1), layers)


def central_differences(ops, flow, params, x, noise, rng, h=1e-3):
    """flow_bound's gradients against its values, log|det T(W)| replaced by what stands in for it:
    ⟨T(W), T(R̄)ᵀ⟩."""
    bars = {
        name: as_matrix(layer.maps[1], ops, params[name]["R"], shape).T
        for name, layer, shape in flow.with_shapes()
        if layer.learns_inverse
    }

    def value(params, x):
        total = float(flow_bound(ops, flow, params, x, SIGMA, noise).mean())
        total -= sum(flow.log_dets(ops, params)[name] for name in bars)
        for name, layer, shape in flow.with_shapes():
            if name in bars:
                w = as_matrix(layer.map, ops, params[name]["W"], shape)
                total += float(np.sum(w * bars[name]))
        return total

    grads = unwritten(params)
    bound, dx = flow_bound(ops, flow, params, x, SIGMA, noise, grads)
    np.testing.assert_array_equal(bound, flow_bound(ops, flow, params, x, SIGMA, noise))
    check_gradient(lambda v: value(params, v), x, dx, rng=rng, rtol=RTOL, h=h)
    for layer, named in params.items():
        for name, point in named.items():

            def at(v, layer=layer, name=name):
                return value({**params, layer: {**params[layer], name: v}}, x)

            gradient = grads[layer][name]
            check_gradient(at, point, gradient, rng=rng, rtol=RTOL, h=h, name=f"{layer}.{name}")


@pytest.mark.parametrize(
    "flow", [two_layers(SelfNormalizing(), D), spline_flow()], ids=["fc", "conv"]
)
def test_the_gradient_of_the_whole_flows_bound(ops, rng, flow):
    params = moved(flow.init(0), rng, 0.1)
    x, noise = 0.5 * rng.standard_normal((2, 5, *flow.shape))
    central_differences(ops, flow, params, x, noise, rng)


def test_for_one_linear_layer_both_bounds_are_the_same(ops, rng):
    """λ and its one more term, for any W and R: the mean over all directions is the expectation."""
    p = {"W": rng.standard_normal((D, D)), "R": rng.standard_normal((D, D)), "b": np.ones(D)}
    flow, x = Flow((D,), (("dense", Linear(Dense(D))),)), rng.standard_normal(D)
    every = np.sqrt(D) * np.concatenate([np.eye(D), -np.eye(D)])
    found = flow_bound(ops, flow, {"dense": p}, np.tile(x, (2 * D, 1)), SIGMA, every).mean()
    rw = p["R"] @ p["W"]
    expected = log_normal((p["W"] @ x + 1)[None])[0] - SIGMA**2 / 2 * np.sum(p["W"] ** 2)
    expected -= np.sum((rw @ x - x) ** 2) / (2 * SIGMA**2) + np.sum(rw**2) / 2
    expected += np.linalg.slogdet(p["W"])[1] + D / 2
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_the_whole_flows_bound_comes_to_the_likelihood_with_sigma(ops, rng):
    flow, params = variational_flow(rng, inverted=True)
    x = np.repeat(rng.standard_normal((3, D)), 2, axis=0)
    noise = rng.standard_normal((3, D))
    noise *= np.sqrt(D / np.sum(noise**2, axis=1, keepdims=True))  # ‖ε‖² = D, its mean
    noise = np.repeat(noise, 2, axis=0) * np.tile([[1], [-1]], (3, 1))
    gaps = [
        float(
            flow_bound(ops, flow, params, x, sigma, noise).mean() - mean_log_likelihood(params, x)
        )
        for sigma in (0.1, 0.01, 0.001)
    ]
    np.testing.assert_allclose(np.array(gaps[:-1]) / gaps[1:], 100, rtol=0.05)


@pytest.mark.parametrize(
    "flow", [two_layers(SelfNormalizing(), D), spline_flow()], ids=["fc", "conv"]
)
def test_the_whole_flows_bound_on_a_device(rng, flow):
    """On strict arrays, which refuse what a device refuses: NumPy's numbers."""
    params = moved(flow.init(0), rng, 0.1)
    x, noise = 0.5 * rng.standard_normal((2, 5, *flow.shape))
    found = []
    for ops in (get_ops("numpy"), strict_ops()):
        p, grads = (
            {k: {n: ops.asarray(v) for n, v in named.items()} for k, named in each.items()}
            for each in (params, unwritten(params))
        )
        noisy = flow_bound(ops, flow, p, ops.asarray(x), SIGMA, ops.asarray(noise), grads)
        arrays = [*noisy, *(v for named in grads.values() for v in named.values())]
        found.append([ops.to_host(array) for array in arrays])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(a).max())
