"""Convolutions: patches, flip, m and T(w) by their definitions, kernels of two sizes; exponentials.

The contract that every map shares is in test_maps.py, that of the layers in test_layers.py.
"""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numba.core.errors import TypingError
from numpy.random import default_rng
from numpy.testing import assert_array_equal
from scipy.linalg import expm
from support.arrays import assert_near
from support.explicit import convolve, convolve_weight_grad
from support.operation_calls import CONVOLUTIONS

from snfnp.gradcheck import GradientError, as_matrix, check_layer
from snfnp.layers import Linear
from snfnp.layers.baselines import ConvExponential
from snfnp.maps import Conv2d
from snfnp.ops import get_ops
from snfnp.ops.conv import cpu_planes, cpu_tiles
from snfnp.ops.conv.cpu import direct
from snfnp.rules import SelfNormalizing

pytestmark = pytest.mark.usefixtures("alone")
SEEDS = st.integers(0, 2**32 - 1)
ODD = st.sampled_from([1, 3, 5, 7])
SHAPES = [(4, 5, 1), (1, 6, 3), (2, 2, 7)]
EPS = np.finfo(np.float64).eps


def arrays(kernel, image, channels):
    """x (N, H, W, I), k (kH, kW, I, O), delta (N, H, W, O): more samples than one task takes."""
    rng = default_rng(5)
    inputs, outputs = channels
    sizes = (
        (11, *image, inputs),
        (*kernel, inputs, outputs),
        (11, *image, outputs),
    )
    return tuple(map(rng.standard_normal, sizes))


# ---------------------------------------------------------------- the operations


def test_patches_of_a_pointwise_kernel_are_a_view(ops):
    x, _, _ = arrays((1, 1), (4, 3), (5, 5))
    assert np.shares_memory(ops.conv.patches(x, (1, 1)), x)


@pytest.mark.parametrize("most", [16, 64])
def test_all_ways_of_the_cpu_backend_are_tested(most):
    """Tiles, planes, and products of patches: see test_ops.py."""
    shapes = [
        ((*kernel, x[3], outputs), x[2], most) for x, kernel, outputs in CONVOLUTIONS
    ]
    assert {direct(*shape) for shape in shapes} == {cpu_tiles, cpu_planes, None}


@pytest.mark.slow
def test_the_size_of_a_tile_does_not_change_a_bit(monkeypatch):
    """Processors differ in how many sums fit into registers, not in the order of a sum's terms."""
    ops = get_ops("numba")
    x, k, delta = arrays((3, 3), (9, 13), (4, 16))
    results = []
    for size in (12 * 32, 28 * 64):
        monkeypatch.setattr(cpu_tiles, "register_bytes", lambda size=size: size)
        gradient = ops.conv.weight_grad(delta, x, np.empty_like(k))
        results.append((ops.conv.correlate(x, k), gradient))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert_array_equal(one, two)


def test_tiles_of_two_precisions_are_refused():
    """Their vectors would be read as what they are not."""
    x, k, delta = arrays((3, 3), (9, 8), (4, 4))
    with pytest.raises(TypingError, match="of one precision"):
        cpu_tiles.weight_grad(delta.astype(np.float32), x, k.shape)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "kernel, channels",
    [((3, 3), (1, 1)), ((5, 3), (2, 5)), ((7, 7), (1, 2)), ((5, 3), (4, 4))],
)
def test_nonfinite_pixels_spread_to_the_kernels_window_alone(
    ops, bad, kernel, channels
):
    x, k, _ = arrays(kernel, (9, 7), channels)
    for pixel in ((0, 0), (4, 6), (8, 6)):
        spoiled = x.copy()
        spoiled[3, *pixel, -1] = bad
        z = ops.conv.correlate(spoiled, k)
        (y, h), (c, w) = ((at, n // 2) for at, n in zip(pixel, kernel, strict=True))
        reached = np.zeros(z.shape, bool)
        reached[3, max(0, y - h) : y + h + 1, max(0, c - w) : c + w + 1] = True
        assert_array_equal(~np.isfinite(z), reached)


@st.composite
def laid_out(draw, *shape):
    """Normal numbers of a shape: contiguous, reversed, a part of a larger array, or transposed."""
    rng = default_rng(draw(SEEDS))
    kind = draw(st.sampled_from(["contiguous", "reversed", "strided", "transposed"]))
    if kind == "strided":
        return rng.standard_normal((*shape[:-1], 2 * shape[-1]))[..., ::2]
    if kind == "transposed":
        return rng.standard_normal(shape[::-1]).transpose()
    array = rng.standard_normal(shape)
    return array[..., ::-1] if kind == "reversed" else array


@st.composite
def convolutions(draw):
    """Images, deltas, and a kernel of odd sizes or of even ones."""
    even = st.sampled_from([(2, 2), (2, 3), (3, 2), (4, 2)])
    kernel = draw(st.one_of(st.tuples(ODD, ODD), even))
    samples, height, width = (draw(st.integers(1, most)) for most in (11, 6, 6))
    inputs = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 16, 40]))
    outputs = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 9, 12]))
    x = draw(laid_out(samples, height, width, inputs))
    delta = draw(laid_out(samples, height, width, outputs))
    return x, delta, draw(laid_out(*kernel, inputs, outputs))


@settings(
    max_examples=80,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(convolutions(), st.booleans())
def test_a_convolution_of_any_shape_is_its_definition(ops, case, add):
    """To rounding errors of sums, relative to the largest value."""

    def close(found, expected):
        assert np.shape(found) == np.shape(expected)
        atol = 1e-11 * max(1.0, np.abs(expected).max())
        assert_near(found, expected, atol)

    x, delta, k = case
    close(ops.conv.correlate(x, k), convolve(x, k))
    out = np.ones(k.shape) if add else np.full(k.shape, np.nan)
    ops.conv.weight_grad(delta, x, out, add)
    close(out, add + convolve_weight_grad(delta, x, k.shape[:2]))


# ---------------------------------------------------------------- kernels of two sizes (A.4)


def test_initial_inverse_kernel_is_the_padded_flip():
    layer = Linear(Conv2d((3, 3), 2), SelfNormalizing(), inverse_map=Conv2d((7, 7), 2))
    params = layer.init(default_rng(0), (4, 4, 2))
    flipped = params["W"][::-1, ::-1].swapaxes(2, 3)
    assert_array_equal(params["R"], np.pad(flipped, ((2, 2), (2, 2), (0, 0), (0, 0))))
    assert params["R"].flags.c_contiguous and params["b"].shape == (2,)


# ---------------------------------------------------------------- the convolution exponential


def case(shape, scale=1.0, seed=0, **options):
    rng = default_rng(seed)
    layer = ConvExponential(shape[2], **options)
    w = scale * rng.standard_normal(layer.map.weight_shape)
    return layer, {"W": w}, rng.standard_normal((5, *shape))


def normalised_matrix(layer, ops, p, shape):
    """T(K), written out, and the norms of T(W) and T(K)."""
    t = as_matrix(layer.map, ops, p["W"], shape)
    sigma, _ = layer._spectral_norm(ops, p["W"], shape)
    scale = max(1.0, sigma / layer.norm) + 1e-5
    norm = np.linalg.norm(t, 2)
    return t / scale, norm, norm / scale


def remainder(norm, terms):
    """What a series that ends after `terms` leaves out, at most, of exp at this norm."""
    return norm ** (terms + 1) / math.factorial(terms + 1) * math.exp(norm)


# within the bound, where W is K but for S - 1 = 1e-5, and beyond it
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("scale", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_inverse_are_the_matrix_exponential(ops, shape, scale, dtype):
    """To what the series leaves out, which is shorter in single precision, and rounding."""
    layer, p, x = case(shape, scale)
    t, _, norm = normalised_matrix(layer, ops, p, shape)
    p = {"W": p["W"].astype(dtype)}
    z, ldj, cache = layer.forward(ops, p, x.astype(dtype))
    assert ldj == 0 and z.dtype == dtype
    terms = layer.terms[dtype is np.float64]
    assert len(cache["terms"]) == terms + 1
    rows = x.reshape(len(x), -1)
    rounding = 100 * np.finfo(dtype).eps * math.exp(norm)
    atol = (remainder(norm, terms) + rounding) * np.linalg.norm(rows, axis=1).max()
    for found, sign in ((z, 1), (layer.inverse(ops, p, x.astype(dtype)), -1)):
        assert_near(found, (rows @ expm(sign * t).T).reshape(x.shape), atol)
    assert_near(layer.inverse(ops, p, z), x, 2 * math.exp(norm) * atol)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_norm_estimate_rises_to_the_norm(ops, shape):
    largest = 0.0
    for iterations in (1, 5, 1000):
        layer, p, _ = case(shape, iterations=iterations)
        _, norm, bounded = normalised_matrix(layer, ops, p, shape)
        sigma, _ = layer._spectral_norm(ops, p["W"], shape)
        assert largest * (1 - 100 * EPS) <= sigma <= norm * (1 + 100 * EPS)
        largest = sigma
    assert sigma > 0.99 * norm and bounded <= layer.norm / 0.99


def test_a_small_kernel_is_left_alone(ops):
    layer, p, _ = case((5, 4, 2), scale=0.01)
    t, norm, bounded = normalised_matrix(layer, ops, p, (5, 4, 2))
    assert norm < layer.norm
    assert bounded == pytest.approx(norm / (1 + 1e-5), rel=1e-12)


def test_the_gradient_of_the_norm_at_the_end_is_that_of_the_singular_vectors(ops):
    """After many steps the path counts for nothing, and ∂σ/∂W = u ⋆ v: the published formula."""
    shape = (3, 4, 2)
    gap = 0.95
    for seed in range(100):
        layer, p, _ = case(shape, seed=seed, iterations=400)
        first, second = np.linalg.svd(as_matrix(layer.map, ops, p["W"], shape))[1][:2]
        # (gap²)⁴⁰⁰ is below the spacing of floating-point numbers
        if second < gap * first:
            break
    sigma, path = layer._spectral_norm(ops, p["W"], shape)
    v, u = path[-1]
    published = layer.map.weight_grad(ops, u / sigma, v, out=np.empty_like(p["W"]))
    found = layer._spectral_norm_grad(ops, p["W"], sigma, path)
    assert_near(found, published, 1e-11 * np.abs(published).max())


def test_without_the_gradient_of_the_norm_the_check_fails(ops, monkeypatch):
    layer, p, x = case((2, 2, 2))
    nothing = lambda self, ops, w, sigma, path: np.zeros_like(w)  # noqa: E731
    monkeypatch.setattr(ConvExponential, "_spectral_norm_grad", nothing)
    with pytest.raises(GradientError, match="W, direction"):
        check_layer(layer, (2, 2, 2), ops=ops, x=x, params=p)


def test_a_kernel_of_zeros_has_a_gradient_where_the_host_does_not_wait(
    ops, monkeypatch
):
    """The norm's gradient is then computed on a device, and counts 0 times."""
    monkeypatch.setattr(type(ops.device), "known_on_host", lambda self, condition: None)
    layer, p, x = case((2, 2, 2), scale=0.0)
    check_layer(layer, (2, 2, 2), ops=ops, x=x, params=p)


def test_a_nan_is_not_hidden(ops):
    layer, p, x = case((4, 4, 2))
    p["W"][0, 0, 0, 0] = np.nan
    assert np.isnan(layer.forward(ops, p, x)[0]).any()
    assert np.isnan(layer.log_det(ops, p, (4, 4, 2)))
