"""Sums over channels, actnorm and squeezes on the CPU; see derivations/13-actnorm-and-1x1.md."""

import numpy as np
from numba import prange

from snfnp.ops.channels.definition import Channels, pixels
from snfnp.ops.jit import parallel, rows, serial

_TASK = 10  # samples per task: their rows are added up first, in a buffer that stays in the cache


class CpuChannels(Channels):
    def sum(self, x, out=None):
        out = np.empty(x.shape[-1], x.dtype) if out is None else out
        _sum(rows(x), out)
        return out

    def shift(self, x, b):
        z, b = np.empty(x.shape, x.dtype), np.ascontiguousarray(b).reshape(-1)
        shift_and_scale(x, b, np.ones_like(b), z)
        return z

    def actnorm(self, x, t, s):
        z = np.empty(x.shape, x.dtype)
        shift_and_scale(x, -t, np.exp(-s), z)
        return z, np.zeros(len(x), x.dtype) - pixels(x) * s.sum()

    def actnorm_backward(self, dz, z, s, dldj, out):
        g_t, g_s = out
        dx, sums = scale_backward(dz, z, np.exp(-s))
        g_t[...] = -sums[0]
        g_s[...] = -sums[1] - pixels(dz) * dldj.sum()
        return dx

    def squeeze(self, x):
        n, height, width, channels = x.shape
        z = np.empty((n, height // 2, width // 2, 4 * channels), x.dtype)
        shape = (n * height // 2, 2, width // 2, 2, channels)
        _squeeze(np.ascontiguousarray(x).reshape(shape), z.reshape(-1, width // 2, channels, 4))
        return z

    def unsqueeze(self, z):
        n, height, width, channels = z.shape
        x = np.empty((n, 2 * height, 2 * width, channels // 4), z.dtype)
        cells = np.ascontiguousarray(z).reshape(n * height, width, channels // 4, 4)
        _unsqueeze(cells, x.reshape(n * height, 2, width, 2, channels // 4))
        return x


def shift_and_scale(x, shift, factor, out) -> None:
    """out = (x + shift) factor: x (N, ..., C), shift and factor (C,), out contiguous."""
    _shift_and_scale(rows(x), shift, factor, rows(out))


def scale_backward(delta, x, factor):
    """δ factor, and Σ δ factor and Σ δ x over samples and pixels in one array (2, C), in double
    precision: delta, x (N, ..., C), factor (C,)."""
    scaled, sums = np.empty(delta.shape, delta.dtype), np.empty((2, delta.shape[-1]))
    _scale_backward(rows(delta), rows(x), factor, rows(scaled), sums)
    return scaled, sums


@parallel
def _shift_and_scale(x, shift, factor, out):
    """x, out (N, P C), shift, factor (C,)."""
    samples, length = x.shape
    shifts, factors = np.empty(length, x.dtype), np.empty(length, x.dtype)
    for j in range(length):
        shifts[j], factors[j] = shift[j % shift.size], factor[j % factor.size]
    for n in prange(samples):
        source, target = x[n], out[n]
        for j in range(length):
            target[j] = (source[j] + shifts[j]) * factors[j]


@parallel
def _scale_backward(delta, x, factor, scaled, sums):
    """delta, x, scaled (N, P C), factor (C,), sums (2, C): as in `_sum`."""
    samples, length = delta.shape
    channels = factor.size
    factors = np.empty(length, delta.dtype)
    for j in range(length):
        factors[j] = factor[j % channels]
    tasks = (samples + _TASK - 1) // _TASK
    partial = np.zeros((tasks, 2, channels))
    for task in prange(tasks):
        first, second = np.zeros(length, delta.dtype), np.zeros(length, delta.dtype)
        for n in range(task * _TASK, min(samples, (task + 1) * _TASK)):
            deltas, others, target = delta[n], x[n], scaled[n]
            for j in range(length):
                target[j] = deltas[j] * factors[j]
                first[j] += target[j]
                second[j] += deltas[j] * others[j]
        for j in range(length):
            partial[task, 0, j % channels] += first[j]
            partial[task, 1, j % channels] += second[j]
    sums[:] = partial.sum(axis=0)


@parallel
def _sum(x, out):
    """x (N, P C) -> out (C,): over _TASK samples in x's precision, in double from there on."""
    samples, length = x.shape
    tasks = (samples + _TASK - 1) // _TASK
    sums = np.zeros((tasks, length))
    for task in prange(tasks):
        row, total = x[task * _TASK].copy(), sums[task]
        for n in range(task * _TASK + 1, min(samples, (task + 1) * _TASK)):
            source = x[n]
            for j in range(length):
                row[j] += source[j]
        for j in range(length):
            total[j] = row[j]
        _fold(total, out.size)
    out[:] = sums[:, : out.size].sum(axis=0)


@serial
def _fold(row, channels):
    """The sums over pixels of a row (P C,) into its first C values: halves onto each other, as
    long as there are two, and then pixel by pixel."""
    pixels = row.size // channels
    while pixels % 2 == 0 and pixels > 0:
        pixels //= 2
        lower, upper = row[: pixels * channels], row[pixels * channels : 2 * pixels * channels]
        for j in range(lower.size):
            lower[j] += upper[j]
    for pixel in range(1, pixels):
        for c in range(channels):
            row[c] += row[pixel * channels + c]


@parallel
def _squeeze(x, z):
    """x (rows of cells, 2, W, 2, C) -> z (rows of cells, W, C, 4)."""
    for row in prange(len(x)):
        upper, lower, cells = x[row, 0], x[row, 1], z[row]
        width, channels, _ = cells.shape
        for column in range(width):
            for c in range(channels):
                cells[column, c, 0] = upper[column, 0, c]
                cells[column, c, 1] = upper[column, 1, c]
                cells[column, c, 2] = lower[column, 0, c]
                cells[column, c, 3] = lower[column, 1, c]


@parallel
def _unsqueeze(z, x):
    """z (rows of cells, W, C, 4) -> x (rows of cells, 2, W, 2, C)."""
    for row in prange(len(x)):
        upper, lower, cells = x[row, 0], x[row, 1], z[row]
        width, channels, _ = cells.shape
        for column in range(width):
            for c in range(channels):
                upper[column, 0, c] = cells[column, c, 0]
                upper[column, 1, c] = cells[column, c, 1]
                lower[column, 0, c] = cells[column, c, 2]
                lower[column, 1, c] = cells[column, c, 3]
