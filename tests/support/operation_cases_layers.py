"""Cases of what layers ask for: see `operation_cases.py`."""

import math

import numpy as np

from snfnp.ops import RandomKey
from support.operation_calls import DEFINITION, SIZES, Call, convolution_shapes, eps_of

ALPHA = 0.3


def call_channels_gaussian_log_density(draw):
    z = 3 * draw.normal(draw.size)
    dimension = math.prod(draw.size[1:])
    rows = z.reshape(len(z), dimension)
    bound = (dimension + 4) * draw.eps * ((rows * rows).sum(axis=1) / 2 + dimension)
    return Call((z,), bounds=bound, strided=0)


def call_channels_total(draw):
    """One array, several, and more than one launch adds."""
    terms = tuple(draw.normal(draw.size[0]) for _ in range(draw.size[-1] % 12 + 1))
    bound = len(terms) * draw.eps * sum(map(np.abs, terms))
    return Call((terms,), bounds=bound, strided=0)


def call_channels_is_finite(draw):
    """Large numbers are finite, and one that is not is found in any place."""
    x = (draw.rng.standard_normal(draw.size) * (np.finfo(draw.dtype).max / 10)).astype(
        draw.dtype
    )
    if draw.size[0] % 2:
        x.reshape(-1)[draw.rng.integers(x.size) if x.size else slice(0)] = (
            draw.rng.choice([np.inf, np.nan])
        )
    return Call((x,), bounds=0, strided=0)


def channels_of(size):
    """(N, ..., C). Instead of a long row, pixels of 40 channels: two tiles of them on a GPU, and
    more blocks share the rows of each than a block has lanes."""
    return (size[0], 900, 40) if len(size) == 2 and size[1] > 1000 else size


def channel_arrays(draw):
    """x and a delta (N, ..., C), t and s (C,), ldj's delta (N,); the numbers of rows and pixels."""
    shape = channels_of(draw.size)
    x, delta = (draw.normal(shape) for _ in range(2))
    t, s = (draw.normal(shape[-1]) for _ in range(2))
    dldj = draw.normal(shape[0])
    return x, delta, t, s, dldj, math.prod(shape[:-1]), math.prod(shape[1:-1])


def over_rows(array):
    return array.reshape(-1, array.shape[-1]).sum(axis=0)


def call_channels_sum(draw):
    x, *_, rows, _ = channel_arrays(draw)
    bound = rows * draw.eps * over_rows(np.abs(x))
    if len(draw.size) == 2:
        return Call((x,), bounds=bound, strided=0)
    out = np.full(x.shape[-1], np.nan, draw.dtype)
    return Call((x, out), bounds=(bound, bound), mutated=1, strided=0)


def call_channels_squeeze(draw):
    n, height, width, channels = convolution_shapes(draw)[0]
    x = draw.normal((n, 2 * height, 2 * width, channels))
    return Call((x,), bounds=0, strided=0)


def call_channels_unsqueeze(draw):
    n, height, width, channels = convolution_shapes(draw)[0]
    z = draw.normal((n, height, width, 4 * channels))
    return Call((z,), bounds=0, strided=0)


def call_channels_shift(draw):
    x = channel_arrays(draw)[0]
    b = draw.normal(x.shape[1:])
    return Call((x, b), bounds=0, strided=(0, 1))


# A difference or sum, e^s (its argument s is exact) to 2 ulp, a product, and one more sum.
SCALE_ROUNDINGS = 8


def shift_and_scale(size, s):
    """sign, factor and the roundings of a result: of actnorm, and of a coupling's network, where
    the exponent is rounded."""
    sign, factor = (-1.0, -1.0) if size[-1] % 2 else (1.0, 3.0)
    return sign, factor, SCALE_ROUNDINGS + (np.abs(factor * s) if factor > 0 else 0)


def call_channels_shift_scale(draw):
    x, out, b, s, _, _, pixels = channel_arrays(draw)
    sign, factor, roundings = shift_and_scale(draw.size, s)
    eps, given = draw.eps, factor > 0  # an array to write to
    bound = roundings * eps * np.abs(x + sign * b) * np.exp(factor * s)
    bound_ldj = (s.size + 4) * eps * pixels * np.abs(factor * s).sum()
    args = (x, sign, b, factor, s, np.full_like(out, np.nan) if given else None)
    bounds = (bound, bound_ldj, bound) if given else (bound, bound_ldj)
    return Call(args, bounds, mutated=5 if given else (), strided=(0, 2, 4))


def call_channels_scale_shift(draw):
    z, _, t, s, *_ = channel_arrays(draw)
    bound = SCALE_ROUNDINGS * draw.eps * (np.abs(z) * np.exp(s) + np.abs(t))
    return Call((z, s, t), bounds=bound, strided=(0, 1, 2))


def call_channels_shift_scale_backward(draw):
    y, dy, _, s, dldj, rows, pixels = channel_arrays(draw)
    sign, factor, roundings = shift_and_scale(draw.size, s)
    eps = draw.eps
    out = tuple(np.full(s.shape, np.nan, draw.dtype) for _ in range(2))
    dldj = None if factor > 0 else dldj
    through = np.abs(dy) * np.exp(factor * s)
    volume, summed = (
        (0, rows) if dldj is None else (pixels * np.abs(dldj).sum(), rows + len(y))
    )
    bound_b = (rows + roundings) * eps * over_rows(through)
    bound_s = (summed + 4) * eps * abs(factor) * (over_rows(np.abs(dy * y)) + volume)
    args = (dy, y, sign, factor, s, dldj, out)
    strided = (0, 1, 4) if dldj is None else (0, 1, 4, 5)
    return Call(
        args,
        (roundings * eps * through, bound_b, bound_s),
        mutated=6,
        strided=strided,
    )


def leaky_values(draw):
    """Both signs, and sizes from 1e-3 to 1e2."""
    values = draw.rng.standard_normal(draw.size)
    values *= 10.0 ** draw.rng.uniform(-3, 2, draw.size)
    return values.astype(draw.dtype)


def call_activation_smooth_leaky_relu(draw):
    x = leaky_values(draw)
    dimension = math.prod(draw.size[1:])
    eps = draw.eps
    bound_y = 8 * eps * (np.abs(x) + math.log(2))
    # each log f' lies in [log α, 0] and its argument in [α, 1] has a few roundings
    bound_ldj = (8 + dimension) * eps * dimension * (1 - math.log(ALPHA))
    return Call((x, ALPHA), bounds=(bound_y, bound_ldj, 8 * eps), strided=0)


def call_activation_smooth_leaky_relu_inverse(draw):
    y = leaky_values(draw)
    # both stop at a residual of 2 eps (|y| + 1), evaluated to about twice that; f' >= α
    bound = 2 * (2 + 4) * draw.eps * (np.abs(y) + 1) / ALPHA
    return Call((y, ALPHA), bounds=bound, strided=0)


def call_activation_smooth_leaky_relu_backward(draw):
    size = draw.size
    sigma = draw.rng.uniform(0, 1, size).astype(draw.dtype)
    dy = draw.normal(size)
    dldj = draw.normal(size[0])
    column = np.abs(dldj).reshape(-1, *[1] * (len(size) - 1))
    bound = 8 * draw.eps * (np.abs(dy) + column * (1 - ALPHA) / (4 * ALPHA))
    return Call((sigma, dy, dldj, ALPHA), bounds=bound, strided=(0, 1))


def call_images_preprocess(draw):
    size = draw.size
    images = draw.rng.integers(0, 256, size).astype(np.uint8)
    images.reshape(-1)[:1], images.reshape(-1)[-1:] = 0, 255
    # |log s| and |log(1-s)| <= log(1/α) < 14, their arguments a few roundings of themselves
    eps = draw.eps
    dimension = math.prod(size[1:])
    bound_x = eps * (2 * 14 + 8)
    bound_ldj = (dimension * eps_of(np.float64) + 16 * eps + eps) * dimension * 28
    args = (images, RandomKey(1, 0, 9, first=size[0] % 4), 1e-6, 256, draw.dtype)
    return Call(args, bounds=(bound_x, bound_ldj), strided=0)


def hidden_rows(draw):
    """Two arrays (M, F)."""
    shape = channels_of(draw.size)
    shape = (math.prod(shape[:-1]), shape[-1])
    return [draw.normal(shape) for _ in range(2)]


def call_coupling_bias_relu(draw):
    out, _ = hidden_rows(draw)
    b = draw.normal(out.shape[1])
    return Call((out, b), bounds=(0, 0), mutated=0, strided=1)


def call_coupling_bias_relu_backward(draw):
    out, a = hidden_rows(draw)
    a = np.maximum(a, 0)
    bound = 2 * len(out) * draw.eps * np.abs(out).sum(axis=0)
    if draw.size[0] % 2:  # added to what is there
        g_b = draw.normal(out.shape[1])
        bound += 2 * draw.eps * np.abs(g_b)
        return Call((out, a, g_b, True), bounds=(0, bound), mutated=(0, 2), strided=1)
    g_b = np.full(out.shape[1], np.nan, draw.dtype)
    return Call((out, a, g_b), bounds=(0, bound), mutated=(0, 2), strided=1)


def coupling_arrays(draw):
    """x, h and dz (N, H, W, C) of even C; ldj's delta (N,); eˢ and x₂ of the definition."""
    n, height, width, channels = convolution_shapes(draw)[0]
    shape = (n, height, width, 2 * channels)
    x, h, dz = (2 * draw.normal(shape) for _ in range(3))
    dldj = draw.normal(n)
    return x, h, dz, dldj, np.exp(2 * np.tanh(h[..., ::2] / 2)), x[..., channels:]


# |s| < 2, so s is off by a few eps, and eˢ by a few eps of itself.
COUPLING_ROUNDINGS = 16


def call_coupling_forward(draw):
    x, h, _, _, e, x2 = coupling_arrays(draw)
    eps = COUPLING_ROUNDINGS * draw.eps
    bound_z = np.concatenate(
        [0 * x2, eps * (np.abs(x2) * e + np.abs(h[..., 1::2]))], axis=-1
    )
    dimension = math.prod(x2.shape[1:])
    bound_ldj = (2 + dimension) * draw.eps * 2 * dimension
    return Call((x, h), bounds=(bound_z, bound_ldj, eps), strided=(0, 1))


def call_coupling_inverse(draw):
    z, h, _, _, e, z2 = coupling_arrays(draw)
    bound = COUPLING_ROUNDINGS * draw.eps * (np.abs(z2) + np.abs(h[..., 1::2])) / e
    return Call((z, h), bounds=np.concatenate([0 * z2, bound], axis=-1), strided=(0, 1))


def call_coupling_backward(draw):
    x, h, dz, dldj, e, x2 = coupling_arrays(draw)
    s = np.log(e)
    half = x2.shape[-1]
    eps = COUPLING_ROUNDINGS * draw.eps
    bound_2 = eps * np.abs(dz[..., half:]) * e
    bound_dx = np.concatenate([0 * bound_2, bound_2], axis=-1)
    bound_dh = np.zeros_like(bound_dx)
    bound_dh[..., ::2] = bound_2 * np.abs(x2) + eps * np.abs(dldj[:, None, None, None])
    return Call((x, s, dz, dldj), bounds=(bound_dx, bound_dh), strided=(0, 1, 2, 3))


SPLINE = (10.0, 1e-3)  # bound and eps
LONG = 1031  # of more pixels, a thread that is simulated takes long


def spline_parameters(draw):
    """Of as many bins as the models' splines have, 5 or 8, or of any number."""
    size = draw.size
    bins = (
        5 if size in SIZES else 8 if size[-1] == LONG else int(draw.rng.integers(2, 9))
    )
    sizes = (bins, bins, bins - 1)
    return [
        (0.3 * draw.rng.standard_normal((*size[1:], n))).astype(draw.dtype)
        for n in sizes
    ]


def call_spline_knots(draw):
    raw = spline_parameters(draw)
    eps = draw.eps
    bound = SPLINE[0]
    # a position is a sum of up to eight shares of 2 B, each exact to a dozen roundings; the
    # first and the last knot are what they are
    bound_knots = np.full(
        (raw[0].shape[-1] + 1, *[1] * (len(draw.size) - 1)), 20 * eps * 2 * bound
    )
    bound_knots[[0, -1]] = 0
    return Call((*raw, *SPLINE), bounds=(bound_knots, 12 * eps), strided=(0, 1, 2))


def spline_call(draw):
    """x over all bins and both tails, knots and factors; mean slopes are between 1/6 and 6."""
    knots, factors = DEFINITION.spline.knots(*spline_parameters(draw), *SPLINE)
    x = draw.rng.uniform(-1.2 * SPLINE[0], 1.2 * SPLINE[0], draw.size).astype(
        draw.dtype
    )
    return x, knots, factors


# t = (x - X)/w with w > 1 carries an error of a few eps · B; slopes and derivatives of their
# logarithms, all below about 6, carry it on.
SPLINE_ROUNDINGS = 6 * 6 * 10


def call_spline_evaluate(draw):
    x, knots, _ = spline_call(draw)
    bound = SPLINE_ROUNDINGS * draw.eps
    dimension = math.prod(draw.size[1:])
    bound_ldj = dimension * (bound + dimension * draw.eps)
    return Call((x, knots), bounds=(bound, bound_ldj), strided=0)


def call_spline_inverse(draw):
    x, knots, _ = spline_call(draw)
    return Call((x, knots), bounds=SPLINE_ROUNDINGS * draw.eps, strided=0)


def call_spline_backward(draw):
    if math.prod(draw.size[1:]) > LONG:
        draw.size = (draw.size[0], LONG)
    size = draw.size
    x, knots, factors = spline_call(draw)
    bins = knots.shape[1] - 1
    dy = draw.normal(size)
    dldj = draw.normal(size[0])
    out = tuple(
        np.full((*size[1:], n), np.nan, draw.dtype) for n in (bins, bins, bins - 1)
    )
    each = (
        SPLINE_ROUNDINGS
        * draw.eps
        * (np.abs(dy).max(initial=0) + np.abs(dldj).max(initial=0))
    )
    total = size[0] * 2 * SPLINE[0] * each  # a raw width is a share of 2 B
    scale = 2 * SPLINE[0] * (1 - SPLINE[1] * bins)
    args = (x, knots, factors, scale, dy, dldj, out)
    return Call(args, bounds=(each, total, total, total), mutated=6, strided=(0, 4))
