"""One contract for every structured linear map: T(w) written out as a matrix is what `apply` makes,
and `check_map` holds every other member to that.

A new map needs one entry in CASES; its `explicit(w, shape)` writes T(w) out independently of the
map's own code.
"""

import inspect
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from numpy import linalg
from numpy.random import default_rng
from support.arrays import assert_near, normal, with_gains
from support.explicit import convolution_matrix
from support.messages import one_line

import snfnp.maps
from snfnp.diagnostics import gradients
from snfnp.errors import SingularMatrixError, UsageError
from snfnp.flow import Flow
from snfnp.gradcheck import as_matrix
from snfnp.layers import Linear
from snfnp.layers.preprocess import Standardise
from snfnp.likelihood import Likelihood
from snfnp.maps import Conv2d, Dense
from snfnp.maps.condition import condition
from snfnp.rules import Exact

BATCH = 4
UNIT = (0.0,) * 6, (1.0,) * 6
RTOL = 1e-11  # float64, at most a few dozen roundings, condition numbers below 1e3
each_size = pytest.mark.parametrize("size", [2, 6, 20, 100])


@dataclass(frozen=True)
class Case:
    map: object
    shape: tuple
    explicit: Callable  # (w, shape) -> T(w), D x D
    singular: Callable  # (map) -> a w whose T(w) is singular

    def __str__(self):
        return f"{self.map}-{self.shape}"


def dense(features):
    def last_row_repeats_the_first(f):
        w = np.eye(f.features)
        w[-1] = w[0] if f.features > 1 else 0
        return w

    return Case(
        Dense(features), (features,), lambda w, shape: w, last_row_repeats_the_first
    )


def convolution(kernel, shape, **options):
    f = Conv2d(kernel, shape[2], **options)
    return Case(f, shape, convolution_matrix, lambda f: 0 * f.identity())


CASES = {
    Dense: [dense(1), dense(2), dense(7)],
    Conv2d: [
        convolution((1, 1), (3, 2, 4)),
        convolution((3, 3), (4, 5, 1)),
        convolution((3, 3), (3, 4, 2)),
        convolution((3, 3), (3, 4, 2), exact="dense"),
        convolution((3, 5), (4, 3, 2)),
        convolution((5, 3), (4, 4, 1)),
        convolution((7, 3), (2, 3, 1)),
    ],
}
EVERY_CASE = [pytest.param(c, id=str(c)) for cases in CASES.values() for c in cases]


def test_every_exported_map_has_a_case():
    exported = {getattr(snfnp.maps, name) for name in snfnp.maps.__all__}
    maps = {m for m in exported if inspect.isclass(m) and issubclass(m, snfnp.maps.Map)}
    assert maps - {snfnp.maps.Map} == set(CASES)


class Point:
    """A map at a random weight near the identity, with T written out."""

    def __init__(self, case):
        self.f = case.map
        self.shape = case.shape
        self.explicit = case.explicit
        rng = default_rng(3)
        identity = self.f.identity()
        self.w = identity + 0.3 * rng.standard_normal(identity.shape)
        self.x = rng.standard_normal((BATCH, *self.shape))
        self.delta = rng.standard_normal((BATCH, *self.f.output_shape(self.shape)))
        self.t = self.explicit(self.w, self.shape)


@pytest.fixture(params=EVERY_CASE)
def point(request):
    return Point(request.param)


def close(found, expected):
    """Relative to the largest element: the products' rounding errors are of that size."""
    expected = np.asarray(expected)
    atol = RTOL * max(1.0, float(np.max(np.abs(expected))))
    assert_near(found, expected, atol)


def test_apply_is_the_explicit_matrix(point, ops):
    close(as_matrix(point.f, ops, point.w, point.shape), point.t)
    rows = point.x.reshape(BATCH, -1)
    close(point.f.apply(ops, point.w, point.x).reshape(BATCH, -1), rows @ point.t.T)


def test_a_solution_is_contiguous(point, ops):
    z = point.f.apply(ops, point.w, point.x)
    found = point.f.solve(ops, point.w, z)
    close(found, point.x)
    assert found.flags.c_contiguous


@pytest.mark.parametrize("case", EVERY_CASE)
def test_a_singular_weight_is_an_error(case, ops):
    f = case.map
    w = case.singular(case.map)
    assert linalg.matrix_rank(case.explicit(w, case.shape)) < np.prod(case.shape)
    z = np.ones((1, *f.output_shape(case.shape)))
    for name, last in (
        ("log_det", case.shape),
        ("log_det_grad", case.shape),
        ("solve", z),
    ):
        with pytest.raises(SingularMatrixError, match="singular"):
            getattr(f, name)(ops, w, last)


def matrices(size, smallest):
    """Matrices with singular values from 1 to 2, but for the smallest one."""
    for seed in range(20):
        yield with_gains(
            default_rng(seed), np.r_[np.linspace(2, 1, size - 1), smallest]
        )


def exact_results(ops, w):
    """Functions of all that is exact about a dense layer: log-determinant, gradient, and 64 samples
    through its inverse."""
    flow = Flow((len(w),), (("dense", Linear(Dense(len(w)), Exact(), bias=False)),))
    params = {"dense": {"W": w}}
    x = normal(64, len(w))
    return (
        lambda: flow.log_dets(ops, params)["dense"],
        lambda: gradients(ops, flow, params, x)[0]["dense"]["W"],
        lambda: flow.inverse(ops, params, (x,), exact=True),
    )


@each_size
def test_a_matrix_that_is_singular_up_to_rounding_is_refused(ops, size):
    """Of rank D − 1 before its elements were rounded, so that most have a finite log-determinant
    of their own. As a 1×1 convolution likewise."""
    for w in matrices(size, 0.0):
        for result in exact_results(ops, w):
            with pytest.raises(SingularMatrixError, match="^layer dense: .* singular"):
                result()
        with pytest.raises(SingularMatrixError, match="singular"):
            Conv2d((1, 1), size).log_det(ops, w[None, None], (3, 3, size))


@each_size
def test_an_ill_conditioned_matrix_is_not(ops, size):
    """Of condition 2e12: what is exact has the digits that this leaves."""
    for w in matrices(size, 1e-12):
        log_det, gradient, samples = (result() for result in exact_results(ops, w))
        of_log_det = math.log(1e-12) + np.log(np.linspace(2, 1, size - 1)).sum()
        assert log_det == pytest.approx(
            of_log_det, abs=size * 2e12 * np.finfo(float).eps
        )
        assert np.isfinite(gradient).all() and np.isfinite(samples).all()


@each_size
def test_the_condition_is_estimated(ops, size):
    """From 8 fixed directions: within a factor of 4 for these."""
    for smallest in (1.0, 1e-3, 1e-12):
        for w in matrices(size, smallest):
            exact = linalg.norm(w) * linalg.norm(1 / linalg.svd(w)[1])
            found = condition(ops, Dense(size), w, (size,))
            assert exact / 4 < found < 4 * exact
    assert condition(ops, Dense(2), np.zeros((2, 2)), (2,)) == math.inf


ORDERS = {
    "channels first": ((3, 3, 4, 4), (4, 6, 6), "of 4 channels cannot take (4, 6, 6)"),
    "a kernel of PyTorch": (
        (4, 4, 3, 3),
        (6, 6, 4),
        "the kernel has the shape (4, 4, 3, 3): give it as (kH, kW, I, O), (3, 3, 4, 4)",
    ),
}


@pytest.mark.parametrize("kernel, shape, message", ORDERS.values(), ids=ORDERS)
def test_the_orders_of_other_libraries_are_one_line(ops, kernel, shape, message):
    w = normal(*kernel)
    with one_line(UsageError, message):
        Conv2d((3, 3), 4).log_det(ops, w, shape)


def test_a_weight_of_integers_has_a_determinant(point, ops):
    w = (7 * point.w).astype(int)
    exact = linalg.slogdet(point.explicit(w, point.shape))[1]
    close(point.f.log_det(ops, w, point.shape), exact)


def test_the_condition_of_a_convolution_is_estimated(point, ops):
    exact = linalg.norm(point.t) * linalg.norm(linalg.inv(point.t))
    assert exact / 4 < condition(ops, point.f, point.w, point.shape) < 4 * exact


@pytest.mark.parametrize(
    "smallest, dtype, said",
    [(1e-10, "float64", False), (1e-14, "float64", True), (1e-5, "float32", True)],
)
def test_exact_samples_of_few_digits_say_so(ops, smallest, dtype, said):
    w = next(matrices(6, smallest))
    flow = Flow(
        (6,),
        (("ill", Linear(Dense(6), Exact(), bias=False)),),
        preprocess=Standardise(*UNIT),
    )
    likelihood = Likelihood(
        ops, flow, flow.layout.pack({"ill": {"W": w}}, np.float64), dtype
    )
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        likelihood.sample(3, exact=True)
    lines = [str(each.message) for each in found]
    assert len(lines) == said
    assert all(each.filename == __file__ for each in found)
    if said:
        head = "exact samples have fewer than three digits, as the condition number of layer ill is"
        assert lines[0].startswith(head)


@pytest.mark.filterwarnings(
    "ignore:invalid value:RuntimeWarning"
)  # NumPy's own, beside the error
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_log_det_of_a_weight_that_is_not_finite_is_an_error(point, ops, bad):
    w = point.w.copy()
    positions = np.broadcast_to(point.f.multiplicity(point.shape), w.shape)
    w.flat[np.argmax(positions)] = bad  # an element that stands in T at all
    with pytest.raises(SingularMatrixError, match="singular|not finite"):
        point.f.log_det(ops, w, point.shape)


def test_the_inverse_of_a_dense_map_and_of_a_pointwise_convolution_is_one():
    """A 1×1 convolution then needs one small matrix and not that of the image."""
    assert Dense(3).inverse_is_same_map
    for kernel in ((1, 1), (1, 3), (3, 1), (3, 3)):
        assert Conv2d(kernel, 3).inverse_is_same_map == (kernel == (1, 1))
