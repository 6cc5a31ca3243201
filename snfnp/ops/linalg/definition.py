"""Products, inverses, determinants and norms; see derivations/07-convolutions.md."""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import numpy as np
import threadpoolctl

from snfnp.errors import SingularMatrixError
from snfnp.ops.group import OperationGroup

_BLOCK = 64  # rows handled at once if a full-size temporary would not fit the memory promise
_ONE_THREAD = 128  # up to this size of a product one BLAS thread is faster than two


class LinearAlgebra(OperationGroup):
    def matmul(self, a, b, out=None):
        """a b, shapes (M, K) and (K, N); transposed views are welcome. O(M K N)."""
        return self.xp.matmul(a, b, out=out)

    def matmul_add(self, a, b, out):
        """out += a b, without an (M, N) temporary. O(M K N)."""
        for start in range(0, len(out), _BLOCK):
            out[start : start + _BLOCK] += a[start : start + _BLOCK] @ b
        return out

    def axpby(self, a, x, b, out):
        """out ← a x + b out, elementwise. a and b are numbers, or arrays of shape ()."""
        out *= b
        out += a * x
        return out

    def scale_into(self, out, scale, a, multiple):
        """out ← scale · a ⊙ multiple, with a = flip(R) and m the surrogate for the gradient of a
        log-determinant (the second summand of Eqs. 10 and 15, m_i p_i of Eq. 25).

        scale: a number, or an array of shape (); multiple: 1, or a host array that broadcasts to
        a's shape and depends on shapes alone.
        """
        self.xp.multiply(a, scale, out=out, casting="same_kind")
        if not (isinstance(multiple, int) and multiple == 1):  # 1: no weight is shared
            out *= self.device.asarray(multiple, out.dtype)
        return out

    def sum_squares(self, x) -> float:
        """Σ x², in double precision."""
        wide = x.astype(self.xp.float64).reshape(-1)
        return float(wide @ wide)

    def residual(self, out, x):
        """out ← out − x, the error of a batch (N, ...). Returns ‖out‖²/N, in double precision."""
        out -= x
        return self.sum_squares(out) / len(x)

    def inverse(self, w):
        """w⁻¹ of a square matrix. O(D³). Raises SingularMatrixError; a device that would have to
        wait for that may return NaN instead."""
        try:
            return self.xp.linalg.inv(w)
        except np.linalg.LinAlgError:
            raise SingularMatrixError("the weight matrix is singular") from None

    def log_abs_det(self, w) -> float:
        """log|det w| of a square matrix, by an LU decomposition. O(D³)."""
        log_abs_det = float(self.xp.linalg.slogdet(w)[1])
        if not math.isfinite(log_abs_det):
            raise SingularMatrixError("the weight matrix is singular or not finite")
        return log_abs_det

    def solve(self, w, z):
        """The rows x with w x = z for the rows z (N, D). O(D³ + N D²)."""
        try:
            return self.xp.ascontiguousarray(self.xp.linalg.solve(w, z.T).T)
        except np.linalg.LinAlgError:
            raise SingularMatrixError("the weight matrix is singular") from None

    # ------------------------------------------ for `snfnp.maps.block_tridiagonal`'s recursion

    def inverse_and_log_abs_det(self, a):
        """a⁻¹ and log|det a| of a square matrix (n, n). O(n³). Raises SingularMatrixError; a device
        that would have to wait for that may return an inverse that is not finite instead."""
        try:
            return self.xp.linalg.inv(a), float(self.xp.linalg.slogdet(a)[1])
        except np.linalg.LinAlgError:
            raise SingularMatrixError("the matrix is singular") from None

    def norms(self, *matrices) -> list[float]:
        """The Frobenius norms of matrices in double precision, read back together."""
        return [math.sqrt(float(self.xp.vdot(a, a))) for a in matrices]

    def chain_of_products(self, size: int) -> AbstractContextManager:
        """A context for many products of (size, size) matrices, each waiting for the last. Small
        ones get one thread: a second gains little, and on a busy machine the two wait."""
        if size > _ONE_THREAD:
            return nullcontext()
        return _blas_libraries(self.device.name).limit(limits=1, user_api="blas")


@cache
def _blas_libraries(backend: str) -> threadpoolctl.ThreadpoolController:
    """The BLAS libraries that a backend has loaded. Looking for them is slow, hence the cache."""
    return threadpoolctl.ThreadpoolController()
