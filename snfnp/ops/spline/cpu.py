"""The rational-quadratic spline on the CPU: one fused pass each way, vectorised over pixels.

A task takes LANES neighbouring pixels and loops over some of the samples; its knots (or, backwards,
its sums) stay in the first-level cache and belong to it alone. Tasks of the same samples follow
each other: a core then finds in its cache what it computed in the layer before. No branch finds the
bin: an inner knot that a value has passed selects the next one. See derivations/09-splines.md.
"""

import math

import numpy as np
from numba import prange

from snfnp.ops.jit import parallel, serial
from snfnp.ops.spline.cpu_rows import LANES, at, backward_row, forward_row, inverse_row, select
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
        rows, table, bins = _arguments(x, knots)
        y, ldj = np.empty_like(rows), np.empty(len(rows), x.dtype)
        _forward(rows, table, bins, y, ldj)
        return y.reshape(x.shape), ldj

    def inverse(self, y, knots):
        rows, table, bins = _arguments(y, knots)
        x = np.empty_like(rows)
        _inverse(rows, table, bins, x)
        return x.reshape(y.shape)

    def backward(self, x, knots, factors, bound, eps, dy, dldj, out):
        rows, table, bins = _arguments(x, knots)
        dx = np.empty_like(rows)
        scale = x.dtype.type(2 * bound * (1 - eps * len(bins)))
        grads = (g.reshape(rows.shape[1], -1) for g in out)
        dy = np.ascontiguousarray(dy).reshape(rows.shape)
        factors = factors.reshape(len(factors), -1)
        _backward(rows, table, bins, factors, scale, dy, dldj, dx, *grads)
        return dx.reshape(x.shape)


def _arguments(x, knots):
    """x as rows (N, P), the knots as rows (3(K+1), P), and K as a tuple."""
    bins = knots.shape[1] - 1
    rows = np.ascontiguousarray(x).reshape(len(x), -1)
    return rows, np.ascontiguousarray(knots).reshape(3 * bins + 3, -1), (1,) * bins


@serial
def _take(raw, poison, values):
    """values ← raw, some pixels' parameters; poison: 0, NaN if one of a pixel is not finite."""
    for i in range(values.size):
        value = raw[i]
        values[i] = value
        poison[i] += value - value


@parallel
def _exponents(widths, heights, slopes, shift, knots, factors):
    """Raw (P, K), (P, K), (P, K-1), c₀ -> the logarithms of what is to be in factors (3K-1, P), up
    to their sum or 1 + e, and raw slopes + c₀ where their knots are to be."""
    pixels, bins = widths.shape
    for block in prange((pixels + LANES - 1) // LANES):
        first, last = block * LANES, min((block + 1) * LANES, pixels)
        poison = np.zeros(last - first, knots.dtype)
        for k in range(bins):
            _take(widths[first:last, k], poison, factors[k, first:last])
            _take(heights[first:last, k], poison, factors[bins + k, first:last])
            if k > 0:
                _take(slopes[first:last, k - 1], poison, knots[2 * (bins + 1) + k, first:last])
        for axis in range(2):
            largest = factors[axis * bins, first:last].copy()
            for k in range(1, bins):
                values = factors[axis * bins + k, first:last]
                for i in range(largest.size):
                    largest[i] = max(largest[i], values[i])
            for k in range(bins):
                values = factors[axis * bins + k, first:last]
                for i in range(largest.size):
                    values[i] += poison[i] - largest[i]
        for k in range(1, bins):
            values = knots[2 * (bins + 1) + k, first:last]
            exponents = factors[2 * bins + k - 1, first:last]
            for i in range(poison.size):
                raw = values[i] + poison[i] + shift
                values[i] = raw
                exponents[i] = -abs(raw)


@parallel
def _knots(bins, bound, eps, rest, knots, factors):
    """The arrays of `_exponents`, with factors replaced by their exponentials and log(1 + e) of the
    slopes in rows 1 to K-1 of knots -> knots (3(K+1), P), factors (3K-1, P)."""
    pixels = knots.shape[1]
    one = knots.dtype.type(1)
    zero = one - one
    for block in prange((pixels + LANES - 1) // LANES):
        first, last = block * LANES, min((block + 1) * LANES, pixels)
        row = 2 * (bins + 1)
        knots[row, first:last] = one
        knots[row + bins, first:last] = one
        for k in range(1, bins):
            values, log_1_e = knots[row + k, first:last], knots[k, first:last]
            slopes = factors[2 * bins + k - 1, first:last]
            for i in range(values.size):
                raw, e = values[i], slopes[i]
                inverse = one / (one + e)
                values[i] = eps + max(raw, zero) + log_1_e[i]
                slopes[i] = select(raw >= zero, inverse, e * inverse)
        total, position = np.empty(last - first, knots.dtype), np.empty(last - first, knots.dtype)
        for axis in range(2):
            total[:] = zero
            for k in range(bins):
                values = factors[axis * bins + k, first:last]
                for i in range(total.size):
                    total[i] += values[i]
            for i in range(total.size):
                position[i] = total[i] - total[i] - bound  # NaN where the pixel is to be
            for k in range(bins):
                shares, edges = factors[axis * bins + k, first:last], knots[axis * (bins + 1) + k]
                for i in range(total.size):
                    shares[i] /= total[i]
                    edges[first + i] = position[i]
                    position[i] += (bound + bound) * (eps + rest * shares[i])
            edges = knots[axis * (bins + 1) + bins, first:last]
            for i in range(total.size):
                edges[i] = total[i] - total[i] + bound


@serial
def _begin(task, knots, samples, table):
    """The samples (from, to) and the pixels (from, to) of a task, and its knots into its table."""
    pixels, blocks = knots.shape[1], (knots.shape[1] + LANES - 1) // LANES
    part, block = task // blocks, task % blocks
    first, last = block * LANES, min((block + 1) * LANES, pixels)
    for row in range(len(knots)):
        values = knots[row, first:last]
        for lane in range(len(values)):
            table[np.uintp(row * LANES + lane)] = values[lane]
    return part * _SAMPLES, min(samples, (part + 1) * _SAMPLES), first, last


@parallel
def _forward(x, knots, bins, y, ldj):
    """x, y (N, P), ldj (N,). With ε = 1e-3 and d the larger of 1000 and a pixel's slopes, dy/dx is
    between 1e-9/d² and 4d, so a product of _FACTORS stays in the range of double precision up to
    d = 1e4; beyond, should it leave it, ldj is infinite."""
    samples, pixels = x.shape
    blocks = (pixels + LANES - 1) // LANES
    parts = (samples + _SAMPLES - 1) // _SAMPLES
    tables = np.empty((blocks * parts, len(knots) * LANES), x.dtype)
    partial = np.empty((blocks, samples))
    for task in prange(blocks * parts):
        table = tables[task]
        start, end, first, last = _begin(task, knots, samples, table)
        slopes = np.ones(LANES, x.dtype)
        for n in range(start, end):
            forward_row(x[n, first:last], table, bins, y[n, first:last], slopes)
            total = 0.0
            for chain in range(_CHAINS):
                product = 1.0
                for factor in range(_FACTORS):
                    product *= np.float64(slopes[factor * _CHAINS + chain])
                total += math.log(product)
            partial[task % blocks, n] = total
    ldj[:] = partial.sum(axis=0)


@parallel
def _inverse(y, knots, bins, x):
    """y, x (N, P)."""
    samples, pixels = y.shape
    blocks = (pixels + LANES - 1) // LANES
    parts = (samples + _SAMPLES - 1) // _SAMPLES
    tables = np.empty((parts * blocks, len(knots) * LANES), y.dtype)
    for task in prange(parts * blocks):
        table = tables[task]
        start, end, first, last = _begin(task, knots, samples, table)
        for n in range(start, end):
            inverse_row(y[n, first:last], table, bins, x[n, first:last])


@parallel
def _backward(x, knots, bins, factors, scale, dy, dldj, dx, g_widths, g_heights, g_slopes):
    """x, dy, dx (N, P), dldj (N,); raw gradients (P, K), (P, K), (P, K-1) summed over samples."""
    samples, pixels = x.shape
    inner = len(bins) - 1
    blocks = (pixels + LANES - 1) // LANES
    parts = (samples + _SAMPLES - 1) // _SAMPLES
    tables = np.empty((parts * blocks, len(knots) * LANES), x.dtype)
    sums = np.zeros((parts * blocks, 3 * inner * LANES), x.dtype)
    for task in prange(parts * blocks):
        table = tables[task]
        start, end, first, last = _begin(task, knots, samples, table)
        for n in range(start, end):
            deltas, target = dy[n, first:last], dx[n, first:last]
            backward_row(x[n, first:last], table, bins, deltas, dldj[n], target, sums[task])
    for block in prange(blocks):
        total = np.zeros(3 * inner * LANES, x.dtype)
        for part in range(parts):
            partial = sums[part * blocks + block]
            for j in range(len(total)):
                total[j] += partial[j]
        for i in range(min(LANES, pixels - block * LANES)):
            p = block * LANES + i
            _raw_sizes(total, 0, i, factors[: inner + 1, p], scale, g_widths[p])
            _raw_sizes(total, inner, i, factors[inner + 1 : 2 * inner + 2, p], scale, g_heights[p])
            for k in range(inner):
                slope = at(total, 2 * inner + k, i)
                g_slopes[p, k] = slope * factors[2 * inner + 2 + k, p]


@serial
def _raw_sizes(sums, row, lane, shares, scale, g):
    """g (K,) = scale · p ⊙ (c - ⟨c, p⟩), p the softmax, c_j = Σ_{k > j} of the knots' gradients."""
    total = scale - scale
    mean = total
    for k in range(len(g) - 1, -1, -1):
        g[k] = total
        mean += total * shares[k]
        if k > 0:
            total += at(sums, row + k - 1, lane)
    for k in range(len(g)):
        g[k] = scale * shares[k] * (g[k] - mean)
