"""Sums over channels, actnorm and squeezes on the CPU; see derivations/13-actnorm-and-1x1.md."""

import numpy as np

from snfnp.ops.channels.definition import Channels, pixels
from snfnp.ops.jit import parallel, rows, serial, total

_TASK = 10  # samples per task: their rows are added up first, in a buffer that stays in the cache


class CpuChannels(Channels):
    def sum(self, x, out=None):
        out = np.empty(x.shape[-1], x.dtype) if out is None else out
        x = rows(x)
        sums = np.empty((-(-len(x) // _TASK), out.size))
        _sum(len(sums), x, sums)
        out[...] = total(sums)
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
        cells = z.reshape(-1, width // 2, channels, 4)
        _squeeze(len(cells), np.ascontiguousarray(x).reshape(shape), cells)
        return z

    def unsqueeze(self, z):
        n, height, width, channels = z.shape
        x = np.empty((n, 2 * height, 2 * width, channels // 4), z.dtype)
        cells = np.ascontiguousarray(z).reshape(n * height, width, channels // 4, 4)
        _unsqueeze(len(cells), cells, x.reshape(n * height, 2, width, 2, channels // 4))
        return x


def shift_and_scale(x, shift, factor, out) -> None:
    """out = (x + shift) factor: x (N, ..., C), shift and factor (C,), out contiguous."""
    x = rows(x)
    values = (_along(each, x) for each in (shift, factor))
    _shift_and_scale(len(x), x, *values, rows(out))


def scale_backward(delta, x, factor):
    """δ factor, and Σ δ factor and Σ δ x over samples and pixels in one array (2, C), in double
    precision: delta, x (N, ..., C), factor (C,)."""
    scaled, tasks = np.empty(delta.shape, delta.dtype), -(-len(x) // _TASK)
    sums = np.zeros((tasks, 2, delta.shape[-1]))
    deltas, others = rows(delta), rows(x)
    _scale_backward(tasks, deltas, others, _along(factor, deltas), rows(scaled), sums)
    return scaled, total(sums)


def _along(values, x):
    """values (C,) for every pixel: (P C,), like a row of x (N, P C)."""
    along = np.empty((x.shape[1] // len(values), len(values)), x.dtype)
    along[...] = values
    return along.reshape(-1)


@parallel
def _shift_and_scale(n, x, shifts, factors, out):
    """x, out (N, P C), shifts, factors (P C,)."""
    source, target = x[n], out[n]
    for j in range(source.size):
        target[j] = (source[j] + shifts[j]) * factors[j]


@parallel
def _scale_backward(task, delta, x, factors, scaled, sums):
    """delta, x, scaled (N, P C), factors (P C,), sums (tasks, 2, C), zeros: as in `_sum`."""
    samples, length = delta.shape
    channels = sums.shape[2]
    first, second = np.zeros(length, delta.dtype), np.zeros(length, delta.dtype)
    for n in range(task * _TASK, min(samples, (task + 1) * _TASK)):
        deltas, others, target = delta[n], x[n], scaled[n]
        for j in range(length):
            target[j] = deltas[j] * factors[j]
            first[j] += target[j]
            second[j] += deltas[j] * others[j]
    for j in range(length):
        sums[task, 0, j % channels] += first[j]
        sums[task, 1, j % channels] += second[j]


@parallel
def _sum(task, x, sums):
    """x (N, P C) -> sums (tasks, C): over _TASK samples in x's precision, in double from there."""
    samples, length = x.shape
    channels = sums.shape[1]
    row, sum_of_row = x[task * _TASK].copy(), np.empty(length)
    for n in range(task * _TASK + 1, min(samples, (task + 1) * _TASK)):
        source = x[n]
        for j in range(length):
            row[j] += source[j]
    for j in range(length):
        sum_of_row[j] = row[j]
    _fold(sum_of_row, channels)
    for c in range(channels):
        sums[task, c] = sum_of_row[c]


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
def _squeeze(row, x, z):
    """x (rows of cells, 2, W, 2, C) -> z (rows of cells, W, C, 4)."""
    pixels, cells = x[row], z[row]
    for column in range(cells.shape[0]):
        for c in range(cells.shape[1]):
            for place in range(4):
                cells[column, c, place] = pixels[place // 2, column, place % 2, c]


@parallel
def _unsqueeze(row, z, x):
    """z (rows of cells, W, C, 4) -> x (rows of cells, 2, W, 2, C)."""
    pixels, cells = x[row], z[row]
    for column in range(cells.shape[0]):
        for c in range(cells.shape[1]):
            for place in range(4):
                pixels[place // 2, column, place % 2, c] = cells[column, c, place]
