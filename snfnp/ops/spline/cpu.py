"""The rational-quadratic spline on the CPU: one fused pass each way, vectorised over pixels.

A task takes LANES neighbouring pixels, or all pixels of several samples if they are few, and loops
over some of the samples; its knots (or, backwards, its sums) stay in the first-level cache and
belong to it alone. Tasks of the same samples follow each other: a core then finds in its cache what
it computed in the layer before. No branch finds the bin: an inner knot that a value has passed
selects the next one. See derivations/09-splines.md.

What makes the compiler use vector registers:

* the number of bins is known to it: a tuple with one entry per bin, whose length is part of its
  type, stands for K;
* an index is unsigned: Numba's wrap-around of negative ones turns a load into a gather, and so
  does a conditional expression, which is why there is `_select`;
* a row of LANES pixels is a function of its own, with few enough arrays to check for overlap.
"""

import math
from typing import Any

import numpy as np
from numba import extending, types

from snfnp.ops.group import Array, Shape, flat
from snfnp.ops.jit import alike, compiled, inlined, parallel
from snfnp.ops.spline.definition import Spline, slope_shift

intrinsic: Any = extending.intrinsic  # whose types count the typing context
_LANES = 32  # pixels per task: two or more vector registers, and small enough to share evenly
_SAMPLES = 50  # per task
# pixels whose knots are computed one by one; NumPy's vectorised functions are faster for more
_FEW = 256
_FACTORS = 16  # slopes multiplied in double precision before one logarithm is taken
_CHAINS = _LANES // _FACTORS


class CpuSpline(Spline):
    def knots(self, widths, heights, slopes, bound, eps):
        *shape, bins = widths.shape
        pixels = math.prod(shape)
        agree = heights.shape == widths.shape and slopes.shape == (*shape, bins - 1)
        if not (agree and alike(widths, heights, slopes) and pixels <= _FEW):
            return super().knots(widths, heights, slopes, bound, eps)
        knots = np.empty((3, bins + 1, pixels), widths.dtype)
        factors = np.empty((3 * bins - 1, pixels), widths.dtype)
        raw = [
            np.ascontiguousarray(array).reshape(pixels, array.shape[-1])
            for array in (widths, heights, slopes)
        ]
        numbers = (bound, eps, 1 - eps * bins, slope_shift(eps))
        _knots(*raw, *map(widths.dtype.type, numbers), knots, factors)
        return knots.reshape(3, bins + 1, *shape), factors.reshape(-1, *shape)

    def evaluate(self, x, knots):
        if not _agree(x, knots):
            return super().evaluate(x, knots)
        parts, blocks = _tasks(x)
        y = np.empty(x.shape, x.dtype)
        ldj = np.empty((blocks, len(x)))
        _forward(parts * blocks, x.ravel(), *_described(knots), y.ravel(), ldj)
        total = ldj[0] if blocks == 1 else ldj.sum(axis=0)
        return y, total.astype(x.dtype, copy=False)

    def inverse(self, y, knots):
        if not _agree(y, knots):
            return super().inverse(y, knots)
        x = np.empty(y.shape, y.dtype)
        _inverse(math.prod(_tasks(y)), y.ravel(), *_described(knots), x.ravel())
        return x

    def backward(self, x, knots, factors, scale, dy, dldj, out):
        arrays = (factors, dy, dldj, *out)
        shapes = [array.shape for array in arrays]
        if not (_agree(x, knots) and alike(x, *arrays) and shapes == _shapes(x, knots)):
            return super().backward(x, knots, factors, scale, dy, dldj, out)
        table, bins = _described(knots)
        parts, blocks = _tasks(x)
        dx = np.empty(x.shape, x.dtype)
        inner = 3 * (len(bins) - 1)
        sums = np.zeros((parts, blocks, inner, _LANES), x.dtype)
        tasks = sums.reshape(parts * blocks, inner * _LANES)
        _backward(
            len(tasks), x.ravel(), table, bins, dy.ravel(), dldj, dx.ravel(), tasks
        )
        grads = [g.reshape(table.shape[1], g.shape[-1]) for g in out]
        sums = np.add.reduce(sums)
        _raw_gradients(sums, flat(factors), x.dtype.type(scale), *grads)
        return dx


def _agree(x: Array, knots: Array) -> bool:
    """True if there are knots, of a precision, for every value of a sample."""
    known = knots.ndim > 2 and knots.shape[0] == 3 and knots.shape[1] > 1
    return known and knots.shape[2:] == x.shape[1:] and alike(x, knots)


def _shapes(x: Array, knots: Array) -> list[Shape]:
    """The shapes of the factors, dy, dldj and the three arrays of raw gradients."""
    count, *shape = x.shape
    bins = knots.shape[1] - 1
    raw = [(*shape, size) for size in (bins, bins, bins - 1)]
    return [(3 * bins - 1, *shape), x.shape, (count,), *raw]


def _tasks(x: Array) -> tuple[int, int]:
    """The number of parts of the samples, and of blocks of pixels; each pair is a task."""
    return -(-len(x) // _SAMPLES), -(-math.prod(x.shape[1:]) // _LANES)


def _described(knots: Array) -> tuple[Array, tuple[int, ...]]:
    """Knots (3, K+1, *shape) as C-contiguous rows (3(K+1), P), and K as a tuple, see above."""
    rows = np.ascontiguousarray(knots).reshape(3 * knots.shape[1], -1)
    return rows, (1,) * (knots.shape[1] - 1)


# ------------------------------------- from raw parameters to knots, a pixel at a time


@compiled
def _knots(widths, heights, slopes, bound, eps, rest, shift, knots, factors):
    """widths, heights (P, K), slopes (P, K-1), rest = 1 - εK, shift = c₀ -> knots (3, K+1, P) and
    factors (3K-1, P)."""
    pixels, bins = widths.shape
    one = widths.dtype.type(1)
    zero = one - one
    for pixel in range(pixels):
        poison = zero  # or NaN
        for raw in (widths[pixel], heights[pixel], slopes[pixel]):
            for value in raw:
                poison += zero * value
        for axis, raw in enumerate((widths[pixel], heights[pixel])):
            shares = factors[axis * bins : (axis + 1) * bins, pixel]  # the softmax
            edges = knots[axis, :, pixel]
            highest = raw.max()
            total = poison
            for k in range(bins):
                shares[k] = math.exp(raw[k] - highest)
                total += shares[k]
            edges[0] = poison - bound
            position = poison
            for k in range(bins):
                shares[k] /= total
                position += (bound + bound) * (eps + rest * shares[k])
                edges[k + 1] = position - bound
            edges[bins] = poison + bound
        knots[2, 0, pixel] = one
        knots[2, bins, pixel] = one
        for k in range(bins - 1):
            raw_slope = slopes[pixel, k] + poison + shift
            e = math.exp(-abs(raw_slope))
            knots[2, k + 1, pixel] = eps + max(raw_slope, zero) + math.log1p(e)
            factors[2 * bins + k, pixel] = (one if raw_slope >= zero else e) / (one + e)


# ------------------------------------- a row of lanes: a sample's pixels, or those of several


@intrinsic
def _select(typing_context, condition, a, b):
    """a where condition, else b, both evaluated: a select instruction, never a branch."""

    def code(context, builder, signature, arguments):
        return builder.select(*arguments)

    return a(types.boolean, a, a), code


@inlined
def _at(table, row, lane):
    """Entry `lane` of a row of _LANES; unsigned, see above."""
    return table[np.uintp(row * _LANES + lane)]


@inlined
def _find(value, table, bins, axis, lane):
    """(outside, x0, x1, y0, y1, d0, d1) of the bin that holds `value`.

    axis 0 searches the positions, axis 1 the values. A NaN compares false: bin 0.
    """
    ys = len(bins) + 1
    ds = 2 * ys
    edges = axis * ys
    x0 = _at(table, 0, lane)
    x1 = _at(table, 1, lane)
    y0 = _at(table, ys, lane)
    y1 = _at(table, ys + 1, lane)
    d0 = _at(table, ds, lane)
    d1 = _at(table, ds + 1, lane)
    for k in range(1, len(bins)):
        passed = value >= _at(table, edges + k, lane)
        x0 = _select(passed, _at(table, k, lane), x0)
        x1 = _select(passed, _at(table, k + 1, lane), x1)
        y0 = _select(passed, _at(table, ys + k, lane), y0)
        y1 = _select(passed, _at(table, ys + k + 1, lane), y1)
        d0 = _select(passed, _at(table, ds + k, lane), d0)
        d1 = _select(passed, _at(table, ds + k + 1, lane), d1)
    low = _at(table, edges, lane)
    high = _at(table, edges + len(bins), lane)
    return (value <= low) | (value >= high), x0, x1, y0, y1, d0, d1


@compiled
def _forward_row(x_n, table, bins, y_n, slopes):
    """A row: y and dy/dx."""
    one = x_n.dtype.type(1)
    zero = one - one
    two = one + one
    for i in range(len(x_n)):
        value = x_n[i]
        outside, x0, x1, y0, y1, d0, d1 = _find(value, table, bins, 0, i)
        h = y1 - y0
        inverse_w = one / (x1 - x0)
        s = h * inverse_w
        t = _select(outside, zero, (value - x0) * inverse_w)
        m = one - t
        u = t * m
        inverse_d = one / (s + (d0 + d1 - two * s) * u)
        inside_y = y0 + h * ((s * t * t + d0 * u) * inverse_d)
        ratio = s * inverse_d
        slope = ratio * ratio * (d1 * t * t + two * s * u + d0 * m * m)
        y_n[i] = _select(outside, value, inside_y)
        slopes[i] = _select(outside, one, slope)


@compiled
def _inverse_row(y_n, table, bins, x_n):
    """A row: see the definition for the stable root."""
    one = y_n.dtype.type(1)
    zero = one - one
    two = one + one
    for i in range(len(y_n)):
        value = y_n[i]
        outside, x0, x1, y0, y1, d0, d1 = _find(value, table, bins, 1, i)
        w = x1 - x0
        h = y1 - y0
        s = h / w
        r = _select(outside, zero, (value - y0) / h)
        difference = d0 * (one - r) - d1 * r
        linear = difference + two * s * r
        q = math.sqrt(difference * difference + two * two * s * s * r * (one - r))
        stable = linear >= zero
        above = _select(stable, two * s * r, q - linear)
        below = _select(stable, linear + q, two * (s - linear))
        inside_x = x0 + w * (above / below)
        x_n[i] = _select(outside, value, inside_x)


@inlined
def _add(sums, row, lane, here, left, last, right, zero):
    """Add a value's contribution to one knot: the left one of its bin, the right one, or none."""
    other = _select(last, right, zero)
    sums[np.uintp(row * _LANES + lane)] += _select(here, left, other)


@compiled
def _backward_row(x_n, table, bins, dy_n, dx_n, sums):
    """A row: dx, and the inner knots' gradients added to sums. dldj is the table's last row."""
    one = x_n.dtype.type(1)
    zero = one - one
    two = one + one
    inner = len(bins) - 1
    last_row = 3 * (len(bins) + 1)
    for i in range(len(x_n)):
        value = x_n[i]
        gy_n = dy_n[i]
        outside, x0, x1, y0, y1, d0, d1 = _find(value, table, bins, 0, i)
        gy = _select(outside, zero, gy_n)
        gl = _select(outside, zero, _at(table, last_row, i))
        w = x1 - x0
        h = y1 - y0
        inverse_w = one / w
        inverse_h = one / h
        s = h * inverse_w
        t = _select(outside, zero, (value - x0) * inverse_w)
        m = one - t
        u = t * m
        tilt = m - t
        bend = d0 + d1 - two * s
        inverse_d = one / (s + bend * u)
        r = (s * t * t + d0 * u) * inverse_d
        numerator = d1 * t * t + two * s * u + d0 * m * m
        inverse_n = one / numerator
        ratio = s * inverse_d
        v = u * inverse_d
        log_slope_t = (d1 * t + s * tilt - d0 * m) * inverse_n - bend * tilt * inverse_d
        g = gy * (ratio * ratio * numerator) + gl * (two * inverse_w) * log_slope_t
        dx_n[i] = _select(outside, gy_n, g)
        gy_h_v = gy * h * v
        g_d0 = gy_h_v * (one - r) + gl * (m * m * inverse_n - two * v)
        g_d1 = gl * (t * t * inverse_n - two * v) - gy_h_v * r
        total = d0 * g_d0 + d1 * g_d1 - gl
        g_w = total * inverse_w - t * g
        g_h = gy * r - total * inverse_h
        # the left knot of a bin moves its edge and shrinks it, the right one widens it
        g_x = -g - g_w
        g_y = gy - g_h
        before = True
        for k in range(1, len(bins)):
            passed = value >= _at(table, k, i)
            beyond = (k < inner) & (value >= _at(table, k + 1, i))
            here = passed & (not beyond)
            last = before & (not passed)
            _add(sums, k - 1, i, here, g_x, last, g_w, zero)
            _add(sums, inner + k - 1, i, here, g_y, last, g_h, zero)
            _add(sums, 2 * inner + k - 1, i, here, g_d0, last, g_d1, zero)
            before = passed


# ------------------------------------- a task's pixels, of some of the samples


@inlined
def _begin(task, knots, samples):
    """The samples (from, to) and the pixels (from, to) of a task, how many samples share a row of
    lanes, and a table of the knots of each lane, with a row for dldj."""
    pixels = knots.shape[1]
    blocks = (pixels + _LANES - 1) // _LANES
    part = task // blocks
    block = task % blocks
    first = block * _LANES
    last = min((block + 1) * _LANES, pixels)
    together = max(1, _LANES // pixels)
    table = np.empty((len(knots) + 1) * _LANES, knots.dtype)
    for row in range(len(knots)):
        values = knots[row, first:last]
        for sample in range(together):
            for lane in range(len(values)):
                index = row * _LANES + sample * len(values) + lane
                table[np.uintp(index)] = values[lane]
    end = min(samples, (part + 1) * _SAMPLES)
    return part * _SAMPLES, end, first, last, together, table


@inlined
def _row(n, end, together, pixels, first, last):
    """The values of the samples from n on that share a row, and the sample after them."""
    after = min(n + together, end)
    return slice(n * pixels + first, (after - 1) * pixels + last), after


@parallel
def _forward(task, x, knots, bins, y, ldj):
    """x, y (N P,), ldj (blocks, N). With ε = 1e-3 and d the larger of 1000 and a pixel's slopes,
    dy/dx is between 1e-9/d² and 4d, so a product of _FACTORS stays in the range of double precision
    up to d = 1e4; beyond, a product may underflow or overflow, and ldj is then infinite."""
    pixels = knots.shape[1]
    start, end, first, last, together, table = _begin(task, knots, ldj.shape[1])
    slopes = np.ones(_LANES, x.dtype)
    for n in range(start, end, together):
        row, after = _row(n, end, together, pixels, first, last)
        _forward_row(x[row], table, bins, y[row], slopes)
        if together > 1:  # samples, of at most _FACTORS pixels each
            for sample in range(n, after):
                product = 1.0
                for slope in slopes[(sample - n) * pixels :][:pixels]:
                    product *= np.float64(slope)
                ldj[0, sample] = math.log(product)
            continue
        logarithm = 0.0
        for chain in range(_CHAINS):
            product = 1.0
            for factor in range(_FACTORS):
                product *= np.float64(slopes[factor * _CHAINS + chain])
            logarithm += math.log(product)
        ldj[first // _LANES, n] = logarithm


@parallel
def _inverse(task, y, knots, bins, x):
    """y, x (N P,)."""
    pixels = knots.shape[1]
    start, end, first, last, together, table = _begin(task, knots, len(y) // pixels)
    for n in range(start, end, together):
        row, _ = _row(n, end, together, pixels, first, last)
        _inverse_row(y[row], table, bins, x[row])


@parallel
def _backward(task, x, knots, bins, dy, dldj, dx, sums):
    """x, dy, dx (N P,), dldj (N,); sums (tasks, 3(K-1) _LANES), zeros: the inner knots' gradients,
    summed over a task's samples."""
    pixels = knots.shape[1]
    start, end, first, last, together, table = _begin(task, knots, len(dldj))
    width = last - first
    weights = table[len(knots) * _LANES :]
    for n in range(start, end, together):
        row, after = _row(n, end, together, pixels, first, last)
        for sample in range(n, after):
            lanes = weights[(sample - n) * width :][:width]
            weight = dldj[sample]
            for lane in range(lanes.size):
                lanes[lane] = weight
        _backward_row(x[row], table, bins, dy[row], dx[row], sums[task])
    for lane in range(width, together * width):
        for knot in range(0, sums.shape[1], _LANES):
            sums[task, knot + lane % width] += sums[task, knot + lane]


# ------------------------------------- raw parameters: the batch's size does not matter


@compiled
def _raw_gradients(sums, factors, scale, g_widths, g_heights, g_slopes):
    """The sums of `_backward` over all samples (blocks, 3(K-1), _LANES), factors (3K-1, P) -> raw
    gradients (P, K), (P, K), (P, K-1), a knot of all pixels after another."""
    blocks, rows, lanes = sums.shape
    knots = sums.transpose(1, 0, 2).copy().reshape(rows, blocks * lanes)
    pixels, inner = g_slopes.shape
    bins = inner + 1
    _raw_sizes(knots, factors, scale, g_widths)
    _raw_sizes(knots[inner:], factors[bins:], scale, g_heights)
    for k in range(inner):
        g_slopes[:, k] = knots[2 * inner + k, :pixels] * factors[2 * bins + k]


@inlined
def _raw_sizes(knots, shares, scale, out):
    """out (P, K) = scale · p ⊙ (c - ⟨c, p⟩), p the softmax, c_j = Σ_{k > j} of the knots':
    knots (K-1, P) and shares (K, P), or more of each, which are left out."""
    pixels, bins = out.shape
    following = np.zeros((bins, pixels), knots.dtype)
    mean = np.zeros(pixels, knots.dtype)
    for k in range(bins - 2, -1, -1):
        c = following[k]
        after = following[k + 1]
        knot = knots[k]
        p = shares[k]
        for i in range(pixels):
            c[i] = after[i] + knot[i]
            mean[i] += c[i] * p[i]
    for k in range(bins):
        g = out[:, k]
        c = following[k]
        p = shares[k]
        for i in range(pixels):
            g[i] = scale * p[i] * (c[i] - mean[i])
