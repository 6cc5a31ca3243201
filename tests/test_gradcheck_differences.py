"""Central differences, and the comparison of a gradient with them."""

import math

import numpy as np
import pytest
from numpy.random import default_rng
from numpy.testing import assert_allclose
from support.arrays import normal
from support.messages import one_line
from test_gradcheck import D, SinhLayer

from snfnp.gradcheck import (
    GradientError,
    central_difference,
    check_gradient,
    check_layer,
    relative_error,
    slopes,
)

RNG = default_rng(0)
one_wrong = np.eye(1, 1000, 17)[0]  # 1 at one place among many


def test_a_stencil_converges_at_its_order():
    """error(h) / error(h/2) = 2⁶; exact on polynomials of degree <= 6."""
    x = np.array([0.3])
    u = np.array([1.0])

    def error(h):
        return abs(
            central_difference(lambda v: math.exp(v[0]), x, u, h) - math.exp(0.3)
        )

    assert_allclose(error(0.2) / error(0.1), 2**6, rtol=0.02)
    derivative = central_difference(lambda v: v[0] ** 6, x, u, 0.1)
    assert_allclose(derivative, 6 * 0.3**5, rtol=1e-12)


def cubic(v):
    return float(np.sum(v**3))


X = normal(3, 4)


@pytest.mark.parametrize(
    "f, x, gradient, message",
    [
        *(
            (cubic, X, k * 3 * X**2, "analytic .*, num")
            for k in (1.01, 1 + 1e-6, 0.0, -1.0, np.nan)
        ),
        (cubic, np.ones(1000), 3 + 1e-3 * one_wrong, "analytic"),
        (lambda v: math.nan, np.ones(3), np.zeros(3), "nan"),
        (cubic, np.ones(3), np.ones((3, 1)), r"shape \(3, 1\), not \(3,\)"),
    ],
)
def test_check_gradient_refuses_a_wrong_gradient_a_nan_and_another_shape(
    f, x, gradient, message
):
    with pytest.raises(GradientError, match=message):
        check_gradient(f, x, gradient, rng=default_rng(1))


def test_the_control_is_what_a_wrong_gradient_is_off_by():
    x = X
    rng = default_rng(1)
    measured = check_gradient(cubic, x, 3 * x**2, rng=rng)
    assert measured.error < 1e-10
    assert 1e-3 < measured.control <= 0.01
    still = check_gradient(lambda v: 2.0, x, np.zeros((3, 4)), rng=rng)
    # a zero times 1.01 is right too
    assert still.error == 0 and math.isnan(still.control)


def test_lists_are_arrays_and_results_are_plain_numbers():
    result = check_gradient(cubic, [1, 2, 3], [3.0, 12.0, 27.0], rng=RNG)
    assert "np." not in repr(result) and result.error < 1e-8
    assert all(
        type(value) is float for value in (result.error, result.control, *result.slopes)
    )
    report = check_layer(SinhLayer(), (D,))
    assert "np." not in repr(report)


def test_single_precision_is_named_where_a_check_fails_by_it():
    x = X.astype(np.float32)
    with one_line(
        GradientError, "the arrays are float32, in which differences lose their digits"
    ):
        check_gradient(cubic, x, 3 * x**2, rng=RNG)


@pytest.mark.parametrize("kink, passes", [(2e-3, True), (1e-5, False)])
def test_a_step_is_shortened_where_it_crosses_a_kink(kink, passes):
    x = np.zeros(1)
    rng = default_rng(1)
    bent = lambda v: float(np.sum(v + np.abs(v - kink)))  # noqa: E731
    if passes:
        assert check_gradient(bent, x, np.zeros(1), rng=rng).error == 0
    else:
        with pytest.raises(GradientError, match="h=1e-04"):
            check_gradient(bent, x, np.zeros(1), rng=rng)


def test_slopes_are_those_that_were_compared():
    x = X
    rng = default_rng(1)
    u = normal(2, 3, 4, seed=1)[1]  # the last of two directions
    expected = np.sum(3 * x**2 * u) / np.linalg.norm(u)
    result = slopes(cubic, x, 3 * x**2, rng=rng, directions=2)
    assert result == (float(f"{expected:.6g}"),) * 2
    with pytest.raises(GradientError, match="analytic .*, numeric "):
        slopes(cubic, x, 3.03 * x**2, rng=rng)


def test_a_relative_error_is_shown_where_it_is_more_than_rounding():
    expected = np.array([[3.0, 0.0], [0.0, 4.0]])
    assert relative_error(expected + 1e-12, expected) == 0.0
    assert relative_error(expected * (1 + 1e-8), expected) == 1e-8
    assert relative_error(-expected, expected) == 2.0
    assert relative_error(2.0, 3.0) == 0.333
    assert math.isnan(relative_error(np.nan * expected, expected))
    with pytest.raises(ValueError, match=r"shapes differ: \(2,\) and \(2, 2\)"):
        relative_error(expected[0], expected)


def test_the_negative_control_notices_a_check_that_catches_nothing():
    """At a tolerance of 2 % a gradient times 1.01 passes, so the check itself must not."""
    x = normal(5)
    rng = default_rng(1)
    with pytest.raises(
        GradientError, match=r"negative control \(times 1.01\) was not caught"
    ):
        check_gradient(cubic, x, 3 * x**2, rng=rng, rtol=0.02)
    with pytest.raises(GradientError, match="negative control"):
        check_gradient(cubic, x, 3 * x**2, rng=rng, rtol=1.5)
