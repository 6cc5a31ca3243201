"""BLAS and LAPACK called directly; see derivations/07-convolutions.md."""

import numpy as np
from scipy.linalg import get_blas_funcs, get_lapack_funcs

from snfnp.errors import SingularMatrixError
from snfnp.ops.jit import parallel
from snfnp.ops.linalg.definition import LinearAlgebra

_GEMM = {np.dtype(kind): get_blas_funcs("gemm", dtype=kind) for kind in "fd"}
_LU = {np.dtype(kind): get_lapack_funcs(("getrf", "getri", "getrs"), dtype=kind) for kind in "fd"}
_SMALL = 128  # up to this size getri is faster than solving for the identity
_BLOCK = 4096  # values per task of an array as large as a batch's: many even shares


class CpuLinearAlgebra(LinearAlgebra):
    def matmul_add(self, a, b, out):
        if out.flags.fnc:
            return self.matmul_add(b.T, a.T, out.T).T
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
        alike = out.flags.forc and a.strides == out.strides and a.dtype == out.dtype
        if not (alike and isinstance(multiple, int)):
            return super().scale_into(out, scale, a, multiple)
        factor, blocks = out.dtype.type(scale * multiple), -(-out.size // _BLOCK)
        _scaled(blocks, a.ravel("K"), factor, out.ravel("K"))  # views
        return out

    def sum_squares(self, x) -> float:
        # blocks so short that BLAS takes one thread, and that single precision loses little in each
        x, size = np.ascontiguousarray(x).reshape(-1), 2 * _BLOCK
        blocks = [x[start : start + size] for start in range(0, x.size, size)]
        return float(sum(float(block.dot(block)) for block in blocks))

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
def _scaled(task, x, scale, out):
    """out (count,) = scale · x."""
    target, source = out[task * _BLOCK :][:_BLOCK], x[task * _BLOCK :][:_BLOCK]
    for i in range(target.size):
        target[i] = scale * source[i]
