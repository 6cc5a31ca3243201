"""The convolution nearest to another one's inverse: against matrices T(·) written out."""

import numpy as np
import pytest
from support.explicit import convolution_matrix, on_taps, units

from snfnp.beyond.left_inverse import LeftInverse
from snfnp.maps import Conv2d
from snfnp.ops import get_ops

# (H, W, C), the kernel, its inverse's kernel. In images of two rows the outer taps of a 5×5 kernel
# stand nowhere.
SHAPES = [((5, 4, 2), (3, 3), (5, 5)), ((3, 6, 3), (3, 3), (3, 3)), ((4, 3, 1), (5, 3), (3, 7))]
SHAPES += [((2, 3, 2), (3, 3), (5, 5)), ((4, 4, 2), (1, 1), (1, 1)), ((3, 4, 2), (1, 3), (5, 1))]
CASES = pytest.mark.parametrize("shape, kernel, inverse_kernel", SHAPES)
EXACT = {"rtol": 1e-11, "atol": 1e-12}


class Case:
    """A kernel w near the identity, its left inverse, and both as matrices."""

    def __init__(self, shape, kernel, inverse_kernel, ops=None, noise=0.15):
        self.ops, self.shape, channels = ops or get_ops("numpy"), shape, shape[2]
        self.f, self.g = Conv2d(kernel, channels), Conv2d(inverse_kernel, channels)
        rng = np.random.default_rng(3)
        self.w = self.f.identity() + noise * rng.standard_normal(self.f.weight_shape)
        self.found = LeftInverse(self.ops, self.f, self.g, self.w, shape)
        self.forward, self.inverse = self.matrix(self.w), self.matrix(self.found.r)
        self.error = self.inverse @ self.forward - np.eye(len(self.forward))

    def matrix(self, kernel):
        return convolution_matrix(kernel, self.shape)


@CASES
def test_r_is_the_least_squares_solution(ops, shape, kernel, inverse_kernel):
    case = Case(shape, kernel, inverse_kernel, ops)
    inverses = units(case.g.weight_shape, shape) @ case.forward
    columns = inverses.reshape(case.found.r.size, -1)
    target = np.eye(len(case.forward)).ravel()
    best, *_ = np.linalg.lstsq(columns.T, target, rcond=None)  # of smallest norm
    np.testing.assert_allclose(case.found.r, best.reshape(case.g.weight_shape), **EXACT)


@CASES
def test_the_error_is_that_of_the_matrices(ops, shape, kernel, inverse_kernel):
    case = Case(shape, kernel, inverse_kernel, ops)
    expected = np.sum(case.error**2) / len(case.error)
    assert case.found.error == pytest.approx(expected, abs=1e-14)
    gradient = on_taps(case.inverse.T @ case.error, case.w.shape, shape)
    np.testing.assert_allclose(case.found.error_grad(), gradient, **EXACT)


def test_the_errors_gradient_includes_that_r_moves_with_w():
    """Central differences of the error at its minimum, which `error_grad` takes for fixed R."""
    case = Case((4, 5, 2), (3, 3), (3, 3), noise=0.3)
    direction = np.random.default_rng(8).standard_normal(case.w.shape)
    step = 1e-4

    def error(w):
        return LeftInverse(case.ops, case.f, case.g, w, case.shape).error

    slope = (error(case.w + step * direction) - error(case.w - step * direction)) / (2 * step)
    expected = 2 * np.sum(case.found.error_grad() * direction) / len(case.error)
    assert slope == pytest.approx(expected, rel=1e-6)
    assert abs(expected) > 1e-3


@CASES
def test_the_neumann_term_is_gathered_from_the_matrices(ops, shape, kernel, inverse_kernel):
    case = Case(shape, kernel, inverse_kernel, ops)
    two_terms = 2 * case.inverse - case.inverse @ case.forward @ case.inverse
    expected = on_taps(two_terms.T, case.w.shape, shape)
    found = case.found.neumann_term()
    np.testing.assert_allclose(found, expected, **EXACT)
    if kernel != (1, 1):  # where RW = I, it makes no difference
        one_term = on_taps(case.inverse.T, case.w.shape, shape)
        assert np.max(np.abs(found - one_term)) > 1e-3


def test_a_larger_kernel_is_nearer_to_the_inverse():
    errors = [Case((6, 6, 1), (3, 3), (k, k)).found.error for k in (1, 3, 5, 7, 11)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.2 and errors[2] < 0.02
    assert errors[-1] > 1e-3  # near the border the inverse is another one: no kernel reaches it


def test_in_single_precision_the_normal_equations_are_in_double():
    case = Case((5, 4, 2), (3, 3), (5, 5))
    w = case.w.astype(np.float32)
    single = LeftInverse(case.ops, case.f, case.g, w, case.shape)
    assert single.r.dtype == np.float64
    rounded = LeftInverse(case.ops, case.f, case.g, w.astype(np.float64), case.shape)
    np.testing.assert_array_equal(single.r, rounded.r)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_where_there_is_no_best_one_r_is_not_finite(ops, value):
    case = Case((4, 4, 2), (3, 3), (3, 3), ops)
    with np.errstate(invalid="ignore"):
        found = LeftInverse(ops, case.f, case.g, np.full_like(case.w, value), case.shape)
    assert not np.isfinite(found.r).any()
