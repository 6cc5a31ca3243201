"""Eq. 31 for whole chains of layers, and its gradient: a second-order check by differences."""

import numpy as np
import pytest
from support.gradients import moved
from support.strict_ops import strict_ops
from test_flow_bound import spline_flow
from test_rules import two_layers
from test_variational import unwritten

from snfnp.beyond import differentiable
from snfnp.beyond.differentiable import jacobian_penalty
from snfnp.errors import UsageError
from snfnp.flow import Flow
from snfnp.gradcheck import GradientError, check_gradient
from snfnp.layers import Linear, SmoothLeakyReLU
from snfnp.maps import Dense
from snfnp.ops import get_ops
from snfnp.rules import Exact, SelfNormalizing
from snfnp.training.options import TrainConfig

D, N = 4, 3
_DENSE = ("dense", Linear(Dense(D), bias_init="data"))
_AROUND = (("activation1", SmoothLeakyReLU()), _DENSE, ("activation2", SmoothLeakyReLU()))
FLOWS = {"fc": two_layers(SelfNormalizing(), D), "conv": spline_flow()}
FLOWS["data-initialised"] = Flow((D,), _AROUND)
BEYOND = (("dense2", "b"), ("dense", "b"))  # g takes it off again: J_g sees nothing of it
H = 2e-4  # small enough that no value meets a knot of a spline


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def point(flow, rng, count=N):
    """Parameters off every special point, inputs, and probes."""
    params = moved(flow.init(0), rng, 0.1)
    x, probes = 0.5 * rng.standard_normal((2, count, *flow.shape))
    return params, x, np.sign(probes)


def check_all(ops, flow, params, x, probes, rng, spoiled=lambda grads: None):
    def value(params, x):
        return float(jacobian_penalty(ops, flow, params, x, probes).mean())

    grads = unwritten(params)
    penalties, dx = jacobian_penalty(ops, flow, params, x, probes, grads)
    np.testing.assert_array_equal(penalties, jacobian_penalty(ops, flow, params, x, probes))
    spoiled(grads)
    check_gradient(lambda v: value(params, v), x, dx, rng=rng, h=H)
    for layer, named in params.items():
        for name, at in named.items():

            def moved_to(v, layer=layer, name=name):
                return value({**params, layer: {**params[layer], name: v}}, x)

            if (layer, name) in BEYOND:
                assert np.abs(grads[layer][name]).max() < 1e-14
                continue
            check_gradient(moved_to, at, grads[layer][name], rng=rng, h=H, name=f"{layer}.{name}")


@pytest.mark.parametrize("which", FLOWS)
def test_the_gradient_by_central_differences(ops, rng, which):
    flow = FLOWS[which]
    check_all(ops, flow, *point(flow, rng), rng)


def test_one_linear_layer_is_the_rules_penalty(ops, rng):
    flow = Flow((D,), (("dense", Linear(Dense(D))),))
    params, x, probes = point(flow, rng)
    w, r = params["dense"]["W"], params["dense"]["R"]
    expected = np.sum((probes @ w.T @ r.T - probes) ** 2, axis=1)
    np.testing.assert_allclose(jacobian_penalty(ops, flow, params, x, probes), expected, rtol=1e-12)


def test_the_products_are_those_of_the_jacobians(ops, rng):
    """Both Jacobians written out by differences of f and g: this knows nothing of `jvp`."""
    flow = FLOWS["fc"]
    params, x, probes = point(flow, rng)
    h, expected = 1e-5, []

    def encode(v):
        return flow.forward(ops, params, v)[0][-1]

    def jacobian(function, at):
        columns = [
            (function((at + h * e)[None]) - function((at - h * e)[None]))[0] / (2 * h)
            for e in np.eye(D)
        ]
        return np.stack(columns, axis=1)

    for x_n, probe in zip(x, probes, strict=True):
        of_f = jacobian(encode, x_n)
        of_g = jacobian(lambda v: flow.inverse(ops, params, (v,)), encode(x_n[None])[0])
        expected.append(np.sum((of_g @ of_f @ probe - probe) ** 2))
    found = jacobian_penalty(ops, flow, params, x, probes)
    np.testing.assert_allclose(found, expected, rtol=1e-7)
    assert found.min() > 0.01


def test_exact_inverses_leave_no_penalty(ops, rng):
    flow = FLOWS["fc"]
    params, x, probes = point(flow, rng)
    for name in ("dense1", "dense2"):
        params[name]["R"] = np.linalg.inv(params[name]["W"])
    grads = unwritten(params)
    penalties, dx = jacobian_penalty(ops, flow, params, x, probes, grads)
    for found in (penalties, dx, *(v for named in grads.values() for v in named.values())):
        np.testing.assert_allclose(found, 0, rtol=0, atol=1e-12)


def test_a_small_error_of_the_gradient_is_found(ops, rng):
    def spoiled(grads):
        grads["dense1"]["R"] *= 1.01

    with pytest.raises(GradientError, match=r"dense1\.R"):
        check_all(ops, FLOWS["fc"], *point(FLOWS["fc"], rng), rng, spoiled)


def test_second_derivatives_matter(monkeypatch, ops, rng):
    """Eq. 31 with the activation taken for a linear map: W and b of the first layer see it."""

    class Forgetful(type(differentiable.derivatives(SmoothLeakyReLU()))):
        def jvp_backward(self, ops, p, cache, dx, delta, grads):
            return 0, super().jvp_backward(ops, p, cache, dx, delta, grads)[1]

    monkeypatch.setitem(differentiable.DERIVATIVES, SmoothLeakyReLU, Forgetful)
    with pytest.raises(GradientError):
        check_all(ops, FLOWS["fc"], *point(FLOWS["fc"], rng), rng)


def test_a_flow_without_learned_inverses_or_products_is_refused_in_one_line(ops, rng):
    exact = two_layers(Exact(), D)
    glow = TrainConfig(model="glow-2l-4k").resolve(1000).build_flow((8, 8, 1))
    for flow in (exact, glow):
        x = np.zeros((2, *flow.shape))
        with pytest.raises(UsageError, match="need learned inverses, and no split priors"):
            jacobian_penalty(ops, flow, flow.init(0), x, x)


def test_on_strict_arrays(rng):
    params, x, probes = point(FLOWS["conv"], rng)
    found = []
    for ops in (get_ops("numpy"), strict_ops()):
        p, grads = (
            {k: {n: ops.asarray(v) for n, v in named.items()} for k, named in each.items()}
            for each in (params, unwritten(params))
        )
        given = (ops.asarray(x), ops.asarray(probes), grads)
        arrays = [*jacobian_penalty(ops, FLOWS["conv"], p, *given)]
        arrays += [v for named in grads.values() for v in named.values()]
        found.append([ops.to_host(array) for array in arrays])
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
