"""Couplings, split priors and emerging convolutions: volumes, inverses, starts, terms."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.random import default_rng
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import norm
from support.arrays import assert_near, cast, pixels
from support.explicit import convolve
from support.gradients import (
    layer_backward,
    moved,
    peak,
    random_parameters,
)
from support.messages import one_line

from snfnp.context import BackwardContext
from snfnp.errors import SingularMatrixError, UsageError
from snfnp.flow import Flow
from snfnp.gradcheck import check_layer
from snfnp.layers import AffineCoupling, Preprocess
from snfnp.layers.baselines import CausalConv2d, emerging_layers
from snfnp.likelihood import EVALUATION_NOISE, SAMPLE_LATENTS, Likelihood
from snfnp.ops import RandomKey, get_ops
from snfnp.ops.coupling.definition import Coupling
from snfnp.training.options import TrainConfig

EPS = np.finfo(np.float64).eps
SHAPES = [(2, 3, 2), (4, 3, 4), (1, 2, 6)]
N = 3
CAUSAL_SHAPES = [(4, 5, 1), (1, 6, 4), (6, 1, 2), (3, 3, 7)]


def case(shape, width=8, samples=5, dtype=np.float64, noise=0.3):
    """A layer, its parameters away from their start, and images."""
    rng = default_rng(3)
    layer = AffineCoupling(shape[2], width)
    p = cast(moved(layer.init(rng, shape), rng, noise), dtype)
    return layer, p, rng.standard_normal((samples, *shape)).astype(dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_is_the_formula(ops, shape):
    layer, p, x = case(shape)
    half = shape[2] // 2
    a1 = np.maximum(convolve(x[..., :half], p["w1"]) + p["b1"], 0)
    a2 = np.maximum(np.einsum("nyxi,io->nyxo", a1, p["w2"]) + p["b2"], 0)
    h = (convolve(a2, p["w3"]) + p["b3"]) * np.exp(3 * p["logs"])
    s = 2 * np.tanh(h[..., 0::2] / 2)
    z, ldj, _ = layer.forward(ops, p, x)
    assert_array_equal(z[..., :half], x[..., :half])
    expected = x[..., half:] * np.exp(s) + h[..., 1::2]
    assert_near(z[..., half:], expected, 1e-12)
    assert_near(ldj, s.sum(axis=(1, 2, 3)), 1e-12)
    for unit in (a1, a2):  # the contract's points and these: ReLUs on both sides
        assert 0.1 < np.mean(unit > 0) < 0.9


@pytest.mark.parametrize("rows", [1, 7, 18, 1000])
def test_results_do_not_depend_on_the_block_size(ops, rows, monkeypatch):
    """Networks of one image at a time, of two, of three and (the last) of all of them."""
    layer, p, x = case((2, 3, 4), samples=8)
    dldj = np.linspace(-1, 1, 8)

    def everything():
        z, ldj, cache = layer.forward(ops, p, x)
        dx, g, _ = layer_backward(ops, layer, p, cache, 0.3 * x, dldj=dldj)
        return {"z": z, "ldj": ldj, "x": layer.inverse(ops, p, z), "dx": dx, **g}

    expected = everything()
    monkeypatch.setattr(Coupling, "network_values", rows * layer.width)
    for name, result in everything().items():
        atol = 100 * EPS * max(1, np.abs(expected[name]).max())
        assert_near(result, expected[name], atol, name)


def test_an_empty_batch_passes_through(ops):
    layer, p, x = case((2, 3, 4), samples=0)
    z, ldj, cache = layer.forward(ops, p, x)
    assert z.shape == x.shape
    assert ldj.shape == (0,)
    assert layer.inverse(ops, p, z).shape == x.shape
    dx, g, _ = layer_backward(ops, layer, p, cache, z, dldj=ldj)
    assert dx.shape == x.shape
    assert not any(value.any() for value in g.values())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nan_is_never_zeroed(ops, dtype):
    out = np.array([[np.nan, -1, 2]], dtype)
    result = ops.coupling.bias_relu(out, np.zeros(3, dtype))
    assert_array_equal(result, [[np.nan, 0, 2]])
    delta = np.array([[1, np.nan, 3], [5, 6, 7]], dtype)
    a = np.array([[np.nan, 0, 2], [0, 0, 1]], dtype)
    sums = np.empty(3, dtype)
    ops.coupling.bias_relu_backward(delta, a, sums)
    assert_array_equal(delta, [[1, np.nan, 3], [0, 0, 7]])
    assert_array_equal(sums, [1, np.nan, 10])


@pytest.mark.slow
def test_a_coupling_keeps_one_hidden_activation(monkeypatch):
    """At (14, 14, 4) and width 256, where one activation (N H W, width) is 8 MB.

    The cache keeps a₂. Three blocks of about `network_values`, patches (9 · 6 of 256 channels,
    0.21 activations) and arrays of C channels come on top, and parameters and products.
    """
    ops = get_ops("numba")
    monkeypatch.setattr(Coupling, "network_values", Coupling.network_values // 2)
    samples = 40
    pixels = 14 * 14
    width = 256
    layer, p, x = case((14, 14, 4), width, samples, np.float32, noise=0.01)
    activation = samples * pixels * width * 4
    ctx = BackwardContext.of(ops, np.ones(samples, np.float32))
    grads = {k: np.empty_like(v) for k, v in p.items()}
    kept = []

    def step():
        z, _, cache = layer.forward(ops, p, x)
        kept.append(sum(value.nbytes for value in cache.values()))
        layer.backward(ctx, p, cache, z, grads)

    blocks = 3 * ops.coupling.network_values * 4
    assert activation < peak(step) < 1.5 * activation + blocks
    assert kept[-1] < 1.05 * activation


def glow():
    """Three levels, of 4, 8 and 16 channels: squeeze, step, and a split behind the first two."""
    config = TrainConfig(model="glow", levels=3, depth=1, width=6).resolve(1000)
    return replace(config.build_flow((8, 8, 1)), preprocess=Preprocess(alpha=0.05))


@pytest.fixture
def images():
    return pixels(N, 8, 8, 1, seed=9)


def test_latents_that_do_not_fit_are_refused(ops):
    flow = glow()
    layout, flat = random_parameters(flow)
    first, second, last = (
        np.zeros((N, *shape)) for shape in flow.latent_shapes.values()
    )
    for latents, message in (
        ((last,), "found 1 as latents: give a tuple of 3, for latent1, latent2, z"),
        ((first, last), "found 2 as latents: give a tuple of 3"),
        ((second, first, last), r"latent1 has shape \(3, 2, 2, 4\): .* \(N, 4, 4, 2\)"),
    ):
        with one_line(UsageError, match=message):
            flow.inverse(ops, layout.views(flat), latents)


def test_likelihood_terms_keep_densities_and_volumes_apart(ops, images):
    """A term for the density of each latent, each step of the preprocessing and each layer."""
    flow = glow()
    layout, flat = random_parameters(flow)
    params = layout.views(flat)
    likelihood = Likelihood(ops, flow, flat)
    evaluation = likelihood.evaluate(images, seed=11)
    key = RandomKey(11, EVALUATION_NOISE, 0)
    x, volume = flow.encode(ops, images, key, np.float64)
    latents, _, _ = flow.forward(ops, params, x)
    first, second, last = (norm.logpdf(z).sum(axis=(1, 2, 3)).mean() for z in latents)
    expected = {"base density": last, "latent1 base density": first}
    scale = 64 * np.log(0.9 / 256)
    expected |= {"latent2 base density": second, "dequantisation": 0, "scale": scale}
    expected["logit"] = volume.mean() - scale
    for name, layer, shape in flow.with_shapes():
        x, ldj, _ = layer.forward(ops, params[name], x)
        log_det = layer.log_det(ops, params[name], shape) or 0.0
        expected[name] = np.mean(ldj) + log_det
    assert list(evaluation.terms) == list(expected)
    assert evaluation.terms == pytest.approx(expected, rel=1e-12, abs=1e-12)
    assert evaluation.dimension == 64
    total = sum(expected.values())
    assert_allclose(evaluation.nll, -total, rtol=1e-12)
    assert_allclose(likelihood.log_prob(images, seed=11).mean(), total, rtol=1e-12)


def test_samples_from_an_images_latents_are_the_image(ops, images):
    flow = glow()
    likelihood = Likelihood(ops, flow, random_parameters(flow, exact_inverse=True)[1])
    latents = likelihood.latents(images, seed=3)
    assert [latent.shape for latent in latents] == [
        (N, *s) for s in flow.latent_shapes.values()
    ]
    for exact in (False, True):
        result = likelihood.sample(N, seed=0, exact=exact, latents=latents)
        assert_array_equal(result, images)
    # what is given is not scaled
    result = likelihood.sample(N, seed=0, temperature=0.1, exact=True, latents=latents)
    assert_array_equal(result, images)
    approximate = Likelihood(ops, flow, random_parameters(flow)[1])
    latents = approximate.latents(images, seed=3)
    assert np.any(approximate.sample(N, seed=0, latents=latents) != images)
    result = approximate.sample(N, seed=0, exact=True, latents=latents)
    assert result.dtype == np.uint8
    assert_array_equal(result, images)


def test_each_latent_is_drawn_from_numbers_of_its_own(ops):
    flow = glow()
    layout, flat = random_parameters(flow, exact_inverse=True)
    normal = get_ops("numpy").random.normal
    drawn = [
        0.7 * normal(RandomKey(5, SAMPLE_LATENTS, index), (N, *shape), np.float64)
        for index, shape in enumerate(flow.latent_shapes.values())
    ]
    assert not np.array_equal(drawn[0].ravel()[:16], drawn[1].ravel()[:16])
    x = flow.inverse(ops, layout.views(flat), tuple(drawn), exact=True)
    result = Likelihood(ops, flow, flat).sample(N, 5, 0.7, exact=True)
    assert_array_equal(result, flow.decode(ops, x))


FIRST = np.zeros((2, 4, 4, 2))
SECOND = np.zeros((2, 2, 2, 4))


@pytest.mark.parametrize(
    "count, latents, message",
    [
        (
            2,
            (None,),
            "found 1 as latents: give a tuple of 3, for latent1, latent2, z",
        ),
        (2, (None,) * 4, "found 4 as latents: give a tuple of 3"),
        (3, np.zeros((3, 2)), "found ndarray as latents: give a tuple of 3"),
        (2, 3, "found int as latents: give a tuple of 3"),
        (
            5,
            (FIRST, None, None),
            r"latent latent1 has shape \(2, 4, 4, 2\): .* \(5, 4, 4, 2\)",
        ),
        (
            1,
            (FIRST, None, None),
            r"latent latent1 has shape \(2, 4, 4, 2\): .* \(1, 4, 4, 2\)",
        ),
        (
            2,
            (FIRST, FIRST, None),
            r"latent latent2 has shape \(2, 4, 4, 2\): .* \(2, 2, 2, 4\)",
        ),
        (2, (FIRST, SECOND, [1, 2]), "latent z has shape None: give an array of shape"),
    ],
)
def test_latents_of_another_number_or_shape_are_refused(ops, count, latents, message):
    flow = glow()
    likelihood = Likelihood(ops, flow, random_parameters(flow)[1])
    with one_line(UsageError, match=message):
        likelihood.sample(count, latents=latents)


def kernel(channels, rng):
    """A causal kernel near the identity; what the mask hides is NaN: nobody may read it."""
    k = 0.3 / channels * rng.standard_normal((2, 2, channels, channels))
    k[1, 1] += np.eye(channels)
    k[1, 1][np.tril_indices(channels, -1)] = np.nan
    return k


def causal_case(shape, reverse=False):
    rng = default_rng(0)
    layer = CausalConv2d(shape[2], reverse=reverse)
    p = {"W": kernel(shape[2], rng), "b": rng.standard_normal(shape[2])}
    return layer, p, rng.standard_normal((5, *shape))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shape", CAUSAL_SHAPES, ids=str)
def test_forward_is_the_sum_over_four_pixels(ops, shape, reverse):
    """In the opposite direction, of an image that is turned before and after."""
    layer, p, x = causal_case(shape, reverse=reverse)
    z, ldj, _ = layer.forward(ops, p, x)
    turn = np.s_[:, ::-1, ::-1] if reverse else np.s_[:]
    w = np.nan_to_num(p["W"])
    padded = np.pad(x[turn], ((0, 0), (1, 0), (1, 0), (0, 0)))
    expected = np.zeros_like(z) + p["b"]
    for h, v in np.ndindex(2, 2):
        seen = padded[:, h : h + shape[0], v : v + shape[1]]
        expected += np.einsum("nyxi,io->nyxo", seen, w[h, v])
    assert ldj == 0
    assert_near(z[turn], expected, 100 * EPS * np.abs(x).max())
    assert_near(layer.inverse(ops, p, z), x, 1e-12 * np.abs(x).max())


@pytest.mark.parametrize("reverse", [False, True])
def test_a_diagonal_may_be_negative(ops, reverse):
    layer, p, _ = causal_case((3, 2, 3), reverse=reverse)
    kernel = np.nan_to_num(p["W"])
    kernel[1, 1, [0, 2], [0, 2]] *= -1
    check_layer(layer, (3, 2, 3), ops=ops, params=p | {"W": kernel})


@pytest.mark.parametrize("value", [0.0, np.nan])
def test_a_diagonal_without_an_inverse_is_one_clear_error(ops, value):
    layer, p, x = causal_case((3, 4, 2))
    z, _, cache = layer.forward(ops, p, x)
    p["W"][1, 1, 1, 1] = value
    for call in (
        lambda: layer.log_det(ops, p, (3, 4, 2)),
        lambda: layer.inverse(ops, p, z),
        lambda: layer_backward(ops, layer, p, cache, z),
    ):
        with pytest.raises(SingularMatrixError, match="diagonal"):
            call()


def test_emerging_convolution_sees_its_eight_neighbours(ops):
    """One causal half sees the pixels before, the other those after: together a 3×3 window."""
    rng = default_rng(6)
    shape = (7, 7, 1)
    flow = Flow(shape, emerging_layers("conv1", 1, gain=1.0))
    params = moved(flow.init(3), rng, 0.05)
    x = rng.standard_normal((1, 7, 7, 1))
    (before,), _, _ = flow.forward(ops, params, x)
    x[0, 3, 3, 0] += 1.0
    (after,), _, _ = flow.forward(ops, params, x)
    window = np.zeros((7, 7), bool)
    window[2:5, 2:5] = True
    assert_array_equal((after != before)[0, :, :, 0], window)
