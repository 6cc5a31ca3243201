"""Operations: random numbers, every override against its definition, and extreme inputs.

`OVERRIDES` needs one case per operation that `NumbaOps` overrides; a test finds the overrides by
introspection, so that a kernel without a case cannot land. A case is a function
(rng, dtype, size) -> Call: arguments, and for each result a bound on the difference that
rounding can make. The bounds below come from the arithmetic: a number of roundings, times eps,
times the size of what is rounded.
"""

import builtins
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from snfnp.errors import BackendError, SingularMatrixError, UsageError
from snfnp.ops import BACKENDS, NumpyOps, RandomKey, get_ops, philox
from snfnp.ops.numba_ops import NumbaOps

ALPHA = 0.3
FLOATS = [np.float64, np.float32]


# ---------------------------------------------------------------- the generator

# philox4x32-10 in Random123's kat_vectors: counter, key, result
ZEROS = ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8")
ONES = (
    "ffffffff ffffffff ffffffff ffffffff",
    "ffffffff ffffffff",
    "408f276d 41c83b0e a20bc7c6 6d5451fd",
)
PI = (
    "243f6a88 85a308d3 13198a2e 03707344",
    "a4093822 299f31d0",
    "d16cfe09 94fdcceb 5001e420 24126ea1",
)


def hexadecimal(words):
    return tuple(np.uint64(int(word, 16)) for word in words.split())


@pytest.mark.parametrize("counter, key, result", [ZEROS, ONES, PI])
def test_philox_known_answers(counter, key, result):
    key = tuple(int(word) for word in hexadecimal(key))
    assert philox.philox4x32(hexadecimal(counter), key) == hexadecimal(result)


def test_uniform_is_philox(ops):
    words = ops.uniform(RandomKey(0, 0, 0), (4,), np.float64) * 2.0**32
    assert tuple(words) == tuple(float(word) for word in hexadecimal(ZEROS[2]))


def test_counter_and_key_are_where_the_documentation_puts_them(ops):
    seed, stream, step = 0x299F31D0_A4093822, 0x03707344, 0x13198A2E_85A308D3
    block, lane = 5, 2
    counter = tuple(np.uint64(c) for c in (block, 0x85A308D3, 0x13198A2E, 0x03707344))
    expected = philox.philox4x32(counter, (0xA4093822, 0x299F31D0))[lane]
    found = ops.uniform(RandomKey(seed, stream, step), (4 * block + lane + 1,), np.float64)[-1]
    assert found == float(expected) * 2.0**-32


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_random_numbers_depend_on_seed_stream_and_step(ops, distribution, dtype):
    draw = getattr(ops, distribution)
    base = (1, 2, 3)
    first = draw(RandomKey(*base), (5, 7), dtype)
    assert first.shape == (5, 7)
    assert first.dtype == dtype
    np.testing.assert_array_equal(first, draw(RandomKey(*base), (5, 7), dtype))
    # low and high words of each part; the stream has 32 bits
    for changed in ((2, 2, 3), (1 + 2**32, 2, 3), (1, 3, 3), (1, 2, 4), (1, 2, 3 + 2**32)):
        assert not np.any(first == draw(RandomKey(*changed), (5, 7), dtype))


@pytest.mark.parametrize("distribution", ["uniform", "normal"])
def test_a_longer_draw_starts_with_the_shorter_one(ops, distribution):
    draw = getattr(ops, distribution)
    long = draw(RandomKey(7, 0), (64,), np.float64)
    for count in (1, 2, 3, 4, 5, 63):
        np.testing.assert_array_equal(draw(RandomKey(7, 0), (count,), np.float64), long[:count])


def test_uniform_in_single_precision_keeps_24_bits(ops):
    """32 bits would round to 1.0 at the top; multiples of 2**-24 below 1 are all representable."""
    draws = ops.uniform(RandomKey(3, 0), (1 << 16,), np.float32)
    multiples = draws.astype(np.float64) * 2**24
    np.testing.assert_array_equal(multiples, np.floor(multiples))
    assert draws.min() >= 0
    assert draws.max() < 1


def test_uniform_stays_below_one_for_the_largest_word(monkeypatch):
    largest = np.array([2**32 - 1], np.uint64)
    monkeypatch.setattr(philox, "words", lambda xp, key, count: largest)
    for dtype in FLOATS:
        assert NumpyOps().uniform(RandomKey(0, 0), (1,), dtype)[0] < 1


def test_normal_is_finite_for_the_extreme_words(monkeypatch):
    for word in (0, 2**32 - 1):
        pair = np.full(2, word, np.uint64)
        monkeypatch.setattr(philox, "words", lambda xp, key, count, pair=pair: pair)
        assert np.isfinite(NumpyOps().normal(RandomKey(0, 0), (2,), np.float32)).all()


@pytest.mark.parametrize(
    "distribution, mean, variance, fourth",
    # E (x - mean)^4: 1/80 for U[0, 1), 3 for N(0, 1)
    [("uniform", 1 / 2, 1 / 12, 1 / 80), ("normal", 0.0, 1.0, 3.0)],
)
def test_moments(ops, distribution, mean, variance, fourth):
    count, sigmas = 200_000, 5  # the central limit theorem: five standard errors
    draws = getattr(ops, distribution)(RandomKey(11, 1, 5), (count,), np.float64) - mean
    assert abs(draws.mean()) < sigmas * math.sqrt(variance / count)
    assert abs((draws**2).mean() - variance) < sigmas * math.sqrt((fourth - variance**2) / count)
    for lag in (1, 2, 3, 4):  # inside one block of four words and across
        assert abs((draws[lag:] * draws[:-lag]).mean()) < sigmas * variance / math.sqrt(count - lag)


# ---------------------------------------------------------------- overrides and definitions


@dataclass
class Call:
    """One call of an operation, and how far two correct results may be apart.

    bounds: one array or number per result (0: they must be equal), then one per array named in
    `mutated`, the positions of the arguments that the operation updates.
    strided: the positions of arguments that need not be contiguous.
    """

    args: tuple
    bounds: tuple
    mutated: tuple[int, ...] = ()
    strided: tuple[int, ...] = ()
    kwargs: dict = field(default_factory=dict)


def eps_of(dtype):
    return float(np.finfo(dtype).eps)


def call_uniform(rng, dtype, size):
    return Call((RandomKey(5, 2**31 + 1, 2**40 + 3), size, dtype), bounds=(0,))


def call_normal(rng, dtype, size):
    # computed in double: radius < 6.7 times two cosines (few ulp), then one rounding to dtype
    bound = 8 * eps_of(np.float64) * 6.7 + eps_of(dtype) * 6.7
    return Call((RandomKey(5, 1, 2**40 + 3), size, dtype), bounds=(bound,))


def call_matmul_add(rng, dtype, size):
    (m, n), k = size_2d(size), 19
    a, b = (rng.standard_normal(s).astype(dtype) for s in ((m, k), (k, n)))
    out = rng.standard_normal((m, n)).astype(dtype)
    bound = 2 * (k + 2) * eps_of(dtype) * (np.abs(a) @ np.abs(b) + np.abs(out))  # Higham, (3.13)
    return Call((a, b, out), bounds=(bound, bound), mutated=(2,), strided=(0, 1))


def call_scale_into(rng, dtype, size):
    m, n = size_2d(size)
    w = rng.standard_normal((n, m)).astype(dtype)
    out = np.full((m, n), np.nan, dtype)
    bound = 2 * eps_of(dtype) * np.abs(w.T)
    return Call((out, 0.7, w.T, 1), bounds=(bound, bound), mutated=(0,), strided=(2,))


def call_blend(rng, dtype, size):
    out, x = (rng.standard_normal(size).astype(dtype) for _ in range(2))
    bound = 3 * eps_of(dtype) * (np.abs(0.7 * out) + np.abs(1.3 * x))
    return Call((out, 0.7, x, -1.3), bounds=(bound, bound), mutated=(0,), strided=(0, 2))


def leaky_values(rng, dtype, size):
    """Both signs, and sizes from 1e-3 to 1e2."""
    return (rng.standard_normal(size) * 10.0 ** rng.uniform(-3, 2, size)).astype(dtype)


def call_smooth_leaky_relu(rng, dtype, size):
    x = leaky_values(rng, dtype, size)
    dimension = x[0].size
    eps = eps_of(dtype)
    bound_y = 8 * eps * (np.abs(x) + math.log(2))
    # each log f' lies in [log α, 0] and its argument in [α, 1] has a few roundings
    bound_ldj = (8 + dimension) * eps * dimension * (1 - math.log(ALPHA))
    return Call((x, ALPHA), bounds=(bound_y, bound_ldj, 8 * eps), strided=(0,))


def call_smooth_leaky_relu_inverse(rng, dtype, size):
    y = leaky_values(rng, dtype, size)
    # both stop at a residual of 2 eps (|y| + 1), evaluated to about twice that; f' >= α
    bound = 2 * (2 + 4) * eps_of(dtype) * (np.abs(y) + 1) / ALPHA
    return Call((y, ALPHA), bounds=(bound,), strided=(0,))


def call_smooth_leaky_relu_backward(rng, dtype, size):
    sigma = rng.uniform(0, 1, size).astype(dtype)
    dy = rng.standard_normal(size).astype(dtype)
    dldj = rng.standard_normal(size[0]).astype(dtype)
    column = np.abs(dldj).reshape(-1, *[1] * (len(size) - 1))
    bound = 8 * eps_of(dtype) * (np.abs(dy) + column * (1 - ALPHA) / (4 * ALPHA))
    return Call((sigma, dy, dldj, ALPHA), bounds=(bound,), strided=(0, 1))


def call_preprocess(rng, dtype, size):
    images = rng.integers(0, 256, size).astype(np.uint8)
    images.flat[0], images.flat[-1] = 0, 255
    # in double, |log s| and |log(1-s)| <= log(1/α) < 14; then one rounding to dtype
    double, dimension = eps_of(np.float64), images[0].size
    bound_x = 8 * double * 28 + eps_of(dtype) * 14
    bound_ldj = (8 + dimension) * double * dimension * 28 + eps_of(dtype) * dimension * 20
    args = (images, RandomKey(1, 0, 9), 1e-6, 256, dtype)
    return Call(args, bounds=(bound_x, bound_ldj), strided=(0,))


# For the convolutions, in the order of SIZES: images (N, H, W, I), kernel (kH, kW), outputs O.
# Few and many channels, an odd number of outputs, a kernel larger than the image.
CONVOLUTIONS = [
    ((1, 1, 1, 1), (3, 3), 1),
    ((1, 5, 3, 2), (5, 3), 3),
    ((11, 4, 7, 3), (3, 3), 5),
    ((17, 2, 2, 4), (3, 3), 9),
    ((6, 28, 28, 1), (3, 3), 6),
    ((3, 5, 7, 2), (1, 1), 4),
]


def convolution(rng, dtype, size):
    """x (N, H, W, I), a kernel and a delta (N, H, W, O)."""
    shape, kernel, outputs = CONVOLUTIONS[SIZES.index(size)]
    shapes = (shape, (*kernel, shape[3], outputs), (*shape[:3], outputs))
    return [rng.standard_normal(s).astype(dtype) for s in shapes]


def call_patches(rng, dtype, size):
    x, k, _ = convolution(rng, dtype, size)
    return Call((x, k.shape[:2]), bounds=(0,), strided=(0,))


def call_conv(rng, dtype, size):
    x, k, _ = convolution(rng, dtype, size)
    products = k[..., 0].size
    bound = 2 * (products + 2) * eps_of(dtype) * NumpyOps().conv(np.abs(x), np.abs(k))
    return Call((x, k), bounds=(bound,), strided=(0, 1))


def call_conv_weight_grad(rng, dtype, size):
    x, k, delta = convolution(rng, dtype, size)
    bound = NumpyOps().conv_weight_grad(np.abs(delta), np.abs(x), np.abs(k), add=True)
    bound = 2 * (delta[..., 0].size + 2) * eps_of(dtype) * bound
    return Call((delta, x, k, True), bounds=(bound, bound), mutated=(2,), strided=(0, 1))


def call_bias_relu(rng, dtype, size):
    out = rng.standard_normal(size_2d(size)).astype(dtype)
    b = rng.standard_normal(out.shape[1]).astype(dtype)
    return Call((out, b), bounds=(0, 0), mutated=(0,), strided=(0, 1))


def call_bias_relu_backward(rng, dtype, size):
    out, a = (rng.standard_normal(size_2d(size)).astype(dtype) for _ in range(2))
    a = np.maximum(a, 0)
    bound = 2 * len(out) * eps_of(dtype) * np.abs(out).sum(axis=0)
    return Call((out, a), bounds=(bound, 0), mutated=(0,), strided=(0, 1))


def coupling_arrays(rng, dtype, size):
    """x, h and dz (N, H, W, C) of even C; ldj's delta (N,); eˢ and x₂ of the definition."""
    n, height, width, channels = CONVOLUTIONS[SIZES.index(size)][0]
    shape = (n, height, width, 2 * channels)
    x, h, dz = (2 * rng.standard_normal(shape).astype(dtype) for _ in range(3))
    dldj = rng.standard_normal(n).astype(dtype)
    return x, h, dz, dldj, np.exp(2 * np.tanh(h[..., ::2] / 2)), x[..., channels:]


# |s| < 2, so s is off by a few eps, and eˢ by a few eps of itself.
COUPLING_ROUNDINGS = 16


def call_affine_coupling(rng, dtype, size):
    x, h, _, _, e, x2 = coupling_arrays(rng, dtype, size)
    eps = COUPLING_ROUNDINGS * eps_of(dtype)
    bound_z = np.concatenate([0 * x2, eps * (np.abs(x2) * e + np.abs(h[..., 1::2]))], axis=-1)
    bound_ldj = (2 + e[0].size) * eps_of(dtype) * 2 * e[0].size
    return Call((x, h), bounds=(bound_z, bound_ldj, eps), strided=(0, 1))


def call_affine_coupling_inverse(rng, dtype, size):
    z, h, _, _, e, z2 = coupling_arrays(rng, dtype, size)
    bound = COUPLING_ROUNDINGS * eps_of(dtype) * (np.abs(z2) + np.abs(h[..., 1::2])) / e
    return Call((z, h), bounds=(np.concatenate([0 * z2, bound], axis=-1),), strided=(0, 1))


def call_affine_coupling_backward(rng, dtype, size):
    x, h, dz, dldj, e, x2 = coupling_arrays(rng, dtype, size)
    s, half = np.log(e), x2.shape[-1]
    eps = COUPLING_ROUNDINGS * eps_of(dtype)
    bound_2 = eps * np.abs(dz[..., half:]) * e
    bound_dx = np.concatenate([0 * bound_2, bound_2], axis=-1)
    bound_dh = np.zeros_like(bound_dx)
    bound_dh[..., ::2] = bound_2 * np.abs(x2) + eps * np.abs(dldj[:, None, None, None])
    return Call((x, s, dz, dldj), bounds=(bound_dx, bound_dh), strided=(0, 1, 2, 3))


def call_causal_conv_inverse(rng, dtype, size):
    z = convolution(rng, dtype, size)[0]
    channels = z.shape[3]
    k = (0.2 * rng.standard_normal((2, 2, channels, channels))).astype(dtype)
    k[1, 1] = np.triu(k[1, 1], 1) + np.diag(1 + abs(k[1, 1].diagonal()))
    x, definition = NumpyOps().causal_conv_inverse(z, k), NumpyOps().causal_conv_inverse
    # substitution: |error| <= (products + 2) eps M⁻¹ |T| |x|, M: T's diagonal and -|T| elsewhere
    comparison = -np.abs(k)
    comparison[1, 1] += 2 * np.diag(k[1, 1].diagonal())
    bound = definition(NumpyOps().conv(np.abs(x), np.abs(k)), comparison)
    return Call((z, k), bounds=(2 * (4 * channels + 2) * eps_of(dtype) * bound,), strided=(0, 1))


def spline_parameters(rng, dtype, size, bins=5):
    sizes = (bins, bins, bins - 1)
    return [(0.3 * rng.standard_normal((*size[1:], n))).astype(dtype) for n in sizes]


SPLINE = (10.0, 1e-3)  # bound and eps


def call_spline_knots(rng, dtype, size):
    raw = spline_parameters(rng, dtype, size)
    eps, bound = eps_of(dtype), SPLINE[0]
    # a position is a sum of up to five shares of 2 B, each exact to a dozen roundings
    return Call((*raw, *SPLINE), bounds=(12 * eps * 2 * bound, 12 * eps), strided=(0, 1, 2))


def spline_call(rng, dtype, size):
    """x over all bins and both tails, knots and factors; mean slopes are between 1/6 and 6."""
    knots, factors = NumpyOps().spline_knots(*spline_parameters(rng, dtype, size), *SPLINE)
    x = rng.uniform(-1.2 * SPLINE[0], 1.2 * SPLINE[0], size).astype(dtype)
    return x, knots, factors


# t = (x - X)/w with w > 1 carries an error of a few eps · B; slopes and derivatives of their
# logarithms, all below about 6, carry it on.
SPLINE_ROUNDINGS = 6 * 6 * 10


def call_spline(rng, dtype, size):
    x, knots, _ = spline_call(rng, dtype, size)
    bound = SPLINE_ROUNDINGS * eps_of(dtype)
    dimension = x[0].size
    bound_ldj = dimension * (bound + dimension * eps_of(dtype))
    return Call((x, knots), bounds=(bound, bound_ldj), strided=(0,))


def call_spline_inverse(rng, dtype, size):
    x, knots, _ = spline_call(rng, dtype, size)
    return Call((x, knots), bounds=(SPLINE_ROUNDINGS * eps_of(dtype),), strided=(0,))


def call_spline_backward(rng, dtype, size):
    x, knots, factors = spline_call(rng, dtype, size)
    dy = rng.standard_normal(size).astype(dtype)
    dldj = rng.standard_normal(size[0]).astype(dtype)
    out = tuple(np.full((*size[1:], n), np.nan, dtype) for n in (5, 5, 4))
    each = SPLINE_ROUNDINGS * eps_of(dtype) * (np.max(np.abs(dy)) + np.max(np.abs(dldj)))
    total = size[0] * 2 * SPLINE[0] * each  # a raw width is a share of 2 B
    args = (x, knots, factors, *SPLINE, dy, dldj, out)
    return Call(args, bounds=(each, total, total, total), mutated=(7,), strided=(0, 5))


def call_inverse_and_log_abs_det(rng, dtype, size):
    n = size_2d(size)[1]
    a = (np.eye(n) + rng.standard_normal((n, n)) / (3 * math.sqrt(n))).astype(dtype)
    inverse = np.linalg.inv(a.astype(np.float64))
    condition = np.linalg.norm(a, 2) * np.linalg.norm(inverse, 2)
    # Higham, section 14.3: n roundings, times the condition; log|det| sums n pivots' errors
    bound = 2 * n * eps_of(dtype) * condition
    return Call((a,), bounds=(bound * np.linalg.norm(inverse, 2), n * bound), strided=(0,))


def square_bound(g):
    """Definition in double; kernels may add runs of at most 1024 squares in g's precision."""
    return 1026 * eps_of(g.dtype) * float(np.sum(np.square(g, dtype=np.float64)))


def call_sum_squares(rng, dtype, size):
    g = rng.standard_normal(size).astype(dtype).reshape(-1)
    return Call((g,), bounds=(square_bound(g),), strided=(0,))


def call_adam(rng, dtype, size):
    p, g, m = (rng.standard_normal(size).astype(dtype).reshape(-1) for _ in range(3))
    v = np.abs(rng.standard_normal(p.size)).astype(dtype)
    v[::2] = 0  # as before the first step: all of v then comes from 1 - β2
    eps, lr, step, scale = eps_of(dtype), 1e-2, 3, 0.9
    m_size = 0.9 * np.abs(m) + 0.1 * scale * np.abs(g)  # the two terms may cancel
    v_new = 0.999 * v + 0.001 * (scale * g) ** 2
    p_step = lr / (1 - 0.9**step) * m_size / (np.sqrt(v_new / (1 - 0.999**step)) + 1e-8)
    return Call(
        (p, g, m, v, lr, 0.9, 0.999, 1e-8, step, scale),
        bounds=(
            square_bound(g),
            eps * (np.abs(p) + 12 * p_step),  # at most a dozen roundings on the way to the step
            5 * eps * m_size,
            6 * eps * v_new,
        ),
        mutated=(0, 2, 3),
    )


OVERRIDES: dict[str, Callable[..., Call]] = {
    "uniform": call_uniform,
    "normal": call_normal,
    "matmul_add": call_matmul_add,
    "scale_into": call_scale_into,
    "blend": call_blend,
    "smooth_leaky_relu": call_smooth_leaky_relu,
    "smooth_leaky_relu_inverse": call_smooth_leaky_relu_inverse,
    "smooth_leaky_relu_backward": call_smooth_leaky_relu_backward,
    "preprocess": call_preprocess,
    "patches": call_patches,
    "conv": call_conv,
    "conv_weight_grad": call_conv_weight_grad,
    "causal_conv_inverse": call_causal_conv_inverse,
    "bias_relu": call_bias_relu,
    "bias_relu_backward": call_bias_relu_backward,
    "affine_coupling": call_affine_coupling,
    "affine_coupling_inverse": call_affine_coupling_inverse,
    "affine_coupling_backward": call_affine_coupling_backward,
    "spline_knots": call_spline_knots,
    "spline": call_spline,
    "spline_inverse": call_spline_inverse,
    "spline_backward": call_spline_backward,
    "inverse_and_log_abs_det": call_inverse_and_log_abs_det,
    "sum_squares": call_sum_squares,
    "adam": call_adam,
}
# No multiple of 16, 8 or 4 among the last axes; one sample; one value; a row longer than a
# kernel's block of the flat buffer; images.
SIZES = [(1, 1), (1, 13), (5, 37), (17, 2), (3, 16_411), (3, 5, 7, 2)]


def size_2d(size):
    return size[0], min(math.prod(size[1:]), 211)


def overridden() -> set[str]:
    """What NumbaOps, or a base of it that NumpyOps does not share, defines on its own."""
    own = [cls for cls in NumbaOps.__mro__ if cls not in NumpyOps.__mro__]
    names = {name for cls in own for name, value in vars(cls).items() if callable(value)}
    return {name for name in names if not name.startswith("_")}


def test_every_override_has_a_definition_and_a_case():
    assert {name for name in overridden() if not hasattr(NumpyOps, name)} == set()
    assert overridden() == set(OVERRIDES)


def test_an_override_without_a_case_would_be_found(monkeypatch):
    monkeypatch.setattr(NumbaOps, "gaussian_log_density", lambda self, z: z, raising=False)
    assert "gaussian_log_density" in overridden() - set(OVERRIDES)


def copied(arg):
    if isinstance(arg, tuple) and all(isinstance(a, np.ndarray) for a in arg):
        return tuple(copied(a) for a in arg)
    return arg.copy("K") if isinstance(arg, np.ndarray) else arg


def run(ops, name, call):
    """The results and then the updated arguments; every other array argument must be unchanged."""
    args = [copied(a) for a in call.args]
    found = results_and_updated(ops, name, call, args)
    for position, (now, then) in enumerate(zip(args, call.args, strict=True)):
        if isinstance(now, np.ndarray) and position not in call.mutated:
            np.testing.assert_array_equal(now, then, f"{name} changed argument {position}")
    return found


def results_and_updated(ops, name, call, args):
    """What a call returns and then the arrays that it updates (one argument may be several)."""
    result = getattr(ops, name)(*args, **call.kwargs)
    found = list(result) if isinstance(result, tuple) else [result]
    for position in call.mutated:
        updated = args[position]
        found += updated if isinstance(updated, tuple) else [updated]
    return found


def assert_within(name, found, expected, bounds):
    assert len(found) == len(expected) == len(bounds)
    for index, (f, e, bound) in enumerate(zip(found, expected, bounds, strict=True)):
        assert np.shape(f) == np.shape(e)
        assert np.asarray(f).dtype == np.asarray(e).dtype, f"{name}, result {index}"
        # the comparison is in double, so that the bound is not rounded
        difference = np.abs(np.asarray(f, np.float64) - np.asarray(e, np.float64))
        excess = difference - bound
        worst = np.unravel_index(np.argmax(excess), excess.shape)
        assert np.all(difference <= bound), (
            f"{name}, result {index} at {worst}: {np.asarray(f)[worst]!r} instead of "
            f"{np.asarray(e)[worst]!r}, {np.max(excess):.1e} beyond the bound"
        )


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", OVERRIDES)
def test_override_matches_its_definition(name, dtype, size):
    call = OVERRIDES[name](np.random.default_rng(0), dtype, size)
    expected = run(NumpyOps(), name, call)
    assert_within(name, run(NumbaOps(), name, call), expected, call.bounds)


def every_second(array):
    wide = np.zeros(tuple(2 * n for n in array.shape), array.dtype)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


@pytest.mark.parametrize("layout", [every_second, np.asfortranarray])
@pytest.mark.parametrize("size", [(5, 37), (3, 5, 7, 2)], ids=str)
@pytest.mark.parametrize("name", sorted(OVERRIDES.keys() - {"uniform", "normal", "adam"}))
def test_override_takes_strided_and_transposed_arguments(name, size, layout):
    call = OVERRIDES[name](np.random.default_rng(1), np.float64, size)
    assert call.strided
    expected = run(NumpyOps(), name, call)
    args = [layout(a) if i in call.strided else a for i, a in enumerate(call.args)]
    for ops in (NumpyOps(), NumbaOps()):
        fresh = [copied(a) if i in call.mutated else a for i, a in enumerate(args)]
        found = results_and_updated(ops, name, call, fresh)
        assert_within(name, found, expected, call.bounds)


@pytest.mark.parametrize("dtype", FLOATS)
def test_matmul_add_writes_into_a_strided_view(ops, dtype):
    call = call_matmul_add(np.random.default_rng(2), dtype, (5, 9))
    a, b, start = call.args
    expected = start.astype(np.float64) + a.astype(np.float64) @ b
    for view in (every_second(start), np.asfortranarray(start), every_second(start.T).T):
        result = ops.matmul_add(a, b, view)
        assert result is view
        assert np.all(np.abs(view - expected) <= call.bounds[0])


def test_matmul_add_leaves_the_rest_of_the_flat_buffer_alone(ops):
    a, b, start = call_matmul_add(np.random.default_rng(2), np.float64, (5, 9)).args
    flat = np.full(start.size + 32, 7.0)
    view = flat[16:-16].reshape(start.shape)
    view[...] = start
    ops.matmul_add(a, b, view)
    np.testing.assert_allclose(view, start + a @ b, rtol=1e-12, atol=1e-12)
    np.testing.assert_array_equal(np.delete(flat, np.s_[16:-16]), 7.0)


@pytest.mark.parametrize("multiple", [1, 3, np.arange(1.0, 7.0)[:, None]], ids=["1", "3", "array"])
@pytest.mark.parametrize("transposed", [False, True])
def test_scale_into_is_the_product(ops, multiple, transposed):
    a = np.random.default_rng(0).standard_normal((6, 6))
    a = a.T if transposed else a
    out = np.full((6, 6), np.nan)
    assert ops.scale_into(out, 0.5, a, multiple) is out
    np.testing.assert_allclose(out, 0.5 * a * multiple, rtol=1e-15)


# ---------------------------------------------------------------- definitions against plain ones


def test_linear_algebra(ops):
    rng = np.random.default_rng(0)
    w, z = rng.standard_normal((7, 7)) + 3 * np.eye(7), rng.standard_normal((5, 7))
    np.testing.assert_allclose(ops.inverse(w) @ w, np.eye(7), atol=1e-13)
    np.testing.assert_allclose(ops.solve(w, z) @ w.T, z, atol=1e-13)
    np.testing.assert_allclose(ops.log_abs_det(w), math.log(abs(np.linalg.det(w))), rtol=1e-13)
    np.testing.assert_array_equal(ops.matmul(z, w), z @ w)
    out = np.empty((5, 7))
    assert ops.matmul(z, w, out=out) is out
    np.testing.assert_array_equal(out, z @ w)


def test_a_singular_matrix_is_an_error(ops):
    for call in (ops.inverse, ops.log_abs_det, lambda w: ops.solve(w, np.ones((1, 3)))):
        with pytest.raises(SingularMatrixError, match="singular"):
            call(np.zeros((3, 3)))


def test_gaussian_log_density(ops):
    z = np.random.default_rng(0).standard_normal((4, 2, 3))
    density = np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    expected = np.log(density.reshape(4, -1).prod(axis=1))
    np.testing.assert_allclose(ops.gaussian_log_density(z), expected, rtol=1e-13)


def test_host_and_device(ops):
    host = np.arange(6.0).reshape(2, 3).T
    device = ops.asarray(host, np.float32)
    assert device.dtype == np.float32
    assert device.flags.c_contiguous
    np.testing.assert_array_equal(ops.to_host(device), host)


# ---------------------------------------------------------------- extreme inputs

EXTREME = [-np.inf, -1e4, -100.0, -1e-30, -0.0, 0.0, 1e-30, 100.0, 1e4, np.inf, np.nan]


@pytest.mark.parametrize("dtype", FLOATS)
def test_smooth_leaky_relu_at_extreme_values(ops, dtype):
    x = np.array(EXTREME, dtype)[:, None]
    y, ldj, sigma = ops.smooth_leaky_relu(x, ALPHA)
    eps = eps_of(dtype)
    expected = [-np.inf, -3e3, -30.0, *[0.7 * math.log(2)] * 4, 100.0, 1e4, np.inf, np.nan]
    np.testing.assert_allclose(y[:, 0], expected, rtol=4 * eps)
    slope = [ALPHA, ALPHA, ALPHA, *[0.65] * 4, 1.0, 1.0, 1.0, np.nan]
    np.testing.assert_allclose(ldj, np.log(slope), rtol=4 * eps, atol=4 * eps)
    at_zero = [0.5] * 4
    np.testing.assert_allclose(
        sigma[:, 0], [0, 0, math.exp(-100), *at_zero, 1, 1, 1, np.nan], rtol=4 * eps, atol=1e-37
    )


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # ∞ - ∞ in the residual
@pytest.mark.parametrize("dtype", FLOATS)
def test_smooth_leaky_relu_inverse_at_extreme_values(ops, dtype):
    """NaN and infinity pass through, terminate, and do not touch the values beside them."""
    y = np.array([*EXTREME, 0.3, -0.2], dtype)
    x = ops.smooth_leaky_relu_inverse(y, ALPHA)
    np.testing.assert_array_equal(x[[0, 9, 10]], [-np.inf, np.inf, np.nan])
    finite = np.isfinite(y)
    alone = ops.smooth_leaky_relu_inverse(y[finite], ALPHA)
    np.testing.assert_array_equal(x[finite], alone)


@pytest.mark.parametrize("alpha", [0.01, 0.3, 0.99])
@pytest.mark.parametrize("dtype", FLOATS)
def test_smooth_leaky_relu_inverse_converges_on_a_wide_grid(ops, alpha, dtype):
    sizes = np.logspace(-8, 4, 400)
    y = np.concatenate([-sizes[::-1], [0], sizes, np.linspace(-3, 3, 601)]).astype(dtype)
    x = ops.smooth_leaky_relu_inverse(y, alpha)
    assert x.dtype == dtype
    wide = x.astype(np.float64)
    residual = alpha * wide + (1 - alpha) * np.logaddexp(0, wide) - y
    # 2 eps (|y| + 1) is the stopping rule; evaluating f rounds about three terms of that size
    assert np.all(np.abs(residual) <= (2 + 3) * eps_of(dtype) * (np.abs(y) + 1))


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_is_never_zeroed(ops, dtype):
    x = np.zeros((3, 5), dtype)
    x[1, 2] = np.nan
    finite_elsewhere = np.isfinite(x)
    y, ldj, sigma = ops.smooth_leaky_relu(x, ALPHA)
    np.testing.assert_array_equal(np.isfinite(y), finite_elsewhere)
    np.testing.assert_array_equal(np.isfinite(sigma), finite_elsewhere)
    np.testing.assert_array_equal(np.isnan(ldj), [False, True, False])
    back = ops.smooth_leaky_relu_inverse(x, ALPHA)
    np.testing.assert_array_equal(np.isfinite(back), finite_elsewhere)
    ones = np.ones(3, dtype)
    dx = ops.smooth_leaky_relu_backward(np.full_like(x, 0.5), x, ones, ALPHA)
    np.testing.assert_array_equal(np.isfinite(dx), finite_elsewhere)
    dx = ops.smooth_leaky_relu_backward(np.full_like(x, 0.5), np.zeros_like(x), x[:, 2], ALPHA)
    np.testing.assert_array_equal(np.isnan(dx).all(axis=1), [False, True, False])
    assert math.isnan(ops.sum_squares(x.reshape(-1)))
    assert np.isnan(ops.gaussian_log_density(x)[1])
    p, m, v = (np.zeros(15, dtype) for _ in range(3))
    squares = ops.adam(p, x.reshape(-1), m, v, 1e-3, 0.9, 0.999, 1e-8, 1, 1.0)
    assert math.isnan(squares)
    np.testing.assert_array_equal(np.isnan(p), np.isnan(x.reshape(-1)))


@pytest.mark.parametrize("value", [0, 255])
@pytest.mark.parametrize("dtype", FLOATS)
def test_preprocess_is_finite_at_the_ends(ops, value, dtype):
    images = np.full((64, 784), value, np.uint8)
    x, ldj = ops.preprocess(images, RandomKey(0, 0), 1e-6, 256, dtype)
    assert x.dtype == ldj.dtype == dtype
    assert np.isfinite(x).all()
    assert np.isfinite(ldj).all()
    bound = math.log((1 - 1e-6) / 1e-6) * (1 + 1e-6)
    assert np.abs(x).max() <= bound


def test_preprocess_survives_a_draw_next_to_one(monkeypatch):
    """255 + u rounds to 256 in single precision; in double precision nothing is lost."""
    nearly_one = np.array([[1 - 2.0**-32]])
    monkeypatch.setattr(philox, "uniform", lambda xp, key, shape: nearly_one)
    images = np.array([[255]], np.uint8)
    x, ldj = NumpyOps().preprocess(images, RandomKey(0, 0), 1e-6, 256, np.float32)
    one_minus_s = 1e-6 + (1 - 2e-6) * 2.0**-32 / 256
    np.testing.assert_allclose(x[0, 0], math.log((1 - one_minus_s) / one_minus_s), rtol=2**-23)
    assert np.isfinite(ldj).all()


# ---------------------------------------------------------------- choosing a backend


def test_backends_by_name():
    assert {get_ops(name).name for name in ("numpy", "numba")} == {"numpy", "numba"}
    assert get_ops().name == "numba"


def test_an_unknown_backend_is_a_usage_error():
    with pytest.raises(UsageError) as caught:
        get_ops("tpu")
    message = str(caught.value)
    assert "'tpu'" in message
    assert all(name in message for name in BACKENDS)
    assert "\n" not in message


def test_cupy_without_cupy_says_what_is_missing_in_one_line(monkeypatch):
    real_import = builtins.__import__

    def without_cupy(name, *args, **kwargs):
        if name.split(".")[0] == "cupy":
            raise ModuleNotFoundError("No module named 'cupy'")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_cupy)
    with pytest.raises(BackendError) as caught:
        get_ops("cupy")
    message = str(caught.value)
    assert "pip install cupy" in message
    assert "--backend numba" in message
    assert "\n" not in message
    assert caught.value.exit_status == 2


def test_a_multiple_made_on_the_host_goes_over_to_the_device():
    """The m of a convolution depends on shapes alone and is a host array."""

    class Device(NumpyOps):
        moved = ()

        def asarray(self, host, dtype=None):
            self.moved += (host,)
            return super().asarray(host, dtype)

    ops, multiple = Device(), np.full((3, 3, 1, 1), 2.0)
    w = np.ones((3, 3, 2, 2), np.float32)
    out = ops.scale_into(np.empty_like(w), 0.5, w, multiple)
    assert ops.moved[0] is multiple and (out == 1).all() and out.dtype == np.float32
