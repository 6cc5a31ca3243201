"""Exact determinants of convolutions by blocks, and the norm of I − R W."""

import math

import numpy as np
import pytest
import threadpoolctl
from numpy import linalg
from numpy.random import default_rng
from numpy.testing import assert_allclose, assert_array_equal
from support.arrays import assert_near, normal, orthogonal, with_gains

from snfnp.errors import SingularMatrixError
from snfnp.gradcheck import as_matrix
from snfnp.maps import Conv2d, Dense, block_tridiagonal, contraction, explicit
from snfnp.maps.block_tridiagonal import BlockLU
from snfnp.ops import get_ops

EPS = float(np.finfo(np.float64).eps)
PAPER_SHAPES = [(28, 28, 1), (14, 14, 4), (7, 7, 16)]
# gains of the initial noise: A.3's, and far from the identity
PAPER, LARGER = (0.01, 0.3)
OPS = get_ops("numpy")


def kernel(size, channels, gain):
    """Dirac plus Xavier normal noise (A.3), (kH, kW, C, C)."""
    height, width = size
    noise = math.sqrt(2 / (2 * height * width * channels))
    w = gain * noise * normal(*size, channels, channels)
    w[height // 2, width // 2] += np.eye(channels)
    return w


def by_blocks(w, exact="block"):
    return Conv2d(w.shape[:2], w.shape[2], exact=exact)


def of_the_matrix(w):
    return by_blocks(w, "dense")


def images(shape):
    return normal(3, *shape, seed=1)


def assert_equals_dense(ops, w, shape, rtol=1e-10):
    """All three results, relative to the largest entry (a determinant: to the dimension)."""
    f = by_blocks(w)
    matrix = of_the_matrix(w)
    log_det = f.log_det(ops, w, shape)
    gradient = f.log_det_grad(ops, w, shape)
    dimension = math.prod(shape)
    assert abs(log_det - matrix.log_det(ops, w, shape)) <= rtol * dimension
    expected = matrix.log_det_grad(ops, w, shape)
    assert gradient.shape == w.shape
    assert gradient.flags.c_contiguous
    assert_near(gradient, expected, rtol * np.abs(expected).max())
    z = images(shape)
    before = z.copy()
    x = f.solve(ops, w, z)
    expected = matrix.solve(ops, w, z)
    assert_array_equal(z, before)
    assert x.shape == z.shape
    assert_near(x, expected, rtol * np.abs(expected).max())


def in_blocks(ops, w, shape):
    return BlockLU.of(ops, w, shape) is not None


@pytest.mark.parametrize("size, gain", [((3, 3), PAPER), ((5, 5), LARGER)])
@pytest.mark.parametrize("shape", PAPER_SHAPES, ids=str)
def test_equals_dense_on_the_papers_shapes(ops, shape, size, gain):
    w = kernel(size, shape[2], gain)
    assert in_blocks(ops, w, shape)
    assert_equals_dense(ops, w, shape)


@pytest.mark.parametrize(
    "size", [(3, 3), (5, 5), (7, 3), (3, 7), (1, 3), (3, 1), (5, 1)]
)
def test_equals_dense_on_odd_shapes(ops, size):
    """Images smaller than the kernel, heights that the blocks do not divide, kernels of one row."""
    for shape in (
        (1, 1, 2),
        (1, 5, 2),
        (5, 1, 2),
        (2, 2, 3),
        (4, 9, 1),
        (9, 4, 1),
        (7, 5, 2),
    ):
        w = kernel(size, shape[2], 0.5)
        assert in_blocks(ops, w, shape)
        assert_equals_dense(ops, w, shape)


@pytest.mark.parametrize(
    "size, shape, gain",
    [
        ((3, 3), (28, 28, 1), PAPER),
        ((3, 3), (28, 28, 1), LARGER),
        ((3, 3), (14, 14, 4), LARGER),
        ((3, 3), (7, 7, 16), PAPER),
        ((5, 5), (31, 4, 2), LARGER),  # a smaller last block beside converged ones
    ],
)
def test_stopping_early_changes_nothing(ops, monkeypatch, size, shape, gain):
    w = kernel(size, shape[2], gain)
    z = images(shape).reshape(3, -1)
    early = BlockLU.of(ops, w, shape)
    monkeypatch.setattr(block_tridiagonal, "STOP", -1.0)
    full = BlockLU.of(ops, w, shape)
    count = len(full.inverses)
    assert full.converged == count
    assert len(early.inverses) == count
    assert early.converged < count - 2
    dimension = math.prod(shape)
    # one rounding of B in each block, seen through a T of condition below 10; and rounding itself
    bound = 100 * EPS
    assert abs(early.log_det - full.log_det) <= bound * dimension
    # the first one's stop is off
    stopped, expected = (early.log_det_grad(), full.log_det_grad())
    monkeypatch.undo()
    both = early.log_det_grad()
    for gradient in (stopped, both):
        assert_near(gradient, expected, bound * np.abs(expected).max())
    assert_near(early.solve(z), full.solve(z), bound * 10)


@pytest.mark.parametrize("shape", PAPER_SHAPES, ids=str)
def test_single_precision_is_rounded_once(ops, shape):
    """Everything is computed in double; float32 comes in exactly and goes out rounded."""
    w = kernel((3, 3), shape[2], LARGER).astype(np.float32)
    wide = w.astype(np.float64)
    z = images(shape).astype(np.float32)
    for f in (by_blocks(w), of_the_matrix(w)):
        assert f.log_det(ops, w, shape) == f.log_det(ops, wide, shape)
        for found, expected in (
            (f.log_det_grad(ops, w, shape), f.log_det_grad(ops, wide, shape)),
            (f.solve(ops, w, z), f.solve(ops, wide, z.astype(np.float64))),
        ):
            assert found.dtype == np.float32
            assert_array_equal(found, expected.astype(np.float32))


def nearly_singular_diagonal(delta, channels=3):
    """A well-conditioned T (condition below 20 on (6, 5, C)) whose diagonal block B is δ times a
    random one: the rows above and below a pixel's decide its value."""
    rng = default_rng(1)
    w = 0.05 * rng.standard_normal((3, 3, channels, channels))
    w[[0, 2], 1] += orthogonal(rng, channels)
    w[1] = delta * rng.standard_normal((3, channels, channels))
    return w


@pytest.mark.parametrize(
    "delta, blocks", [(0, 0), (1e-16, 0), (1e-8, 0), (1e-2, 1), (1e-3, 1)]
)
def test_a_nearly_singular_block_of_a_good_matrix(ops, delta, blocks):
    w = nearly_singular_diagonal(delta)
    shape = (6, 5, 3)
    assert linalg.cond(explicit.matrix(ops, w, shape)) < 20
    assert in_blocks(ops, w, shape) == bool(blocks)
    assert_equals_dense(ops, w, shape)


def three_taps(centre):
    """A column of taps: T is tridiagonal with determinant d_n = c d_{n−1} − d_{n−2}."""
    return np.array([1, centre, 1], dtype=float).reshape(3, 1, 1, 1)


@pytest.mark.parametrize("height, centre", [(2, 0), (6, 0), (3, 1), (4, 1), (6, 1)])
def test_a_pivot_of_exactly_zero(ops, height, centre):
    """D_1 = 0, or D_2 = 1 − 1·1 = 0, while det T = ±1."""
    w = three_taps(centre)
    shape = (height, 2, 1)
    assert not in_blocks(ops, w, shape)
    assert abs(by_blocks(w).log_det(ops, w, shape)) < 1e-13
    assert_equals_dense(ops, w, shape)


@pytest.mark.parametrize(
    "w, shape",
    [
        (three_taps(0), (5, 2, 1)),
        (three_taps(1), (5, 2, 1)),
        (three_taps(0), (1, 2, 1)),
        (
            np.ones((3, 3, 1, 1)),
            (5, 4, 1),
        ),  # the Kronecker product of tridiagonals of ones
        (np.ones((3, 3, 1, 1)) / 3, (4, 8, 1)),
        (np.ones((1, 1, 2, 2)), (3, 3, 2)),
        (np.zeros((3, 3, 2, 2)), (4, 4, 2)),
        (np.full((3, 3, 1, 1), np.nan), (4, 4, 1)),
        (kernel((3, 3), 1, PAPER) * np.inf, (4, 4, 1)),
    ],
    ids=["B", "D_2", "one row", "ones", "thirds", "1x1", "zero", "nan", "inf"],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # 0 · ∞ in the last kernel
def test_a_singular_convolution_is_an_error(ops, w, shape):
    f = by_blocks(w)
    for function, last in (
        (f.log_det, shape),
        (f.log_det_grad, shape),
        (f.solve, np.ones((2, *shape))),
    ):
        with pytest.raises(SingularMatrixError, match="singular"):
            function(ops, w, last)


def test_a_sample_that_is_not_finite_is_no_singular_convolution(ops):
    z = images((4, 4, 2))
    w = kernel((3, 3), 2, PAPER)
    z[1, 0, 0, 0] = np.nan
    x = of_the_matrix(w).solve(ops, w, z)
    assert np.isnan(x[1]).any()
    assert_allclose(of_the_matrix(w).solve(ops, w, z[::2]), x[::2], rtol=1e-12)


def test_a_sample_that_is_not_finite_hides_no_singular_convolution(ops):
    """T's eigenvalues are 2 cos(π/31) + 2 cos(kπ/31), k ≤ 30: rounding alone makes T regular."""
    w = three_taps(2 * np.cos(np.pi / 31))
    z = images((30, 1, 1))
    z[0, 0] = np.nan
    with pytest.raises(SingularMatrixError, match="singular"):
        of_the_matrix(w).solve(ops, w, z)


def test_a_chain_of_small_products_gives_the_threads_back(ops):
    def threads():
        pools = threadpoolctl.threadpool_info()
        return [pool["num_threads"] for pool in pools if pool["user_api"] == "blas"]

    before = threads()
    with ops.linalg.chain_of_products(8):
        assert set(threads()) == {1}
    assert threads() == before
    with ops.linalg.chain_of_products(1000):
        assert threads() == before


def test_the_gradient_of_images_of_any_height(ops):
    """From too low for the recursion to stop early to many rows that are left, each of which
    counts: one, two, three …"""
    for channels, heights in ((1, range(2, 31)), (2, (28, 30))):
        w = Conv2d((3, 3), channels).identity()
        w += 0.01 * normal(*w.shape, seed=3)
        for height in heights:
            block = BlockLU.of(ops, w, (height, 2, channels))
            expected = of_the_matrix(w).log_det_grad(ops, w, (height, 2, channels))
            found = block.log_det_grad()
            atol = 1e-12 * height
            assert_near(found, expected, atol)
    # from both ends, with rows between
    assert 2 * block.converged < len(block.inverses)


def convolutions(rng):
    """(f, g, w, r, shape) of every kind of map, R near the inverse."""
    for f, g, shape in (
        (Dense(9), Dense(9), (9,)),
        (Conv2d((1, 1), 3), Conv2d((1, 1), 3), (4, 5, 3)),
        (Conv2d((3, 3), 2), Conv2d((3, 3), 2), (4, 5, 2)),
        (Conv2d((3, 3), 2), Conv2d((5, 5), 2), (4, 5, 2)),
        (Dense(3), Dense(3), (3,)),  # fewer directions than a block has
    ):
        w = f.identity() + 0.1 * rng.standard_normal(f.weight_shape)
        r = g.identity() + 0.1 * rng.standard_normal(g.weight_shape)
        yield f, g, w, r, shape


def written_out(f, g, w, r, shape):
    """I − T(R) T(W), a matrix, in extended precision, which is rounded once."""
    w, r = (
        as_matrix(*each, shape).astype(np.longdouble)
        for each in ((f, OPS, w), (g, OPS, r))
    )
    return (np.eye(len(w)) - r @ w).astype(np.float64)


def dense_rho(w, r):
    """ρ of dense matrices."""
    dense = Dense(len(w))
    return contraction.rho(OPS, dense, dense, w, r, (len(w),))


def test_error_and_its_adjoint_are_the_matrix_and_its_transpose():
    rng = default_rng(0)
    for f, g, w, r, shape in convolutions(rng):
        e = written_out(f, g, w, r, shape)
        x = rng.standard_normal((3, *shape))
        flat = x.reshape(3, -1)
        found = contraction.error(OPS, f, g, w, r, x).reshape(3, -1)
        assert_near(found, flat @ e.T, 1e-13)
        found = contraction.error(OPS, g, f, g.flip(r), f.flip(w), x).reshape(3, -1)
        assert_near(found, flat @ e, 1e-13)


@pytest.mark.parametrize("rho", [1e-9, 0.5, 1.0, 3.0])
def test_rho_of_a_large_matrix_is_from_below_and_close(rho):
    """Also where the largest gains lie close to each other: here 200 on a line."""
    rng = default_rng(2)
    w = np.eye(200) + 0.2 * rng.standard_normal((200, 200))
    r = (np.eye(200) - with_gains(rng, np.linspace(rho, 0, 200))) @ linalg.inv(w)
    # rounding, which is subtracted: 402 units of |R| |W| |x|
    least = (1 - 2e-5) * rho - 402 * EPS / 2 * linalg.norm(abs(r) @ abs(w), 2)
    exact = linalg.norm(written_out(Dense(200), Dense(200), w, r, (200,)), 2)
    assert least < dense_rho(w, r) <= (1 + 1e-12) * exact


def dense_pair(kind, rng, size):
    """W and R (size, size), usual or hostile."""

    def rotation():
        return orthogonal(rng, size)

    eye = np.eye(size)
    w = eye + 0.03 * rng.standard_normal((size, size))
    inverse = linalg.inv(w)
    if kind == "usual":
        noise = 10 ** rng.uniform(-6, 0) / math.sqrt(size)
        return w, inverse + noise * rng.standard_normal((size, size))
    if kind == "a multiple":  # one gain: the space has no more than 8 dimensions
        return w, rng.uniform(0, 2) * inverse
    if kind == "multiples of I":
        return rng.uniform(0.1, 3) * eye, float(rng.integers(0, 3)) * eye
    if kind == "one wrong entry":
        r = eye.copy()
        r[tuple(rng.integers(0, size, 2))] = rng.uniform(-1, 1)
        return eye, r
    if kind == "three gains":
        w = rotation()
        return w, rotation() * rng.choice([0.2, 0.5, 0.9], size) @ w.T
    if kind == "single precision":
        w = w.astype(np.float32)
        return w.astype(np.float64), linalg.inv(w).astype(np.float64)
    if kind == "ill-conditioned":
        w = rotation() * np.geomspace(1, 10 ** -rng.uniform(2, 15), size) @ rotation()
        return w, linalg.inv(w) * (1 + 1e-9 * rng.standard_normal((size, size)))
    # of deficient rank
    left, right, gains = (rotation(), rotation(), np.linspace(1, 2, size))
    gains[rng.integers(size) :] = 0
    deficient = left * gains @ right
    return (deficient, inverse) if rng.integers(2) else (inverse, deficient)


HOSTILE = [
    "usual",
    "a multiple",
    "multiples of I",
    "one wrong entry",
    "three gains",
    "single precision",
    "ill-conditioned",
    "deficient",
]


@pytest.mark.parametrize("kind", [*HOSTILE, "multiples of kernels", "kernels"])
def test_rho_is_never_above_the_true_one(monkeypatch, kind):
    """20 of each kind; 40 dimensions of some 60, as 88 of more."""
    monkeypatch.setattr(contraction, "_STEPS", 4)
    for seed in range(20):
        rng = default_rng(seed)
        size = int(rng.integers(20, 80))
        shape = (5, 6, 2)
        f = Conv2d((3, 3), 2)
        g = Conv2d((3, 3) if seed % 2 else (5, 5), 2)
        if kind == "multiples of kernels":
            w = f.identity()
            r = rng.uniform(-1, 2) * g.identity()
        elif kind == "kernels":
            w = f.identity() + 0.1 * rng.standard_normal(f.weight_shape)
            r = g.pad_or_crop(f.flip(w)) + 0.05 * rng.standard_normal(g.weight_shape)
        else:
            f = Dense(size)
            g = Dense(size)
            shape = (size,)
            w, r = dense_pair(kind, rng, size)
        exact = linalg.norm(written_out(f, g, w, r, shape), 2)
        found = contraction.rho(OPS, f, g, w, r, shape)
        units = 2 + w.size // w.shape[-1] + r.size // r.shape[-1]
        absolute = as_matrix(g, OPS, abs(r), shape) @ as_matrix(f, OPS, abs(w), shape)
        rounding = 2 * units * EPS * linalg.norm(absolute)
        assert 0.95 * exact - rounding <= found <= exact * (1 + 1e-12), seed


@pytest.mark.parametrize("largest, others", [(1.05, 0.95), (1.02, 0.98)])
def test_one_gain_above_one_is_found_among_many_that_are_not(largest, others):
    """The last block of a power iteration alone has 0.965 and 0.981 for these."""
    eye = np.eye(784)
    error = with_gains(default_rng(8), np.r_[largest, np.full(783, others)])
    assert dense_rho(eye, eye - error) == pytest.approx(largest, rel=1e-9)


def test_rho_of_an_exact_inverse_is_zero_and_of_nan_is_nan():
    w = 2.0 * np.eye(4)
    assert dense_rho(w, 0.5 * np.eye(4)) == 0
    assert np.isnan(dense_rho(np.nan * w, w))


@pytest.mark.parametrize("f, shape", [(Dense(9), (9,)), (Conv2d((1, 1), 3), (1, 1, 3))])
def test_rounding_counts_every_product(f, shape):
    """(n_W + n_R + 2) u ‖(I + |R| |W|) 1‖; here each row of the latter is 2."""
    n = shape[-1]
    identity = f.identity()
    ones = np.ones((1, *shape))
    off = contraction.rounding(OPS, f, f, identity, -identity, ones)
    assert off >= (2 * n + 2) * 2.0**-53 * 2 * math.sqrt(n)
