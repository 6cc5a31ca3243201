"""One sample's row of a block of neighbouring pixels: the arithmetic of `cpu.py`'s kernels.

What makes the compiler use vector registers:

* the number of bins is known to it: a tuple with one entry per bin, whose length is part of its
  type, stands for K;
* an index is unsigned: Numba's wrap-around of negative ones turns a load into a gather, and so
  does a conditional expression, which is why there is `select`;
* a row of LANES pixels is a function of its own, with few enough arrays to check for overlap.
"""

import math

import numpy as np
from numba import types
from numba.extending import intrinsic

from snfnp.ops.jit import compiled, serial

LANES = 32  # pixels per task: two or more vector registers, and small enough to share evenly


@intrinsic
def select(typing_context, condition, a, b):
    """a where condition, else b, both evaluated: a select instruction, never a branch."""

    def code(context, builder, signature, arguments):
        return builder.select(*arguments)

    return a(types.boolean, a, a), code


@serial
def at(table, row, lane):
    """Entry `lane` of a row of LANES; unsigned, see above."""
    return table[np.uintp(row * LANES + lane)]


@serial
def _find(value, table, bins, axis, lane):
    """(outside, x0, x1, y0, y1, d0, d1) of the bin that holds `value`.

    axis 0 searches the positions, axis 1 the values. A NaN compares false: bin 0.
    """
    rows = len(bins) + 1
    start, ys, ds = axis * rows, rows, 2 * rows
    x0, x1 = at(table, 0, lane), at(table, 1, lane)
    y0, y1 = at(table, ys, lane), at(table, ys + 1, lane)
    d0, d1 = at(table, ds, lane), at(table, ds + 1, lane)
    for k in range(1, len(bins)):
        passed = value >= at(table, start + k, lane)
        next_x0, next_x1 = at(table, k, lane), at(table, k + 1, lane)
        next_y0, next_y1 = at(table, ys + k, lane), at(table, ys + k + 1, lane)
        next_d0, next_d1 = at(table, ds + k, lane), at(table, ds + k + 1, lane)
        x0 = select(passed, next_x0, x0)
        x1 = select(passed, next_x1, x1)
        y0 = select(passed, next_y0, y0)
        y1 = select(passed, next_y1, y1)
        d0 = select(passed, next_d0, d0)
        d1 = select(passed, next_d1, d1)
    low, high = at(table, start, lane), at(table, start + len(bins), lane)
    return (value <= low) | (value >= high), x0, x1, y0, y1, d0, d1


@compiled
def forward_row(x_n, table, bins, y_n, slopes):
    """One sample's pixels of a block: y and dy/dx."""
    one = x_n.dtype.type(1)
    zero, two = one - one, one + one
    for i in range(len(x_n)):
        value = x_n[i]
        outside, x0, x1, y0, y1, d0, d1 = _find(value, table, bins, 0, i)
        h, inverse_w = y1 - y0, one / (x1 - x0)
        s = h * inverse_w
        t = select(outside, zero, (value - x0) * inverse_w)
        m = one - t
        u = t * m
        inverse_d = one / (s + (d0 + d1 - two * s) * u)
        inside_y = y0 + h * ((s * t * t + d0 * u) * inverse_d)
        ratio = s * inverse_d
        slope = ratio * ratio * (d1 * t * t + two * s * u + d0 * m * m)
        y_n[i] = select(outside, value, inside_y)
        slopes[i] = select(outside, one, slope)


@compiled
def inverse_row(y_n, table, bins, x_n):
    """One sample's pixels of a block: see the definition for the stable root."""
    one = y_n.dtype.type(1)
    zero, two = one - one, one + one
    for i in range(len(y_n)):
        value = y_n[i]
        outside, x0, x1, y0, y1, d0, d1 = _find(value, table, bins, 1, i)
        w, h = x1 - x0, y1 - y0
        s = h / w
        r = select(outside, zero, (value - y0) / h)
        difference = d0 * (one - r) - d1 * r
        linear = difference + two * s * r
        q = math.sqrt(difference * difference + two * two * s * s * r * (one - r))
        stable = linear >= zero
        above = select(stable, two * s * r, q - linear)
        below = select(stable, linear + q, two * (s - linear))
        inside_x = x0 + w * (above / below)
        x_n[i] = select(outside, value, inside_x)


@serial
def _add(sums, row, lane, here, left, last, right, zero):
    """Add a value's contribution to one knot: the left one of its bin, the right one, or none."""
    other = select(last, right, zero)
    sums[np.uintp(row * LANES + lane)] += select(here, left, other)


@compiled
def backward_row(x_n, table, bins, dy_n, dldj_n, dx_n, sums):
    """One sample's pixels of a block: dx, and the inner knots' gradients added to sums."""
    one = x_n.dtype.type(1)
    zero, two = one - one, one + one
    inner = len(bins) - 1
    for i in range(len(x_n)):
        value, gy_n = x_n[i], dy_n[i]
        outside, x0, x1, y0, y1, d0, d1 = _find(value, table, bins, 0, i)
        gy = select(outside, zero, gy_n)
        gl = select(outside, zero, dldj_n)
        w, h = x1 - x0, y1 - y0
        inverse_w, inverse_h = one / w, one / h
        s = h * inverse_w
        t = select(outside, zero, (value - x0) * inverse_w)
        m = one - t
        u, tilt = t * m, m - t
        bend = d0 + d1 - two * s
        inverse_d = one / (s + bend * u)
        r = (s * t * t + d0 * u) * inverse_d
        numerator = d1 * t * t + two * s * u + d0 * m * m
        inverse_n = one / numerator
        ratio, v = s * inverse_d, u * inverse_d
        log_slope_t = (d1 * t + s * tilt - d0 * m) * inverse_n - bend * tilt * inverse_d
        g = gy * (ratio * ratio * numerator) + gl * (two * inverse_w) * log_slope_t
        dx_n[i] = select(outside, gy_n, g)
        gy_h_v = gy * h * v
        g_d0 = gy_h_v * (one - r) + gl * (m * m * inverse_n - two * v)
        g_d1 = gl * (t * t * inverse_n - two * v) - gy_h_v * r
        total = d0 * g_d0 + d1 * g_d1 - gl
        g_w, g_h = total * inverse_w - t * g, gy * r - total * inverse_h
        # the left knot of a bin moves its edge and shrinks it, the right one widens it
        g_x, g_y = -g - g_w, gy - g_h
        before = True
        for k in range(1, len(bins)):
            passed = value >= at(table, k, i)
            beyond = (k < inner) & (value >= at(table, k + 1, i))
            here, last = passed & (not beyond), before & (not passed)
            _add(sums, k - 1, i, here, g_x, last, g_w, zero)
            _add(sums, inner + k - 1, i, here, g_y, last, g_h, zero)
            _add(sums, 2 * inner + k - 1, i, here, g_d0, last, g_d1, zero)
            before = passed
