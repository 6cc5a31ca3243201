"""The convolution exponential: the series, its norm, its gradients and its inverse.

The contract that every layer keeps is in test_layers.py.
"""

import math

import numpy as np
import pytest
from scipy.linalg import expm
from support.gradients import layer_backward

from snfnp.gradcheck import GradientError, as_matrix, check_layer
from snfnp.layers.conv_exponential import ConvExponential

SHAPES = [(1, 1, 2), (4, 5, 1), (5, 4, 2), (1, 6, 3), (2, 2, 7)]
EPS = np.finfo(np.float64).eps


def case(shape, scale=1.0, seed=0, **options):
    rng = np.random.default_rng(seed)
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
@pytest.mark.parametrize("scale", [0.05, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_and_inverse_are_the_matrix_exponential(ops, shape, scale):
    layer, p, x = case(shape, scale)
    t, _, norm = normalised_matrix(layer, ops, p, shape)
    z, ldj, _ = layer.forward(ops, p, x)
    assert ldj == 0
    rows = x.reshape(len(x), -1)
    largest = np.linalg.norm(rows, axis=1).max()
    atol = (remainder(norm, layer.terms[1]) + 100 * EPS * math.exp(norm)) * largest
    for found, sign in ((z, 1), (layer.inverse(ops, p, x), -1)):
        expected = (rows @ expm(sign * t).T).reshape(x.shape)
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
    np.testing.assert_allclose(layer.inverse(ops, p, z), x, rtol=0, atol=2 * math.exp(norm) * atol)


def test_the_series_is_shorter_in_single_precision(ops):
    """And not as accurate: what 6 terms leave out is more than the rounding."""
    shape = (4, 5, 2)
    layer, p, x = case(shape)
    t, _, norm = normalised_matrix(layer, ops, p, shape)
    single = {"W": p["W"].astype(np.float32)}
    z, _, cache = layer.forward(ops, single, x.astype(np.float32))
    assert z.dtype == np.float32
    assert len(cache["powers"]) == layer.terms[0] + 1
    rows = x.reshape(len(x), -1)
    expected = (rows @ expm(t).T).reshape(x.shape)
    largest = np.linalg.norm(rows, axis=1).max()
    rounding = 100 * np.finfo(np.float32).eps * math.exp(norm)
    error = np.abs(z - expected).max() / largest
    assert error <= remainder(norm, layer.terms[0]) + rounding


# ---------------------------------------------------------------- the norm


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
    shape, gap = (3, 4, 2), 0.95
    for seed in range(100):
        layer, p, _ = case(shape, seed=seed, iterations=400)
        first, second = np.linalg.svd(as_matrix(layer.map, ops, p["W"], shape))[1][:2]
        if second < gap * first:  # (gap²)⁴⁰⁰ is below the spacing of floating-point numbers
            break
    sigma, path = layer._spectral_norm(ops, p["W"], shape)
    v, u = path[-1]
    published = layer.map.weight_grad(ops, u / sigma, v, out=np.empty_like(p["W"]))
    found = layer._spectral_norm_grad(ops, p["W"], sigma, path)
    np.testing.assert_allclose(found, published, rtol=0, atol=1e-11 * np.abs(published).max())


def test_without_the_gradient_of_the_norm_the_check_fails(ops, monkeypatch):
    layer, p, x = case((3, 4, 2))
    nothing = lambda self, ops, w, sigma, path: np.zeros_like(w)  # noqa: E731
    monkeypatch.setattr(ConvExponential, "_spectral_norm_grad", nothing)
    with pytest.raises(GradientError, match="W, direction"):
        check_layer(layer, (3, 4, 2), ops=ops, x=x, params=p)


def test_a_kernel_of_zeros_is_the_identity(ops):
    layer, p, x = case((4, 4, 2), scale=0.0)
    z, _, cache = layer.forward(ops, p, x)
    np.testing.assert_array_equal(z, x)
    dx, grads, _ = layer_backward(ops, layer, p, cache, x, dldj=np.zeros(len(x)))
    np.testing.assert_array_equal(dx, x)
    # d exp(T(K)) x = T(dK) x at K = 0
    expected = layer.map.weight_grad(ops, x, x, out=np.empty_like(p["W"]))
    np.testing.assert_allclose(grads["W"], expected / (1 + 1e-5), rtol=1e-12)


def test_a_nan_is_not_hidden(ops):
    layer, p, x = case((4, 4, 2))
    p["W"][0, 0, 0, 0] = np.nan
    assert np.isnan(layer.forward(ops, p, x)[0]).any()
    assert np.isnan(layer.log_det(ops, p, (4, 4, 2)))


def test_initial_parameters():
    w = ConvExponential(16, gain=0.01).init(np.random.default_rng(0), (7, 7, 16))["W"]
    assert w.shape == (3, 3, 16, 16)
    xavier = 0.01 * math.sqrt(2 / (2 * 16 * 9))
    assert abs(w.std() - xavier) < 5 * xavier / math.sqrt(2 * w.size)
