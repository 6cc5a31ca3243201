"""Linear algebra on the GPU: cuBLAS, cuSOLVER, and one launch for what is elementwise.

cuSOLVER does not report that a matrix is singular. The host has to look for a pivot of 0, so
inverses and solves wait for the device: only exact evaluation and exact gradients use them. The
inverse of a small matrix, for a few channels, does not wait; it is NaN if the matrix is singular.
See derivations/07-convolutions.md.
"""

import math
from contextlib import nullcontext

import numpy as np

from snfnp.errors import SingularMatrixError
from snfnp.ops.gpu import source
from snfnp.ops.gpu.launch import host_knows
from snfnp.ops.linalg.definition import LinearAlgebra

_MOST_BLOCKS = 512  # for a sum over a flat array: a large GPU runs this many at once
# Of `inverse_root`'s iteration. A step multiplies a small eigenvalue of Z Y by 9/4, so that these
# are enough for a condition number of 1e12.
_MOST_STEPS = 40
_CLOSE = 1e-8  # an error whose square is below the rounding of doubles


class GpuLinearAlgebra(LinearAlgebra):
    def matmul(self, a, b, out=None):
        if a.ndim != 2 or b.ndim != 2 or a.dtype != b.dtype:
            return super().matmul(a, b, out)
        if out is None:
            out = self.device.empty((len(a), b.shape[1]), a.dtype)
        elif not out.flags.c_contiguous or out.dtype != a.dtype:
            out[...] = self.matmul(a, b)
            return out
        self.device.cublas.gemm(a, b, out)
        return out

    def matmul_add(self, a, b, out):
        if out.flags.fnc:
            return self.matmul_add(b.T, a.T, out.T).T
        if not out.flags.c_contiguous or not a.dtype == b.dtype == out.dtype:
            out += self.matmul(a, b)
        else:
            self.device.cublas.gemm(a, b, out, beta=1.0)
        return out

    def axpby(self, a, x, b, out):
        # no second array
        return self.axpby_pair((a, 0.0), (x, None), b, (out, None))[0]

    def axpby_pair(self, a, x, b, out):
        n, m = (0 if each is None else each.size for each in out)
        self.device.each(
            "axpby",
            out[0].dtype,
            max(n, m),
            a=a[0],
            x=x[0],
            b=b,
            out=out[0],
            n=n,
            second_a=a[1],
            second_x=x[1],
            second_out=out[1],
            m=m,
        )
        return out

    def scale_into(self, out, scale, a, multiple):
        # R's gradient is column-major, and so is a = Wᵀ. Their transposes are row-major.
        if out.ndim == 2 and out.flags.fnc:
            return self.scale_into(out.T, scale, a.T, multiple).T
        if not (host_knows(scale) and out.flags.c_contiguous and a.dtype == out.dtype):
            return super().scale_into(out, scale, a, multiple)
        if not isinstance(multiple, int):  # a host array
            return self.xp.multiply(
                a, self.device.constant(scale * multiple, out.dtype), out=out
            )
        self.device.each(
            "scaled",
            out.dtype,
            out.size,
            out=out,
            scale=scale * multiple,
            a=a,
            n=out.size,
        )
        return out

    def sum_squares(self, x):
        """Σ x² (), float64, on the device."""
        return self._sum("sum_squares", x.dtype, x.size, g=x)

    def residual(self, out, x):
        return self._sum(
            "residual", out.dtype, out.size, error=out, x=x, samples=len(x)
        )

    def _sum(self, kernel, dtype, size, **arguments):
        """The sum that a kernel takes over `size` numbers: (), float64."""
        blocks = max(1, min(_MOST_BLOCKS, -(-size // 1024)))
        total = self.device.empty((), np.float64)
        self.device.launch(
            kernel,
            dtype,
            blocks,
            partial=self.device.empty(blocks, np.float64),
            total=total,
            arrived=self.device.counters,
            n=size,
            **arguments,
        )
        return total

    def inverse(self, w):
        if not 0 < len(w) <= source.constant("linalg", "MOST_ROWS"):
            return super().inverse(w)
        inverse = self.device.like(w)
        self.device.launch(
            "small_inverse", w.dtype, 1, a=w, inverse=inverse, size=len(w)
        )
        return inverse

    def solve(self, w, z):
        x, pivots = self._solve(w, z)
        self._log_abs_det(pivots)  # raises if w is singular
        return self.require_solution(w, x, z)

    def inverse_and_log_abs_det(self, a):
        # aᵀ x = e_i has row i of a⁻¹ as its solution. cuSOLVER wants aᵀ column-major, which is the
        # memory of a row-major a.
        inverse, pivots = self._solve(a.T, self.xp.eye(len(a), dtype=a.dtype))
        return inverse, self._log_abs_det(pivots)

    def inverse_root(self, matrix, floor):
        """By products: the coupled Newton–Schulz iteration (Higham, "Functions of Matrices", Eq.
        6.35), Y → A^{1/2} and Z → A^{-1/2} for A = M / ‖M‖. The host reads two norms a step, and
        no matrix, unless an eigenvalue may be below `floor`."""
        (scale,) = self.norms(matrix)
        identity = self.xp.eye(len(matrix))
        y = matrix / scale
        z = identity
        for _ in range(_MOST_STEPS):
            error = identity - self.matmul(z, y)
            error_norm, z_norm = self.norms(error, z)
            half = identity + error / 2
            y = self.matmul(y, half)
            z = self.matmul(half, z)
            # The error of the new y and z is at most the square of this one.
            if error_norm <= _CLOSE:
                break
        # ‖Z‖² = Σ 1/λ is at least the largest 1/λ, so that every eigenvalue scale · λ of M is at
        # least `floor`
        if error_norm <= _CLOSE and z_norm**2 * float(floor) <= scale:
            return z / math.sqrt(scale)
        return super().inverse_root(matrix, floor)

    def norms(self, *matrices):
        squares = [self.xp.vdot(a, a).reshape(1) for a in matrices]
        host = self.device.to_host(self.xp.concatenate(squares, dtype=np.float64))
        return np.sqrt(host).tolist()

    def chain_of_products(self, size):
        return nullcontext()  # no threads of a BLAS to limit: the GPU multiplies

    def _solve(self, a, z):
        """The rows x with a x = z for the rows z (N, n), and the pivots (n,) of an LU of a."""
        from cupyx import lapack  # importing this module needs no CuPy

        lu = self.xp.array(a, order="F")
        x = self.xp.array(z, order="C")
        lapack.gesv(lu, x.T)  # overwrites both
        return x, lu.diagonal()

    def _log_abs_det(self, pivots) -> float:
        """log|det| from an LU's pivots. Raises SingularMatrixError if one is 0, as LAPACK does."""
        host = self.device.to_host(pivots.astype(np.float64))
        if not host.all():
            raise SingularMatrixError("the matrix is singular")
        return float(np.log(np.abs(host)).sum())
