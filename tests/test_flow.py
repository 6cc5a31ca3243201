"""A chain of layers: round trips, determinants, latents, gradients, and the name of the layer where
something went wrong."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import norm
from support.gradients import flow_backward, moved
from support.messages import one_line
from test_rules import random_params, two_layers

from snfnp.errors import SingularMatrixError, UsageError
from snfnp.flow import Flow
from snfnp.layers import (
    ActNorm,
    AffineCoupling,
    Linear,
    Parameterless,
    Preprocess,
    SmoothLeakyReLU,
    SplitPrior,
    Squeeze,
)
from snfnp.maps import Conv2d
from snfnp.ops import RandomKey
from snfnp.parameters import Layout
from snfnp.rules import Exact, SelfNormalizing

D, N = 5, 5
RNG = np.random.default_rng


@pytest.fixture
def x():
    return np.random.default_rng(1).standard_normal((N, D))


def test_a_flow_without_a_learned_inverse_says_so(ops, x):
    flow = two_layers(Exact())
    assert not flow.has_learned_inverse
    assert two_layers(SelfNormalizing()).has_learned_inverse
    with one_line(UsageError, match="learned no inverse"):
        flow.inverse(ops, random_params(flow, RNG(0)), (x,))


def test_initial_parameters_depend_on_the_seed_alone():
    flow = two_layers(SelfNormalizing())
    first, again, other = (flow.init(seed)["dense2"]["W"] for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    assert np.any(first != flow.init(3)["dense1"]["W"])  # layers draw one after the other


def test_parameter_shapes_are_those_of_the_initial_parameters():
    for flow in (two_layers(SelfNormalizing()), two_layers(Exact()), split_flow()):
        shapes = flow.parameter_shapes()
        initial = flow.init(0)
        assert list(shapes) == list(initial)
        for layer, named in initial.items():
            found = {name: tuple(shape) for name, shape in shapes[layer].items()}
            assert list(found.items()) == [(name, value.shape) for name, value in named.items()]


def test_images_are_encoded_and_decoded_by_the_preprocessing(ops):
    flow = split_flow()
    images = np.random.default_rng(5).integers(0, 256, (N, 4, 4, 2)).astype(np.uint8)
    key = RandomKey(1, 2, 3)
    for given in (images, images.astype(np.int64)):
        x, ldj = flow.encode(ops, given, key, np.float64)
        expected = flow.preprocess.forward(ops, images, key, np.float64)
        for found, value in zip((x, ldj), expected, strict=True):
            np.testing.assert_array_equal(found, value)
        assert x.shape == (N, *flow.shape) and ldj.shape == (N,)
        np.testing.assert_array_equal(flow.decode(ops, x), images)
    assert flow.encode(ops, images, key, np.float32)[0].dtype == np.float32


def split_flow():
    """Two splits: latents of (2, 2, 4), (1, 1, 8) and (1, 1, 8) values."""
    return Flow(
        (4, 4, 2),
        (
            ("squeeze1", Squeeze()),
            ("mix1", Linear(Conv2d((1, 1), 8), Exact(), init_kind="orthogonal")),
            ("split1", SplitPrior(AffineCoupling(8, 3))),
            ("squeeze2", Squeeze()),
            ("mix2", Linear(Conv2d((1, 1), 16), Exact(), bias=False, init_kind="orthogonal")),
            ("split2", SplitPrior(ActNorm())),
            ("activation", SmoothLeakyReLU(0.3)),
        ),
        Preprocess(alpha=0.05),
    )


def split_case():
    flow, rng = split_flow(), np.random.default_rng(3)
    params = moved(flow.init(0), rng)
    return flow, params, rng.standard_normal((N, *flow.shape))


@pytest.mark.parametrize("recompute", [False, True])
def test_latents_come_in_the_order_of_the_splits_then_z(ops, recompute):
    flow, params, x = split_case()
    assert list(flow.latent_shapes) == ["split1", "split2", "z"]
    assert list(flow.latent_shapes.values()) == [(2, 2, 4), (1, 1, 8), (1, 1, 8)]
    found, ldj, _ = flow.forward(ops, params, x, recompute)
    assert isinstance(found, tuple)
    expected, volume = [], 0
    for name, layer in flow.layers:
        x, layer_ldj, cache = layer.forward(ops, params[name], x)
        volume = volume + layer_ldj
        if name.startswith("split"):
            expected.append(cache["latent"])
    for latent, value in zip(found, (*expected, x), strict=True):
        np.testing.assert_array_equal(latent, value)
    np.testing.assert_allclose(ldj, volume, rtol=1e-13)  # and no density of a latent in it


def test_log_density_is_a_standard_gaussians_of_all_latents(ops):
    flow, params, x = split_case()
    latents, _, _ = flow.forward(ops, params, x)
    expected = sum(norm.logpdf(latent).reshape(N, -1).sum(axis=1) for latent in latents)
    found = flow.log_density(ops, latents)
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    parts = [flow.log_density(ops, (latent,)) for latent in latents]
    np.testing.assert_allclose(sum(parts), found, rtol=1e-13)
    # no latent may be left out
    for missing in range(3):
        rest = [part for index, part in enumerate(parts) if index != missing]
        assert np.min(np.abs(sum(rest) - found)) > 0.1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_first_nonfinite_checks_the_latents_of_splits(ops, bad):
    """The last channel is in split2's latent, and in no later layer's input."""
    flow, params, x = split_case()
    assert flow.first_nonfinite(ops, params, x) is None
    params["split2"]["t"][-1] = bad
    latents, _, _ = flow.forward(ops, params, x)
    assert [bool(np.isfinite(latent).all()) for latent in latents] == [True, False, True]
    assert flow.first_nonfinite(ops, params, x) == "split2"


@pytest.mark.parametrize("layer", ["dense1", "dense2"])
def test_a_singular_layer_is_named(ops, x, layer):
    flow = two_layers(Exact())
    params = random_params(flow, RNG(0))
    params[layer]["W"] = np.zeros((D, D))
    for call in (
        lambda: flow.log_dets(ops, params),
        lambda: flow.inverse(ops, params, (x,), exact=True),
        lambda: flow_backward(ops, flow, params, x),
    ):
        with one_line(SingularMatrixError, match=f"^layer {layer}: .*singular"):
            call()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_first_nonfinite_names_the_layer(ops, x, bad):
    flow = two_layers(SelfNormalizing())
    assert flow.first_nonfinite(ops, random_params(flow, RNG(0)), x) is None
    for layer in ("dense1", "dense2"):
        params = random_params(flow, RNG(0))
        params[layer]["b"][2] = bad
        assert flow.first_nonfinite(ops, params, x) == layer
    x[3, 1] = bad
    assert flow.first_nonfinite(ops, random_params(flow, RNG(0)), x) == "input"


@dataclass(frozen=True)
class BadVolume(Parameterless):
    """The identity with a log-determinant that is not finite."""

    def forward(self, ops, p, x):
        return x, ops.xp.full(len(x), -np.inf), {}


def test_first_nonfinite_checks_log_determinants(ops, x):
    flow = Flow(shape=(D,), layers=(("good", SmoothLeakyReLU()), ("bad", BadVolume())))
    assert flow.first_nonfinite(ops, flow.init(0), x) == "bad"


def test_first_nonfinite_gradient_names_layer_and_parameter(ops):
    flow = two_layers(SelfNormalizing())
    layout = Layout.of(flow.parameter_shapes())
    grads = layout.views(np.zeros(layout.size))
    assert flow.first_nonfinite_gradient(ops, grads) is None
    grads["dense1"]["R"][1, 1] = np.inf
    assert flow.first_nonfinite_gradient(ops, grads) == "dense1.R"
    grads["dense2"]["b"][0] = np.nan  # nearer to the output, where the backward pass starts
    assert flow.first_nonfinite_gradient(ops, grads) == "dense2.b"
