"""Products, inverses, determinants and norms: by NumPy, or by BLAS and LAPACK where a direct call
saves a temporary array or a second factorisation.

See derivations/07-convolutions.md.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np
from scipy.linalg import get_blas_funcs, get_lapack_funcs

from snfnp import threads
from snfnp.errors import SingularMatrixError
from snfnp.ops.group import Array, OperationGroup, Scalar

_GEMM: Any = {np.dtype(kind): get_blas_funcs("gemm", dtype=kind) for kind in "fd"}
_LU: Any = {
    np.dtype(kind): get_lapack_funcs(("getrf", "getri", "getrs"), dtype=kind)
    for kind in "fd"
}
_SMALL = 128  # up to this size getri is faster than solving for the identity
# numbers whose squares one BLAS call adds up: so few that it takes one thread
_BLOCK = 8192
_EPS = float(np.finfo(float).eps)
_SINGULAR = "the matrix is singular or not finite"
_ONE_THREAD = 128  # up to this size of a product one BLAS thread is faster than two


class LinearAlgebra(OperationGroup):
    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """a b, shapes (M, K) and (K, N); transposed views are welcome. O(M K N)."""
        with threads.blas:
            return self.xp.matmul(a, b, out=out)

    def matmul_add(self, a: Array, b: Array, out: Array) -> Array:
        """out += a b, without an (M, N) temporary. O(M K N)."""
        if not (a.size and b.size):  # SciPy's BLAS refuses empty arrays
            return out
        target = out
        if out.flags.fnc:  # column-major only: outᵀ += bᵀ aᵀ, a row-major target
            target = out.T
            a, b = b.T, a.T
        # BLAS can add to its output (beta = 1), NumPy's matmul cannot. BLAS is column-major, and
        # the transpose of a C-contiguous array is column-major as it lies in memory. Therefore
        # targetᵀ += bᵀ aᵀ, where BLAS itself transposes a factor that is not C-contiguous.
        transpose_b = not b.flags.c_contiguous
        transpose_a = not a.flags.c_contiguous
        with threads.blas:
            result = _GEMM[out.dtype](
                alpha=1.0,
                a=b if transpose_b else b.T,
                b=a if transpose_a else a.T,
                beta=1.0,
                c=target.T,
                trans_a=transpose_b,
                trans_b=transpose_a,
                overwrite_c=True,
            )
        if not np.may_share_memory(result, out):  # BLAS had to copy: out was strided
            target[...] = result.T
        return out

    def axpby(self, a: Scalar, x: Array, b: Scalar, out: Array) -> Array:
        """out ← a x + b out, elementwise. The kernels of the CPU and the GPU round a and b to out's
        precision first, as NumPy does with Python's numbers."""
        out *= b
        out += a * x
        return out

    def axpby_pair(
        self,
        a: tuple[Scalar, ...],
        x: tuple[Array, ...],
        b: Scalar,
        out: tuple[Array, ...],
    ) -> tuple[Array, ...]:
        """`axpby` of two numbers a, two arrays x and two arrays out, with one b: one launch on a
        GPU."""
        for each_a, each_x, each_out in zip(a, x, out, strict=True):
            self.axpby(each_a, each_x, b, each_out)
        return out

    def scale_into(
        self, out: Array, scale: Scalar, a: Array, multiple: int | np.ndarray
    ) -> Array:
        """out ← scale · a ⊙ multiple: with a = flip(r) and the multiple m, the approximate gradient
        of a log-determinant (flip(r) ⊙ m of Eq. 15, m_i p_i of Eq. 25; Rᵀ of Eq. 10).

        multiple: 1, or a host array that broadcasts to a's shape. It depends on shapes alone, so
            that a device may keep its copy.
        """
        self.xp.multiply(a, scale, out=out, casting="same_kind")
        # A dense W shares no weight: its multiple is 1.
        if not (isinstance(multiple, int) and multiple == 1):
            out *= self.device.asarray(multiple, out.dtype)
        return out

    def sum_squares(self, x: Array) -> Scalar:
        """Σ x²: runs of 8,192 in the precision of x, and their sum in double precision."""
        values = x.ravel()
        total = 0.0
        for start in range(0, values.size, _BLOCK):
            block = values[start : start + _BLOCK]
            total += float(block.dot(block))
        return total

    def residual(self, out: Array, x: Array) -> Scalar:
        """out ← out − x, the error of a batch (N, ...). Returns ‖out‖²/N, in double precision."""
        out -= x
        return self.sum_squares(out) / len(x)

    def inverse(self, w: Array) -> Array:
        """w⁻¹ of a square matrix. O(D³). Raises SingularMatrixError, or returns NaN if the host
        would have to wait for the device to know."""
        return self.checked_inverse(w)[0]

    def log_abs_det(self, w: Array) -> float:
        """log|det w| of a square matrix, in double precision. O(D³). Raises SingularMatrixError."""
        return self.checked_inverse(w.astype(np.float64))[1]

    def checked_inverse(self, w: Array) -> tuple[Array, float]:
        """w⁻¹ and log|det w| of a square matrix. O(D³). Raises SingularMatrixError if w is not
        finite, or singular to double precision: ε ‖w‖ ‖w⁻¹‖ ≥ 1 in Frobenius norms.

        A singular matrix that was rounded to doubles is found: rounding moved it by at most
        ε/2 ‖w‖, so w has a singular value of at most ε/2 ‖w‖, and ε ‖w‖ ‖w⁻¹‖ ≥ 2. Where the test
        passes, one rounding of each element of w changes log|det w| by less than a nat.
        """
        inverse, log_abs_det = self.inverse_and_log_abs_det(w)
        norm, inverse_norm = self.norms(w, inverse)
        if not _EPS * norm * inverse_norm < 1:  # also if it is NaN
            raise SingularMatrixError(_SINGULAR)
        return inverse, log_abs_det

    def solve(self, w: Array, z: Array) -> Array:
        """The rows x with w x = z for the rows z (N, D). O(D³ + N D²). Raises SingularMatrixError
        if w is not finite, or if rounding w to doubles can change w x by more than ‖z‖ for a
        row x: w may then be the rounded copy of a singular matrix."""
        try:
            with threads.blas:
                x = self.xp.ascontiguousarray(self.xp.linalg.solve(w, z.T).T)
        except np.linalg.LinAlgError:
            raise SingularMatrixError(_SINGULAR) from None
        return self.require_solution(w, x, z)

    def require_solution(self, w: Array, x: Array, z: Array) -> Array:
        """x, if it passes the test of `solve`; else raises SingularMatrixError."""
        (norm,) = self.norms(w)
        lengths = self.xp.linalg.norm(x, axis=1)
        too_large = _EPS * norm * lengths > self.xp.linalg.norm(z, axis=1)
        if too_large.any() or not math.isfinite(norm):
            raise SingularMatrixError(_SINGULAR)
        return x

    def inverse_root(self, matrix: Array, floor: Scalar) -> Array:
        """The function `inverse_root` for a float64 matrix on the device. O(K³)."""
        return self.device.asarray(
            inverse_root(self.device.to_host(matrix), float(floor))
        )

    # ------------------------------------------ for `snfnp.maps.block_tridiagonal`'s recursion

    def inverse_and_log_abs_det(self, a: Array) -> tuple[Array, float]:
        """a⁻¹ and log|det a| of a square matrix (n, n). O(n³). Raises SingularMatrixError,
        or returns an inverse that is not finite if the host would have to wait to know."""
        # one factorisation for both: NumPy makes two
        # A C-contiguous array is the column-major array of its transpose: (aᵀ)⁻¹ = (a⁻¹)ᵀ.
        getrf, getri, getrs = _LU[a.dtype]
        with threads.blas:
            lu, pivots, status = getrf(a.T)
            if status:
                raise SingularMatrixError(_SINGULAR)
            log_abs_det = float(np.log(np.abs(lu.diagonal())).sum(dtype=np.float64))
            if len(a) <= _SMALL:
                inverse, _ = getri(lu, pivots, overwrite_lu=1)
            else:
                # Here getri would need a workspace to be as fast, and with one it makes many small
                # products, whose threads wait for each other on a busy machine.
                inverse, _ = getrs(
                    lu, pivots, np.eye(len(a), dtype=a.dtype, order="F"), overwrite_b=1
                )
        return inverse.T, log_abs_det

    def norms(self, *matrices: Array) -> list[float]:
        """The Frobenius norms of matrices in double precision, read back together."""
        return [math.sqrt(float(self.xp.vdot(a, a))) for a in matrices]

    def chain_of_products(self, size: int) -> AbstractContextManager:
        """A context for many products of (size, size) matrices, each waiting for the last. Small
        ones get one thread: two gain little, and stall on a busy machine."""
        if size > _ONE_THREAD:
            return nullcontext()
        return threads.blas_limited(1, _blas_libraries(self.device.name))


def inverse_root(matrix: np.ndarray, floor: float) -> np.ndarray:
    """The symmetric M^{-1/2} of a symmetric matrix M (K, K), float64 on the host. O(K³).

    Eigenvalues below `floor` are raised to it. This is ZCA whitening: of all matrices U with
    U M Uᵀ = I, M^{-1/2} is the nearest to I.
    """
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.maximum(values, floor) ** -0.5) @ vectors.T


@cache
def _blas_libraries(backend: str) -> list:
    """The BLAS libraries that are loaded: looking for them is slow. `backend` is the cache's key,
    since a backend may load more of them."""
    return threads.blas_libraries()
