"""A chain of layers: round trips, determinants, and naming the layer where something went wrong."""

from dataclasses import dataclass

import numpy as np
import pytest

from snfnp.errors import SingularMatrixError, UsageError
from snfnp.flow import Flow
from snfnp.layers import Linear, SmoothLeakyReLU
from snfnp.maps import Dense
from snfnp.parameters import Layout
from snfnp.rules import Exact, Reconstruction, SelfNormalizing

D, N = 6, 5


def small_flow(rule=None):
    rule = rule or SelfNormalizing()
    return Flow(
        shape=(D,),
        layers=(
            ("dense1", Linear(Dense(D), rule)),
            ("activation1", SmoothLeakyReLU(0.3)),
            ("dense2", Linear(Dense(D), rule)),
        ),
    )


def random_params(flow, seed=0):
    rng = np.random.default_rng(seed)
    return {
        layer: {k: v + 0.2 * rng.standard_normal(v.shape) for k, v in named.items()}
        for layer, named in flow.init(seed).items()
    }


@pytest.fixture
def x():
    return np.random.default_rng(1).standard_normal((N, D))


def test_forward_is_the_chain(ops, x):
    flow = small_flow()
    params = random_params(flow)
    z, ldj, caches = flow.forward(ops, params, x)
    a = x @ params["dense1"]["W"].T + params["dense1"]["b"]
    h = 0.3 * a + 0.7 * np.log(1 + np.exp(a))
    expected = h @ params["dense2"]["W"].T + params["dense2"]["b"]
    np.testing.assert_allclose(z, expected, rtol=0, atol=1e-13)
    slopes = 0.3 + 0.7 / (1 + np.exp(-a))
    np.testing.assert_allclose(ldj, np.log(slopes).sum(axis=1), rtol=1e-13)
    assert len(caches) == 3


@pytest.mark.parametrize("rule", [SelfNormalizing(), Exact()], ids=str)
def test_exact_inverse_undoes_forward(ops, x, rule):
    flow = small_flow(rule)
    params = random_params(flow)
    z, _, _ = flow.forward(ops, params, x)
    np.testing.assert_allclose(flow.inverse(ops, params, z, exact=True), x, rtol=0, atol=1e-12)


def test_learned_inverse_undoes_forward_where_it_is_one(ops, x):
    flow = small_flow()
    params = random_params(flow)
    z, _, _ = flow.forward(ops, params, x)
    assert np.max(np.abs(flow.inverse(ops, params, z) - x)) > 1e-2
    for name in ("dense1", "dense2"):
        params[name]["R"] = np.linalg.inv(params[name]["W"])
    np.testing.assert_allclose(flow.inverse(ops, params, z), x, rtol=0, atol=1e-12)


def test_a_flow_without_a_learned_inverse_says_so(ops, x):
    flow = small_flow(Exact())
    assert not flow.has_learned_inverse
    assert small_flow().has_learned_inverse
    with pytest.raises(UsageError, match="learned no inverse") as caught:
        flow.inverse(ops, random_params(flow), x)
    assert "\n" not in str(caught.value)


def test_log_dets(ops):
    flow = small_flow()
    params = random_params(flow)
    found = flow.log_dets(ops, params)
    assert list(found) == ["dense1", "dense2"]
    for name, value in found.items():
        expected = np.linalg.slogdet(params[name]["W"])[1]
        np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_initial_parameters_depend_on_the_seed_alone():
    flow = small_flow()
    first, again, other = (flow.init(seed)["dense2"]["W"] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    assert np.any(first != flow.init(3)["dense1"]["W"])  # layers draw one after the other


def test_dimension_and_shapes():
    assert small_flow().dimension == D
    assert Flow(shape=(4, 3, 2), layers=()).dimension == 24


# ---------------------------------------------------------------- where something went wrong


def test_a_singular_layer_is_named(ops, x):
    flow = small_flow()
    params = random_params(flow)
    params["dense2"]["W"] = np.zeros((D, D))
    for call in (
        lambda: flow.log_dets(ops, params),
        lambda: flow.inverse(ops, params, x, exact=True),
    ):
        with pytest.raises(SingularMatrixError, match="^layer dense2: .*singular") as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_singular_layer_is_named_in_the_backward_pass(ops, x):
    flow = small_flow(Exact())
    params = random_params(flow)
    params["dense1"]["W"] = np.zeros((D, D))
    layout = Layout.of(params)
    grads = layout.views(np.zeros(layout.size))
    z, _, caches = flow.forward(ops, params, x)
    with pytest.raises(SingularMatrixError, match="^layer dense1: "):
        flow.backward(ops, params, caches, -z, np.ones(N), grads, Reconstruction(1.0))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_first_nonfinite_names_the_layer(ops, x, bad):
    flow = small_flow()
    assert flow.first_nonfinite(ops, random_params(flow), x) is None
    for layer in ("dense1", "dense2"):
        params = random_params(flow)
        params[layer]["b"][2] = bad
        assert flow.first_nonfinite(ops, params, x) == layer
    x[3, 1] = bad
    assert flow.first_nonfinite(ops, random_params(flow), x) == "input"


@dataclass(frozen=True)
class BadVolume:
    """The identity with a log-determinant that is not finite."""

    def init(self, rng, shape):
        return {}

    def output_shape(self, shape):
        return shape

    def forward(self, ops, p, x):
        return x, ops.xp.full(len(x), -np.inf), {}


def test_first_nonfinite_looks_at_log_determinants(ops, x):
    flow = Flow(shape=(D,), layers=(("good", SmoothLeakyReLU()), ("bad", BadVolume())))
    assert flow.first_nonfinite(ops, flow.init(0), x) == "bad"


def test_first_nonfinite_gradient_names_layer_and_parameter(ops):
    flow = small_flow()
    layout = Layout.of(flow.init(0))
    grads = layout.views(np.zeros(layout.size))
    assert flow.first_nonfinite_gradient(ops, grads) is None
    grads["dense1"]["R"][1, 1] = np.inf
    assert flow.first_nonfinite_gradient(ops, grads) == "dense1.R"
    grads["dense2"]["b"][0] = np.nan  # nearer to the output, where the backward pass starts
    assert flow.first_nonfinite_gradient(ops, grads) == "dense2.b"
