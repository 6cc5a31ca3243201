"""Preprocessing and augmentation: dequantise, scale and logit against SciPy; shifts and flips."""

import numpy as np
import pytest
from scipy.special import logit
from support.data_files import colour_images

from snfnp.gradcheck import central_difference
from snfnp.layers import Preprocess
from snfnp.layers.preprocess import Standardise
from snfnp.ops import RandomKey, get_ops
from snfnp.ops.images.definition import augment
from snfnp.ops.random.philox import uniform

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
    for dtype in (np.float64, np.float32):
        x, _ = preprocess.forward(ops, images, KEY, dtype)
        back = preprocess.inverse(ops, x)
        assert back.dtype == np.uint8
        if dtype == np.float64:  # in single precision a rounding can cross into the next level
            np.testing.assert_array_equal(back, images)
        # the way back rounds nothing that single precision would
        np.testing.assert_array_equal(back, preprocess.inverse(ops, x.astype(np.float64)))


def test_preprocess_inverse_clips_what_lies_outside(preprocess, ops):
    x = np.array([[-100.0, 100.0]])
    np.testing.assert_array_equal(preprocess.inverse(ops, x), [[0, preprocess.levels - 1]])


def test_preprocess_log_determinant(preprocess, ops):
    """Of a continuous image, elementwise: the noise of a key does not depend on it."""
    images = np.random.default_rng(1).uniform(0.2, 0.8, (3, 2, 2)) * preprocess.levels

    def forward(v):
        return preprocess.forward(ops, v, KEY, np.float64)[0]

    slopes = central_difference(forward, images, np.ones_like(images), preprocess.levels / 256)
    _, ldj = preprocess.forward(ops, images, KEY, np.float64)
    np.testing.assert_allclose(ldj, np.log(slopes).sum(axis=(1, 2)), rtol=RTOL)


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
    double = preprocess.forward(ops, images, KEY, np.float64)
    single = preprocess.forward(ops, images, KEY, np.float32)
    for found, expected in zip(single, double, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=np.finfo(np.float32).eps)


def test_preprocess_takes_its_noise_from_the_key(preprocess, ops):
    images = some_images(preprocess)
    first, _ = preprocess.forward(ops, images, KEY, np.float64)
    again, _ = preprocess.forward(ops, images, KEY, np.float64)
    other, _ = preprocess.forward(ops, images, KEY._replace(step=3), np.float64)
    np.testing.assert_array_equal(first, again)
    assert not np.any(first == other)


def test_rows_on_a_lattice_get_noise_of_a_step_and_come_back(ops):
    """The column without a step gets none; u is centred, and one step wide."""
    rng = np.random.default_rng(0)
    rows = np.stack([rng.integers(40, 80, 3000) / 10, rng.normal(size=3000)], axis=1)
    moments, lattice = ((6.0, 0.5), (2.0, 4.0)), ((0.1, 0.0), (5.0, 0.0), (10.0, 0.0))
    ways = Standardise(*moments), Standardise(*moments, *lattice)
    plain, noisy = (way.forward(ops, ops.asarray(rows), KEY, np.float64) for way in ways)
    np.testing.assert_array_equal(ops.to_host(plain[1]), ops.to_host(noisy[1]))
    noise = ops.to_host(noisy[0] - plain[0]) * [2.0, 4.0]
    assert np.abs(noise[:, 1]).max() == 0 and np.abs(noise[:, 0]).max() <= 0.05 + 1e-12
    assert abs(noise[:, 0].mean()) < 0.003 and abs(noise[:, 0].std() - 0.1 / 12**0.5) < 1e-3
    back = ops.to_host(ways[1].inverse(ops, noisy[0]))
    np.testing.assert_array_equal(back[:, 0], rows[:, 0])  # 5.1, not 5.1000000000000005
    np.testing.assert_allclose(back[:, 1], rows[:, 1], rtol=1e-12, atol=1e-12)
    assert ways[1].terms(-2.0, 2) == {"dequantisation": 0.0, "scale": -2.0}
    gaussian = np.log2(2 * np.pi * np.e) / 2  # bits of a standard Gaussian
    np.testing.assert_allclose(ways[0].usual_bits, np.log2([2.0, 4.0]).mean() + gaussian)


def shifted(image: np.ndarray, down: int, right: int, flip: bool) -> np.ndarray:
    """The definition, on one image: pad by its border, cut, flip."""
    height, width, _ = image.shape
    padded = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    cut = padded[1 - down : 1 - down + height, 1 - right : 1 - right + width]
    return cut[:, ::-1] if flip else cut


def test_augment() -> None:
    """Every result is one of the 18 possible ones, as the key's numbers say, each as often as it
    should be."""
    count, key = 1800, RandomKey(1, 2, 3)
    images = np.random.default_rng(0).integers(0, 256, (count, 5, 6, 3), dtype=np.uint8)
    before = images.copy()
    result = augment(images, key)
    u = uniform(np, key, (count, 3))
    assert result.shape == images.shape
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(images, before)
    kinds = [(d, r, f) for d in (-1, 0, 1) for r in (-1, 0, 1) for f in (False, True)]
    tally = dict.fromkeys(kinds, 0)
    for image, changed, (f, *shift) in zip(images, result, u, strict=True):
        same = [kind for kind in kinds if np.array_equal(shifted(image, *kind), changed)]
        down, right = (int(3 * each) - 1 for each in shift)
        assert same == [(down, -right if f < 0.5 else right, f < 0.5)]  # the flip comes first
        tally[same[0]] += 1
    # Chi squared with 17 degrees of freedom is above 51 once in 30,000 draws; the draw is fixed.
    assert sum((n - 100) ** 2 / 100 for n in tally.values()) < 51


def test_augment_depends_on_the_key_alone() -> None:
    images = colour_images(50, seed=0)
    first = augment(images, RandomKey(1, 2, 3))
    np.testing.assert_array_equal(augment(images, RandomKey(1, 2, 3)), first)
    for key in (RandomKey(0, 2, 3), RandomKey(1, 0, 3), RandomKey(1, 2, 0)):
        assert (augment(images, key) != first).any()


def test_augment_nothing() -> None:
    assert augment(np.zeros((0, 32, 32, 3), np.uint8), RandomKey(0, 0)).shape == (0, 32, 32, 3)
