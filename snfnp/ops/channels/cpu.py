"""Sums over channels, and the permutation of a squeeze, on the CPU: one pass each.

Derivation: derivations/13-actnorm-and-1x1.md.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from snfnp.ops.channels.definition import Channels
from snfnp.ops.jit import parallel, rows

_TASK = 10  # samples per task: their rows are added up first, in a buffer that stays in the cache


class CpuChannels(Channels):
    def sum(self, x, out=None):
        out = np.empty(x.shape[-1], x.dtype) if out is None else out
        _sum(rows(x), out)
        return out

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


@parallel
def _sum(x, out):
    """x (N, P C) -> out (C,): over _TASK samples in x's precision, in double from there on."""
    samples, length = x.shape
    channels = out.size
    tasks = (samples + _TASK - 1) // _TASK
    sums = np.zeros((tasks, channels))
    for task in prange(tasks):
        row = x[task * _TASK].copy()
        for n in range(task * _TASK + 1, min(samples, (task + 1) * _TASK)):
            source = x[n]
            for j in range(length):
                row[j] += source[j]
        pixels, total = row.reshape(-1, channels), sums[task]
        for pixel in range(len(pixels)):
            for c in range(channels):
                total[c] += pixels[pixel, c]
    for c in range(channels):
        total_c = 0.0
        for task in range(tasks):
            total_c += sums[task, c]
        out[c] = total_c


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
