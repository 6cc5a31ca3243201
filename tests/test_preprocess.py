"""Preprocessing (dequantise, scale, logit): against SciPy, its log-Jacobian, its gradient."""

import numpy as np
import pytest
from scipy.special import expit, logit

from snfnp.errors import UsageError
from snfnp.gradcheck import check_gradient, convergence
from snfnp.layers import Preprocess
from snfnp.ops import RandomKey, get_ops

RTOL = 1e-8
PREPROCESSORS = [Preprocess(), Preprocess(alpha=0.05), Preprocess(alpha=0.01, levels=32)]
KEY = RandomKey(4, 1, 2)


@pytest.fixture(params=PREPROCESSORS, ids=str)
def preprocess(request):
    return request.param


def some_images(preprocess, shape=(5, 3, 2, 1)):
    images = np.random.default_rng(0).integers(0, preprocess.levels, shape).astype(np.uint8)
    images.flat[0], images.flat[-1] = 0, preprocess.levels - 1
    return images


def test_preprocess_is_dequantise_scale_logit(preprocess, ops):
    images = some_images(preprocess)
    x, ldj = preprocess.forward(ops, images, KEY, np.float64)
    u = get_ops("numpy").random.uniform(KEY, images.shape, np.float64)
    s = preprocess.alpha + (1 - 2 * preprocess.alpha) * (images + u) / preprocess.levels
    np.testing.assert_allclose(x, logit(s), rtol=1e-9, atol=1e-12)  # 1 - s cancels in this form
    per_pixel = np.log((1 - 2 * preprocess.alpha) / preprocess.levels) - np.log(s) - np.log1p(-s)
    np.testing.assert_allclose(ldj, per_pixel.reshape(5, -1).sum(axis=1), rtol=1e-9)


def test_preprocess_inverse_gives_the_images_back(preprocess, ops):
    images = some_images(preprocess, (40, 28))
    x, _ = preprocess.forward(ops, images, KEY, np.float64)
    back = preprocess.inverse(ops, x)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, images)
    noisy = preprocess.continuous_inverse(ops, x)
    u = get_ops("numpy").random.uniform(KEY, images.shape, np.float64)
    np.testing.assert_allclose(noisy, images + u, rtol=0, atol=1e-9)


def test_preprocess_inverse_clips_what_lies_outside(preprocess, ops):
    x = np.array([[-100.0, 100.0]])
    np.testing.assert_array_equal(preprocess.inverse(ops, x), [[0, preprocess.levels - 1]])


def test_preprocess_log_determinant_and_gradient(preprocess, ops):
    """Central differences in a continuous image: the noise of a key does not depend on it."""
    rng = np.random.default_rng(1)
    shape = (3, 2, 2)
    # between the levels' ends, where the logit's higher derivatives are of moderate size
    images = rng.uniform(0.2, 0.8, shape) * preprocess.levels
    unit = preprocess.levels / 256  # the length over which the function changes
    c, a = rng.standard_normal(shape), rng.standard_normal(len(images))
    x, ldj = preprocess.forward(ops, images, KEY, np.float64)
    dx = preprocess.backward(ops, x, c, a)

    def objective(v):
        x, ldj = preprocess.forward(ops, v, KEY, np.float64)
        return float(np.sum(c * x) + np.sum(a * ldj))

    check_gradient(objective, images, dx, rng=rng, rtol=RTOL, h=unit, name="images")

    u = rng.standard_normal(shape)
    u /= np.linalg.norm(u)
    assert abs(convergence(objective, images, dx, u, h=4 * unit) - 4) < 0.2

    # elementwise, so its Jacobian is the diagonal that backward gives for a delta of ones
    slopes = preprocess.backward(ops, x, np.ones(shape), np.zeros(len(images)))
    np.testing.assert_allclose(ldj, np.log(slopes).reshape(len(images), -1).sum(axis=1), rtol=1e-12)


def test_preprocess_terms_sum_to_its_log_determinant(preprocess, ops):
    _, ldj = preprocess.forward(ops, some_images(preprocess), KEY, np.float64)
    terms = preprocess.terms(float(ldj.mean()), 6)
    assert list(terms) == ["dequantisation", "scale", "logit"]
    np.testing.assert_allclose(sum(terms.values()), ldj.mean(), rtol=1e-14)
    scale = 6 * np.log((1 - 2 * preprocess.alpha) / preprocess.levels)
    np.testing.assert_allclose(terms["scale"], scale, rtol=1e-14)


def test_preprocess_in_single_precision(preprocess, ops):
    """Computed in double precision and rounded once."""
    images = some_images(preprocess)
    x, ldj = preprocess.forward(ops, images, KEY, np.float64)
    x32, ldj32 = preprocess.forward(ops, images, KEY, np.float32)
    assert x32.dtype == ldj32.dtype == np.float32
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(x32, x, rtol=eps)
    np.testing.assert_allclose(ldj32, ldj, rtol=eps)
    # and so is the way back: it rounds nothing that single precision would
    back = preprocess.continuous_inverse(ops, x32)
    np.testing.assert_array_equal(back, preprocess.continuous_inverse(ops, x32.astype(np.float64)))
    dz, dldj = np.ones_like(x32), np.ones(len(x32), np.float32)
    delta = preprocess.backward(ops, x32, dz, dldj)
    assert delta.dtype == np.float32
    expected = preprocess.backward(ops, x, np.ones_like(x), np.ones(len(x)))
    # an error of eps in x, up to 14, is a relative error of 14 eps in eˣ; tanh adds less
    largest = np.max(np.abs(expected))
    np.testing.assert_allclose(delta, expected, rtol=16 * eps, atol=16 * eps * largest)


def test_preprocess_takes_its_noise_from_the_key(preprocess, ops):
    images = some_images(preprocess)
    first, _ = preprocess.forward(ops, images, KEY, np.float64)
    again, _ = preprocess.forward(ops, images, KEY, np.float64)
    other, _ = preprocess.forward(ops, images, KEY._replace(step=3), np.float64)
    np.testing.assert_array_equal(first, again)
    assert not np.any(first == other)


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1e-6, np.nan])
def test_preprocess_refuses_an_alpha_outside_its_range(alpha):
    with pytest.raises(UsageError, match=r"must be in \(0, 0\.5\)"):
        Preprocess(alpha=alpha)


def test_sigmoid_of_the_output_is_the_scaled_pixel(preprocess, ops):
    x, _ = preprocess.forward(ops, some_images(preprocess), KEY, np.float64)
    s = expit(x)
    assert s.min() >= preprocess.alpha * (1 - 1e-12)
    assert s.max() <= (1 - preprocess.alpha) * (1 + 1e-12)
