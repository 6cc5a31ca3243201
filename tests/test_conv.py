"""Convolutions: values against SciPy, flip, m and T(w) by their definitions, kernels of two sizes.

The contract that every map shares is in test_maps.py, that of the layer in test_layers.py.
"""

from functools import cache

import numba
import numpy as np
import pytest
from numba.core.errors import TypingError
from scipy.signal import correlate
from support.gradients import layer_backward

from snfnp.errors import UsageError
from snfnp.gradcheck import as_matrix
from snfnp.layers import Linear
from snfnp.maps import Conv2d, Dense
from snfnp.ops import get_ops, simd
from snfnp.ops.conv import cpu, cpu_tiles
from snfnp.rules import Exact, SelfNormalizing

KERNELS = [(1, 1), (3, 3), (5, 3), (1, 3), (7, 7)]
IMAGES = [(4, 3), (9, 8)]  # smaller than some kernels, and larger than all
CHANNELS = [(1, 1), (3, 3), (16, 16), (1, 6), (5, 2), (40, 3), (4, 12)]
FLOATS = [np.float64, np.float32]

kernels = pytest.mark.parametrize("kernel", KERNELS, ids=str)
images = pytest.mark.parametrize("image", IMAGES, ids=str)
channels = pytest.mark.parametrize("channels", CHANNELS, ids=str)


def arrays(kernel, image, channels, dtype=np.float64, samples=11):
    """x (N, H, W, I), k (kH, kW, I, O), delta (N, H, W, O): more samples than one task takes."""
    rng = np.random.default_rng(5)
    inputs, outputs = channels
    sizes = ((samples, *image, inputs), (*kernel, inputs, outputs), (samples, *image, outputs))
    return tuple(rng.standard_normal(size).astype(dtype) for size in sizes)


def assert_close(found, expected, terms, size):
    """A sum of `terms` products in any order, `size` with absolute values (Higham, 3.1)."""
    bound = 2 * (terms + 2) * np.finfo(found.dtype).eps * size
    difference = np.abs(found.astype(np.float64) - expected)
    assert np.all(difference <= bound), f"off by {np.max(difference / bound):.1e} bounds"


def padded_images(x, kernel):
    top, left = kernel[0] // 2, kernel[1] // 2
    return np.pad(x, ((0, 0), (top, top), (left, left), (0, 0))).astype(np.float64)


def conv_by_scipy(x, k):
    """Every pair of channels by scipy.signal.correlate, on all images at once."""
    padded = padded_images(x, k.shape)
    z = np.zeros((*x.shape[:3], k.shape[3]))
    for i, o in np.ndindex(*k.shape[2:]):
        z[..., o] += correlate(padded[..., i], k[None, :, :, i, o], "valid", "direct")
    return z


def weight_grad_by_scipy(delta, x, kernel):
    """δ ⋆ x: the stack of input images correlated with the stack of deltas."""
    padded = padded_images(x, kernel)
    g = np.zeros((*kernel, x.shape[3], delta.shape[3]))
    for i, o in np.ndindex(*g.shape[2:]):
        g[:, :, i, o] = correlate(padded[..., i], delta[..., o], "valid", "direct")[0]
    return g


@cache
def by_scipy(kernel, image, channels, dtype):
    """conv(x, k) and δ ⋆ x of `arrays`, and both again of the absolute values."""
    results = []
    for part in (lambda a: a, np.abs):
        x, k, delta = (part(a) for a in arrays(kernel, image, channels, dtype))
        results += [conv_by_scipy(x, k), weight_grad_by_scipy(delta, x, kernel)]
    return results


# ---------------------------------------------------------------- the operations


@kernels
@images
@channels
@pytest.mark.parametrize("dtype", FLOATS)
def test_conv_is_scipys_correlate(ops, kernel, image, channels, dtype):
    x, k, _ = arrays(kernel, image, channels, dtype)
    expected, _, size, _ = by_scipy(kernel, image, channels, dtype)
    z = ops.conv.correlate(x, k)
    assert z.dtype == dtype
    assert_close(z, expected, k[..., 0].size, size)


@kernels
@images
@channels
@pytest.mark.parametrize("dtype", FLOATS)
def test_conv_weight_grad_is_scipys_correlate(ops, kernel, image, channels, dtype):
    x, start, delta = arrays(kernel, image, channels, dtype)
    _, expected, _, size = by_scipy(kernel, image, channels, dtype)
    out = np.full_like(start, np.nan)
    assert ops.conv.weight_grad(delta, x, out) is out
    assert_close(out, expected, x[..., 0].size, size)
    out = start.copy()
    assert ops.conv.weight_grad(delta, x, out, add=True) is out
    assert_close(out, expected + start, x[..., 0].size, size + np.abs(start))


@kernels
@images
@pytest.mark.parametrize("count", [1, 3, 16])
def test_patches_are_windows(ops, kernel, image, count):
    x, _, _ = arrays(kernel, image, (count, 1))
    kh, kw = kernel
    padded = np.pad(x, ((0, 0), (kh // 2, kh // 2), (kw // 2, kw // 2), (0, 0)))
    expected = [padded[n, y : y + kh, c : c + kw].ravel() for n, y, c in np.ndindex(len(x), *image)]
    np.testing.assert_array_equal(ops.conv.patches(x, kernel), expected)


@pytest.mark.parametrize("kernel", [(2, 2), (2, 3), (4, 2), (3, 3)])
@pytest.mark.parametrize("inputs, outputs", [(1, 1), (2, 5), (3, 2), (8, 1)])
def test_kernels_of_any_size_by_the_definition(ops, kernel, inputs, outputs):
    """Even sizes pad kH // 2 rows on top and kW // 2 columns on the left, every way it is done."""
    rng = np.random.default_rng(0)
    (kh, kw), (n, height, width) = kernel, (2, 4, 5)
    x, delta = (rng.standard_normal((n, height, width, c)) for c in (inputs, outputs))
    k = rng.standard_normal((kh, kw, inputs, outputs))
    z, gradient = np.zeros_like(delta), np.zeros_like(k)
    for y, c, h, w in np.ndindex(height, width, kh, kw):
        row, column = y + h - kh // 2, c + w - kw // 2
        if 0 <= row < height and 0 <= column < width:
            z[:, y, c] += x[:, row, column] @ k[h, w]
            gradient[h, w] += x[:, row, column].T @ delta[:, y, c]
    # sums of at most 96 products of normal numbers
    np.testing.assert_allclose(ops.conv.correlate(x, k), z, rtol=0, atol=1e-12)
    found = ops.conv.weight_grad(delta, x, np.full_like(k, np.nan))
    np.testing.assert_allclose(found, gradient, rtol=0, atol=1e-12)
    found = ops.conv.weight_grad(delta, x, gradient.copy(), add=True)
    np.testing.assert_allclose(found, 2 * gradient, rtol=0, atol=1e-12)


def test_patches_of_a_pointwise_kernel_are_a_view(ops):
    x, _, _ = arrays((1, 1), (4, 3), (5, 5))
    assert np.shares_memory(ops.conv.patches(x, (1, 1)), x)


def test_all_ways_of_the_cpu_backend_are_tested():
    """Tiles, planes (four outputs at once, the rest singly), and products of patches."""
    for most in (16, 64):
        tiles, planes = [], []
        for c in CHANNELS:
            (tiles if cpu_tiles.fits((3, 3, *c), 8) else planes).append(c)
        assert tiles == [(16, 16), (4, 12)]
        planes = {c: cpu._few((3, 3, *c), most) for c in planes}
        assert planes[1, 6] and planes[5, 2] and not planes[40, 3]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(3, 3, 4, 16), (2, 2, 8, 4)], ids=str)
def test_the_size_of_a_tile_does_not_change_a_bit(monkeypatch, shape, dtype):
    """Processors differ in how many sums fit into registers, not in the order of a sum's terms."""
    ops = get_ops("numba")
    x, k, delta = arrays(shape[:2], (9, 13), shape[2:], dtype)
    results = []
    for size in (1, 12 * 32, 28 * 64):
        monkeypatch.setattr(simd, "register_bytes", lambda size=size: size)
        gradient = ops.conv.weight_grad(delta, x, np.empty_like(k))
        results.append((ops.conv.correlate(x, k), gradient))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


def test_tiles_of_two_precisions_are_refused():
    """Their vectors would be read as what they are not."""
    x, k, delta = arrays((3, 3), (9, 8), (4, 4))
    with pytest.raises(TypingError, match="of one precision"):
        cpu_tiles.weight_grad(delta.astype(np.float32), x, False, np.empty_like(k), (1, 1))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(
    "kernel, channels", [((3, 3), (1, 1)), ((5, 3), (2, 5)), ((7, 7), (1, 2)), ((5, 3), (4, 4))]
)
def test_what_is_not_finite_reaches_its_own_outputs_and_no_others(ops, bad, kernel, channels):
    x, k, _ = arrays(kernel, (9, 8), channels)
    for pixel in ((0, 0), (4, 7), (8, 7)):
        spoiled = x.copy()
        spoiled[3, *pixel, -1] = bad
        z = ops.conv.correlate(spoiled, k)
        rows, columns = (
            np.abs(np.arange(length) - at) <= taps // 2
            for length, at, taps in zip((9, 8), pixel, kernel, strict=True)
        )
        reached = np.zeros(z.shape, bool)
        reached[3] = (rows[:, None] & columns)[..., None]
        np.testing.assert_array_equal(~np.isfinite(z), reached)


@pytest.mark.parametrize("channels", [(1, 1), (2, 5), (4, 16)])
def test_the_number_of_threads_does_not_change_a_bit(channels):
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("one thread only")
    ops = get_ops("numba")
    x, k, delta = arrays((3, 3), (9, 8), channels, np.float32, samples=23)
    results, before = [], numba.get_num_threads()
    try:
        for count in (1, 2):
            numba.set_num_threads(count)
            gradient = ops.conv.weight_grad(delta, x, np.empty_like(k))
            results.append([ops.conv.correlate(x, k), gradient, ops.conv.patches(x, (3, 3))])
    finally:
        numba.set_num_threads(before)
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


# ---------------------------------------------------------------- T(w), flip and m


def units(f, ops, shape):
    """T(e_i) for every kernel element i: the matrix of Eq. 23, as (*kernel shape, D, D)."""
    flat = np.eye(int(np.prod(f.weight_shape))).reshape(-1, *f.weight_shape)
    matrices = np.array([as_matrix(f, ops, e, shape) for e in flat])
    return matrices.reshape(*f.weight_shape, *matrices.shape[1:])


@kernels
@images
@pytest.mark.parametrize("count", [1, 3, 16])
def test_adjoint_and_flip(ops, kernel, image, count):
    """⟨T(w) x, δ⟩ = ⟨x, T(w)ᵀ δ⟩, and T(flip w) = T(w)ᵀ written out (Eq. 26)."""
    f = Conv2d(kernel, count)
    x, w, delta = arrays(kernel, image, (count, count))
    left, right = f.apply(ops, w, x) * delta, x * f.adjoint(ops, w, delta)
    scale = np.sum(by_scipy(kernel, image, (count, count), np.float64)[2] * np.abs(delta))
    rounding = 2 * (w[..., 0].size + x.size) * np.finfo(np.float64).eps
    np.testing.assert_allclose(left.sum(), right.sum(), rtol=0, atol=rounding * scale)
    shape = (3, 4, count)
    t = as_matrix(f, ops, w, shape)
    np.testing.assert_array_equal(as_matrix(f, ops, f.flip(w), shape), t.T)


def test_flip_is_eq_26_in_the_papers_order(ops):
    """flip(k)[o, i, h, w] = k[i, o, H − h, W − w], counted from 1, with k[o, i, h, w]."""
    _, w, _ = arrays((5, 3), (4, 4), (2, 3))
    k = w.transpose(3, 2, 0, 1)
    flipped = np.empty((2, 3, 5, 3))
    for o, i, h, v in np.ndindex(flipped.shape):
        flipped[o, i, h, v] = k[i, o, 5 - 1 - h, 3 - 1 - v]
    found = Conv2d((5, 3), 2, 3).flip(w)
    np.testing.assert_array_equal(found.transpose(3, 2, 0, 1), flipped)


@kernels
@images
@pytest.mark.parametrize("channels", [(1, 1), (2, 2), (1, 2)], ids=str)
def test_multiple(ops, kernel, image, channels):
    """The closed form, the convolution of ones (Eq. 27) and the indicator matrix's row sums."""
    f, shape = Conv2d(kernel, *channels), (*image, channels[0])
    m = np.broadcast_to(f.multiple(shape), f.weight_shape)
    np.testing.assert_array_equal(f.multiple_by_definition(ops, shape), m)
    if channels[0] == channels[1]:  # as_matrix writes out square maps
        indicator = units(f, ops, shape)
        np.testing.assert_array_equal(indicator.sum(axis=(-2, -1)), m)
        assert set(np.unique(indicator)) <= {0.0, 1.0}


def test_multiple_counts_positions_and_not_equal_values(ops):
    """Eqs. 24 and 25: a row of the indicator times vec T(p) is m_i p_i, for any kernel p."""
    f, shape = Conv2d((3, 3), 2), (4, 3, 2)
    indicator, m = units(f, ops, shape), f.multiple(shape)
    _, p, _ = arrays((3, 3), (4, 3), (2, 2))
    for kernel in (p, np.ones_like(p)):  # of the second, all values are equal
        by_row = np.einsum("hwioab,ab->hwio", indicator, as_matrix(f, ops, kernel, shape))
        np.testing.assert_allclose(by_row, m * kernel, rtol=1e-14)


# ---------------------------------------------------------------- kernels of two sizes (A.4)


@pytest.mark.parametrize("small, large", [((3, 3), (7, 7)), ((1, 3), (5, 3)), ((3, 3), (3, 3))])
def test_fit_pads_and_crops_about_the_centre(ops, small, large):
    f, g, shape = Conv2d(small, 2), Conv2d(large, 2), (4, 5, 2)
    _, w, _ = arrays(small, shape[:2], (2, 2))
    _, r, _ = arrays(large, shape[:2], (2, 2))
    np.testing.assert_array_equal(f.fit(g.fit(w)), w)
    # a padded kernel is the same map; a cropped one has the same taps where there are any
    np.testing.assert_array_equal(as_matrix(g, ops, g.fit(w), shape), as_matrix(f, ops, w, shape))
    cropped, whole = as_matrix(f, ops, f.fit(r), shape), as_matrix(g, ops, r, shape)
    np.testing.assert_array_equal(cropped[cropped != 0], whole[cropped != 0])
    # P of Eq. 30: cropping is the transpose of padding
    np.testing.assert_allclose(np.sum(f.fit(r) * w), np.sum(r * g.fit(w)), rtol=1e-14)


def test_fit_crops_one_side_and_pads_the_other():
    _, w, _ = arrays((3, 5), (4, 4), (1, 1))
    expected = np.zeros((5, 3, 1, 1))
    expected[1:4] = w[:, 1:4]
    np.testing.assert_array_equal(Conv2d((5, 3), 1).fit(w), expected)


@pytest.mark.parametrize("small, large", [((3, 3), (7, 7)), ((3, 3), (3, 3)), ((3, 5), (5, 3))])
def test_what_stands_in_for_the_inverse(ops, small, large):
    """Eqs. 28 and 29 (15 and 16 for one size) without data: Eqs. 21 and 22 by the matrices.

    ½ ∂⟨T_f(w), T_g(r)ᵀ⟩/∂w and −½ ∂⟨T_g(r), T_f(w)ᵀ⟩/∂r, from matrices written out.
    """
    f, g, shape = Conv2d(small, 2), Conv2d(large, 2), (4, 3, 2)
    layer = Linear(f, SelfNormalizing(), bias=False, inverse_map=g)
    _, w, _ = arrays(small, shape[:2], (2, 2))
    _, r, _ = arrays(large, shape[:2], (2, 2))
    nothing = np.zeros((1, *shape))
    params = {"W": w, "R": r}
    _, _, cache = layer.forward(ops, params, nothing)
    _, grads, _ = layer_backward(ops, layer, params, cache, nothing, lam=1.0)
    t_w, t_r = as_matrix(f, ops, w, shape), as_matrix(g, ops, r, shape)
    expected_w = 0.5 * np.einsum("hwioab,ab->hwio", units(f, ops, shape), t_r.T)
    expected_r = -0.5 * np.einsum("hwioab,ab->hwio", units(g, ops, shape), t_w.T)
    np.testing.assert_allclose(grads["W"], expected_w, rtol=0, atol=1e-13)
    np.testing.assert_allclose(grads["R"], expected_r, rtol=0, atol=1e-13)
    assert np.max(np.abs(expected_w)) > 1  # both gradients are there to be compared
    assert np.max(np.abs(expected_r)) > 1


def test_initial_inverse_kernel_is_the_padded_flip():
    layer = Linear(Conv2d((3, 3), 2), SelfNormalizing(), inverse_map=Conv2d((7, 7), 2))
    params = layer.init(np.random.default_rng(0), (4, 4, 2))
    expected = np.zeros((7, 7, 2, 2))
    expected[2:5, 2:5] = params["W"][::-1, ::-1].swapaxes(2, 3)
    np.testing.assert_array_equal(params["R"], expected)
    assert params["R"].flags.c_contiguous and params["b"].shape == (2,)


# ---------------------------------------------------------------- options and wrong input


def test_dirac_and_fans():
    f = Conv2d((5, 3), 2, 4)
    x = np.random.default_rng(0).standard_normal((3, 4, 6, 2))
    z = f.apply(get_ops("numpy"), f.identity(), x)
    np.testing.assert_array_equal(z[..., :2], x)
    np.testing.assert_array_equal(z[..., 2:], 0)
    assert f.fans == (30, 60)
    assert f.output_shape((4, 6, 2)) == (4, 6, 4)


def test_block_and_dense_agree(ops):
    """Two routes to the exact determinant; each alone is compared with T(w) in test_maps.py."""
    block, dense = Conv2d((3, 3), 2), Conv2d((3, 3), 2, exact="dense")
    shape = (5, 4, 2)
    x, w, _ = arrays((3, 3), shape[:2], (2, 2))
    w = block.identity() + 0.1 * w
    np.testing.assert_allclose(
        block.log_det(ops, w, shape), dense.log_det(ops, w, shape), rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(
        block.log_det_grad(ops, w, shape), dense.log_det_grad(ops, w, shape), rtol=0, atol=1e-12
    )
    np.testing.assert_allclose(block.solve(ops, w, x), dense.solve(ops, w, x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Conv2d((2, 3), 1), "kernel is 2x3: height and width must be odd"),
        (lambda: Conv2d((3, 4), 1), "kernel is 3x4: height and width must be odd"),
        (lambda: Conv2d((3, 2), 1), "kernel is 3x2: height and width must be odd"),
        (lambda: Conv2d((4, 3), 1), "kernel is 4x3: height and width must be odd"),
        (lambda: Conv2d((0, 3), 1), "kernel is 0x3: height and width must be odd"),
        (lambda: Conv2d((3, 3), 1, exact="lu"), "exact is 'lu': choose block or dense"),
        (
            lambda: Linear(Dense(2), Exact(), inverse_map=Dense(2)),
            "an inverse_map needs a rule that learns an inverse",
        ),
    ],
)
def test_wrong_options_are_one_clear_line(make, message):
    with pytest.raises(UsageError) as error:
        make()
    assert str(error.value) == message


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 3), (16,)])
def test_images_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="2 channels cannot take"):
        Conv2d((3, 3), 2).output_shape(shape)


@pytest.mark.parametrize("kernel", [(3, 2), (2, 3), (2, 2)])
def test_the_weight_gradient_of_an_even_kernel_with_few_outputs(ops, kernel):
    """⟨δ ⋆ x, v⟩ = ⟨δ, v ⋆ x⟩: such a kernel pads one side more, so its flip pads the other."""
    rng = np.random.default_rng(5)
    x, delta = rng.standard_normal((2, 4, 5, 3)), rng.standard_normal((2, 4, 5, 1))
    v = rng.standard_normal((*kernel, 3, 1))
    found = np.sum(ops.conv.weight_grad(delta, x, np.empty_like(v)) * v)
    np.testing.assert_allclose(found, np.sum(delta * ops.conv.correlate(x, v)), rtol=1e-12)
