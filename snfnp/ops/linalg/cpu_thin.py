"""Products of tall arrays with few columns on the CPU: tiles, rows in parallel.

Such products (1×1 convolutions, the network of a narrow coupling) a BLAS gives to one thread or
wakes threads of its own for: it is made for large matrices. See derivations/07-convolutions.md.
"""

import numpy as np
from numba import prange

from snfnp.ops import simd
from snfnp.ops.jit import parallel
from snfnp.ops.simd import tile

_ROWS = 512  # of a task, at least
_LANES = 8  # columns are a multiple of it: with fewer lanes a BLAS is faster
_MOST = 32 * 32  # values of the small array; with more a BLAS is faster


def fits(a, b) -> bool:
    """True if these kernels are for a b: `a` (M, K) tall and b (K, N) small, or `a` (K, M) the
    transpose of a tall array and b (M, N) another one."""
    rows, columns = max(a.shape), b.shape[1]
    few = min(a.shape)
    if a.dtype != b.dtype or a.dtype.kind != "f" or rows < 2 * _ROWS or few * columns > _MOST:
        return False
    if min(few, columns) < min(simd.PIXELS):
        return False
    if len(a) == rows:
        return a.flags.c_contiguous and columns % _LANES == 0
    one = columns % _LANES == 0 or few % _LANES == 0
    return one and a.T.flags.c_contiguous and b.flags.c_contiguous


def product(a, b, out) -> None:
    """out = a b for factors that `fits` accepts, out contiguous."""
    if len(a) > len(b):
        _product(a, np.ascontiguousarray(b).reshape(-1), *_tile_sizes(len(a), b), out)
    elif b.shape[1] % _LANES == 0:
        _transposed_product(a.T, b, *_tile_sizes(len(a), b), out)
    else:
        swapped = np.empty(out.shape[::-1], out.dtype)
        _transposed_product(b, a.T, *_tile_sizes(b.shape[1], a.T), swapped)
        out[...] = swapped.T


def _tile_sizes(count, b):
    """For so many rows, or taps, and the columns of b."""
    count = min(max(simd.PIXELS), count)
    return simd.of_pixels(count, b.shape[1], b.dtype.itemsize)


@parallel
def _product(a, b, rows, lanes, out):
    """a (M, K), b flat -> out (M, N). The last tile of a task may overlap the one before."""
    inner, columns = a.shape[1], out.shape[1]
    tasks = len(a) // _ROWS
    for task in prange(tasks):
        start, end = task * len(a) // tasks, (task + 1) * len(a) // tasks
        source, target = a[start:end].reshape(-1), out[start:end].reshape(-1)
        for o in range(0, columns, len(lanes)):
            for row in range(0, end - start, len(rows)):
                first = min(row, end - start - len(rows))
                tile(
                    *(source, first * inner, (0, 1, inner)),
                    *(b, o, (0, columns), (1, inner)),
                    *(target, first * columns + o, columns, False),
                    *(rows, lanes),
                )


@parallel
def _transposed_product(a, b, taps, lanes, out):
    """a (M, K), b (M, N) -> out (K, N) = aᵀ b: over a task's rows in their precision, in double
    from there on."""
    inner, columns = a.shape[1], b.shape[1]
    tasks = len(a) // _ROWS
    sums = np.empty((tasks, inner * columns), a.dtype)
    for task in prange(tasks):
        start, end = task * len(a) // tasks, (task + 1) * len(a) // tasks
        source, others = a[start:end].reshape(-1), b[start:end].reshape(-1)
        for o in range(0, columns, len(lanes)):
            for tap in range(0, inner, len(taps)):
                first = min(tap, inner - len(taps))
                tile(
                    *(source, first, (inner, 0, 1)),
                    *(others, o, (columns, 0), (end - start, 1)),
                    *(sums[task], first * columns + o, columns, False),
                    *(taps, lanes),
                )
    for k in range(inner):
        for o in range(columns):
            total = 0.0
            for task in range(tasks):
                total += sums[task, k * columns + o]
            out[k, o] = total
