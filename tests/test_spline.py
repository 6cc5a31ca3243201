"""The rational-quadratic spline at and beside its knots, at extremes, against a slow one; Squeeze.

The contract of every layer (gradients, inverse, log-determinant in the middle of the bins) is in
test_layers.py, kernels against definitions in test_ops.py.
"""

import math

import numpy as np
import pytest
from numpy.random import default_rng
from numpy.testing import assert_allclose, assert_array_equal
from support.arrays import assert_near, cast, normal

from snfnp.context import BackwardContext
from snfnp.layers import RationalQuadraticSpline, Squeeze
from snfnp.ops import get_ops

BOUND = 10.0
FLOATS = [np.float64, np.float32]
# 35 pixels: more than one task of a kernel, and the second is not full
SHAPE = (5, 7, 1)
LAYER = RationalQuadraticSpline()
PARAMETERS = ("widths", "heights", "slopes")
pytestmark = pytest.mark.usefixtures("alone")
each_precision = pytest.mark.parametrize("dtype", FLOATS)


def parameters(spread=1.0, shape=SHAPE, layer=LAYER, dtype=np.float64):
    rng = default_rng(0)
    initial = layer.init(rng, shape)
    return {
        k: (spread * rng.standard_normal(v.shape)).astype(dtype)
        for k, v in initial.items()
    }


def knots_of(ops, p):
    raw = [p[name] for name in PARAMETERS]
    return ops.spline.knots(*raw, LAYER.bound, LAYER.eps)[0]


def everything(ops, p, x, dy=None, dldj=None, layer=LAYER):
    """Outputs, gradients and the inverse by name."""
    dy = np.ones_like(x) if dy is None else dy
    dldj = np.zeros(len(x), x.dtype) if dldj is None else dldj
    y, ldj, cache = layer.forward(ops, p, x)
    grads = {k: np.full_like(v, np.nan) for k, v in p.items()}
    dx = layer.backward(BackwardContext.of(ops, dldj), p, cache, dy, grads)
    return {"y": y, "ldj": ldj, "dx": dx, **grads, "inverse": layer.inverse(ops, p, y)}


def slow_spline(x, widths, heights, slopes, bound, eps):
    """One value through one spline, written from Durkan et al. 2019, section 3.1, Eq. 4.

    Real or complex x: y(x + ih) then has the derivative in its imaginary part.
    """
    if not -bound < x.real < bound:
        return x
    bins = len(widths)

    def sizes(raw):
        e = [math.exp(v) for v in raw]
        return [2 * bound * (eps + (1 - eps * bins) * v / sum(e)) for v in e]

    w = sizes(widths)
    h = sizes(heights)
    unit = math.log(math.exp(1 - eps) - 1)
    d = [1.0, *(eps + math.log(1 + math.exp(v + unit)) for v in slopes), 1.0]
    k = 0
    x_k = -bound
    y_k = -bound
    while k < bins - 1 and x.real >= x_k + w[k]:
        x_k = x_k + w[k]
        y_k = y_k + h[k]
        k = k + 1
    s = h[k] / w[k]
    xi = (x - x_k) / w[k]
    above = h[k] * (s * xi**2 + d[k] * xi * (1 - xi))
    return y_k + above / (s + (d[k + 1] + d[k] - 2 * s) * xi * (1 - xi))


@pytest.mark.parametrize(
    "layer", [LAYER, RationalQuadraticSpline(8, 3.0, 0.05)], ids=["5 bins", "8 bins"]
)
def test_a_spline_matches_a_scalar_reference(ops, layer):
    rng = default_rng(1)
    p = parameters(1.0, layer=layer)
    x = rng.uniform(-1.2 * layer.bound, 1.2 * layer.bound, (6, *SHAPE))
    result = everything(ops, p, x, layer=layer)
    y = np.empty_like(x)
    slope = np.empty_like(x)
    for index in np.ndindex(x.shape):
        raw = [p[name][index[1:]] for name in PARAMETERS]
        step = slow_spline(complex(x[index], 1e-30), *raw, layer.bound, layer.eps)
        y[index], slope[index] = step.real, step.imag / 1e-30
    # x - X_k is exact to a few eps B; slopes are below 100, and their logarithms change by less
    # than 500 per unit of x
    tolerance = 1e4 * np.finfo(float).eps * layer.bound
    assert_near(result["y"], y, tolerance)
    assert_allclose(result["dx"], slope, rtol=tolerance)
    expected = np.log(slope).reshape(len(x), -1).sum(axis=1)
    assert_near(result["ldj"], expected, tolerance * x[0].size)


def around_the_knots(knots):
    """Every knot, its neighbours on both sides, and points beyond the bounds, in order."""
    beside = [np.nextafter(knots, -np.inf), knots, np.nextafter(knots, np.inf)]
    around = np.stack(beside, axis=1).reshape(-1, *knots.shape[1:])
    far = np.full_like(knots[:1], 3 * BOUND)
    return np.concatenate([-far, around, far])


@each_precision
def test_value_and_slope_are_continuous_at_the_knots(ops, dtype):
    p = parameters(1.0, dtype=dtype)
    knots = knots_of(ops, p)
    x = around_the_knots(knots[0])
    result = everything(ops, p, x)
    y = result["y"]
    slope = result["dx"]
    # the same numbers from both sides, up to rounding: x - X_k is exact to a few eps B, slopes are
    # below 100 and change by less than 1000 per unit of x
    eps = np.finfo(dtype).eps
    left, at, right = (y[1 + i :: 3][:6] for i in range(3))
    assert_array_equal(at[[0, -1]], knots[1][[0, -1]])
    for side in (left, at, right):
        assert_near(side, knots[1], 100 * eps * BOUND)
    for side in (slope[1 + i :: 3][:6] for i in range(3)):
        assert_near(side, knots[2], 1e4 * eps * BOUND)
    assert np.all(np.diff(y, axis=0) >= -4 * eps * BOUND)
    assert np.isfinite(result["ldj"]).all()
    assert_array_equal(y[[0, 1, -2, -1]], x[[0, 1, -2, -1]])  # the tails
    assert_array_equal(slope[[0, 1, -2, -1]], np.ones_like(x[:4]))


def in_the_middle(ops, **changes):
    """One spline that these changes make extreme, and (X, Y, d) at both ends of its middle bin."""
    p = {k: np.zeros((1, n)) for k, n in zip(PARAMETERS, (5, 5, 4), strict=True)}
    for name, (places, values) in changes.items():
        p[name][0, places] = values
    return p, knots_of(ops, p)[:, 2:4, 0]


def textbook(y, ends):
    """a, b and c of the quadratic equation for the place in a bin at which a spline is y."""
    (x0, x1), (y0, y1), (d0, d1) = ends
    s = (y1 - y0) / (x1 - x0)
    r = (y - y0) / (y1 - y0)
    bend = d0 + d1 - 2 * s
    return s - d0 + r * bend, d0 - r * bend, -s * r


def test_the_inverse_is_accurate_where_the_textbook_root_cancels(ops):
    """2c/(-b - √(b² - 4ac)) cancels where a bin ends far steeper than it is on average."""
    p, ends = in_the_middle(ops, slopes=(2, 1e6))
    assert ends[2, 1] > 9e5
    x = np.linspace(-2.0, 2.0, 81)[1:-1, None]  # the bin before that knot
    y = LAYER.forward(ops, p, x)[0]
    slope = everything(ops, p, x)["dx"]
    tolerance = 20 * np.finfo(float).eps * BOUND / slope
    assert np.all(np.abs(LAYER.inverse(ops, p, y) - x) <= tolerance)
    a, b, c = textbook(y, ends)
    root = -2 + 4 * 2 * c / (-b - np.sqrt(b * b - 4 * a * c))
    assert np.any(np.abs(root - x) > tolerance)


@pytest.mark.parametrize(("dtype", "steep"), [(np.float64, 1e8), (np.float32, 1e3)])
def test_the_inverse_is_right_where_the_textbook_discriminant_is_below_zero(
    ops, dtype, steep
):
    """b² − 4ac with a and b that cancel, in a bin that begins steep and ends flat."""
    p, _ = in_the_middle(ops, widths=(2, 0.3), slopes=([1, 2], (steep, -50.0)))
    p = cast(p, dtype)
    ends = knots_of(ops, p)[:, 2:4, 0]
    (low, high), (start, end) = ends[1:]
    assert start > 0.99 * steep and end < 1.1e-3
    y = high - (high - low) * np.linspace(0, 4, 2001, dtype=dtype) * end / start
    y = y[:, None]
    a, b, c = textbook(y, ends)
    assert np.any(b * b - 4 * a * c < 0)
    x = LAYER.inverse(ops, p, y)
    assert np.all((x >= ends[0, 0]) & (x <= ends[0, 1]))
    again = LAYER.forward(ops, p, x)[0]
    assert_near(again, y, 20 * np.finfo(dtype).eps * BOUND)


@each_precision
@pytest.mark.parametrize("seed", range(3))
def test_raw_parameters_of_50_stay_finite_and_monotone(ops, dtype, seed):
    rng = default_rng(seed)
    p = {
        k: rng.choice([-50.0, 50.0], v.shape).astype(dtype)
        for k, v in parameters().items()
    }
    knots = knots_of(ops, p)
    assert np.isfinite(knots).all()
    assert np.all(np.diff(knots[:2], axis=1) > 0)
    assert np.all(knots[2] >= LAYER.eps)
    grid = np.linspace(-11, 11, 301).reshape(-1, 1, 1, 1) * np.ones((1, *SHAPE))
    x = np.sort(
        np.concatenate([grid.astype(dtype), around_the_knots(knots[0])]), axis=0
    )
    result = everything(ops, p, x, dldj=np.ones(len(x), dtype))
    for name, value in result.items():
        assert np.isfinite(value).all(), name
    eps = np.finfo(dtype).eps
    assert np.all(np.diff(result["y"], axis=0) >= -4 * eps * BOUND)
    # x is exact to a few eps B, y then to that times the largest slope, 4 max(1/ε, d)
    back = LAYER.forward(ops, p, result["inverse"])[0]
    assert_near(back, result["y"], 20 * eps * BOUND * 4 / LAYER.eps)


def test_steep_and_flat_slopes_do_not_leave_the_range_of_a_product(ops):
    """Many of them share one logarithm: the flattest of 784 splines all at once."""
    p = parameters(0.0, (784,))
    p["widths"][:, 2], p["heights"][:, 2], p["slopes"][:, 1:3] = 50.0, -50.0, 9.9e3
    x = np.zeros((2, 784))
    result = everything(ops, p, x)
    assert result["dx"].max() < 1e-9
    assert_allclose(result["ldj"], 784 * np.log(result["dx"][0, 0]), rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 30.0], ids=["inside", "in the tail"])
@each_precision
def test_nan_stays_in_its_pixel(ops, dtype, value):
    """In values and deltas. In the tails ldj does not depend on x, which may be infinite."""
    p = parameters(0.5, dtype=dtype)
    x = np.full((3, *SHAPE), value, dtype)
    dy = np.ones_like(x)
    dldj = np.ones(3, dtype)
    spoilt = np.zeros(x.shape, bool)
    spoilt[1, 4, 2, 0] = True
    dy[1, 4, 2, 0] = np.nan
    assert_array_equal(np.isnan(everything(ops, p, x, dy, dldj)["dx"]), spoilt)
    dldj[2] = np.nan
    of_ldj = spoilt | ((np.arange(3) == 2) & (value == 0)).reshape(3, 1, 1, 1)
    assert_array_equal(np.isnan(everything(ops, p, x, dy, dldj)["dx"]), of_ldj)
    x[1, 4, 2, 0] = np.nan
    result = everything(ops, p, x)
    for name in ("y", "dx", "inverse"):
        assert_array_equal(np.isnan(result[name]), spoilt, name)
    assert_array_equal(np.isnan(result["ldj"]), [False, True, False])
    for name in PARAMETERS:
        assert_array_equal(np.isnan(result[name]).any(axis=-1), spoilt[1], name)
    for value in (np.inf, -np.inf):
        x[1, 4, 2, 0] = value
        y, ldj, _ = LAYER.forward(ops, p, x)
        assert y[1, 4, 2, 0] == value and np.isfinite(ldj).all()


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@each_precision
def test_an_overflowed_parameter_shows(ops, name, value, dtype):
    """Even where it would give a valid spline (exp(-∞) = 0) and in the tails."""
    p = parameters(0.5, dtype=dtype)
    p[name][4, 2, 0, 1] = value
    x = np.linspace(-12, 12, 9, dtype=dtype).reshape(-1, 1, 1, 1) * np.ones(
        (1, *SHAPE), dtype
    )
    spoilt = np.zeros(SHAPE, bool)
    spoilt[4, 2, 0] = True
    result = everything(ops, p, x)
    for key in ("y", "dx", "inverse"):
        assert (np.isnan(result[key]) == spoilt).all(), key
    assert np.isnan(result["ldj"]).all()
    for key in PARAMETERS:
        assert (np.isnan(result[key]) == spoilt[..., None]).all(), key


@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"
)  # NumPy reports the overflows tested here
def test_slopes_that_overflow_give_no_finite_log_determinant(ops):
    p = parameters(0.0, dtype=np.float32)
    p["slopes"][4, 2, 0, 1:3] = 3e38
    x = np.zeros((2, *SHAPE), np.float32)
    y, ldj, _ = LAYER.forward(ops, p, x)
    assert not np.isfinite(ldj).any()


@pytest.mark.slow
@each_precision
def test_a_pixel_on_numba_does_not_depend_on_its_neighbours(dtype):
    """Its block and its lane in a register do not change a bit."""
    ops = get_ops("numba")
    p = parameters(0.5, (67,), dtype=dtype)
    rng = default_rng(6)
    x, dy = (5 * rng.standard_normal((20, 67)).astype(dtype) for _ in range(2))
    dldj = rng.standard_normal(20).astype(dtype)
    whole = everything(ops, p, x, dy, dldj)
    for first, last in ((0, 1), (31, 34), (25, 48), (40, 67)):
        cut = slice(first, last)
        part = everything(
            ops,
            {k: np.ascontiguousarray(v[cut]) for k, v in p.items()},
            *(np.ascontiguousarray(v[:, cut]) for v in (x, dy)),
            dldj,
        )
        for name in ("y", "dx", "inverse"):
            assert_array_equal(part[name], whole[name][:, cut], name)
        for name in PARAMETERS if last - first > 16 else ():
            # fewer pixels share a row of lanes: their samples are summed in another order
            assert_array_equal(part[name], whole[name][cut], name)


def test_squeeze_is_space_to_depth_in_the_documented_order(ops):
    x = normal(2, 4, 6, 3)
    z, ldj, _ = Squeeze().forward(ops, {}, x)
    assert z.shape == (2, *Squeeze().output_shape((4, 6, 3))) == (2, 2, 3, 12)
    assert z.flags.c_contiguous
    assert ldj == 0
    for c, dy, dx in np.ndindex(3, 2, 2):
        assert_array_equal(z[..., c * 4 + dy * 2 + dx], x[:, dy::2, dx::2, c])
