"""The inverse of a causal 2×2 convolution on the CPU: raster order, samples in parallel.

Derivation: derivations/11-emerging.md.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from snfnp.ops.causal.definition import Causal
from snfnp.ops.jit import parallel, serial


class CpuCausal(Causal):
    def inverse(self, z, k):
        x = np.empty(z.shape, z.dtype)
        _inverse(np.ascontiguousarray(z), np.ascontiguousarray(k), x)
        return x


@parallel
def _inverse(z, k, x):
    """z (N, H, W, C), k (2, 2, C, C) -> x (N, H, W, C)."""
    samples, height, width, channels = z.shape
    for n in prange(samples):
        rest = np.empty(channels, z.dtype)
        for row in range(height):
            for column in range(width):
                for o in range(channels):
                    rest[o] = z[n, row, column, o]
                if row and column:
                    _subtract(x[n, row - 1, column - 1], k[0, 0], rest)
                if row:
                    _subtract(x[n, row - 1, column], k[0, 1], rest)
                if column:
                    _subtract(x[n, row, column - 1], k[1, 0], rest)
                for c in range(channels):
                    solved = rest[c] / k[1, 1, c, c]
                    x[n, row, column, c] = solved
                    for o in range(c + 1, channels):
                        rest[o] -= solved * k[1, 1, c, o]


@serial
def _subtract(pixel, tap, rest):
    """rest -= tapᵀ pixel, a column of the loop over outputs at a time."""
    for i in range(pixel.size):
        value = pixel[i]
        for o in range(rest.size):
            rest[o] -= value * tap[i, o]
