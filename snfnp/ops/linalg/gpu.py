"""Linear algebra on the GPU: cuBLAS, cuSOLVER, and one launch for what is elementwise.

cuSOLVER does not report that a matrix is singular. Its pivots show it, and they give the
log-determinant too: inverses, solves and norms wait for the device. Only exact
evaluation and exact gradients use them. The inverse of a few channels does not wait: of a singular
matrix it is NaN, and the step that uses it fails as others do. See derivations/07-convolutions.md.
"""

import math
from contextlib import nullcontext

import numpy as np

from snfnp.errors import SingularMatrixError
from snfnp.ops.gpu import source
from snfnp.ops.gpu.launch import is_known
from snfnp.ops.linalg.definition import LinearAlgebra

# Of a sum over a flat array, resident together on a large GPU; their partial sums are added in one
# order.
_MOST_BLOCKS = 512
_MOST_STEPS = 40  # an eigenvalue grows by 9/4 in each: enough for a condition number of 1e12
_CLOSE = 1e-8  # an error whose square is below the rounding of doubles


class GpuLinearAlgebra(LinearAlgebra):
    def matmul(self, a, b, out=None):
        if a.ndim != 2 or b.ndim != 2 or a.dtype != b.dtype:
            return super().matmul(a, b, out)
        product = out
        if out is None or not out.flags.c_contiguous or out.dtype != a.dtype:
            product = self.device.empty((len(a), b.shape[1]), a.dtype)
        self.device.cublas.gemm(a, b, product)
        if product is not out and out is not None:
            out[...] = product
            return out
        return product

    def matmul_add(self, a, b, out):
        if out.flags.fnc:
            return self.matmul_add(b.T, a.T, out.T).T
        if not out.flags.c_contiguous or not a.dtype == b.dtype == out.dtype:
            out += self.matmul(a, b)
        else:
            self.device.cublas.gemm(a, b, out, beta=1.0)
        return out

    def axpby(self, a, x, b, out):
        self._axpby(a, x, b, out, 0.0, None, None)
        return out

    def axpby_pair(self, a, x, b, out):
        self._axpby(a[0], x[0], b, out[0], a[1], x[1], out[1])
        return out

    def _axpby(self, a, x, b, out, second_a, second_x, second_out):
        m = 0 if second_out is None else second_out.size
        first = {"a": a, "x": x, "b": b, "out": out, "n": out.size}
        second = {"second_a": second_a, "second_x": second_x, "second_out": second_out, "m": m}
        self.device.each("axpby", out.dtype, max(out.size, m), **first, **second)

    def scale_into(self, out, scale, a, multiple):
        if out.ndim == 2 and out.flags.fnc:  # R's gradient, and W: both lie in order
            return self.scale_into(out.T, scale, a.T, multiple).T
        if not (is_known(scale) and out.flags.c_contiguous and a.dtype == out.dtype):
            return super().scale_into(out, scale, a, multiple)
        if not isinstance(multiple, int):
            return self.xp.multiply(a, self.device.constant(scale * multiple, out.dtype), out=out)
        arguments = {"out": out, "scale": scale * multiple, "a": a, "n": out.size}
        self.device.each("scaled", out.dtype, out.size, **arguments)
        return out

    def sum_squares(self, x):
        """Σ x² (), float64, on the device."""
        total = self.device.empty((), np.float64)
        blocks, sums = self._sums(x.size, total)
        self.device.launch("sum_squares", x.dtype, blocks, g=x, n=x.size, **sums)
        return total

    def residual(self, out, x):
        total = self.device.empty((), np.float64)
        blocks, sums = self._sums(out.size, total)
        sums |= {"samples": len(x), "n": out.size}
        self.device.launch("residual", out.dtype, blocks, error=out, x=x, **sums)
        return total

    def _sums(self, size, total):
        """The number of blocks for a sum of `size` numbers, and the arguments that it needs."""
        blocks = max(1, min(_MOST_BLOCKS, -(-size // 1024)))
        partial = self.device.empty(blocks, np.float64)
        return blocks, {"partial": partial, "total": total, "arrived": self.device.counters}

    def inverse(self, w):
        if not 0 < len(w) <= source.constant("linalg", "MOST_ROWS"):
            return super().inverse(w)
        inverse = self.device.empty(w.shape, w.dtype)
        self.device.launch("small_inverse", w.dtype, 1, a=w, inverse=inverse, size=len(w))
        return inverse

    def solve(self, w, z):
        x, pivots = self._solve(w, z)
        self._log_abs_det(pivots)
        return self.require_solution(w, x, z)

    def inverse_and_log_abs_det(self, a):
        # the rows x with aᵀ x = e_i are those of a⁻¹; and to a column-major library a C-contiguous
        # a already is aᵀ
        inverse, pivots = self._solve(a.T, self.xp.eye(len(a), dtype=a.dtype))
        return inverse, self._log_abs_det(pivots)

    def inverse_root(self, matrix, floor):
        """By products: the coupled Newton–Schulz iteration (Higham, "Functions of Matrices", Eq.
        6.35), Y → A^{1/2} and Z → A^{-1/2} for A = M / ‖M‖. The host reads two norms a step, and
        no matrix, unless an eigenvalue may be below `floor`."""
        floor, (scale,) = float(floor), self.norms(matrix)
        identity = self.xp.eye(len(matrix))
        y, z = matrix / scale, identity
        for _ in range(_MOST_STEPS):
            error = identity - self.matmul(z, y)
            size, z_size = self.norms(error, z)
            half = identity + error / 2
            y, z = self.matmul(y, half), self.matmul(half, z)
            if size <= _CLOSE:  # and now it is at most the square of that
                break
        if size <= _CLOSE and z_size**2 * floor <= scale:  # Σ 1/λ, at least the largest 1/λ
            return z / math.sqrt(scale)
        return super().inverse_root(matrix, floor)

    def norms(self, *matrices):
        squares = [self.xp.vdot(a, a).reshape(1) for a in matrices]
        host = self.device.to_host(self.xp.concatenate(squares, dtype=np.float64))
        return np.sqrt(host).tolist()

    def chain_of_products(self, size):
        return nullcontext()  # the host multiplies nothing

    def _solve(self, a, rows):
        """The rows x with a x = z for the rows z (N, n), and the pivots (n,) of an LU of a."""
        from cupyx import lapack  # importing this module needs no CuPy

        lu, x = self.xp.array(a, order="F"), self.xp.array(rows, order="C")
        lapack.gesv(lu, x.T)  # overwrites both
        return x, lu.diagonal()

    def _log_abs_det(self, pivots) -> float:
        """log|det| from an LU's pivots. Raises SingularMatrixError if one is 0, as LAPACK does; a
        NaN is not."""
        host = self.device.to_host(pivots.astype(np.float64))
        if not host.all():
            raise SingularMatrixError("the matrix is singular")
        return float(np.log(np.abs(host)).sum())
