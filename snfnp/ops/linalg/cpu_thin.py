"""Products of tall arrays with few columns on the CPU: tiles, rows in parallel.

A BLAS, made for large matrices, computes such products (1×1 convolutions, the network of a narrow
coupling) in one thread, or starts its own pool. See derivations/07-convolutions.md.
"""

import numpy as np

from snfnp.ops import simd
from snfnp.ops.jit import parallel, total
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
        flat = np.ascontiguousarray(b).reshape(-1)
        _product(len(a) // _ROWS, a, flat, *_tile_sizes(len(a), b), out)
        return
    swapped = b.shape[1] % _LANES != 0
    a, b, target = (b, a.T, out.T) if swapped else (a.T, b, out)
    sums = np.empty((len(a) // _ROWS, a.shape[1] * b.shape[1]), a.dtype)
    _transposed_product(len(sums), a, b, *_tile_sizes(a.shape[1], b), sums)
    target[...] = total(sums).reshape(target.shape)


def _tile_sizes(count, b):
    """The tile for this number of rows or taps, and the columns of b."""
    count = min(max(simd.PIXELS), count)
    return simd.of_pixels(count, b.shape[1], b.dtype.itemsize)


@parallel
def _product(task, a, b, rows, lanes, out):
    """a (M, K), b flat -> out (M, N). The last tile of a task may overlap the one before."""
    inner, columns, tasks = a.shape[1], out.shape[1], len(a) // _ROWS
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
def _transposed_product(task, a, b, taps, lanes, sums):
    """a (M, K), b (M, N) -> sums (tasks, K N), of aᵀ b: over a task's rows in their precision, in
    double from there on."""
    inner, columns, tasks = a.shape[1], b.shape[1], len(sums)
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
