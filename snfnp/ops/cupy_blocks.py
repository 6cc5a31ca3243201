"""Inverses, solves and log-determinants on the GPU: one LU each, one look at its pivots.

cuSOLVER does not say by itself that a matrix is singular. Its pivots do, and the log-determinant
is in them too: they are read back once, together with all else that the host has to know.
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np

from snfnp.errors import SingularMatrixError
from snfnp.ops.numpy_blocks import BlockOps


class CudaBlockOps(BlockOps):
    """BlockOps, and the inverses and solves of `NumpyOps`. These operations wait for the device,
    once each: they belong to exact evaluation and to exact gradients."""

    def inverse(self, w):
        return self.inverse_and_log_abs_det(w)[0]

    def solve(self, w, z):
        x, pivots = self._solve(w, z)
        self._read(pivots)
        return x

    def inverse_and_log_abs_det(self, a):
        inverse, pivots = self._inverse(a)
        return inverse, self._read(pivots)[0]

    def norms(self, *matrices):
        return self._read(self.xp.empty(0), *matrices)[1]

    def eliminate(self, d, minus_lower, diagonal, upper):
        inverse, pivots = self._inverse(d)
        ratio, following = self._next_block(inverse, minus_lower, diagonal, upper)
        log_abs_det, norms = self._read(pivots, d, inverse, following - d)
        return inverse, ratio, following, log_abs_det, norms

    def chain_of_products(self, size):
        return nullcontext()  # the host multiplies nothing

    def _inverse(self, a):
        """a⁻¹ and the pivots of an LU of a. Singular matrices go unnoticed here."""
        # the rows x with aᵀ x = e_i are those of a⁻¹; and aᵀ is what a C-contiguous a already is
        # to a column-major library
        return self._solve(a.T, self.xp.eye(len(a), dtype=a.dtype))

    def _solve(self, a, rows):
        """The rows x with a x = z for the rows z (N, n), and the pivots (n,) of an LU of a."""
        from cupyx import lapack  # importing this module needs no CuPy

        lu, x = self.xp.array(a, order="F"), self.xp.array(rows, order="C")
        lapack.gesv(lu, x.T)  # overwrites both
        return x, lu.diagonal()

    def _read(self, pivots, *matrices) -> tuple[float, list[float]]:
        """log|det| from an LU's pivots, and the Frobenius norms of matrices: one transfer.

        Raises SingularMatrixError where a pivot is 0, as LAPACK does; NaN is none.
        """
        xp = self.xp
        squares = [xp.vdot(a, a).reshape(1) for a in matrices]
        host = self.to_host(xp.concatenate([pivots, *squares], dtype=np.float64))
        pivots, squares = host[: len(pivots)], host[len(pivots) :]
        if not pivots.all():
            raise SingularMatrixError("the matrix is singular")
        return float(np.log(np.abs(pivots)).sum()), [math.sqrt(square) for square in squares]
