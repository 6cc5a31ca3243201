"""CPU kernels, compiled by Numba: the hot operations of `numpy_ops`, each pass fused.

Every kernel is deterministic: partial sums belong to a fixed block or sample, never to a thread.
No `fastmath`: isnan must work. Work is split over samples or blocks with `prange`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit, prange

from snfnp.ops.philox import MULTIPLIER_0, MULTIPLIER_1, ROUNDS, WEYL_0, WEYL_1

parallel = njit(parallel=True, cache=True, error_model="numpy")
serial = njit(cache=True, error_model="numpy", inline="always")

_MASK, _32 = np.uint64(0xFFFFFFFF), np.uint64(32)
_M0, _M1 = np.uint64(MULTIPLIER_0), np.uint64(MULTIPLIER_1)
_W0, _W1 = np.uint64(WEYL_0), np.uint64(WEYL_1)
_TO_UNIT = 2.0**-32
_GROUP = 8  # factors multiplied in double precision before one logarithm is taken
_LANES = 16  # independent partial sums, so that the compiler can use vector registers
_BLOCK = 16384  # elements of the flat buffers that one task takes: 64 KB, inside the second cache
_TILE = 32  # side of the tiles of a transposed copy


# ---------------------------------------------------------------- random numbers


@serial
def _philox(block, key):
    """Four words of one block; key = (step low, step high, stream, seed low, seed high), uint64."""
    c0, c1, c2, c3 = np.uint64(block), key[0], key[1], key[2]
    k0, k1 = key[3], key[4]
    for _ in range(ROUNDS):
        product_0, product_1 = c0 * _M0, c2 * _M1
        c0 = (product_1 >> _32) ^ c1 ^ k0
        c1 = product_1 & _MASK
        c2 = (product_0 >> _32) ^ c3 ^ k1
        c3 = product_0 & _MASK
        k0 = (k0 + _W0) & _MASK
        k1 = (k1 + _W1) & _MASK
    return c0, c1, c2, c3


@serial
def _lane(four, index):
    lane = index & 3
    if lane < 2:
        return four[0] if lane == 0 else four[1]
    return four[2] if lane == 2 else four[3]


@parallel
def uniform(key, drop, scale, out):
    """out (count,) = (word >> drop) * scale."""
    blocks = (out.size + 3) // 4
    for block in prange(blocks):
        four = _philox(block, key)
        for index in range(4 * block, min(4 * block + 4, out.size)):
            out[index] = np.float64(_lane(four, index) >> drop) * scale


@parallel
def normal(key, out):
    """out (count,): Box-Muller on words (0, 1) and (2, 3) of each block."""
    blocks = (out.size + 3) // 4
    for block in prange(blocks):
        four = _philox(block, key)
        for index in range(4 * block, min(4 * block + 4, out.size), 2):
            first, second = _lane(four, index), _lane(four, index + 1)
            radius = math.sqrt(-2.0 * math.log((np.float64(first) + 1.0) * _TO_UNIT))
            angle = 2.0 * math.pi * (np.float64(second) * _TO_UNIT)
            out[index] = radius * math.cos(angle)
            if index + 1 < out.size:
                out[index + 1] = radius * math.sin(angle)


# ---------------------------------------------------------------- preprocessing


@parallel
def preprocess(images, key, alpha, levels, odds, ldj):
    """images, odds (N, D), ldj (N,): dequantise and scale in one pass, in double precision.

    odds = s/(1-s), whose logarithm is the logit: the caller takes it with NumPy, whose vector
    instructions are several times faster than a scalar logarithm here. log s + log(1-s) of _GROUP
    pixels takes one logarithm: each factor s(1-s) is at least about α, so a product of eight stays
    far from underflow.
    """
    samples, dimension = images.shape
    constant = dimension * (math.log1p(-2 * alpha) - math.log(levels))
    for n in prange(samples):
        four = _philox((n * dimension) // 4, key)
        total, product = 0.0, 1.0
        for d in range(dimension):
            index = n * dimension + d
            if index & 3 == 0:
                four = _philox(index // 4, key)
            noisy = images[n, d] + np.float64(_lane(four, index)) * _TO_UNIT
            s = alpha + (1 - 2 * alpha) * (noisy / levels)
            one_minus_s = alpha + (1 - 2 * alpha) * ((levels - noisy) / levels)
            odds[n, d] = s / one_minus_s
            product *= s * one_minus_s
            if d % _GROUP == _GROUP - 1:
                total += math.log(product)
                product = 1.0
        ldj[n] = constant - total - math.log(product)


# ---------------------------------------------------------------- smooth leaky ReLU


@parallel
def smooth_leaky_relu(x, e, log_1_e, alpha, y, ldj, sigma):
    """x, y, sigma (N, D), ldj (N,); e = exp(-|x|) and log_1_e = log(1 + e) are NumPy's, whose
    vector instructions are several times faster than scalar functions here.

    The slopes of _GROUP values share one logarithm: each is in [α, 1], so their product in double
    precision neither underflows nor loses digits.
    """
    one = x.dtype.type(1)
    zero = one - one
    for n in prange(x.shape[0]):
        xn, en, log_n, yn, sn = x[n], e[n], log_1_e[n], y[n], sigma[n]
        for d in range(xn.size):
            inverse = one / (one + en[d])
            sn[d] = inverse if xn[d] >= 0 else en[d] * inverse
            yn[d] = alpha * xn[d] + (one - alpha) * (max(xn[d], zero) + log_n[d])
        total = 0.0
        for start in range(0, sn.size, _GROUP):
            product = 1.0
            for s in sn[start : start + _GROUP]:
                product *= alpha + (one - alpha) * s
            total += math.log(product)
        ldj[n] = total


@parallel
def smooth_leaky_relu_inverse(y, alpha, eps, x):
    """Bracketed Newton per element of y, x (count,); see the definition for the bracket."""
    one = y.dtype.type(1)
    zero = one - one
    gap = (one - alpha) * y.dtype.type(math.log(2.0))
    two = one + one
    for i in prange(y.size):
        target = y[i]
        left = min(target - gap, (target - gap) / alpha)
        root = min(target, target / alpha)
        tolerance = two * eps * (abs(target) + one)
        while True:
            e = math.exp(-abs(root))
            s = (one if root >= 0 else e) / (one + e)
            softplus = max(root, zero) + math.log1p(e)
            residual = alpha * root + (one - alpha) * softplus - target
            if not residual > tolerance:  # also where it is NaN
                break
            lower = max(root - residual / (alpha + (one - alpha) * s), left)
            if not lower < root:  # rounding stopped the fall
                break
            root = lower
        x[i] = root if not math.isnan(target) else target


@parallel
def smooth_leaky_relu_backward(sigma, dy, dldj, alpha, dx):
    """sigma, dy, dx (N, D), dldj (N,)."""
    one = sigma.dtype.type(1)
    for n in prange(sigma.shape[0]):
        volume = dldj[n] * (one - alpha)
        for d in range(sigma.shape[1]):
            s = sigma[n, d]
            slope = alpha + (one - alpha) * s
            dx[n, d] = dy[n, d] * slope + volume * s * (one - s) / slope


# ---------------------------------------------------------------- parameters


@parallel
def blend(out, a, x, b):
    """out (count,) = a · out + b · x."""
    tasks = (out.size + _BLOCK - 1) // _BLOCK
    for task in prange(tasks):
        target, source = out[task * _BLOCK :][:_BLOCK], x[task * _BLOCK :][:_BLOCK]
        for i in range(target.size):
            target[i] = a * target[i] + b * source[i]


@parallel
def scaled_transpose(a, scale, out):
    """out = scale · aᵀ, a (K, M), out (M, K), through square tiles in the first cache: reading
    columns of a straight into rows of out took twice as long."""
    rows, columns = out.shape
    for strip in prange((columns + _TILE - 1) // _TILE):
        first = strip * _TILE
        tile = np.empty((_TILE, _TILE), a.dtype)
        for start in range(0, rows, _TILE):
            if start + _TILE <= rows and first + _TILE <= columns:  # constant bounds: vectorised
                for j in range(_TILE):
                    for i in range(_TILE):
                        tile[i, j] = a[first + j, start + i]
                for i in range(_TILE):
                    for j in range(_TILE):
                        out[start + i, first + j] = scale * tile[i, j]
            else:
                for i in range(start, min(rows, start + _TILE)):
                    for j in range(first, min(columns, first + _TILE)):
                        out[i, j] = scale * a[j, i]


@parallel
def adam(p, g, m, v, step_size, beta1, rest1, beta2, rest2, eps, second_correction, scale):
    """One pass over the flat buffers; returns Σ g² (summed by blocks, so it is reproducible).

    rest1, rest2: 1 - β1, 1 - β2. Rounding 0.999 to single precision first would put an error of
    1e-5 into the difference. The blocks are slices that count from 0: an index that could be
    negative keeps the compiler from vector instructions, at five times the time.
    """
    blocks = (p.size + _BLOCK - 1) // _BLOCK
    squares = np.zeros(blocks)
    for block in prange(blocks):
        first, last = block * _BLOCK, min(p.size, (block + 1) * _BLOCK)
        pb, gb, mb, vb = p[first:last], g[first:last], m[first:last], v[first:last]
        for i in range(pb.size):
            gradient = gb[i] * scale
            mi = beta1 * mb[i] + rest1 * gradient
            vi = beta2 * vb[i] + rest2 * gradient * gradient
            mb[i] = mi
            vb[i] = vi
            pb[i] += step_size * mi / (np.sqrt(vi * second_correction) + eps)
        squares[block] = _sum_squares(gb)
    return squares.sum()


@parallel
def sum_squares(g):
    """Σ g² over the flat buffer."""
    blocks = (g.size + _BLOCK - 1) // _BLOCK
    squares = np.zeros(blocks)
    for block in prange(blocks):
        squares[block] = _sum_squares(g[block * _BLOCK : min(g.size, (block + 1) * _BLOCK)])
    return squares.sum()


@serial
def sum_few_squares(g):
    """The same on one thread: waking the others between two products takes longer than this."""
    total = 0.0
    for start in range(0, g.size, _BLOCK):
        total += _sum_squares(g[start : min(g.size, start + _BLOCK)])
    return total


@serial
def _sum_squares(g):
    """Σ g² in _LANES partial sums of g's precision, added up in double."""
    lanes = np.zeros(_LANES, g.dtype)
    for start in range(g.size // _LANES):
        part = g[start * _LANES : (start + 1) * _LANES]
        for lane in range(_LANES):
            lanes[lane] += part[lane] * part[lane]
    total = 0.0
    for lane in range(_LANES):
        total += lanes[lane]
    for value in g[g.size // _LANES * _LANES :]:
        total += np.float64(value) * value
    return total
