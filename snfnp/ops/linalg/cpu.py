"""BLAS and LAPACK called directly, and passes over buffers; see derivations/07-convolutions.md."""

import numpy as np
from scipy.linalg import get_blas_funcs, get_lapack_funcs

from snfnp.errors import SingularMatrixError
from snfnp.ops.jit import FLAT_BLOCK, compiled, parallel, serial, total
from snfnp.ops.linalg import cpu_thin
from snfnp.ops.linalg.definition import LinearAlgebra

_GEMM = {np.dtype(kind): get_blas_funcs("gemm", dtype=kind) for kind in "fd"}
_LU = {np.dtype(kind): get_lapack_funcs(("getrf", "getri", "getrs"), dtype=kind) for kind in "fd"}
_SMALL = 128  # up to this size getri is faster than solving for the identity
_FEW = 1 << 17  # the parallel threshold of sums of squares, in values
_BLOCK = 4096  # values per task of an array as large as a batch's: many even shares
_LANES = 64  # independent partial sums: four vector registers or more
_TILE = 32  # side of the tiles of a transposed copy


class CpuLinearAlgebra(LinearAlgebra):
    def matmul(self, a, b, out=None):
        thin = a.ndim == b.ndim == 2 and (out is None or out.flags.c_contiguous)
        if thin and cpu_thin.fits(a, b):
            out = np.empty((len(a), b.shape[1]), a.dtype) if out is None else out
            cpu_thin.product(a, b, out)
            return out
        return super().matmul(a, b, out)

    def matmul_add(self, a, b, out):
        # BLAS itself can add to its output (beta = 1), NumPy's matmul cannot. BLAS is column-major:
        # outᵀ += bᵀ aᵀ, and a C-contiguous array is the column-major array of its transpose.
        gemm = _GEMM[out.dtype]
        (left, transpose_left), (right, transpose_right) = _column_major(b), _column_major(a)
        result = gemm(1.0, left, right, 1.0, out.T, transpose_left, transpose_right, overwrite_c=1)
        if not np.shares_memory(result, out, max_work=1):  # BLAS had to copy: out was strided
            out[...] = result.T
        return out

    def axpby(self, a, x, b, out):
        if not out.flags.c_contiguous:
            return super().axpby(a, x, b, out)
        cast = out.dtype.type
        x, blocks = np.ascontiguousarray(x).reshape(-1), -(-out.size // _BLOCK)
        _axpby(blocks, cast(a), x, cast(b), out.reshape(-1))
        return out

    def scale_into(self, out, scale, a, multiple):
        if a.ndim == 2 and a.T.flags.c_contiguous and isinstance(multiple, int):
            strips, factor = -(-out.shape[1] // _TILE), out.dtype.type(scale * multiple)
            _scaled_transpose(strips, a.T, factor, out)
            return out
        if a.ndim == 4 and np.shape(multiple) == (*a.shape[:2], 1, 1):
            _scaled_taps(a, float(scale), multiple, out)
            return out
        return super().scale_into(out, scale, a, multiple)

    def sum_squares(self, x) -> float:
        x = np.ascontiguousarray(x).reshape(-1)
        if x.size <= _FEW:
            return float(_sum_few_squares(x))
        squares = np.empty(-(-x.size // FLAT_BLOCK))
        _sum_squares(len(squares), x, squares)
        return float(total(squares))

    def residual(self, out, x):
        if not out.flags.c_contiguous:
            return super().residual(out, x)
        squares = np.empty(-(-out.size // _BLOCK))
        _residual(len(squares), out.reshape(-1), np.ascontiguousarray(x).reshape(-1), squares)
        return total(squares) / len(x)

    def inverse(self, w):
        if not 0 < len(w) <= _SMALL:
            return super().inverse(w)
        return self.inverse_and_log_abs_det(w)[0]  # without what NumPy does before and after

    def inverse_and_log_abs_det(self, a):
        # one factorisation for both: NumPy makes two
        # A C-contiguous array is the column-major array of its transpose: (aᵀ)⁻¹ = (a⁻¹)ᵀ.
        getrf, getri, getrs = _LU[a.dtype]
        lu, pivots, status = getrf(a.T)
        if status:
            raise SingularMatrixError("the matrix is singular")
        log_abs_det = float(np.log(np.abs(lu.diagonal())).sum(dtype=np.float64))
        if len(a) <= _SMALL:
            inverse, _ = getri(lu, pivots, overwrite_lu=1)
        else:
            # getri is slower without a workspace; with one it makes many small products, whose
            # threads wait for each other on a busy machine
            identity = np.eye(len(a), dtype=a.dtype, order="F")
            inverse, _ = getrs(lu, pivots, identity, overwrite_b=1)
        return inverse.T, log_abs_det


def _column_major(matrix):
    """A matrix as (column-major array, transpose flag) for BLAS, without a copy if possible."""
    return (matrix.T, 0) if matrix.flags.c_contiguous else (np.asfortranarray(matrix), 1)


@parallel
def _axpby(task, a, x, b, out):
    """out (count,) = a · x + b · out."""
    target, source = out[task * _BLOCK :][:_BLOCK], x[task * _BLOCK :][:_BLOCK]
    for i in range(target.size):
        target[i] = b * target[i] + a * source[i]


@parallel
def _residual(task, out, x, squares):
    """out (count,) -= x, and Σ out² over each task's part."""
    target, source = out[task * _BLOCK :][:_BLOCK], x[task * _BLOCK :][:_BLOCK]
    for i in range(target.size):
        target[i] -= source[i]
    squares[task] = block_sum_squares(target)


@compiled
def _scaled_taps(a, scale, multiple, out):
    """out = scale · multiple ⊙ a for kernels a and out (kH, kW, I, O), multiple (kH, kW, 1, 1)."""
    kh, kw, inputs, outputs = a.shape
    for h in range(kh):
        for w in range(kw):
            factor = out.dtype.type(scale * multiple[h, w, 0, 0])
            for i in range(inputs):
                for o in range(outputs):
                    out[h, w, i, o] = factor * a[h, w, i, o]


@parallel
def _scaled_transpose(strip, a, scale, out):
    """out = scale · aᵀ, a (K, M), out (M, K), through square tiles in the first cache, where
    reading columns costs nothing."""
    rows, columns = out.shape
    first = strip * _TILE
    tile = np.empty((_TILE, _TILE), a.dtype)
    for start in range(0, rows, _TILE):
        if start + _TILE <= rows and first + _TILE <= columns:  # constant bounds: vectorised
            for j in range(_TILE):
                for i in range(_TILE):
                    tile[i, j] = a[first + j, start + i]
            for i in range(_TILE):
                for j in range(_TILE):
                    out[start + i, first + j] = scale * tile[i, j]
        else:
            for i in range(start, min(rows, start + _TILE)):
                for j in range(first, min(columns, first + _TILE)):
                    out[i, j] = scale * a[j, i]


@parallel
def _sum_squares(task, g, squares):
    """Σ g² over each task's part of the flat buffer."""
    squares[task] = block_sum_squares(g[task * FLAT_BLOCK :][:FLAT_BLOCK])


@compiled
def _sum_few_squares(g):
    """Σ g² of a short buffer, on one thread: waking the others would take longer."""
    total = 0.0
    for start in range(0, g.size, FLAT_BLOCK):
        total += block_sum_squares(g[start:][:FLAT_BLOCK])
    return total


@serial
def block_sum_squares(g):
    """Σ g² in _LANES partial sums of g's precision, added up in double."""
    lanes = np.zeros(_LANES, g.dtype)
    for start in range(g.size // _LANES):
        part = g[start * _LANES : (start + 1) * _LANES]
        for lane in range(_LANES):
            lanes[lane] += part[lane] * part[lane]
    total = 0.0
    for lane in range(_LANES):
        total += lanes[lane]
    for value in g[g.size // _LANES * _LANES :]:
        total += np.float64(value) * value
    return total
