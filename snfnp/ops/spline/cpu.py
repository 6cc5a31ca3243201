"""The rational-quadratic spline on the CPU: one fused pass each way, vectorised over pixels.

A task takes LANES neighbouring pixels and loops over some of the samples; its knots (or, backwards,
its sums) stay in the first-level cache and belong to it alone. Tasks of the same samples follow
each other: a core then finds in its cache what it computed in the layer before. No branch finds the
bin: an inner knot that a value has passed selects the next one. See derivations/09-splines.md.
"""

import math

import numpy as np

from snfnp.ops.jit import compiled, parallel, serial
from snfnp.ops.spline.cpu_rows import LANES, backward_row, forward_row, inverse_row, select
from snfnp.ops.spline.definition import Spline, slope_shift

_FACTORS = 16  # slopes multiplied in double precision before one logarithm is taken
_SAMPLES = 50  # per task
_CHAINS = LANES // _FACTORS


class CpuSpline(Spline):
    def knots(self, widths, heights, slopes, bound, eps):
        shape, bins = widths.shape[:-1], widths.shape[-1]
        pixels, dtype = math.prod(shape), widths.dtype.type
        knots = np.empty((3 * bins + 3, pixels), dtype)
        factors = np.empty((3 * bins - 1, pixels), dtype)
        raw = (np.ascontiguousarray(a).reshape(pixels, -1) for a in (widths, heights, slopes))
        # NumPy's vector instructions are several times faster than scalar functions here: one
        # kernel leaves their arguments where another finds the results
        _exponents(*raw, dtype(slope_shift(eps)), knots, factors)
        np.exp(factors, out=factors)
        np.log1p(factors[2 * bins :], out=knots[1:bins])
        _knots(bins, *map(dtype, (bound, eps, 1 - eps * bins)), knots, factors)
        return knots.reshape(3, bins + 1, *shape), factors.reshape(-1, *shape)

    def evaluate(self, x, knots):
        tasks, *arguments = _arguments(x, knots)
        y = np.empty(x.shape, x.dtype)
        partial = np.empty((tasks[1], len(x)))
        _forward(tasks[0] * tasks[1], *arguments, y.reshape(len(x), -1), partial)
        return y, partial.sum(axis=0).astype(x.dtype, copy=False)

    def inverse(self, y, knots):
        tasks, *arguments = _arguments(y, knots)
        x = np.empty(y.shape, y.dtype)
        _inverse(tasks[0] * tasks[1], *arguments, x.reshape(len(y), -1))
        return x

    def backward(self, x, knots, factors, bound, eps, dy, dldj, out):
        tasks, rows, table, bins = _arguments(x, knots)
        dx = np.empty_like(rows)
        scale = x.dtype.type(2 * bound * (1 - eps * len(bins)))
        grads = (g.reshape(rows.shape[1], -1) for g in out)
        dy = np.ascontiguousarray(dy).reshape(rows.shape)
        sums = np.zeros((*tasks, 3 * (len(bins) - 1) * LANES), x.dtype)
        of_tasks = sums.reshape(tasks[0] * tasks[1], -1)
        _backward(len(of_tasks), rows, table, bins, dy, dldj, dx, of_tasks)
        _raw_gradients(sums, bins, factors.reshape(len(factors), -1), scale, *grads)
        return dx.reshape(x.shape)


def _arguments(x, knots):
    """The tasks (parts of the samples, blocks of pixels), x as rows (N, P), the knots as rows
    (3(K+1), P), and K as a tuple."""
    bins, pixels = knots.shape[1] - 1, math.prod(x.shape[1:])
    tasks = -(-len(x) // _SAMPLES), -(-pixels // LANES)
    rows = np.ascontiguousarray(x).reshape(len(x), pixels)
    return tasks, rows, np.ascontiguousarray(knots).reshape(3 * bins + 3, -1), (1,) * bins


@serial
def _take(raw, poison, values):
    """values ← raw, a parameter of all pixels; poison: 0, NaN if one of a pixel is not finite."""
    for i in range(values.size):
        value = raw[i]
        values[i] = value
        poison[i] += value - value


@compiled
def _exponents(widths, heights, slopes, shift, knots, factors):
    """Raw (P, K), (P, K), (P, K-1), c₀ -> the logarithms of what is to be in factors (3K-1, P), up
    to their sum or 1 + e, and raw slopes + c₀ where their knots will be. On one thread, like
    `_knots`: the work does not grow with the batch."""
    pixels, bins = widths.shape
    poison = np.zeros(pixels, knots.dtype)
    for k in range(bins):
        _take(widths[:, k], poison, factors[k])
        _take(heights[:, k], poison, factors[bins + k])
        if k > 0:
            _take(slopes[:, k - 1], poison, knots[2 * (bins + 1) + k])
    for axis in range(2):
        largest = factors[axis * bins].copy()
        for k in range(1, bins):
            values = factors[axis * bins + k]
            for i in range(pixels):
                largest[i] = max(largest[i], values[i])
        for k in range(bins):
            values = factors[axis * bins + k]
            for i in range(pixels):
                values[i] += poison[i] - largest[i]
    for k in range(1, bins):
        values, exponents = knots[2 * (bins + 1) + k], factors[2 * bins + k - 1]
        for i in range(pixels):
            raw = values[i] + poison[i] + shift
            values[i] = raw
            exponents[i] = -abs(raw)


@compiled
def _knots(bins, bound, eps, rest, knots, factors):
    """The arrays of `_exponents`, with factors replaced by their exponentials and log(1 + e) of the
    slopes in rows 1 to K-1 of knots -> knots (3(K+1), P), factors (3K-1, P)."""
    pixels = knots.shape[1]
    one = knots.dtype.type(1)
    zero = one - one
    row = 2 * (bins + 1)
    for i in range(pixels):
        knots[row, i] = one
        knots[row + bins, i] = one
    for k in range(1, bins):
        values, log_1_e, slopes = knots[row + k], knots[k], factors[2 * bins + k - 1]
        for i in range(pixels):
            raw, e = values[i], slopes[i]
            inverse = one / (one + e)
            values[i] = eps + max(raw, zero) + log_1_e[i]
            slopes[i] = select(raw >= zero, inverse, e * inverse)
    whole, position = np.empty(pixels, knots.dtype), np.empty(pixels, knots.dtype)
    for axis in range(2):
        for i in range(pixels):
            whole[i] = zero
        for k in range(bins):
            values = factors[axis * bins + k]
            for i in range(pixels):
                whole[i] += values[i]
        for i in range(pixels):
            position[i] = whole[i] - whole[i] - bound  # NaN where the pixel is to be
        for k in range(bins):
            shares, edges = factors[axis * bins + k], knots[axis * (bins + 1) + k]
            for i in range(pixels):
                shares[i] /= whole[i]
                edges[i] = position[i]
                position[i] += (bound + bound) * (eps + rest * shares[i])
        edges = knots[axis * (bins + 1) + bins]
        for i in range(pixels):
            edges[i] = whole[i] - whole[i] + bound


@serial
def _begin(task, knots, samples):
    """The samples (from, to) and the pixels (from, to) of a task, and a table of its knots."""
    pixels, blocks = knots.shape[1], (knots.shape[1] + LANES - 1) // LANES
    part, block = task // blocks, task % blocks
    first, last = block * LANES, min((block + 1) * LANES, pixels)
    table = np.empty(len(knots) * LANES, knots.dtype)
    for row in range(len(knots)):
        values = knots[row, first:last]
        for lane in range(len(values)):
            table[np.uintp(row * LANES + lane)] = values[lane]
    return part * _SAMPLES, min(samples, (part + 1) * _SAMPLES), first, last, table


@parallel
def _forward(task, x, knots, bins, y, ldj):
    """x, y (N, P), ldj (blocks, N). With ε = 1e-3 and d the larger of 1000 and a pixel's slopes,
    dy/dx is between 1e-9/d² and 4d, so a product of _FACTORS stays in the range of double precision
    up to d = 1e4; beyond, should it leave it, ldj is infinite."""
    start, end, first, last, table = _begin(task, knots, len(x))
    slopes = np.ones(LANES, x.dtype)
    for n in range(start, end):
        forward_row(x[n, first:last], table, bins, y[n, first:last], slopes)
        logarithm = 0.0
        for chain in range(_CHAINS):
            product = 1.0
            for factor in range(_FACTORS):
                product *= np.float64(slopes[factor * _CHAINS + chain])
            logarithm += math.log(product)
        ldj[first // LANES, n] = logarithm


@parallel
def _inverse(task, y, knots, bins, x):
    """y, x (N, P)."""
    start, end, first, last, table = _begin(task, knots, len(y))
    for n in range(start, end):
        inverse_row(y[n, first:last], table, bins, x[n, first:last])


@parallel
def _backward(task, x, knots, bins, dy, dldj, dx, sums):
    """x, dy, dx (N, P), dldj (N,); sums (tasks, 3(K-1) LANES), zeros: the inner knots' gradients,
    summed over a task's samples."""
    start, end, first, last, table = _begin(task, knots, len(x))
    for n in range(start, end):
        deltas, target = dy[n, first:last], dx[n, first:last]
        backward_row(x[n, first:last], table, bins, deltas, dldj[n], target, sums[task])


@compiled
def _raw_gradients(sums, bins, factors, scale, g_widths, g_heights, g_slopes):
    """The sums of `_backward` (parts, blocks, 3(K-1) LANES), factors (3K-1, P) -> raw gradients
    (P, K), (P, K), (P, K-1) summed over all samples, a knot of all pixels after another."""
    pixels, inner = len(g_slopes), len(bins) - 1
    knots = np.zeros((3 * inner, sums.shape[1] * LANES), sums.dtype)
    for block in range(sums.shape[1]):
        for row in range(3 * inner):
            target = knots[row, block * LANES : (block + 1) * LANES]
            for part in range(len(sums)):
                source = sums[part, block, row * LANES : (row + 1) * LANES]
                for i in range(LANES):
                    target[i] += source[i]
    _raw_sizes(knots[:inner], factors[: inner + 1], scale, g_widths)
    _raw_sizes(knots[inner : 2 * inner], factors[inner + 1 : 2 * inner + 2], scale, g_heights)
    for k in range(inner):
        g, slopes, shares = g_slopes[:, k], knots[2 * inner + k], factors[2 * inner + 2 + k]
        for i in range(pixels):
            g[i] = slopes[i] * shares[i]


@serial
def _raw_sizes(knots, shares, scale, out):
    """out (P, K) = scale · p ⊙ (c - ⟨c, p⟩), p the softmax, c_j = Σ_{k > j} of the knots':
    knots (K-1, P), shares (K, P)."""
    pixels, bins = out.shape
    following, mean = np.zeros((bins, pixels), knots.dtype), np.zeros(pixels, knots.dtype)
    for k in range(bins - 1, -1, -1):
        c, p = following[k], shares[k]
        if k < bins - 1:
            after, knot = following[k + 1], knots[k]
            for i in range(pixels):
                c[i] = after[i] + knot[i]
        for i in range(pixels):
            mean[i] += c[i] * p[i]
    for k in range(bins):
        g, c, p = out[:, k], following[k], shares[k]
        for i in range(pixels):
            g[i] = scale * p[i] * (c[i] - mean[i])
